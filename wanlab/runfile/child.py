"""What a run file holds as plain values; for a file of unknown origin, found out in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from wanlab.errors import WanlabError
from wanlab.runfile.check import verify
from wanlab.runfile.reader import Run


def examine(path: Path, check: bool = False) -> dict[str, Any]:
    """What a run file holds, as JSON values; its specification as it stands there. `check` reads all of it.

    Raises WanlabError.
    """
    path = Path(path)
    problems = verify(path) if check else None
    with Run(path) as run:
        spec = run.attrs.get("spec", {})
        policies = spec.get("policies")
        return {
            "path": str(path), "format": run.version, "status": run.status, "digest": run.digest,
            "bytes": path.stat().st_size, "spec": spec, "policies": policies if isinstance(policies, list) else [],
            "attributes": run.attrs, "problems": problems,
            "data": [
                {
                    "name": d.name, "dims": " ".join(d.dims), "shape": "x".join(map(str, d.shape)),
                    "dtype": str(d.dtype), "unit": d.unit, "stored": d.stored_bytes, "what": d.doc,
                }
                for d in run.data.values()
            ],
        }  # fmt: skip


def read_in_child(path: Path, memory: int, seconds: float, check: bool = False) -> dict[str, Any]:
    """`examine` in a process that may take `memory` bytes of address space and `seconds` of time.

    Raises WanlabError when the file is refused there, or when the process ends at one of its bounds.
    """
    code = "import sys; from wanlab.runfile.child import main; main(*sys.argv[1:])"
    command = [sys.executable, "-c", code, os.fspath(path), str(memory), str(seconds), str(int(check))]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # a stack for each thread counts too
    harm = "it is damaged, or made to harm"
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds + 30, check=False, env=env)
    except subprocess.TimeoutExpired as error:
        raise WanlabError(f"{path} takes more than {seconds:g} s to read", harm) from error
    try:
        kind, content = json.loads(done.stdout)
    except ValueError as error:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        why = f"ended with {done.returncode} within {memory} bytes and {seconds:g} s: {''.join(said)[:160]}"
        raise WanlabError(f"reading {path} {why}", harm) from error
    if kind == "error":
        raise WanlabError(*content)
    return dict(content)


def main(path: str, memory: str, seconds: str, check: str) -> None:
    """The child: prints `content` or `error` and what it is, as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    limit = max(1, int(float(seconds)))
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
    try:
        said = ["content", examine(Path(path), check == "1")]
    except WanlabError as error:
        said = ["error", [error.message, error.hint]]
    except MemoryError:
        said = ["error", [f"{path} takes more than {memory} bytes to read", "it is damaged, or made to harm"]]
    print(json.dumps(said, default=lambda value: value.tolist()))
