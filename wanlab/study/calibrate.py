"""Calibrating step caches: full runs of prompts and seeds in, one signed JSON out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wanlab import __version__
from wanlab.errors import UsageError, WanlabError
from wanlab.files import write_text
from wanlab.spec import PolicySpec, RecordSpec, RunSpec
from wanlab.study.requests import check_names, check_place, places
from wanlab.study.results import CalibrationResult
from wanlab.study.runners.local import Watcher, run_all

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
    from wanlab.engine import run as engine

    watcher = watcher or Watcher()
    if out.suffix != ".json":
        raise UsageError(f"the calibration {out} does not end in .json", f"use {out.name}.json")
    check_place(out)
    specs = prepare(specs)
    for spec in specs:
        check_names(spec)
    runs = places(specs, out.with_suffix(""))
    expected = engine.plan(specs[0])
    disk = len(specs) * expected.disk_bytes / 1e9
    watcher.say(f"{len(specs)} full runs of {expected.passes} passes, {disk:.2g} GB in {out.with_suffix('')}")
    failed = run_all(specs, runs, force=force, watcher=watcher)
    content, remarks = summarise([r for r in runs if r not in failed], watcher)
    write_text(out, json.dumps(content, indent=1, allow_nan=False) + "\n")
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
            signatures.append(_signature(run.spec, run.attrs, measured[-1], run["sigma"][...].tolist()))
            seeds_of = run.spec.seed
        if signatures[-1] != signatures[0]:
            raise WanlabError(f"{path} was made with other weights than {paths[0]}", "use --force, or another --out")
        watcher.measure(k, len(paths))
        del seeds_of
    parts, remarks = calibration.summarise(measured)
    prompts = len({m.prompt for m in measured})
    source = {"prompts": prompts, "seeds": len(measured) // prompts, "source": f"wanlab {__version__} calibrate"}
    return signatures[0] | source | parts, remarks


def _signature(spec: RunSpec, attrs: dict[str, Any], measured: Any, sigmas: list[float]) -> dict[str, Any]:
    return {
        "format": 1,
        "model": {"name": spec.model, "fingerprint": attrs["weights_fingerprint"]},
        "schedule": {
            "solver": spec.solver,
            "steps": spec.steps,
            "shift": attrs["shift"],
            "switch": measured.switch,
            "sigmas": sigmas,
        },
        "size": {"width": spec.width, "height": spec.height, "frames": spec.frames},
        "guidance": list(spec.guidance),
    }
