"""Two clips measured: each is read once, a frame at a time, for all measures. Memory does not grow with the length."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanlab.analysis import metrics as registered
from wanlab.analysis.metrics import BASELINE, WINDOW, Metric
from wanlab.analysis.metrics.clip import Clip, Floats, unit
from wanlab.analysis.metrics.pixels import SSIM_WINDOW, decibels
from wanlab.errors import UsageError
from wanlab.video import stored_errors

MATRIX = re.compile(r"bt\d|smpte|fcc|ycgco|ictcp")
LOSSY = re.compile(r"^(yuv|nv\d|p[024]1|uyvy|gray)|f(16|32)..$")  # pixel formats that RGB of 8 or 16 bits does not hold
CLOCK = 0.002  # seconds: the clocks of usual containers tick every millisecond or faster

Known = dict[Path, dict[str, Floats]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Fidelity:
    """A against B: figures by name, and the values by frame (or pair of frames) that they come from."""

    figures: Mapping[str, float]
    by_frame: Mapping[str, Floats]
    rounded: bool
    """Whether either video had been rounded to integers."""
    notes: tuple[str, ...] = ()
    """What else the two files differ in, or leave open, in sentences."""

    def __getitem__(self, name: str) -> float:
        return self.figures[name]

    @property
    def identical(self) -> bool:
        """Whether no value of any frame differs, as the files hold them. NaN is equal to nothing."""
        return self.figures["mse"] == 0

    @property
    def worst_frame(self) -> int:
        """From 0: the frame of the largest MSE; the first that is not finite, if there is one."""
        return int(self.by_frame["mse"].argmax())

    def unknown(self) -> Fidelity:
        """The same with no figure known: NaN all of them."""
        figures = dict.fromkeys(self.figures, float("nan"))
        by_frame = {name: np.full_like(values, np.nan) for name, values in self.by_frame.items()}
        return Fidelity(figures=figures, by_frame=by_frame, rounded=self.rounded, notes=self.notes)


def compare(
    a: Clip,
    b: Clip,
    *,
    metrics: Sequence[Metric] | None = None,
    known: Known | None = None,
    told: Callable[[int], None] = lambda done: None,
) -> Fidelity:
    """A held against B. `known` remembers what was measured of a clip alone, by path, for the next pairs; `told` is
    told how many frames are done.

    Raises UsageError when their sizes or lengths differ, WanlabError when a file is damaged.
    """
    check_same_size(a, b)
    wanted = registered.chosen() if metrics is None else metrics
    known = {} if known is None else known
    paired = [m for m in wanted if m.needs == "frame pair"]
    alone = [m for m in wanted if m.needs in WINDOW]
    by_frame: dict[str, list[float]] = {m.name: [] for m in paired}
    sides = {c.path: {m.name: list[float]() for m in alone} for c in (a, b) if c.path not in known}
    recent = {path: deque[NDArray[Any]](maxlen=max(WINDOW.values())) for path in sides}
    with ExitStack() as stack, np.errstate(invalid="ignore"):  # what is not finite gives NaN, and that is all
        frames = [stack.enter_context(clip.read_kept()) for clip in (a, b)]
        # Floats of a frame of 4K take 200 MB: no more of them are there at once than a measure needs.
        for done, (x, y) in enumerate(_together(frames[0], frames[1], a, b), 1):
            _measure_pair(paired, unit(x), unit(y), by_frame)
            for path, frame in {a.path: x, b.path: y}.items():
                if path in sides:
                    recent[path].append(frame)
                    _measure_alone(alone, [unit(f) for f in recent[path]], sides[path])
            told(done)
    known |= {path: {n: np.array(v) for n, v in side.items()} for path, side in sides.items()}
    hidden = _differ_as_stored(a, b) and not any(by_frame["mse"])
    if hidden:
        by_frame["mse"] = stored_errors(a.path, b.path, a.meta)
    arrays = {n: np.array(v) for n, v in by_frame.items()}
    figures = {m.name: _reduced(m, arrays[m.name]) for m in paired}
    for m in alone:
        for clip, suffix in ((a, ""), (b, BASELINE)):
            arrays[m.name + suffix] = known[clip.path][m.name]
            figures[m.name + suffix] = _reduced(m, arrays[m.name + suffix])
    figures |= {m.name: m(a, b) for m in wanted if m.needs == "pair"}
    arrays["psnr"] = np.array([decibels(v) for v in arrays["mse"]])
    return Fidelity(
        figures=registered.values(wanted, figures),
        by_frame=arrays,
        rounded=a.rounded or b.rounded,
        notes=tuple(note for note in (_colors(a, b), _times(a, b), _stored(a, b) * hidden) if note),
    )


def _measure_pair(metrics: Sequence[Metric], x: Floats, y: Floats, values: Mapping[str, list[float]]) -> None:
    for m in metrics:
        values[m.name].append(m(x, y))


def _measure_alone(metrics: Sequence[Metric], window: Sequence[Floats], values: Mapping[str, list[float]]) -> None:
    for m in metrics:
        if len(window) >= WINDOW[m.needs]:
            values[m.name].append(m(*window[-WINDOW[m.needs] :]))


def _differ_as_stored(a: Clip, b: Clip) -> bool:
    """Whether two video files of one format differ in what they hold, be their RGB equal or not: luma below black,
    colours that RGB has not and values beyond its bits are lost in it."""
    formats = {clip.meta.get("pix_fmt", "") for clip in (a, b)}
    return len(formats) == 1 and bool(LOSSY.search(formats.pop())) and a.meta["stored"] != b.meta["stored"]


def _stored(a: Clip, b: Clip) -> str:
    return (
        f"{' and '.join(_names(a, b))} have the same RGB and differ as they are stored ({a.meta.get('pix_fmt')}): "
        "MSE and PSNR are of the stored values"
    )


def _colors(a: Clip, b: Clip) -> str:
    """A sentence where both are stored as luma and chroma, and their tags differ or do not say by which matrix."""
    said = " and ".join(f"{name} has {c.color}" for name, c in zip(_names(a, b), (a, b), strict=True) if c.color)
    if a.color and b.color and a.color != b.color:
        return f"colour tags differ: {said}; each was converted to RGB by its own"
    if any(c.color and not MATRIX.search(c.color) for c in (a, b)):
        return f"{said}: without a colour matrix, ffmpeg's default was used"
    return ""


def _times(a: Clip, b: Clip) -> str:
    """A sentence where frames of the same number are shown at other times."""
    times, others = (clip.meta.get("times", []) for clip in (a, b))
    for k, (x, y) in enumerate(zip(times, others, strict=False)):
        if abs((x - times[0]) - (y - others[0])) > CLOCK:
            return (
                f"{' and '.join(_names(a, b))} show their frames at other times, frame {k} at {x:.3f} s and "
                f"{y:.3f} s: compared frame by frame"
            )
    return ""


def _names(a: Clip, b: Clip) -> tuple[str, str]:
    """What two clips are called beside each other: with their folders where their names are the same."""
    short = [Path(*clip.path.parts[-depth:]) for depth in (1, 2) for clip in (a, b)]
    x, y = short[:2] if short[0] != short[1] or a.path == b.path else short[2:]
    return (str(x), str(y)) if x != y or a.path == b.path else (str(a.path), str(b.path))


def _reduced(item: Metric, by_frame: Floats) -> float:
    if not len(by_frame):
        return float("nan")
    return float(by_frame.max() if item.reduce == "max" else by_frame[item.counted(by_frame)].mean())


def check_same_size(a: Clip, b: Clip) -> None:
    """Raises UsageError, saying both sizes, unless A and B can be compared. Nothing is cropped."""
    if (a.width, a.height) != (b.width, b.height) or (a.frames and b.frames and a.frames != b.frames):
        sizes = [
            f"{name} is {c.width}x{c.height}" + f", {c.frames} frames" * bool(c.frames)
            for name, c in zip(_names(a, b), (a, b), strict=True)
        ]
        raise UsageError(f"the videos differ in size: {sizes[0]}; {sizes[1]}", "compare videos of one size and length")
    if a.alpha != b.alpha:
        names = _names(a, b)[:: 1 if a.alpha else -1]
        raise UsageError(f"{names[0]} has an alpha channel, {names[1]} has none", "save both with it, or without")
    if min(a.width, a.height) < SSIM_WINDOW:
        raise UsageError(f"{a.width}x{a.height} is smaller than SSIM's window", f"use {SSIM_WINDOW} pixels or more")


def _together(xs: Iterator[Any], ys: Iterator[Any], a: Clip, b: Clip) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Pairs of frames; raises UsageError, counting on, when one video ends before the other."""
    done = 0
    while True:
        x, y = next(xs, None), next(ys, None)
        if x is None or y is None:
            if x is None and y is None and done:
                return
            names = _names(a, b)
            counts = [done + (f is not None) + sum(1 for _ in rest) for f, rest in ((x, xs), (y, ys))]
            raise UsageError(
                f"the videos differ in length: {names[0]} has {counts[0]} frames, {names[1]} {counts[1]}",
                "compare videos of one length",
            )
        yield x, y
        done += 1
