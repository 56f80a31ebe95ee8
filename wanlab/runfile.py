"""The run file: one finished HDF5 file a run; docs/runfile.md is its specification.

While a run goes on, a directory `NAME.h5.part/` holds one immutable shard a finished step and the newest resume
state; `finish` folds them into `NAME.h5` and only then removes the directory. The reason for shards: a process
killed while it has an HDF5 file open for writing can leave that file unreadable, and no flush prevents it. A shard
is written under another name, synced and renamed, so at every instant it is either whole or absent.

Shards are plain bytes (`_pack`), not HDF5: nothing is compressed and no HDF5 call is made while sampling goes on.

Needs numpy and h5py only. Everything foreseeable that goes wrong is a `WanlabError`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import queue
import re
import shutil
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import h5py
import numpy as np
from numpy.typing import DTypeLike, NDArray

from wanlab.errors import WanlabError

if TYPE_CHECKING:
    from wanlab.spec import RunSpec

Array = NDArray[Any]
Json = Any

FORMAT_VERSION = "1"
STEP = "step"  # the leading dimension of every per-step dataset; the writer adds it

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}\Z")
_NUMBERS = (
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
)
_MIB = 2**20

# What a reader believes of a file before it allocates anything (docs/runfile.md, "Limits").
MAX_RANK = 8
MAX_STEPS = 10**6
MAX_DIMENSION = 2**24
MAX_OBJECTS = 10_000
MAX_ATTRIBUTES = 256
MAX_ATTRIBUTE_BYTES = 16 * _MIB
MAX_CHUNK_BYTES = 64 * _MIB
MAX_DATASET_BYTES = 2**40
MAX_READ_BYTES = 8 * 2**30

_WAITING_BYTES = 512 * _MIB  # memory that waiting steps may take: above it, `step` waits for the disk
_CHUNK_BYTES = 16 * _MIB  # the most a chunk written here holds
_DEFLATE_MAX = 1032  # no deflate stream expands further (zlib's documentation)
_GZIP_PAYS = 0.75  # noise-like latents deflate to .86 of their size at 1/15 of the disk's speed: not worth it
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
_NETCDF_ATTRIBUTES = {
    "DIMENSION_LIST",
    "REFERENCE_LIST",
}  # references: made for others to read, never read here

_SEAL = re.compile(rb"\nwanlab-seal sha256:([0-9a-f]{64}) bytes:([0-9a-f]{16})\n\Z")
_SEAL_BYTES = 1 + 12 + 7 + 64 + 7 + 16 + 1


@dataclass(frozen=True)
class Field:
    """One declared array: per step (its dataset gets a leading `step` dimension) or final.

    name  lower-case identifier, unique in the run file
    dims  dimension names of ONE value, without `step`; one name has one size in the whole file
    dtype "bool", a numpy integer or float name, or "S<n>" (UTF-8 text of at most n bytes)
    unit  "1" when it has none
    doc   one line; the dataset's `long_name`

    Raises WanlabError when one of these is not so.
    """

    name: str
    dims: tuple[str, ...] = ()
    dtype: str = "float32"
    unit: str = "1"
    doc: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", tuple(self.dims))
        for name in (self.name, *self.dims):
            if not _NAME.match(name):
                raise WanlabError(f"'{name}' is no name for a field or a dimension", "use letters, digits and _")
        if STEP in (self.name, *self.dims):
            raise WanlabError(f"field '{self.name}' uses the name '{STEP}'", f"the run file adds '{STEP}' itself")
        if {"steps", "final"} & set(self.dims):
            raise WanlabError(f"field '{self.name}' has a dimension 'steps' or 'final'", "these are groups")
        if len(set(self.dims)) != len(self.dims) or len(self.dims) >= MAX_RANK:
            raise WanlabError(f"field '{self.name}' has dims {self.dims}", f"name at most {MAX_RANK - 1}, each once")
        if not (self.dtype in _NUMBERS or self.dtype == "bool" or re.match(r"S[1-9]\d{0,3}\Z", self.dtype)):
            raise WanlabError(f"field '{self.name}' has dtype '{self.dtype}'", "use bool, " + ", ".join(_NUMBERS))
        _check_text("unit", self.unit)
        _check_text("doc", self.doc)

    @cached_property
    def stored(self) -> np.dtype[Any]:
        """The dtype in the file: little-endian, and bool as uint8 (netCDF has no bool)."""
        return np.dtype("u1" if self.dtype == "bool" else self.dtype).newbyteorder("<")

    @property
    def missing(self) -> Any:
        """What stands in the file where a step has no value: NaN, an integer's far end, or empty text."""
        kind = self.stored.kind
        if kind == "f":
            return math.nan
        if kind == "S":
            return b""
        return np.iinfo(self.stored).min if kind == "i" else np.iinfo(self.stored).max

    def convert(self, value: Any) -> Array:
        """A private C-contiguous copy of `value` in the stored dtype.

        Raises WanlabError when the rank differs or the values do not fit the dtype.
        """
        try:
            given = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:  # a bfloat16 or a device tensor, a ragged list
            raise WanlabError(f"'{self.name}' is no array: {error}", "hand over CPU numpy values") from error
        if given.ndim != len(self.dims):
            raise WanlabError(f"'{self.name}' has shape {given.shape}, declared {self.dims}", "declare it as it is")
        if 0 in given.shape:
            raise WanlabError(f"'{self.name}' is empty (shape {given.shape})", "leave it out of this step")
        if max(given.shape, default=1) > MAX_DIMENSION:
            raise WanlabError(f"'{self.name}' has shape {given.shape}", f"record at most {MAX_DIMENSION} along one")
        kind, target = given.dtype.kind, self.stored
        if self.dtype == "bool":
            fits = kind == "b"
        elif target.kind == "S":
            if kind == "U":
                given = np.char.encode(given, "utf-8")
            fits = given.dtype.kind == "S" and given.dtype.itemsize <= target.itemsize
        elif target.kind in "iu" and kind in "iu":
            bounds = np.iinfo(target)
            fits = int(given.min()) >= bounds.min and int(given.max()) <= bounds.max
        else:
            fits = target.kind == "f" and kind in "biuf"
        if not fits:
            raise WanlabError(f"'{self.name}' ({given.dtype}) does not fit {self.dtype}", "declare a wider dtype")
        with np.errstate(over="ignore"):
            made = np.array(given, dtype=target, order="C", copy=True)
        narrowed = target.kind == "f" and kind == "f" and target.itemsize < given.dtype.itemsize
        if narrowed and np.count_nonzero(np.isinf(made)) != np.count_nonzero(np.isinf(given)):
            raise WanlabError(f"'{self.name}' has values beyond {self.dtype}", "record it as float32")
        return made


