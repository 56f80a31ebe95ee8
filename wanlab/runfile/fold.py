"""Folding: the shards of a run become one sealed HDF5 file."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import signal
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wanlab.errors import WanlabError
from wanlab.runfile.fields import FORMAT_VERSION, MAX_ATTRIBUTES, MIB, NAME, STEP, Array, Field, check_text
from wanlab.runfile.shards import load_shard, shapes_in

_CHUNK_BYTES = 16 * MIB  # the most a chunk written here holds
_SAMPLE_BYTES = MIB // 8  # tried of an array, in pieces: of 1 MiB it was a quarter of the time of folding `tiny`'s runs
_GZIP_PAYS = 0.75  # noise-like latents deflate to .86 of their size at 1/15 of the disk's speed: not worth it
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)  # what may end a program: by the last a first one is repeated
SEAL = re.compile(rb"\nwanlab-seal sha256:([0-9a-f]{64}) bytes:([0-9a-f]{16})\n\Z")
SEAL_BYTES = 1 + 12 + 7 + 64 + 7 + 16 + 1


def _chunk(dims: Sequence[str], shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """One step, and of spatial data one frame, so that reading either touches nothing else."""
    if len(shape) == 1:
        chunk = list(shape)
    else:
        inner = len(dims) - (dims[0] == STEP)
        chunk = [
            1 if d == STEP or (inner >= 3 and d.endswith("frame")) else n for d, n in zip(dims, shape, strict=True)
        ]
    while math.prod(chunk) * itemsize > _CHUNK_BYTES:
        widest = chunk.index(max(chunk))
        chunk[widest] = -(-chunk[widest] // 2)
    return tuple(chunk)


def _gzip_pays(sample: Array) -> bool:
    pieces = np.array_split(np.ascontiguousarray(sample).reshape(-1), 8)
    flat = np.concatenate([piece[: _SAMPLE_BYTES // 8 // sample.itemsize] for piece in pieces])
    shuffled = flat.view("u1").reshape(-1, sample.itemsize).T.tobytes()
    return len(zlib.compress(shuffled, 1)) < _GZIP_PAYS * len(shuffled)


def encode_attrs(attrs: Mapping[str, Any], reserved: bool = False) -> dict[str, str | int | float]:
    """Attributes as they are stored: str, int and float under their name, all else as JSON under name + `_json`."""
    stored: dict[str, str | int | float] = {}
    for name, value in attrs.items():
        taken = reserved and name in ("status", "spec_json", "spec", "spec_digest", "CLASS", "NAME")
        if taken or not NAME.match(name) or (reserved and name.endswith("_json")):
            raise WanlabError(f"'{name}' is no name for an attribute of a run", "choose another")
        if isinstance(value, str) or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            stored[name] = value
        else:
            try:
                stored[name + "_json"] = json.dumps(value, sort_keys=True, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise WanlabError(f"attribute '{name}' is not JSON: {error}", "use text, numbers, lists") from error
    if len(stored) > MAX_ATTRIBUTES - 8:
        raise WanlabError(f"{len(stored)} attributes for one run", "put related ones in a dictionary")
    for name, value in stored.items():
        check_text(name, value)
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise WanlabError(f"attribute '{name}' = {value} is beyond 64 bits", "use text")
    return stored


def _put(element: Any, attrs: Mapping[str, Any]) -> None:
    """Set attributes; text of a fixed length, since text of a variable length is kept where no checksum covers it."""
    for name, value in attrs.items():
        if isinstance(value, str):
            raw = value.encode()
            element.attrs.create(name, np.array(raw, dtype=h5py.string_dtype("utf-8", max(1, len(raw)))))
        elif isinstance(value, tuple):
            raws = [v.encode() for v in value]
            width = max(map(len, raws))
            element.attrs.create(name, np.array(raws, dtype=h5py.string_dtype("utf-8", width)))
        else:
            element.attrs.create(name, value)


def _dataset(
    group: Any,
    field: Field,
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    scales: Mapping[str, Any],
    sample: Array,
) -> Any:
    """An empty dataset with its filters, attributes and named dimensions."""
    if not dims:  # a scalar cannot be chunked; compact keeps it in the object header, under that one's checksum
        create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        create.set_layout(h5py.h5d.COMPACT)
        create.set_obj_track_times(False)  # as h5py has it elsewhere: equal runs are equal files
        space = h5py.h5s.create(h5py.h5s.SCALAR)
        kind = h5py.h5t.py_create(field.stored, logical=True)
        dataset = h5py.Dataset(h5py.h5d.create(group.id, field.name.encode(), kind, space, create))
    else:
        gzip = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if _gzip_pays(sample) else {}
        dataset = group.create_dataset(
            field.name,
            shape,
            field.stored,
            chunks=_chunk(dims, shape, field.stored.itemsize),
            fletcher32=True,
            fillvalue=field.missing if dims[0] == STEP else None,
            **gzip,
        )
    # Not "S8" in h5py's own words: a numpy type string tells text and numbers apart for any reader.
    attrs: dict[str, Any] = {"encoding-type": "array", "encoding-version": "1"}
    attrs |= {"units": field.unit, "long_name": field.doc or field.name}
    if dims:
        attrs["dims"] = dims
    if field.dtype == "bool":
        attrs["values"] = "bool"
    _put(dataset, attrs)
    for axis, dim in enumerate(dims):
        dataset.dims[axis].attach_scale(scales[dim])
    return dataset


class _Sink(io.RawIOBase):
    """The file HDF5 writes to. After a failure it takes everything and keeps nothing.

    HDF5 told of a full disk cannot close its file any more, and crashes the process as that exits. So it is not
    told: the failure waits in `error`, and `check` raises it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = open(path, "x+b", buffering=0)  # noqa: SIM115 - closed in close()
        self._size = 0
        self.error: OSError | None = None

    def check(self) -> None:
        if self.error is not None:
            raise self.error

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        at = self._file.tell()
        try:
            done = 0
            while self.error is None and done < len(view):
                done += self._file.write(view[done:])
        except OSError as error:
            self.error = error
        self._size = max(self._size, at + len(view))
        self._file.seek(at + len(view))
        return len(view)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and (count := self._file.readinto(view[done:])):
            done += count
        view[done:] = bytes(len(view) - done)
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(self._size if whence == os.SEEK_END else offset)

    def tell(self) -> int:
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        self._size = self._file.tell() if size is None else size
        try:
            self._file.truncate(self._size)
        except OSError as error:
            self.error = self.error or error
        return self._size

    def flush(self) -> None:
        """Nothing is buffered here."""

    def close(self) -> None:
        if not self.closed:
            self._file.close()
            super().close()


