"""The latents themselves, in the length that the step worked on (the field `frames` says which frames those are)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from wanlab.engine.types import COND, UNCOND, Observer, StepRecord
from wanlab.runfile import Field
from wanlab.spec import RecordSpec

OTHER_EXPERT = "velocity_other_expert"
DIMS = ("channel", "latent_frame", "latent_height", "latent_width")
_DOCS = {
    "x_t": "latents that the step began with",
    "x0_pred": "x_t - sigma velocity: the clean latents predicted, before the solver stepped",
    "eps_pred": "x_t + (1 - sigma) velocity: the noise predicted",
    "velocity": "guided velocity that the solver was given",
    "velocity_cond": "conditional branch's velocity",
    "velocity_uncond": "unconditional branch's velocity",
    OTHER_EXPERT: "velocity that the other expert gives in this one's place, guided alike; around the switch only",
}


class Latents(Observer):
    """x_t; at level "all" also predictions and branches. Every `record.every` steps, at the last, and where the other
    expert was asked."""

    def __init__(self, record: RecordSpec, total: int) -> None:
        names = [n for n in _DOCS if record.other_expert or n != OTHER_EXPERT] if record.level == "all" else ["x_t"]
        self.fields = tuple(Field(n, DIMS, record.dtype, "1", _DOCS[n]) for n in names)
        self._names, self._every, self._last = names, record.every, total - 1

    def observe(self, record: StepRecord) -> dict[str, np.ndarray]:
        if record.ctx.index % self._every and record.ctx.index != self._last and record.other is None:
            return {}
        branches = {**record.probes, **record.predictions}
        have: dict[str, Tensor | None] = {
            "x_t": record.x_t,
            "x0_pred": record.x0_pred,
            "velocity": record.velocity,
            "velocity_cond": branches.get(COND),
            "velocity_uncond": branches.get(UNCOND),
            OTHER_EXPERT: record.other,
        }
        if "eps_pred" in self._names:
            have["eps_pred"] = record.eps_pred
        return {n: v[0].float().cpu().numpy() for n in self._names if (v := have[n]) is not None}
