"""EasyCache: how much the output changed for a change of the input, at the steps computed last."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wanlab.engine.policies.reuse import VelocityCache, at_least, indicator
from wanlab.engine.types import Call, Env, Policy, Session
from wanlab.errors import UsageError
from wanlab.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("policy", "easycache")
@dataclass(frozen=True)
class EasyCache(Policy):
    """Use v - x of the last computed step again while the output's predicted relative change, summed since, is below
    the threshold. Predicted from the input's change and the slope between the last two computed steps, on the
    conditional branch.

    threshold  of the sum, 0 for never
    first      steps at the beginning of the run that are always computed; the last one is too

    Cost: none at reused steps.
    Source: X. Zhou et al., "Less is Enough: Training-Free Video Diffusion Acceleration via Runtime-Adaptive Caching",
    2025; github.com/H-EmbodVis/EasyCache.
    """

    threshold: float = 0.05
    first: int = 10

    cost_knob = ("threshold", 0.0, 100.0)

    def begin(self, env: Env) -> Session:
        """Raises UsageError when no step is left to decide about, or the threshold is below 0."""
        at_least("easycache", threshold=(self.threshold, 0), first=(self.first, 0))
        if self.first > env.total - 2:
            raise UsageError(
                f"easycache:first={self.first} of {env.total} steps leaves none to reuse",
                f"use 0 to {env.total - 2}" if env.total > 1 else "use more steps",
            )
        return _EasyCache(env, range(self.first, env.total - 1), threshold=self.threshold)


class _EasyCache(VelocityCache):
    fields = (indicator("predicted relative change of the velocity, summed"),)

    def measure(self, call: Call, memory: Mapping[str, Any], told: dict[str, Any], given: Tensor | None) -> float:
        told["x_before"] = call.x
        if "slope" not in memory:
            return math.nan
        change: float = memory["slope"] * size(call.x, memory["x_before"]) / size(memory["0"])
        return change

    def keep(self, call: Call, values: Tensor) -> None:
        for i, branch in enumerate(call.branches):
            memory = self.of(call, branch)
            if "x" in memory and (moved := size(call.x, memory["x"])):  # a first velocity of zero moves nothing
                memory["slope"] = size(values[i : i + 1], memory["0"]) / moved
            memory["x"] = call.x
        super().keep(call, values)

    def predict(self, call: Call) -> Tensor:
        velocity = super().predict(call)
        moved: Tensor = velocity.float() + (call.x.float() - self.of(call, call.branches[0])["x"].float())
        return moved.to(velocity.dtype)


def size(x: Tensor, y: Tensor | None = None) -> float:
    """mean |x - y|, or mean |x|."""
    return float((x.float() if y is None else x.float() - y.float()).abs().mean())
