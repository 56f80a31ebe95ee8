"""The analysis of one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wanlab.analysis.continuity.spaces import Floats, Space, over_pairs
from wanlab.analysis.continuity.theory import Theory
from wanlab.analysis.key import Key

BASELINE = "baseline"


@dataclass(frozen=True, kw_only=True)
class OtherExpert:
    """What the expert that did not work at a step would have said, guided alike."""

    step: int
    used: str
    other: str
    cosine: float
    """<v,w>/(|v||w|) of the two velocities over the whole clip."""
    difference: float
    """|v-w|/|v|, v being the one that was used."""
    spaces: Mapping[str, Space]
    """x0_pred and velocity by the other expert; one row."""


@dataclass(frozen=True, kw_only=True)
class Continuity:
    """The analysis of one run."""

    source: str
    """The file or folder."""
    prompt: str
    seed: int | None
    model: str
    method: str
    """Its label: `BASELINE`, or its policies."""
    settings: str
    """Equal for runs that may be compared step by step."""
    frames: int
    """Video frames."""
    timestep: Floats
    sigma: Floats
    expert: NDArray[np.str_]
    evaluated: NDArray[np.int64]
    """Latent frames that each step worked on."""
    stride: NDArray[np.int64]
    """Full-length latent frames from one of them to the next."""
    duplicated: int | None = None
    """The first of the pairs of neighbours that were made equal, every second one from there: 0 where frames 1, 3, …
    were copied from 0, 2, …; None where none was."""
    policies: str = ""
    """Its policies alone, `BASELINE` where it has none; "" where only the label says it."""
    key: Key | None = None
    """What it may be pooled by; None where only latents are there."""
    lifted: int | None
    """The first step after frames were completed, where that is known and happened apart from the expert switch."""
    spaces: Mapping[str, Space]
    final: Space | None
    """The final latent; one row."""
    video: Space | None
    """The frames of the video in [0,1]; one row."""
    theory: Theory | None
    experts: tuple[OtherExpert, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        return len(self.sigma)

    @property
    def is_baseline(self) -> bool:
        """Whether it has no policies, whatever it is called among runs of other settings."""
        return (self.policies or self.method) == BASELINE

    @property
    def switch(self) -> int | None:
        """Index of the first low-noise step, None without an expert switch."""
        low = np.flatnonzero(self.expert == "low")
        return int(low[0]) if len(low) and low[0] > 0 and "high" in self.expert else None

    @property
    def disturbed(self) -> int | None:
        """The step from which a method's recovery is counted: where frames were completed, else the expert switch."""
        changed = np.flatnonzero(np.diff(self.stride))
        if self.lifted is not None:
            return self.lifted
        return int(changed[0]) + 1 if len(changed) else self.switch

    def curve(self, first: int | None = None) -> Floats:
        """Mean mse of x_t at each step, then of the final latent [steps + 1]; of every second pair from `first` on
        where that is given."""
        spaces = (self.spaces["x_t"], self.final)
        pairs = slice(first, None, None if first is None else 2)
        return np.concatenate([[np.nan] if s is None else over_pairs(np.mean, s.mse[:, pairs]) for s in spaces])
