"""The observers: each declares its fields and reads records."""

from __future__ import annotations

from wanlab.engine.observers.cost import Cost
from wanlab.engine.observers.guidance import Guidance
from wanlab.engine.observers.latents import Latents
from wanlab.engine.types import Observer
from wanlab.spec import RecordSpec


def begin(record: RecordSpec, total: int) -> list[Observer]:
    """The observers of a run of `total` steps."""
    made: list[Observer] = [Cost(), Guidance()]
    if record.level != "metrics":
        made.append(Latents(record, total))
    return made
