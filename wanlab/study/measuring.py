"""The pairs of a comparison measured: here, or by as many processes as there are cores where that is faster."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from wanlab.errors import WanlabError
from wanlab.runfile import Reader
from wanlab.study.runners.local import Watcher

if TYPE_CHECKING:
    from wanlab.analysis.compare import Pair
    from wanlab.analysis.fidelity import Known

FEW = 24  # pairs that are measured here: other processes would take longer to begin
MOST = 16  # processes, which take some 0.3 GB each
DAY = 86400.0  # seconds, and …
EXBIBYTE = 2**60  # … bytes: our own runs have no limits

Place = tuple[Path, Path]  # of a run, and of the baseline's


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure_pairs(pairs: Sequence[Place], metrics: Sequence[str], watcher: Watcher) -> dict[Place, Pair]:
    """Every pair of a run and the baseline's, measured. Where there are measures beside the usual, all are measured
    here: they may want the GPU and all the memory, and be known to this process only.

    Raises UsageError and WanlabError as `analysis.compare.measure`.
    """
    from wanlab.analysis.compare import measure

    groups: dict[Path, list[Path]] = {}
    for run, baseline in dict.fromkeys(pairs):
        groups.setdefault(baseline, []).append(run)
    total = sum(map(len, groups.values()))
    count = min(cores(), len(groups), MOST)
    measured: dict[Place, Pair] = {}
    if total > FEW and count > 1 and _are_usual(metrics):
        for baseline, made in _by_processes(groups, count):
            measured |= {(pair.a, baseline): pair for pair in made}
            watcher.measure(len(measured), total)
    for baseline, runs in groups.items():
        known: Known = {}
        for run in runs:
            if (run, baseline) not in measured:
                measured[run, baseline] = measure(run, baseline, metrics=metrics, known=known, told=watcher.look)
                watcher.measure(len(measured), total)
    return measured


def _are_usual(metrics: Sequence[str]) -> bool:
    from wanlab.analysis.metrics import chosen

    return not metrics and all(m.function.__module__.startswith("wanlab.") for m in chosen())


def measure_group(baseline: Path, runs: Sequence[Path]) -> list[Pair]:
    """Runs against one of the baseline, of which what is measured of it alone is measured once."""
    from wanlab.analysis.compare import measure

    known: Known = {}
    return [measure(run, baseline, known=known) for run in runs]


def _by_processes(groups: Mapping[Path, Sequence[Path]], count: int) -> Iterator[tuple[Path, list[Pair]]]:
    """What `count` processes measure of the groups, as they do; without those that failed there."""
    idle: SimpleQueue[Reader] = SimpleQueue()

    def work(baseline: Path, runs: Sequence[Path]) -> list[Pair]:
        reader = idle.get()
        try:
            return reader(measure_group, baseline, runs)
        finally:
            idle.put(reader)

    with contextlib.ExitStack() as stack, ThreadPoolExecutor(count) as threads:
        readers = [stack.enter_context(Reader(EXBIBYTE, DAY)) for _ in range(count)]
        for reader in readers:
            idle.put(reader)
        jobs: dict[Future[list[Pair]], Path] = {threads.submit(work, b, runs): b for b, runs in groups.items()}
        try:
            for job in as_completed(jobs):
                try:
                    made = job.result()
                except WanlabError:  # measured again, here, it says what is wrong
                    continue
                yield jobs[job], made
        finally:
            for job in jobs:
                job.cancel()
            for reader in readers:
                reader.end()
