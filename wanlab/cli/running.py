"""Running specifications one after the other, with progress on stderr."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from wanlab.cli import render
from wanlab.errors import WanlabError
from wanlab.spec import RunSpec
from wanlab.study.runners import local

if TYPE_CHECKING:
    from wanlab.engine.run import Progress as Report


class Watcher(local.Watcher):
    """Progress on stderr: bars on a terminal, nothing in a pipe; failures and notices in lines.

    The first bar is the run's, the second the whole job's, its remaining time told from the steps that were sampled:
    those of runs that were complete are not counted.
    """

    def __init__(self, done: Callable[[Path], None] = lambda _: None) -> None:
        console = render.talk()
        self._done = done
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}", markup=False),
            TextColumn("{task.fields[pace]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._job: TaskID | None = None
        self._run: TaskID | None = None
        self._runs = self._number = self._kept = self._failures = 0
        self._todo = self._sampled = self._before = 0  # denoising steps

    def start(self, runs: int, steps: int) -> None:
        self._runs, self._todo = runs, steps
        self._number = self._kept = self._failures = self._sampled = 0  # a command may have several jobs
        self._bars.start()
        if runs > 1:
            self._job = self._bars.add_task("all", total=steps, count=f"0/{runs} runs", pace="")

    def begin(self, spec: RunSpec, place: Path) -> None:
        if self._run is not None:
            self._bars.remove_task(self._run)
        self._number += 1
        self._before = 0
        lead = f"[{self._number}/{self._runs}] " if self._runs > 1 else ""
        name = f"{lead}{render.plain(spec.prompt, 28)}"
        self._run = self._bars.add_task(name, total=spec.steps, count=f"0/{spec.steps}", pace="")
        self._place = place

    def progress(self, p: Report) -> None:
        if getattr(p, "notice", ""):
            render.say(p.notice)
        if p.phase == "kept":
            self._kept += 1
            self._todo -= p.total
        elif p.phase == "resume" and p.step:
            render.say(f"{self._place}: going on after step {p.step} of {p.total}")
            self._todo -= p.step
            self._before = p.step
        elif p.phase == "sample" and p.step > self._before:
            self._sampled += p.step - self._before
            self._before = p.step
        pace = f"{p.phase} {p.seconds:.2f} s/step" if p.phase == "sample" and p.seconds else p.phase
        pace += f" {render.size(p.memory)}" if p.memory else ""
        if self._run is not None:
            self._bars.update(self._run, completed=p.step, count=f"{p.step}/{p.total}", pace=pace)
        if self._job is not None:
            count = f"{self._number - 1}/{self._runs} runs"
            self._bars.update(self._job, completed=self._sampled, total=max(self._todo, 1), count=count)

    def overall(self, o: local.Overall) -> None:
        self._kept = o.kept
        count, pace = f"{o.done}/{self._runs} runs", f"{o.workers} worker{'s' * (o.workers != 1)}"
        if self._job is None:
            self._job = self._bars.add_task("all", total=None, count="", pace="")
        self._bars.update(self._job, completed=o.sampled, total=max(o.sampled + o.left, 1), count=count, pace=pace)

    def finish(self, place: Path) -> None:
        self._done(place)

    def fail(self, place: Path, error: WanlabError) -> None:
        self._failures += 1
        render.complain(f"{place}: {error.message}", error.hint)

    def look(self, frames: int) -> None:
        self._bars.update(self._measuring(), pace=f"frame {frames}")

    def measure(self, done: int, total: int) -> None:
        self._bars.update(self._measuring(), completed=done, total=total, count=f"{done}/{total}")
        if done == total:
            self._close()

    def _measuring(self) -> TaskID:
        """The bar of pairs that are measured."""
        if self._job is None:
            self._bars.start()
            self._job = self._bars.add_task("measuring", total=None, count="", pace="")
        return self._job

    def say(self, text: str) -> None:
        render.say(text)

    def end(self) -> None:
        self._close()
        if self._kept:
            runs = f"{self._kept} of {self._runs} runs were" if self._runs > 1 else "the run was"
            render.say(f"{runs} complete already and kept; --force samples again")
        if self._failures and self._runs:
            render.complain(
                f"{self._failures} of {self._runs} runs failed", "run the same command again; finished runs are kept"
            )
        self._kept = self._failures = 0

    def _close(self) -> None:
        for task in (self._run, self._job):
            if task is not None:
                self._bars.remove_task(task)
        self._run = self._job = None
        self._bars.stop()
