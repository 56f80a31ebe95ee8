"""One fingerprint of a checkpoint: it changes whenever anything does that decides what a run makes of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from wanlab.engine.model.checkpoint import Checkpoint
from wanlab.errors import WanlabError
from wanlab.files import make_folder, write_text

_TOKENIZER = (".json", ".model", ".txt")
_remembered: dict[str, str] = {}  # a file's digest by what tells that it is still the same


def fingerprint(checkpoint: Checkpoint) -> str:
    """SHA-256 (hex) of a fetched checkpoint's configurations and of all bytes of the files that are loaded.

    A file's digest is remembered, also between processes, by its place, size, times and inode; the time of the last
    change tells of an edit whose author set the other one back, as cp -p and rsync do. Raises WanlabError when a
    file cannot be read.
    """
    tokenizer = checkpoint.path / checkpoint.tokenizer
    files = {f"tokenizer/{p.name}": p for p in tokenizer.iterdir() if p.suffix in _TOKENIZER and p.is_file()}
    for component, parts in checkpoint.files.items():
        files |= {f"{component}/{p.name}": p for p in parts}
    said = {
        "configs": {component: dict(config.raw) for component, config in checkpoint.configs.items()},
        "scheduler": dict(checkpoint.scheduler),
        "boundary": checkpoint.boundary,
        "expand_timesteps": checkpoint.expand_timesteps,
        "files": dict(zip(files, digests(files.values()), strict=True)),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def digests(files: Iterable[Path]) -> list[str]:
    """SHA-256 (hex) of each file's bytes. Raises WanlabError."""
    paths = [path.resolve() for path in files]
    cache = _cache()
    if cache is not None and not _remembered:
        _remembered.update(_read(cache))
    before = len(_remembered)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        found = list(pool.map(_digest, paths))
    if cache is not None and len(_remembered) > before:
        _write(cache)
    return found


def _digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            key, is_settled = _identity(path, file.fileno())
            if key not in _remembered:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                if not is_settled or _identity(path, file.fileno())[0] != key:
                    return digest
                _remembered[key] = digest
        return _remembered[key]
    except OSError as error:
        raise WanlabError(f"cannot read {path}: {error.strerror or error}", "get the checkpoint again") from error


def _identity(path: Path, file: int) -> tuple[str, bool]:
    """What tells that an open file is still the same, and whether it can be told: another write within the tick of
    the file system's clock would leave no trace."""
    stat = os.fstat(file)
    changed = max(stat.st_mtime_ns, stat.st_ctime_ns)
    key = f"{path} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_dev} {stat.st_ino}"
    return key, time.time_ns() - changed > 10**9


def _cache() -> Path | None:
    """Where digests are kept between processes; None where there is no such place."""
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # no home directory
        return None
    return Path(home) / "wanlab" / "fingerprints.json"


def _read(cache: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if cache.is_file() and cache.stat().st_size < 2**24:
            plain = json.loads(cache.read_bytes())
            if isinstance(plain, dict):
                return {k: v for k, v in plain.items() if isinstance(v, str) and len(v) == 64}
    return {}


def _write(cache: Path) -> None:
    """Best effort: without it files are read again next time."""
    with contextlib.suppress(WanlabError):
        make_folder(cache.parent)
        newest = dict(list((_read(cache) | _remembered).items())[-1000:])
        write_text(cache, json.dumps(newest))