# --- shards ----------------------------------------------------------------------------------------------------------

_MAGIC = b"WLSHARD1"


def _pack(arrays: Mapping[str, Array], notes: Json) -> list[Any]:
    """A shard's bytes: magic, header length (u64), header JSON, the arrays, CRC-32 of all that (u32)."""
    listed = {n: {"dtype": a.dtype.str, "shape": list(a.shape)} for n, a in arrays.items()}
    header = json.dumps({"arrays": listed, "notes": notes}).encode()
    parts: list[Any] = [_MAGIC, struct.pack("<Q", len(header)), header]
    parts += [a.reshape(-1).view("u1").data for a in arrays.values()]
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return [*parts, struct.pack("<I", crc)]


def _header(path: Path, data: bytes, size: int) -> tuple[dict[str, tuple[np.dtype[Any], tuple[int, ...]]], Json, int]:
    """(arrays' dtype and shape, notes, where the arrays begin) of a shard that begins with `data`."""
    try:
        if data[:8] != _MAGIC:
            raise ValueError("not a shard")
        (length,) = struct.unpack("<Q", data[8:16])
        head = json.loads(data[16 : 16 + length])
        arrays = {n: (np.dtype(a["dtype"]), tuple(map(int, a["shape"]))) for n, a in head["arrays"].items()}
        held = sum(d.itemsize * math.prod(s) for d, s in arrays.values())
        if 16 + length + held + 4 != size or any(d.hasobject or min(s, default=0) < 0 for d, s in arrays.values()):
            raise ValueError("its length is not what it declares")
        return arrays, head["notes"], 16 + length
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise WanlabError(f"{path} is damaged: {error}", "remove its directory and run again") from error


def _load_shard(path: Path) -> tuple[dict[str, Array], Json]:
    """(arrays, notes) of a shard, checked against its CRC. Raises WanlabError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _io_error("read", path, error) from error
    arrays, notes, at = _header(path, data, len(data))
    if zlib.crc32(memoryview(data)[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise WanlabError(f"{path} is damaged: wrong checksum", "remove its directory and run again")
    out: dict[str, Array] = {}
    for name, (dtype, shape) in arrays.items():
        out[name] = np.frombuffer(data, dtype, math.prod(shape), at).reshape(shape)
        at += out[name].nbytes
    return out, notes


def _shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """The arrays' shapes by name, from a shard's header alone. Raises WanlabError."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
            size = path.stat().st_size
            if len(head) == 16:
                head += file.read(min(size, struct.unpack("<Q", head[8:])[0]))
    except OSError as error:
        raise _io_error("read", path, error) from error
    return {name: shape for name, (_, shape) in _header(path, head, size)[0].items()}


