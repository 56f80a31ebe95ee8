"""How long a method's curve takes to be back within the baseline's spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from wanlab.analysis.continuity.result import BASELINE, Continuity
from wanlab.analysis.continuity.spaces import Floats


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """How long a method's curve takes to be back within the baseline's spread."""

    step: int
    """The first step after the disturbance."""
    after: int | None
    """Steps from `step` on that are outside the spread, up to the last one that is; None when the final latent is."""
    spread: str
    """"seeds": the 95 % prediction interval for one more seed of the same prompt; "pairs": mean ± 2 standard
    deviations over the pairs of the baseline run with the same prompt and seed; "runs": as "seeds", of all prompts."""
    n: int
    """Baseline runs, or pairs, that the spread is of."""
    low: Floats
    high: Floats
    """The spread at each step and at the final latent [steps + 1]."""


def recovery(c: Continuity, others: Sequence[Continuity]) -> Recovery | None:
    """How many steps after its disturbance a run's curve (see `Continuity.curve`) is back, for good, within the spread
    of the baselines among `others`; None when it is a baseline or there is nothing to hold it against.

    With three or more baseline seeds of the same prompt the spread at a step is Student's 95 % prediction interval for
    one more, mean ± t s sqrt(1 + 1/n); else mean ± 2 standard deviations over the pairs of the baseline with the same
    prompt and seed; else the interval of three or more baselines of any prompt.
    """
    start = c.disturbed
    if c.method == BASELINE or start is None or c.spaces.get("x_t") is None:
        return None
    known = [
        o
        for o in others
        if o.method == BASELINE
        and (o.settings, o.frames) == (c.settings, c.frames)
        and len(o.sigma) == len(c.sigma)
        and np.allclose(o.sigma, c.sigma)
        and "x_t" in o.spaces
    ]
    seeds = [o for o in known if o.prompt == c.prompt]
    own = next((o for o in seeds if o.seed == c.seed), None)
    if len(seeds) >= 3:
        spread, n, (low, high) = "seeds", len(seeds), _prediction(seeds)
    elif own is not None and own.final is not None:
        values = [row[np.isfinite(row)] for row in (*own.spaces["x_t"].mse, *own.final.mse)]
        mean, std = np.array([r.mean() for r in values]), np.array([r.std() for r in values])
        spread, n, (low, high) = "pairs", len(values[-1]), (mean - 2 * std, mean + 2 * std)
    elif len(known) >= 3:
        spread, n, (low, high) = "runs", len(known), _prediction(known)
    else:
        return None
    curve = c.curve
    there = np.isfinite(curve) & np.isfinite(low)
    outside = np.flatnonzero(there[start:] & ((curve < low) | (curve > high))[start:])
    after = 0 if not len(outside) else int(outside[-1]) + 1
    never = not there[-1] or after > c.steps - start
    return Recovery(step=start, after=None if never else after, spread=spread, n=n, low=low, high=high)


def _prediction(runs: Sequence[Continuity]) -> tuple[Floats, Floats]:
    curves = np.stack([o.curve for o in runs])
    n = len(curves)
    wide = float(stats.t.ppf(0.975, n - 1)) * curves.std(axis=0, ddof=1) * math.sqrt(1 + 1 / n)
    return curves.mean(axis=0) - wide, curves.mean(axis=0) + wide
