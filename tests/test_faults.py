"""Calls by which a command reaches the disk fail, or the command ends there: nothing is lost. Of each kind of call the
first, one in the middle and the last (the harness alone takes every one, with --all).

The faults come from a library in C that is loaded before Python (tests/faults/shim.c), so that HDF5's own calls fail
too; `tests/faults/harness.py` says what has to hold after each.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "faults"
ROOT = HERE.parent.parent
COMMANDS = ["generate", "compare", "continuity", "report"]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler, and Linux")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    options = ["-O1", "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(library)]
    subprocess.run([compiler, *options, str(HERE / "shim.c"), "-ldl"], check=True)
    return library


def trials(shim: Path, checkpoint: Path, folder: Path, *args: str) -> dict[str, int]:
    """Run the harness: the counts that it prints; fails if anything did not hold."""
    command = [sys.executable, "-m", "tests.faults.harness", str(checkpoint), str(folder), *args]
    env = {**os.environ, "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    *wrong, last = done.stdout.splitlines()
    assert not wrong, "\n".join(wrong[:20])
    counts: dict[str, int] = json.loads(last)
    return counts


def stopped_in_imports(shim: Path, at: int, signum: int) -> subprocess.CompletedProcess[str]:
    """A command that gets a signal where it opens the at-th time a file of wanlab's, which are its modules."""
    command = [sys.executable, "-m", "wanlab", "generate", "--dry-run", "--prompt", "a ball"]
    env = {**os.environ, "LD_PRELOAD": str(shim), "WANLAB_FAULT": f"{at} {signum} {ROOT / 'wanlab'}"}
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_fault_is_a_fault(shim: Path, checkpoint: Path, tmp_path: Path) -> None:
    """The calls of one run are seen, HDF5's among them, and the first of them can fail."""
    counts = trials(shim, checkpoint, tmp_path, "generate", "--only", "1", "--faults", "EIO", "SIGKILL")
    assert counts["calls"] > 100 and counts["trials"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_no_fault_loses_anything(shim: Path, checkpoint: Path, tmp_path: Path, command: str) -> None:
    counts = trials(shim, checkpoint, tmp_path, command)
    assert counts["trials"] > 100


@pytest.mark.slow
def test_no_kill_loses_anything(shim: Path, checkpoint: Path, tmp_path: Path) -> None:
    counts = trials(shim, checkpoint, tmp_path, *COMMANDS, "--kills", "200")
    assert counts["kills"] >= 200 and all(counts[f"kills of {command}"] for command in COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_any_import_is_one_line(shim: Path, signum: int) -> None:
    # The first four are the package's and __main__'s own, before any of its lines run: what Python does is not ours.
    for at in range(5, 100, 5):
        done = stopped_in_imports(shim, at, signum)
        # SIGTERM ends a program at once, in silence, until somebody obeys it.
        silent = signum == signal.SIGTERM and done.returncode == -signum
        assert silent or (done.returncode == 128 + signum and done.stderr.count("\n") == 1), (at, done)
