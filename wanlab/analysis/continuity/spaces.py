"""How far neighbouring frames are apart: the metrics, and a space's arrays of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanlab.errors import WanlabError

Floats = NDArray[np.float64]
Frames = Iterable[NDArray[Any]]
METRICS = ("mse", "cosine", "normalised_l2")
SPACES = ("x_t", "x0_pred", "eps_pred", "velocity")


@dataclass(frozen=True, kw_only=True)
class Space:
    """Metrics of neighbouring frames [steps, pairs] of one space, and each frame's mean square [steps, frames]."""

    mse: Floats
    cosine: Floats
    normalised_l2: Floats
    power: Floats

    def mean(self, metric: str) -> Floats:
        """Mean over pairs [steps]."""
        return over_pairs(np.mean, getattr(self, metric))

    def std(self, metric: str) -> Floats:
        """Population standard deviation over pairs [steps]."""
        return over_pairs(np.std, getattr(self, metric))


def adjacent(frames: Frames, what: str = "a frame") -> tuple[list[float], list[float], list[float], list[float]]:
    """(mse, cosine, normalised_l2) of each pair of neighbours, then each frame's mean square; two frames in memory.
    Frames of bytes count as multiples of 1/255. cosine and normalised_l2 are NaN for frames of zeros.
    Raises WanlabError for values that are no numbers."""
    mse: list[float] = []
    cosine: list[float] = []
    distance: list[float] = []
    power: list[float] = []
    last = apart = np.empty(0, np.float32)
    before, unit = 0.0, 1.0
    for frame in frames:
        this = np.ascontiguousarray(frame).reshape(-1)
        unit = 1 / 255**2 if this.dtype == np.uint8 else 1.0  # of a square: cheaper than to divide every value
        if this.dtype != np.float64:
            this = this.astype(np.float32, copy=False)
        square = dot(this, this)
        if not math.isfinite(square):
            raise WanlabError(f"{what} has values that are no numbers", "run it again with --dtype float32")
        if power:
            product = dot(this, last)
            apart = np.subtract(this, last, out=apart if apart.shape == this.shape else None)
            far = dot(apart, apart)
            mse.append(unit * far / this.size)
            cosine.append(product / math.sqrt(square * before) if square * before else math.nan)
            distance.append(math.sqrt(far / (square + before)) if square + before else math.nan)
        power.append(unit * square / this.size)
        last, before = this, square
    return mse, cosine, distance, power


def dot(a: NDArray[Any], b: NDArray[Any]) -> float:
    """<a,b> of flat arrays: sums of 1024 products in their own dtype, added up in float64. Of float32 values it is
    within 1e-7 of the float64 product, for half the time."""
    whole = len(a) // 1024 * 1024
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.matmul(a[:whole].reshape(-1, 1, 1024), b[:whole].reshape(-1, 1024, 1))  # faster than einsum
    rest = a[whole:].astype(np.float64) @ b[whole:].astype(np.float64)
    return float(sums.sum(dtype=np.float64) + rest)


def space(rows: Sequence[tuple[list[float], ...]]) -> Space:
    """The rows that `adjacent` gave, one a step, as arrays."""
    return Space(**{n: _padded([r[i] for r in rows]) for i, n in enumerate((*METRICS, "power"))})


def _padded(rows: Sequence[Sequence[float]]) -> Floats:
    made = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for k, row in enumerate(rows):
        made[k, : len(row)] = row
    return made


def over_pairs(reduce: Any, values: Floats) -> Floats:
    return np.array([reduce(row[np.isfinite(row)]) if np.isfinite(row).any() else np.nan for row in values], np.float64)
