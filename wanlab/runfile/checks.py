"""What a reader believes of a file that anyone may have made, before it reads or allocates anything."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wanlab import files
from wanlab.errors import WanlabError
from wanlab.runfile.fields import (
    MAX_ALL_ATTRIBUTE_BYTES,
    MAX_ATTRIBUTE_BYTES,
    MAX_ATTRIBUTES,
    MAX_CHUNK_BYTES,
    MAX_CHUNKS,
    MAX_DATASET_BYTES,
    MAX_OBJECTS,
    MAX_RANK,
    MIB,
    NAME,
)
from wanlab.runfile.shards import list_shards, part_directory, read_manifest

_DEFLATE_MAX = 1032  # no deflate stream expands further (zlib's documentation)
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
_NETCDF_ATTRIBUTES = {
    "DIMENSION_LIST",
    "REFERENCE_LIST",
}  # references: made for others to read, never read here


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever the library makes of bad bytes (it has no one error type), say it in one line."""
    try:
        yield
    except WanlabError:
        raise
    except FileNotFoundError as error:
        raise WanlabError(f"there is no run file {path}", "check the path") from error
    except PermissionError as error:
        raise WanlabError(f"cannot read {path}: {error.strerror}", "check its permissions") from error
    except OSError as error:
        number = error.errno or int((re.search(r"errno = (\d+)", str(error)) or [0, 0])[1])
        if number in (errno.EAGAIN, errno.EACCES) and "lock" in str(error):
            raise WanlabError(f"{path} is open in another program", "close it there and run again") from error
        if "already open for write" in str(error):  # the file says so itself; where there are no locks only it does
            raise WanlabError(
                f"{path} is open for writing in another program, or was when that ended",
                "close it there and run again, or take another copy",
            ) from error
        if number:
            raise files.io_error("read", path, OSError(number, os.strerror(number))) from error
        said = " ".join(str(error).split())
        raise WanlabError(f"{path} is damaged or no run file: {said}", "make it again, or take another copy") from error
    except (MemoryError, RecursionError) as error:
        raise WanlabError(f"{path} is refused: it takes too much memory", "do not use this file") from error
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise WanlabError(f"{path} is damaged or no run file: {said}", "make it again, or take another copy") from error


def refuse(path: Path, what: str) -> WanlabError:
    return WanlabError(f"{path} is refused: {what}", "a run file holds nothing of the kind (docs/runfile.md)")


def check_place(path: Path) -> None:
    """Raise WanlabError unless `path` is a regular file, saying what is there instead (opening a pipe would hang)."""
    if not path.exists() and read_manifest(part_directory(path)) is not None:
        steps = len(list_shards(part_directory(path), "step"))
        raise WanlabError(f"{path} is not finished: {steps} steps so far", "run the same command again to go on")
    if path.exists() and not path.is_file():
        raise WanlabError(f"{path} is not a file", "name a finished .h5 file")
    files.check_regular(path)


def walk(path: Path, file: Any) -> dict[str, Any]:
    """Every object of the file by its path, each checked to be one that a run file may hold. Follows no link."""
    found: dict[str, Any] = {}
    seen = {h5py.h5o.get_info(file.id).addr}
    waiting = [("", file)]
    while waiting:
        where, group = waiting.pop()
        for name in group:
            here = f"{where}/{name}"
            if not NAME.match(name):
                raise refuse(path, f"an object with the name {name!r}")
            if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
                raise refuse(path, f"{here} is a soft, external or user-defined link")
            info = h5py.h5o.get_info(group.id, name.encode())
            if info.addr in seen:
                raise refuse(path, f"{here} is an object linked twice")
            seen.add(info.addr)
            if len(seen) > MAX_OBJECTS:
                raise refuse(path, f"more than {MAX_OBJECTS} objects")
            if info.type == h5py.h5o.TYPE_GROUP:
                if here.count("/") > MAX_RANK:
                    raise refuse(path, f"groups nested deeper than {MAX_RANK}")
                found[here] = group[name]
                waiting.append((here, found[here]))
            elif info.type == h5py.h5o.TYPE_DATASET:
                opened = h5py.h5d.open(group.id, name.encode())
                _check_dataset(path, here, opened)
                found[here] = h5py.Dataset(opened)
            else:
                raise refuse(path, f"{here} is neither a group nor a dataset")
    return found


