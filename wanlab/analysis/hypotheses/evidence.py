"""What was measured: run files, comparisons and continuity analyses, each checked where it is opened."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from wanlab.analysis import guidance
from wanlab.analysis.columns import numbers
from wanlab.analysis.hypotheses.schema import COMPARISON, read_json
from wanlab.errors import UsageError, WanlabError
from wanlab.runfile import Run
from wanlab.spec import METHOD_SETTINGS, PolicySpec


@dataclass(frozen=True)
class Key:
    """What runs must have in common to be pooled."""

    model: str
    steps: int
    frames: int
    size: tuple[int, int] | None = None
    shift: float | None = None
    schedule: str | None = None
    solver: str | None = None
    guidance: Any = None
    dtype: str | None = None

    def __str__(self) -> str:
        return f"`{self.model}`, {self.steps} steps, {self.frames} frames"


def titles(keys: Iterable[Key]) -> dict[Key, str]:
    """What to call each: model, steps and frames, and whatever else tells it from another of the same."""
    known = list(dict.fromkeys(keys))
    named = {}
    for key in known:
        alike = [k for k in known if str(k) == str(key)]
        apart = [f.name for f in fields(Key) if len({getattr(k, f.name) for k in alike}) > 1]
        named[key] = ", ".join([str(key), *(f"{name} {getattr(key, name)}" for name in apart)])
    return named


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
        return (self.model, self.frames, self.size, self.steps, self.key.shift)

    @property
    def key(self) -> Key:
        sets = dict(zip(METHOD_SETTINGS, self.settings, strict=False))
        return Key(
            self.model,
            self.steps,
            self.frames,
            self.size,
            self.shift if math.isfinite(self.shift) else None,
            *(sets.get(name) for name in ("schedule", "solver", "guidance", "dtype")),
        )

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
    seen: list[Mapping[str, Any]] = []
    for path in dict.fromkeys(p for given in paths for p in files(given)):
        try:
            if path.suffix == ".h5":
                runs[path] = read_run(path)
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
    if not os.path.isdir(given):
        if not os.path.lexists(given):
            raise UsageError(f"there is no {given}", "name folders that wanlab wrote, or run files")
        if given.suffix in (".h5", ".json"):
            return [given]
        raise UsageError(f"{given} is no run file and no comparison or continuity analysis", "name one, or a folder")
    names = ("*.h5", "comparison.json", "comparisons/*.json", "continuity_statistics.json")
    wanted = {p for name in names for p in given.rglob(name)}
    return sorted(p for p in wanted if not os.path.isdir(p) and not any(q.name.endswith(".h5.part") for q in p.parents))


def read_run(path: Path) -> Measured:
    """What is needed of one run file. Raises WanlabError."""
    with Run(path) as run:
        if run.status != "complete":
            raise WanlabError(f"{path} is not complete")
        spec = run.spec
        g = guidance.analyse(run)
        means = g.by_expert()
        high, low = (means.get(e, {}).get("mse", math.nan) for e in ("high", "low"))
        shift = run.attrs.get("shift")
        return Measured(
            path=path,
            prompt=spec.prompt,
            seed=spec.seed,
            model=spec.model,
            frames=spec.frames,
            steps=spec.steps,
            policies=spec.policies,
            settings=tuple(getattr(spec, name) for name in METHOD_SETTINGS),
            shift=float(shift) if isinstance(shift, int | float) else math.nan,
            passes=int(g.passes.sum()),
            seconds=float(numbers(run, "seconds").sum()),
            size=(spec.width, spec.height),
            sigma=tuple(g.sigma.tolist()),
            switch=g.switch,
            noise=math.nan if g.switch is None else _noise_share(run, float(g.sigma[g.switch])),
            mse=tuple(g.mse.tolist()),
            change=tuple(g.change.tolist()),
            high_over_low=high / low if low > 0 else math.nan,
        )


def _noise_share(run: Run, sigma: float) -> float:
    """Share of x_t's mean square that is noise: x_t = (1-sigma) x0 + sigma eps, where the final latent stands for x0
    and eps has unit variance. NaN without the latent."""
    if "latent" not in run:
        return math.nan
    latent, spec = run["latent"], run.spec
    size = math.prod(latent.shape)
    # A file may declare any size: a latent has fewer values than the video has pixels.
    if len(latent.dims) != 4 or latent.dtype.kind != "f" or size > spec.width * spec.height * spec.frames:
        raise WanlabError(f"{run.path}: 'latent' is {latent.shape} of {latent.dtype}", "make it again")
    square = sum(float(np.sum(latent[:, f].astype(np.float64) ** 2)) for f in range(latent.shape[1])) / size
    return sigma**2 / (sigma**2 + (1 - sigma) ** 2 * square)


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


def curve_key(curve: Mapping[str, Any]) -> Key:
    """As far as a continuity analysis says it."""
    frames = curve.get("frames")
    return Key(str(curve.get("model") or ""), len(curve.get("sigma") or []), 0 if frames is None else int(frames))
