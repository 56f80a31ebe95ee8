"""CFG truncation: one branch instead of two in the steps where guidance is hoped not to matter."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from wanlab.engine.guiders import Again, Alone
from wanlab.engine.types import BOTH, COND, UNCOND, Env, Policy, Session, StepContext, StepPlan, StepRecord
from wanlab.errors import UsageError
from wanlab.registry import register


@register("policy", "cfg")
@dataclass(frozen=True)
class CfgTruncation(Policy):
    """Evaluate one branch in the last steps of the run, and in the last ones before the expert switch.

    last  steps at the end of the run
    high  high-noise steps before the expert switch
    keep  "uncond" or "cond": the branch evaluated, alone; "reuse": the conditional branch, with the difference of
          the last full step of the same expert and length added again

    Steps that have one branch anyway (guidance 1 or 0) stay as they are.

    Cost: one pass less at every truncated step.
    Source: the experiment guide (uncond); A. Castillo et al., "Adaptive Guidance", 2023, and T. Kynkäänniemi et al.,
    "Applying Guidance in a Limited Interval", 2024 (cond).
    """

    last: int = 0
    high: int = 0
    keep: Literal["uncond", "cond", "reuse"] = "uncond"

    cost_knob = ("last", 1, math.inf)

    def begin(self, env: Env) -> Session:
        """Raises UsageError when more steps are to be truncated than there are, or none."""
        highs = env.switch if env.switch is not None else sum(s.expert == "high" for s in env.steps)
        for knob, value, most, what in (
            ("last", self.last, env.total, "steps"),
            ("high", self.high, highs, "high-noise steps"),
        ):
            if not 0 <= value <= most:
                raise UsageError(f"cfg:{knob}={value} of {most} {what}", f"use 0 to {most}")
        if not self.last and not self.high:
            raise UsageError("cfg truncates no step", "give last or high, such as cfg:last=5, or leave cfg out")
        truncated = {*range(env.total - self.last, env.total), *range(highs - self.high, highs)}
        return _Session(truncated, self.keep)


class _Session(Session):
    changes = "branches"

    def __init__(self, truncated: set[int], keep: str) -> None:
        self._truncated, self._keep = truncated, keep

    def plan(self, plan: StepPlan, ctx: StepContext) -> StepPlan:
        if ctx.index not in self._truncated or set(plan.branches) != set(BOTH):
            return plan
        scale = plan.guide.scale
        if self._keep != "reuse":
            branch = UNCOND if self._keep == "uncond" else COND
            return replace(plan, branches=(branch,), guide=Alone(branch, scale))
        return replace(plan, branches=(COND,), guide=Again(scale, self.memory(ctx, plan.frames)))

    def after(self, record: StepRecord) -> None:
        if self._keep == "reuse" and set(record.predictions) == set(BOTH):
            difference = record.predictions[COND] - record.predictions[UNCOND]
            self.memory(record.ctx, record.plan.frames)["difference"] = difference
