"""FirstBlockCache and DBCache: the first blocks say whether the others have changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wanlab.engine.policies.reuse import ResidualCache, at_least, difference, indicator, lead
from wanlab.engine.types import Call, Env, Policy, Session, StepContext
from wanlab.errors import UsageError
from wanlab.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from wanlab.engine.model.transformer import Blocks


@register("policy", "firstblock")
@dataclass(frozen=True)
class FirstBlock(Policy):
    """Run the front blocks; where their residual differs from that of the last computed step by less than the
    threshold, relatively, use the residual of the middle ones again; run the back blocks. The conditional branch
    decides for both.

    threshold    of mean |r - r_last| / mean |r_last|, 0 for never
    front        blocks that always run first (F_n)
    back         blocks that always run last (B_n)
    warmup       first steps of each expert that are always computed
    consecutive  steps reused in a row at most, 0 for any number
    most         steps reused of each expert at most, 0 for any number

    Cost: the front and back blocks, embeddings and head at reused steps.
    Source: huggingface/diffusers, `hooks/first_block_cache.py` (the defaults); github.com/vipshop/cache-dit, DBCache
    (front=8,warmup=8,threshold=0.08).
    """

    threshold: float = 0.05
    front: int = 1
    back: int = 0
    warmup: int = 0
    consecutive: int = 0
    most: int = 0

    cost_knob = ("threshold", 0.0, 100.0)

    def begin(self, env: Env) -> Session:
        """Raises UsageError when no block is left between front and back, or a knob is negative."""
        at_least("firstblock", threshold=(self.threshold, 0), front=(self.front, 1), back=(self.back, 0))
        at_least("firstblock", warmup=(self.warmup, 0), consecutive=(self.consecutive, 0), most=(self.most, 0))
        layers = min(env.layers(s) for s in env.steps)
        if self.front + self.back >= layers:
            raise UsageError(
                f"firstblock:front={self.front},back={self.back} of {layers} blocks leaves none between",
                f"use {layers - 1} or fewer together",
            )
        return _FirstBlock(env, self)


class _FirstBlock(ResidualCache):
    fields = (indicator("relative change of the front blocks' residual since the last computed step"),)
    accumulates = False

    def __init__(self, env: Env, knobs: FirstBlock) -> None:
        steps = {s.index for s in env.steps if env.since(s) >= knobs.warmup}
        super().__init__(env, steps, threshold=knobs.threshold, consecutive=knobs.consecutive, most=knobs.most)
        self._front, self._back = knobs.front, knobs.back

    def least(self, ctx: StepContext) -> float:
        return (self._front + self._back) / self.env.layers(ctx)

    def through(self, call: Call, hidden: Tensor, blocks: Blocks) -> Tensor:
        back = len(blocks) - self._back
        front = blocks[: self._front](hidden)
        residual = front - hidden
        if self.reuses(call, residual):
            last = front + self.predict(call)
        else:
            last = blocks[self._front : back](front)
            self.keep(call, last - front)
            if lead(call) in call.branches:
                self.of(call, lead(call))["front"] = _of_lead(call, residual)
        return blocks[back:](last)

    def measure(self, call: Call, memory: Mapping[str, Any], told: dict[str, Any], given: Tensor | None) -> float:
        if "front" not in memory or lead(call) not in call.branches:
            return math.nan
        assert given is not None
        return difference(_of_lead(call, given), memory["front"])

    def kept_hidden(self, branches: int) -> int:
        return super().kept_hidden(branches) + 2  # the front's residual, of the last computed step and of this one


def _of_lead(call: Call, batch: Tensor) -> Tensor:
    at = call.branches.index(lead(call))
    return batch[at : at + 1]
