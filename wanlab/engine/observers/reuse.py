"""What policies say of their decisions, and how far off the values are that they use again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from wanlab.engine.types import BOTH, Observer, Session, StepRecord
from wanlab.runfile import Field

MASK = "mask"  # what policies call the field of the tokens that they computed, packed bits


class Reuse(Observer):
    """With `--probe`, |reused - fresh| / |fresh| of each branch that was reused; NaN elsewhere. Where a policy reports
    which tokens it computed (`MASK`), also of these and of the others alone."""

    def __init__(self, sessions: Sequence[Session] = ()) -> None:
        self._mask = next((f"{k}/{MASK}" for k, s in enumerate(sessions) for f in s.fields if f.name == MASK), "")
        parts = {"": "velocity that was reused"}
        if self._mask:
            parts |= {"_active": "velocity of tokens computed beside others", "_frozen": "velocity of frozen tokens"}
        self.fields = tuple(
            Field(f"reuse_error{part}_{b}", (), "float64", "1", f"relative error of the {b} {what}, where probed")
            for part, what in parts.items()
            for b in BOTH
        )

    def observe(self, record: StepRecord) -> dict[str, np.ndarray]:
        values = {f.name: np.asarray(np.nan) for f in self.fields}
        for branch in set(record.reused) & set(record.probes):
            reused, fresh = record.reused[branch].float(), record.probes[branch].float()
            values[f"reuse_error_{branch}"] = _relative(reused, fresh)
            if self._mask in record.notes:
                computed = _pixels(record.notes[self._mask], fresh)
                for part, mask in (("active", computed), ("frozen", ~computed)):
                    values[f"reuse_error_{part}_{branch}"] = _relative(reused * mask, fresh * mask)
        return values


def _relative(reused: Tensor, fresh: Tensor) -> np.ndarray:
    length = float(fresh.norm())
    return np.asarray(float((reused - fresh).norm()) / length if length else np.nan)


def _pixels(packed: np.ndarray, x: Tensor) -> Tensor:
    """Tokens' bits [F,H/2,W/16 rounded up] to a mask [1,1,F,H,W] of the latents x."""
    mask = np.unpackbits(packed, axis=-1, count=x.shape[-1] // 2).astype(bool)
    return torch.from_numpy(mask.repeat(2, axis=1).repeat(2, axis=2)[None, None]).to(x.device)


class Declared(Observer):
    """The fields that policies declare, each called POLICY_NAME."""

    def __init__(self, names: Sequence[str], sessions: Sequence[Session], *, latents: bool = True) -> None:
        """names    of the policies, in the order of the sessions
        latents  whether latents are recorded: only then are fields that have a value for each of their frames
        """
        self._fields: dict[str, Field] = {}
        for k, (name, session) in enumerate(zip(names, sessions, strict=True)):
            again = names[:k].count(name)
            prefix = name.replace("-", "_") + (f"_{again + 1}" if again else "")
            self._fields |= {f"{k}/{f.name}": replace(f, name=f"{prefix}_{f.name}") for f in session.fields}
        self._recorded = [key for key, f in self._fields.items() if latents or "latent_frame" not in f.dims]
        self.fields = tuple(self._fields[key] for key in self._recorded)

    def observe(self, record: StepRecord) -> dict[str, np.ndarray]:
        unknown = sorted(set(record.notes) - set(self._fields))
        if unknown:
            raise KeyError(f"a policy reports '{unknown[0].partition('/')[2]}', which it does not declare")
        return {self._fields[key].name: record.notes[key] for key in self._recorded if key in record.notes}
