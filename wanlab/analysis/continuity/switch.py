"""What changes across the expert switch, and when the noise is independent again."""

from __future__ import annotations

import math

import numpy as np

from wanlab.analysis.continuity.result import Continuity
from wanlab.analysis.continuity.spaces import METRICS
from wanlab.analysis.continuity.theory import expectation, mixture


def change_at_switch(c: Continuity) -> dict[str, dict[str, dict[str, float]]]:
    """By space and metric, across the expert switch: the mean `before` and `after`, the `jump`, the one that the
    schedule makes by itself (`expected_jump`), and the changes one step earlier and later, which are no jumps."""
    s = c.switch
    if s is None:
        return {}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, values in c.spaces.items():
        for metric in METRICS:
            v = values.mean(metric)
            expected = math.nan
            if c.final is not None:
                after, before = (_expected(c, name, metric, k) for k in (s, s - 1))
                expected = after - before
            found.setdefault(name, {})[metric] = {
                "before": float(v[s - 1]),
                "after": float(v[s]),
                "jump": float(v[s] - v[s - 1]),
                "expected_jump": expected,
                "change_before": float(v[s - 1] - v[s - 2]) if s > 1 else math.nan,
                "change_after": float(v[s + 1] - v[s]) if s + 1 < c.steps else math.nan,
            }
    return found


def _expected(c: Continuity, name: str, metric: str, k: int) -> float:
    assert c.final is not None
    if metric == "mse" and c.theory is not None:  # exact for every stride
        a, b = mixture(name, float(c.sigma[k]))
        return float(a * a * c.theory.m0[k] + 2 * b * b)
    if c.stride[k] != 1:  # the products of frames two apart are not kept
        return math.nan
    return expectation(name, float(c.sigma[k]), c.final)[metric]


def noise_back_after(c: Continuity) -> int | None:
    """Steps after the disturbance until the fitted noise correlation counts as none for good; None when it never does
    or cannot be told."""
    start = c.disturbed
    if c.theory is None or start is None:
        return None
    known = np.isfinite(c.theory.rho[start:])
    wrong = np.flatnonzero(known & ~c.theory.independent[start:])
    after = 0 if not len(wrong) else int(wrong[-1]) + 1
    return after if known[after:].any() else None
