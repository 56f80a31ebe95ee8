"""First-block cache: where the first block's residual has hardly changed, the other blocks' residual is used again.

wanlab compare --a examples/first_block_cache.py:first_block_cache:threshold=0.1
"""

from dataclasses import dataclass, replace

from wanlab.engine.types import Env, Policy, Session
from wanlab.registry import register
from wanlab.runfile import Field


@register("policy", "first_block_cache")
@dataclass(frozen=True)
class FirstBlockCache(Policy):
    """Run all blocks only where the first one's residual differs from that of the last full run by the threshold or
    more.

    threshold  of mean|r - r_last| / mean|r_last|, 0 for never

    Source: huggingface/diffusers, `hooks/first_block_cache.py`.
    """

    threshold: float = 0.05

    def begin(self, env: Env):
        return _Session(env, self.threshold)


class _Session(Session):
    fields = (Field("difference", ("branch",), "float64", "1", "relative difference of the first block's residual"),)

    def __init__(self, env, threshold):
        self.env, self.threshold = env, threshold

    def plan(self, plan, ctx):
        return replace(plan, least=1 / self.env.layers(ctx))

    def through(self, call, hidden, blocks):
        memory = self.recall(call)
        first = blocks[:1](hidden)
        residual = first - hidden
        if memory:
            difference = float((residual - memory["first"]).abs().mean() / memory["first"].abs().mean())
            self.note(call.branches, difference=difference)
            if difference < self.threshold:
                return first + memory["others"]
        last = blocks[1:](first)
        memory |= {"first": residual, "others": last - first}
        return last