def _sizes(
    total: int,
    kept: Sequence[Field],
    shapes: Mapping[str, Mapping[int, tuple[int, ...]]],
    final: Mapping[Field, Array],
) -> dict[str, int]:
    """Every dimension's size: the largest over the steps; final arrays must have exactly that. Raises WanlabError."""
    sizes: dict[str, int] = {STEP: total} if total else {}
    for dims, shape in [(f.dims, s) for f in kept for s in shapes[f.name].values()] + [
        (f.dims, v.shape) for f, v in final.items()
    ]:
        for dim, size in zip(dims, shape, strict=True):
            sizes[dim] = max(size, sizes.get(dim, 0))
    for field, value in final.items():
        for dim, size in zip(field.dims, value.shape, strict=True):
            if size != sizes[dim]:
                raise WanlabError(
                    f"dimension '{dim}' is {size} in '{field.name}' and {sizes[dim]} elsewhere",
                    "name them apart",
                )
    return sizes


def _write_scales(file: Any, sizes: Mapping[str, int]) -> dict[str, Any]:
    """One coordinate dataset a dimension: 0, 1, 2, …"""
    scales: dict[str, Any] = {}
    for dim, size in sizes.items():
        coordinate = np.arange(size, dtype="<i4")
        scale = file.create_dataset(dim, data=coordinate, chunks=(size,), fletcher32=True)
        scale.make_scale(dim)
        _put(scale, {"encoding-type": "dimension", "encoding-version": "1", "dims": (dim,)})
        _put(scale, {"units": "1", "long_name": f"index along {dim}"})
        scales[dim] = scale
    return scales


