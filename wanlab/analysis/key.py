"""What runs must have in common to be pooled in one verdict."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from wanlab.runfile import Run


@dataclass(frozen=True)
class Key:
    """What runs must have in common to be pooled; "" or None where that is not known."""

    model: str
    steps: int
    frames: int
    size: str = ""
    shift: float | None = None
    schedule: str = ""
    solver: str = ""
    guidance: str = ""
    guider: str = ""
    dtype: str = ""

    @classmethod
    def of(cls, run: Run) -> Key:
        """The key of an open run file."""
        spec, shift = run.spec, run.attrs.get("shift")
        return cls(
            model=spec.model,
            steps=spec.steps,
            frames=spec.frames,
            size=f"{spec.width}x{spec.height}",
            shift=float(shift) if isinstance(shift, int | float) else spec.shift,
            schedule=spec.schedule,
            solver=spec.solver,
            guidance=",".join(f"{g:g}" for g in dict.fromkeys(spec.guidance)),
            guider=str(spec.guider),
            dtype=spec.dtype,
        )

    def __str__(self) -> str:
        return f"{self.model}, {self.steps} steps, {self.frames} frames"


def titles(keys: Iterable[Key]) -> dict[Key, str]:
    """What to call each: model, steps and frames, and whatever else tells it from another of the same."""
    known = list(dict.fromkeys(keys))
    named = {}
    for key in known:
        alike = [k for k in known if str(k) == str(key)]
        apart = [f.name for f in fields(Key) if len({getattr(k, f.name) for k in alike}) > 1]
        named[key] = ", ".join([str(key), *(f"{name} {getattr(key, name)}" for name in apart)])
    return named
