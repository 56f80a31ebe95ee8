"""Half the steps use the last velocities again: wanlab compare --a examples/skip_every_other.py:skip_every_other"""

from dataclasses import dataclass, replace

from wanlab.engine.types import Env, Policy, Session
from wanlab.errors import UsageError
from wanlab.registry import register


@register("policy", "skip_every_other")
@dataclass(frozen=True)
class SkipEveryOther(Policy):
    """Evaluate steps 0, every, 2 every, … of each stretch of one expert, number of frames and set of branches.

    every  steps from one evaluation to the next
    """

    every: int = 2

    def begin(self, env: Env):
        if self.every < 1:
            raise UsageError(f"skip_every_other:every={self.every}", "use 1 or more")
        return _Session(self.every)


class _Session(Session):
    def __init__(self, every):
        self.every, self.stretch, self.first = every, None, 0

    def plan(self, plan, ctx):
        if (stretch := (ctx.expert, plan.frames, plan.branches)) != self.stretch:
            self.stretch, self.first = stretch, ctx.index  # nothing is remembered from before
        return replace(plan, reused=plan.branches) if (ctx.index - self.first) % self.every else plan

    def evaluate(self, call, inner):
        memory = self.recall(call)
        if (call.ctx.index - self.first) % self.every == 0:
            memory["velocity"] = inner(call)
        return memory["velocity"]
