"""Means with intervals that hold what they promise."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval, of n independent values; NaN bounds where n is too small to have one."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def known(self) -> bool:
        """Whether there is an interval at all."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def within(self, least: float, most: float) -> Interval:
        """The same, its bounds cut to what the quantity can be."""
        return Interval(self.mean, max(self.low, least), min(self.high, most), self.n)  # NaN stays NaN

    def to_dict(self) -> dict[str, float]:
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}


def interval(values: ArrayLike) -> Interval:
    """The mean of independent values [n] with its 95 % interval.

    Two or three values: Student's t. From four on: the t statistic corrected for the skewness g of the values by
    Hall's monotone cubic transformation (P. Hall, "On the removal of skewness by transformation", JRSS B 54, 1992),
    T + g T²/3 + g² T³/27 + g/(6n) with T = (mean - mu)/s, inverted at Student's quantiles instead of a bootstrap's.
    g is the sample skewness times (1 + 6/n): the plain one is too near to 0 in small samples. The factor was chosen by
    simulation; `coverage` in tests/analysis/test_stats.py measures what the interval holds, docs/compare.md has the table.
    """
    x = np.asarray(values, np.float64)
    n = len(x)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(x.mean())
    if n == 1 or not np.isfinite(x).all():
        return Interval(mean, math.nan, math.nan, n)
    low, high = bounds(x[None])
    return Interval(mean, float(low[0]), float(high[0]), n)


def bounds(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of `interval` for many samples at once: x [samples, n], n >= 2."""
    n = x.shape[1]
    mean, s = x.mean(axis=1), x.std(axis=1, ddof=1)
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) / math.sqrt(n)
    if n < 4:
        return mean - quantile * s, mean + quantile * s
    spread = x.std(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        third = ((x - mean[:, None]) ** 3).mean(axis=1)
        g = np.where(spread > 0, third / spread**3, 0.0) * (1 + 6 / n)
        even = np.abs(g) < 1e-6  # the limit of the inverse as g goes to 0 is the identity

        def inverse(t: float) -> np.ndarray:
            bent = 3 / g * (np.cbrt(1 + g * (t - g / (6 * n))) - 1)
            return np.where(even, t, bent)

        return mean - s * inverse(quantile), mean - s * inverse(-quantile)


def grouped(values: Sequence[float], groups: Sequence[Hashable]) -> tuple[Interval, str]:
    """The mean over independent units, and what those are.

    Seeds of one prompt are no independent evidence about prompts. With four or more groups the units are their means;
    with fewer the units are the values, and the interval speaks of these groups only.
    """
    if len(values) != len(groups):
        raise ValueError(f"{len(values)} values in {len(groups)} groups")
    names = list(dict.fromkeys(groups))
    if len(names) < 4 or len(names) == len(values):
        return interval(values), "pairs" if len(names) < 4 else "prompts"
    means = [float(np.mean([v for v, g in zip(values, groups, strict=True) if g == name])) for name in names]
    return interval(means), "prompts"


def ratio(a: Sequence[float], b: Sequence[float]) -> Interval:
    """Geometric mean of b/a over pairs with its interval, from the logarithms: a speed-up when these are times."""
    logs = interval(np.log(np.asarray(b, np.float64) / np.asarray(a, np.float64)))
    return Interval(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high), logs.n)


def caution(n: int, units: str = "pairs") -> str:
    """What to bear in mind about an interval of n values; "" when there is nothing."""
    if n < 2:
        return f"n = {n}: no interval, nothing can be concluded beyond this one comparison"
    if n < 4:
        return f"n = {n} {units}: an interval for normal data only, too few to see whether they are"
    if n < 32:
        covered = next(c for most, c in ((7, "87 to 93"), (15, "92 to 94"), (31, "93 to 95")) if n <= most)
        return f"n = {n} {units}: if the values are skewed, the 95 % intervals hold in {covered} % of cases"
    return ""
