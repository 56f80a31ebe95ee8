"""H3 and H4: what the baseline itself does."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from wanlab.analysis import guidance
from wanlab.analysis.hypotheses.evidence import Evidence, Measured, plain_runs, titles
from wanlab.analysis.hypotheses.verdict import BASELINES, Claim, Sample, Thresholds, claim


def h3(evidence: Evidence, held: Thresholds) -> list[Claim]:
    says = f"more than {held.noise:.0%} of its mean square is noise"
    return [
        claim("H3", says, "noise share", _samples(runs, lambda r: r.noise), ">", held.noise, BASELINES, on=on)
        for on, runs in _by_key(plain_runs(evidence)).items()
    ]


def h4(evidence: Evidence, held: Thresholds) -> list[Claim]:
    def first_over_rest(r: Measured) -> float:
        mse = np.array(r.mse)
        first, rest = guidance.mean(mse[: held.first_steps]), guidance.mean(mse[held.first_steps :])
        return first / rest if rest > 0 else math.nan

    # Only steps with a value count, and only runs that have one before and after the first steps.
    known = [r for r in plain_runs(evidence) if math.isfinite(first_over_rest(r))]
    tests: tuple[tuple[str, str, Callable[[Measured], float], str, float], ...] = (
        (
            f"its mean over the first {held.first_steps} steps is more than {held.first_over_rest:g} times the rest's",
            "first over rest",
            first_over_rest,
            ">",
            held.first_over_rest,
        ),
        (
            f"it changes by less than its own size at {held.settled:.0%} of steps",
            "share of steps settled",
            _settled,
            ">=",
            held.settled,
        ),
        (
            f"the high-noise expert's is more than {held.high_over_low:g} times the low-noise expert's",
            "high over low",
            lambda r: r.high_over_low,
            ">",
            held.high_over_low,
        ),
    )
    return [
        claim("H4", says, quantity, _samples(runs, value), relation, threshold, BASELINES, on=on)
        for on, runs in _by_key(known).items()
        for says, quantity, value, relation, threshold in tests
    ]


def _settled(r: Measured) -> float:
    """Share of the steps that have both at which change < mse."""
    both = [(c, m) for c, m in zip(r.change, r.mse, strict=True) if math.isfinite(c) and math.isfinite(m)]
    return float(np.mean([c < m for c, m in both])) if both else math.nan


def _samples(runs: list[Measured], value: Callable[[Measured], float]) -> list[Sample]:
    return [Sample(prompt=r.prompt, value=value(r), source=str(r.path)) for r in runs]


def _by_key(runs: list[Measured]) -> dict[str, list[Measured]]:
    """Runs that may be pooled, by what they have in common; one group of nothing where there are none."""
    named = titles(r.key for r in runs)
    groups: dict[str, list[Measured]] = {}
    for r in runs:
        groups.setdefault(named[r.key], []).append(r)
    return groups or {"": []}
