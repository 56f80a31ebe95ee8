"""A file from a stranger, opened in a process of its own that may take only so much memory and time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from wanlab.errors import WanlabError

_CHILD = """
import json, resource, sys
memory, seconds, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from wanlab.errors import WanlabError
from wanlab.runfile import Run, verify
try:
    problems = verify(path)
    with Run(path) as run:
        data = [
            {"name": d.name, "group": d.group, "dims": list(d.dims), "shape": list(d.shape), "dtype": str(d.dtype),
             "unit": d.unit, "doc": d.doc, "stored_bytes": d.stored_bytes, "recorded": list(d.recorded)}
            for d in run.data.values()
        ]
        out = {"version": run.version, "status": run.status, "digest": run.digest, "steps": run.steps,
               "dims": run.dims, "attrs": run.attrs, "data": data, "problems": problems}
except WanlabError as error:
    out = {"error": [error.message, error.hint]}
sys.stdout.write(json.dumps(out, default=str))
"""


def read_in_child(path: str | os.PathLike[str], memory: int = 2**30, seconds: int = 10) -> dict[str, Any]:
    """What a run file holds, found by a child process of at most `memory` bytes and `seconds` of processor time.

    Returns version, status, digest, steps, dims, attrs, data (name, group, dims, shape, dtype, unit, doc,
    stored_bytes, recorded) and the problems that `verify` found. Raises WanlabError.
    """
    command = [sys.executable, "-c", _CHILD, str(memory), str(seconds), os.path.abspath(Path(path))]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=3 * seconds, env=environment, check=False)
    except subprocess.TimeoutExpired as error:
        raise WanlabError(f"{path} is refused: reading it took over {3 * seconds} s", "do not use this file") from error
    except (OSError, ValueError) as error:
        raise WanlabError(f"cannot read {path} in a process of its own: {error}", "check the path") from error
    try:
        summary = json.loads(done.stdout)
    except ValueError as error:
        what = f"reading it took more than {memory} bytes or {seconds} s, or ended the process ({done.returncode})"
        raise WanlabError(f"{path} is refused: {what}", "do not use this file") from error
    if "error" in summary:
        raise WanlabError(*summary["error"])
    return dict(summary)
