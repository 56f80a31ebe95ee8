"""Velocities forecast from those computed: TaylorSeer at fixed intervals, DPCache by a plan made of recorded runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wanlab.engine import calibration
from wanlab.engine.policies.reuse import VelocityCache, at_least
from wanlab.engine.types import Env, Policy, Session
from wanlab.registry import register


@register("policy", "taylorseer")
@dataclass(frozen=True)
class TaylorSeer(Policy):
    """Compute every `interval`-th step of each expert, and forecast the velocities of the others by a Taylor
    polynomial.

    interval  steps from one computed step to the next
    warmup    first steps of each expert that are always computed
    order     of the polynomial

    Cost: none at forecast steps.
    Source: J. Liu et al., "From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers", 2025; as in
    huggingface/diffusers, `hooks/taylorseer_cache.py`, with `use_lite_mode`.
    """

    interval: int = 5
    warmup: int = 3
    order: int = 1

    cost_knob = ("interval", 1, math.inf)

    def begin(self, env: Env) -> Session:
        """Raises UsageError when a knob is out of range."""
        at_least("taylorseer", interval=(self.interval, 1), warmup=(self.warmup, 1), order=(self.order, 0))
        forecast = {
            s.index for s in env.steps if (k := env.since(s)) >= self.warmup and (k - self.warmup - 1) % self.interval
        }
        return VelocityCache(env, forecast, order=self.order)


@register("policy", "dpcache")
@dataclass(frozen=True)
class DpCache(Policy):
    """Compute the steps of an optimal plan, and extrapolate the velocities of the others linearly. `wanlab calibrate`
    makes a plan for each number of computed steps.

    keep         how many steps to compute
    calibration  a file of `wanlab calibrate`, or tiny; by default the model's

    Cost: none at forecast steps.
    Source: "Denoising as Path Planning: Training-Free Acceleration of Diffusion Models with DPCache", 2026; as in
    github.com/sgl-project/sglang.
    """

    keep: int = 10
    calibration: str = ""

    cost_knob = ("keep", math.inf, 1)

    def begin(self, env: Env) -> Session:
        """Raises UsageError where there is no plan for the run."""
        measured = calibration.load(self.calibration or calibration.of_model(env.model))
        measured.refuse(env)
        return VelocityCache(env, set(range(env.total)) - set(measured.plan(self.keep)), order=1)
