"""Reading a run: opened with every check, its data read only where it is indexed."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np
from numpy.typing import DTypeLike

from wanlab.errors import WanlabError
from wanlab.files import MAX_PARSED, json_bytes
from wanlab.runfile import fields as limits
from wanlab.runfile.checks import attributes_of, check_place, reading, refuse, walk
from wanlab.runfile.fields import MAX_DIMENSION, MAX_RANK, MAX_STEPS, STEP, Array
from wanlab.runfile.schema import SCHEMAS

if TYPE_CHECKING:
    from wanlab.spec import RunSpec


class Data:
    """One dataset of a run, read only where it is indexed.

    name, group ("steps" or "final"), dims, shape, dtype, unit, doc, chunks, stored_bytes (in the file),
    recorded (per-step data: the steps that have a value; final data: empty)

    data[k]  of per-step data: step k's value, without the padding when its shape varies. A number a step lacks is
             NaN (an integer: its fill value); an array a step lacks raises WanlabError.
    data[…]  any other index goes to h5py as it is. np.asarray(data) reads all of it. Text comes as str.
    """

    def __init__(self, run: Run, group: str, name: str, dataset: Any, attrs: Mapping[str, Any]) -> None:
        self._run, self._dataset = run, dataset
        self.name, self.group = name, group
        self.shape: tuple[int, ...] = dataset.shape
        dims = attrs.get("dims", ())
        if not isinstance(dims, tuple):
            raise refuse(run.path, f"the dims of {name} are no list of names")
        self.dims: tuple[str, ...] = dims
        self.stored_kind: str = dataset.dtype.kind
        self.dtype: np.dtype[Any] = dataset.dtype
        self.unit, self.doc = str(attrs.get("units", "1")), str(attrs.get("long_name", name))
        self.chunks: tuple[int, ...] | None = dataset.chunks
        self.stored_bytes = int(dataset.id.get_storage_size())
        self._by_step = group == "steps" and len(self.shape) > 0
        self.recorded: tuple[int, ...] = ()
        self._shapes: dict[int, tuple[int, ...]] = {}
        if self._by_step:
            steps = attrs.get("recorded_steps")
            self.recorded = tuple(range(self.shape[0])) if steps is None else tuple(int(k) for k in np.ravel(steps))
            shapes = attrs.get("recorded_shapes")
            if shapes is not None:
                self._shapes = {k: tuple(int(n) for n in s) for k, s in zip(self.recorded, shapes, strict=True)}
        gaps = self._by_step and (len(self.recorded) < self.shape[0] or bool(self._shapes))
        if attrs.get("values") == "bool" and not gaps:
            self.dtype = np.dtype(bool)

    def problems(self) -> list[str]:
        """What the declarations say that cannot be: one line each."""
        found = []
        if len(self.dims) != len(self.shape):
            found.append(f"{self.name}: {len(self.dims)} dims for rank {len(self.shape)}")
        if (self.dims[:1] == (STEP,)) != (self.group == "steps"):
            found.append(f"{self.name}: dims {self.dims} in group {self.group}")
        total = self.shape[0] if self.shape else 0
        if any(not 0 <= k < total for k in self.recorded) or list(self.recorded) != sorted(set(self.recorded)):
            found.append(f"{self.name}: recorded_steps are not increasing steps of this run")
        for shape in self._shapes.values():
            if len(shape) != len(self.shape) - 1 or any(
                not 0 < n <= m for n, m in zip(shape, self.shape[1:], strict=False)
            ):
                found.append(f"{self.name}: a recorded shape {shape} is not within {self.shape[1:]}")
                break
        return found

    def shape_at(self, step: int) -> tuple[int, ...]:
        """The shape of what per-step data recorded at a step: smaller than `shape` where lengths vary."""
        return self._shapes.get(step, self.shape[1:])

    def __getitem__(self, key: Any) -> Array:
        if self._by_step and isinstance(key, (int, np.integer)):
            k = int(key) + (self.shape[0] if key < 0 else 0)
            if not 0 <= k < self.shape[0]:
                raise WanlabError(f"{self.name} has no step {key}", f"steps are 0 to {self.shape[0] - 1}")
            if k not in self.recorded and len(self.shape) > 1:
                steps = ", ".join(map(str, self.recorded[:8])) + (", …" if len(self.recorded) > 8 else "")
                raise WanlabError(f"{self.name} was not recorded at step {k}", f"it was at steps {steps}")
            key = (k, *(slice(0, n) for n in self._shapes.get(k, ())))
            size = math.prod(self.shape[1:])
        else:
            size = math.prod(self.shape)  # an upper bound, exact for [...]
            first = key[0] if isinstance(key, tuple) and key else key
            if self.shape and isinstance(first, (int, np.integer, slice)):
                whole = range(self.shape[0])
                size = size // max(1, self.shape[0]) * (len(whole[first]) if isinstance(first, slice) else 1)
        most = min(limits.MAX_READ_BYTES, max(2**30, 64 * self._run.path.stat().st_size))
        if size * self._dataset.dtype.itemsize > most:
            raise WanlabError(f"{self.name} is too large to read at once: {self.shape}", "read it in parts")
        with reading(self._run.path):
            value = np.asarray(self._dataset[key])
        if value.dtype.kind == "S":
            return np.asarray(np.char.decode(value, "utf-8", "replace"))
        return value.astype(bool) if self.dtype == bool else value

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        value = self[...]
        return value if dtype is None else value.astype(dtype)

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0

    def __iter__(self) -> Iterator[Array]:
        """Per-step data: the recorded values in order. Final data: along the first dimension."""
        return (self[k] for k in (self.recorded if self._by_step else range(len(self))))

    def __repr__(self) -> str:
        return f"<{self.group}/{self.name} {self.dims} {self.shape} {self.dtype}>"


class Run:
    """A finished run file, read lazily; a context manager. `run["x_t"][k]` is step k's x_t.

    Opening checks that the file is what a run file may be (it may come from anyone) and reads no data. Raises
    WanlabError when it is not, or cannot be read.

    attrs      the root attributes, JSON ones decoded: "spec", "spec_digest", "status", and what the writer was given
    data       every dataset by name, per-step ones first
    dims       every dimension's size; `steps` is that of "step"
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with reading(self.path):
            check_place(self.path)
            with open(self.path, "rb") as raw:  # also keeps an HDF5 file behind a user block out
                if raw.read(8) != b"\x89HDF\r\n\x1a\n":
                    raise WanlabError(f"{self.path} is not an HDF5 file", "name a finished .h5 file")
            self._file = h5py.File(self.path, "r", locking="best-effort")
        try:
            with reading(self.path):
                self._open()
        except BaseException:
            with contextlib.suppress(Exception):  # of bad metadata the library also fails to let go
                self._file.close()
            raise

    def _open(self) -> None:
        found = walk(self.path, self._file)
        root = attributes_of(self.path, self._file)
        if root.get("encoding-type") != "wanlab-run":
            raise WanlabError(f"{self.path} is not a wanlab run file", "name a file that wanlab generate made")
        self.version = str(root.get("encoding-version"))
        if self.version not in SCHEMAS:
            named = " ".join(self.version.split())[:40]
            raise WanlabError(
                f"{self.path} has format version {named}; this wanlab reads {' and '.join(SCHEMAS)}",
                "use a newer wanlab",
            )
        self.spec_json = str(root.get("spec_json", ""))
        self.digest = str(root.get("spec_digest", ""))
        self.status = str(root.get("status", ""))
        self.attrs: dict[str, Any] = {}
        if sum(json_bytes(v) for k, v in root.items() if k.endswith("_json") and isinstance(v, str)) > MAX_PARSED:
            raise refuse(self.path, f"its attributes take over {MAX_PARSED >> 20} MiB of memory")
        for name, value in root.items():
            if name.endswith("_json"):
                try:
                    self.attrs[name.removesuffix("_json")] = json.loads(value)
                except (TypeError, ValueError, RecursionError) as error:
                    raise refuse(self.path, f"attribute '{name}' is not JSON: {error}") from error
            elif not name.startswith("encoding-"):
                self.attrs[name] = value
        self.data: dict[str, Data] = {}
        self.dims: dict[str, int] = {}
        problems: list[str] = []
        for where, element in found.items():
            parent, _, name = where.strip("/").rpartition("/")
            attrs = attributes_of(self.path, element)
            if not isinstance(element, h5py.Dataset):
                continue
            if parent == "" and attrs.get("encoding-type") == "dimension":
                self.dims[name] = element.shape[0] if element.ndim == 1 else -1
                if not 0 < self.dims[name] <= (MAX_STEPS if name == STEP else MAX_DIMENSION):
                    raise refuse(self.path, f"dimension '{name}' has size {self.dims[name]}")
            elif parent in ("steps", "final") and attrs.get("encoding-type") == "array":
                most = (MAX_STEPS if parent == "steps" else MAX_DIMENSION, *[MAX_DIMENSION] * MAX_RANK)
                if any(n > m for n, m in zip(element.shape, most, strict=False)):
                    raise refuse(self.path, f"{where} has shape {element.shape}")
                if name in self.data:
                    problems.append(f"'{name}' is there twice")
                self.data[name] = Data(self, parent, name, element, attrs)
                problems += self.data[name].problems()
        for data in self.data.values():
            for dim, size in zip(data.dims, data.shape, strict=False):
                if self.dims.get(dim) != size:
                    problems.append(f"{data.name}: dimension '{dim}' is {size}, declared {self.dims.get(dim)}")
        problems += SCHEMAS[self.version].problems(self.data, self.attrs)
        if problems:
            raise refuse(self.path, problems[0])
        self.data = dict(sorted(self.data.items(), key=lambda item: item[1].group != "steps"))

    @property
    def steps(self) -> int:
        return self.dims.get(STEP, 0)

    @property
    def spec(self) -> RunSpec:
        """The specification that made this run. Raises WanlabError when this version cannot read it."""
        from wanlab.spec import RunSpec

        with reading(self.path):
            try:
                return RunSpec.from_json(self.spec_json)
            except WanlabError as error:  # of a file it is no wrong usage
                raise WanlabError(f"{self.path}: {error.message}", "make it again, or take another copy") from error

    @property
    def video(self) -> Data:
        """The frames: uint8 (frame, height, width, rgb)."""
        return self["video"]

    def __getitem__(self, name: str) -> Data:
        if name not in self.data:
            raise WanlabError(f"{self.path} holds no '{name}'", f"it holds {', '.join(self.data) or 'no data'}")
        return self.data[name]

    def __contains__(self, name: object) -> bool:
        return name in self.data

    def close(self) -> None:
        with reading(self.path):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def completed(path: str | os.PathLike[str], digest: str) -> bool:
    """Whether `path` is a finished run of this digest. Raises WanlabError when there is a file that is no run."""
    if not Path(path).exists():
        return False
    with Run(path) as run:
        return run.status == "complete" and run.digest == digest
