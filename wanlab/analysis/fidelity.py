"""How near two videos are to each other, frame by frame, and how steady each of them is.

Values are floats in [0,1]; A is held against the reference B. Legend: T frames, H rows, W columns, 3 colours.
Frames are read one at a time, so memory does not grow with the length.

    absolute error  |a - b|                       mean, max and population standard deviation over all values
    relative error  |a - b| / (|b| + 1e-8)        mean and max
    MSE             mean (a - b)²                 over all frames
    PSNR            -10 log10(MSE) dB, peak 1     of the mean MSE; infinite for identical videos
    SSIM            scikit-image, Gaussian windows of sigma 1.5, range 1, mean over frames (Wang et al., 2004)
    difference      mean |f_(t+1) - f_t|          of one video: how much it changes from frame to frame
    warping error   mean |f_(t+1) moved back along the optical flow - f_t|: what changes and is no motion
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from skimage.registration import optical_flow_ilk
from skimage.transform import resize, warp

from wanlab.errors import UsageError
from wanlab.images import read_video as read_mp4
from wanlab.runfile import Run
from wanlab.video import FPS, ffmpeg_compare, has_filter

Floats = NDArray[np.float64]
EPSILON = 1e-8
SSIM_WINDOW = 11  # pixels: sigma 1.5 cut at 3.5 sigma
FLOW_WIDTH = 320  # pixels; optical flow is computed on frames no wider, by area averages


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video that can be read more than once."""

    path: Path
    frames: int
    """0 when only reading it tells."""
    width: int
    height: int
    rounded: bool
    """Whether its values were rounded to 8 bits (an mp4 was also compressed)."""
    fps: float

    @classmethod
    def of(cls, path: str | Path) -> Clip:
        """The clip in a run file or a video file. Raises WanlabError when there is none."""
        path = Path(path)
        if path.suffix == ".h5":
            with Run(path) as run:
                kept = run[_best(run)]
                frames, height, width = kept.shape[:3]
                fps = float(run.attrs.get("fps", FPS))
                return cls(
                    path=path, frames=frames, width=width, height=height, rounded=kept.dtype == np.uint8, fps=fps
                )
        with read_mp4(path) as (meta, _):
            width, height = meta["size"]
            return cls(path=path, frames=0, width=width, height=height, rounded=True, fps=float(meta.get("fps") or FPS))

    @contextmanager
    def read(self) -> Iterator[Iterator[Floats]]:
        """Frames [H,W,3] in [0,1], float64. Raises WanlabError when the file is damaged."""
        if self.path.suffix == ".h5":
            with Run(self.path) as run:
                kept = run[_best(run)]
                yield (_unit(kept[k]) for k in range(self.frames))
        else:
            with read_mp4(self.path) as (_, frames):
                yield map(_unit, frames)


def _best(run: Run) -> str:
    """The frames before rounding where they were recorded."""
    return "video_float" if "video_float" in run else "video"


