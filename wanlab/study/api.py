"""What `wanlab` offers to Python: the commands as functions, without a terminal.

Progress is shown by tqdm where it is installed; `progress=False` shows none, a `Watcher` of one's own is told instead.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanlab.errors import UsageError, WanlabError
from wanlab.registry import suggest
from wanlab.spec import MethodSpec, PolicySpec, RecordSpec, RunSpec, parse_guidance, parse_size
from wanlab.spec.presets import TASKS, TINY
from wanlab.study import design as designs
from wanlab.study.requests import Prompt, expand, places
from wanlab.study.results import (
    CalibrationResult,
    ComparisonResult,
    ContinuityResult,
    ReportResult,
    RunResult,
    WhatIfResult,
)
from wanlab.study.runners.local import Watcher, run_all

if TYPE_CHECKING:
    from wanlab.engine.run import Progress
    from wanlab.runfile import Run

Place = str | PathLike[str]
Policies = str | Sequence[str]


def specify(
    prompts: str | Iterable[str],
    seeds: int | Iterable[int] = 0,
    *,
    task: str = "",
    policies: Policies = (),
    record: RecordSpec = RecordSpec(),  # noqa: B008 - frozen
    **settings: Any,
) -> list[RunSpec]:
    """A spec for every prompt and seed.

    task      whose official settings are the defaults ("t2v-A14B", …; those of `tiny` without one)
    policies  as "cfg:last=5"
    settings  fields of RunSpec (model, frames, steps, guidance=4 or (3, 4), …), and size="832x480"

    Raises UsageError.
    """
    if task and task not in TASKS:
        raise UsageError(f"task '{task}' is unknown", suggest(task, TASKS))
    fields = {*RunSpec.__dataclass_fields__, "size"} - {"prompt", "seed", "policies", "record"}
    if unknown := [name for name in settings if name not in fields]:
        raise UsageError(f"there is no setting '{unknown[0]}'", suggest(unknown[0], fields))
    preset = TINY | TASKS.get(task, {})
    given = {"negative_prompt": preset["negative"]} | {n: preset[n] for n in ("frames", "steps", "shift", "guidance")}
    width, height = parse_size(str(settings.pop("size", preset["size"])))
    given |= {"width": width, "height": height} | settings
    if isinstance(given["guidance"], str | int | float):
        given["guidance"] = parse_guidance(str(given["guidance"]))
    texts = [policies] if isinstance(policies, str) else policies
    given |= {"policies": tuple(PolicySpec.parse(t) for t in texts), "record": record}
    asked = [Prompt({"prompt": p}) for p in ([prompts] if isinstance(prompts, str) else prompts)]
    numbers = [seeds] if isinstance(seeds, int) else list(seeds)
    specs = list(expand(asked, numbers, given))
    if not specs:
        raise UsageError("there is no prompt or no seed", 'give prompts=["…"] and seeds=range(4)')
    return specs


def generate(
    prompt: str,
    *,
    seed: int = 0,
    policies: Policies = (),
    record: str = "metrics",
    out: Place | None = None,
    force: bool = False,
    progress: bool | Watcher = True,
    **settings: Any,
) -> RunResult:
    """Sample one video and record what happened at every step.

    record  "metrics", "latents" or "all"
    out     a file that ends in .h5, or a folder ("runs" by default)

    A run that is complete is returned as it is, unless `force`. Raises UsageError and WanlabError.
    """
    (spec,) = specify(prompt, seed, policies=policies, record=RecordSpec(level=record), **settings)
    (place,) = places([spec], Path(out or "runs"))
    run_all([spec], [place], force=force, watcher=_watcher(progress))
    return RunResult(path=place)


def compare(
    a: str | MethodSpec | Sequence[str | MethodSpec] | None = None,
    b: str | MethodSpec = "baseline",
    *,
    sweep: Sequence[str] = (),
    at_cost: float | Sequence[float] | None = None,
    prompts: str | Iterable[str] | None = None,
    seeds: int | Iterable[int] = 0,
    noise_floor: bool = False,
    metrics: Sequence[str] = (),
    max_loss: str | Sequence[str] = "psnr=35",
    confirm: Iterable[int] = (),
    out: Place = "comparison_outputs",
    force: bool = False,
    progress: bool | Watcher = True,
    **settings: Any,
) -> ComparisonResult:
    """Sample method `a` (or a sweep of it) and baseline `b` from the same prompts, seeds and noise, and compare them.

    a, b         methods ("half+cfg:last=5", several of them as `a`), or two run files, videos or folders of such
    sweep        as ["cfg.last=0:10", "guidance=1:8:1"]: every combination, laid over `a`
    at_cost      shares of the baseline's operations at which each method and the controls are compared
    prompts      three of the package's by default
    max_loss     the loss that a sweep may cost, as "ssim=.98", or several, all to be kept
    confirm      fresh seeds on which what a sweep chose is measured again
    metrics      measures beyond the usual, as ["vmaf"], or files that register some
    noise_floor  also `b` itself, computed other ways
    settings     as in `specify`

    Raises UsageError and WanlabError.
    """
    from wanlab.analysis.compare import parse_losses
    from wanlab.analysis.metrics import chosen
    from wanlab.study import atcost
    from wanlab.study import compare as study

    folder, watcher = Path(out), _watcher(progress)
    chosen(metrics)  # what a file registers is known from here on
    asked = study.Asked(loss=parse_losses(max_loss) if sweep else (), metrics=metrics)
    if not (a or sweep):
        raise UsageError("there is nothing to compare", 'give a="cfg:last=5", or a sweep')
    if sweep and (at_cost is not None or not isinstance(a, str | MethodSpec | None)):
        raise UsageError("a sweep is laid over one method, and says its values", "give one method, and no at_cost")
    if isinstance(a, str) and isinstance(b, str) and (designs.is_source(a) or designs.is_source(b)):
        if settings or sweep or at_cost is not None or prompts is not None or noise_floor:
            raise UsageError("two videos are given, so nothing is sampled", "leave out what decides a sample")
        return study.compare_files(Path(a), Path(b), folder, asked, watcher=watcher)
    methods = [_method(m) for m in ([a or "baseline"] if a is None or isinstance(a, str | MethodSpec) else a)]
    settings["record"] = RecordSpec(level="latents", video="float32")
    specs = specify(designs.suite_prompts(None) if prompts is None else prompts, seeds, **settings)
    baseline = _method(b)
    specs, floors = designs.with_floors(specs, baseline) if noise_floor else (specs, [])
    variants = designs.swept(methods[0], sweep) if sweep else [designs.Variant(m) for m in methods]
    if at_cost is not None:
        costs = atcost.Costs(specs, baseline, folder, force, watcher)
        variants, said = atcost.find(methods, atcost.parse_costs(at_cost), costs)
        asked = replace(asked, remarks=said)
    asked = replace(asked, confirm=study.fresh(specs, list(confirm)) if sweep else ())
    design = designs.arrange(specs, baseline, variants, floors, folder)
    return study.compare(design, folder, asked, force=force, watcher=watcher)


def continuity(
    runs: Place | Iterable[Place] | None = None,
    *,
    prompts: str | Iterable[str] | None = None,
    seeds: int | Iterable[int] = 0,
    methods: str | Sequence[str] = (),
    frames: int | Sequence[int] | None = None,
    probe: bool = False,
    out: Place = "continuity_analysis",
    force: bool = False,
    progress: bool | Watcher = True,
    **settings: Any,
) -> ContinuityResult:
    """Measure how neighbouring frames differ at every step, of existing runs or of prompts by every method.

    runs     run files, folders of them, or folders of latent_step_XX.pt
    methods  as ["baseline", "half"]
    frames   one frame count or several

    Raises UsageError and WanlabError.
    """
    from wanlab.study import continuity as study

    folder, watcher = Path(out), _watcher(progress)
    if (runs is None) == (prompts is None):
        raise UsageError("either runs or prompts are analysed", "give one of them")
    failed: list[Path] = []
    if runs is not None:
        paths = [runs] if isinstance(runs, str | PathLike) else runs
        sources = study.labelled(study.find([Path(p) for p in paths]))
    else:
        counts = [None] if frames is None else [frames] if isinstance(frames, int) else list(frames)
        record = RecordSpec(level="all", probe=probe)
        specs: list[RunSpec] = []
        for n in counts:
            given = settings | ({} if n is None else {"frames": n})
            specs += specify(prompts or "", seeds, record=record, **given)
        chosen = designs.split_methods([methods] if isinstance(methods, str) else methods)
        sources, outcome = study.sample(specs, chosen, folder, force=force, watcher=watcher)
        failed = outcome.failed
    return study.continuity(sources, folder, failed=failed, watcher=watcher)


def calibrate(
    prompts: str | Iterable[str] | None = None,
    seeds: int | Iterable[int] = 0,
    *,
    out: Place = "calibration.json",
    record_dtype: str = "float32",
    force: bool = False,
    progress: bool | Watcher = True,
    **settings: Any,
) -> CalibrationResult:
    """Measure what step caches need to know of a model, of full runs of prompts and seeds, into one JSON.

    prompts       those of the package by default
    record_dtype  "float32" or "float16": how the runs keep their latents
    settings      as in `specify`; what is measured belongs to them, and is refused elsewhere

    The runs are kept in the folder named as `out` without .json. Raises UsageError and WanlabError.
    """
    from wanlab.study.calibrate import calibrate as run

    record = RecordSpec(level="all", dtype=record_dtype)
    specs = specify(designs.suite_prompts("builtin") if prompts is None else prompts, seeds, record=record, **settings)
    return run(specs, Path(out), force=force, watcher=_watcher(progress))


def what_if(
    methods: str | Sequence[str], runs: Place | Iterable[Place], *, progress: bool | Watcher = True
) -> WhatIfResult:
    """What methods would have done in runs recorded with record="all": an estimate, without weights.

    methods  as "easycache:threshold=.05"
    runs     run files, or folders of them

    Raises UsageError and WanlabError.
    """
    from wanlab.study.what_if import what_if as replay

    chosen = [_method(m) for m in ([methods] if isinstance(methods, str) else methods)]
    given = [Path(p) for p in ([runs] if isinstance(runs, str | PathLike) else runs)]
    return replay(given, chosen, watcher=_watcher(progress))


def report(
    paths: Place | Iterable[Place] = ".", *, thresholds: Place | None = None, out: Place = "report"
) -> ReportResult:
    """Decide the hypotheses from what was measured, and write one page that shows it all.

    thresholds  a TOML file with other thresholds than the guide's

    Raises UsageError and WanlabError.
    """
    from wanlab.analysis import hypotheses
    from wanlab.study import report as study

    given = [Path(p) for p in ([paths] if isinstance(paths, str | PathLike) else paths)]
    bounds = hypotheses.thresholds(Path(thresholds) if thresholds else None)
    return study.report(study.collect(given), bounds, Path(out))


def open_run(path: Place) -> Run:
    """A finished run file, a context manager: `run["x_t"][3]` is step 3's x_t. Raises WanlabError."""
    from wanlab.runfile import Run

    return Run(path)


