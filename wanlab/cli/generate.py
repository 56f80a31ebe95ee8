"""`wanlab generate`: one run file, video and error analysis for each prompt and seed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Group
from rich.text import Text

from wanlab.cli import render
from wanlab.cli.options import Form, Method, Sampling, option, places, with_options
from wanlab.cli.running import run_all
from wanlab.spec import RecordSpec, RunSpec

if TYPE_CHECKING:
    from wanlab.engine.run import Forecast as Plan

# In the order in which they happen.
PHASES = (
    "load",
    "encode",
    "warm-up",
    "sample single",
    "sample high",
    "switch",
    "sample low",
    "recording",
    "decode",
    "write",
)
_RECORD, _OUTPUT = "What is recorded", "Output"


@with_options
def generate(
    sampling: Sampling,
    method: Method,
    form: Form,
    record: Annotated[
        str,
        option("--record", panel=_RECORD, help="metrics, latents (x_t too) or all (predictions and branches too)."),
    ] = "metrics",
    record_every: Annotated[
        int, option("--record-every", panel=_RECORD, help="Record latents every so many steps.")
    ] = 1,
    record_dtype: Annotated[
        str, option("--record-dtype", panel=_RECORD, help="float32 or float16 latents.")
    ] = "float32",
    probe: Annotated[
        bool,
        option(
            "--probe",
            panel=_RECORD,
            help="Evaluate skipped branches, and with --record all the other expert at the switch, for the record only.",
        ),
    ] = False,
    enable_debug: Annotated[
        bool, option("--enable-debug/--no-error-analysis", panel=_RECORD, help="Write the error analysis of guidance.")
    ] = True,
    out: Annotated[
        Path, option("--out", "-o", panel=_OUTPUT, help="A folder, or for one run a file that ends in .h5.")
    ] = Path("runs"),
    gif: Annotated[bool, option("--gif", panel=_OUTPUT, help="A gif beside the mp4.")] = False,
    force: Annotated[bool, option("--force", panel=_OUTPUT, help="Compute again what is already complete.")] = False,
    dry_run: Annotated[
        bool, option("--dry-run", panel=_OUTPUT, help="Print schedule, passes, memory and disk; load no weights.")
    ] = False,
    show_steps: Annotated[bool, option("--show-steps", panel=_OUTPUT, help="A table of every step.")] = False,
) -> int:
    """Sample videos, and record what happened at every step.

    wanlab generate --prompt "a large red circle moving right on a black background"
    """
    shown_as = form.choose()
    recorded = RecordSpec(level=record, every=record_every, dtype=record_dtype, probe=probe)
    specs = sampling.specs(method.policies(), recorded)
    outs = places(specs, out)
    if dry_run:
        return _dry_run(specs, outs, shown_as)
    return _generate(specs, outs, shown_as, force=force, gif=gif, analyse=enable_debug, show_steps=show_steps)


def _dry_run(specs: Sequence[RunSpec], outs: Sequence[Path], form: str) -> int:
    from wanlab.engine.run import check_output, plan

    for place in outs:
        check_output(place)
    plans = [plan(s) for s in specs]
    rows = [r for k, p in enumerate(plans) for r in _plan_rows(p, k if len(plans) > 1 else None)]
    if form in ("json", "csv", "md"):
        render.emit(rows, form, [p.to_dict() for p in plans])
        return 0
    shown: dict[str, tuple[Plan, int]] = {}  # one table for all runs that differ in prompt and seed alone
    for p in plans:
        key = replace(p.spec, prompt="-", seed=0).digest()
        shown[key] = (p, shown.get(key, (p, 0))[1] + 1)
    for p, count in shown.values():
        title = f"{p.spec.model}  {p.spec.width}x{p.spec.height}  {p.spec.frames} frames  {p.spec.steps} steps  shift {p.spec.shift:g}  {p.spec.solver}"
        lines = [
            f"passes      {p.passes} of {p.plain_passes} without policies; predicted speed-up {p.speedup:.2f}",
            f"operations  {p.flops / 1e12:.2f} TFLOP",
            f"weights     {', '.join(f'{k} {render.size(v)}' for k, v in p.memory_bytes.items())}",
            f"memory      {', '.join(f'{k} {render.size(v)}' for k, v in p.memory_plans.items())}; here {p.spec.memory}",
            f"disk        {render.size(p.disk_bytes)} a run"
            + (f", {render.size(p.disk_bytes * count)} for {count} runs" if count > 1 else ""),
        ]
        render.show(render.table(_plan_rows(p), title=title, left=("expert", "branches", "")), Text("\n".join(lines)))
    return 0


def _plan_rows(p: Plan, run: int | None = None) -> list[dict[str, Any]]:
    return [
        ({} if run is None else {"run": run})
        | {"step": r.step + 1, "timestep": f"{r.timestep:g}", "sigma": f"{r.sigma:.4f}", "expert": r.expert, "branches": "+".join(r.branches),
           "guidance": f"{r.guidance:g}", "frames": r.frames, "tokens": r.tokens, "passes": r.passes, "": "frames completed" if r.jump else ""}
        for r in p.rows
    ]  # fmt: skip


def _generate(
    specs: Sequence[RunSpec],
    outs: Sequence[Path],
    form: str,
    *,
    force: bool,
    gif: bool,
    analyse: bool,
    show_steps: bool,
) -> int:
    summaries: list[dict[str, Any]] = []

    def done(place: Path) -> None:
        summaries.append(summarise(place, analyse=analyse, alone=len(specs) == 1))
        if form == "paths":
            sys.stdout.write(f"{place}\n")
            sys.stdout.flush()

    failed = run_all(specs, outs, force=force, gif=gif, done=done)
    if form == "human":
        render.show(*(picture(s, show_steps) for s in summaries))
    elif form != "paths":
        flat = [{k: v for k, v in s.items() if not isinstance(v, dict | list)} for s in summaries]
        render.emit(flat, form, summaries)
    return 0 if not failed else 1 if len(failed) == len(specs) else 3


def summarise(path: Path, *, analyse: bool, alone: bool) -> dict[str, Any]:
    """A finished run's figures, with the contact sheet and the error analysis written beside it."""
    import numpy as np

    from wanlab.analysis import figures, guidance
    from wanlab.runfile import Run

    with Run(path) as run:
        g = guidance.analyse(run)
        prompt, took = run.spec.prompt, run.attrs.get("timing_seconds", {})
        timing = {k: took[k] for k in (*PHASES, *took) if k in took}
        sheet = figures.contact_sheet(np.asarray(run.video), path.with_suffix(".png"), title=prompt)
        files = {"run": path, "video": path.with_suffix(".mp4"), "contact_sheet": sheet}
        if analyse:
            folder = path.parent / "error_analysis" / ("" if alone else path.stem)
            folder.mkdir(parents=True, exist_ok=True)
            files["error_figure"] = figures.guidance_figure(g, folder / "cfg_error_visualization.png", title=prompt)
            files["error_report"] = folder / "error_analysis_report.txt"
            files["error_report"].write_text(guidance.report(g, prompt=prompt, title=path.name), encoding="utf-8")
        steps = [
            {"step": k + 1, "timestep": float(g.timestep[k]), "sigma": float(g.sigma[k]), "expert": str(g.expert[k]),
             "branches": str(g.branches[k]), "passes": int(g.passes[k]), "mse": float(g.mse[k]), "change": float(g.change[k]),
             "cosine": float(g.cosine[k]), "seconds": float(run["seconds"][k])}
            for k in range(g.steps)
        ]  # fmt: skip
        predicted = run.attrs.get("predicted", {})
        return {
            "prompt": prompt, "seed": run.spec.seed, "model": run.spec.model, "size": f"{run.spec.width}x{run.spec.height}",
            "frames": run.spec.frames, "steps": g.steps, "policies": " ".join(map(str, run.spec.policies)),
            "device": str(run.attrs.get("device_name", "")), "passes": int(g.passes.sum()),
            "plain_passes": predicted.get("plain_passes"), "tokens": int(np.asarray(run["tokens"]).sum()),
            "sampling_seconds": float(np.asarray(run["seconds"]).sum()), "peak_memory_bytes": run.attrs.get("peak_memory_bytes", 0),
            "resumed_from_step": run.attrs.get("resumed_from_step", 0), "timing_seconds": timing, "reading": guidance.reading(g),
            "files": {k: str(v) for k, v in files.items()}, "by_step": steps,
        }  # fmt: skip


