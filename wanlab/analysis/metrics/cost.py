"""What a run did, from its file, and the figures of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanlab.analysis.metrics import metric
from wanlab.runfile import Run

Floats = NDArray[np.float64]
COUNT: dict[str, Any] = {"better": "lower", "bounds": (0.0, math.inf)}
SPEED: dict[str, Any] = {
    "unit": "x",
    "better": "higher",
    "bounds": (0.0, math.inf),
    "format": ".3f",
    "mean": "geometric",
    "column": ".2f",
}
BRANCHES = ("cond", "uncond")


@dataclass(frozen=True, kw_only=True, eq=False)
class Cost:
    """What a run did, from its file."""

    passes: int
    """Evaluations of the network, of each branch."""
    pass_equivalents: float
    """The operations that ran, in whole passes on full-length latents; NaN where no one counted them."""
    tokens: int
    flops: float
    """Floating-point operations that ran, by the cost model; of files of version 1 those that were predicted."""
    sampling: float
    """Seconds of the sampling loop."""
    total: float
    """Seconds of encoding, sampling, recording, decoding and writing; loading and warm-up are one-off."""
    process: str
    """Empty when it cannot be timed against others: it was resumed."""
    seconds_by_step: Floats
    flops_by_step: Floats
    frames_by_step: NDArray[np.int64]
    passes_by_step: NDArray[np.int64]

    @classmethod
    def of(cls, run: Run) -> Cost:
        """The cost of an open run."""
        timing, predicted = run.attrs.get("timing_seconds", {}), run.attrs.get("predicted", {})
        seconds = np.asarray(run["seconds"], np.float64)
        passes = np.asarray(run["passes"], np.int64)
        ran = run["operations"] if "operations" in run else predicted.get("flops_by_step", [])
        flops = np.asarray(ran, np.float64)
        whole = np.asarray(predicted.get("pass_flops_by_step", []), np.float64)
        equivalents = float((flops / whole).sum()) if len(flops) and whole.shape == flops.shape else math.nan
        parts = ("encode", "recording", "decode", "write")
        return cls(
            passes=int(passes.sum()),
            pass_equivalents=equivalents,
            tokens=int(np.asarray(run["tokens"]).sum()),
            flops=float(flops.sum()) if len(flops) else math.nan,
            sampling=float(seconds.sum()),
            total=float(seconds.sum()) + sum(timing.get(k, 0.0) for k in parts),
            process="" if run.attrs.get("resumed_from_step") else str(run.attrs.get("process", "")),
            seconds_by_step=seconds,
            flops_by_step=flops,
            frames_by_step=np.asarray(run["frames"], np.int64),
            passes_by_step=passes,
        )


def fewer(a: Run, b: Run) -> tuple[int, ...]:
    """Steps (from 0) at which A evaluated less than B: a branch reused or left out, by the record; fewer passes in
    files of version 1."""
    if all(f"status_{branch}" in run for run in (a, b) for branch in BRANCHES):
        fresh = [np.array([_fresh(run, branch) for branch in BRANCHES]).sum(axis=0) for run in (a, b)]
        return tuple(int(k) for k in np.flatnonzero(fresh[0] < fresh[1]))
    return tuple(int(k) for k in np.flatnonzero(np.asarray(a["passes"]) < np.asarray(b["passes"])))


def _fresh(run: Run, branch: str) -> NDArray[np.bool_]:
    return np.array([str(s) == "fresh" for s in np.asarray(run[f"status_{branch}"]).astype(str)], np.bool_)


@metric("passes", needs="run", format="g", **COUNT)
def passes(cost: Cost) -> float:
    """Evaluations of the network that ran, of each branch."""
    return cost.passes


@metric("pass_equivalents", needs="run", format=".4g", **COUNT)
def pass_equivalents(cost: Cost) -> float:
    """The operations that ran, over those of a whole pass on full-length latents at each step."""
    return cost.pass_equivalents


@metric("tokens", needs="run", format="g", **COUNT)
def tokens(cost: Cost) -> float:
    """Tokens of the passes that ran."""
    return cost.tokens


@metric("operations", needs="run", unit="FLOP", format=".4g", **COUNT)
def operations(cost: Cost) -> float:
    """Floating-point operations of what ran, by the cost model."""
    return cost.flops


@metric("seconds", needs="run", unit="s", format=".2f", mean="none", **COUNT)
def seconds(cost: Cost) -> float:
    """Time of the sampling loop."""
    return cost.sampling


@metric("seconds_total", needs="run", unit="s", format=".2f", mean="none", **COUNT)
def seconds_total(cost: Cost) -> float:
    """Time of encoding, sampling, recording, decoding and writing; loading and warm-up are one-off."""
    return cost.total


@metric("speedup_predicted", needs="figures", title="predicted", **SPEED)
def speedup_predicted(figures: Mapping[str, float]) -> float:
    """The baseline's operations over the method's: what ran, by the cost model."""
    return figures["operations_baseline"] / figures["operations"]


@metric("speedup", needs="figures", title="measured", **SPEED)
def speedup(figures: Mapping[str, float]) -> float:
    """The baseline's time of the sampling loop over the method's, where one process sampled both without a pause."""
    return figures["seconds_baseline"] / figures["seconds"] if figures["timed"] else math.nan


@metric("speedup_total", needs="figures", title="end to end", **SPEED)
def speedup_total(figures: Mapping[str, float]) -> float:
    """The same of encoding, sampling, recording, decoding and writing."""
    return figures["seconds_total_baseline"] / figures["seconds_total"] if figures["timed"] else math.nan
