"""Calibrating step caches: full runs of prompts and seeds in, one signed JSON out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanlab import __version__
from wanlab.engine.calibration import FORMAT
from wanlab.errors import UsageError, WanlabError
from wanlab.files import write_text
from wanlab.spec import PolicySpec, RecordSpec, RunSpec
from wanlab.study.requests import check_names, check_place, places
from wanlab.study.results import CalibrationResult
from wanlab.study.runners.local import Watcher, run_all
from wanlab.study.text import finite, steps_in_short

if TYPE_CHECKING:
    from wanlab.runfile import Run

POLICY = PolicySpec("measure")
OWN = ("prompt", "negative_prompt", "seed")  # what the runs of a calibration may differ in


def prepare(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """The runs that measure. Raises UsageError where they would not be alike, or are no full runs."""
    first = specs[0].to_dict()
    for spec in specs:
        for name, value in spec.to_dict().items():
            if name not in OWN and value != first[name]:
                raise UsageError(
                    f"the prompts differ in {name}: {first[name]} and {value}", "calibrate each setting by itself"
                )
        if spec.policies:
            raise UsageError(f"policy {spec.policies[0]} is set", "a calibration is of full runs: leave it out")
    record = RecordSpec(level="all", dtype=specs[0].record.dtype)
    return [dataclasses.replace(s, policies=(POLICY,), record=record) for s in specs]


def calibrate(
    specs: Sequence[RunSpec], out: Path, *, force: bool = False, watcher: Watcher | None = None
) -> CalibrationResult:
    """Sample every spec whole into the folder named as `out` without its suffix, and write what they say to `out`.

    Runs that are there already are kept, unless `force`. A failed run is left out, and said. Raises UsageError and
    WanlabError.
    """
    watcher = watcher or Watcher()
    if out.suffix != ".json":
        raise UsageError(f"the calibration {out} does not end in .json", f"use {out.name}.json")
    check_place(out)
    specs = prepare(specs)
    for spec in specs:
        check_names(spec)
    from wanlab.engine import run as engine  # torch and diffusers, seconds: after all that can be wrong without them

    runs = places(specs, out.with_suffix(""))
    expected = engine.plan(specs[0])
    disk = len(specs) * expected.disk_bytes / 1e9
    watcher.say(f"{len(specs)} full runs of {expected.passes} passes, {disk:.2g} GB in {out.with_suffix('')}")
    failed = run_all(specs, runs, force=force, watcher=watcher)
    if len(failed) == len(runs):
        raise WanlabError("every run failed: there is nothing to calibrate with", "see the failures above")
    content, remarks = summarise([r for r in runs if r not in failed], watcher)
    write_text(out, json.dumps(finite(content), indent=1, allow_nan=False) + "\n")
    return CalibrationResult(path=out, content=content, runs=tuple(runs), remarks=tuple(remarks), failed=tuple(failed))


def summarise(paths: Sequence[Path], watcher: Watcher) -> tuple[dict[str, Any], list[str]]:
    """(what a calibration file says of these runs, what it lacks and why). Raises WanlabError for runs that do not
    belong together."""
    from wanlab.analysis import calibration
    from wanlab.runfile import Run

    signatures: list[dict[str, Any]] = []
    measured: list[calibration.Measured] = []
    for k, path in enumerate(paths, 1):
        with Run(path) as run:
            measured.append(calibration.read(run))
            signatures.append(_signature(run, measured[-1].switch))
        if signatures[-1] != signatures[0]:
            raise WanlabError(f"{path} was made with other weights than {paths[0]}", "use --force, or another --out")
        watcher.measure(k, len(paths))
    parts, remarks = calibration.summarise(measured)
    prompts = len({m.prompt for m in measured})
    source = {"prompts": prompts, "seeds": len(measured) // prompts, "source": f"wanlab {__version__} calibrate"}
    return signatures[0] | source | parts, remarks


def _signature(run: Run, switch: int | None) -> dict[str, Any]:
    """To what a calibration of this run belongs."""
    spec, schedule = run.spec, {"solver": run.spec.solver, "steps": run.steps, "shift": run.attrs["shift"]}
    size = {"width": spec.width, "height": spec.height, "frames": spec.frames}
    return {
        "format": FORMAT,
        "model": {"name": spec.model, "fingerprint": run.attrs["weights_fingerprint"]},
        "schedule": schedule | {"switch": switch, "sigmas": run["sigma"][...].tolist()},
        "size": size | {"latents": list(run["x_t"].shape[2:])},
        "guidance": list(spec.guidance),
    }


# --- as tables ---------------------------------------------------------------------------------------------------


def step_rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a step: magnitude ratios with their spread over prompts, the embedding's change."""
    ratios, switch = content["magnitude"], content["schedule"]["switch"]
    rows = []
    for k, change in enumerate(content["embedding_change"]):
        row: dict[str, Any] = {"step": k, "expert": "single" if switch is None else "high" if k < switch else "low"}
        for branch, given in ratios.items():
            row |= {branch: given["mean"][k], f"{branch} sd": given["sd"][k] if given["sd"] else None}
        rows.append(row | {"embedding": change})
    return rows


def expert_rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row an expert: TeaCache's fit and SenCache's sensitivities."""
    rows = []
    for expert, given in content["sensitivity"].items():
        fit = content["teacache"].get(expert, {})
        own = fit.get("r2_prompts", {})
        rows.append(
            {
                "expert": expert,
                "R2": fit.get("r2"),
                "R2 of a prompt": own.get("mean"),
                "R2 sd": own.get("sd"),
                "threshold": fit.get("threshold"),
                "sensitivity x": given["x"],
                "x sd": given["x_sd"],
                "sensitivity t": given["t"],
                "t sd": given["t_sd"],
            }
        )
    return rows


def plan_rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a budget: DPCache's plan and what it misses of the velocities."""
    return [
        {"computed": int(k), "missed": error["mean"], "sd": error["sd"], "steps": steps_in_short(content["plans"][k])}
        for k, error in content["plan_errors"].items()
    ]
