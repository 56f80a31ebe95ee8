"""Recording a run, step by step; killed at any instant it can be resumed."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wanlab import files
from wanlab.errors import WanlabError
from wanlab.runfile.fields import FORMAT_VERSION, MIB, Array, Field, Json, by_name
from wanlab.runfile.fold import append_seal, encode_attrs, fold
from wanlab.runfile.reader import Run
from wanlab.runfile.shards import (
    check_same_run,
    index_of,
    list_shards,
    load_shard,
    pack,
    part_directory,
    publish,
    read_manifest,
    split_resume,
    write_part,
)

_WAITING_BYTES = 512 * MIB  # memory that waiting steps may take: above it, `step` waits for the disk


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
        self._fields = by_name(fields)
        self._attrs = dict(attrs or {})
        encode_attrs({"spec_digest": digest, "spec_json": spec_json})
        encode_attrs(self._attrs, reserved=True)
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
            raise files.io_error("write", self.directory, error) from error
        except BaseException:
            self._unlock()
            raise
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._thread = threading.Thread(target=self._work, name="wanlab-runfile", daemon=True)
        self._thread.start()

    def _open(self, manifest: dict[str, Any], start: int, force: bool) -> None:
        if self.path.is_dir():
            raise WanlabError(f"{self.path} is a directory", "name a file")
        if self.directory.is_symlink():
            raise WanlabError(f"{self.directory} is a link", "remove the link, or name another file")
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = None
        with contextlib.suppress(FileNotFoundError):  # the directory too goes when another process has finished
            lock = files.lock(self.directory / "lock")
        if lock is None:
            raise WanlabError(f"{self.path} is being written by another process", "wait for it")
        self._lock = lock
        before = read_manifest(self.directory)
        if before is not None and not force:
            check_same_run(self.path, before, manifest["digest"])
        if start:
            if before is None or before["fields"] != json.loads(json.dumps(manifest["fields"])):
                raise WanlabError(f"{self.directory} has nothing to resume from", "start from step 0")
            manifest["resumed_at"] = [*before["resumed_at"], start]
        # Resume states first: interrupted here, what is left is an earlier beginning, never a gap.
        for old in list_shards(self.directory, "resume"):
            if index_of(old) != start or not start:
                old.unlink()
        for old in reversed(list_shards(self.directory, "step")):
            if index_of(old) >= start:
                old.unlink()
        for old in self.directory.glob("*.part"):
            old.unlink()
        self._manifest = manifest
        target = self.directory / "manifest.json"
        publish(write_part(target, [json.dumps(manifest).encode()]))
        files.sync(self.directory)
        files.sync(self.directory.parent)

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
        self._queue.put((index, arrays, None if resume is None else split_resume(resume)))
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
            write_part(self.directory / f"step-{index:06d}.wls", pack(arrays, {"step": index}))
            for index, arrays, _ in steps
        ]
        for part in parts:
            publish(part)
        newest: Path | None = None
        for index, _, state in reversed(steps):
            if state is not None:  # after the shards that it counts on: on the disk too the renames are in this order
                newest = publish(write_part(self.directory / f"resume-{index + 1:06d}.wls", pack(*state)))
                break
        files.sync(self.directory)
        self.durable = steps[-1][0] + 1
        if newest is not None:
            for old in list_shards(self.directory, "resume"):
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
            return files.io_error("write", self.directory, error)
        return WanlabError(f"cannot write {self.directory}: {type(error).__name__}: {error}", "")

    def finish(self, final: Mapping[Field, Any] | None = None, attrs: Mapping[str, Any] | None = None) -> Path:
        """Fold the shards, the final arrays and more root attributes into the file; returns its path.

        The directory of shards goes only after the file is on the disk under its name. A failure leaves it, so
        that the run can be finished again without sampling again.
        """
        by_name([*self._fields.values(), *(final or {})])
        values = {field: field.convert(value) for field, value in (final or {}).items()}
        attributes = {**self._attrs, **(attrs or {})}
        if self._manifest["resumed_at"]:
            attributes["resumed_at"] = self._manifest["resumed_at"]
        encoded = encode_attrs(attributes, reserved=True)
        encoded["spec_json"] = self._manifest["spec_json"]
        encoded["spec_digest"] = self._manifest["digest"]
        encoded["status"] = "complete"
        self.flush()
        folded = self.directory / "fold.h5.part"
        try:
            fold(folded, self.directory, self._next, list(self._fields.values()), values, encoded)
            append_seal(folded)
            os.replace(folded, self.path)
            files.sync(self.path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):  # one more failure must not hide the first
                folded.unlink()
            raise files.io_error("write", self.path, error) from error
        self._stop()
        _remove(self.directory, self._lock)  # the run is safe; what stays is only untidy
        self._lock = -1
        return self.path

    def close(self) -> None:
        """Write what is waiting and stop the thread. Never raises; errors are raised on leaving the context."""
        if not self._closed:
            self._stop()
            self._unlock()

    def _stop(self) -> None:
        self._closed = True
        self._queue.put(None)
        self._thread.join()

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
        manifest = read_manifest(directory)
        if manifest is None:
            return None
        check_same_run(path, manifest, digest)
        if fields is not None and manifest["fields"] != json.loads(json.dumps([asdict(f) for f in fields])):
            return None
        whole = 0
        with contextlib.suppress(WanlabError):
            while (shard := directory / f"step-{whole:06d}.wls").exists():
                load_shard(shard)
                whole += 1
        for state in reversed(list_shards(directory, "resume")):
            with contextlib.suppress(WanlabError):
                if 0 < index_of(state) <= whole:
                    arrays, notes = load_shard(state)
                    return index_of(state), {**notes, **arrays}
        return None


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove the shards beside a finished run: a process killed just after it finished leaves them.

    For the caller that has found `path` finished. Does nothing while another process writes there, when the
    shards are of another run, or when something else stands in their place. Never raises.
    """
    directory = part_directory(path)
    if directory.is_symlink() or not directory.is_dir():
        return
    with contextlib.suppress(OSError, WanlabError):
        manifest = read_manifest(directory)  # none: a removal was interrupted
        known = all(p.name in ("lock", "manifest.json") or p.suffix in (".wls", ".part") for p in directory.iterdir())
        with Run(path) as run:
            other = manifest is not None and manifest["digest"] != run.digest
            if not known or other or run.status != "complete":
                return
        lock = files.lock(directory / "lock")
        if lock is not None:
            _remove(directory, lock)


def _remove(directory: Path, lock: int) -> None:
    """Remove a directory of shards, and only then let go of its lock: nobody begins in what is being removed."""
    try:
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        os.close(lock)
    with contextlib.suppress(OSError):  # NFS keeps a removed file in its directory while it is open
        directory.rmdir()