def picture(s: dict[str, Any], show_steps: bool) -> Group:
    """A run's summary for a terminal."""
    method = s["policies"] or "no policy"
    head = Text(render.plain(s["prompt"]), style="bold")
    line = Text(
        f"{s['model']}, seed {s['seed']}, {s['size']}, {s['frames']} frames, {s['steps']} steps, {method}; {s['device'] or 'cpu'}"
    )
    cost = (
        f"passes    {s['passes']}"
        + (f" of {s['plain_passes']} without policies" if s["plain_passes"] else "")
        + f", {s['tokens']:,} tokens"
    )
    clock = "  ".join(f"{k} {v:.2f} s" for k, v in s["timing_seconds"].items())
    lines = [cost, f"time      {clock}"]
    if s["peak_memory_bytes"]:
        lines.append(f"memory    {render.size(s['peak_memory_bytes'])} at most on the GPU")
    lines += [f"{'guidance' if not k else '':<10}{text}" for k, text in enumerate(s["reading"])]
    lines += [f"{'files' if not k else '':<10}{render.plain(v)}" for k, v in enumerate(s["files"].values())]
    parts: list[Any] = [Text(""), head, line, Text("\n".join(lines))]
    if show_steps:
        rows = [
            {"step": r["step"], "timestep": f"{r['timestep']:g}", "sigma": f"{r['sigma']:.4f}", "expert": r["expert"],
             "branches": r["branches"].replace(",", "+"), "mse": render.number(r["mse"], ".3e"), "change": render.number(r["change"], ".3e"),
             "cosine": render.number(r["cosine"], ".4f"), "ms": f"{1000 * r['seconds']:.0f}"}
            for r in s["by_step"]
        ]  # fmt: skip
        parts.append(render.table(rows, left=("expert", "branches")))
    return Group(*parts)
