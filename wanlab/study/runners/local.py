"""Running specifications one after the other in this process, with one model loaded."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wanlab import files
from wanlab.errors import WanlabError
from wanlab.spec import RunSpec
from wanlab.study.requests import check_place
from wanlab.study.runners.groups import PAUSE, PairGroup, Stamp, claim, stamp, stamps
from wanlab.study.text import in_words

if TYPE_CHECKING:
    from wanlab.engine.run import Models, Progress

RETRIES = 3  # of a run that another process was seen to write


@dataclass(frozen=True, kw_only=True)
class Overall:
    """How far a job is that several workers do."""

    done: int
    """Runs that are complete, or failed."""
    kept: int
    """Those that were complete already."""
    sampled: int
    """Denoising steps that were sampled in this job."""
    left: int
    """Those still to come."""
    workers: int


class Watcher:
    """What is told how a job goes on. Nothing here shows anything: subclasses do."""

    def start(self, runs: int, steps: int) -> None:
        """A job of so many runs and denoising steps begins."""

    def begin(self, spec: RunSpec, place: Path) -> None:
        """A run begins."""

    def progress(self, progress: Progress) -> None:
        """The run has come so far."""

    def overall(self, overall: Overall) -> None:
        """Several workers have come so far; runs and their progress are not told then."""

    def finish(self, place: Path) -> None:
        """The run is complete."""

    def fail(self, place: Path, error: WanlabError) -> None:
        """The run failed, the job goes on."""

    def look(self, frames: int) -> None:
        """So many frames of the pair of videos in hand are measured."""

    def measure(self, done: int, total: int) -> None:
        """So many of the results are measured."""

    def say(self, text: str) -> None:
        """Something that the user should know, in a sentence."""

    def end(self) -> None:
        """The job has ended, well or not."""


def run_all(
    specs: Sequence[RunSpec],
    places: Sequence[Path],
    *,
    force: bool = False,
    gif: bool = False,
    watcher: Watcher | None = None,
    loaded: Models | None = None,
) -> list[Path]:
    """`run_groups` of runs that have nothing to do with each other."""
    return run_groups(each(specs, places), force=force, gif=gif, watcher=watcher, loaded=loaded)


def each(specs: Sequence[RunSpec], places: Sequence[Path]) -> list[PairGroup]:
    """A group for each run."""
    return [PairGroup(((spec, place),), place) for spec, place in zip(specs, places, strict=True)]


def run_groups(
    groups: Sequence[PairGroup],
    *,
    force: bool = False,
    gif: bool = False,
    watcher: Watcher | None = None,
    loaded: Models | None = None,
) -> list[Path]:
    """Run every spec into its file, in order, with one model loaded; returns the files of runs that failed.

    What cannot be done fails before a model is loaded. A run that fails among several is told to the watcher; alone it
    raises. Groups that another process has claimed come last, and are waited for. `loaded` keeps the model for the
    next job. Raises UsageError and WanlabError.
    """
    from wanlab.engine import run as engine

    watcher = watcher or Watcher()
    runs = [run for group in groups for run in group.runs]
    check_places(groups)
    for spec, _ in runs:
        engine.plan(spec)
    if words := unknown_words([spec for spec, _ in runs]):
        watcher.say(words)
    before = stamps(groups) if force else {}
    failed: list[Path] = []
    watcher.start(len(runs), sum(spec.steps for spec, _ in runs))
    try:
        loaded = loaded or engine.Models()
        left, passed = deque(groups), 0
        while left:
            group = left.popleft()
            with claim(group) as mine:
                if mine:
                    passed = 0
                    failed += run_group(group, loaded, watcher, before, gif=gif, alone=len(runs) == 1)
                    continue
            left.append(group)
            passed += 1
            if passed == len(left):  # one look at each
                watcher.say(f"{_count(left)} being written by another process: waiting for it")
            if passed % len(left) == 0:
                time.sleep(PAUSE)
    finally:
        watcher.end()
    return failed


def _count(left: Sequence[PairGroup]) -> str:
    places = [place for group in left for _, place in group.runs]
    return f"{places[0]} is" if len(places) == 1 else f"{len(places)} runs are"


def check_places(groups: Sequence[PairGroup]) -> None:
    """Refuse places that nothing can be written to. Raises UsageError."""
    from wanlab.engine.run import check_output

    places = [place for group in groups for _, place in group.runs]
    for folder in dict.fromkeys(p.parent for p in places):
        check_place(folder / "run.h5")
    for place in places:
        check_output(place)


def run_group(
    group: PairGroup, loaded: Models, watcher: Watcher, before: Mapping[Path, Stamp], *, gif: bool, alone: bool = False
) -> list[Path]:
    """Run a group that this process has claimed; returns the files of runs that failed.

    before  what was in the places of which the runs are to be sampled again: what is there since then is as new
    alone   a run that fails raises
    """
    from wanlab.engine.run import JobError

    failed: list[Path] = []
    for spec, place in group.runs:
        watcher.begin(spec, place)
        force = place in before and stamp(place) == before[place]
        try:
            _run(spec, place, loaded, watcher, force=force, gif=gif)
            watcher.finish(place)  # which may draw, and fail as a run does
        except (WanlabError, OSError) as error:
            if alone or isinstance(error, JobError):
                raise
            failed.append(place)
            watcher.fail(place, error if isinstance(error, WanlabError) else WanlabError(*in_words(error)))
    return failed


def _run(spec: RunSpec, place: Path, loaded: Models, watcher: Watcher, *, force: bool, gif: bool) -> None:
    """One run; where another process is in the way, which compares it with something else, what that makes is waited
    for."""
    from wanlab.engine import run as engine

    left, written = RETRIES, False

    def progress(told: engine.Progress) -> None:
        nonlocal written
        written = written or told.phase == "write"
        watcher.progress(told)

    while True:
        there = place.exists()
        try:
            engine.execute(spec, place, progress=progress, loaded=loaded, force=force, gif=gif)
            return
        except engine.JobError:
            raise
        except WanlabError:
            busy = is_being_written(place)
            appeared = place.exists() and not there
            if written or not left or not (busy or appeared or left < RETRIES):
                raise  # a file that this process has written says nothing of another one
        left -= 1
        force = False  # what the other process makes is as new
        if busy:
            watcher.say(f"{place} is being written by another process: waiting for it")
        while is_being_written(place):
            time.sleep(PAUSE)


def is_being_written(place: Path) -> bool:
    """Whether another process is writing a run file."""
    try:
        from wanlab.runfile import part_directory

        lock = files.lock(part_directory(place) / "lock", create=False)
    except OSError:
        return False
    if lock is None:
        return True
    os.close(lock)
    return False


def unknown_words(specs: Sequence[RunSpec]) -> str:
    """One warning for all prompt words that the embedded model never learned; empty when it knows them all."""
    if not any(s.model == "tiny" for s in specs):
        return ""
    from wanlab.embedded import world

    words = list(dict.fromkeys(w for s in specs if s.model == "tiny" for w in world.unknown_words(s.prompt)))
    if not words:
        return ""
    vocabulary = "; ".join(f"{kind}: {', '.join(ws)}" for kind, ws in world.known_words().items() if kind != "others")
    return f"warning: tiny never learned: {', '.join(words[:12])}{', …' * (len(words) > 12)}. It knows {vocabulary}."
