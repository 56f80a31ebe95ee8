"""The shards of an unfinished run: one immutable file a finished step, the newest resume state, and a manifest.

A shard is written under another name, synced and renamed, so at every instant it is either whole or absent. Shards are
plain bytes (`pack`), not HDF5: a process killed while it has an HDF5 file open for writing can leave it unreadable.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wanlab import files
from wanlab.errors import WanlabError
from wanlab.runfile.fields import FORMAT_VERSION, MAX_ATTRIBUTE_BYTES, MAX_RANK, MAX_READ_BYTES, Array, Json

_MAGIC = b"WLSHARD1"
_DTYPE = re.compile(r"[<>|=]?(b1|[iufc][0-9]{1,2}|[SU][0-9]{1,6})\Z")


def pack(arrays: Mapping[str, Array], notes: Json) -> list[Any]:
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
        if not all(_DTYPE.match(a["dtype"]) and len(a["shape"]) <= MAX_RANK for a in head["arrays"].values()):
            raise ValueError("it holds something else than plain arrays")
        arrays = {n: (np.dtype(a["dtype"]), tuple(map(int, a["shape"]))) for n, a in head["arrays"].items()}
        if not isinstance(head["notes"], dict):
            raise ValueError("its notes are no object")
        held = sum(d.itemsize * math.prod(s) for d, s in arrays.values())
        if 16 + length + held + 4 != size or any(d.hasobject or min(s, default=0) < 0 for d, s in arrays.values()):
            raise ValueError("its length is not what it declares")
        return arrays, head["notes"], 16 + length
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, struct.error) as error:
        raise WanlabError(f"{path} is damaged: {error}", "remove its directory and run again") from error


def load_shard(path: Path) -> tuple[dict[str, Array], Json]:
    """(arrays, notes) of a shard, checked against its CRC. Raises WanlabError."""
    data = files.read_bytes(path, MAX_READ_BYTES)
    arrays, notes, at = _header(path, data, len(data))
    if zlib.crc32(memoryview(data)[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise WanlabError(f"{path} is damaged: wrong checksum", "remove its directory and run again")
    out: dict[str, Array] = {}
    for name, (dtype, shape) in arrays.items():
        out[name] = np.frombuffer(data, dtype, math.prod(shape), at).reshape(shape)
        at += out[name].nbytes
    return out, notes


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """The arrays' shapes by name, from a shard's header alone. Raises WanlabError."""
    files.check_regular(path)
    try:
        with open(path, "rb") as file:
            head = file.read(16)
            size = path.stat().st_size
            if len(head) == 16:
                head += file.read(min(size, struct.unpack("<Q", head[8:])[0]))
    except OSError as error:
        raise files.io_error("read", path, error) from error
    return {name: shape for name, (_, shape) in _header(path, head, size)[0].items()}


def write_part(path: Path, parts: Sequence[Any]) -> Path:
    """Write `path`.part; `publish` makes it `path`."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with open(part, "xb") as out:  # a new file: a link in its place is not written through
        out.writelines(parts)
    return part


def publish(part: Path) -> Path:
    """Sync a file written by `write_part` and give it its name."""
    fd = os.open(part, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    target = part.with_suffix("")
    os.replace(part, target)
    return target


def part_directory(path: str | os.PathLike[str]) -> Path:
    """Where the run that will be `path` keeps its shards until it is finished."""
    path = Path(path)
    return path.with_name(path.name + ".part")


def index_of(path: Path) -> int:
    return int(path.stem.split("-")[1])


def list_shards(directory: Path, kind: str) -> list[Path]:
    return sorted((p for p in directory.glob(f"{kind}-*.wls") if p.stem.split("-")[1].isdigit()), key=index_of)


def split_resume(resume: Mapping[str, Any]) -> tuple[dict[str, Array], Json]:
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


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of an unfinished run, or None when there is none. Raises WanlabError when it is damaged."""
    path = directory / "manifest.json"
    if not path.exists():
        return None
    try:
        manifest = json.loads(files.read_bytes(path, MAX_ATTRIBUTE_BYTES))
        if not {"format", "digest", "fields", "resumed_at", "spec_json"} <= set(manifest):
            raise ValueError("entries are missing")
        for name, kind in {"format": str, "digest": str, "spec_json": str, "fields": list, "resumed_at": list}.items():
            if not isinstance(manifest[name], kind):
                raise ValueError(f"its '{name}' is of another type")
        return dict(manifest)
    except (ValueError, TypeError, RecursionError) as error:
        raise WanlabError(f"{directory}/manifest.json is damaged: {error}", "remove this directory") from error


def check_same_run(path: Path, manifest: Mapping[str, Any], digest: str) -> None:
    if manifest["format"] != FORMAT_VERSION:
        raise WanlabError(
            f"{part_directory(path)} was left by another version of wanlab (format {manifest['format']})",
            "finish it with that version, or remove it and run again",
        )
    if manifest["digest"] != digest:
        raise WanlabError(
            f"{part_directory(path)} holds an unfinished run of another specification",
            "choose another output, or discard it with --force",
        )
