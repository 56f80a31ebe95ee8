"""How figures are written beside the PNGs: for papers, at a stated size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wanlab.errors import UsageError
from wanlab.registry import suggest

KINDS = ("pdf", "svg")
WIDTHS = (2.0, 20.0)  # inches: below the first the letters take the room


@dataclass(frozen=True)
class Drawn:
    """Vector graphics."""

    kind: str = ""
    """pdf or svg; "" for none."""
    width: float | None = None
    """Inches; None for the PNG's."""

    @classmethod
    def parse(cls, text: str | None) -> Drawn:
        """`pdf`, or `pdf:6.75` for 6.75 inches. Raises UsageError."""
        if text is None:
            return cls()
        kind, sized, width = text.partition(":")
        if kind not in KINDS:
            raise UsageError(f"--figures '{kind[:40]}' is unknown", suggest(kind, KINDS))
        if not sized:
            return cls(kind)
        try:
            inches = float(width)
        except ValueError:
            inches = 0.0
        if not WIDTHS[0] <= inches <= WIDTHS[1]:
            hint = f"give {WIDTHS[0]:g} to {WIDTHS[1]:g}, as --figures {kind}:6.75"
            raise UsageError(f"--figures: '{width[:20]}' is no width in inches", hint)
        return cls(kind, inches)

    def beside(self, files: Iterable[Path]) -> list[Path]:
        """The files that were drawn beside these."""
        if not self.kind:
            return []
        beside = [path.with_suffix(f".{self.kind}") for path in files if path.suffix == ".png"]
        return [path for path in beside if path.is_file()]


PNG_ONLY = Drawn()
