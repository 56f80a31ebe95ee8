"""What was measured: run files, comparisons and continuity analyses, each checked where it is opened."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wanlab.analysis import guidance
from wanlab.analysis.hypotheses.schema import COMPARISON, read_json
from wanlab.errors import UsageError, WanlabError
from wanlab.runfile import Run
from wanlab.spec import METHOD_SETTINGS, PolicySpec


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is needed of a run file; NaN where it was not recorded."""

    path: Path
    prompt: str
    seed: int
    model: str
    policies: tuple[PolicySpec, ...]
    settings: tuple[Any, ...]
    """What a method can set beside its policies (spec.METHOD_SETTINGS)."""
    frames: int
    steps: int
    shift: float
    passes: int
    seconds: float
    size: tuple[int, int]
    sigma: tuple[float, ...]
    switch: int | None
    noise: float
    """Share of x_t's mean square at the expert switch that is noise."""
    mse: tuple[float, ...]
    change: tuple[float, ...]
    high_over_low: float

    @property
    def asked(self) -> tuple[Any, ...]:
        """What tells runs of one prompt and seed apart that are no copies of each other, whatever their method."""
        return (self.model, self.frames, self.size, self.steps, self.shift)

    @property
    def method(self) -> str:
        return " ".join(map(str, self.policies)) or "baseline"


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
    Raises UsageError for a path that is not there."""
    runs: dict[Path, Measured] = {}
    comparisons: dict[Path, Comparison] = {}
    continuities: dict[Path, Continuity] = {}
    problems: dict[Path, str] = {}
    for path in dict.fromkeys(p for given in paths for p in files(given)):
        try:
            if path.suffix == ".h5":
                runs[path] = read_run(path)
                continue
            content = read_json(path)
            if content["format"] == COMPARISON:
                comparisons[path] = Comparison(path, content)
            else:
                continuities[path] = Continuity(path, content)
        except WanlabError as error:
            problems[path] = error.message
    return Evidence(
        runs=tuple(runs.values()), comparisons=tuple(comparisons.values()), continuities=tuple(continuities.values()),
        problems=tuple(problems.items()),
    )  # fmt: skip


def files(given: Path) -> list[Path]:
    """The files below a path that `collect` reads. Raises UsageError for a path that is not there."""
    if given.is_file():
        if given.suffix in (".h5", ".json"):
            return [given]
        raise UsageError(f"{given} is no run file and no comparison or continuity analysis", "name one, or a folder")
    if not given.is_dir():
        raise UsageError(f"there is no {given}", "name folders that wanlab wrote, or run files")
    wanted = (*given.rglob("*.h5"), *given.rglob("comparison.json"), *given.rglob("continuity_statistics.json"))
    return sorted(p for p in wanted if p.is_file() and not any(q.name.endswith(".h5.part") for q in p.parents))


def read_run(path: Path) -> Measured:
    """What is needed of one run file. Raises WanlabError."""
    with Run(path) as run:
        if run.status != "complete":
            raise WanlabError(f"{path} is not complete")
        spec = run.spec
        g = guidance.analyse(run)
        by = g.by_expert()
        share = math.nan
        if g.switch is not None and "latent" in run:
            # x_t = (1-sigma) x0 + sigma eps; the final latent stands for x0, and eps has unit variance.
            sigma = float(g.sigma[g.switch])
            signal = (1 - sigma) ** 2 * float(np.mean(np.asarray(run["latent"], np.float64) ** 2))
            share = sigma**2 / (sigma**2 + signal)
        high, low = (by.get(e, {}).get("mse", math.nan) for e in ("high", "low"))
        return Measured(
            path=path, prompt=spec.prompt, seed=spec.seed, model=spec.model, frames=spec.frames, steps=spec.steps,
            policies=spec.policies, settings=tuple(getattr(spec, name) for name in METHOD_SETTINGS), shift=float(run.attrs.get("shift", math.nan)),
            passes=int(g.passes.sum()), seconds=float(np.asarray(run["seconds"]).sum()), size=(spec.width, spec.height),
            sigma=tuple(g.sigma.tolist()), switch=g.switch, noise=share, mse=tuple(g.mse.tolist()),
            change=tuple(g.change.tolist()), high_over_low=high / low if low > 0 else math.nan,
        )  # fmt: skip


def plain_runs(evidence: Evidence) -> list[Measured]:
    """Runs without policies, each (model, prompt, seed, length) once however often it was copied; of several that
    were sampled differently (another guidance, kernel, dtype) the one that a comparison put under baseline/."""
    seen: dict[tuple[Any, ...], Measured] = {}
    for r in sorted(evidence.runs, key=lambda r: r.path.parent.name != "baseline"):
        if not r.policies:
            seen.setdefault((r.prompt, r.seed, r.asked), r)
    return list(seen.values())


def curves(evidence: Evidence) -> list[tuple[Continuity, Mapping[str, Any]]]:
    """Runs of the continuity analyses, each once however many analyses hold it."""
    seen: dict[Any, tuple[Continuity, Mapping[str, Any]]] = {}
    for c in evidence.continuities:
        for r in c.content["runs"]:
            which = ("method", "model", "prompt", "seed", "frames") if r.get("prompt") else ("source",)
            seen.setdefault((*(r.get(name) for name in which), len(r.get("sigma") or [])), (c, r))
    return list(seen.values())
