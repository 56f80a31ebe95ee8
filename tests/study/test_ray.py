"""The runs of a job on Ray's workers: on fake machines, some of which are lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.study.test_runners import call, check_equal, command, runs
from wanlab.errors import WanlabError
from wanlab.study.runners.local import Overall, Watcher

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Three machines of a core each."""
    from ray.cluster_utils import Cluster

    os.environ["OMP_NUM_THREADS"] = "1"
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(2):
        machines.add_node(num_cpus=1)
    yield machines
    ray.shutdown()
    machines.shutdown()


@pytest.fixture(scope="module")
def plain(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 prompts and seeds, compared in this process."""
    out = tmp_path_factory.mktemp("plain") / "out"
    assert call(command(checkpoint, out, 6, 4)) == 0
    return out


def workers_of(machines: Any) -> list[int]:
    """The processes of our workers on the machines, by their names and whose children they are."""
    raylets = {p.process.pid for m in machines.list_all_nodes() for p in m.all_processes.get("raylet", [])}
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and b"ray::Worker" in (folder / "cmdline").read_bytes():
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                found += [int(folder.name)] if parent in raylets else []
        except OSError:
            continue
    return found


@pytest.mark.parametrize("trial", range(20))
def test_a_machine_is_removed_and_a_worker_killed(
    trial: int, cluster: Any, plain: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """Every run is there once, equal bit by bit to a plain one, and the tables are equal."""
    out, chance = tmp_path / "out", random.Random(trial)
    losses: list[str] = []
    over = threading.Event()

    def lose() -> None:
        for what in chance.sample(("machine", "worker"), 2):
            target = chance.randrange(1, 36)
            while len(runs(out)) < target and not over.wait(0.05):
                pass
            if over.is_set():
                return
            if what == "machine":
                cluster.remove_node(chance.choice(sorted(cluster.worker_nodes, key=str)), allow_graceful=False)
            elif pids := workers_of(cluster):
                os.kill(chance.choice(pids), signal.SIGKILL)
            losses.append(what)

    thread = threading.Thread(target=lose)
    thread.start()
    try:
        assert call(command(checkpoint, out, 6, 4, "--runner", "ray", "--ray-address", cluster.address)) == 0
    finally:
        over.set()
        thread.join()
    assert sorted(losses) == ["machine", "worker"] and len(runs(out)) == 48
    for lock in out.rglob(".*.lock"):  # of a worker that was lost; nobody has it, and a rerun would remove it
        lock.unlink()
    check_equal(out, plain)


def test_what_a_job_says(cluster: Any, checkpoint: Path, tmp_path: Path) -> None:
    """Its steps add up, failures and refusals come back as they are, and a finished job keeps its runs."""
    from wanlab.spec import RunSpec
    from wanlab.study.runners.local import each
    from wanlab.study.runners.ray import run_groups

    told: list[Overall] = []
    failures: list[tuple[Path, str]] = []

    class Listener(Watcher):
        def overall(self, overall: Overall) -> None:
            told.append(overall)

        def fail(self, place: Path, error: WanlabError) -> None:
            failures.append((place, error.message))

    def job(**settings: Any) -> list[Path]:
        specs = [
            RunSpec(prompt=p, **(dict(model=str(checkpoint), width=32, height=16, frames=9, steps=4) | settings))
            for p in ("ball", "red")
        ]
        groups = each(specs, [tmp_path / f"{s.prompt}.h5" for s in specs])
        return run_groups(groups, force=False, gif=False, watcher=Listener(), address=cluster.address)

    assert job() == []
    assert (told[-1].done, told[-1].kept, told[-1].sampled, told[-1].left) == (2, 0, 8, 0)
    assert job() == [] and (told[-1].done, told[-1].kept, told[-1].sampled) == (2, 2, 0)
    assert job(steps=5) == [tmp_path / "ball.h5", tmp_path / "red.h5"] or failures  # another run is in its place
    with pytest.raises(WanlabError):
        job(frames=10)


def test_a_stop_leaves_everything_to_go_on_with(checkpoint: Path, plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = [sys.executable, "-m", "wanlab", *command(checkpoint, out, 6, 4, "--runner", "ray")]
    process = subprocess.Popen(args, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while len(runs(out)) < 5:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert "stopped" in process.communicate(timeout=60)[1] and process.returncode == 130
    kept = runs(out)
    assert 5 <= len(kept) < 48
    assert call(command(checkpoint, out, 6, 4)) == 0
    assert kept.items() <= runs(out).items()
    check_equal(out, plain)
