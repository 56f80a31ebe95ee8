"""`wanlab generate`: one run file, video and error analysis for each prompt and seed."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from wanlab.cli import render
from wanlab.errors import UsageError, WanlabError
from wanlab.registry import suggest
from wanlab.spec import PolicySpec, RecordSpec, RunSpec, parse_guidance, parse_size

if TYPE_CHECKING:
    from wanlab.engine.plan import Plan
    from wanlab.engine.run import Progress as Report

MAX_PROMPT_FILE = 64 * 2**20
# What `--task` sets where the command line says nothing: the official configurations.
TASKS: dict[str, dict[str, Any]] = {
    "t2v-A14B": {"size": "832x480", "frames": 81, "steps": 40, "shift": 12.0, "guidance": "3,4"},
    "tiny": {},
}
TINY: dict[str, Any] = {"size": "144x80", "frames": 49, "steps": 20, "shift": None, "guidance": "4"}

_SAMPLING, _METHOD, _RECORD, _OUTPUT = "Sampling", "Method", "What is recorded", "Output"


def _option(*names: str, panel: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=more.pop("show_default", True), **more)


def generate(
    prompt: Annotated[
        list[str] | None, _option("--prompt", "-p", panel=_SAMPLING, help="What to show. Repeat for several.")
    ] = None,
    prompts: Annotated[
        str | None,
        _option(
            "--prompts",
            panel=_SAMPLING,
            help="A file of prompts, or -: one a line, or JSON lines with prompt, seed and other settings.",
        ),
    ] = None,
    negative_prompt: Annotated[
        str, _option("--negative-prompt", panel=_SAMPLING, help="What the unconditional branch is given.")
    ] = "",
    model: Annotated[
        str,
        _option("--model", "-m", panel=_SAMPLING, help="tiny (in the package), a checkpoint directory, or a hub id."),
    ] = "tiny",
    revision: Annotated[str, _option("--revision", panel=_SAMPLING, help="A revision on the hub.")] = "",
    task: Annotated[str | None, _option("--task", panel=_SAMPLING, help="Defaults of a task: t2v-A14B.")] = None,
    seed: Annotated[
        list[str] | None,
        _option("--seed", panel=_SAMPLING, help="A seed or a range 0:8 (0 to 7). Repeat for several.  [default: 0]"),
    ] = None,
    size: Annotated[
        str | None, _option("--size", panel=_SAMPLING, help="WIDTHxHEIGHT, multiples of 16.  [default: 144x80]")
    ] = None,
    frames: Annotated[
        int | None, _option("--frames", panel=_SAMPLING, help="Video frames, 4n+1.  [default: 49]")
    ] = None,
    steps: Annotated[int | None, _option("--steps", panel=_SAMPLING, help="Denoising steps.  [default: 20]")] = None,
    shift: Annotated[
        float | None, _option("--shift", panel=_SAMPLING, help="Flow shift.  [default: the checkpoint's]")
    ] = None,
    solver: Annotated[str, _option("--solver", panel=_SAMPLING, help="unipc, dpm++ or euler.")] = "unipc",
    schedule: Annotated[
        str,
        _option(
            "--schedule", panel=_SAMPLING, help="diffusers, or wan: the official repository's sigmas and timesteps."
        ),
    ] = "diffusers",
    guidance: Annotated[
        str | None,
        _option(
            "--guidance", "-g", panel=_SAMPLING, help="LOW or LOW,HIGH: the experts' guidance scales.  [default: 4]"
        ),
    ] = None,
    cfg_truncate_steps: Annotated[
        int, _option("--cfg-truncate-steps", panel=_METHOD, help="One branch only in this many last steps.")
    ] = 0,
    cfg_truncate_high_noise_steps: Annotated[
        int,
        _option(
            "--cfg-truncate-high-noise-steps",
            panel=_METHOD,
            help="And in this many last steps before the expert switch.",
        ),
    ] = 0,
    cfg_keep: Annotated[
        str,
        _option(
            "--cfg-keep",
            panel=_METHOD,
            help="What a truncated step keeps: uncond, cond, or reuse (cond and the last difference).",
        ),
    ] = "uncond",
    enable_half_frame_generation: Annotated[
        bool,
        _option(
            "--enable-half-frame-generation",
            panel=_METHOD,
            help="Half the frames until the expert switch (policy half).",
        ),
    ] = False,
    enable_improved_frame_completion: Annotated[
        bool,
        _option(
            "--enable-improved-frame-completion",
            panel=_METHOD,
            help="Pair frames at the expert switch (policy paired).",
        ),
    ] = False,
    policy: Annotated[
        list[str] | None,
        _option(
            "--policy",
            panel=_METHOD,
            help="name:knob=value,… Any policy with its knobs. Repeat to combine, left to right.",
        ),
    ] = None,
    batch_cfg: Annotated[bool, _option("--batch-cfg", panel=_METHOD, help="Both branches in one forward.")] = False,
    record: Annotated[
        str,
        _option("--record", panel=_RECORD, help="metrics, latents (x_t too) or all (predictions and branches too)."),
    ] = "metrics",
    record_every: Annotated[
        int, _option("--record-every", panel=_RECORD, help="Record latents every so many steps.")
    ] = 1,
    record_dtype: Annotated[
        str, _option("--record-dtype", panel=_RECORD, help="float32 or float16 latents.")
    ] = "float32",
    probe: Annotated[
        bool,
        _option("--probe", panel=_RECORD, help="Evaluate skipped branches for the record, neither used nor counted."),
    ] = False,
    enable_debug: Annotated[
        bool, _option("--enable-debug/--no-error-analysis", panel=_RECORD, help="Write the error analysis of guidance.")
    ] = True,
    out: Annotated[
        Path, _option("--out", "-o", panel=_OUTPUT, help="A folder, or for one run a file that ends in .h5.")
    ] = Path("runs"),
    gif: Annotated[bool, _option("--gif", panel=_OUTPUT, help="A gif beside the mp4.")] = False,
    device: Annotated[str, _option("--device", panel=_OUTPUT, help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[
        str, _option("--dtype", panel=_OUTPUT, help="The transformers': auto, float32, bfloat16 or float16.")
    ] = "auto",
    vae_dtype: Annotated[str, _option("--vae-dtype", panel=_OUTPUT, help="The VAE's.")] = "auto",
    force: Annotated[bool, _option("--force", panel=_OUTPUT, help="Compute again what is already complete.")] = False,
    dry_run: Annotated[
        bool, _option("--dry-run", panel=_OUTPUT, help="Print schedule, passes, memory and disk; load no weights.")
    ] = False,
    show_steps: Annotated[bool, _option("--show-steps", panel=_OUTPUT, help="A table of every step.")] = False,
    format: Annotated[
        str,
        _option(
            "--format",
            panel=_OUTPUT,
            help="auto, human, json, csv or md. auto: tables on a terminal, file names in a pipe.",
        ),
    ] = "auto",
    as_json: Annotated[bool, _option("--json", panel=_OUTPUT, help="The same as --format json.")] = False,
) -> int:
    """Sample videos, and record what happened at every step.

    wanlab generate --prompt "a large red circle moving right on a black background"
    """
    form = "json" if as_json else format
    if form not in render.FORMATS:
        raise UsageError(f"--format '{render.plain(form, 40)}' is unknown", suggest(form, render.FORMATS))
    if task is not None and task not in TASKS:
        raise UsageError(f"--task '{render.plain(task, 40)}' is unknown", suggest(task, TASKS))
    preset = TINY | TASKS.get(task or "", {})
    policies = [PolicySpec.parse(p) for p in policy or []]
    if cfg_truncate_steps or cfg_truncate_high_noise_steps:
        policies.append(
            PolicySpec("cfg", {"last": cfg_truncate_steps, "high": cfg_truncate_high_noise_steps, "keep": cfg_keep})
        )
    elif cfg_keep not in ("uncond", "cond", "reuse"):
        raise UsageError(
            f"--cfg-keep '{render.plain(cfg_keep, 40)}' is unknown", suggest(cfg_keep, ("uncond", "cond", "reuse"))
        )
    policies += [PolicySpec("half")] * enable_half_frame_generation + [
        PolicySpec("paired")
    ] * enable_improved_frame_completion
    width, height = parse_size(size or preset["size"])
    common: dict[str, Any] = dict(
        negative_prompt=negative_prompt, model=model, revision=revision, width=width, height=height,
        frames=preset["frames"] if frames is None else frames, steps=preset["steps"] if steps is None else steps,
        shift=preset["shift"] if shift is None else shift, solver=solver, schedule=schedule,
        guidance=parse_guidance(guidance or preset["guidance"]), batch_cfg=batch_cfg, policies=tuple(policies),
        device=device, dtype=dtype, vae_dtype=vae_dtype,
        record=RecordSpec(level=record, every=record_every, dtype=record_dtype, probe=probe),
    )  # fmt: skip
    specs = list(expand(asked_for(prompt or [], prompts), parse_seeds(seed or ["0"]), common))
    outs = places(specs, out)
    if dry_run:
        return _dry_run(specs, outs, form)
    return _generate(specs, outs, form, force=force, gif=gif, analyse=enable_debug, show_steps=show_steps)


# --- what was asked for ---------------------------------------------------------------------------


def parse_seeds(texts: Sequence[str]) -> list[int]:
    """Seeds of `3` and `0:8` (0 to 7), in order, each once. Raises UsageError."""
    seeds: list[int] = []
    for text in texts:
        match = re.fullmatch(r"\s*(\d{1,19})\s*(?::\s*(\d{1,19})\s*)?", text, re.ASCII)
        if match is None:
            raise UsageError(
                f"seed '{render.plain(text, 40)}' is neither a number nor a range", "write --seed 3 or --seed 0:8"
            )
        first, last = int(match[1]), int(match[2]) if match[2] else int(match[1]) + 1
        if not first < last <= first + 100_000:
            raise UsageError(
                f"the seed range {first}:{last} has {max(0, last - first)} seeds", "write --seed 0:8 for 0 to 7"
            )
        seeds += range(first, last)
    return list(dict.fromkeys(seeds))


def asked_for(given: Sequence[str], source: str | None) -> list[dict[str, Any]]:
    """The prompts, each with its own settings: those on the command line, then the file's. Raises UsageError."""
    asked: list[dict[str, Any]] = [{"prompt": p} for p in given]
    if source is not None:
        lines = [line.strip() for line in _read(source).splitlines()]
        lines = [line for line in lines if line]
        if not lines:
            raise UsageError(f"{_named(source)} has no prompt", "write one prompt a line")
        asked += [_line(line, number, source) for number, line in enumerate(lines, 1)]
    if not asked:
        raise UsageError("there is no prompt", 'give --prompt "…" or --prompts FILE')
    return asked


