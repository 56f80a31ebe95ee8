"""The observers: each declares its fields and reads records."""

from __future__ import annotations

from collections.abc import Sequence

from wanlab.engine.observers.cost import Cost
from wanlab.engine.observers.guidance import Guidance
from wanlab.engine.observers.latents import Latents
from wanlab.engine.observers.reuse import Declared, Reuse
from wanlab.engine.types import Observer, Session
from wanlab.spec import RunSpec


def begin(spec: RunSpec, total: int, sessions: Sequence[Session]) -> list[Observer]:
    """The observers of a run of `total` steps."""
    latents = spec.record.level != "metrics"
    declared = Declared([p.name for p in spec.policies], sessions, latents=latents)
    observers: list[Observer] = [Cost(), Guidance(), Reuse(sessions), declared]
    if latents:
        observers.append(Latents(spec.record, total))
    return observers
