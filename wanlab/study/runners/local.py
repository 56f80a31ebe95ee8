"""Running specifications one after the other in this process, with one model loaded."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wanlab.errors import WanlabError
from wanlab.spec import RunSpec
from wanlab.study.requests import check_place

if TYPE_CHECKING:
    from wanlab.engine.run import Models, Progress

PAUSE = 0.5  # seconds between looks at a run that another process writes
RETRIES = 3  # of a run that another process was seen to write


class Watcher:
    """What is told how a job goes on. Nothing here shows anything: subclasses do."""

    def start(self, runs: int, steps: int) -> None:
        """A job of so many runs and denoising steps begins."""

    def begin(self, spec: RunSpec, place: Path) -> None:
        """A run begins."""

    def progress(self, progress: Progress) -> None:
        """The run has come so far."""

    def finish(self, place: Path) -> None:
        """The run is complete."""

    def fail(self, place: Path, error: WanlabError) -> None:
        """The run failed, the job goes on."""

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
    """Run each spec into its file, in order, with one model loaded; returns the files of runs that failed.

    What cannot be done fails before a model is loaded. A run that fails among several is told to the watcher; alone it
    raises. A run that another process is writing is waited for, then taken. `loaded` keeps the model for the next job.
    Raises UsageError and WanlabError.
    """
    from wanlab.engine import run as engine

    watcher = watcher or Watcher()
    for folder in dict.fromkeys(p.parent for p in places):
        check_place(folder / "run.h5")
    for spec, place in zip(specs, places, strict=True):
        engine.check_output(place)
        engine.plan(spec)
    if words := unknown_words(specs):
        watcher.say(words)
    failed: list[Path] = []
    watcher.start(len(specs), sum(s.steps for s in specs))
    try:
        loaded = loaded or engine.Models()
        for spec, place in zip(specs, places, strict=True):
            watcher.begin(spec, place)
            try:
                _run(spec, place, loaded, watcher, force=force, gif=gif)
                watcher.finish(place)  # which may draw, and fail as a run does
            except WanlabError as error:
                if len(specs) == 1 or isinstance(error, engine.JobError):
                    raise
                failed.append(place)
                watcher.fail(place, error)
    finally:
        watcher.end()
    return failed


def _run(spec: RunSpec, place: Path, loaded: object, watcher: Watcher, *, force: bool, gif: bool) -> None:
    """One run; where another process is in the way, what it makes is waited for."""
    from wanlab.engine import run as engine

    left = RETRIES
    while True:
        there = place.exists()
        try:
            engine.execute(spec, place, progress=watcher.progress, loaded=loaded, force=force, gif=gif)  # type: ignore[arg-type]
            return
        except engine.JobError:
            raise
        except WanlabError:
            busy = is_being_written(place)
            appeared = place.exists() and not there
            if not left or not (busy or appeared or left < RETRIES):
                raise
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

        lock = os.open(part_directory(place) / "lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
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
