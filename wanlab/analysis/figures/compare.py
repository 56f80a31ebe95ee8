"""Figures and films of a comparison. Text from a user is never read as mathematics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from wanlab.analysis.compare import THRESHOLDS, Pair, Result
from wanlab.analysis.figures.film import write_film
from wanlab.analysis.figures.style import HIGH, INK, LOW, QUIET, mark_switch, note, save, shorten
from wanlab.analysis.metrics.clip import Clip, unit
from wanlab.analysis.metrics.pixels import eight_bits

AMPLIFIED = 8  # times the difference in the side-by-side film


def _axes(ax: Axes, title: str, x: str, y: str) -> None:
    ax.set_title(title, color=INK, fontsize=11, loc="left", parse_math=False)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    ax.set_axisbelow(True)


def per_frame(result: Result, path: Path) -> Path:
    """PSNR and SSIM of every frame: a thin line a pair, the worst pair in front, the guide's thresholds dotted."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    worst = result.worst
    for ax, name, said in zip(figure.subplots(1, 2), ("psnr", "ssim"), ("PSNR, dB", "SSIM"), strict=True):
        _axes(ax, said.split(",")[0] + " by frame", "frame", said)
        for pair in result.pairs:
            values = pair.fidelity.by_frame[name]
            last = pair is worst
            label = shorten(f"worst pair: {pair.prompt}, seed {pair.seed}", 60) if last else None
            ax.plot(
                np.where(np.isinf(values), np.nan, values),
                color=HIGH if last else QUIET,
                linewidth=1.6 if last else 0.8,
                zorder=3 if last else 2,
                label=label,
            )
        ax.axhline(THRESHOLDS[name], color=LOW, linestyle=":", linewidth=1)
        ax.annotate(
            f"{THRESHOLDS[name]:g}",
            (0, THRESHOLDS[name]),
            xycoords=("axes fraction", "data"),
            fontsize=8,
            color=LOW,
            xytext=(2, 2),
            textcoords="offset points",
        )
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.margins(y=0.1)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    for text in figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=8).get_texts():
        text.set_parse_math(False)
    figure.suptitle(shorten(f"{result.label}: {len(result.pairs)} pairs"), fontsize=10, color=INK, parse_math=False)
    return save(figure, path)


def divergence(result: Result, path: Path) -> Path | None:
    """Where the trajectories part: |a - b| / |b| of the latents at each step; None when no latents were recorded."""
    known = [p for p in result.pairs if p.divergence is not None]
    if not known:
        return None
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    first = known[0].divergence
    assert first is not None
    steps = np.arange(1, len(first.error) + 1)
    _axes(left, "How far A is from B", "latents at the beginning of step (the last: the result)", "|a - b| / |b|")
    _axes(right, "Angle between A and B", "latents at the beginning of step (the last: the result)", "1 - cosine")
    for ax, name in ((left, "error"), (right, "cosine")):
        highest = 0.0
        for pair in known:
            assert pair.divergence is not None
            values = getattr(pair.divergence, name)
            values = values if name == "error" else 1 - values
            seen = np.where(values > 0, values, np.nan)  # before they part there is nothing to show on a log scale
            highest = max(highest, float(np.nanmax(values, initial=0)))
            worst = pair is result.worst
            ax.plot(
                steps,
                seen,
                color=HIGH if worst else QUIET,
                linewidth=1.6 if worst else 0.8,
                marker=".",
                markersize=5 if worst else 2,
            )
        for k in first.truncated:
            ax.axvspan(k + 0.5, k + 1.5, color="#f1f3f5", zorder=0, linewidth=0)
        if first.truncated:
            note(ax, "fewer passes", float(np.mean(first.truncated)) + 1)
        if first.switch is not None:
            mark_switch(ax, first.switch)
        if highest > 0:
            ax.set_yscale("log")
        ax.set_xlim(0.5, len(steps) + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(shorten(f"{result.label}: {len(known)} pairs"), fontsize=10, color=INK, parse_math=False)
    return save(figure, path)


def worst_frame(pair: Pair, path: Path, label: str) -> Path:
    """The worst frame of A and of B, and where they differ."""
    at = pair.fidelity.worst_frame
    a, b = (_frame(p, at) for p in (pair.a, pair.b))
    error = _apart(a, b).mean(axis=-1)
    shown = eight_bits(a), eight_bits(b)
    aspect = a.shape[0] / a.shape[1]
    figure = Figure(figsize=(12, 4 * aspect + 0.8), layout="constrained")
    panels = figure.subplots(1, 3)
    for ax, image, name in zip(panels, shown, (label, "baseline"), strict=False):
        ax.imshow(image, interpolation="nearest")
        ax.set_title(shorten(name, 40), fontsize=9, color=INK, parse_math=False)
    scaled = panels[2].imshow(error, cmap="magma", vmin=0, vmax=max(float(error.max()), 1e-6), interpolation="nearest")
    panels[2].set_title("mean |a - b| over colours", fontsize=9, color=INK)
    figure.colorbar(scaled, ax=panels[2], shrink=0.8)
    for ax in panels:
        ax.axis("off")
    figure.suptitle(shorten(f"frame {at}: {pair.prompt}, seed {pair.seed}"), fontsize=10, color=INK, parse_math=False)
    return save(figure, path)


def _apart(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """|x - y|, in the memory of one frame."""
    error = x - y
    return np.abs(error, out=error)


def _frame(path: Path, at: int) -> NDArray[np.float64]:
    with Clip.of(path).read_kept() as frames:
        for k, frame in enumerate(frames):
            if k == at:
                return unit(frame)
    raise IndexError(at)


def side_by_side(pair: Pair, path: Path, names: tuple[str, str]) -> Path:
    """A film of A, B and 8 times their absolute difference next to each other, `names` (A's, B's) above them."""
    said = (f"A: {names[0]}", f"B: {names[1]}", f"{AMPLIFIED} times |A - B|")

    def panels(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[NDArray[np.uint8]]:
        error = _apart(x, y)
        error *= AMPLIFIED
        return [eight_bits(x), eight_bits(y), eight_bits(error)]

    def pictures() -> Iterator[list[NDArray[np.uint8]]]:
        with Clip.of(pair.a).read_kept() as xs, Clip.of(pair.b).read_kept() as ys:
            for x, y in zip(xs, ys, strict=True):
                yield panels(unit(x), unit(y))  # three frames of 4K in float64 take 600 MB, and no more are there

    return write_film(path, Clip.of(pair.a), said, pictures())
