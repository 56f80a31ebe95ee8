"""Means with intervals that hold what they promise. Below four independent values there is no interval."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy  # its parts are imported when they are used
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
CONFIDENCE = 0.95
ENOUGH = 4  # independent values from which on there is an interval
HELD = 0.84  # of the skewness term, where the cubic transformation's slope would go to infinity
UNBOUNDED = (-math.inf, math.inf)
DRAWS = 4000  # of the largest t statistic, for simultaneous intervals


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval, of n independent values; NaN bounds where n is too small to have one."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def known(self) -> bool:
        """Whether there is an interval at all; a bound may be infinite."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    def within(self, least: float, most: float) -> Interval:
        """The same, its bounds cut to what the quantity can be."""
        return Interval(self.mean, max(self.low, least), min(self.high, most), self.n)  # NaN stays NaN

    def to_dict(self) -> dict[str, float]:
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}


def interval(values: ArrayLike, limits: tuple[float, float] = UNBOUNDED, *, factor: float | None = None) -> Interval:
    """The mean of independent values [n] with its 95 % interval, inside the `limits` of the quantity (none, one or
    both); `factor` stands in
    for Student's quantile where several intervals are to hold together (see `simultaneous`).

    Without limits: the t statistic corrected for the skewness g of the values by Hall's monotone cubic transformation
    (P. Hall, "On the removal of skewness by transformation", JRSS B 54, 1992), T + g T²/3 + g² T³/27 + g/(6n) with
    T = (mean - mu)/s, inverted at Student's quantiles instead of a bootstrap's. g is the sample skewness times
    (1 + 6/n): the plain one is too near to 0 in small samples; it is held where |g| t/√n is .84, since the inverse's
    slope is infinite near 1, and a bound would jump where one value moves a little. Both numbers were chosen by
    simulation; `coverage` in tests/analysis/test_stats.py measures what the interval holds, docs/compare.md has the
    table.

    With a lower limit: the same, but no end is lower than (mean - limit) e^-h or (mean - limit) e^(h + h²/2), h being
    Student's half-width over mean - limit (h/2 for h²/2 where h > 1). That is Student's interval of log(mean - limit)
    (the delta method), and above the mean, up to the second order, that of 1/(mean - limit): a mean of skewed values
    that is too low comes with a deviation that is too small. With two limits: Student's interval of the logit of the
    mean's place between them. All stay inside the limits, and go to one as the values do.
    """
    x = np.asarray(values, np.float64)
    n = len(x)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(x.mean())
    if n < ENOUGH or not np.isfinite(x).all():
        return Interval(mean, math.nan, math.nan, n)
    low, high = (float(b[0]) for b in bounds(x[None], factor))
    if limits == UNBOUNDED:
        return Interval(mean, low, high, n)
    if math.isinf(limits[0]):  # an upper limit is a lower one of the negative
        own = interval(-x, (-limits[1], math.inf), factor=factor)
        return Interval(mean, -own.high, -own.low, n)
    half = (quantile(n) if factor is None else factor) * float(x.std(ddof=1)) / math.sqrt(n)
    within = _bounded(mean, half, n, limits)
    if math.isinf(limits[1]):
        return Interval(mean, max(low, within.low), max(high, within.high), n)
    return within


def bounds(x: Floats, factor: float | None = None) -> tuple[Floats, Floats]:
    """Bounds of `interval` without limits for many samples at once: x [samples, n], n >= 4."""
    n = x.shape[1]
    mean, s, spread = x.mean(axis=1), x.std(axis=1, ddof=1), x.std(axis=1)
    t = (quantile(n) if factor is None else factor) / math.sqrt(n)
    with np.errstate(invalid="ignore", divide="ignore"):
        third = ((x - mean[:, None]) ** 3).mean(axis=1)
        g = np.where(spread > 0, third / spread**3, 0.0) * (1 + 6 / n)
        g = np.clip(g, -HELD / t, HELD / t)
        even = np.abs(g) < 1e-6  # the limit of the inverse as g goes to 0 is the identity

        def inverse(t: float) -> Floats:
            bent = 3 / g * (np.cbrt(1 + g * (t - g / (6 * n))) - 1)
            return np.asarray(np.where(even, t, bent), np.float64)

        return mean - s * inverse(t), mean - s * inverse(-t)


