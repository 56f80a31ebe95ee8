"""Every call by which a command reaches the disk fails in turn, or the command ends there: nothing is lost.

The faults come from a library in C that is loaded before Python (tests/faults/shim.c), so that HDF5's own calls fail
too; `tests/faults/harness.py` says what has to hold after each.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "faults"
ROOT = HERE.parent.parent


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler, and Linux")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    command = [
        compiler,
        "-O1",
        "-shared",
        "-fPIC",
        "-Wall",
        "-Werror",
        "-o",
        str(library),
        str(HERE / "shim.c"),
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return library


def trials(shim: Path, checkpoint: Path, folder: Path, *args: str) -> dict[str, int]:
    """Run the harness: how many calls there were and how many trials; fails if anything did not hold."""
    command = [sys.executable, "-m", "tests.faults.harness", str(checkpoint), str(folder), *args]
    env = {**os.environ, "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    *wrong, last = done.stdout.splitlines()
    assert not wrong, "\n".join(wrong[:20])
    counts: dict[str, int] = json.loads(last)
    return counts


def test_a_fault_is_a_fault(shim: Path, checkpoint: Path, tmp_path: Path) -> None:
    """The calls of one run are seen, HDF5's among them, and the first of them can fail."""
    counts = trials(shim, checkpoint, tmp_path, "generate", "--only", "1", "--faults", "EIO", "SIGKILL")
    assert counts["calls"] > 100 and counts["trials"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("command", ["generate", "compare", "continuity", "report"])
def test_no_fault_loses_anything(shim: Path, checkpoint: Path, tmp_path: Path, command: str) -> None:
    counts = trials(shim, checkpoint, tmp_path, command)
    assert counts["trials"] > 100
