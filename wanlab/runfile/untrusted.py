"""A file from a stranger, opened in a process of its own that may take only so much memory and time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from wanlab.errors import WanlabError
from wanlab.runfile.reader import Run
from wanlab.runfile.verify import verify

_CHILD = """
import json, resource, sys
memory, seconds, path = int(sys.argv[1]), max(1, int(float(sys.argv[2]))), sys.argv[3]
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from wanlab.errors import WanlabError
from wanlab.runfile import summary
try:
    out = summary(path, sys.argv[4] == "check")
except WanlabError as error:
    out = {"error": [error.message, error.hint]}
sys.stdout.write(json.dumps(out, default=str))
"""


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
    path: str | os.PathLike[str], memory: int = 2**30, seconds: float = 10, *, check: bool = False
) -> dict[str, Any]:
    """`summary`, by a child process of at most `memory` bytes and `seconds` of processor time. Raises WanlabError."""
    command = [
        sys.executable,
        "-c",
        _CHILD,
        str(memory),
        str(seconds),
        os.path.abspath(Path(path)),
        "check" if check else "",
    ]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, timeout=3 * seconds, env=environment, check=False)
    except subprocess.TimeoutExpired as error:
        raise WanlabError(f"{path} is refused: reading it took over {3 * seconds} s", "do not use this file") from error
    except (OSError, ValueError) as error:
        raise WanlabError(f"cannot read {path} in a process of its own: {error}", "check the path") from error
    try:
        content = json.loads(done.stdout)
    except ValueError as error:
        what = f"reading it took more than {memory} bytes or {seconds} s, or ended the process ({done.returncode})"
        raise WanlabError(f"{path} is refused: {what}", "do not use this file") from error
    if "error" in content:
        raise WanlabError(*content["error"])
    return {**content, "path": str(path)}
