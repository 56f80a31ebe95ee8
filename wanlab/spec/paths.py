"""What a file is by its name."""

from __future__ import annotations

from os import PathLike
from pathlib import PurePath

RUN_FILES = (".h5", ".hdf5")
VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")


def is_run_file(path: str | PathLike[str]) -> bool:
    """Whether a name is a run file's: `r.h5`, `R.H5`, `r.hdf5`."""
    return PurePath(path).suffix.lower() in RUN_FILES
