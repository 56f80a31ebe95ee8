"""Where each step is in the schedule, what became of its branches, and what ran."""

from __future__ import annotations

import numpy as np

from wanlab.engine.types import BOTH, Observer, StepRecord
from wanlab.runfile import Field


class Cost(Observer):
    """Schedule and cost of a step."""

    fields = (
        Field("timestep", (), "float64", "1", "timestep given to the transformer"),
        Field("sigma", (), "float64", "1", "noise level of x_t"),
        Field("sigma_next", (), "float64", "1", "noise level after the step"),
        Field("expert", (), "S6", "1", "expert evaluated: high, low or single"),
        Field("branches", (), "S16", "1", "branches that the guided velocity is made of, comma-separated"),
        *(
            Field(
                f"status_{b}", (), "S7", "1", f"{b} branch: fresh, reused (some of it from an earlier step) or skipped"
            )
            for b in BOTH
        ),
        Field("guider", (), "S16", "1", "formula of the guided velocity"),
        Field("guidance_scale", (), "float64", "1", "guidance scale of the expert"),
        Field("frames", (), "int32", "1", "latent frames evaluated"),
        Field("frame_stride", (), "int32", "1", "full-length latent frames from one of them to the next"),
        Field("passes", (), "int32", "1", "samples that went through blocks of the transformer, all or some"),
        Field("tokens", (), "int64", "1", "transformer tokens, summed over passes"),
        Field("block_tokens", (), "int64", "1", "tokens that each block ran, summed over blocks and passes"),
        Field("attention_pairs", (), "int64", "1", "queries times keys of self-attention, summed likewise"),
        Field("operations", (), "float64", "1", "floating-point operations of what ran, by the cost model"),
        Field("seconds", (), "float64", "s", "time of the step, device synchronised, without recording"),
    )

    def observe(self, record: StepRecord) -> dict[str, np.ndarray]:
        ctx, plan, ran = record.ctx, record.plan, record.ran
        values = {
            "timestep": ctx.timestep,
            "sigma": ctx.sigma,
            "sigma_next": ctx.sigma_next,
            "expert": ctx.expert,
            "branches": ",".join(plan.branches),
            "guider": plan.guide.name[:16],
            "guidance_scale": plan.guide.scale,
            "frames": record.x_t.shape[2],
            "frame_stride": plan.stride,
            "passes": ran.passes,
            "tokens": ran.tokens,
            "block_tokens": ran.block_tokens,
            "attention_pairs": ran.attention_pairs,
            "operations": ran.operations,
            "seconds": ran.seconds,
        }
        values |= {f"status_{b}": record.status(b) for b in BOTH}
        return {name: np.asarray(value) for name, value in values.items()}