def _check_dataset(path: Path, where: str, dataset: Any) -> None:
    create = dataset.get_create_plist()
    layout = create.get_layout()
    if create.get_external_count():
        raise refuse(path, f"{where} keeps its data in another file")
    if layout not in (h5py.h5d.CHUNKED, h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS):
        raise refuse(path, f"{where} is a virtual dataset")
    kind = dataset.get_type()
    item = _plain(kind)
    if not item:
        raise refuse(path, f"{where} has a type that is neither a number nor text of a fixed length")
    filters = {create.get_filter(i)[0] for i in range(create.get_nfilters())}
    if not filters <= _FILTERS:
        raise refuse(path, f"{where} uses filter {min(filters - _FILTERS)}")
    space = dataset.get_space()
    if space.get_simple_extent_type() not in (h5py.h5s.SCALAR, h5py.h5s.SIMPLE):
        raise refuse(path, f"{where} has no data space")
    shape = space.get_simple_extent_dims()
    declared = math.prod(shape) * item
    if len(shape) > MAX_RANK or declared > MAX_DATASET_BYTES:
        raise refuse(path, f"{where} declares {' x '.join(map(str, shape))} items of {item} bytes")
    if layout == h5py.h5d.CHUNKED:
        chunk = create.get_chunk()
        # Before it is asked how much is stored: the library then walks the index of every chunk that is declared.
        if math.prod(-(-n // c) for n, c in zip(shape, chunk, strict=True)) > MAX_CHUNKS:
            raise refuse(path, f"{where} declares more than {MAX_CHUNKS} chunks")
        if math.prod(chunk) * item > MAX_CHUNK_BYTES:
            raise refuse(path, f"{where} declares chunks of {' x '.join(map(str, chunk))} items of {item} bytes")
        stored = dataset.get_storage_size()
        # Along `step` most may be missing; one step's worth must be covered by what the file can expand to.
        one = declared // max(1, shape[0]) if shape else declared
        if declared > 16 * MIB and one > 256 * max(1, stored) * (_DEFLATE_MAX if filters & {1} else 1):
            raise refuse(path, f"{where} declares {declared} bytes and stores {stored}")
    elif declared > path.stat().st_size:
        raise refuse(path, f"{where} declares {declared} bytes, more than the file holds")


def _plain(kind: Any) -> int:
    """Bytes of one item when the type is an integer, a float or text of a fixed length; else 0."""
    numeric = kind.get_class() in (h5py.h5t.INTEGER, h5py.h5t.FLOAT) and kind.get_size() <= 8
    text = kind.get_class() == h5py.h5t.STRING and not kind.is_variable_str()
    return int(kind.get_size()) if numeric or text else 0


def attributes_of(path: Path, element: Any) -> dict[str, Any]:
    """An object's attributes, each checked before it is read: str, int, float, arrays, tuples of str."""
    read: dict[str, Any] = {}
    total = 0
    if h5py.h5a.get_num_attrs(element.id) > MAX_ATTRIBUTES:
        raise refuse(path, f"{element.name} has more than {MAX_ATTRIBUTES} attributes")
    for i in range(h5py.h5a.get_num_attrs(element.id)):
        attribute = h5py.h5a.open(element.id, index=i)
        name = attribute.name.decode("utf-8", "replace")
        if name in _NETCDF_ATTRIBUTES:
            continue
        space = attribute.get_space()
        plain = _plain(attribute.get_type())
        sized = space.get_simple_extent_type() in (h5py.h5s.SCALAR, h5py.h5s.SIMPLE)
        if not plain or not sized or space.get_simple_extent_npoints() * plain > MAX_ATTRIBUTE_BYTES:
            raise refuse(path, f"attribute {name!r} of {element.name} is not a plain number or text")
        total += space.get_simple_extent_npoints() * plain
        if total > MAX_ALL_ATTRIBUTE_BYTES:
            raise refuse(path, f"{element.name} has more than {MAX_ALL_ATTRIBUTE_BYTES} bytes of attributes")
        value = np.empty(attribute.shape, attribute.dtype)
        attribute.read(value)
        if value.dtype.kind == "S":
            texts = tuple(bytes(v).decode("utf-8", "replace") for v in value.reshape(-1))
            read[name] = texts if value.ndim else texts[0]
        else:
            read[name] = value if value.ndim else value.item()
    return read
