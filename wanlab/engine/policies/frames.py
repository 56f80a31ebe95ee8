"""Frame schedules: work on half the latent frames at first, or pair them, and complete them at the expert switch.

Latent frames are counted from 0 along F. A clip of F = 2n-1 latent frames (13) has n = 7 at even places.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from wanlab.engine.types import Env, Jump, Policy, Session, StepContext, StepPlan
from wanlab.errors import UsageError
from wanlab.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("policy", "half")
@dataclass(frozen=True)
class HalfFrames(Policy):
    """Latent frames 0,2,4,… only, until the expert switch; then all of them, the solver's history forgotten.

    complete  how the odd frames come about: "duplicate" copies the noisy frame before; "renoise" interpolates the
              last step's x0_pred in time and noises it to this step's sigma with the noise those frames had at first
    rope      temporal positions of half the frames: "compact" 0,1,2,… or "strided" 0,2,4,…
    switch    steps on half the frames; 0 for those before the expert switch

    Cost: half the tokens until the switch, and a quarter of the attention pairs.
    Source: the experiment guide (duplicate, compact); renoise and strided are this project's.
    """

    complete: Literal["duplicate", "renoise"] = "duplicate"
    rope: Literal["compact", "strided"] = "compact"
    switch: int = 0

    def begin(self, env: Env) -> Session:
        """Raises UsageError when there is no such switch or only one latent frame."""
        at = switch_step("half", self.switch, env)
        if env.shape[1] < 2:
            raise UsageError("half of one latent frame is nothing", "use --frames 5 or more")
        return _Half(self, at, env)


@register("policy", "paired")
@dataclass(frozen=True)
class PairedFrames(Policy):
    """All frames throughout; at the switch frames 2,4,6,… become copies of 1,3,5,…, the solver going on as it was.

    switch  the step (from 0) before which that happens; 0 for the expert switch

    Cost: none saved by itself.
    Source: the experiment guide ("improved frame completion").
    """

    switch: int = 0

    def begin(self, env: Env) -> Session:
        """Raises UsageError when there is no such switch or fewer than three latent frames."""
        at = switch_step("paired", self.switch, env)
        if env.shape[1] < 3:
            raise UsageError(f"{env.shape[1]} latent frames have no pair to make", "use --frames 9 or more")
        return _Paired(at)


def switch_step(policy: str, asked: int, env: Env) -> int:
    """The index of the first step after the switch. Raises UsageError when there is none."""
    if asked:
        if not 0 < asked < env.total:
            raise UsageError(f"{policy}:switch={asked} of {env.total} steps", f"use 1 to {env.total - 1}")
        return asked
    if env.switch is None:
        raise UsageError(
            f"{policy}: these {env.total} steps have no expert switch", f"name one, such as {policy}:switch=N"
        )
    return env.switch


class _Half(Session):
    changes = "frames"

    def __init__(self, knobs: HalfFrames, at: int, env: Env) -> None:
        self._knobs, self._at, self._sigma = knobs, at, env.steps[at].sigma
        self._full, self._half = env.shape[1], (env.shape[1] + 1) // 2
        self._noise: Tensor | None = None  # drawn again from the seed when a run is resumed

    def initial(self, noise: Tensor) -> Tensor:
        self._noise = noise
        return noise[:, :, ::2]

    def plan(self, plan: StepPlan, ctx: StepContext) -> StepPlan:
        if ctx.index < self._at:
            if plan.stride != 1:
                raise UsageError("half is named twice", "name it once: half of the frames are left out, not more")
            return replace(plan, frames=self._half, stride=2, positions=2 if self._knobs.rope == "strided" else 1)
        if ctx.index == self._at:
            return replace(plan, jump=one_jump(plan, ctx, Jump(apply=self._complete, restart=True)))
        return plan

    def _complete(self, x: Tensor, x0_pred: Tensor | None) -> Tensor:
        if self._knobs.complete == "duplicate":
            return duplicate(x, self._full)
        assert x0_pred is not None and self._noise is not None  # step `at` is never the first
        return renoise(x, x0_pred, self._noise, self._sigma)


class _Paired(Session):
    changes = "frames"

    def __init__(self, at: int) -> None:
        self._at = at

    def plan(self, plan: StepPlan, ctx: StepContext) -> StepPlan:
        if ctx.index != self._at:
            return plan
        return replace(plan, jump=one_jump(plan, ctx, Jump(apply=lambda x, _: pair(x), restart=False)))


def one_jump(plan: StepPlan, ctx: StepContext, jump: Jump) -> Jump:
    """`jump`, unless the step has one already: two of them have no order that means anything."""
    if plan.jump is not None:
        raise UsageError(f"two policies complete frames at step {ctx.index + 1}", "use half or paired, not both")
    return jump


def duplicate(x: Tensor, full: int) -> Tensor:
    """[1,C,n,H,W] -> [1,C,full,H,W]: frame 2i and frame 2i+1 are frame i."""
    return x.repeat_interleave(2, dim=2)[:, :, :full].contiguous()


def renoise(x: Tensor, x0_pred: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Even frames are x's; odd ones (1 - sigma) x̂0 + sigma eps, x̂0 the mean of its neighbours' (the last of an even
    count has one neighbour). x, x0_pred [1,C,n,H,W]; noise [1,C,F,H,W], F = 2n-1 or 2n."""
    full = noise.clone()
    full[:, :, ::2] = x
    odd = noise[:, :, 1::2]
    after = x0_pred.roll(-1, dims=2)
    after[:, :, -1:] = x0_pred[:, :, -1:]
    after = after[:, :, : odd.shape[2]]
    clean = (x0_pred[:, :, : odd.shape[2]] + after) / 2
    full[:, :, 1::2] = (1 - sigma) * clean + sigma * odd
    return full


def pair(x: Tensor) -> Tensor:
    """[1,C,F,H,W]: frames 2,4,6,… replaced by frames 1,3,5,…; 0-based."""
    paired = x.clone()
    replaced = paired[:, :, 2::2]
    replaced.copy_(x[:, :, 1::2][:, :, : replaced.shape[2]])
    return paired
