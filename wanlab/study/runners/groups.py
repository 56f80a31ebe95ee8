"""The unit that processes and machines share out: the runs of one prompt and seed, timed against each other.

Any number of processes may work on one folder. Each claims a group before it samples it, by a lock that ends with its
process, so a group that a killed one leaves is taken over, from its last finished step.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from wanlab import files
from wanlab.errors import UsageError
from wanlab.spec import RunSpec
from wanlab.spec.run import short

TORCHRUN = ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # set beside RANK by what starts processes that share a clip
PAUSE = 0.5  # seconds between looks at what another process has claimed or writes
Stamp = tuple[int, int] | None


@dataclass(frozen=True)
class PairGroup:
    """Runs that belong to one process."""

    runs: tuple[tuple[RunSpec, Path], ...]
    """In the order in which they are sampled, each with its place."""
    key: Path
    """The place of one of them, the same whatever else is compared with it: the baseline's."""


@contextmanager
def claim(group: PairGroup) -> Iterator[bool]:
    """Whether the group is this process's while inside: False where another process has it. Raises WanlabError."""
    with _lock(group.key.with_name(f".{group.key.stem}.lock")) as mine:
        yield mine


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Be the only process that writes results into a folder while inside; waits for it. Raises WanlabError."""
    while True:
        with _lock(folder / ".results.lock") as mine:
            if mine:
                yield
                return
        time.sleep(PAUSE)


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    files.make_folder(path.parent)
    try:
        lock = files.lock(path)
    except OSError as error:
        raise files.io_error("lock", path, error) from error
    try:
        yield lock is not None
    finally:
        if lock is not None:
            with suppress(OSError):
                path.unlink()
            os.close(lock)


def stamps(groups: Sequence[PairGroup]) -> dict[Path, Stamp]:
    """What tells the file in a place from another one that is put there later; None where there is none."""
    return {place: stamp(place) for group in groups for _, place in group.runs}


def stamp(place: Path) -> Stamp:
    try:
        status = place.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


# --- slices ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """Slice `number` (from 1) of `count`."""

    number: int = 1
    count: int = 1
    source: str = ""
    """The variables that it was read from, where it was not given."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """`2/8`. Raises UsageError."""
        match = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text, re.ASCII)
        if match is None:
            raise UsageError(f"--shard '{short(text, 40)}' is no shard", "write --shard 1/8 to --shard 8/8")
        number, count = int(match[1]), int(match[2])
        if not 1 <= number <= count:
            last = max(count, 1)
            raise UsageError(f"there is no shard {number} of {count}", f"the shards are 1/{last} to {last}/{last}")
        return cls(number, count)

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """What a SLURM array, or RANK and WORLD_SIZE, say; the whole where nothing does. Raises UsageError.

        RANK and WORLD_SIZE of `torchrun` are another thing: its processes share one clip.
        """

        def number(name: str, default: str) -> int:
            value = environment.get(name, default)
            if not re.fullmatch(r"\d{1,9}", value, re.ASCII):
                raise UsageError(f"{name}={short(value, 40)} is no number", "unset it, or give --shard I/N")
            return int(value)

        if "SLURM_ARRAY_TASK_ID" in environment:
            task, least, most, count = (
                number(f"SLURM_ARRAY_TASK_{name}", default)
                for name, default in (("ID", ""), ("MIN", "0"), ("MAX", "0"), ("COUNT", "1"))
            )
            step = max(number("SLURM_ARRAY_TASK_STEP", "1"), 1)
            if least <= task <= most == least + step * (count - 1):
                return cls((task - least) // step + 1, count, "SLURM_ARRAY_TASK_ID")
            return cls()  # some tasks that are sent again: they share what is missing
        if {"RANK", "WORLD_SIZE"} <= set(environment) and not set(TORCHRUN) & set(environment):
            index, count = number("RANK", ""), number("WORLD_SIZE", "")
            if not index < count:
                raise UsageError(f"there is no RANK {index} of WORLD_SIZE {count}", "unset them, or give --shard I/N")
            return cls(index + 1, count, "RANK and WORLD_SIZE")
        return cls()

    def of(self, groups: Sequence[PairGroup]) -> list[PairGroup]:
        """Its groups: neighbours, so that the order of the methods rotates within each shard too."""
        bounds = [k * len(groups) // self.count for k in (self.number - 1, self.number)]
        return list(groups[slice(*bounds)])

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"
