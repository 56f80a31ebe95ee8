"""Many processes on one job: slices, claims, and what is left when one of them is killed."""

from __future__ import annotations

import csv
import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanlab import files
from wanlab.cli.app import main
from wanlab.engine.run import Progress
from wanlab.errors import UsageError, WanlabError
from wanlab.runfile import Run
from wanlab.spec import RunSpec
from wanlab.study.runners import Workers, local, ray
from wanlab.study.runners.groups import PairGroup, Shard, claim
from wanlab.study.runners.local import Overall

TIMES = re.compile("seconds|speedup$|speedup_total")


# --- slices ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 60), st.integers(1, 40))
def test_shards_are_the_whole_once_and_in_its_order(groups: int, count: int) -> None:
    every = [PairGroup((), Path(str(k))) for k in range(groups)]
    slices = [Shard(k + 1, count).of(every) for k in range(count)]
    assert [g for s in slices for g in s] == every
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


@pytest.mark.parametrize(("text", "says"), [("0/4", "1/4 to 4/4"), ("5/4", "4/4"), ("1/0", "1/1"), ("2", "write")])
def test_shards_that_there_are_not(text: str, says: str) -> None:
    with pytest.raises(UsageError) as error:
        Shard.parse(text)
    assert says in str(error.value)


def slurm(task: int, least: int, most: int, count: int, step: int = 1) -> dict[str, str]:
    values = {"ID": task, "MIN": least, "MAX": most, "COUNT": count, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({}, "1/1"),
        ({"RANK": "2", "WORLD_SIZE": "4"}, "3/4"),
        ({"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, "1/1"),  # torchrun's: they share a clip
        ({"RANK": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "1/1"),
        ({"RANK": "2"}, "1/1"),
        (slurm(0, 0, 7, 8), "1/8"),
        (slurm(8, 1, 8, 8), "8/8"),
        (slurm(6, 2, 10, 5, step=2), "3/5"),
        (slurm(3, 3, 5, 2), "1/1"),  # --array=3,5: tasks that are sent again share what is missing
        (slurm(4, 4, 4, 1), "1/1"),
        (slurm(1, 0, 3, 4) | {"LOCAL_RANK": "0", "RANK": "5", "WORLD_SIZE": "8"}, "2/4"),
    ],
)
def test_variables_that_say_a_shard(environment: dict[str, str], shard: str) -> None:
    assert str(Shard.of_environment(environment)) == shard


@pytest.mark.parametrize("environment", [{"RANK": "4", "WORLD_SIZE": "4"}, {"RANK": "x", "WORLD_SIZE": "4"}])
def test_variables_that_say_nonsense(environment: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"RANK.*--shard"):
        Shard.of_environment(environment)


def test_variables_do_not_divide_one_clip_but_an_option_does() -> None:
    """An array whose tasks each ask for a clip of their own gets every one of them."""
    one = [PairGroup((), Path("a"))]
    assert Workers(shard=Shard(1, 4, "RANK and WORLD_SIZE")).own(one) == one
    assert Workers(shard=Shard(1, 4)).own(one) == []


def test_runners_that_there_are_not() -> None:
    with pytest.raises(UsageError, match="did you mean ray"):
        Workers(runner="rai")
    with pytest.raises(UsageError, match="add --runner ray"):
        Workers(address="auto")


# --- claims ------------------------------------------------------------------------------------------------------


def holder(path: Path) -> subprocess.Popen[str]:
    """A process that has locked a file."""
    program = (
        "import sys\nfrom wanlab import files\n"
        "lock = files.lock(sys.argv[1])\nprint(lock is not None, flush=True)\nsys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "True\n"
    return process


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    group = PairGroup((), tmp_path / "baseline" / "a.h5")
    path = tmp_path / "baseline" / ".a.lock"
    with claim(group) as mine:
        assert mine and path.exists()
    assert not path.exists()
    other = holder(path)
    with claim(group) as mine:
        assert not mine
    assert path.exists()
    other.send_signal(signal.SIGKILL)
    other.communicate()
    with claim(group) as mine:
        assert mine
    assert list(path.parent.iterdir()) == []


def test_a_lock_whose_file_is_removed_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock on a file that its holder has just removed would exclude nobody."""
    path, real = tmp_path / "lock", files.fcntl.flock
    removals = iter([True, False])

    def flock(fd: int, how: int) -> None:
        if next(removals):
            path.unlink()
        real(fd, how)

    monkeypatch.setattr(files.fcntl, "flock", flock)
    lock = files.lock(path)
    assert lock is not None and os.fstat(lock).st_ino == path.stat().st_ino
    os.close(lock)


def test_what_another_process_has_claimed_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [RunSpec(prompt=p, steps=2) for p in "abc"]
    groups = local.each(specs, [tmp_path / f"{s.prompt}.h5" for s in specs])
    other = holder(tmp_path / ".a.lock")
    told: list[str] = []

    class Listener(local.Watcher):
        def say(self, text: str) -> None:
            if "another process" in text:
                told.append(text)
                other.kill()
                other.communicate()

    def run(spec: RunSpec, place: Path, *_: object, **__: object) -> None:
        told.append(spec.prompt)

    monkeypatch.setattr(local, "_run", run)
    assert local.run_groups(groups, watcher=Listener()) == []
    assert told == ["b", "c", f"{tmp_path / 'a.h5'} is being written by another process: waiting for it", "a"]


def test_what_others_made_since_is_not_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two commands with --force sample each run once more, not twice."""
    specs = [RunSpec(prompt=p, steps=2) for p in "ab"]
    groups = local.each(specs, [tmp_path / f"{s.prompt}.h5" for s in specs])
    for _, place in (run for g in groups for run in g.runs):
        place.write_text("old")
    forced: list[bool] = []

    def run(spec: RunSpec, place: Path, *_: object, force: bool, **__: object) -> None:
        forced.append(force)
        files.write_text(tmp_path / "b.h5", "new")  # what the other command does

    monkeypatch.setattr(local, "_run", run)
    local.run_groups(groups, force=True)
    assert forced == [True, False]


class Failures(local.Watcher):
    """Notes which runs fail, and with what."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def fail(self, place: Path, error: WanlabError) -> None:
        self.said.append(f"{place.stem}: {error.message} ({error.hint})")


def two_runs(folder: Path) -> list[PairGroup]:
    specs = [RunSpec(prompt=p, steps=2) for p in "ab"]
    return local.each(specs, [folder / f"{s.prompt}.h5" for s in specs])


def test_a_film_that_fails_after_its_run_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run file that has appeared meanwhile is this process's own."""
    tried: list[str] = []

    def execute(spec: RunSpec, place: Path, *, progress: Any, **_: object) -> None:
        tried.append(spec.prompt)
        progress(Progress(phase="write", total=2))
        place.write_text("finished")
        raise WanlabError("the film cannot be written", "free some space")

    monkeypatch.setattr("wanlab.engine.run.execute", execute)
    heard = Failures()
    assert len(local.run_groups(two_runs(tmp_path), watcher=heard)) == 2
    assert tried == ["a", "b"] and len(heard.said) == 2


def test_an_error_of_the_system_ends_a_run_and_not_those_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute(spec: RunSpec, place: Path, **_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(place))

    monkeypatch.setattr("wanlab.engine.run.execute", execute)
    heard = Failures()
    assert len(local.run_groups(two_runs(tmp_path), watcher=heard)) == 2
    assert [line.split(":")[0] for line in heard.said] == ["a", "b"]
    assert all("Input/output error (" in line for line in heard.said)


# --- what Ray's workers tell -------------------------------------------------------------------------------------


def test_steps_of_lost_workers_are_counted_as_work_but_not_as_progress() -> None:
    """Two runs of 10 steps. One is complete already; the other is at step 7 when its worker is lost, goes on from 6 and
    is finished: 7 + 4 steps were sampled, none is left."""
    a, b = Path("a"), Path("b")
    tally = ray._Tally({a: 10, b: 10})
    tally.note("kept", a, 10)
    tally.end(a)
    tally.note("sample", b, 7)
    assert tally.overall(2) == Overall(done=1, kept=1, sampled=7, left=3, workers=2)
    tally.note("resume", b, 6)
    assert tally.overall(1).left == 4
    tally.note("sample", b, 10)
    tally.end(b)
    assert tally.overall(1) == Overall(done=2, kept=1, sampled=11, left=0, workers=1)


def test_a_run_that_a_lost_worker_finished_unheard_was_not_there_before() -> None:
    tally = ray._Tally({Path("a"): 10})
    tally.note("sample", Path("a"), 9)
    tally.note("kept", Path("a"), 10)
    assert tally.overall(1).kept == 0


def test_news_are_told_once_and_only_the_last_step() -> None:
    news, spec, place = ray._News(), RunSpec(prompt="a", steps=3), Path("a")
    news.begin(spec, place)
    for step in (0, 1, 2):
        news.progress(Progress(phase="sample", step=step, total=3))
    assert news.take() == [("sample", place, (2,))]
    news.progress(Progress(phase="encode", total=3, notice="the prompt has 600 tokens"))
    news.progress(Progress(phase="sample", step=3, total=3))
    news.finish(place)
    assert news.take() == [
        ("say", place, ("the prompt has 600 tokens",)),
        ("sample", place, (3,)),
        ("finish", place, ()),
    ]
    assert news.take() == []


def test_ray_may_be_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    groups = local.each([RunSpec(prompt="a")], [tmp_path / "a.h5"])
    with pytest.raises(WanlabError, match=r"ray is not installed; pip install 'wanlab\[ray\]'"):
        Workers(runner="ray").run(groups)
    one = local.each([RunSpec(prompt="a", device="cuda:1")], [tmp_path / "a.h5"])
    with pytest.raises(UsageError, match=r"--device cuda:1 is one GPU.*use --device cuda"):
        Workers(runner="ray").run(one)


# --- the whole ---------------------------------------------------------------------------------------------------


def command(checkpoint: Path, out: Path, prompts: int, seeds: int, *more: str) -> list[str]:
    given = [f for word in ("ball", "red", "blue", "left", "right", "moves")[:prompts] for f in ("--prompt", word)]
    small = ["--size", "32x16", "--frames", "9", "--steps", "4", "--seed", f"0:{seeds}", "--model", str(checkpoint)]
    return ["compare", "--a", "cfg:last=1", *small, *given, "--out", str(out), *more]


def call(args: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def program(args: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "wanlab", *args],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ
        | {"OMP_NUM_THREADS": "1"}
        | environment,  # as many as here: with more, sums differ in their last bits
    )


def runs(out: Path) -> dict[str, tuple[int, int]]:
    """The run files in a folder, and what tells each from another of its name."""
    # Not by rglob, which fails on a folder of unfinished steps that goes while it looks.
    walked = (Path(folder) / name for folder, _, names in os.walk(out) for name in names)
    found = {str(p.relative_to(out)): p.stat() for p in sorted(walked) if p.suffix == ".h5"}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


def check_equal(out: Path, plain: Path) -> None:
    """The runs of two folders are equal bit by bit, their tables but for times, and nothing else is left."""
    assert runs(out).keys() == runs(plain).keys()
    for name in runs(out):
        with Run(out / name) as a, Run(plain / name) as b:
            assert a.digest == b.digest
            for array in ("latent", "video_float"):
                assert np.array_equal(np.asarray(a[array]), np.asarray(b[array])), name
            assert np.array_equal(np.asarray(a["x_t"]), np.asarray(b["x_t"])), name
    assert table(out) == table(plain)
    assert [p for p in out.rglob("*") if p.suffix in (".part", ".lock")] == []


def table(out: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader((out / "comparison.csv").open()))
    assert rows
    return [{k: v for k, v in row.items() if not TIMES.search(k)} for row in rows]


def kill_at_work(process: subprocess.Popen[str], out: Path) -> None:
    """Kill a process as soon as it has written a step."""
    deadline = time.monotonic() + 300
    while not list(out.rglob("step-*.wls")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.005)
    process.kill()
    process.communicate()


def test_three_shards_one_killed(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    killed = program(command(checkpoint, out, 3, 1), **slurm(1, 0, 2, 3))
    kill_at_work(killed, out)
    for shard in ("1/3", "3/3"):
        assert call(command(checkpoint, out, 3, 1, "--shard", shard)) == 0
        assert "still to come: the last shard" in capsys.readouterr().err
    assert not (out / "comparison.json").exists()
    kept = runs(out)
    assert call(command(checkpoint, out, 3, 1, "--shard", "2/3")) == 0
    assert len(runs(out)) == 6 and kept.items() <= runs(out).items()
    assert call(command(checkpoint, tmp_path / "plain", 3, 1)) == 0
    check_equal(out, tmp_path / "plain")


@pytest.mark.slow
def test_eight_shards_one_killed(checkpoint: Path, tmp_path: Path) -> None:
    """All at once: nothing is missing and nothing is made twice."""
    out = tmp_path / "out"
    args = command(checkpoint, out, 6, 4)
    shards = [program([*args, "--shard", f"{k}/8"]) for k in range(1, 9)]
    kill_at_work(shards[5], out)
    said = [process.communicate(timeout=1500)[1] for k, process in enumerate(shards) if k != 5]
    assert [p.returncode for p in shards] == [0] * 5 + [-signal.SIGKILL] + [0] * 2, said
    kept = runs(out)
    assert len(kept) < 48 and not (out / "comparison.json").exists()
    again = program([*args, "--shard", "6/8"])
    assert "concludes" not in again.communicate(timeout=600)[1] and again.returncode == 0
    assert len(runs(out)) == 48 and kept.items() <= runs(out).items()
    assert call(command(checkpoint, tmp_path / "plain", 6, 4)) == 0
    check_equal(out, tmp_path / "plain")


@pytest.mark.slow
def test_commands_in_one_folder_share_what_they_have_in_common(checkpoint: Path, tmp_path: Path) -> None:
    """Three processes, two of them with the same command: the latest results are of one comparison, every run is made
    once, and each process ends well."""
    out = tmp_path / "out"
    one = command(checkpoint, out, 3, 2)
    two = [arg.replace("last=1", "last=2") for arg in one]
    processes = [program(args) for args in (one, one, two)]
    said = [process.communicate(timeout=900)[1] for process in processes]
    assert [p.returncode for p in processes] == [0, 0, 0], said
    kept = sum(int(n) for text in said for n in re.findall(r"(\d+) of 12 runs were complete already", text))
    assert 3 * 12 - kept == 3 * 6 == len(runs(out))
    latest = (out / "comparison.csv").read_text()
    assert latest in {p.read_text() for p in (out / "comparisons").glob("*.csv")} and len(set(runs(out))) == 18
    assert len(list((out / "comparisons").glob("*.json"))) == 2
