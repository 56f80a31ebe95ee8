"""What policies say of their decisions, and how far off the values are that they use again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from wanlab.engine.types import BOTH, Observer, Session, StepRecord
from wanlab.runfile import Field


class Reuse(Observer):
    """With `--probe`, |reused - fresh| / |fresh| of each branch that was reused; NaN elsewhere."""

    fields = tuple(
        Field(
            f"reuse_error_{b}", (), "float64", "1", f"relative error of the {b} velocity that was reused, where probed"
        )
        for b in BOTH
    )

    def observe(self, record: StepRecord) -> dict[str, np.ndarray]:
        errors = dict.fromkeys(BOTH, np.nan)
        for branch in set(record.reused) & set(record.probes):
            fresh = record.probes[branch].float()
            length = float(fresh.norm())
            errors[branch] = float((record.reused[branch].float() - fresh).norm()) / length if length else np.nan
        return {f"reuse_error_{b}": np.asarray(error) for b, error in errors.items()}


class Declared(Observer):
    """The fields that policies declare, each called POLICY_NAME."""

    def __init__(self, names: Sequence[str], sessions: Sequence[Session]) -> None:
        """names  of the policies, in the order of the sessions"""
        self._fields: dict[str, Field] = {}
        for k, (name, session) in enumerate(zip(names, sessions, strict=True)):
            again = names[:k].count(name)
            prefix = name.replace("-", "_") + (f"_{again + 1}" if again else "")
            self._fields |= {f"{k}/{f.name}": replace(f, name=f"{prefix}_{f.name}") for f in session.fields}
        self.fields = tuple(self._fields.values())

    def observe(self, record: StepRecord) -> dict[str, np.ndarray]:
        unknown = sorted(set(record.notes) - set(self._fields))
        if unknown:
            raise KeyError(f"a policy reports '{unknown[0].partition('/')[2]}', which it does not declare")
        return {self._fields[key].name: value for key, value in record.notes.items()}
