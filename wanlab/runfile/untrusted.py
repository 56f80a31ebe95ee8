"""Files from strangers, read in a process of its own that may take only so much memory and time.

The library that reads HDF5 can be led to crash, or to run without end, by a file that was made to do so; and what a
small file expands to is known only when it is read. There such a file ends a process that holds nothing else.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Self, TypeVar

from wanlab.errors import WanlabError
from wanlab.runfile.checks import check_place
from wanlab.runfile.reader import Run
from wanlab.runfile.verify import verify

T = TypeVar("T")
MEMORY = 2**30  # bytes that the process may take …
SECONDS = 10.0  # … and seconds of processor time that a file may; three times that of the clock
START = 120.0  # seconds until the process is there
MAX_REPLY = 2**28  # bytes that it may say of a file
FAILED = "reading it failed"  # where it is we who did not foresee what the file holds

# Modules are looked for where this process finds them: `-c` alone would begin with the working folder, a stranger's.
_CHILD = """
import sys
sys.path[:] = {path!r}
from wanlab.runfile.untrusted import serve
serve({fd}, {memory}, {seconds})
"""


class Reader:
    """A process that reads one file after the other; begun when the first is asked for, and again after one that ended
    it. Used as a context manager, which ends it.

    reader(function, path)  is `function(path)`, worked out there. Both go by pickle: `function` is one of a module.
    """

    def __init__(self, memory: int = MEMORY, seconds: float = SECONDS) -> None:
        self.memory, self.seconds = memory, seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def __call__(self, function: Callable[..., T], path: str | os.PathLike[str], *more: Any) -> T:
        """Raises WanlabError: `function`'s own, and for a file that takes more than the limits or ends the process."""
        check_place(Path(path))
        pipe = self._pipe or self._begin()
        try:
            pipe.send((function, path, more))
            if not pipe.poll(3 * self.seconds):
                raise _refused(path, f"reading it took over {3 * self.seconds:.0f} s")
            value = pickle.loads(pipe.recv_bytes(MAX_REPLY))
        except (EOFError, ConnectionError) as error:
            why = _said(self.close(wait=5), self.seconds)
            raise _refused(path, f"reading it {why}") from error
        except OSError as error:  # a longer answer than that
            self.close()
            raise _refused(path, f"it holds more than {MAX_REPLY} bytes to report") from error
        except BaseException:  # also ctrl-c: what it would answer now is not waited for
            self.close()
            raise
        if isinstance(value, WanlabError):
            raise value
        read: T = value
        return read

    def _begin(self) -> Connection:
        self._pipe, theirs = Pipe()
        code = _CHILD.format(path=sys.path, fd=theirs.fileno(), memory=self.memory, seconds=self.seconds)
        nowhere = subprocess.DEVNULL
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", code],
                    pass_fds=[theirs.fileno()],
                    stdin=nowhere,
                    stdout=nowhere,
                    stderr=nowhere,
                    env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                )
            if self._pipe.poll(START) and self._pipe.recv() == "ready":
                return self._pipe
            said = f"it was not there in {START:.0f} s"
        except (OSError, EOFError) as error:
            said = f"{error}" or "it ended at once"
        self.close()
        raise WanlabError(f"cannot start the process that reads files of unknown origin: {said}", "check `ulimit -a`")

    def close(self, wait: float = 0) -> int:
        """End the process, after `wait` seconds in which it may end by itself; returns its status."""
        process, pipe, self._process, self._pipe = self._process, self._pipe, None, None
        if pipe is not None:
            pipe.close()
        if process is None:
            return 0
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(wait)
        process.kill()
        return process.wait()

    def end(self) -> None:
        """End the process, from any thread: one that waits for its answer is told so."""
        if (process := self._process) is not None:
            process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _refused(path: str | os.PathLike[str], what: str) -> WanlabError:
    return WanlabError(f"{path} is refused: {what}", "do not use this file")


def _said(status: int, seconds: float) -> str:
    if status == -signal.SIGXCPU:
        return f"took over {seconds:.0f} s of processor time"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"status {status}"
    return f"ended the process that did ({name})"


def serve(fd: int, memory: int, seconds: float) -> None:
    """What the process does: answer until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-c is for the one that asks, who closes the pipe
    _limit(resource.RLIMIT_AS, memory)
    _limit(resource.RLIMIT_CORE, 0)
    with Connection(fd) as pipe, contextlib.suppress(EOFError, ConnectionError):
        pipe.send("ready")
        while True:
            function, path, more = pipe.recv()
            used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
            _limit(resource.RLIMIT_CPU, math.ceil(used + seconds))
            try:
                answer = pickle.dumps(function(path, *more))
            except WanlabError as error:
                answer = pickle.dumps(error)
            except MemoryError:
                answer = pickle.dumps(_refused(path, "it takes too much memory"))
            except Exception as error:  # one file's, not the end of a report on many
                said = f"{FAILED}: {type(error).__name__} {' '.join(str(error).split())[:160]}"
                answer = pickle.dumps(_refused(path, said))
            pipe.send_bytes(answer)


def _limit(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def summary(path: str | os.PathLike[str], check: bool = False) -> dict[str, Any]:
    """What a run file holds, as plain values: path, format, status, digest, bytes, spec (as the file has it),
    attributes, data (a row a dataset) and, with `check`, the problems that `verify` finds. Raises WanlabError."""
    problems = verify(path) if check else None
    with Run(path) as run:
        data = [
            {
                "name": d.name,
                "dims": " ".join(d.dims),
                "shape": "x".join(map(str, d.shape)),
                "dtype": str(d.dtype),
                "unit": d.unit,
                "stored": d.stored_bytes,
                "what": d.doc,
            }
            for d in run.data.values()
        ]
        spec = run.attrs.get("spec")
        return {
            "path": str(path),
            "format": run.version,
            "status": run.status,
            "digest": run.digest,
            "bytes": run.path.stat().st_size,
            "spec": spec if isinstance(spec, dict) else {},
            "attributes": run.attrs,
            "data": data,
            "problems": problems,
        }


def read_in_child(
    path: str | os.PathLike[str], memory: int = MEMORY, seconds: float = SECONDS, *, check: bool = False
) -> dict[str, Any]:
    """`summary`, by a child process of at most `memory` bytes and `seconds` of processor time. Raises WanlabError."""
    with Reader(memory, seconds) as reader:
        return {**reader(summary, path, check), "path": str(path)}
