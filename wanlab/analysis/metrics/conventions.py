"""PSNR and SSIM as others compute them, so that their figures can be met. docs/conventions.md says who prints which.

Each differs from `psnr` or `ssim` in one thing. Given two films, all but psnr.mp4 and ssim.ffmpeg are of the decoded
frames; given run files, of the frames before rounding where they were recorded.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy  # its parts are imported when they are used
import skimage  # its parts are imported when they are used

from wanlab.analysis.metrics import metric
from wanlab.analysis.metrics.clip import Clip, Floats
from wanlab.analysis.metrics.pixels import ERROR, by_ffmpeg, decibels, eight_bits, mse
from wanlab.spec.paths import is_run_file
from wanlab.video import read_mp4, write_mp4_from

# Who prints which, shortly.
PUBLISHED = {
    "psnr": "wanlab; of films: EasyCache",
    "psnr.frames": "of films: cache-dit; Sparse-VideoGen, where no frame is equal",
    "psnr.frames100": "common_metrics_on_video_quality",
    "psnr.8bit": "torchmetrics, of a whole clip in 8 bits",
    "psnr.mp4": "MagCache, TeaCache",
    "ssim": "wanlab; of films: MagCache, TeaCache",
    "ssim.torchmetrics": "torchmetrics; of films: EasyCache",
    "ssim.skimage": "scikit-image's defaults; of films: cache-dit",
    "ssim.ffmpeg": "ffmpeg's filter ssim",
}
EQUAL = 100.0  # dB of a frame whose MSE is below LEAST
LEAST = 1e-10


@metric(
    "psnr.frames",
    needs="frame pair",
    title="PSNR, mean of frames",
    unit="dB",
    better="higher",
    format=".2f",
    reduce="mean of unequal",
    identical=math.inf,
    asked=True,
)
def psnr_frames(x: Floats, y: Floats) -> float:
    """Mean over frames of each frame's PSNR for peak 1. Equal frames have none and are left out, as equal pairs are of
    the mean over pairs; scikit-image's would be infinite there."""
    return decibels(mse.function(x, y))


@metric(
    "psnr.frames100",
    needs="frame pair",
    title="PSNR, equal frames 100",
    unit="dB",
    better="higher",
    format=".2f",
    asked=True,
)
def psnr_frames100(x: Floats, y: Floats) -> float:
    """Mean over frames of each frame's PSNR for peak 1; a frame whose MSE is below 1e-10 counts as 100 dB."""
    error = mse.function(x, y)
    return EQUAL if error < LEAST else decibels(error)


@metric("mse.8bit", needs="frame pair", title="MSE of 8 bits", format=".6g", asked=True, **ERROR)
def mse_8bit(x: Floats, y: Floats) -> float:
    """Mean (a - b)² over all values of all frames, both rounded to 8 bits first; for peak 1."""
    return float(np.square((eight_bits(x).astype(np.float64) - eight_bits(y)) / 255).mean())


@metric(
    "psnr.8bit",
    needs="figures",
    title="PSNR of 8 bits",
    unit="dB",
    better="higher",
    format=".2f",
    mean="mse.8bit",
    identical=math.inf,
    asked=True,
)
def psnr_8bit(figures: Mapping[str, float]) -> float:
    """As psnr, of values rounded to 8 bits."""
    return decibels(figures["mse.8bit"])


@metric("psnr.mp4", needs="pair", title="PSNR of films", unit="dB", better="higher", format=".2f", asked=True)
def psnr_mp4(a: Clip, b: Clip) -> float:
    """psnr.frames100 of two decoded films, 8 bits of RGB. What is no film is encoded first as wanlab writes its films:
    H.264, yuv420p, crf 18."""
    with tempfile.TemporaryDirectory() as folder:
        films = [_film(clip, Path(folder) / f"{k}.mp4") for k, clip in enumerate((a, b))]
        with read_mp4(films[0]) as (_, xs), read_mp4(films[1]) as (_, ys):
            pairs = zip(xs, ys, strict=True)
            return float(np.mean([psnr_frames100.function(_decoded(x), _decoded(y)) for x, y in pairs]))


def _film(clip: Clip, path: Path) -> Path:
    if not (is_run_file(clip.path) or clip.path.is_dir()):
        return clip.path
    with clip.read() as frames:
        write_mp4_from(path, map(eight_bits, frames), (clip.width, clip.height), clip.fps)
    return path


def _decoded(frame: np.ndarray) -> Floats:
    depth = float(np.iinfo(frame.dtype).max)
    return eight_bits(frame / depth) / 255.0


SSIM: dict[str, Any] = {"better": "higher", "bounds": (-1.0, 1.0), "asked": True}


@metric("ssim.torchmetrics", needs="frame pair", title="SSIM, torchmetrics", format=".4f", **SSIM)
def ssim_torchmetrics(x: Floats, y: Floats) -> float:
    """Wang et al. (2004), Gaussian window of 11 x 11, σ 1.5, K .01 and .03, range 1; mean over all pixels, colours and
    frames. At the edges the frame is continued by reflection, where `ssim` leaves them out."""
    at = np.arange(11) - 5.0
    window = np.exp(-(at**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(values: Floats) -> Floats:
        for axis in (0, 1):
            values = scipy.ndimage.correlate1d(values, window, axis=axis, mode="mirror")
        return values

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = (np.maximum(blur(v * v) - m * m, 0.0) for v, m in ((x, mean_x), (y, mean_y)))
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return min(float((luminance * (2 * covariance + c2) / (var_x + var_y + c2)).mean()), 1.0)


@metric("ssim.skimage", needs="frame pair", title="SSIM, scikit-image", format=".4f", **SSIM)
def ssim_skimage(x: Floats, y: Floats) -> float:
    """scikit-image with its defaults: a uniform window of 7 x 7, sample covariance; range 1, mean over frames."""
    return min(float(skimage.metrics.structural_similarity(x, y, data_range=1.0, channel_axis=-1)), 1.0)


@metric("ssim.ffmpeg", needs="pair", title="SSIM, ffmpeg", format=".6f", **SSIM)
def ssim_ffmpeg(a: Clip, b: Clip) -> float:
    """What ffmpeg's filter ssim prints for all planes: 8 x 8 pixels, every 4 of them, planes by their size. Two films
    as they are stored; where a side is none, both as RGB of 8 bits that becomes 4:2:0 by BT.709, limited range."""
    return by_ffmpeg(a, b, "ssim", r"All:([\d.]+)")
