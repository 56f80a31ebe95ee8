"""What step caches share: at a step the network runs, or what it gave at the steps computed last is used again.

A method says when; `VelocityCache` and `ResidualCache` say what is used again. All branches of a step go together.
Values are kept by expert, number of latent frames and branch, so nothing crosses the expert switch, and the first step
of an expert, or of a number of frames, is always computed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from wanlab.engine.types import COND, Call, Env, Inner, Session, StepContext, StepPlan
from wanlab.errors import UsageError
from wanlab.runfile import Field

if TYPE_CHECKING:
    from torch import Tensor

    from wanlab.engine.model.transformer import Blocks

INDICATOR = "indicator"


def indicator(what: str) -> Field:
    """The field of what a method compares with its threshold, where it does; NaN at steps it must compute."""
    return Field(INDICATOR, (), "float64", "1", what)


class StepCache(Session):
    """Once a step: compute it, or use again what was computed, for all of its branches."""

    asks: ClassVar[bool] = False
    """Whether the network is asked also where a step is reused."""
    accumulates: ClassVar[bool] = True
    """Whether `measure` is summed over the steps since the last computed one."""

    def __init__(
        self,
        env: Env,
        steps: Collection[int],
        *,
        threshold: float | None = None,
        measured: Sequence[float] = (),
        order: int = 0,
        consecutive: int = 0,
        most: int = 0,
    ) -> None:
        """steps        that are reused; with a threshold, that may be
        threshold    reuse where `measure` is below; None: `steps` are known to be reused
        measured     where the steps are known, what decided it, for the record; by step, NaN where nothing was decided
        order        of the Taylor polynomial through the computed values: 0 for the last one
        consecutive  steps reused in a row at most, 0 for any number
        most         steps reused of an expert at most, 0 for any number
        """
        self.env, self.order = env, order
        self._steps = {s.index for s in env.steps if s.index in steps and env.since(s)}
        self._threshold, self.indicator = threshold, measured
        self._consecutive, self._most = consecutive, most
        self._where: tuple[str, int] = ("", 0)
        self._computed: tuple[str, ...] = ()  # branches of the last step planned that is sure to be computed
        self._may = False  # whether the step that was planned last may be reused
        self._decided: tuple[int, bool, dict[str, Any]] = (-1, False, {})  # a step, and what was decided

    def measure(self, call: Call, memory: Mapping[str, Any], told: dict[str, Any], given: Tensor | None) -> float:
        """How far the step is from what would be used again, NaN where that cannot be told. Asked once in every step,
        at its first call.

        memory  that of the branch which decides (`lead`)
        told    what every branch is to remember of this step
        given   what `reuses` was given
        """
        raise NotImplementedError

    def least(self, ctx: StepContext) -> float:
        """The share of the blocks' operations that runs in a step that is reused."""
        return 0.0

    def plan(self, plan: StepPlan, ctx: StepContext) -> StepPlan:
        where = (ctx.expert, plan.frames)
        if where != self._where:
            self._where, self._computed = where, ()
        self._may = ctx.index in self._steps and set(plan.branches) <= set(self._computed)
        if not self._may:
            self._computed = plan.branches
            return plan
        # Unless a policy before leaves the network unasked, which may be all of the step.
        around = self.asks and (plan.around or (plan.least > 0 and not plan.reused))
        if self._threshold is None:
            return replace(plan, reused=plan.branches, around=around)
        return replace(plan, least=plan.least * self.least(ctx), around=around)

    def reuses(self, call: Call, given: Tensor | None = None) -> bool:
        """Whether the step of this call is reused: decided at its first call."""
        if self._decided[0] != call.ctx.index:
            self._decided = (call.ctx.index, *self._decide(call, given))
        _, reuse, told = self._decided
        for branch in call.branches:
            self.of(call, branch).update(told)
        return reuse

    def _decide(self, call: Call, given: Tensor | None) -> tuple[bool, dict[str, Any]]:
        """Whether to reuse, and what every branch is to remember of it: the decision is then found in any of them."""
        memory, told = self.of(call, lead(call)), dict[str, Any]()
        at = memory.get("at")
        there = self._may and at is not None and all(self.of(call, b).get("at") == at for b in call.step_branches)
        if self._threshold is None:
            value, below = self.indicator[call.ctx.index] if self.indicator else math.nan, True
        else:
            before = memory.get("sum", 0.0) if self.accumulates else 0.0
            value = call.agree(self.measure(call, memory, told, given)) + before
            below = value < self._threshold
        row, count = memory.get("row", 0), memory.get("count", 0)
        room = (not self._consecutive or row < self._consecutive) and (not self._most or count < self._most)
        reuse = there and below and room
        if self.fields and (self._may or self._threshold is None):
            self.note(indicator=value)
        told |= {"sum": value if reuse and self._threshold else 0.0, "row": (row + 1) * reuse, "count": count + reuse}
        return reuse, told

    def of(self, call: Call, branch: str) -> dict[str, Any]:
        """The memory of one branch: "at", the step computed last, and the polynomial's factors "0", "1", …"""
        return self.memory(call.ctx, call.x.shape[2], (branch,))

    def keep(self, call: Call, values: Tensor) -> None:
        """Remember values [B,…] of a computed step: f_0, and f_(j+1) = (f_j - its last value) / steps between."""
        for i, branch in enumerate(call.branches):
            memory = self.of(call, branch)
            factors = [values[i : i + 1]]
            for j in range(self.order):
                if str(j) not in memory:
                    break
                factors.append((factors[j] - memory[str(j)]) / (call.ctx.index - memory["at"]))
            memory |= {"at": call.ctx.index, **{str(j): factor for j, factor in enumerate(factors)}}

    def predict(self, call: Call) -> Tensor:
        """[B,…]: the sum over j of f_j d^j / j!, d steps after the last computed one."""
        import torch

        parts = []
        for branch in call.branches:
            memory = self.of(call, branch)
            value, d = memory["0"], call.ctx.index - memory["at"]
            for j in range(1, self.order + 1):
                if str(j) in memory:
                    value = value + memory[str(j)] * (d**j / math.factorial(j))
            parts.append(value)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class VelocityCache(StepCache):
    """Uses velocities again: a reused step asks the network for nothing."""

    def evaluate(self, call: Call, inner: Inner) -> Tensor:
        if self.reuses(call):
            return self.predict(call)
        velocity = inner(call)
        self.keep(call, velocity)
        return velocity


class ResidualCache(StepCache):
    """Uses again what the stack of blocks added to the hidden states: embeddings and head run in every step."""

    asks = True

    def through(self, call: Call, hidden: Tensor, blocks: Blocks) -> Tensor:
        if self.reuses(call):
            return hidden + self.predict(call)
        last = blocks(hidden)
        self.keep(call, last - hidden)
        return last

    def kept_hidden(self, branches: int) -> int:
        return branches * (self.order + 1) + 1  # and what the blocks were given, until they are done


def lead(call: Call) -> str:
    """The branch that decides for the step: the conditional one where it is evaluated."""
    return COND if COND in call.step_branches else call.step_branches[0]


def difference(x: Tensor, y: Tensor) -> float:
    """mean |x - y| / mean |y|."""
    return float((x.float() - y.float()).abs().mean() / y.float().abs().mean())


def at_least(policy: str, **knobs: tuple[float, float]) -> None:
    """Raise UsageError for a knob, given as (value, least), that is less."""
    for knob, (value, least) in knobs.items():
        if value < least:
            raise UsageError(f"{policy}:{knob}={value}", f"use {least:g} or more")