def _unit(frame: NDArray[Any]) -> Floats:
    return frame / 255.0 if frame.dtype == np.uint8 else frame.astype(np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Fidelity:
    """A against B."""

    abs_mean: float
    abs_max: float
    abs_std: float
    rel_mean: float
    rel_max: float
    mse: float
    psnr: float
    """dB; infinite when the videos are identical."""
    ssim: float
    mse_by_frame: Floats
    psnr_by_frame: Floats
    ssim_by_frame: Floats
    worst_frame: int
    """From 0: the frame of the largest MSE."""
    rounded: bool
    """Whether either video had been rounded to 8 bits."""
    vmaf: float = math.nan
    """ffmpeg's VMAF, similarity only; NaN when it was not asked for or ffmpeg has none."""

    @property
    def identical(self) -> bool:
        return self.mse == 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in self.__dict__.items()} | {
            "identical": self.identical
        }


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB for peak 1; infinite at 0."""
    return -10 * math.log10(mse) if mse > 0 else math.inf


def check_same_size(a: Clip, b: Clip) -> None:
    """Raises UsageError, saying both sizes, unless A and B can be compared. Nothing is cropped."""
    if (a.width, a.height) != (b.width, b.height) or (a.frames and b.frames and a.frames != b.frames):
        sizes = [f"{c.path.name} is {c.width}x{c.height}" + f", {c.frames} frames" * bool(c.frames) for c in (a, b)]
        raise UsageError(f"the videos differ in size: {sizes[0]}; {sizes[1]}", "compare videos of one size and length")
    if min(a.width, a.height) < SSIM_WINDOW:
        raise UsageError(f"{a.width}x{a.height} is smaller than SSIM's window", f"use {SSIM_WINDOW} pixels or more")


def compare(a: Clip, b: Clip, *, vmaf: bool = False) -> Fidelity:
    """A held against B. Raises UsageError when their sizes or lengths differ, WanlabError when a file is damaged."""
    check_same_size(a, b)
    count = 0
    total = squares = relative = 0.0
    most = most_relative = 0.0
    mses: list[float] = []
    ssims: list[float] = []
    with ExitStack() as stack:
        frames_a, frames_b = stack.enter_context(a.read()), stack.enter_context(b.read())
        for x, y in _together(frames_a, frames_b, a, b):
            error = np.abs(x - y)
            rel = error / (np.abs(y) + EPSILON)
            total, relative = total + float(error.sum()), relative + float(rel.sum())
            most, most_relative = max(most, float(error.max())), max(most_relative, float(rel.max()))
            square = float(np.square(error, out=error).sum())
            squares, count = squares + square, count + x.size
            mses.append(square / x.size)
            ssims.append(ssim(x, y))
    by_frame = np.array(mses)
    mse, mean = squares / count, total / count
    return Fidelity(
        abs_mean=mean, abs_max=most, abs_std=math.sqrt(max(0.0, mse - mean**2)), rel_mean=relative / count,
        rel_max=most_relative, mse=mse, psnr=psnr(mse), ssim=float(np.mean(ssims)), mse_by_frame=by_frame,
        psnr_by_frame=np.array([psnr(m) for m in mses]), ssim_by_frame=np.array(ssims),
        worst_frame=int(by_frame.argmax()), rounded=a.rounded or b.rounded, vmaf=measure_vmaf(a, b) if vmaf else math.nan,
    )  # fmt: skip


def _together(xs: Iterator[Floats], ys: Iterator[Floats], a: Clip, b: Clip) -> Iterator[tuple[Floats, Floats]]:
    """Pairs of frames; raises UsageError, counting on, when one video ends before the other."""
    done = 0
    while True:
        x, y = next(xs, None), next(ys, None)
        if x is None or y is None:
            if x is None and y is None and done:
                return
            counts = [done + (f is not None) + sum(1 for _ in rest) for f, rest in ((x, xs), (y, ys))]
            raise UsageError(
                f"the videos differ in length: {a.path.name} has {counts[0]} frames, {b.path.name} {counts[1]}",
                "compare videos of one length",
            )
        yield x, y
        done += 1


def ssim(x: Floats, y: Floats) -> float:
    """Structural similarity of two frames [H,W,3]; 1 for identical ones."""
    found = structural_similarity(
        x, y, data_range=1.0, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return float(found)


def measure_vmaf(a: Clip, b: Clip) -> float:
    """VMAF of A against B by the bundled ffmpeg, on 8-bit frames; NaN when it has no libvmaf."""
    if not has_filter("libvmaf"):
        return math.nan
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name, clip in (("a", a), ("b", b)):
            files.append(Path(folder) / f"{name}.rgb")
            with clip.read() as frames, open(files[-1], "wb") as out:
                for frame in frames:
                    out.write((frame * 255).round().astype(np.uint8).tobytes())
        said = ffmpeg_compare(files[0], files[1], "[0:v]format=yuv420p[a];[1:v]format=yuv420p[b];[a][b]libvmaf", (a.width, a.height))  # fmt: skip
    found = re.search(r"VMAF score: ([\d.]+)", said)
    return float(found[1]) if found else math.nan


@dataclass(frozen=True, kw_only=True, eq=False)
class Steadiness:
    """How one video changes from frame to frame."""

    difference: float
    warping_error: float
    difference_by_pair: Floats
    warping_error_by_pair: Floats

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in self.__dict__.items()}


def steadiness(clip: Clip) -> Steadiness:
    """Temporal metrics of one video; NaN for a single frame. Flow: iterative Lucas-Kanade (Le Besnerais & Champagnat,
    2005) of scikit-image on grey frames at most 320 pixels wide; pixels that come from outside the frame are left out."""
    differences: list[float] = []
    warps: list[float] = []
    with clip.read() as frames:
        before = small_before = None
        for frame in frames:
            scale = min(1.0, FLOW_WIDTH / frame.shape[1])
            size = (round(frame.shape[0] * scale), round(frame.shape[1] * scale))
            small = frame if scale == 1 else resize(frame, size, anti_aliasing=True)
            if before is not None and small_before is not None:
                differences.append(float(np.abs(frame - before).mean()))
                warps.append(warping_error(small_before, small))
            before, small_before = frame, small
    mean = [float(np.mean(v)) if v else math.nan for v in (differences, warps)]
    return Steadiness(
        difference=mean[0], warping_error=mean[1],
        difference_by_pair=np.array(differences), warping_error_by_pair=np.array(warps),
    )  # fmt: skip


def warping_error(first: Floats, second: Floats) -> float:
    """Mean |second moved back along the flow - first| over the pixels that the flow finds inside the frame."""
    grey = [f.mean(axis=-1) for f in (first, second)]
    if np.array_equal(grey[0], grey[1]):
        flow = np.zeros((2, *grey[0].shape))
    else:
        flow = np.asarray(optical_flow_ilk(grey[0], grey[1], radius=5, num_warp=3))
    rows, columns = np.meshgrid(*(np.arange(n) for n in grey[0].shape), indexing="ij")
    at = np.array([rows + flow[0], columns + flow[1]])
    inside = (at[0] >= 0) & (at[0] <= grey[0].shape[0] - 1) & (at[1] >= 0) & (at[1] <= grey[0].shape[1] - 1)
    moved = np.stack([warp(second[..., c], at, mode="edge") for c in range(3)], axis=-1)
    error = np.abs(moved - first).mean(axis=-1)
    return float(error[inside].mean()) if inside.any() else math.nan
