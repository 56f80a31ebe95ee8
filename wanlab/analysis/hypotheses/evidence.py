"""What was measured: run files, comparisons and continuity analyses, each checked where it is opened."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from wanlab.analysis.hypotheses.schema import COMPARISON, read_json
from wanlab.analysis.key import Key
from wanlab.analysis.measured import Measured, read_run
from wanlab.errors import WanlabError
from wanlab.runfile import Reader
from wanlab.spec.paths import check_result


@dataclass(frozen=True)
class Comparison:
    path: Path
    content: Mapping[str, Any]


@dataclass(frozen=True)
class Continuity:
    path: Path
    content: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    runs: tuple[Measured, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    continuities: tuple[Continuity, ...] = ()
    problems: tuple[tuple[Path, str], ...] = ()
    """Files that could not be read, and why."""

    @property
    def empty(self) -> bool:
        return not (self.runs or self.comparisons or self.continuities)


def collect(paths: Iterable[Path]) -> Evidence:
    """Everything below these files and folders. A file that cannot be read is named among the problems, and skipped.
    Anybody may have put a run file there: all are read in a process of their own, which one may end. Raises UsageError
    for a path that is not there."""
    runs: dict[Path, Measured] = {}
    comparisons: dict[Path, Comparison] = {}
    continuities: dict[Path, Continuity] = {}
    problems: dict[Path, str] = {}
    seen: list[Mapping[str, Any]] = []
    with Reader() as reader:
        for path in dict.fromkeys(p for given in paths for p in files(given)):
            try:
                if path.suffix == ".h5":
                    runs[path] = reader(read_run, path)
                    continue
                content = read_json(path)
                if content in seen:  # comparison.json is the newest of those under comparisons/
                    continue
                seen.append(content)
                if content["format"] == COMPARISON:
                    comparisons[path] = Comparison(path, content)
                else:
                    continuities[path] = Continuity(path, content)
            except WanlabError as error:
                problems[path] = error.message
    return Evidence(
        runs=tuple(runs.values()),
        comparisons=tuple(comparisons.values()),
        continuities=tuple(continuities.values()),
        problems=tuple(problems.items()),
    )


def files(given: Path) -> list[Path]:
    """The files below a path that `collect` reads. Raises UsageError for a path that is not there."""
    check_result(given)
    if not os.path.isdir(given):
        return [given]
    names = ("*.h5", "comparison.json", "comparisons/*.json", "continuity_statistics.json")
    wanted = {p for name in names for p in given.rglob(name)}
    return sorted(p for p in wanted if not os.path.isdir(p) and not any(q.name.endswith(".h5.part") for q in p.parents))


def plain_runs(evidence: Evidence, value: Callable[[Measured], float] = lambda r: 0.0) -> list[Measured]:
    """Runs without policies that have the value, each (prompt, seed) of a key once however often it was sampled or
    copied; of several, one that a comparison put under baseline/."""
    seen: dict[tuple[Any, ...], Measured] = {}
    for r in sorted(evidence.runs, key=lambda r: r.path.parent.name != "baseline"):
        if not r.policies and math.isfinite(value(r)):
            seen.setdefault((r.prompt, r.seed, r.key), r)
    return list(seen.values())


def curves(evidence: Evidence) -> list[tuple[Continuity, Mapping[str, Any]]]:
    """Runs of the continuity analyses, each once however many analyses hold it."""
    seen: dict[Any, tuple[Continuity, Mapping[str, Any]]] = {}
    for c in evidence.continuities:
        for r in c.content["runs"]:
            which = ("method", "prompt", "seed") if r.get("prompt") else ("source",)
            seen.setdefault((*(r.get(name) for name in which), key_of(r)), (c, r))
    return list(seen.values())


def key_of(exported: Mapping[str, Any]) -> Key:
    """The key of a comparison's pair or of a run in a continuity analysis, as far as it says one."""
    said = exported.get("key") or {}
    steps, frames = said.get("steps", len(exported.get("sigma") or [])), said.get("frames", exported.get("frames"))
    known = {"model": exported.get("model") or "", "steps": steps, "frames": frames or 0}
    return Key(**known | {f.name: said[f.name] for f in fields(Key) if f.name in said})
