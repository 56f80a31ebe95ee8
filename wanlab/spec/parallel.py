"""How the processes of one run share its work: `--parallel`, read and written."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Self

from wanlab.errors import UsageError

AUTO, NONE = "auto", "none"
MAX_RANKS = 4096


def processes() -> int:
    """How many processes `torchrun` started for this job; 1 without it."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    size = os.environ.get("WORLD_SIZE", "")
    return int(size) if all(name in os.environ for name in names) and size.isdecimal() else 1


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Ranks by what they share: cfg x ulysses x ring of them.

    `cfg` is outermost: ranks 0 to ulysses x ring - 1 have the first branch.
    """

    cfg: int = 1
    """2: each branch on its half of the ranks (CFG parallel)."""
    ulysses: int = 1
    """Ranks that have some of the tokens outside attention and some of the heads inside it (S. A. Jacobs et al.,
    "DeepSpeed Ulysses", 2023)."""
    ring: int = 1
    """Ranks that have some of the tokens everywhere, keys and values going round (H. Liu et al., "Ring Attention with
    Blockwise Transformers", 2023)."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """`none`, or some of `cfg=2,ulysses=N,ring=N`. Raises UsageError."""
        how = "write auto, none, cfg=2, ulysses=N, ring=N, or several such as cfg=2,ulysses=4"
        if text == NONE:
            return cls()
        degrees: dict[str, int] = {}
        for part in str(text)[:200].split(","):
            match = re.fullmatch(r"\s*(cfg|ulysses|ring)\s*=\s*(\d{1,4})\s*", part, re.ASCII)
            if match is None or match[1] in degrees:
                raise UsageError(f"--parallel {str(text)[:40]!a} is no layout", how)
            degrees[match[1]] = int(match[2])
        if degrees.get("cfg", 1) not in (1, 2):
            raise UsageError(f"--parallel cfg={degrees['cfg']}: there are two branches", "use cfg=2, or leave cfg out")
        for name, degree in degrees.items():
            if not 1 <= degree <= MAX_RANKS:
                raise UsageError(f"--parallel {name}={degree} is out of range", f"use 1 to {MAX_RANKS}")
        return cls(**degrees)

    @property
    def split(self) -> int:
        """Ranks that share the tokens of one branch."""
        return self.ulysses * self.ring

    @property
    def ranks(self) -> int:
        """Ranks in all."""
        return self.cfg * self.split

    def __str__(self) -> str:
        degrees = {"cfg": self.cfg, "ulysses": self.ulysses, "ring": self.ring}
        return ",".join(f"{name}={n}" for name, n in degrees.items() if n > 1) or NONE
