"""What `wanlab calibrate` records of a run: nothing is saved, nothing is changed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wanlab.engine.policies.teacache import changes
from wanlab.engine.types import COND, Call, Env, Inner, Policy, Session, StepContext, StepPlan
from wanlab.errors import UsageError
from wanlab.registry import register
from wanlab.runfile import Field

if TYPE_CHECKING:
    from torch import Tensor

    from wanlab.engine.model.transformer import Blocks


@register("policy", "measure")
@dataclass(frozen=True)
class Measure(Policy):
    """Evaluate everything and record what step caches are calibrated with (`wanlab calibrate`).

    Cost: a third pass at every step but an expert's first: the conditional branch on this step's latents at the
    timestep before, which tells what the latents' change and the timestep's each do to the velocity.
    Source: Z. Ma et al., "MagCache", 2025 (magnitude); F. Liu et al., "Timestep Embedding Tells", 2024 (embedding);
    Y. Haghighi and A. Alahi, "Accelerating Diffusion Model Inference via Sensitivity-Aware Caching", 2026.
    """

    def begin(self, env: Env) -> Session:
        """Raises UsageError where the guide needs one branch only."""
        if any(env.guidance[ctx.expert] in (0, 1) for ctx in env.steps):
            raise UsageError("guidance 0 or 1 evaluates one branch, and both are measured", "use another --guidance")
        embedded = env.read_time_embeddings(True)
        return _Session(env, None if embedded is None else changes(embedded.numpy()))


class _Session(Session):
    fields = (
        Field(
            "magnitude", ("branch",), "float64", "1", "mean over tokens of the stack residual's norm to the last one's"
        ),
        Field(
            "embedding", (), "float64", "1", "relative change (L1) of the timestep embedding as it modulates the blocks"
        ),
        Field("sensitivity_x", (), "float64", "1", "change of the velocity by the latents' alone, over theirs (RMS)"),
        Field("sensitivity_t", (), "float64", "1", "change of the velocity (RMS) by the timestep's alone, over t/1000"),
    )

    def __init__(self, env: Env, embedding: np.ndarray | None) -> None:
        """embedding  its change by step; None in a forecast without weights"""
        self._env, self._embedding = env, embedding
        self._step = 0
        self._known = ("", 0)  # expert and length of which a step's latents are remembered

    def plan(self, plan: StepPlan, ctx: StepContext) -> StepPlan:
        self._step, where, before = ctx.index, (ctx.expert, plan.frames), self._known
        if COND not in plan.branches or COND in plan.reused:
            return plan
        self._known = where
        return replace(plan, extra=1) if before == where else plan

    def evaluate(self, call: Call, inner: Inner) -> Tensor:
        if COND not in call.branches:
            return inner(call)
        last, ctx = self.recall(replace(call, branches=(COND,))), call.ctx
        if last:
            before = self._env.steps[ctx.index - 1]
            moved = inner(replace(call, ctx=before, branches=(COND,)))
            velocities = inner(call)
            velocity = _of(velocities, call, COND)
            self.note(
                embedding=np.nan if self._embedding is None else self._embedding[ctx.index],
                sensitivity_x=_over(_rms(moved - last["velocity"]), _rms(call.x - last["x"])),
                sensitivity_t=_rms(velocity - moved) / (abs(ctx.timestep - before.timestep) / 1000),
            )
        else:
            velocities = inner(call)
            velocity = _of(velocities, call, COND)
        last |= {"x": call.x, "velocity": velocity}
        return velocities

    def through(self, call: Call, hidden: Tensor, blocks: Blocks) -> Tensor:
        import torch

        after = blocks(hidden)
        if call.ctx.index != self._step:  # this step's latents at the timestep before
            return after
        norms = (after - hidden).norm(dim=-1, dtype=torch.float32)
        for k, branch in enumerate(call.branches):
            last = self._across(call, branch)
            if last:
                self.note((branch,), magnitude=float((norms[k] / last["norms"]).mean()))
            last["norms"] = norms[k]
        return after

    def kept_hidden(self, branches: int) -> int:
        return 2  # what the blocks were given, and the difference

    def forget(self, ctx: StepContext, frames: int) -> None:
        """The residual's norms are kept over the expert switch: the ratio there is measured too."""
        self._memory = {
            key: kept for key, kept in self._memory.items() if key[0] in (ctx.expert, "both") and key[1] == frames
        }

    def _across(self, call: Call, branch: str) -> dict[str, Any]:
        """Memory of a branch, whatever the expert."""
        return self._memory.setdefault(("both", call.x.shape[2], branch), {})


def _of(velocities: Tensor, call: Call, branch: str) -> Tensor:
    k = call.branches.index(branch)
    return velocities[k : k + 1].float()


def _over(change: float, by: float) -> float:
    """NaN where nothing changed: a first velocity of zero leaves the latents where they are."""
    return change / by if by else math.nan


def _rms(values: Tensor) -> float:
    return float(values.float().square().mean().sqrt())
