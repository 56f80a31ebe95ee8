"""How long a method's curve takes to be back within the baseline's spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its parts are imported when they are used

from wanlab.analysis.continuity.result import Continuity
from wanlab.analysis.continuity.spaces import Floats


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """How long a method's curve takes to be back within the baseline's spread."""

    step: int
    """The first step after the disturbance."""
    after: int | None
    """Steps from `step` on that are outside the spread, up to the last one that is; None when the final latent is."""
    pairs: str
    """"duplicated": of the pairs that were made equal, back when they differ by as much as the baseline's or more;
    "all": of all pairs, back when they differ neither less nor more."""
    spread: str
    """"seeds": the prediction interval for one more seed of the same prompt; "pairs": mean ± 2 standard deviations
    over the pairs of the baseline run with the same prompt and seed; "runs": as "seeds", of all prompts."""
    n: int
    """Baseline runs, or pairs, that the spread is of."""
    low: Floats
    high: Floats
    """The spread at each step and at the final latent [steps + 1]; infinite above duplicated pairs."""


def recovery(c: Continuity, others: Sequence[Continuity]) -> Recovery | None:
    """How many steps after its disturbance a run's curve (see `Continuity.curve`) is back, for good, within the spread
    of the baselines among `others`; None when it is a baseline or there is nothing to hold it against.

    With three or more baseline seeds of the same prompt the spread at a step is Student's 95 % prediction interval for
    one more, mean ± t s sqrt(1 + 1/n); else mean ± 2 standard deviations over the pairs of the baseline with the same
    prompt and seed; else the interval of three or more baselines of any prompt. Pairs that were duplicated are held
    against the same pairs of the baselines, from below only (the interval's 5 % end, or 1.645 deviations): equal is
    what duplication made them, and how much a clip moves in all is another question.
    """
    start, first = c.disturbed, c.duplicated
    if c.is_baseline or start is None or c.spaces.get("x_t") is None:
        return None
    known = [
        o
        for o in others
        if o.is_baseline
        and (o.settings, o.frames) == (c.settings, c.frames)
        and len(o.sigma) == len(c.sigma)
        and np.allclose(o.sigma, c.sigma)
        and "x_t" in o.spaces
    ]
    seeds = [o for o in known if o.prompt == c.prompt]
    own = next((o for o in seeds if o.seed == c.seed), None)
    if len(seeds) >= 3:
        spread, n, (mean, wide) = "seeds", len(seeds), _prediction(seeds, first)
    elif own is not None and own.final is not None:
        rows = [*own.spaces["x_t"].mse, *own.final.mse]
        values = [v[np.isfinite(v)] for v in (row if first is None else row[first::2] for row in rows)]
        mean, wide = np.array([v.mean() for v in values]), np.array([v.std() for v in values])
        spread, n, wide = "pairs", len(values[-1]), wide * (2 if first is None else 1.645)
    elif len(known) >= 3:
        spread, n, (mean, wide) = "runs", len(known), _prediction(known, first)
    else:
        return None
    curve, low = c.curve(first), mean - wide
    high = mean + wide if first is None else np.full_like(mean, np.inf)
    there = np.isfinite(curve) & np.isfinite(low)
    outside = np.flatnonzero(there[start:] & ((curve < low) | (curve > high))[start:])
    after = 0 if not len(outside) else int(outside[-1]) + 1
    never = not there[-1] or after > c.steps - start
    which = "all" if first is None else "duplicated"
    return Recovery(step=start, after=None if never else after, pairs=which, spread=spread, n=n, low=low, high=high)


def _prediction(runs: Sequence[Continuity], first: int | None) -> tuple[Floats, Floats]:
    """Mean, and how far from it one more run may be [steps + 1]: on both sides, or below it for duplicated pairs."""
    curves = np.stack([o.curve(first) for o in runs])
    n = len(curves)
    quantile = float(scipy.special.stdtrit(n - 1, 0.975 if first is None else 0.95))
    return curves.mean(axis=0), quantile * curves.std(axis=0, ddof=1) * math.sqrt(1 + 1 / n)
