"""What a file is by its name, and whether it is there."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path, PurePath

from wanlab.errors import UsageError

RUN_FILES = (".h5", ".hdf5")
VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")


def is_run_file(path: str | PathLike[str]) -> bool:
    """Whether a name is a run file's: `r.h5`, `R.H5`, `r.hdf5`."""
    return PurePath(path).suffix.lower() in RUN_FILES


def check_result(given: Path) -> None:
    """Raise UsageError unless the path is a folder, or there and called as a run file or an analysis is."""
    if os.path.isdir(given):
        return
    if not os.path.lexists(given):
        raise UsageError(f"there is no {given}", "name folders that wanlab wrote, or run files")
    if given.suffix not in (".h5", ".json"):
        raise UsageError(f"{given} is no run file and no comparison or continuity analysis", "name one, or a folder")
