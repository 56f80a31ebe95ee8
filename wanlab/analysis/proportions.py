"""Two shares of the same pairs: their difference with an interval, an exact test, and what a judge's errors do to both.

Legend: x [runs] a pair's difference, -1, 0 or 1; `groups` the prompts, of which seeds are no independent evidence.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
import scipy  # its parts are imported when they are used
from numpy.typing import NDArray

from wanlab.analysis.stats import CONFIDENCE, ENOUGH, Interval, quantile
from wanlab.embedded.verify import Errors

Floats = NDArray[np.float64]
ALIKE = 0.1  # correlation of a prompt's seeds before anything is seen of it
MOST = 4.0  # of independent pairs a pair: prompts that differ leave a difference less variance than chance alone would


def paired_difference(values: Sequence[float], groups: Sequence[Hashable], *, factor: float | None = None) -> Interval:
    """The mean of differences -1, 0 and 1 whose prompts are the independent units, with its 95 % interval; n is their
    number. `factor` stands in for Student's quantile. No interval below four prompts.

    Tango's score interval (Statistics in Medicine 17, 1998) at the number of independent pairs that the variance
    between prompts leaves, and at Student's quantile.
    """
    x = np.asarray(values, np.float64)
    names = list(dict.fromkeys(groups))
    if not len(x):
        return Interval(math.nan, math.nan, math.nan, 0)
    if len(names) < ENOUGH or not np.isfinite(x).all():
        return Interval(float(x.mean()), math.nan, math.nan, len(names))
    number = {name: k for k, name in enumerate(names)}
    members = np.array([number[g] for g in groups]) == np.arange(len(names))[:, None]
    better, broke, n = (float(v) for v in effective(x, members))
    t = quantile(len(names)) if factor is None else factor
    return Interval(float(x.mean()), _lower(better, broke, n, t), -_lower(broke, better, n, t), len(names))


def effective(x: Floats, members: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """How many independent pairs the differences x [..., runs] are worth, given which run belongs to which prompt
    [prompts, runs]: those that got better, those that broke, and all of them [...].

    The design effect is the variance of the mean between prompts over that of as many independent pairs (E. L. Korn,
    B. I. Graubard, Survey Methodology 24, 1998), at least 1/`MOST`. A few changed pairs hardly say what it is: that of
    seeds correlated by `ALIKE` counts beside it as much as one changed pair. So one pair that breaks among many that
    do not change leaves no bound better than it was. Chosen by simulation of what the interval covers.
    """
    prompts, runs = members.shape
    mean = x.mean(axis=-1)
    alone = np.abs(x).mean(axis=-1) - mean**2
    residuals = (x - mean[..., None]) @ members.T
    variance = (residuals**2).sum(axis=-1) / runs**2 * prompts / (prompts - 1)
    seen = runs * np.maximum(runs * variance, alone / MOST)  # the design effect times the changed pairs
    design = (seen + 1 + (runs / prompts - 1) * ALIKE) / (runs * alone + 1)
    n = runs / design
    return (x > 0).mean(axis=-1) * n, (x < 0).mean(axis=-1) * n, n


def score(better: Floats, broke: Floats, n: Floats, difference: float) -> Floats:
    """Tango's statistic of a true difference, at the maximum-likelihood share of pairs that broke; 0/0 counts as 0."""
    b = -better - broke + (2 * n - better + broke) * difference
    root = np.sqrt(np.maximum(b**2 + 8 * n * broke * difference * (1 - difference), 0))
    variance = n * ((root - b) / (2 * n) + difference * (1 - difference))
    apart = better - broke - n * difference
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.abs(apart) < 1e-12, 0.0, apart / np.sqrt(np.maximum(variance, 0.0)))


def _lower(better: float, broke: float, n: float, t: float) -> float:
    mean = (better - broke) / n
    if mean <= -1:
        return -1.0
    counts = [np.asarray(v, np.float64) for v in (better, broke, n)]

    def above(difference: float) -> float:
        return float(score(counts[0], counts[1], counts[2], difference)) - t

    low, high = -1 + 1e-9, mean - 1e-9 * (1 + mean)
    return float(scipy.optimize.brentq(above, low, high)) if above(low) > 0 else -1.0


def mcnemar(better: int, broke: int) -> float:
    """Two-sided p of McNemar's exact test that as many pairs break as get better; 1 where none changed. Pairs count as
    independent."""
    return float(scipy.stats.binomtest(better, better + broke).pvalue) if better + broke else 1.0


# --- what a judge's errors do ----------------------------------------------------------------------------------------


def corrected(share: Interval, errors: Errors) -> Interval:
    """The interval of the true share, of that of the share that a judge called right; the mean stays the judged one.

    Every end goes through (q + specificity - 1) / J, J = sensitivity + specificity - 1 (W. J. Rogan, B. Gladen,
    American Journal of Epidemiology 107, 1978), and is moved outwards by what is not known of the judge, in
    quadrature: the variance of that estimate is (p² var(sensitivity) + (1 - p)² var(specificity)) / J².
    """
    youden = errors.sensitivity + errors.specificity - 1

    def true(judged: float) -> float:
        return min(max((judged + errors.specificity - 1) / youden, 0.0), 1.0)

    if not share.known:
        return share
    p = true(share.mean)
    unknown = p**2 * errors.sensitivity_variance + (1 - p) ** 2 * errors.specificity_variance
    low, high = _outwards(p, true(share.low), true(share.high), math.sqrt(unknown) / youden)
    return Interval(share.mean, min(low, share.mean), max(high, share.mean), share.n).within(0.0, 1.0)


def corrected_difference(difference: Interval, errors: Errors) -> Interval:
    """The interval of the true difference of two shares that one judge called right: errors that befall A and B alike
    shrink it by J (see `corrected`), of which the variance is that of its two rates. The mean stays the judged one."""
    if not difference.known:
        return difference
    youden = errors.sensitivity + errors.specificity - 1
    d, low, high = (v / youden for v in (difference.mean, difference.low, difference.high))
    unknown = abs(d) * math.sqrt(errors.sensitivity_variance + errors.specificity_variance) / youden
    low, high = _outwards(d, low, high, unknown)
    return Interval(difference.mean, low, high, difference.n).within(-1.0, 1.0)


def _outwards(value: float, low: float, high: float, deviation: float) -> tuple[float, float]:
    """Ends moved away from a value by an independent standard deviation, squares added (G. Y. Zou, A. Donner,
    Statistics in Medicine 27, 2008)."""
    more = float(scipy.special.ndtri((1 + CONFIDENCE) / 2)) * deviation
    return value - math.hypot(value - low, more), value + math.hypot(high - value, more)
