"""How far the trajectories of two runs are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanlab.analysis.columns import numbers, words
from wanlab.analysis.metrics import metric
from wanlab.analysis.metrics.cost import fewer
from wanlab.errors import WanlabError
from wanlab.runfile import Run

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Divergence:
    """How far A's latents are from B's at the beginning of each step, and after the last: arrays [steps + 1].

    error is |a - b| / |b|; where one works on some of the frames, the other's same frames are held against them.
    """

    error: Floats
    cosine: Floats
    switch: int | None
    """Steps before the expert switch."""
    truncated: tuple[int, ...]
    """Steps (from 0) at which A evaluated fewer branches than B."""

    @property
    def parted(self) -> int | None:
        """The first step (from 1) whose result differs; None when the latents never part, and where that may have been
        at a step whose latents are not held against each other."""
        differs = np.flatnonzero(self.error > 0)
        if not len(differs) or np.isnan(self.error[: differs[0]]).any():
            return None
        return int(differs[0])

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "error": self.error.tolist(),
            "cosine": self.cosine.tolist(),
            "switch": self.switch,
            "truncated": list(self.truncated),
            "parted": self.parted,
        }


def divergence(a: Run, b: Run) -> Divergence | None:
    """None when either has no latents recorded at the same steps, or other noise levels.

    Raises WanlabError for frames that are not 1 or more apart.
    """
    if "x_t" not in a or "x_t" not in b or a.steps != b.steps:
        return None
    if not np.allclose(numbers(a, "sigma"), numbers(b, "sigma"), rtol=0, atol=1e-9):
        return None
    strides = _strides(a), _strides(b)
    recorded = sorted(set(a["x_t"].recorded) & set(b["x_t"].recorded))
    error, cosine = np.full(a.steps + 1, np.nan), np.full(a.steps + 1, np.nan)
    for k in recorded:
        x, y = a["x_t"][k], b["x_t"][k]
        if strides[1][k] == 1:
            y = y[:, :: strides[0][k]]
        elif strides[0][k] == 1:
            x = x[:, :: strides[1][k]]
        if x.shape == y.shape:
            error[k], cosine[k] = apart(x, y)
    if "latent" in a and "latent" in b and a["latent"].shape == b["latent"].shape:
        error[-1], cosine[-1] = apart(a["latent"][...], b["latent"][...])
    expert = words(b, "expert")
    low = np.flatnonzero(expert == "low")
    switch = int(low[0]) if len(low) and "high" in expert else None
    return Divergence(error=error, cosine=cosine, switch=switch, truncated=fewer(a, b))


def are_finite(run: Run) -> bool:
    """Whether all latents that a run recorded are numbers."""
    steps = (run["x_t"][k] for k in run["x_t"].recorded) if "x_t" in run else ()
    last = (run["latent"][...],) if "latent" in run else ()
    return all(bool(np.isfinite(x).all()) for x in chain(last, steps))


def _strides(run: Run) -> NDArray[np.int64]:
    """How many frames apart those of each step are [steps]."""
    strides = numbers(run, "frame_stride")
    if not (np.isfinite(strides).all() and (strides >= 1).all()):
        raise WanlabError(f"{run.path}: 'frame_stride' has values below 1", "make it again, or take another copy")
    return strides.astype(np.int64)


def apart(x: NDArray[Any], y: NDArray[Any]) -> tuple[float, float]:
    """|x - y| / |y| and the cosine of x and y; (0, 1) for equal arrays, NaN where a norm is 0 or not finite."""
    if np.array_equal(x, y):
        return 0.0, 1.0
    a, b = x.astype(np.float64).ravel(), y.astype(np.float64).ravel()
    norm_a, norm_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if not (0 < norm_a < math.inf and 0 < norm_b < math.inf):
        return math.nan, math.nan
    return float(np.linalg.norm(a - b)) / norm_b, float(a @ b) / (norm_a * norm_b)


@metric(
    "latent_error", needs="runs", title="latents, relative error", better="lower", bounds=(0.0, math.inf), format=".6g"
)
def latent_error(a: Run, b: Run) -> float:
    """|a - b| / |b| of the resulting latents."""
    if "latent" not in a or "latent" not in b or a["latent"].shape != b["latent"].shape:
        return math.nan
    return apart(a["latent"][...], b["latent"][...])[0]