def _bounded(mean: float, half: float, n: int, limits: tuple[float, float]) -> Interval:
    """On a logarithmic scale above a limit, on that of the odds between two."""
    low, high = limits
    if not low < mean < high or half == 0:  # every value is the limit, or all are equal
        return Interval(mean, mean, mean, n)
    if math.isinf(high):
        h = half / (mean - low)
        return Interval(mean, low + (mean - low) / _exp(h), low + (mean - low) * _exp(h + h * min(h, 1) / 2), n)
    odds, factor = (mean - low) / (high - mean), _exp(half * (high - low) / ((mean - low) * (high - mean)))
    ends = (odds / factor, odds * factor)
    least, most = (high - (high - low) / (1 + o) for o in ends)
    return Interval(mean, least, most, n)


def _exp(x: float) -> float:
    return math.exp(min(x, 700.0))


def quantile(n: int, count: int = 1) -> float:
    """Student's t for a two-sided 95 % interval of n values; for `count` of them to hold together (Bonferroni)."""
    return float(scipy.special.stdtrit(n - 1, 1 - (1 - CONFIDENCE) / (2 * count)))


def units(values: Sequence[float] | Floats, groups: Sequence[Hashable]) -> tuple[Floats, str]:
    """The independent units, and what they are.

    Seeds of one prompt are no independent evidence about prompts. With four or more groups the units are their means;
    with fewer the units are the values, and what follows speaks of these groups only.
    """
    if len(values) != len(groups):
        raise ValueError(f"{len(values)} values in {len(groups)} groups")
    names = list(dict.fromkeys(groups))
    x = np.asarray(values, np.float64)
    if len(names) < ENOUGH:
        return x, "pairs"
    return np.array([x[[g == name for g in groups]].mean() for name in names]), "prompts"


def grouped(
    values: Sequence[float],
    groups: Sequence[Hashable],
    limits: tuple[float, float] = UNBOUNDED,
    *,
    factor: float | None = None,
) -> tuple[Interval, str]:
    """The mean over independent units with its interval, and what those are (see `units`)."""
    own, what = units(values, groups)
    return interval(own, limits, factor=factor), what


def geometric(values: ArrayLike) -> Interval:
    """Geometric mean of positive values with its interval, from the logarithms."""
    x = np.asarray(values, np.float64)
    logs = interval(np.log(np.where(x > 0, x, np.nan)))
    return Interval(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high), logs.n)


def paired_ratio(
    a: Sequence[float], b: Sequence[float], groups: Sequence[Hashable], *, factor: float | None = None
) -> Interval:
    """The ratio a/b of values >= 0 that belong together one by one: (1 + d) / (1 - d) of the mean relative difference
    d, with its interval on the scale of the ratio's logarithm.

    Every unit weighs alike, whatever its size, and nothing jumps where a value becomes 0: 0 where every a is 0,
    infinite where every b is.
    """
    own = interval(units(relative_difference(a, b), groups)[0], (-1.0, 1.0), factor=factor)
    mean, low, high = ((1 + d) / (1 - d) if d != 1 else math.inf for d in (own.mean, own.low, own.high))
    return Interval(mean, low, high, own.n)


