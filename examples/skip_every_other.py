"""Evaluate the network at every other step of each expert, and use its velocities again in between.

wanlab compare --a examples/skip_every_other.py:skip_every_other
"""

from dataclasses import dataclass, replace

from wanlab.engine.types import Env, Policy, Session
from wanlab.errors import UsageError
from wanlab.registry import register


@register("policy", "skip_every_other")
@dataclass(frozen=True)
class SkipEveryOther(Policy):
    """Evaluate steps 0, every, 2 every, … of each expert.

    every  steps from one evaluation to the next
    """

    every: int = 2

    def begin(self, env: Env):
        if self.every < 1:
            raise UsageError(f"skip_every_other:every={self.every}", "use 1 or more")
        return _Session(env, self.every)


class _Session(Session):
    def __init__(self, env, every):
        self.env, self.every = env, every

    def plan(self, plan, ctx):
        return replace(plan, reused=plan.branches) if self.env.since(ctx) % self.every else plan

    def evaluate(self, call, inner):
        memory = self.recall(call)
        if self.env.since(call.ctx) % self.every == 0:
            memory["velocity"] = inner(call)
        return memory["velocity"]
