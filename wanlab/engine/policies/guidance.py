"""Guidance where it matters: both branches in some of the steps, the conditional one alone in the others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from wanlab.engine.guiders import Alone, Guide, earlier_difference
from wanlab.engine.types import BOTH, COND, UNCOND, Env, Policy, Session, StepContext, StepPlan, StepRecord
from wanlab.errors import UsageError
from wanlab.registry import register
from wanlab.runfile import Field

if TYPE_CHECKING:
    from torch import Tensor

LARGE = 90  # latent rows of a video of 720


@register("policy", "interval")
@dataclass(frozen=True)
class Interval(Policy):
    """Guide the steps of an interval of noise levels, or of shares of the schedule; elsewhere the conditional branch
    alone. With both, the steps that lie in both.

    low    guided above this sigma, in [0,1]
    high   guided up to and at this sigma
    start  guided from this share of the steps on: step k of N from k = int(start N) on
    stop   guided before this share

    Steps that have one branch anyway (guidance 1 or 0) stay as they are.

    Cost: one pass less at every step outside.
    Source: T. Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in
    Diffusion Models", 2024; start and stop as the guiders of huggingface/diffusers have them.
    """

    low: float = 0.0
    high: float = 1.0
    start: float = 0.0
    stop: float = 1.0

    cost_knob = ("stop", 1.0, 0.0)

    def begin(self, env: Env) -> Session:
        """Raises UsageError for an interval that is none."""
        for first, last in (("low", "high"), ("start", "stop")):
            a, b = getattr(self, first), getattr(self, last)
            if not 0 <= a <= b <= 1:
                raise UsageError(f"interval:{first}={a:g},{last}={b:g}", f"use 0 <= {first} <= {last} <= 1")
        guided = {
            s.index for s in env.steps[env.share(self.start) : env.share(self.stop)] if self.low < s.sigma <= self.high
        }
        return _Interval(guided)


class _Interval(Session):
    changes = "branches"

    def __init__(self, guided: set[int]) -> None:
        self._guided = guided

    def plan(self, plan: StepPlan, ctx: StepContext) -> StepPlan:
        return plan if ctx.index in self._guided else cond_alone(plan)


@register("policy", "adaptive")
@dataclass(frozen=True)
class Adaptive(Policy):
    """Guide until the two branches point the same way; from then on the conditional branch alone.

    After each step that evaluated both, gamma = cos(c, u) over all values of the two velocities. The first step at
    which it exceeds the threshold is the last one that is guided. The stop is the expert's own: after the switch
    another network gives other branches, and both are evaluated again until it has shown the same.

    threshold  of gamma, from -1 to 1; with 1 guidance never stops

    Steps that have one branch anyway (guidance 1 or 0) stay as they are.

    Cost: one pass less at every step after the stop, which is not known beforehand.
    Source: A. Castillo et al., "Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models", 2023.
    """

    threshold: float = 0.991

    cost_knob = ("threshold", 1.0, -1.0)

    def begin(self, env: Env) -> Session:
        """Raises UsageError for a threshold that is no cosine."""
        if not -1 <= self.threshold <= 1:
            raise UsageError(f"adaptive:threshold={self.threshold:g}", "use -1 to 1, the range of a cosine")
        return _Adaptive(self.threshold)


class _Adaptive(Session):
    changes = "branches"
    fields = (
        Field("gamma", (), "float64", "1", "<c,u> / (|c| |u|) of the velocities, where both were evaluated"),
        Field("stop", (), "int32", "1", "step (from 0) whose gamma exceeded the threshold; -1 before"),
    )

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._first: dict[tuple[str, int], int] = {}  # the first step of each expert and length, as planned

    def plan(self, plan: StepPlan, ctx: StepContext) -> StepPlan:
        if set(plan.branches) != set(BOTH):
            return plan
        first = self._first.setdefault((ctx.expert, plan.frames), ctx.index)
        # Compared by number: when a run goes on, the steps before the stop are planned again.
        if ctx.index > self.memory(ctx, plan.frames).get("stop", ctx.index):
            return cond_alone(plan)
        return replace(plan, optional=(UNCOND,)) if ctx.index > first else plan

    def after(self, record: StepRecord) -> None:
        memory = self.memory(record.ctx, record.plan.frames)
        gamma = float("nan")
        if set(record.predictions) == set(BOTH):
            gamma = cosine(record.predictions[COND], record.predictions[UNCOND])
            if gamma > self._threshold:
                memory.setdefault("stop", record.ctx.index)
        self.note(gamma=gamma, stop=memory.get("stop", -1))


def cond_alone(plan: StepPlan) -> StepPlan:
    """The plan with the conditional branch alone, where it has both."""
    if set(plan.branches) != set(BOTH):
        return plan
    return replace(plan, branches=(COND,), guide=Alone(COND, plan.guide.scale))


def cosine(a: Tensor, b: Tensor) -> float:
    """<a,b> / (|a| |b|) over all values, in float64 where the device has it; NaN where one is zero. Rounding never
    takes it above 1."""
    import torch

    wide = torch.float32 if a.device.type == "mps" else torch.float64
    x, y = a.to(wide).flatten(), b.to(wide).flatten()
    lengths = float(x.norm() * y.norm())
    return min(1.0, float(x @ y) / lengths) if lengths else float("nan")


@register("policy", "cfgcache")
@dataclass(frozen=True)
class CfgCache(Policy):
    """The unconditional branch estimated from the conditional one: u = c + w_low d_low + w_high d_high, where d = u - c
    of the last step that evaluated both, in two bands of spatial frequency.

    Estimated in the low-noise expert alone (or a model's only expert), from step int(N/3) of N on, but for its first
    step, every fifth and the last (from .9 N on at 720 rows and more).

    every  steps from one that evaluates both to the next, counted from int(N/3); 1 to estimate none
    alpha  by how much one band weighs more: the low one in the first half of the steps of a model of one expert, else
           the high one

    Steps that have one branch anyway (guidance 1 or 0) stay as they are.

    Cost: one pass less at every estimated step.
    Source: Z. Lv et al., "FasterCache: Training-Free Video Diffusion Model Acceleration with High Quality", 2024; steps
    and weights for Wan2.2 as AI-Hypercomputer/maxdiffusion has them, bands as huggingface/diffusers.
    """

    every: int = 5
    alpha: float = 0.2

    cost_knob = ("every", 1, math.inf)

    def begin(self, env: Env) -> Session:
        """Raises UsageError for a period below 1."""
        if self.every < 1:
            raise UsageError(f"cfgcache:every={self.every}", "use 1 or more")
        return _CfgCache(self, env)


class _CfgCache(Session):
    changes = "branches"

    def __init__(self, knobs: CfgCache, env: Env) -> None:
        self._knobs, self._half = knobs, env.total // 2
        start, large = env.total // 3, env.shape[2] >= LARGE
        end = int(0.9 * env.total) if large else env.total - 1
        self._estimated = {
            s.index for s in env.steps[start:end] if s.expert != "high" and (s.index - start) % knobs.every
        }
        self._full: set[tuple[str, int]] = set()  # expert and length of the steps planned with both branches so far

    def plan(self, plan: StepPlan, ctx: StepContext) -> StepPlan:
        if set(plan.branches) != set(BOTH):
            return plan
        key = (ctx.expert, plan.frames)
        if ctx.index not in self._estimated or key not in self._full:
            self._full.add(key)
            return plan
        early = ctx.expert == "single" and ctx.index < self._half
        low, high = (1 + self._knobs.alpha, 1.0) if early else (1.0, 1 + self._knobs.alpha)
        guide = Estimated(plan.guide, low, high, self.memory(ctx, plan.frames))
        return replace(plan, branches=(COND,), guide=guide)

    def after(self, record: StepRecord) -> None:
        if set(record.predictions) == set(BOTH):
            difference = record.predictions[UNCOND] - record.predictions[COND]
            self.memory(record.ctx, record.plan.frames)["difference"] = difference


@dataclass(frozen=True)
class Estimated(Guide):
    """A guide of both branches, with u = c + low d_low + high d_high, d the difference u - c of an earlier step."""

    guide: Guide
    low: float
    high: float
    memory: Mapping[str, Tensor] = field(compare=False, repr=False)
    name = "cfgcache"
    branches = (COND,)
    again = True

    @property
    def scale(self) -> float:  # type: ignore[override]
        return self.guide.scale

    def __call__(self, predictions: Mapping[str, Tensor]) -> Tensor:
        difference = weigh_bands(earlier_difference(self.memory), self.low, self.high)
        return self.guide({COND: predictions[COND], UNCOND: predictions[COND] + difference})


def weigh_bands(x: Tensor, low: float, high: float) -> Tensor:
    """x [..., H, W] with its spatial frequencies up to min(H, W) // 5 cycles per image times `low`, the others times
    `high`."""
    import torch

    height, width = x.shape[-2:]
    rows = torch.fft.fftfreq(height, 1 / height, device=x.device)
    columns = torch.fft.rfftfreq(width, 1 / width, device=x.device)
    is_low = rows[:, None] ** 2 + columns**2 <= (min(height, width) // 5) ** 2
    spectrum = torch.fft.rfft2(x.float()) * torch.where(is_low, low, high)
    weighed: Tensor = torch.fft.irfft2(spectrum, s=(height, width)).to(x.dtype)
    return weighed
