"""What step caches and guidance rules would have done in runs that are there: an estimate, in seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanlab.errors import UsageError
from wanlab.spec import MethodSpec
from wanlab.study.continuity import find
from wanlab.study.requests import check_names
from wanlab.study.results import WhatIfResult
from wanlab.study.runners.local import Watcher
from wanlab.study.text import steps_in_short

if TYPE_CHECKING:
    from wanlab.engine.replay import Replayed

ESTIMATE = "an estimate: the latents are those of the full runs, not those that the method would have come to"


def what_if(runs: Sequence[Path], methods: Sequence[MethodSpec], *, watcher: Watcher | None = None) -> WhatIfResult:
    """Each method held against each run (files, or folders of them) that was recorded with level "all".

    Raises UsageError for a run or a method that does not allow it, and WanlabError.
    """
    from wanlab.engine.replay import replay
    from wanlab.runfile import Run

    paths, watcher = find(runs), watcher or Watcher()
    for method in methods:
        if other := [name for name, _ in method.settings if name != "guider"]:
            raise UsageError(
                f"{method}: {other[0]} is set", "a recorded run keeps its settings: take policies and guider"
            )
    replayed: dict[str, list[list[Replayed]]] = {str(m): [] for m in methods}
    for done, path in enumerate(paths, 1):
        with Run(path) as run:
            for method in methods:
                spec = method.apply(dataclasses.replace(run.spec, policies=()))
                check_names(spec)
                replayed[str(method)].append(replay(run, spec))
        watcher.measure(done, len(paths))
    content = {
        "estimate": ESTIMATE,
        "methods": [
            {
                "method": method,
                "runs": [
                    {"run": str(path), "steps": [dataclasses.asdict(s) for s in steps]}
                    for path, steps in zip(paths, of_runs, strict=True)
                ],
            }
            for method, of_runs in replayed.items()
        ],
    }
    return WhatIfResult(content=content, rows=[_row(m, of_runs) for m, of_runs in replayed.items()])


def _row(method: str, runs: Sequence[Sequence[Replayed]]) -> dict[str, Any]:
    """A method over all runs."""
    saved = [1 - sum(s.passes for s in steps) / sum(s.of for s in steps) for steps in runs]
    errors = [s.error for steps in runs for s in steps if s.error or s.reused or s.left_out]
    row: dict[str, Any] = {"method": method, "runs": len(runs), "saved": sum(saved) / len(saved)}
    row |= {"least": min(saved), "most": max(saved)}
    row |= {"error": sum(errors) / len(errors) if errors else None, "worst": max(errors, default=None)}
    for name in ("reused", "left_out"):
        sets = [{s.step for s in steps if getattr(s, name)} for steps in runs]
        always, ever = set.intersection(*sets), set.union(*sets)
        row[name] = steps_in_short(sorted(always))
        row[f"{name} in some"] = steps_in_short(sorted(ever - always))
    return row


def step_rows(content: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a method and step: the share of the runs that do less there, and what is off there when they do."""
    rows = []
    for method in content["methods"]:
        for at in zip(*(run["steps"] for run in method["runs"]), strict=True):
            less = [s for s in at if s["reused"] or s["left_out"]]
            off = [s["error"] for s in at if s["error"] or s in less]
            rows.append(
                {
                    "method": method["method"],
                    "step": at[0]["step"],
                    "expert": at[0]["expert"],
                    "share of runs": len(less) / len(at),
                    "error": sum(off) / len(off) if off else None,
                    "worst": max(off, default=None),
                }
            )
    return rows
