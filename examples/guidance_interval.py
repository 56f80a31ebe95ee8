"""Guidance in an interval of noise levels, and the conditional branch alone outside it, for half the passes.

wanlab compare --a guider=examples/guidance_interval.py:interval:low=0.5,high=0.9
"""

from dataclasses import dataclass

from wanlab.engine.guiders import Alone, Cfg, Guide, Guider
from wanlab.engine.types import COND, StepContext
from wanlab.errors import UsageError
from wanlab.registry import register


@register("guider", "interval")
@dataclass(frozen=True)
class Interval(Guider):
    """Guide the steps whose sigma is above `low` and at most `high`, both in [0,1]. The package's policy `interval` is
    the same rule for any guider.

    Source: T. Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality
    in Diffusion Models", 2024.
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise UsageError(f"interval:low={self.low},high={self.high}", "use 0 <= low < high <= 1")

    def guide(self, scale: float, ctx: StepContext) -> Guide:
        return Cfg().guide(scale, ctx) if self.low < ctx.sigma <= self.high else Alone(COND)
