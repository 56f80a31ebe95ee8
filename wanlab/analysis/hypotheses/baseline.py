"""H3 and H4: what the baseline itself does."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from wanlab.analysis.hypotheses.evidence import Evidence, Measured, plain_runs
from wanlab.analysis.hypotheses.verdict import BASELINES, Claim, Sample, Thresholds, claim


def h3(evidence: Evidence, held: Thresholds) -> list[Claim]:
    samples = [Sample(prompt=r.prompt, value=r.noise, source=str(r.path)) for r in plain_runs(evidence)]
    return [
        claim(
            "H3", f"more than {held.noise:.0%} of its mean square is noise", "noise share", samples, ">", held.noise,
            BASELINES,
        )
    ]  # fmt: skip


def h4(evidence: Evidence, held: Thresholds) -> list[Claim]:
    run = BASELINES
    runs = [r for r in plain_runs(evidence) if len(r.mse) > held.first_steps and np.isfinite(r.mse).all()]

    def samples(value: Any) -> list[Sample]:
        return [Sample(prompt=r.prompt, value=value(r), source=str(r.path)) for r in runs]

    def first(r: Measured) -> float:
        rest = float(np.mean(r.mse[held.first_steps :]))
        return float(np.mean(r.mse[: held.first_steps])) / rest if rest > 0 else math.nan

    def settled(r: Measured) -> float:
        both = [(c, m) for c, m in zip(r.change, r.mse, strict=True) if math.isfinite(c)]
        return float(np.mean([c < m for c, m in both])) if both else math.nan

    return [
        claim("H4", f"its mean over the first {held.first_steps} steps is more than {held.first_over_rest:g} times the rest's",
               "first over rest", samples(first), ">", held.first_over_rest, run),
        claim("H4", f"it changes by less than its own size at {held.settled:.0%} of steps", "share of steps settled",
               samples(settled), ">=", held.settled, run),
        claim("H4", f"the high-noise expert's is more than {held.high_over_low:g} times the low-noise expert's",
               "high over low", samples(lambda r: r.high_over_low), ">", held.high_over_low, run),
    ]  # fmt: skip