def _named(source: str) -> str:
    return "standard input" if source == "-" else render.plain(source)


def _read(source: str) -> str:
    try:
        if source == "-":
            data = sys.stdin.buffer.read(MAX_PROMPT_FILE + 1)
        else:
            with open(source, "rb") as file:
                data = file.read(MAX_PROMPT_FILE + 1)
    except OSError as error:
        raise UsageError(f"cannot read {_named(source)}: {error.strerror}", "check --prompts") from error
    if len(data) > MAX_PROMPT_FILE:
        raise UsageError(f"{_named(source)} is larger than 64 MiB", "split it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{_named(source)} is not UTF-8 text (byte {error.start})", "save it as UTF-8") from error


def _line(line: str, number: int, source: str) -> dict[str, Any]:
    if not line.startswith("{"):
        return {"prompt": line}
    try:
        settings = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{_named(source)}, line {number}: no JSON: {error}", "write one JSON object a line, or a plain prompt"
        ) from error
    if not isinstance(settings, dict) or "prompt" not in settings:
        raise UsageError(f"{_named(source)}, line {number}: no prompt", 'write {"prompt": "…", "seed": 3}')
    return settings


def expand(asked: Sequence[dict[str, Any]], seeds: Sequence[int], common: dict[str, Any]) -> Iterator[RunSpec]:
    """A spec for every prompt and seed. A line's own settings win over the command line's. Raises UsageError."""
    for settings in asked:
        own = dict(settings)
        if "size" in own:
            own["width"], own["height"] = parse_size(str(own.pop("size")))
        if isinstance(own.get("guidance"), str | int | float):
            own["guidance"] = parse_guidance(str(own["guidance"]))
        if "policy" in own:
            texts = own.pop("policy")
            own["policies"] = tuple(PolicySpec.parse(str(t)) for t in ([texts] if isinstance(texts, str) else texts))
        unknown = sorted(set(own) - set(RunSpec.__dataclass_fields__) - {"policies"})
        if unknown or "record" in own:
            name = unknown[0] if unknown else "record"
            raise UsageError(
                f"a prompt line sets '{render.plain(name, 40)}'", suggest(name, RunSpec.__dataclass_fields__)
            )
        mine = own.pop("seed", None)
        for seed in seeds if mine is None else mine if isinstance(mine, list) else [mine]:
            yield RunSpec(**common | own | {"seed": seed})


