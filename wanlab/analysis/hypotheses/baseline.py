"""H3 and H4: what the baseline itself does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from wanlab.analysis import guidance
from wanlab.analysis.guidance import Floats
from wanlab.analysis.hypotheses.evidence import Evidence, plain_runs
from wanlab.analysis.hypotheses.verdict import BASELINES, Claim, Sample, Statement, Thresholds, claim
from wanlab.analysis.key import titles
from wanlab.analysis.measured import Measured

Value = Callable[[Measured], float]
RECORDED = "wanlab generate --prompts FILE --seed 0:{seeds} --record all"  # FILE: a prompt a line
FIRST = 4  # changes of the guidance difference: those of steps 2 to 5


def h3(evidence: Evidence, held: Thresholds) -> list[Claim]:
    """What x_t is at the switch, by frequency, and what the result is already."""

    def noise(where: str) -> Statement:
        says = f"at {where} spatial frequencies more than {held.noise:.0%} of x_t is noise"
        return Statement(says, f"noise share, {where} frequencies", ">", held.noise, BASELINES)

    says = f"x0_pred holds less than {held.predicted:.0%} of the result's low-frequency variance"
    known = Statement(says, "share of the result in x0_pred", "<", held.predicted, RECORDED)
    return [
        *_by_key("H3", evidence, noise("low"), lambda r: r.bands.noise_low),
        *_by_key("H3", evidence, noise("high"), lambda r: r.bands.noise_high),
        *_by_key("H3", evidence, known, lambda r: r.bands.predicted),
    ]


def h4(evidence: Evidence, held: Thresholds) -> list[Claim]:
    """Large in the first steps, then settled, within each expert; what the switch does is shown beside."""
    first, times = held.first_steps, f"is more than {held.first_over_rest:g} times the rest's"

    def first_over_rest(r: Measured) -> float:
        return _over(guidance.mean(np.array(r.mse[:first])), guidance.mean(np.array(r.mse[first:])))

    statements: tuple[tuple[Statement, Value], ...] = (
        (
            Statement(
                f"its mean over the first {first} steps {times}",
                "first over rest",
                ">",
                held.first_over_rest,
                BASELINES,
            ),
            first_over_rest,
        ),
        (
            Statement(
                f"within the experts its changes sum up to less than {held.change_over_mse:g} times its own size",
                "change over mse",
                "<",
                held.change_over_mse,
                BASELINES,
            ),
            change_over_mse,
        ),
        (
            Statement(
                f"within the experts its first {FIRST} changes are over {held.slowing:g} times as fast as the rest",
                "slowing",
                ">",
                held.slowing,
                BASELINES,
            ),
            slowing,
        ),
        (
            Statement(
                f"the high-noise expert's is more than {held.high_over_low:g} times the low-noise expert's",
                "high over low",
                ">",
                held.high_over_low,
                BASELINES,
            ),
            lambda r: r.high_over_low,
        ),
    )
    beside = Statement(
        "at the expert switch it grows from one step to the next", "across the switch", ">", 1.0, BASELINES
    )
    return [c for statement, value in statements for c in _by_key("H4", evidence, statement, value)] + [
        replace(c, decides=False) for c in _by_key("H4", evidence, beside, at_switch)
    ]


def change_over_mse(r: Measured) -> float:
    """Sum of change_k over the sum of mse_k, over the steps that have both and are not an expert's first."""
    within, mse, change = _within(r)
    return _over(float(change[within].sum()), float(mse[within].sum()))


def slowing(r: Measured) -> float:
    """How fast the difference d changes, |d_k - d_(k-1)| / (|σ_k - σ_(k-1)| |d_k|): its mean over the first `FIRST`
    changes, over its mean over the others. An expert's first step has no change."""
    within, mse, change = _within(r)
    with np.errstate(divide="ignore", invalid="ignore"):
        speed = np.sqrt(change / mse) / np.abs(np.diff(r.sigma, prepend=np.nan))
    changes = speed[within]
    return _over(guidance.mean(changes[:FIRST]), guidance.mean(changes[FIRST:]))


def at_switch(r: Measured) -> float:
    """mse of the low-noise expert's first step over that of the high-noise expert's last."""
    return math.nan if not r.switch else _over(r.mse[r.switch], r.mse[r.switch - 1])


def _within(r: Measured) -> tuple[NDArray[np.bool_], Floats, Floats]:
    """Which changes are within an expert and have a value; mse; change [steps]."""
    mse, change = np.array(r.mse), np.array(r.change)
    within = np.isfinite(mse) & np.isfinite(change) & (np.arange(len(mse)) != (r.switch or 0))
    return within, mse, change


def _over(a: float, b: float) -> float:
    return a / b if b > 0 else math.nan


def _by_key(name: str, evidence: Evidence, statement: Statement, value: Value) -> list[Claim]:
    """A claim for each key of the plain runs that have the value; one of nothing where none has it."""
    runs = plain_runs(evidence, value)
    named = titles(r.key for r in runs)
    groups: dict[str, list[Sample]] = {}
    for r in runs:
        groups.setdefault(named[r.key], []).append(Sample(prompt=r.prompt, value=value(r), source=str(r.path)))
    return [claim(name, statement, samples, on=on) for on, samples in (groups or {"": []}).items()]