def _io_error(doing: str, path: Path, error: OSError) -> WanlabError:
    remedy = {
        errno.ENOSPC: "free some space, then run the same command: it goes on from the last finished step",
        errno.EDQUOT: "free some space, then run the same command: it goes on from the last finished step",
        errno.EACCES: "choose a place you can write to",
        errno.EROFS: "choose a place you can write to",
        errno.ENOENT: "check the path",
    }
    return WanlabError(f"cannot {doing} {path}: {error.strerror or error}", remedy.get(error.errno or 0, ""))


def _write_part(path: Path, parts: Sequence[Any]) -> Path:
    """Write `path`.part; `_publish` makes it `path`."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as out:
        out.writelines(parts)
    return part


def _publish(part: Path) -> Path:
    """Sync a file written by `_write_part` and give it its name."""
    fd = os.open(part, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    target = part.with_suffix("")
    os.replace(part, target)
    return target


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def part_directory(path: str | os.PathLike[str]) -> Path:
    """Where the run that will be `path` keeps its shards until it is finished."""
    path = Path(path)
    return path.with_name(path.name + ".part")


def _index(path: Path) -> int:
    return int(path.stem.split("-")[1])


def _shards(directory: Path, kind: str) -> list[Path]:
    return sorted((p for p in directory.glob(f"{kind}-*.wls") if p.stem.split("-")[1].isdigit()), key=_index)


# --- writing ---------------------------------------------------------------------------------------------------------


class RunWriter:
    """Records one run; a context manager. Leaving it without `finish` keeps the shards, to be resumed.

    path       the finished file; its shards live in `path`.part/ until then
    spec_json  canonical JSON of the run's specification, kept as it is
    digest     of what decides the run's result; a resumed run must have the same
    attrs      more root attributes: str, int and float as they are, everything else as JSON
    fields     every per-step Field that `step` may be given
    start      the step to go on from, as `resume_point` gave it; 0 discards what an unfinished run left
    force      also discard an unfinished run of another digest
    depth      steps that may wait for the writer thread before `step` waits for it

    All methods raise WanlabError; so does the next call after the writer thread failed (a full disk).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        spec_json: str,
        digest: str,
        attrs: Mapping[str, Any] | None = None,
        fields: Sequence[Field] = (),
        start: int = 0,
        force: bool = False,
        depth: int = 16,
    ) -> None:
        self.path = Path(path)
        self.directory = part_directory(self.path)
        self._fields = _by_name(fields)
        self._attrs = dict(attrs or {})
        _encode_attrs({"spec_digest": digest, "spec_json": spec_json})
        _encode_attrs(self._attrs, reserved=True)
        self._next = start  # the step that `step` expects
        self.durable = start  # steps whose shards are on the disk: these survive anything
        self._error: BaseException | None = None
        self._closed = False
        self._lock = -1
        manifest = {
            "format": FORMAT_VERSION,
            "spec_json": spec_json,
            "digest": digest,
            "fields": [asdict(f) for f in fields],
            "resumed_at": [],
        }
        try:
            self._open(manifest, start, force)
        except OSError as error:
            self._unlock()
            raise _io_error("write", self.directory, error) from error
        except BaseException:
            self._unlock()
            raise
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._thread = threading.Thread(target=self._work, name="wanlab-runfile", daemon=True)
        self._thread.start()

    def _open(self, manifest: dict[str, Any], start: int, force: bool) -> None:
        if self.path.is_dir():
            raise WanlabError(f"{self.path} is a directory", "name a file")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WanlabError(f"{self.path} is being written by another process", "wait for it") from error
        before = _manifest(self.directory)
        if before is not None and not force:
            _same_run(self.path, before, manifest["digest"])
        if start:
            if before is None or before["fields"] != json.loads(json.dumps(manifest["fields"])):
                raise WanlabError(f"{self.directory} has nothing to resume from", "start from step 0")
            manifest["resumed_at"] = [*before["resumed_at"], start]
        # Resume states first: interrupted here, what is left is an earlier beginning, never a gap.
        for old in _shards(self.directory, "resume"):
            if _index(old) != start or not start:
                old.unlink()
        for old in reversed(_shards(self.directory, "step")):
            if _index(old) >= start:
                old.unlink()
        for old in self.directory.glob("*.part"):
            old.unlink()
        self._manifest = manifest
        target = self.directory / "manifest.json"
        _publish(_write_part(target, [json.dumps(manifest).encode()]))
        _sync_directory(self.directory)
        _sync_directory(self.directory.parent)

    def step(self, index: int, values: Mapping[str, Any], resume: Mapping[str, Any] | None = None) -> None:
        """Hand over one finished step: copied here, written by the thread.

        index   the steps come in order, each once
        values  by field name; a field that is left out has no value at this step
        resume  what the next step needs to go on: numpy arrays, and JSON for the rest; replaces the one before
        """
        self._check()
        if index != self._next:
            raise WanlabError(f"step {index} was recorded where step {self._next} was due", "record steps in order")
        unknown = sorted(set(values) - set(self._fields))
        if unknown:
            raise WanlabError(f"step {index} records undeclared fields: {', '.join(unknown)}", "declare them")
        arrays = {name: self._fields[name].convert(value) for name, value in values.items()}
        if self._queue.qsize() * sum(a.nbytes for a in arrays.values()) > _WAITING_BYTES:
            self.flush()
        self._queue.put((index, arrays, None if resume is None else _split_resume(resume)))
        self._next += 1

    def _work(self) -> None:
        """The writer thread. After a failure it only empties the queue, so that nobody waits for it."""
        stop = False
        while not stop:
            batch = [self._queue.get()]
            with contextlib.suppress(queue.Empty):  # one directory sync for all that is waiting
                while True:
                    batch.append(self._queue.get_nowait())
            steps = [item for item in batch if isinstance(item, tuple)]
            if steps and self._error is None:
                try:
                    self._commit(steps)
                except BaseException as error:  # whatever it is, the run must fail with it
                    self._error = error
            for item in batch:
                if isinstance(item, threading.Event):
                    item.set()
                stop = stop or item is None

    def _commit(self, steps: list[tuple[int, dict[str, Array], tuple[dict[str, Array], Json] | None]]) -> None:
        # All are written before the first is synced: that sync then carries most of the others along.
        parts = [
            _write_part(self.directory / f"step-{index:06d}.wls", _pack(arrays, {"step": index}))
            for index, arrays, _ in steps
        ]
        for part in parts:
            _publish(part)
        newest: Path | None = None
        for index, _, state in reversed(steps):
            if state is not None:  # after the shards that it counts on: on the disk too the renames are in this order
                newest = _publish(_write_part(self.directory / f"resume-{index + 1:06d}.wls", _pack(*state)))
                break
        _sync_directory(self.directory)
        self.durable = steps[-1][0] + 1
        if newest is not None:
            for old in _shards(self.directory, "resume"):
                if old != newest:
                    old.unlink()

    def flush(self) -> None:
        """Wait until every step handed over is on the disk."""
        self._check()
        done = threading.Event()
        self._queue.put(done)
        done.wait()
        self._check()

    def _check(self) -> None:
        if self._closed:
            raise WanlabError(f"{self.path} is closed", "open a new RunWriter")
        if self._error is not None:
            raise self._failure() from self._error

    def _failure(self) -> WanlabError:
        error = self._error
        if isinstance(error, OSError):
            return _io_error("write", self.directory, error)
        return WanlabError(f"cannot write {self.directory}: {type(error).__name__}: {error}", "")

    def finish(self, final: Mapping[Field, Any] | None = None, attrs: Mapping[str, Any] | None = None) -> Path:
        """Fold the shards, the final arrays and more root attributes into the file; returns its path.

        The directory of shards goes only after the file is on the disk under its name. A failure leaves it, so
        that the run can be finished again without sampling again.
        """
        _by_name([*self._fields.values(), *(final or {})])
        values = {field: field.convert(value) for field, value in (final or {}).items()}
        attributes = {**self._attrs, **(attrs or {})}
        if self._manifest["resumed_at"]:
            attributes["resumed_at"] = self._manifest["resumed_at"]
        encoded = _encode_attrs(attributes, reserved=True)
        encoded["spec_json"] = self._manifest["spec_json"]
        encoded["spec_digest"] = self._manifest["digest"]
        encoded["status"] = "complete"
        self.flush()
        folded = self.directory / "fold.h5.part"
        try:
            _fold(folded, self.directory, self._next, list(self._fields.values()), values, encoded)
            _seal(folded)
            os.replace(folded, self.path)
            _sync_directory(self.path.parent)
        except OSError as error:
            folded.unlink(missing_ok=True)
            raise _io_error("write", self.path, error) from error
        self.close()
        shutil.rmtree(self.directory, ignore_errors=True)  # the run is safe; what stays is only untidy
        return self.path

    def close(self) -> None:
        """Write what is waiting and stop the thread. Never raises; errors are raised on leaving the context."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._thread.join()
            self._unlock()

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
        if kind is None and self._error is not None:
            raise self._failure() from self._error

    @staticmethod
    def resume_point(
        path: str | os.PathLike[str], digest: str, fields: Sequence[Field] | None = None
    ) -> tuple[int, dict[str, Any]] | None:
        """(the step to go on from, the resume state of the step before), or None: start at 0.

        None also when `fields` are given and differ from those recorded so far: what was not recorded then cannot
        be had by going on. Raises WanlabError when the directory holds another run.
        """
        path = Path(path)
        directory = part_directory(path)
        manifest = _manifest(directory)
        if manifest is None:
            return None
        _same_run(path, manifest, digest)
        if fields is not None and manifest["fields"] != json.loads(json.dumps([asdict(f) for f in fields])):
            return None
        whole = 0
        with contextlib.suppress(WanlabError):
            while (shard := directory / f"step-{whole:06d}.wls").exists():
                _load_shard(shard)
                whole += 1
        for state in reversed(_shards(directory, "resume")):
            with contextlib.suppress(WanlabError):
                if 0 < _index(state) <= whole:
                    arrays, notes = _load_shard(state)
                    return _index(state), {**notes, **arrays}
        return None


def _by_name(fields: Sequence[Field]) -> dict[str, Field]:
    named: dict[str, Field] = {}
    for field in fields:
        if field.name in named:
            raise WanlabError(f"field '{field.name}' is declared twice", "name each field once")
        named[field.name] = field
    dims = {d for f in fields for d in f.dims}
    if dims & set(named):
        raise WanlabError(f"{sorted(dims & set(named))} name both a field and a dimension", "rename one")
    return named


def _split_resume(resume: Mapping[str, Any]) -> tuple[dict[str, Array], Json]:
    arrays: dict[str, Array] = {}
    notes: dict[str, Json] = {}
    for name, value in resume.items():
        if isinstance(value, np.ndarray):
            if value.dtype.hasobject or value.dtype.fields is not None:
                raise WanlabError(f"resume state '{name}' has dtype {value.dtype}", "use plain numbers")
            arrays[name] = np.array(value, order="C", copy=True)
        else:
            try:
                notes[name] = json.loads(json.dumps(value))
            except (TypeError, ValueError) as error:
                raise WanlabError(f"resume state '{name}' is neither an array nor JSON: {error}", "") from error
    return arrays, notes


def _manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of an unfinished run, or None when there is none. Raises WanlabError when it is damaged."""
    try:
        manifest = json.loads((directory / "manifest.json").read_bytes())
        if not {"format", "digest", "fields", "resumed_at", "spec_json"} <= set(manifest):
            raise ValueError("entries are missing")
        return dict(manifest)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _io_error("read", directory, error) from error
    except (ValueError, TypeError) as error:
        raise WanlabError(f"{directory}/manifest.json is damaged: {error}", "remove this directory") from error


