"""What of x_t at the expert switch is noise, and what x0_pred there says already of the result, by frequency."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanlab.errors import WanlabError
from wanlab.runfile import Run

LOW = 0.25  # of the highest frequency: where the low band ends


@dataclass(frozen=True, kw_only=True)
class Bands:
    """Shares in [0,1] at the first low-noise step; NaN where it was not recorded."""

    noise_low: float = math.nan
    """Of x_t's power at low spatial frequencies, the share that is noise."""
    noise_high: float = math.nan
    """The same at all others."""
    predicted: float = math.nan
    """Of the result's low-frequency variance, the share that x0_pred holds already: 1 - mean (x0_pred - x0)² / mean
    (x0 - mean)², at low frequencies; below 0 where it is further from the result than the result's mean is."""


def bands(run: Run, switch: int, sigma: float) -> Bands:
    """The shares of a run at step `switch`, the first of the low-noise expert, whose x_t has this sigma.

    x_t = (1-σ) x0 + σ ε, where the final latent stands for x0: noise is x_t - (1-σ) x0, and its share is its power
    over that and (1-σ)² x0's together. Frequencies are those of each latent frame's Fourier transform; low ones are
    below a quarter of the highest of either axis, and the frame's mean is among them. Raises WanlabError for a latent
    that is none.
    """
    if "latent" not in run:
        return Bands()
    x0, x_t, predicted = _final(run), _at(run, "x_t", switch), _at(run, "x0_pred", switch)
    height, width = x0.shape[-2:]
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(height), np.fft.rfftfreq(width), indexing="ij")) / 0.5
    weight = np.where((np.arange(width // 2 + 1) == 0) | (2 * np.arange(width // 2 + 1) == width), 1, 2)

    def power(x: NDArray[Any]) -> tuple[float, float]:
        low = high = 0.0
        for frame in range(x.shape[1]):  # one at a time: a transform is as large as what is transformed
            p = weight * np.abs(np.fft.rfft2(x[:, frame].astype(np.float64))) ** 2
            low, high = low + float(p[:, radius < LOW].sum()), high + float(p[:, radius >= LOW].sum())
        return low, high

    shares = {}
    if x_t is not None and x_t.shape == x0.shape:
        noise, signal = power(x_t - (1 - sigma) * x0), power((1 - sigma) * x0)
        for name, n, s in zip(("noise_low", "noise_high"), noise, signal, strict=True):
            shares[name] = n / (n + s) if n + s > 0 else math.nan
    if predicted is not None and predicted.shape == x0.shape:
        whole = power(x0 - x0.mean(axis=(1, 2, 3), keepdims=True))[0]
        shares["predicted"] = 1 - power(predicted - x0)[0] / whole if whole > 0 else math.nan
    return Bands(**shares)


def _final(run: Run) -> NDArray[Any]:
    latent, spec = run["latent"], run.spec
    # A file may declare any size: a latent has fewer values than the video has pixels.
    if (
        len(latent.dims) != 4
        or latent.dtype.kind != "f"
        or math.prod(latent.shape) > spec.width * spec.height * spec.frames
    ):
        raise WanlabError(f"{run.path}: 'latent' is {latent.shape} of {latent.dtype}", "make it again")
    return np.asarray(latent[:], np.float32)


def _at(run: Run, name: str, step: int) -> NDArray[Any] | None:
    """One step of a recorded space [C,F,H,W]; None where it was not recorded, or is larger than the result."""
    if name not in run or step not in run[name].recorded or run[name].dtype.kind != "f":
        return None
    shape = run[name].shape_at(step)
    if shape != run["latent"].shape:
        return None
    channels, frames, height, width = shape
    return np.asarray(run[name][step, :channels, :frames, :height, :width], np.float32)
