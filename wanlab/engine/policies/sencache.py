"""SenCache: how sensitive the network is to its input and to time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wanlab.engine import calibration
from wanlab.engine.policies.reuse import VelocityCache, at_least, indicator
from wanlab.engine.types import Call, Env, Policy, Session
from wanlab.errors import UsageError
from wanlab.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("policy", "sencache")
@dataclass(frozen=True)
class SenCache(Policy):
    """Use the last computed velocities again while a_x sum RMS(x - x_ref) + a_t sum |t - t_ref| / 1000, over the steps
    since that reference step, is below the threshold.

    threshold    of the score, 0 for never
    consecutive  steps reused in a row at most
    start        share of the run before which no step is reused
    stop         share of the run from which on none is
    calibration  a file of `wanlab calibrate`, or tiny, for a_x and a_t; by default both are 1

    Cost: none at reused steps.
    Source: Y. Haghighi and A. Alahi, "SenCache: Accelerating Diffusion Model Inference via Sensitivity-Aware Caching",
    2026; its form for Wan 2.2 is of github.com/AI-Hypercomputer/maxdiffusion.
    """

    threshold: float = 0.1
    consecutive: int = 3
    start: float = 0.3
    stop: float = 0.9
    calibration: str = ""

    cost_knob = ("threshold", 0.0, 100.0)

    def begin(self, env: Env) -> Session:
        """Raises UsageError for knobs out of range and a calibration that does not belong to the run."""
        at_least("sencache", threshold=(self.threshold, 0), consecutive=(self.consecutive, 1))
        if not 0 <= self.start < self.stop <= 1:
            raise UsageError(f"sencache:start={self.start},stop={self.stop}", "use 0 <= start < stop <= 1")
        weights = {s.expert: (1.0, 1.0) for s in env.steps}
        if self.calibration:
            measured = calibration.load(self.calibration)
            measured.refuse(env)
            by_expert = {expert: measured.sensitivity(expert) for expert in weights}
            weights = {expert: (s.x, s.t) for expert, s in by_expert.items()}
        steps = range(env.share(self.start), env.share(self.stop))
        return _SenCache(env, steps, weights, threshold=self.threshold, consecutive=self.consecutive)


class _SenCache(VelocityCache):
    fields = (indicator("predicted change of the velocity, summed"),)

    def __init__(self, env: Env, steps: range, weights: Mapping[str, tuple[float, float]], **options: Any) -> None:
        """weights  by expert: of the latents' change, and of time's"""
        super().__init__(env, steps, **options)
        self._weights = weights

    def measure(self, call: Call, memory: Mapping[str, Any], told: dict[str, Any], given: Tensor | None) -> float:
        if "x" not in memory:
            return math.nan
        of_x, of_t = self._weights[call.ctx.expert]
        moved = float((call.x.float() - memory["x"].float()).square().mean().sqrt())
        score: float = of_x * moved + of_t * abs(call.ctx.timestep - memory["t"]) / 1000
        return score

    def keep(self, call: Call, values: Tensor) -> None:
        super().keep(call, values)
        for branch in call.branches:
            self.of(call, branch).update({"x": call.x, "t": call.ctx.timestep})