def _same_run(path: Path, manifest: Mapping[str, Any], digest: str) -> None:
    if manifest["format"] != FORMAT_VERSION:
        raise WanlabError(
            f"{part_directory(path)} was left by another version of wanlab (format {manifest['format']})",
            "finish it with that version, or remove it",
        )
    if manifest["digest"] != digest:
        raise WanlabError(
            f"{part_directory(path)} holds an unfinished run of another specification",
            "choose another output, or discard it with --force",
        )


# --- folding ---------------------------------------------------------------------------------------------------------


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
    flat = np.ascontiguousarray(sample).reshape(-1)[: _MIB // sample.itemsize]
    shuffled = flat.view("u1").reshape(-1, sample.itemsize).T.tobytes()
    return len(zlib.compress(shuffled, 1)) < _GZIP_PAYS * len(shuffled)


def _encode_attrs(attrs: Mapping[str, Any], reserved: bool = False) -> dict[str, str | int | float]:
    """Attributes as they are stored: str, int and float under their name, all else as JSON under name + `_json`."""
    stored: dict[str, str | int | float] = {}
    for name, value in attrs.items():
        taken = reserved and name in ("status", "spec_json", "spec", "spec_digest", "CLASS", "NAME")
        if taken or not _NAME.match(name) or (reserved and name.endswith("_json")):
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
        _check_text(name, value)
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise WanlabError(f"attribute '{name}' = {value} is beyond 64 bits", "use text")
    return stored


def _check_text(name: str, value: Any) -> None:
    if isinstance(value, str):
        try:
            size = len(value.encode())
        except UnicodeEncodeError as error:
            raise WanlabError(f"'{name}' is no valid Unicode text", "write it as UTF-8") from error
        if "\0" in value or size > MAX_ATTRIBUTE_BYTES:
            raise WanlabError(f"'{name}' holds a NUL or more than 16 MiB of text", "shorten it")


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
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115 - closed in close()
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


def _fold(
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
    samples: dict[str, Array] = {}  # the first value of each field, to decide on gzip
    for step, shard in enumerate(shards):
        for name, found in _shapes_in(shard).items():
            shapes[name][step] = found
            if name not in samples:
                samples |= {n: v for n, v in _load_shard(shard)[0].items() if n not in samples}
    kept = [f for f in fields if total and (not f.dims or shapes[f.name])]
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

    with _Sink(target) as sink, h5py.File(sink, "w", libver=("v110", "v110")) as file:
        _put(file, {"encoding-type": "wanlab-run", "encoding-version": FORMAT_VERSION, **attrs})
        groups = {name: file.create_group(name, track_order=True) for name in ("steps", "final")}
        for name, group in groups.items():
            _put(group, {"encoding-type": name, "encoding-version": "1"})
        scales: dict[str, Any] = {}
        for dim, size in sizes.items():
            coordinate = np.arange(size, dtype="<i4")
            scale = file.create_dataset(dim, data=coordinate, chunks=(size,), fletcher32=True)
            scale.make_scale(dim)
            _put(scale, {"encoding-type": "dimension", "encoding-version": "1", "dims": (dim,)})
            _put(scale, {"units": "1", "long_name": f"index along {dim}"})
            scales[dim] = scale

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
            for name, value in _load_shard(shard)[0].items():
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


def _digest(path: Path, length: int) -> str:
    made = hashlib.sha256()
    with open(path, "rb") as file:
        while length > 0 and (block := file.read(min(length, 4 * _MIB))):
            made.update(block)
            length -= len(block)
    return made.hexdigest()


def _seal(path: Path) -> None:
    """Append the seal: HDF5 covers most bytes with checksums, but not the heap of dimension references, nor gaps."""
    length = path.stat().st_size
    seal = b"\nwanlab-seal sha256:%s bytes:%016x\n" % (_digest(path, length).encode(), length)
    with open(path, "ab") as file:
        file.write(seal)
        file.flush()
        os.fsync(file.fileno())


# --- reading ---------------------------------------------------------------------------------------------------------


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
        self.dims: tuple[str, ...] = attrs.get("dims", ())
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
        if size * self._dataset.dtype.itemsize > MAX_READ_BYTES:
            raise WanlabError(f"{self.name} is too large to read at once: {self.shape}", "read it in parts")
        with _reading(self._run.path):
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


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever the library makes of bad bytes (it has no one error type), say it in one line."""
    try:
        yield
    except WanlabError:
        raise
    except FileNotFoundError as error:
        raise WanlabError(f"there is no run file {path}", "check the path") from error
    except PermissionError as error:
        raise WanlabError(f"cannot read {path}: {error.strerror}", "check its permissions") from error
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise WanlabError(f"{path} is damaged or no run file: {said}", "make it again, or take another copy") from error


def _refuse(path: Path, what: str) -> WanlabError:
    return WanlabError(f"{path} is refused: {what}", "a run file holds nothing of the kind (docs/runfile.md)")


def _check_place(path: Path) -> None:
    """Raise WanlabError unless `path` is a regular file, saying what is there instead (opening a pipe would hang)."""
    if not path.exists() and _manifest(part_directory(path)) is not None:
        steps = len(_shards(part_directory(path), "step"))
        raise WanlabError(f"{path} is not finished: {steps} steps so far", "run the same command again to go on")
    if path.exists() and not path.is_file():
        raise WanlabError(f"{path} is not a file", "name a finished .h5 file")


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
        with _reading(self.path):
            _check_place(self.path)
            with open(self.path, "rb") as raw:  # also keeps an HDF5 file behind a user block out
                if raw.read(8) != b"\x89HDF\r\n\x1a\n":
                    raise WanlabError(f"{self.path} is not an HDF5 file", "name a finished .h5 file")
            self._file = h5py.File(self.path, "r")
        try:
            with _reading(self.path):
                self._open()
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        found = _walk(self.path, self._file)
        root = _attributes(self.path, self._file)
        if root.get("encoding-type") != "wanlab-run":
            raise WanlabError(f"{self.path} is not a wanlab run file", "name a file that wanlab generate made")
        self.version = str(root.get("encoding-version"))
        if self.version != FORMAT_VERSION:
            raise WanlabError(
                f"{self.path} has format version {self.version}; this wanlab reads {FORMAT_VERSION}",
                "use a newer wanlab",
            )
        self.spec_json = str(root.get("spec_json", ""))
        self.digest = str(root.get("spec_digest", ""))
        self.status = str(root.get("status", ""))
        self.attrs: dict[str, Any] = {}
        for name, value in root.items():
            if name.endswith("_json"):
                self.attrs[name.removesuffix("_json")] = json.loads(value)
            elif not name.startswith("encoding-"):
                self.attrs[name] = value
        self.data: dict[str, Data] = {}
        self.dims: dict[str, int] = {}
        problems: list[str] = []
        for where, element in found.items():
            parent, _, name = where.strip("/").rpartition("/")
            attrs = _attributes(self.path, element)
            if not isinstance(element, h5py.Dataset):
                continue
            if parent == "" and attrs.get("encoding-type") == "dimension":
                self.dims[name] = element.shape[0] if element.ndim == 1 else -1
                if not 0 < self.dims[name] <= (MAX_STEPS if name == STEP else MAX_DIMENSION):
                    raise _refuse(self.path, f"dimension '{name}' has size {self.dims[name]}")
            elif parent in ("steps", "final") and attrs.get("encoding-type") == "array":
                most = (MAX_STEPS if parent == "steps" else MAX_DIMENSION, *[MAX_DIMENSION] * MAX_RANK)
                if any(n > m for n, m in zip(element.shape, most, strict=False)):
                    raise _refuse(self.path, f"{where} has shape {element.shape}")
                if name in self.data:
                    problems.append(f"'{name}' is there twice")
                self.data[name] = Data(self, parent, name, element, attrs)
                problems += self.data[name].problems()
        for data in self.data.values():
            for dim, size in zip(data.dims, data.shape, strict=False):
                if self.dims.get(dim) != size:
                    problems.append(f"{data.name}: dimension '{dim}' is {size}, declared {self.dims.get(dim)}")
        if problems:
            raise _refuse(self.path, problems[0])
        self.data = dict(sorted(self.data.items(), key=lambda item: item[1].group != "steps"))

    @property
    def steps(self) -> int:
        return self.dims.get(STEP, 0)

    @property
    def spec(self) -> RunSpec:
        """The specification that made this run. Raises WanlabError when this version cannot read it."""
        from wanlab.spec import RunSpec

        with _reading(self.path):
            return RunSpec.from_json(self.spec_json)

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
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _walk(path: Path, file: Any) -> dict[str, Any]:
    """Every object of the file by its path, each checked to be one that a run file may hold. Follows no link."""
    found: dict[str, Any] = {}
    seen = {h5py.h5o.get_info(file.id).addr}
    waiting = [("", file)]
    while waiting:
        where, group = waiting.pop()
        for name in group:
            here = f"{where}/{name}"
            if not _NAME.match(name):
                raise _refuse(path, f"an object with the name {name!r}")
            if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
                raise _refuse(path, f"{here} is a soft, external or user-defined link")
            info = h5py.h5o.get_info(group.id, name.encode())
            if info.addr in seen:
                raise _refuse(path, f"{here} is an object linked twice")
            seen.add(info.addr)
            if len(seen) > MAX_OBJECTS:
                raise _refuse(path, f"more than {MAX_OBJECTS} objects")
            if info.type == h5py.h5o.TYPE_GROUP:
                if here.count("/") > MAX_RANK:
                    raise _refuse(path, f"groups nested deeper than {MAX_RANK}")
                found[here] = group[name]
                waiting.append((here, found[here]))
            elif info.type == h5py.h5o.TYPE_DATASET:
                opened = h5py.h5d.open(group.id, name.encode())
                _check_dataset(path, here, opened)
                found[here] = h5py.Dataset(opened)
            else:
                raise _refuse(path, f"{here} is neither a group nor a dataset")
    return found


def _check_dataset(path: Path, where: str, dataset: Any) -> None:
    create = dataset.get_create_plist()
    layout = create.get_layout()
    if create.get_external_count():
        raise _refuse(path, f"{where} keeps its data in another file")
    if layout not in (h5py.h5d.CHUNKED, h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS):
        raise _refuse(path, f"{where} is a virtual dataset")
    kind = dataset.get_type()
    item = _plain(kind)
    if not item:
        raise _refuse(path, f"{where} has a type that is neither a number nor text of a fixed length")
    filters = {create.get_filter(i)[0] for i in range(create.get_nfilters())}
    if not filters <= _FILTERS:
        raise _refuse(path, f"{where} uses filter {min(filters - _FILTERS)}")
    space = dataset.get_space()
    if space.get_simple_extent_type() not in (h5py.h5s.SCALAR, h5py.h5s.SIMPLE):
        raise _refuse(path, f"{where} has no data space")
    shape = space.get_simple_extent_dims()
    declared = math.prod(shape) * item
    if len(shape) > MAX_RANK or declared > MAX_DATASET_BYTES:
        raise _refuse(path, f"{where} declares {' x '.join(map(str, shape))} items of {item} bytes")
    stored = dataset.get_storage_size()
    if layout == h5py.h5d.CHUNKED:
        chunk = create.get_chunk()
        if math.prod(chunk) * item > MAX_CHUNK_BYTES:
            raise _refuse(path, f"{where} declares chunks of {' x '.join(map(str, chunk))} items of {item} bytes")
        # Along `step` most may be missing; one step's worth must be covered by what the file can expand to.
        one = declared // max(1, shape[0]) if shape else declared
        if declared > 16 * _MIB and one > 256 * max(1, stored) * (_DEFLATE_MAX if filters & {1} else 1):
            raise _refuse(path, f"{where} declares {declared} bytes and stores {stored}")
    elif declared > path.stat().st_size:
        raise _refuse(path, f"{where} declares {declared} bytes, more than the file holds")


def _plain(kind: Any) -> int:
    """Bytes of one item when the type is an integer, a float or text of a fixed length; else 0."""
    numeric = kind.get_class() in (h5py.h5t.INTEGER, h5py.h5t.FLOAT) and kind.get_size() <= 8
    text = kind.get_class() == h5py.h5t.STRING and not kind.is_variable_str()
    return int(kind.get_size()) if numeric or text else 0


def _attributes(path: Path, element: Any) -> dict[str, Any]:
    """An object's attributes, each checked before it is read: str, int, float, arrays, tuples of str."""
    read: dict[str, Any] = {}
    if h5py.h5a.get_num_attrs(element.id) > MAX_ATTRIBUTES:
        raise _refuse(path, f"{element.name} has more than {MAX_ATTRIBUTES} attributes")
    for i in range(h5py.h5a.get_num_attrs(element.id)):
        attribute = h5py.h5a.open(element.id, index=i)
        name = attribute.name.decode("utf-8", "replace")
        if name in _NETCDF_ATTRIBUTES:
            continue
        space = attribute.get_space()
        plain = _plain(attribute.get_type())
        sized = space.get_simple_extent_type() in (h5py.h5s.SCALAR, h5py.h5s.SIMPLE)
        if not plain or not sized or space.get_simple_extent_npoints() * plain > MAX_ATTRIBUTE_BYTES:
            raise _refuse(path, f"attribute {name!r} of {element.name} is not a plain number or text")
        value = np.empty(attribute.shape, attribute.dtype)
        attribute.read(value)
        if value.dtype.kind == "S":
            texts = tuple(bytes(v).decode("utf-8", "replace") for v in value.reshape(-1))
            read[name] = texts if value.ndim else texts[0]
        else:
            read[name] = value if value.ndim else value.item()
    return read


def completed(path: str | os.PathLike[str], digest: str) -> bool:
    """Whether `path` is a finished run of this digest. Raises WanlabError when there is a file that is no run."""
    if not Path(path).exists():
        return False
    with Run(path) as run:
        return run.status == "complete" and run.digest == digest


def verify(path: str | os.PathLike[str]) -> list[str]:
    """Read everything, checking every checksum; returns the problems found, none for a sound file.

    Raises WanlabError when there is no file to look at.
    """
    path = Path(path)
    problems: list[str] = []
    with _reading(path):
        _check_place(path)
        size = path.stat().st_size
        with open(path, "rb") as file:
            file.seek(max(0, size - _SEAL_BYTES))
            seal = _SEAL.search(file.read())
        if seal is None:
            problems.append("the seal at its end is missing: cut short, or rewritten by another program")
        elif int(seal[2], 16) != size - _SEAL_BYTES:
            problems.append(f"its seal is of {int(seal[2], 16)} bytes, it has {size - _SEAL_BYTES}")
        elif _digest(path, size - _SEAL_BYTES) != seal[1].decode():
            problems.append("its bytes are not those that were sealed (SHA-256 differs)")
    try:
        run = Run(path)
    except WanlabError as error:
        return [*problems, str(error)]
    with run:
        if run.status != "complete":
            problems.append(f"its status is '{run.status}'")
        for where, element in _walk(path, run._file).items():
            if isinstance(element, h5py.Dataset):
                problems += _verify_dataset(path, where, element)
        for dim, size in run.dims.items():
            try:
                with _reading(path):
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
        with _reading(path):
            if dataset.chunks is None:
                dataset[...]
                return problems
            dataset.id.chunk_iter(lambda info: places.append(info.chunk_offset))
    except WanlabError as error:
        return [f"{where}: {error}"]
    for at in places:
        try:
            with _reading(path):
                dataset[tuple(slice(a, a + n) for a, n in zip(at, dataset.chunks, strict=True))]
        except WanlabError as error:
            problems.append(f"{where}: chunk at {at}: {error}")
    return problems
