"""`wanlab calibrate`: what step caches need to know of a model; and what they would do in runs that are there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from wanlab.cli import render
from wanlab.cli.grouping import option, with_options
from wanlab.cli.options import Form
from wanlab.cli.running import Watcher
from wanlab.cli.sampling import Sampling
from wanlab.errors import UsageError
from wanlab.spec import RecordSpec
from wanlab.study import design as designs

if TYPE_CHECKING:
    from wanlab.study.results import CalibrationResult, WhatIfResult

_WHAT, _OUTPUT = "What is asked", "Output"


@with_options
def calibrate(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="With --what-if: runs recorded with --record all, or folders of them.", show_default=False),
    ] = None,
    what_if: Annotated[
        list[str] | None,
        option(
            "--what-if",
            panel=_WHAT,
            help="Sample nothing; say what a method, as easycache:threshold=.05 or guider=NAME, would have done in "
            "these runs. Repeat for several.",
        ),
    ] = None,
    out: Annotated[
        Path, option("--out", "-o", panel=_OUTPUT, help="The calibration; its runs go into the folder of that name.")
    ] = Path("calibration.json"),
    record_dtype: Annotated[
        str, option("--record-dtype", panel=_OUTPUT, help="How the runs keep latents: float32 or float16.")
    ] = "float32",
    force: Annotated[bool, option("--force", panel=_OUTPUT, help="Sample again what is already complete.")] = False,
    *,
    sampling: Sampling,
    form: Form,
) -> int:
    """Measure what step caches need to know of a model, or what they would save in recorded runs.

    wanlab calibrate --seed 0:2 --out mine.json; wanlab compare --a magcache:calibration=mine.json
    """
    shown_as = form.choose()
    if what_if or runs:
        return _what_if(runs or [], what_if or [], sampling, force, shown_as)
    from wanlab.study import calibrate as study

    record = RecordSpec(level="all", dtype=record_dtype)
    specs = sampling.specs((), record, prompts=designs.suite_prompts("builtin"))
    result = study.calibrate(specs, out, force=force, watcher=Watcher())
    _show(result, shown_as)
    return 3 if result.failed else 0


def _what_if(runs: list[Path], texts: list[str], sampling: Sampling, force: bool, form: str) -> int:
    from wanlab.study import what_if as study

    if sampling != Sampling() or force:
        raise UsageError("--what-if samples nothing", "leave out prompts and what decides a sample")
    if not texts:
        raise UsageError("runs are given, and no method", "add --what-if easycache:threshold=.05")
    if not runs:
        raise UsageError("--what-if has no runs", "name run files recorded with --record all, or a folder of them")
    result = study.what_if(runs, [designs.parse_method(t, {}) for t in texts], watcher=Watcher())
    _show_what_if(result, form)
    return 0


# --- what is shown -----------------------------------------------------------------------------------------------


def _show(result: CalibrationResult, form: str) -> None:
    from wanlab.study.calibrate import expert_rows, plan_rows

    if form != "human":
        for remark in result.remarks:
            render.say(remark)
    if form == "paths":
        render.write(f"{result.path}\n")
    elif form != "human":
        render.emit(result.rows, form, result.content)
    else:
        content, n = result.content, render.number
        prompts, seeds = content["prompts"], content["seeds"]
        title = f"{prompts} prompt{'s' * (prompts > 1)} x {seeds} seed{'s' * (seeds > 1)}, "
        title += f"{content['schedule']['steps']} steps"
        ratios = [{k: v if isinstance(v, str | int) else n(v, ".4f") for k, v in row.items()} for row in result.rows]
        fits = [{k: v if isinstance(v, str) else n(v, ".3f") for k, v in row.items()} for row in expert_rows(content)]
        plans = [
            {k: v if isinstance(v, str | int) else n(v, ".2%") for k, v in row.items()} for row in plan_rows(content)
        ]
        render.show(
            Text(""),
            Text(title, style="bold"),
            render.table(
                ratios,
                left=("expert",),
                title="Residual's magnitude to that of the step before; change of the timestep embedding",
                caption="sd: over prompts",
            ),
            render.table(fits, left=("expert",), title="TeaCache's polynomial, SenCache's sensitivities"),
            render.table(
                plans,
                left=("steps",),
                title="DPCache's plans",
                caption="missed: mean |forecast - velocity| to |velocity|",
            ),
            Text("\n".join([*result.remarks, f"calibration {result.path}, runs in {result.path.with_suffix('')}"])),
        )


def _show_what_if(result: WhatIfResult, form: str) -> None:
    if form in render.DATA:
        render.emit(result.rows if form != "csv" else result.steps, form, result.content)
        return
    n = render.number
    rows: list[dict[str, Any]] = [
        row
        | {k: n(row[k], ".1%") for k in ("saved", "least", "most")}
        | {k: n(row[k], ".2%") for k in ("error", "worst")}
        for row in result.rows
    ]
    parts = [render.table(rows, left=("method", "reused", "reused in some", "left_out", "left_out in some"))]
    if len(rows) == 1:
        steps = [
            {"step": s["step"], "expert": s["expert"], "runs": n(s["share of runs"], ".0%")}
            | {k: n(s[k], ".2%") for k in ("error", "worst")}
            for s in result.steps
        ]
        parts.append(render.table(steps, left=("expert",), title="Share of runs that do less, and what is off"))
    render.show(*parts, Text(result.content["estimate"]))