@contextmanager
def held_signals() -> Iterator[Callable[[], None]]:
    """Signals that end a program wait inside, until the function that this gives is called, or the end: HDF5 crashes
    when the exception that one raises comes out of a function that it calls."""
    if threading.current_thread() is not threading.main_thread():  # signals are handled in that one alone
        yield lambda: None
        return
    waiting: list[int] = []
    handlers: dict[int, Any] = {n: h for n in ENDING if (h := signal.getsignal(n)) is not None}

    def obey() -> None:
        while waiting:
            number = waiting.pop(0)
            if callable(handler := handlers[number]):
                handler(number, None)
            elif handler == signal.SIG_DFL:
                signal.signal(number, handler)
                signal.raise_signal(number)

    for number in handlers:
        signal.signal(number, lambda number, _: waiting.append(number))
    try:
        yield obey
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        obey()


def fold(
    target: Path,
    directory: Path,
    total: int,
    fields: Sequence[Field],
    final: Mapping[Field, Array],
    attrs: Mapping[str, str | int | float],
) -> None:
    """Write the finished file from the shards of steps 0 … total-1. One step is in memory at a time."""
    target.unlink(missing_ok=True)
    shards = [directory / f"step-{k:06d}.wls" for k in range(total)]
    shapes: dict[str, dict[int, tuple[int, ...]]] = {f.name: {} for f in fields}  # field -> step -> shape
    ranks = {f.name: f.dims for f in fields}
    samples: dict[str, Array] = {}  # the first value of each field, to decide on gzip
    for step, shard in enumerate(shards):
        for name, found in shapes_in(shard).items():
            if name not in shapes or len(found) != len(ranks[name]) or 0 in found:
                raise WanlabError(f"{shard} is damaged: its '{name}' is not as declared", "remove it and run again")
            shapes[name][step] = found
            if name not in samples:
                samples |= {n: v for n, v in load_shard(shard)[0].items() if n not in samples}
    kept = [f for f in fields if total and (not f.dims or shapes[f.name])]
    sizes = _sizes(total, kept, shapes, final)
    with held_signals() as obey, _Sink(target) as sink, h5py.File(sink, "w", libver=("v110", "v110")) as file:
        _put(file, {"encoding-type": "wanlab-run", "encoding-version": FORMAT_VERSION, **attrs})
        groups = {name: file.create_group(name, track_order=True) for name in ("steps", "final")}
        for name, group in groups.items():
            _put(group, {"encoding-type": name, "encoding-version": "1"})
        scales = _write_scales(file, sizes)
        written: dict[str, Any] = {}
        for field in kept:
            recorded = shapes[field.name]
            shape = (total, *(sizes[d] for d in field.dims))
            sample = samples.get(field.name, np.zeros(1, field.stored))
            dataset = _dataset(groups["steps"], field, (STEP, *field.dims), shape, scales, sample)
            dataset.attrs.create("recorded_steps", np.array(sorted(recorded), "<i4"))
            if any(s != shape[1:] for s in recorded.values()):
                dataset.attrs.create("recorded_shapes", np.array([recorded[k] for k in sorted(recorded)], "<i4"))
            gaps = len(recorded) < total or "recorded_shapes" in dataset.attrs
            if gaps and field.stored.kind in "iu":
                dataset.attrs.create("_FillValue", field.missing, dtype=field.stored)
            written[field.name] = dataset
        scalars = {f.name: np.full(total, f.missing, f.stored) for f in kept if not f.dims}
        for step, shard in enumerate(shards):
            sink.check()
            obey()
            for name, value in load_shard(shard)[0].items():
                if name in scalars:
                    scalars[name][step] = value
                else:
                    written[name][(step, *(slice(0, n) for n in value.shape))] = value
        for name, values in scalars.items():
            written[name][...] = values
        for field, value in final.items():
            dataset = _dataset(groups["final"], field, field.dims, value.shape, scales, value)
            dataset[...] = value
        file.close()
        sink.check()


def file_digest(path: Path, length: int) -> str:
    made = hashlib.sha256()
    with open(path, "rb") as file:
        while length > 0 and (block := file.read(min(length, 4 * MIB))):
            made.update(block)
            length -= len(block)
    return made.hexdigest()


def append_seal(path: Path) -> None:
    """Append the seal: HDF5 covers most bytes with checksums, but not the heap of dimension references, nor gaps."""
    length = path.stat().st_size
    seal = b"\nwanlab-seal sha256:%s bytes:%016x\n" % (file_digest(path, length).encode(), length)
    with open(path, "ab") as file:
        file.write(seal)
        file.flush()
        os.fsync(file.fileno())
