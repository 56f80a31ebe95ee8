"""One way to write a file: beside, then renamed, so that what was there before stays whole whatever happens."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wanlab.errors import UsageError, WanlabError

_REMEDY = "free some space, or choose another --out"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside `path`, of the same suffix, that takes its name once the block has ended well.

    A link at `path` is replaced, not followed. Raises WanlabError when the file cannot be written.
    """
    part: Path | None = None
    try:
        handle, name = tempfile.mkstemp(suffix=path.suffix, prefix=".wanlab-", dir=path.parent)
        os.close(handle)
        part = Path(name)
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_umask())
        os.replace(part, path)
    except OSError as error:
        raise WanlabError(f"cannot write {path}: {error.strerror or error}", _REMEDY) from error
    finally:
        if part is not None:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_bytes(path: Path, data: bytes) -> Path:
    """`data` as the whole of `path`. Raises WanlabError."""
    with replacing(path) as part:
        part.write_bytes(data)
    return path


def write_text(path: Path, text: str) -> Path:
    """`text` in UTF-8 as the whole of `path`. Raises WanlabError."""
    return write_bytes(path, text.encode())


def check_folder(folder: Path) -> Path:
    """`folder`, made if it is not there. Raises UsageError where nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
            file.flush()
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}", "choose another --out") from error
    return folder
