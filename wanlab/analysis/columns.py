"""What a run file holds for each step, one value a step, checked before it is used."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanlab.errors import WanlabError
from wanlab.runfile import Run

_TEXT_BYTES = 64  # of a word; what a run writes has 16 at most


def numbers(run: Run, name: str) -> NDArray[np.float64]:
    """A number each step [steps]. Raises WanlabError where the file has something else."""
    return np.asarray(_column(run, name, "fiub"), np.float64)


def words(run: Run, name: str) -> NDArray[np.str_]:
    """A word each step [steps]. Raises WanlabError where the file has something else."""
    return np.asarray(_column(run, name, "SU"), np.str_)


def is_column(run: Run, name: str) -> bool:
    """Whether it is one number or word each step."""
    data = run[name]
    kind, size = data.dtype.kind, data.dtype.itemsize
    return data.dims == ("step",) and (kind in "fiub" or (kind in "SU" and size <= _TEXT_BYTES))


def _column(run: Run, name: str, kinds: str) -> NDArray[Any]:
    data = run[name]
    if not is_column(run, name) or data.dtype.kind not in kinds:
        what = "number" if kinds == "fiub" else "word"
        raise WanlabError(f"{run.path}: '{name}' is not one {what} a step", "make it again, or take another copy")
    return np.asarray(data[...])