def places(specs: Sequence[RunSpec], out: Path) -> list[Path]:
    """Where each run goes. Raises UsageError when one file is to hold several runs or nothing can be written there."""
    if out.suffix == ".h5":
        if len(specs) > 1:
            raise UsageError(f"{len(specs)} runs do not fit into the one file {out}", "name a folder with --out")
        return [out]
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is not a folder", "name a folder, or a file that ends in .h5")
    return [out / f"{run_name(spec)}.h5" for spec in specs]


def run_name(spec: RunSpec) -> str:
    """A file name that says the prompt and seed, and differs for whatever else decides the result."""
    slug = "-".join(re.findall(r"[a-z0-9]+", spec.prompt.lower()))[:48].rstrip("-") or "prompt"
    return f"{slug}-s{spec.seed}-{hashlib.sha256(spec.digest().encode()).hexdigest()[:8]}"


def warn_of_unknown_words(specs: Sequence[RunSpec]) -> None:
    """One warning for all prompt words that the embedded model never learned."""
    from wanlab.embedded import world

    unknown = dict.fromkeys(w for s in specs if s.model == "tiny" for w in world.unknown_words(s.prompt))
    if unknown:
        known = "; ".join(f"{kind}: {', '.join(ws)}" for kind, ws in world.known_words().items() if kind != "others")
        words = ", ".join(list(unknown)[:12]) + (", …" if len(unknown) > 12 else "")
        render.say(f"warning: tiny never learned: {words}. It knows {known}.")


