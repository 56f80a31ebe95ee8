"""Files appear under their name only when they are whole; what stood there before stays until then.

A file is written beside its place under a name of its own, synced, and renamed over it. A rename replaces a link
that stands in the place instead of writing through it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from wanlab.errors import UsageError, WanlabError

MAX_PARSED = 2**30  # bytes of memory that a JSON text may become
_MAX_NAME = 200  # bytes; file systems take 255, and working names add up to 30

_SPACE = "free some space or choose another place, then run the same command again"
_PLACE = "choose a place you can write to"
_DISK = "the disk or its connection fails: check it, or try another disk, and run the same command again"
_REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EACCES: _PLACE,
    errno.EPERM: _PLACE,
    errno.EROFS: _PLACE,
    errno.EIO: _DISK,
    errno.ESTALE: _DISK,
    errno.EINTR: "the file system was interrupted: run the same command again",
    errno.EFBIG: "this file system or `ulimit -f` takes no file of that size: choose another place",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file: check the path",
    errno.EISDIR: "a directory stands in its place: remove it or name another file",
    errno.ENOTEMPTY: "a directory stands in its place: remove it or name another file",
    errno.EEXIST: "something stands in its place: remove it or name another file",
    errno.ELOOP: "a link stands in its place, or links go round in a circle: remove it or name another file",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOLCK: "the file system has no locks: choose a place on a local disk",
    errno.ENOTSUP: "the file system cannot do this: choose a place on a local disk",
    errno.EAGAIN: "another program has it open: close that and run again",
    errno.EBUSY: "another program has it open: close that and run again",
    errno.EMFILE: "too many files are open: raise `ulimit -n`",
    errno.ENFILE: "too many files are open on this machine: close some",
}


def remedy(error: OSError) -> str:
    """What to do about an error of the operating system."""
    return _REMEDIES.get(error.errno or 0, "check the path and the disk, and run the same command again")


def io_error(doing: str, path: str | os.PathLike[str], error: OSError) -> WanlabError:
    """The WanlabError of an OSError: what could not be done, where, and the remedy."""
    words = error.strerror or " ".join(str(error).split())[:160]
    return WanlabError(f"cannot {doing} {path}: {words}", remedy(error))


def sync(path: str | os.PathLike[str]) -> None:
    """Bring a file or a directory to the disk. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A working path with the same suffix in the same folder; left without an error, its file becomes `path`.

    For libraries that want a path. Raises WanlabError for an OSError inside or while the file is renamed; whatever
    is raised, the working file is removed where it can be, and what stood at `path` stays.
    """
    path = Path(path)
    part = path.with_name(f".{secrets.token_hex(6)}.part{path.suffix}")
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
        yield part
        sync(part)
        os.replace(part, path)
        sync(path.parent)
    except BaseException as error:
        with suppress(OSError):  # one more failure must not hide the first
            part.unlink()
        if isinstance(error, OSError):
            raise io_error("write", path, error) from error
        raise


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `path` whole or not at all; returns it. Raises WanlabError."""
    with replacing(path) as part:
        part.write_bytes(data)
    return Path(path)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `path` in UTF-8, whole or not at all; returns it. Raises WanlabError."""
    return write_bytes(path, text.encode())


def lock(path: str | os.PathLike[str], *, create: bool = True) -> int | None:
    """Lock the file `path`, which is there for that; returns a descriptor that holds the lock until it is closed, None
    where another process holds it.

    The lock ends with its process, however that ends, and holds between machines where the file system passes `flock`
    on. Its holder may remove the file. Raises OSError.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    while True:
        fd = os.open(path, flags, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(fd, path):
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError as error:
            if error.errno != errno.ESTALE:  # NFS: removed by another machine
                os.close(fd)
                raise
        os.close(fd)  # its holder removed it meanwhile


def _is_at(fd: int, path: str | os.PathLike[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def make_folder(path: str | os.PathLike[str]) -> Path:
    """A folder to write to, made if it is not there; returns it. Raises WanlabError."""
    check_folder(path)
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise io_error("make", path, error) from error
    return Path(path)


def check_folder(path: str | os.PathLike[str]) -> None:
    """Try a folder before work begins: it is one or can be made, and can be written to. Makes nothing.

    Raises WanlabError.
    """
    path = Path(path)
    for part in path.parts:
        if len(os.fsencode(part)) > _MAX_NAME and part != os.sep:
            raise WanlabError(f"the name {part[:40]}… is too long", f"use at most {_MAX_NAME} bytes")
    at = Path(os.path.abspath(path))
    try:
        while not os.path.lexists(at):
            at = at.parent
        if at.is_symlink() and not at.exists():
            raise WanlabError(f"{at} is a link to nothing", "remove the link or name another folder")
        if not at.is_dir():
            raise WanlabError(f"{at} is no folder", "name another folder")
    except OSError as error:
        raise io_error("use", path, error) from error
    if not os.access(at, os.W_OK | os.X_OK):
        raise WanlabError(f"cannot write into {at}: Permission denied", _PLACE)


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise WanlabError unless `path` is a regular file: a FIFO or a device would hold its reader for ever."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError):
            raise WanlabError(f"{os.fspath(path)!r} is no path", "check the path") from error
        if error.errno == errno.ENOENT:
            raise WanlabError(f"there is no file {path}", "check the path") from error
        raise io_error("read", path, error) from error
    if stat.S_ISDIR(mode):
        raise WanlabError(f"{path} is a directory", "name a file")
    if not stat.S_ISREG(mode):
        raise WanlabError(f"{path} is a pipe or a device, not a file", "name a regular file")


def read_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """A regular file's bytes, at most `most` of them. Raises WanlabError; never waits for a pipe."""
    check_regular(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise WanlabError(f"{path} is a pipe or a device, not a file", "name a regular file")
            if status.st_size > most:
                raise WanlabError(f"{path} has {status.st_size} bytes, more than {most}", "name the right file")
            return file.read(most)
    except OSError as error:
        raise io_error("read", path, error) from error


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError, also for NaN and infinities, a whole number that no float holds,
    nesting without end, and what would take over `MAX_PARSED` bytes of memory."""
    if json_bytes(text) > MAX_PARSED:
        raise ValueError(f"it would take over {MAX_PARSED >> 20} MiB of memory")
    try:
        return json.loads(text, parse_constant=_no_constant, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def json_bytes(text: str) -> int:
    """How much memory the values of a JSON text take at most, with the text; a small one may hold a hundred times its
    size. The weights are those of CPython's objects: an object 64 to 184 bytes, a list 56, a number 24 to 36, a text 49
    to 76 and 1 to 4 a character."""
    weights = {"{": 232, "[": 88, ",": 44, ":": 60, '"': 38}
    return len(text) * (3 if text.isascii() else 9) + sum(text.count(mark) * n for mark, n in weights.items())


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _whole(digits: str) -> int:
    number = int(digits)
    try:
        float(number)
    except OverflowError as error:
        raise ValueError(f"a number has {len(digits)} digits") from error
    return number


def read_toml(path: Path, hint: str, most: int = 2**24) -> dict[str, Any]:
    """The tables of a TOML file. Raises UsageError, with the hint, for what is none or cannot be read."""
    try:
        return tomllib.loads(read_bytes(path, most).decode("utf-8"))
    except WanlabError as error:
        raise UsageError(error.message, hint) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, no TOML, a number too long; too deep
        raise UsageError(f"cannot read {path}: {' '.join(str(error).split())[:160]}", hint) from error
