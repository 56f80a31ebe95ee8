"""Shards: the plain bytes in which a run is kept, step by step, until it is finished.

A shard is written under another name, synced and renamed, so at every instant it is either whole or absent. Nothing
is compressed and no HDF5 call is made while sampling goes on.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from wanlab.errors import WanlabError
from wanlab.runfile.fields import FORMAT_VERSION, Array, Json

_MAGIC = b"WLSHARD1"


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
        arrays = {n: (np.dtype(a["dtype"]), tuple(map(int, a["shape"]))) for n, a in head["arrays"].items()}
        held = sum(d.itemsize * math.prod(s) for d, s in arrays.values())
        if 16 + length + held + 4 != size or any(d.hasobject or min(s, default=0) < 0 for d, s in arrays.values()):
            raise ValueError("its length is not what it declares")
        return arrays, head["notes"], 16 + length
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise WanlabError(f"{path} is damaged: {error}", "remove its directory and run again") from error


def load_shard(path: Path) -> tuple[dict[str, Array], Json]:
    """(arrays, notes) of a shard, checked against its CRC. Raises WanlabError."""
    try:
        with open_regular(path) as file:
            data = file.read()
    except OSError as error:
        raise io_error("read", path, error) from error
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
    try:
        with open_regular(path) as file:
            head = file.read(16)
            size = path.stat().st_size
            if len(head) == 16:
                head += file.read(min(size, struct.unpack("<Q", head[8:])[0]))
    except OSError as error:
        raise io_error("read", path, error) from error
    return {name: shape for name, (_, shape) in _header(path, head, size)[0].items()}


_SPACE = "free some space, then run the same command: it goes on from the last finished step"
_PLACE = "choose a place you can write to"
_LOCKS = "its file system has no locks: choose a place on a local disk"
REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EACCES: _PLACE,
    errno.EROFS: _PLACE,
    errno.ENOENT: "check the path",
    errno.EIO: "the disk or its connection fails: check the system's log, or choose another place",
    errno.EFBIG: "the file system or `ulimit -f` takes no file so large: choose another place, or record less",
    errno.ENOLCK: _LOCKS,
    errno.ENOSYS: _LOCKS,
    errno.EOPNOTSUPP: _LOCKS,
    errno.ELOOP: "it is a symbolic link: remove it, or name the file that it leads to",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def io_error(doing: str, path: Path, error: OSError) -> WanlabError:
    return WanlabError(f"cannot {doing} {path}: {error.strerror or error}", REMEDIES.get(error.errno or 0, ""))


def open_regular(path: Path) -> BinaryIO:
    """A regular file, open for reading; a pipe or a device would hang. Raises WanlabError, OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise WanlabError(f"{path} is no regular file", "remove it, or name another")
    return os.fdopen(fd, "rb")


def write_part(path: Path, parts: Sequence[Any]) -> Path:
    """Write `path`.part; `publish` makes it `path`. What stood there, a link too, is removed, not written through."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with open(part, "xb") as out:
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


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def part_directory(path: str | os.PathLike[str]) -> Path:
    """Where the run that will be `path` keeps its shards until it is finished."""
    path = Path(path)
    return path.with_name(path.name + ".part")


def shard_index(path: Path) -> int:
    return int(path.stem.split("-")[1])


def shard_files(directory: Path, kind: str) -> list[Path]:
    return sorted((p for p in directory.glob(f"{kind}-*.wls") if p.stem.split("-")[1].isdigit()), key=shard_index)


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of an unfinished run, or None when there is none. Raises WanlabError when it is damaged."""
    try:
        with open_regular(directory / "manifest.json") as file:
            manifest = json.loads(file.read())
        kinds = {"format": str, "digest": str, "fields": list, "resumed_at": list, "spec_json": str}
        for name, kind in kinds.items():
            if not isinstance(manifest[name], kind):
                raise ValueError(f"'{name}' is no {kind.__name__}")
        return dict(manifest)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise io_error("read", directory, error) from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise WanlabError(f"{directory}/manifest.json is damaged: {error}", "remove this directory") from error


def check_same_run(path: Path, manifest: Mapping[str, Any], digest: str) -> None:
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