# --- doing it -------------------------------------------------------------------------------------


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
            f"memory      {render.size(sum(p.memory_bytes.values()))}: "
            + ", ".join(f"{k} {render.size(v)}" for k, v in p.memory_bytes.items()),
            f"disk        {render.size(p.disk_bytes)} a run"
            + (f", {render.size(p.disk_bytes * count)} for {count} runs" if count > 1 else ""),
        ]
        render.show(render.table(_plan_rows(p), title=title, left=("expert", "branches", "")), Text("\n".join(lines)))
    return 0


def _plan_rows(p: Plan, run: int | None = None) -> list[dict[str, Any]]:
    return [
        ({} if run is None else {"run": run})
        | {"step": r.step + 1, "timestep": f"{r.timestep:g}", "sigma": f"{r.sigma:.4f}", "expert": r.expert, "branches": "+".join(r.branches),
           "guidance": f"{r.guidance:g}", "frames": r.frames, "tokens": r.tokens, "passes": r.passes, "": "frames completed" if r.lift else ""}
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
    from wanlab.engine import run as engine

    for spec, place in zip(specs, outs, strict=True):  # whatever cannot be done fails before a model is loaded
        engine.check_output(place)
        engine.plan(spec)
    warn_of_unknown_words(specs)
    form = render.choose(form)
    summaries: list[dict[str, Any]] = []
    failed = 0
    with _progress(len(specs)) as begin:
        loaded = engine.Models()
        for spec, place in zip(specs, outs, strict=True):
            try:
                engine.execute(spec, place, progress=begin(spec), loaded=loaded, force=force, gif=gif)
                summaries.append(summarise(place, analyse=analyse, alone=len(specs) == 1))
            except WanlabError as error:
                if len(specs) == 1:
                    raise
                failed += 1
                render.complain(f"{place}: {error.message}", error.hint)
                continue
            if form == "paths":
                sys.stdout.write(f"{place}\n")
                sys.stdout.flush()
    if form == "human":
        render.show(*(picture(s, show_steps) for s in summaries))
    elif form != "paths":
        flat = [{k: v for k, v in s.items() if not isinstance(v, dict | list)} for s in summaries]
        render.emit(flat, form, summaries)
    if failed:
        render.complain(f"{failed} of {len(specs)} runs failed", "run the same command again; finished runs are kept")
    return 0 if not failed else 1 if failed == len(specs) else 3


def summarise(path: Path, *, analyse: bool, alone: bool) -> dict[str, Any]:
    """A finished run's figures, with the contact sheet and the error analysis written beside it."""
    import numpy as np

    from wanlab.analysis import figures, guidance
    from wanlab.runfile import Run

    with Run(path) as run:
        g = guidance.analyse(run)
        prompt, timing = run.spec.prompt, run.attrs.get("timing_seconds", {})
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


@contextmanager
def _progress(runs: int) -> Iterator[Callable[[RunSpec], Callable[[Report], None]]]:
    """Progress on stderr: a bar on a terminal, nothing in a pipe."""
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=30), MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}", markup=False), TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(),
    )  # fmt: skip
    console = render.talk()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        done = 0

        def begin(spec: RunSpec) -> Callable[[Report], None]:
            nonlocal done
            done += 1
            name = f"[{done}/{runs}] " if runs > 1 else ""
            row = bar.add_task(f"{name}{render.plain(spec.prompt, 28)}", total=spec.steps, pace="")

            def report(p: Report) -> None:
                pace = f"{p.phase} {p.seconds:.2f} s/step" if p.phase == "sample" and p.seconds else p.phase
                memory = f" {render.size(p.memory)}" if p.memory else ""
                bar.update(row, completed=p.step, pace=pace + memory)
                if p.phase == "write":
                    bar.remove_task(row)

            return report

        yield begin
