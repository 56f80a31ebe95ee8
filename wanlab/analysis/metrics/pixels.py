"""How near two videos are to each other, frame by frame.

Legend: x a frame of A, y the same of the reference B, [H,W,3] in [0,1].
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import skimage  # its parts are imported when they are used
from numpy.typing import NDArray

from wanlab.analysis.metrics import metric
from wanlab.analysis.metrics.clip import Clip, Floats
from wanlab.spec.paths import is_run_file
from wanlab.video import BT709, ffmpeg_compare, has_filter

EPSILON = 1e-8
SSIM_WINDOW = 11  # pixels: sigma 1.5 cut at 3.5 sigma
SSIM_EDGE, SSIM_ROWS = SSIM_WINDOW // 2, 512  # pixels left out at the edges; rows at once, which bounds the memory
ERROR: dict[str, Any] = {"better": "lower", "bounds": (0.0, math.inf)}


@metric("mse", needs="frame pair", title="MSE", format=".6g", better="lower", bounds=(0.0, 1.0))
def mse(x: Floats, y: Floats) -> float:
    """Mean (a - b)² over all values of all frames."""
    d = x - y
    return float(np.square(d, out=d).mean())


@metric(
    "psnr",
    needs="figures",
    title="PSNR",
    unit="dB",
    better="higher",
    format=".2f",
    mean="mse",
    column=".1f",
    identical=math.inf,
)
def psnr(figures: Mapping[str, float]) -> float:
    """-10 log10(MSE) for peak 1, of the MSE over all frames; over pairs, of the mean MSE. Equal videos are
    "identical"."""
    return decibels(figures["mse"])


@metric("ssim", needs="frame pair", title="SSIM", better="higher", bounds=(-1.0, 1.0), format=".4f", column=".3f")
def ssim(x: Floats, y: Floats) -> float:
    """scikit-image, Gaussian windows of σ 1.5, range 1, mean over frames (Wang et al., 2004)."""
    means = []
    for c in range(x.shape[-1]):
        values = 0.0
        for at in range(0, x.shape[0] - 2 * SSIM_EDGE, SSIM_ROWS):
            band = slice(at, at + SSIM_ROWS + 2 * SSIM_EDGE)
            own = skimage.metrics.structural_similarity(
                x[band, :, c],
                y[band, :, c],
                data_range=1.0,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                full=True,
            )[1]
            values += float(own[SSIM_EDGE:-SSIM_EDGE, SSIM_EDGE:-SSIM_EDGE].sum())
        means.append(values / ((x.shape[0] - 2 * SSIM_EDGE) * (x.shape[1] - 2 * SSIM_EDGE)))
    return min(float(np.mean(means)), 1.0)


@metric("abs_mean", needs="frame pair", title="absolute error, mean", format=".6f", **ERROR)
def abs_mean(x: Floats, y: Floats) -> float:
    """Mean |a - b|."""
    return float(_distance(x, y).mean())


@metric("abs_max", needs="frame pair", title="absolute error, max", format=".6f", reduce="max", **ERROR)
def abs_max(x: Floats, y: Floats) -> float:
    """Largest |a - b|."""
    return float(_distance(x, y).max())


@metric("abs_std", needs="figures", title="absolute error, std", format=".6f", **ERROR)
def abs_std(figures: Mapping[str, float]) -> float:
    """Population standard deviation of |a - b| over all values."""
    variance = figures["mse"] - figures["abs_mean"] ** 2
    return math.sqrt(variance) if not variance < 0 else 0.0


@metric("rel_mean", needs="frame pair", title="relative error, mean", format=".6g", **ERROR)
def rel_mean(x: Floats, y: Floats) -> float:
    """Mean |a - b| / (|b| + 1e-8)."""
    return float(_relative(x, y).mean())


@metric("rel_max", needs="frame pair", title="relative error, max", format=".6g", reduce="max", **ERROR)
def rel_max(x: Floats, y: Floats) -> float:
    """Largest |a - b| / (|b| + 1e-8)."""
    return float(_relative(x, y).max())


def _distance(x: Floats, y: Floats) -> Floats:
    """|x - y|, in the memory of one frame."""
    d = x - y
    return np.abs(d, out=d)


def _relative(x: Floats, y: Floats) -> Floats:
    d, whole = _distance(x, y), np.abs(y)
    whole += EPSILON
    d /= whole
    return d


@metric(
    "vmaf",
    needs="pair",
    title="VMAF",
    better="higher",
    bounds=(0.0, 100.0),
    format=".2f",
    asked=True,
)
def vmaf(a: Clip, b: Clip) -> float:
    """ffmpeg's libvmaf where it has it, of two films as they are stored, of all else as ssim.ffmpeg. Similarity only:
    it was trained on compression, not on generation."""
    return by_ffmpeg(a, b, "libvmaf", r"VMAF score: ([\d.]+)")


def by_ffmpeg(a: Clip, b: Clip, name: str, printed: str) -> float:
    """What a full-reference filter of ffmpeg prints; NaN where it is not there. Films as they are stored, since RGB and
    back costs VMAF .7; where a side is none, both as RGB of 8 bits that becomes 4:2:0 as in wanlab's own films."""
    if not has_filter(name):
        return math.nan
    if not any(is_run_file(c.path) or c.path.is_dir() for c in (a, b)):
        said = ffmpeg_compare(a.path, b.path, f"[a][b]{name}")
    else:
        said = _by_pixels(a, b, name)
    score = re.search(printed, said)
    return float(score[1]) if score else math.nan


def _by_pixels(a: Clip, b: Clip, name: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for side, clip in (("a", a), ("b", b)):
            files.append(Path(folder) / f"{side}.rgb")
            with clip.read() as frames, open(files[-1], "wb") as out:
                for frame in frames:
                    out.write(eight_bits(frame).tobytes())
        filters = f"[a]{BT709}[x];[b]{BT709}[y];[x][y]{name}"
        return ffmpeg_compare(files[0], files[1], filters, (a.width, a.height))


def eight_bits(frame: Floats) -> NDArray[np.uint8]:
    """A frame [H,W,3] as films hold it: uint8, rounded to the nearest."""
    values = np.nan_to_num(frame[..., :3])
    np.clip(values, 0, 1, out=values)
    values *= 255
    return np.asarray(np.round(values, out=values), np.uint8)


def decibels(error: float) -> float:
    """Peak signal-to-noise ratio in dB for peak 1 of a mean squared error: infinite at 0, NaN of NaN."""
    return -10 * math.log10(error) if error > 0 else math.inf if error == 0 else math.nan


def squared_error(psnr: float) -> float:
    """The MSE of a PSNR in dB, for peak 1: the inverse of `decibels`. A file may name any PSNR."""
    return float(10 ** min(-psnr / 10, 100.0))  # its cube is a number, too
