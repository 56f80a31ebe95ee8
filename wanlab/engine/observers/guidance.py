"""How much guidance does at each step, from the two branches' velocities c (conditional) and u (unconditional)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from wanlab.engine.types import COND, UNCOND, Observer, State, StepRecord
from wanlab.runfile import Field


class Guidance(Observer):
    """Per step, d_k = c - u: see `fields`. NaN where a branch was skipped or reused, and not probed; `change` also at
    the first step, after a gap, and when the number of latent frames changed. Computed in float64 (float32 where the
    device has no float64)."""

    fields = (
        Field("mse", (), "float64", "1", "mean of d_k squared: how much the prompt matters"),
        Field("change", (), "float64", "1", "mean of (d_k - d_(k-1)) squared: how fast guidance changes"),
        Field("cosine", (), "float64", "1", "<c,u> / (|c| |u|)"),
        Field("norm_ratio", (), "float64", "1", "|c| / |u|"),
        Field("projection", (), "float64", "1", "<c,u> / |u|^2: the scale of u nearest to c"),
        Field("probed", (), "bool", "1", "whether a branch was evaluated for the record only"),
    )

    def __init__(self) -> None:
        self._previous: Tensor | None = None

    def observe(self, record: StepRecord) -> dict[str, np.ndarray]:
        known = {**record.probes, **record.predictions}
        values = dict.fromkeys(("mse", "change", "cosine", "norm_ratio", "projection"), float("nan"))
        difference = None
        if COND in known and UNCOND in known:
            wide = torch.float32 if record.x_t.device.type == "mps" else torch.float64
            c, u = known[COND].to(wide).flatten(), known[UNCOND].to(wide).flatten()
            difference = c - u
            values |= metrics(c, u)
            if self._previous is not None and self._previous.shape == difference.shape:
                values["change"] = float((difference - self._previous).square().mean())
        self._previous = difference
        return {k: np.asarray(v) for k, v in values.items()} | {"probed": np.asarray(bool(record.probes))}

    def state(self) -> State:
        return {"previous": self._previous}

    def restore(self, state: State) -> None:
        self._previous = state["previous"]


def metrics(c: Tensor, u: Tensor) -> dict[str, float]:
    """The metrics of one step, of flat c and u. NaN where a norm is 0."""
    cc, uu, cu, dd = torch.stack([c @ c, u @ u, c @ u, (c - u).square().mean()]).tolist()
    nan = float("nan")
    return {
        "mse": dd,
        "cosine": cu / (cc * uu) ** 0.5 if cc * uu else nan,
        "norm_ratio": (cc / uu) ** 0.5 if uu else nan,
        "projection": cu / uu if uu else nan,
    }
