"""Where each step is in the schedule, what it evaluated, and what that cost."""

from __future__ import annotations

import numpy as np

from wanlab.engine.types import Observer, StepRecord
from wanlab.runfile import Field


class Cost(Observer):
    """Schedule and cost of a step."""

    fields = (
        Field("timestep", (), "float64", "1", "timestep given to the transformer"),
        Field("sigma", (), "float64", "1", "noise level of x_t"),
        Field("sigma_next", (), "float64", "1", "noise level after the step"),
        Field("expert", (), "S6", "1", "expert evaluated: high, low or single"),
        Field("branches", (), "S16", "1", "branches evaluated and used, comma-separated"),
        Field("guidance_scale", (), "float64", "1", "guidance scale of the expert"),
        Field("frames", (), "int32", "1", "latent frames evaluated"),
        Field("frame_stride", (), "int32", "1", "full-length latent frames from one of them to the next"),
        Field("passes", (), "int32", "1", "samples that went through the transformer"),
        Field("tokens", (), "int64", "1", "transformer tokens, summed over passes"),
        Field("seconds", (), "float64", "s", "time of the step, device synchronised, without recording"),
    )

    def observe(self, record: StepRecord) -> dict[str, np.ndarray]:
        ctx, plan = record.ctx, record.plan
        values = {
            "timestep": ctx.timestep, "sigma": ctx.sigma, "sigma_next": ctx.sigma_next, "expert": ctx.expert,
            "branches": ",".join(record.predictions), "guidance_scale": plan.guidance,
            "frames": record.x_t.shape[2], "frame_stride": plan.stride, "passes": record.passes, "tokens": record.tokens,
            "seconds": record.seconds,
        }  # fmt: skip
        return {name: np.asarray(value) for name, value in values.items()}
