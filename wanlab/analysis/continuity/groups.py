"""Runs of one method together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wanlab.analysis.continuity.recovery import Recovery, recovery
from wanlab.analysis.continuity.result import Continuity
from wanlab.analysis.continuity.spaces import Floats


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs of one method and frame count: what figures and tables show."""

    method: str
    frames: int
    runs: tuple[Continuity, ...]
    recoveries: tuple[Recovery | None, ...]

    @property
    def first(self) -> Continuity:
        return self.runs[0]

    def average(self, values: Any) -> Any:
        """The mean over runs of `values(run)`, arrays of one shape or numbers; NaN where a run has none."""
        return np.mean([values(r) for r in self.runs], axis=0)

    def curve(self, name: str, metric: str = "mse", std: bool = False) -> Floats:
        """A space's mean (or standard deviation) over pairs at each step [steps], averaged over runs; NaN without."""
        nothing = np.full(self.first.steps, np.nan)
        return np.asarray(
            self.average(
                lambda r: (
                    nothing
                    if name not in r.spaces
                    else r.spaces[name].std(metric)
                    if std
                    else r.spaces[name].mean(metric)
                )
            )
        )

    def theory(self, name: str) -> Floats:
        """A field of `Theory` (or rho) at each step [steps], averaged over runs; NaN without."""
        nothing = np.full(self.first.steps, np.nan)
        return np.asarray(self.average(lambda r: nothing if r.theory is None else getattr(r.theory, name)))

    def pairs(self, name: str, metric: str = "mse") -> Floats:
        """A space's values [steps, pairs], averaged over runs."""
        return np.asarray(self.average(lambda r: getattr(r.spaces[name], metric)))

    def has(self, name: str) -> bool:
        """Whether every run has the space."""
        return all(name in r.spaces for r in self.runs)

    @property
    def recovered(self) -> tuple[list[int], int]:
        """(steps to recover of the runs that do, how many never do)."""
        known = [r for r in self.recoveries if r is not None]
        return [r.after for r in known if r.after is not None], sum(r.after is None for r in known)


def names(groups: Sequence[Group]) -> list[str]:
    """What to call each group among the others: its method, and its frame count where these differ."""
    counts = {g.frames for g in groups}
    return [g.method + (f", {g.frames} frames" if len(counts) > 1 else "") for g in groups]


def group(runs: Sequence[Continuity]) -> list[Group]:
    """Runs by method, in the order of their first, and frame count (and schedule, should they differ)."""
    found: dict[tuple[Any, ...], list[Continuity]] = {}
    for r in runs:
        shapes = tuple((n, s.mse.shape) for n, s in r.spaces.items())
        found.setdefault((r.method, r.frames, shapes, r.sigma.tobytes()), []).append(r)
    methods = list(dict.fromkeys(k[0] for k in found))
    return [
        Group(method=k[0], frames=k[1], runs=tuple(rs), recoveries=tuple(recovery(r, runs) for r in rs))
        for k, rs in sorted(found.items(), key=lambda item: (methods.index(item[0][0]), item[0][1]))
    ]
