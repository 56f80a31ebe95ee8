"""CFG truncation: one branch instead of two in the steps where guidance is hoped not to matter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from wanlab.engine.types import BOTH, COND, UNCOND, Env, Policy, Session, State, StepContext, StepPlan, StepRecord
from wanlab.errors import UsageError
from wanlab.registry import register

Key = tuple[str, int]  # expert, latent frames: a difference of another is never used


@register("policy", "cfg")
@dataclass(frozen=True)
class CfgTruncation(Policy):
    """Evaluate one branch in the last steps of the run, and in the last ones before the expert switch.

    last  steps at the end of the run
    high  high-noise steps before the expert switch
    keep  "uncond" or "cond": the branch evaluated, alone; "reuse": the conditional branch, with the difference of
          the last full step of the same expert and length added again

    Steps that have one branch anyway (guidance 1 or 0) stay as they are.
    """

    last: int = 0
    high: int = 0
    keep: Literal["uncond", "cond", "reuse"] = "uncond"

    def begin(self, env: Env) -> Session:
        """Raises UsageError when more steps are to be truncated than there are."""
        highs = env.switch if env.switch is not None else sum(s.expert == "high" for s in env.steps)
        for knob, value, most, what in (
            ("last", self.last, env.total, "steps"),
            ("high", self.high, highs, "high-noise steps"),
        ):
            if not 0 <= value <= most:
                raise UsageError(f"cfg:{knob}={value} of {most} {what}", f"use 0 to {most}")
        truncated = {*range(env.total - self.last, env.total), *range(highs - self.high, highs)}
        return _Session(truncated, self.keep)


class _Session(Session):
    def __init__(self, truncated: set[int], keep: str) -> None:
        self._truncated, self._keep = truncated, keep
        self._planned: set[Key] = set()  # what will have a difference once the steps planned so far are done
        self._differences: dict[Key, Tensor] = {}

    def plan(self, plan: StepPlan, ctx: StepContext) -> StepPlan:
        key = (ctx.expert, plan.frames)
        if set(plan.branches) != set(BOTH):
            return plan
        if ctx.index not in self._truncated:
            self._planned.add(key)
            return plan
        if self._keep != "reuse":
            return replace(plan, branches=(UNCOND if self._keep == "uncond" else COND,))
        if key not in self._planned:
            raise UsageError(
                f"cfg:keep=reuse at step {ctx.index + 1}: no full step of the {ctx.expert} expert at this length before",
                "truncate fewer steps, or use keep=cond",
            )
        return replace(plan, branches=(COND,), reuse=True, difference=self._differences.get(key))

    def after(self, record: StepRecord) -> None:
        if self._keep == "reuse" and set(record.predictions) == set(BOTH):
            key = (record.ctx.expert, record.plan.frames)
            self._differences[key] = record.predictions[COND] - record.predictions[UNCOND]

    def state(self) -> State:
        return {f"{expert} {frames}": d for (expert, frames), d in self._differences.items()}

    def restore(self, state: State) -> None:
        for name, difference in state.items():
            expert, frames = name.split()
            self._differences[expert, int(frames)] = difference
        self._planned = set(self._differences)
