"""Verifying a run file: every byte, every checksum."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wanlab.errors import WanlabError
from wanlab.runfile.checks import check_place, reading, walk
from wanlab.runfile.fold import SEAL, SEAL_BYTES, file_digest
from wanlab.runfile.reader import Run


def verify(path: str | os.PathLike[str]) -> list[str]:
    """Read everything, checking every checksum; returns the problems found, none for a sound file.

    Raises WanlabError when there is no file to look at.
    """
    path = Path(path)
    problems: list[str] = []
    with reading(path):
        check_place(path)
        size = path.stat().st_size
        with open(path, "rb") as file:
            file.seek(max(0, size - SEAL_BYTES))
            seal = SEAL.search(file.read())
        if seal is None:
            problems.append("the seal at its end is missing: cut short, or rewritten by another program")
        elif int(seal[2], 16) != size - SEAL_BYTES:
            problems.append(f"its seal is of {int(seal[2], 16)} bytes, it has {size - SEAL_BYTES}")
        elif file_digest(path, size - SEAL_BYTES) != seal[1].decode():
            problems.append("its bytes are not those that were sealed (SHA-256 differs)")
    try:
        run = Run(path)
    except WanlabError as error:
        return [*problems, str(error)]
    with run:
        if run.status != "complete":
            problems.append(f"its status is '{run.status}'")
        for where, element in walk(path, run._file).items():
            if isinstance(element, h5py.Dataset):
                problems += _verify_dataset(path, where, element)
        for dim, size in run.dims.items():
            try:
                with reading(path):
                    if not np.array_equal(run._file[dim][...], np.arange(size)):
                        problems.append(f"/{dim} does not count 0, 1, 2, …")
            except WanlabError:
                pass  # reported above
    return problems


def _verify_dataset(path: Path, where: str, dataset: Any) -> list[str]:
    """Read every chunk that the file holds: what is absent reads as the fill value and needs no check."""
    problems: list[str] = []
    places: list[tuple[int, ...]] = []
    try:
        with reading(path):
            if dataset.chunks is None:
                dataset[...]
                return problems
            dataset.id.chunk_iter(lambda info: places.append(info.chunk_offset))
    except WanlabError as error:
        return [f"{where}: {error}"]
    for at in places:
        try:
            with reading(path):
                dataset[tuple(slice(a, a + n) for a, n in zip(at, dataset.chunks, strict=True))]
        except WanlabError as error:
            problems.append(f"{where}: chunk at {at}: {error}")
    return problems
