"""Pairs measured by several processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import wanlab
from wanlab import registry
from wanlab.analysis import metrics
from wanlab.errors import WanlabError
from wanlab.runfile import Reader
from wanlab.study import measuring
from wanlab.study.measuring import Place, measure_pairs
from wanlab.study.runners.local import Watcher


@pytest.fixture(scope="module")
def pairs(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Place]:
    """Of two methods, two prompts and two seeds."""
    out = tmp_path_factory.mktemp("measuring")
    result = wanlab.compare(
        ["cfg:last=1", "half"],
        prompts=["a red ball", "a blue star"],
        seeds=range(2),
        model=str(checkpoint),
        steps=4,
        frames=9,
        size="32x16",
        out=out,
        progress=False,
    )
    return [(pair.a, pair.b) for r in result.comparison.results for pair in r.pairs]


@pytest.fixture(autouse=True)
def usual(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the measures that other tests register."""
    metrics.every()  # which registers the package's
    own = {n: m for n, m in registry._known["metric"].items() if m.function.__module__.startswith("wanlab.")}
    monkeypatch.setattr(registry, "_known", registry._known | {"metric": own})
    monkeypatch.setattr(metrics, "_of_files", {})


class Told(Watcher):
    def __init__(self) -> None:
        self.done: list[tuple[int, int]] = []

    def measure(self, done: int, total: int) -> None:
        self.done.append((done, total))


def plain(pairs: list[Place]) -> tuple[dict[Place, Any], Told]:
    told = Told()
    return {place: pair.to_dict() for place, pair in measure_pairs(pairs, (), told).items()}, told


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, however few there are to measure."""
    monkeypatch.setattr(measuring, "FEW", 0)
    monkeypatch.setattr(measuring, "MOST", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)


def test_processes_measure_what_one_does(pairs: list[Place], request: pytest.FixtureRequest) -> None:
    here, told = plain(pairs)
    assert told.done == [(k, 8) for k in range(1, 9)]
    request.getfixturevalue("two")
    there, told = plain(pairs)
    assert there == here and told.done == [(2, 8), (4, 8), (6, 8), (8, 8)]


def test_what_a_lost_process_had_is_measured_here(
    pairs: list[Place], two: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = plain(pairs[:2])
    begun: list[Path] = []

    class Lost(Reader):
        def __call__(self, function: Callable[..., Any], path: Any, *more: Any) -> Any:
            begun.append(path)
            made = super().__call__(os.getpid, path) if len(begun) == 1 else super().__call__(function, path, *more)
            return made

    monkeypatch.setattr(measuring, "Reader", Lost)
    there, told = plain(pairs)
    assert len(begun) == 4 and len(there) == 8 and told.done[-1] == (8, 8)
    assert all(there[place] == pair for place, pair in here.items())


def test_a_measure_of_ones_own_is_measured_here(pairs: list[Place], two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics.metric("of_my_own", needs="run")(lambda cost: 3.0)
    there = measure_pairs(pairs, (), Watcher())
    assert [pair.figures["of_my_own"] for pair in there.values()] == [3.0] * 8


def test_a_damaged_run_is_named_as_without_processes(pairs: list[Place], two: None, tmp_path: Path) -> None:
    broken = tmp_path / "run.h5"
    broken.write_bytes(b"no run")
    with pytest.raises(WanlabError) as error:
        measure_pairs([*pairs, (broken, pairs[0][1])], (), Watcher())
    assert str(broken) in str(error.value) and "refused" not in str(error.value)


def test_no_process_outlives_an_interruption(pairs: list[Place], two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    readers: list[Reader] = []

    class Kept(Reader):
        def __init__(self, *limits: Any) -> None:
            super().__init__(*limits)
            readers.append(self)

    class Interrupted(Watcher):
        def measure(self, done: int, total: int) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "Reader", Kept)
    with pytest.raises(KeyboardInterrupt):
        measure_pairs(pairs, (), Interrupted())
    assert len(readers) == 2 and all(r._process is None for r in readers)
