"""`--dry-run`: what runs are going to do and cost, exactly or between bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanlab.cli import render
from wanlab.spec import RunSpec

if TYPE_CHECKING:
    from wanlab.engine.run.forecast import Forecast
    from wanlab.study.design import Design


def show(specs: Sequence[RunSpec], outs: Sequence[Path], form: str) -> int:
    """Print the forecast of every spec. Raises UsageError where a run would."""
    from rich.text import Text

    from wanlab.engine.run import check_output, plan

    for place in outs:
        check_output(place)
    forecasts = [plan(s) for s in specs]
    if form in render.DATA:
        rows = [r for k, f in enumerate(forecasts) for r in step_rows(f, k if len(forecasts) > 1 else None)]
        render.emit(rows, form, [f.to_dict() for f in forecasts])
        return 0
    alike: dict[str, tuple[Forecast, int]] = {}  # one table for all runs that differ in prompt and seed alone
    for f in forecasts:
        key = replace(f.spec, prompt="-", seed=0).digest()
        alike[key] = (f, alike.get(key, (f, 0))[1] + 1)
    for f, count in alike.values():
        rows = step_rows(f)
        notes = []
        if any("(" in r["branches"] for r in rows):
            notes.append("(reused): an earlier step's value")
        if any("*" in r["frames"] for r in rows):
            notes.append("*: frames are completed before the step")
        spec = f.spec
        size = f"{spec.width}x{spec.height}, {spec.frames} frames, {spec.steps} steps"
        title = f"{spec.model}, {size}, shift {spec.shift:g}, {spec.solver}"
        title += f", guider {spec.guider}" if str(spec.guider) != "cfg" else ""
        render.show(
            render.table(rows, title=title, left=("expert", "branches"), caption="; ".join(notes)),
            Text("\n".join(summary(f, count))),
        )
    return 0


def summary(forecast: Forecast, count: int = 1) -> list[str]:
    """What a run is going to cost, in lines; `count` runs need as much disk each."""
    f = forecast
    disk = f"{render.size(f.disk_bytes)} a run" + (
        f", {render.size(f.disk_bytes * count)} for {count} runs" if count > 1 else ""
    )
    return [
        f"passes      {passes(f)}",
        f"operations  {operations(f)}",
        *(f"reuse       {text}" for text in reuse_lines(f)),
        f"weights     {', '.join(f'{k} {render.size(v)}' for k, v in f.memory_bytes.items())}",
        f"memory      {', '.join(f'{k} {render.size(v)}' for k, v in f.memory_plans.items())}; here {f.spec.memory}",
        f"host        {render.size(f.host_plans['swap'])} page-locked under swap and offload, none under resident",
        f"disk        {disk}",
    ]


def passes(forecast: Forecast) -> str:
    """`8 of 16 passes`, or between which bounds they are, with the speed-up."""
    low, high = forecast.passes_bounds
    if forecast.exact:
        count = f"{high} of {forecast.plain_passes}"
        return f"{count} without policies; predicted speed-up {forecast.speedup:.2f}"
    count = f"between {low} and {high}" if low != high else f"{high}"
    least, most = forecast.flops_bounds
    speedup = f"{forecast.plain_flops / most:.2f}" + (
        f" to {forecast.plain_flops / least:.2f}" if least else " or more"
    )
    return f"{count} of {forecast.plain_passes} without policies, decided while running; predicted speed-up {speedup}"


def reuse_lines(forecast: Forecast) -> list[str]:
    """What the thresholds reuse of those policies whose steps are known beforehand."""
    from wanlab.analysis import reuse

    reused = [bool(row.reused) for row in forecast.rows]
    return [
        reuse.line(name, [float("nan") if v is None else v for v in values], reused)
        for name, values in forecast.indicators.items()
    ]


def operations(forecast: Forecast) -> str:
    """Floating-point operations of a run, exact or between bounds."""
    low, high = forecast.flops_bounds
    return f"{high / 1e12:.2f} TFLOP" if low == high else f"{low / 1e12:.2f} to {high / 1e12:.2f} TFLOP"


def step_rows(forecast: Forecast, run: int | None = None) -> list[dict[str, Any]]:
    """A row for every step; a reused branch in parentheses, `*` at the frames of a step before which frames are
    completed; `run` is the number of the run, where there are several."""
    rows = []
    for r in forecast.rows:
        least, most = r.passes_bounds
        rows.append(
            ({} if run is None else {"run": run})
            | {
                "step": r.step + 1,
                "t": f"{r.timestep:.1f}",
                "σ": f"{r.sigma:.4f}",
                "expert": r.expert,
                "branches": "+".join(f"({b})" if b in r.reused else b for b in r.branches),
                "scale": f"{r.guidance:g}",
                "frames": f"{r.frames}{'*' * r.jump}",
                "tokens": r.tokens,
                "passes": f"{most}" if least == most else f"{least}-{most}",
            }
        )
    return rows


def show_design(design: Design, form: str) -> int:
    """What a comparison is going to run; the exit code."""
    from wanlab.study.compare import forecast

    rows = forecast(design)
    methods = 1 + len(design.floors) + len(design.variants)
    if len(rows) < methods:
        render.say(f"note: the first {len(rows)} of {methods} methods are shown")
    if form in render.DATA:
        render.emit(rows, form)
        return 0
    exact = all(r["exact"] == "yes" for r in rows)
    shown = [
        {
            ("disk a run" if k == "bytes a run" else k): (render.size(v) if k == "bytes a run" else v)
            for k, v in r.items()
            if k != "exact"
        }
        for r in rows
    ]
    s = "s" * (len(design.specs) > 1)
    title = f"{len(design.specs)} prompt{s} and seed{s}, {len(design.order)} runs, {len(design.new)} of them new"
    caption = "exact" if exact else "exact, and least–most of what methods decide while running"
    render.show(
        render.table(shown, title=title, left=("method", "folder"), caption=f"passes and operations: {caption}")
    )
    return 0
