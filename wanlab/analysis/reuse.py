"""What step caches did: how many steps they used again, and where their indicators lay beside the threshold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from wanlab.analysis.guidance import Guidance

INDICATOR = "_indicator"  # what such a policy calls the field that it compares with its threshold


def reading(g: Guidance) -> list[str]:
    """A line for each step cache of a run."""
    reused = g.has_status("reused")
    named = {name.removesuffix(INDICATOR): values for name, values in g.fields.items() if name.endswith(INDICATOR)}
    return [line(name, values, reused) for name, values in named.items()]


def line(name: str, indicator: ArrayLike, reused: Sequence[bool] | np.ndarray) -> str:
    """How many of the steps that the threshold decided about were reused, and the indicator there; both [steps], the
    indicator NaN at other steps."""
    values, used = np.asarray(indicator, np.float64), np.asarray(reused, np.bool_)
    decided = np.isfinite(values)
    if not decided.any():
        return f"{name}: its threshold had no step to decide about, all were computed"
    least, median, greatest = np.quantile(values[decided], (0, 0.5, 1))
    where = f"indicator {least:.3g} to {greatest:.3g}, median {median:.3g}"
    count, total = int((used & decided).sum()), int(decided.sum())
    if not count:
        return f"{name}: the threshold reuses nothing, {where} at {total} steps"
    if count == total:
        return f"{name}: the threshold reuses everything it can, {total} steps; {where}"
    return f"{name}: {count} of {total} steps reused that the threshold decides about; {where}"