def _method(given: str | MethodSpec) -> MethodSpec:
    return given if isinstance(given, MethodSpec) else designs.parse_method(given, {})


# --- progress ----------------------------------------------------------------------------------------------------


def _watcher(progress: bool | Watcher) -> Watcher:
    if isinstance(progress, Watcher):
        return progress
    if progress:
        try:
            return _Bar()
        except ImportError:  # tqdm comes with the notebook extra
            pass
    return _Lines()


class _Lines(Watcher):
    """Failures and notices on stderr, no progress."""

    def fail(self, place: Path, error: WanlabError) -> None:
        print(f"{place}: {error}", file=sys.stderr)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr)


class _Bar(_Lines):
    """tqdm's bar over the denoising steps of the whole job, in a notebook or on stderr."""

    def __init__(self) -> None:
        from tqdm.auto import tqdm

        self._tqdm = tqdm
        self._bar: Any = None
        self._step = 0

    def start(self, runs: int, steps: int) -> None:
        self._bar = self._tqdm(total=steps, unit="step")

    def begin(self, spec: RunSpec, place: Path) -> None:
        self._step = 0
        self._bar.set_description(spec.prompt[:28])

    def progress(self, progress: Progress) -> None:
        if progress.phase in ("kept", "resume"):  # what is there already says nothing about the pace
            self._bar.total -= progress.step
            self._step = progress.step
            self._bar.set_postfix_str("complete already" if progress.phase == "kept" else f"after step {progress.step}")
            self._bar.refresh()
        elif progress.phase == "sample" and progress.step > self._step:
            self._bar.update(progress.step - self._step)
            self._step = progress.step

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
