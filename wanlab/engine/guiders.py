"""Guiders: how the branches' velocities become the one that the solver is given.

A guider, chosen for a run, makes a step's `Guide` of its scale; a policy may put another one in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from wanlab.engine.types import BOTH, COND, UNCOND, StepContext
from wanlab.errors import WanlabError
from wanlab.registry import register

if TYPE_CHECKING:
    from torch import Tensor


class Guide:
    """A formula. `branches` are what it needs; `name` is what the run file calls it."""

    name: str
    branches: tuple[str, ...]
    scale: float
    again: ClassVar[bool] = False
    """Whether it uses the difference of the branches in an earlier step."""

    def __call__(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """Velocities [1,C,F,H,W] by branch to the guided one."""
        raise NotImplementedError


@dataclass(frozen=True)
class Alone(Guide):
    """One branch as it is."""

    branch: str
    scale: float = 1.0

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.branch

    @property
    def branches(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.branch,)

    def __call__(self, predictions: Mapping[str, Tensor]) -> Tensor:
        return predictions[self.branch]


@dataclass(frozen=True)
class Linear(Guide):
    """u + s (c - u) (Ho & Salimans, "Classifier-Free Diffusion Guidance", 2022)."""

    scale: float
    name = "cfg"
    branches = BOTH

    def __call__(self, predictions: Mapping[str, Tensor]) -> Tensor:
        cond, uncond = predictions[COND], predictions[UNCOND]
        return uncond + self.scale * (cond - uncond)


@dataclass(frozen=True)
class Again(Guide):
    """c + (s - 1) d with the difference d = c - u of an earlier step, looked up when it is used."""

    scale: float
    memory: Mapping[str, Tensor] = field(compare=False, repr=False)
    name = "reuse"
    branches = (COND,)
    again = True

    def __call__(self, predictions: Mapping[str, Tensor]) -> Tensor:
        return predictions[COND] + (self.scale - 1) * earlier_difference(self.memory)


def earlier_difference(memory: Mapping[str, Tensor]) -> Tensor:
    """The "difference" that a session remembers. Raises WanlabError when there is none."""
    if "difference" not in memory:
        raise WanlabError("there is no difference of an earlier step to use again", "truncate fewer steps")
    return memory["difference"]


@dataclass(frozen=True)
class Rescaled(Guide):
    """s* u + g (c - s* u) with s* = <c,u> / (|u|² + 1e-8), the scale of u nearest to c; zero in the first steps."""

    scale: float
    zero: bool
    name = "cfgzero"
    branches = BOTH

    def __call__(self, predictions: Mapping[str, Tensor]) -> Tensor:
        cond, uncond = predictions[COND], predictions[UNCOND]
        if self.zero:
            return cond.new_zeros(cond.shape)
        c, u = cond.float().flatten(), uncond.float().flatten()
        nearest = float(c @ u / (u @ u + 1e-8)) * uncond
        return nearest + self.scale * (cond - nearest)


class Guider:
    """A frozen set of knobs (a frozen dataclass, one field a knob) that makes each step's guide."""

    def guide(self, scale: float, ctx: StepContext) -> Guide:
        """The guide of a step, of its expert's scale."""
        raise NotImplementedError


@register("guider", "cfg")
@dataclass(frozen=True)
class Cfg(Guider):
    """Classifier-free guidance. A scale of 1 is the conditional branch alone and 0 the unconditional one."""

    def guide(self, scale: float, ctx: StepContext) -> Guide:
        return {1.0: Alone(COND), 0.0: Alone(UNCOND, 0.0)}.get(scale, Linear(scale))


@register("guider", "cfgzero")
@dataclass(frozen=True)
class CfgZero(Guider):
    """CFG-Zero* (W. Fan et al., "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models", 2025): the
    unconditional branch scaled to lie nearest to the conditional one, and no velocity at all in the first steps.

    zero_init  first steps whose velocity is zero; their branches are evaluated for the record's sake
    """

    zero_init: int = 1

    def guide(self, scale: float, ctx: StepContext) -> Guide:
        plain = Cfg().guide(scale, ctx)
        return Rescaled(scale, ctx.index < self.zero_init) if plain.branches == BOTH else plain
