"""Running specifications one after the other, with progress on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from wanlab.cli import render
from wanlab.errors import WanlabError
from wanlab.spec import RunSpec

if TYPE_CHECKING:
    from wanlab.engine.run import Progress as Report


def run_all(
    specs: Sequence[RunSpec],
    outs: Sequence[Path],
    *,
    force: bool = False,
    gif: bool = False,
    done: Callable[[Path], None] = lambda _: None,
) -> list[Path]:
    """Run each spec into its file, in order, with one model loaded; `done` is called with each finished file.

    What cannot be done fails before a model is loaded. A run that fails among several is said on stderr, and its
    file returned; alone it raises. Raises UsageError and WanlabError.
    """
    from wanlab.engine import run as engine

    for spec, place in zip(specs, outs, strict=True):
        engine.check_output(place)
        engine.plan(spec)
    warn_of_unknown_words(specs)
    failed: list[Path] = []
    with _progress(len(specs)) as begin:
        loaded = engine.Models()
        for spec, place in zip(specs, outs, strict=True):
            try:
                engine.execute(spec, place, progress=begin(spec), loaded=loaded, force=force, gif=gif)
                done(place)
            except WanlabError as error:
                if len(specs) == 1:
                    raise
                failed.append(place)
                render.complain(f"{place}: {error.message}", error.hint)
    if failed:
        render.complain(
            f"{len(failed)} of {len(specs)} runs failed", "run the same command again; finished runs are kept"
        )
    return failed


def warn_of_unknown_words(specs: Sequence[RunSpec]) -> None:
    """One warning for all prompt words that the embedded model never learned."""
    from wanlab.embedded import world

    unknown = dict.fromkeys(w for s in specs if s.model == "tiny" for w in world.unknown_words(s.prompt))
    if unknown:
        known = "; ".join(f"{kind}: {', '.join(ws)}" for kind, ws in world.known_words().items() if kind != "others")
        words = ", ".join(list(unknown)[:12]) + (", …" if len(unknown) > 12 else "")
        render.say(f"warning: tiny never learned: {words}. It knows {known}.")


@contextmanager
def _progress(runs: int) -> Iterator[Callable[[RunSpec], Callable[[Report], None]]]:
    """Progress on stderr: a bar on a terminal, nothing in a pipe."""
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=30), MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}", markup=False), TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(),
    )  # fmt: skip
    console = render.talk()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        done = 0
        row: TaskID | None = None

        def begin(spec: RunSpec) -> Callable[[Report], None]:
            nonlocal done, row
            done += 1
            name = f"[{done}/{runs}] " if runs > 1 else ""
            if row is not None:
                bar.remove_task(row)
            current = row = bar.add_task(f"{name}{render.plain(spec.prompt, 28)}", total=spec.steps, pace="")

            def report(p: Report) -> None:
                pace = f"{p.phase} {p.seconds:.2f} s/step" if p.phase == "sample" and p.seconds else p.phase
                memory = f" {render.size(p.memory)}" if p.memory else ""
                bar.update(current, completed=p.step, pace=pace + memory)

            return report

        yield begin