def relative_difference(a: ArrayLike, b: ArrayLike) -> Floats:
    """(a - b) / (a + b) of values >= 0, in [-1, 1]; 0 where both are 0."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.divide(x - y, x + y, out=np.zeros_like(x), where=(x + y) != 0)


def simultaneous(values: ArrayLike) -> float:
    """The factor of the standard error that all K intervals need to hold together in 95 % of cases: values [K, n].

    The 95 % quantile of the largest of K t statistics of n normal units whose correlation is that of the values,
    drawn towards independence by 1/√n since few units look more alike than they are, by simulation from a fixed seed
    (max-t; T. Hothorn, F. Bretz, P. Westfall, Biometrical Journal 50, 2008).
    """
    x = np.asarray(values, np.float64)
    k, n = x.shape
    if k == 1:
        return quantile(n)
    x = x - x.mean(axis=1, keepdims=True)
    size = np.linalg.norm(x, axis=1, keepdims=True)
    x = np.divide(x, size, out=np.zeros_like(x), where=size > 0)
    share = 1 / math.sqrt(n)
    random = np.random.default_rng(0)
    largest = []
    for draws in np.diff(np.linspace(0, DRAWS, 2 + DRAWS * k * n // 2_000_000).astype(int)):  # a few MB at a time
        own, shared = (random.standard_normal((draws, rows, n), np.float32) for rows in (k, n))
        z = math.sqrt(1 - share) * (x.astype(np.float32) @ shared) + math.sqrt(share) * own
        t = z.mean(axis=2) / z.std(axis=2, ddof=1) * math.sqrt(n)
        largest.append(np.abs(t).max(axis=1))
    unsure = 2 * math.sqrt(CONFIDENCE * (1 - CONFIDENCE) / DRAWS)  # so few draws do not say more
    simulated = float(np.quantile(np.concatenate(largest), CONFIDENCE + unsure))
    return min(simulated, quantile(n, k))  # Bonferroni's is always enough


def share(
    successes: Sequence[bool] | Sequence[float], groups: Sequence[Hashable], *, factor: float | None = None
) -> Interval:
    """A proportion of runs whose prompts (`groups`) are the independent units, with its 95 % interval; n is
    their number. No interval below four prompts. `factor` stands in for Student's quantile: the interval has the
    coverage that such a factor has.

    The beta-binomial model: prompts' own shares are beta distributed about the share, correlated within a prompt by r.
    Bounds are the central 95 % of the share's posterior, averaged over r (a priori uniform in the share, and
    Beta(1/4, 1/4) in r: next to none and nearly all are likelier than between); 0 or 1 where every run agrees. The
    prior of r was chosen by simulation of what the interval covers (`share_coverage` in
    tests/analysis/test_promises.py); of prompts with one run each it is the posterior of a binomial share (T. Bayes,
    1763).
    """
    counts: dict[Hashable, tuple[int, int]] = {}
    for success, group in zip(successes, groups, strict=True):
        good, runs = counts.get(group, (0, 0))
        counts[group] = good + bool(success), runs + 1
    good, runs = sum(g for g, _ in counts.values()), len(successes)
    if not runs:
        return Interval(math.nan, math.nan, math.nan, 0)
    if len(counts) < ENOUGH:
        return Interval(good / runs, math.nan, math.nan, runs)
    outside = 1 - CONFIDENCE if factor is None else 2 * float(scipy.special.stdtr(len(counts) - 1, -factor))
    low, high = _share_bounds(tuple(sorted(counts.values())), outside)
    return Interval(good / runs, 0.0 if not good else low, 1.0 if good == runs else high, len(counts))


SHARES = (np.arange(400) + 0.5) / 400


@lru_cache(1)
def _correlations() -> Floats:
    """24 values of the prior of the correlation within prompts, each as likely [24, 1]."""
    return np.asarray(scipy.special.betaincinv(0.25, 0.25, (np.arange(24) + 0.5) / 24))[:, None]


@lru_cache(4096)
def _share_bounds(counts: tuple[tuple[int, int], ...], outside: float) -> tuple[float, float]:
    """Posterior quantiles of the share, by the (successes, runs) of each prompt."""
    density = np.exp((found := sum(_log_likelihood(*c) for c in counts)) - np.max(found)).sum(axis=0)
    below = np.concatenate([[0.0], np.cumsum(density) / density.sum()])
    low, high = np.interp([outside / 2, 1 - outside / 2], below, np.linspace(0, 1, len(below)))
    return float(low), float(high)


@lru_cache(4096)
def _log_likelihood(good: int, runs: int) -> Floats:
    """Of a beta-binomial count [correlations, shares], up to a constant."""
    strength = (1 - _correlations()) / _correlations()
    a, b = SHARES * strength, (1 - SHARES) * strength
    return np.asarray(scipy.special.betaln(a + good, b + runs - good) - scipy.special.betaln(a, b), np.float64)


def caution(n: int, units: str = "pairs", prompts: int | None = None) -> str:
    """What to bear in mind about an interval of n values; "" when there is nothing."""
    if n < 2:
        return f"n = {n}: no interval, nothing can be concluded beyond this one comparison"
    if (prompts is not None and prompts < ENOUGH) or n < ENOUGH:
        return f"n = {n} {units}: these prompts only; nothing is said of others before there are {ENOUGH} prompts"
    if n < 32:
        covered = next(c for most, c in ((7, "87 to 93"), (15, "90 to 94"), (31, "93 to 95")) if n <= most)
        return f"n = {n} {units}: if the values are skewed, the 95 % intervals hold in {covered} % of cases"
    return ""
