"""On what scale a quantity is averaged, its interval, and how much data would decide a claim about it."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from wanlab.analysis import stats
from wanlab.analysis.metrics.pixels import decibels, squared_error
from wanlab.analysis.stats import ENOUGH, UNBOUNDED, Interval

Summary = Callable[[Sequence[float], Sequence[str]], Interval]
MOST = 1000  # prompts, or seeds of each: what would need more is called undecidable


@dataclass(frozen=True)
class Scale:
    """Values are averaged as to(value); means and bounds are shown as back(mean)."""

    to: Callable[[float], float] = float
    back: Callable[[float], float] = float
    limits: tuple[float, float] = UNBOUNDED
    """Of to(value): no interval leaves them."""
    most: float = math.inf
    """Where a limit is far from all values, and an interval is only cut."""


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def _missing(value: float) -> float:
    return 1 - value


def _difference(ratio: float) -> float:
    return 1 - 2 / (1 + ratio)


def _ratio(difference: float) -> float:
    return (1 + difference) / (1 - difference) if difference < 1 else math.inf


SHARE, RATIO = Scale(limits=(0.0, 1.0)), Scale(_log, _exp)
POSITIVE, UP_TO_1 = Scale(limits=(0.0, math.inf)), Scale(_missing, _missing, (0.0, math.inf))
PAIRED = Scale(_difference, _ratio, (-1.0, 1.0))  # as stats.paired_ratio has it: 0 and infinity are values
SCALES = {
    "mse": Scale(limits=(0.0, math.inf), most=1.0),
    "psnr": Scale(squared_error, decibels, (0.0, math.inf), 1.0),  # of the mean error, as everywhere
    "ssim": Scale(limits=(-1.0, 1.0)),
    "warping error, ratio": PAIRED,
    "frame difference, ratio": PAIRED,
    "mse, over the control's": PAIRED,
    "noise share, low frequencies": SHARE,
    "noise share, high frequencies": SHARE,
    "share of the result in x0_pred": UP_TO_1,
    "passes saved": UP_TO_1,
    "continuity": POSITIVE,
}
"""By quantity; what is not here is a ratio, averaged in logarithms."""


def pooled(quantity: str, values: Sequence[float], prompts: Sequence[str]) -> tuple[Interval, str]:
    """The mean over prompts with its interval, and what n counts; below four prompts there is no interval."""
    scale = SCALES.get(quantity, RATIO)
    found, units = on_scale(scale, values, prompts)
    return shown(scale, found), units


def on_scale(scale: Scale, values: Sequence[float], prompts: Sequence[str]) -> tuple[Interval, str]:
    """The same before it is brought back. Values without a place on the scale are left out."""
    known = [(scale.to(v), p) for v, p in zip(values, prompts, strict=True)]
    own = [(x, p) for x, p in known if math.isfinite(x)]
    found, units = stats.grouped([x for x, _ in own], [p for _, p in own], scale.limits)
    found = found.within(-math.inf, scale.most)
    return (found if units == "prompts" else Interval(found.mean, math.nan, math.nan, found.n)), units


def shown(scale: Scale, found: Interval) -> Interval:
    """Brought back from the scale, with the bounds in order."""
    mean, *ends = (scale.back(v) if not math.isnan(v) else v for v in (found.mean, found.low, found.high))
    low, high = ends if any(map(math.isnan, ends)) else sorted(ends)
    return Interval(mean, low, high, found.n)


def enough(
    found: Interval, x: Sequence[float], prompts: Sequence[str], threshold: float, summary: Summary | None = None
) -> tuple[int, int]:
    """(prompts of as many seeds, seeds of these prompts) that would decide a claim whose mean stays where it is; 0 for
    none up to `MOST`. All on the scale of `found`, the interval of the values x [n] of `prompts`.

    The interval's half-width h shrinks with the root of the number of prompts, and with seeds as far as the variance
    within prompts has a part in that of their means (one-way analysis of variance). The mean is |d| off the threshold:
    prompts·(h/d)², and the seeds at which τ² + ω²/s is (d/h)² of what it is now. An interval of shares shrinks faster
    where all agree: of a `summary` the prompts are tried, more of the same.
    """
    groups = {p: [v for v, q in zip(x, prompts, strict=True) if q == p] for p in dict.fromkeys(prompts)}
    distance = abs(found.mean - threshold)
    half = found.high - found.mean if threshold > found.mean else found.mean - found.low
    if len(groups) < ENOUGH or not distance > 0 or not math.isfinite(half):
        return 0, 0
    share = (distance / half) ** 2 if half > 0 else math.inf
    more = math.ceil(found.n / share) if summary is None else _prompts(summary, list(groups.values()), threshold)
    seeds = len(x) / len(groups)
    free = len(x) - len(groups)
    within = sum((np.array(g) - np.mean(g)).dot(np.array(g) - np.mean(g)) for g in groups.values()) / max(free, 1)
    total = float(np.var([np.mean(g) for g in groups.values()], ddof=1))
    between = max(total - within / seeds, 0.0) if free else total
    wanted = share * (between + within / seeds) - between
    again = math.ceil(within / wanted) if wanted > 0 and within > 0 else 0
    return (more if more <= MOST else 0), (again if again <= MOST else 0)


def _prompts(summary: Summary, groups: Sequence[Sequence[float]], threshold: float) -> int:
    """The least number of prompts, these over and over, whose interval lies on one side of the threshold."""

    def decided(count: int) -> bool:
        rows = [(v, str(k)) for k in range(count) for v in groups[k % len(groups)]]
        own = summary([v for v, _ in rows], [p for _, p in rows])
        return own.low >= threshold or own.high < threshold

    return bisect_left(range(MOST + 1), True, lo=len(groups), key=decided)


def advice(x: Sequence[float], prompts: Sequence[str], more: int, again: int) -> str:
    """In words, what would decide a claim that is open (see `enough`)."""
    groups = len(set(prompts))
    if groups < ENOUGH:
        return f"these prompts only: nothing is said of others before there are {ENOUGH}, and here are {groups}"
    many = set(Counter(prompts).values())
    each = "with as many seeds as these" if len(many) > 1 else f"of {min(many)} seed{'s' * (many != {1})} each"
    said = [f"about {more} prompts {each}"] * bool(more)
    said += [f"about {again} seeds of each of these {groups}"] * bool(again)
    if not said:
        return f"no number up to {MOST} of prompts or seeds would decide it: the mean lies too near the threshold"
    known = len(set(x)) > 1  # of values that are all equal nobody knows what differs
    never = f"; no number of seeds of these {groups} would" * (known and not again)
    return f"{' or '.join(said)} would decide it if the mean stays where it is{never}"
