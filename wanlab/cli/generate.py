"""`wanlab generate`: one run file, video and error analysis for each prompt and seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from wanlab.cli import forecast, render
from wanlab.cli.grouping import option, with_options
from wanlab.cli.options import Form, Method
from wanlab.cli.running import Watcher
from wanlab.cli.sampling import Sampling
from wanlab.cli.workers import Sharing
from wanlab.errors import WanlabError
from wanlab.files import write_text
from wanlab.spec import RecordSpec
from wanlab.study.requests import check_place, places
from wanlab.study.runners.local import each
from wanlab.study.text import in_words, plain

REPORT = "error_analysis_report.txt"

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


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What is recorded."""

    record: Annotated[
        str,
        option("--record", panel=_RECORD, help="metrics, latents (x_t too) or all (predictions and branches too)."),
    ] = "metrics"
    record_every: Annotated[
        int, option("--record-every", panel=_RECORD, help="Record latents every so many steps.")
    ] = 1
    record_dtype: Annotated[str, option("--record-dtype", panel=_RECORD, help="float32 or float16 latents.")] = (
        "float32"
    )
    probe: Annotated[
        bool,
        option(
            "--probe",
            panel=_RECORD,
            help="Evaluate branches left out, and with --record all the other expert at the switch: recorded only.",
        ),
    ] = False

    def spec(self) -> RecordSpec:
        """As a run specification has it. Raises UsageError."""
        return RecordSpec(level=self.record, every=self.record_every, dtype=self.record_dtype, probe=self.probe)


@with_options
def generate(
    sampling: Sampling,
    sharing: Sharing,
    method: Method,
    form: Form,
    recording: Recording,
    enable_debug: Annotated[
        bool, option("--enable-debug/--no-error-analysis", panel=_RECORD, help="Write the error analysis of guidance.")
    ] = True,
    debug_outputs: Annotated[bool, option("--debug-outputs", panel=_RECORD, help="", hidden=True)] = False,
    out: Annotated[
        Path | None,
        option("--out", "-o", panel=_OUTPUT, help="A folder, or for one run a file that ends in .h5.  [default: runs]"),
    ] = None,
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
    specs = sampling.specs(method.policies(), recording.spec())
    outs = places(specs, out or Path("outputs" if debug_outputs else "runs"))
    if dry_run:
        return forecast.show(specs, outs, shown_as)
    analysis = ("debug_outputs/" if debug_outputs else "") + "error_analysis" if enable_debug else ""
    for folder in {place.parent / analysis for place in outs}:
        check_place(folder / REPORT)
    summaries: list[dict[str, Any]] = []

    def done(place: Path) -> None:
        try:
            summaries.append(summarise(place, analysis, alone=len(specs) == 1))
        except OSError as error:
            raise WanlabError(*in_words(error)) from error
        if shown_as == "paths":
            render.write(f"{place}\n")

    outcome = sharing.workers().run(each(specs, outs), force=force, gif=gif, watcher=Watcher(done))
    if shown_as == "human":
        render.show(*(part for s in summaries for part in picture(s, show_steps)))
    elif shown_as != "paths":
        flat = [{k: v for k, v in s.items() if not isinstance(v, dict | list)} for s in summaries]
        render.emit(flat, shown_as, summaries)
    return 0 if not outcome.failed else 1 if len(outcome.failed) == outcome.runs else 3


def summarise(path: Path, analysis: str, *, alone: bool) -> dict[str, Any]:
    """A finished run's figures, with the contact sheet written beside it.

    analysis  the folder of the error analysis, beside the run file; "" for none
    """
    import numpy as np

    from wanlab.analysis import figures, guidance, reuse
    from wanlab.analysis.metrics.cost import Cost
    from wanlab.runfile import Run

    with Run(path) as run:
        g = guidance.analyse(run)
        prompt, took = run.spec.prompt, run.attrs.get("timing_seconds", {})
        timing = {k: took[k] for k in (*PHASES, *took) if k in took}
        sheet = figures.contact_sheet(np.asarray(run.video), path.with_suffix(".png"), title=prompt)
        files = {"run": path, "video": path.with_suffix(".mp4"), "contact_sheet": sheet}
        if analysis:
            folder = path.parent / analysis
            before = folder / REPORT
            if not alone or (before.is_file() and path.name not in before.read_text("utf-8", "replace")):
                folder /= path.stem  # of several runs each has its own
            folder.mkdir(parents=True, exist_ok=True)
            files["error_figure"] = figures.guidance_figure(g, folder / "cfg_error_visualization.png", title=prompt)
            report = guidance.report(g, prompt=prompt, title=path.name)
            files["error_report"] = write_text(folder / REPORT, report)
            if (film := figures.token_film(run, folder / "token_masks.mp4")) is not None:
                files["token_film"] = film
        predicted, cost = run.attrs.get("predicted", {}), Cost.of(run)
        return {
            "prompt": prompt,
            "seed": run.spec.seed,
            "model": run.spec.model,
            "size": f"{run.spec.width}x{run.spec.height}",
            "frames": run.spec.frames,
            "steps": g.steps,
            "policies": " ".join(map(str, run.spec.policies)),
            "guider": str(run.spec.guider),
            "device": str(run.attrs.get("device_name", "")),
            "passes": cost.passes,
            "plain_passes": predicted.get("plain_passes"),
            "pass_equivalents": cost.pass_equivalents,
            "tokens": cost.tokens,
            "sampling_seconds": cost.sampling,
            "peak_memory_bytes": run.attrs.get("peak_memory_bytes", 0),
            "resumed_from_step": run.attrs.get("resumed_from_step", 0),
            "timing_seconds": timing,
            "reading": guidance.reading(g),
            "reuse": reuse.reading(g),
            "files": {k: str(v) for k, v in files.items()},
            "by_step": by_step(run, g),
        }


def by_step(run: Any, g: Any) -> list[dict[str, Any]]:
    """A row for every step of a run; with the branches' status where it was recorded."""
    status = [b for b in ("cond", "uncond") if f"status_{b}" in run]
    return [
        {
            "step": k + 1,
            "timestep": float(g.timestep[k]),
            "sigma": float(g.sigma[k]),
            "expert": str(g.expert[k]),
            "branches": str(g.branches[k]),
            **{b: _text(run[f"status_{b}"][k]) for b in status},
            "passes": int(g.passes[k]),
            "mse": float(g.mse[k]),
            "change": float(g.change[k]),
            "cosine": float(g.cosine[k]),
            "seconds": float(run["seconds"][k]),
        }
        for k in range(g.steps)
    ]


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def picture(s: dict[str, Any], show_steps: bool) -> list[Any]:
    """A run's summary for a terminal, in parts."""
    from rich.text import Text

    method = s["policies"] or "no policy"
    method += f", guider {s['guider']}" if s["guider"] != "cfg" else ""
    size = f"{s['size']}, {s['frames']} frames, {s['steps']} steps"
    line = f"{s['model']}, seed {s['seed']}, {size}, {method}; {s['device'] or 'cpu'}"
    cost = f"passes    {s['passes']}"
    cost += f" of {s['plain_passes']} without policies" if s["plain_passes"] else ""
    if abs(s["pass_equivalents"] - s["passes"]) > 0.05:  # NaN of files that did not count it
        cost += f", equivalent to {s['pass_equivalents']:.1f} whole ones"
    clock = ", ".join(f"{k} {v:.2f} s" for k, v in s["timing_seconds"].items())
    lines = [f"{cost}, {s['tokens']:,} tokens", f"time      {clock}"]
    if s["resumed_from_step"]:
        lines.append(f"resumed   after step {s['resumed_from_step']}")
    if s["peak_memory_bytes"]:
        lines.append(f"memory    {render.size(s['peak_memory_bytes'])} at most on the GPU")
    lines += [f"{'reuse' if not k else '':<10}{text}" for k, text in enumerate(s["reuse"])]
    lines += [f"{'guidance' if not k else '':<10}{text}" for k, text in enumerate(s["reading"])]
    lines += [f"{'files' if not k else '':<10}{plain(v, 4000)}" for k, v in enumerate(s["files"].values())]
    parts: list[Any] = [
        Text(""),
        Text(plain(s["prompt"]), style="bold"),
        Text(plain(line, 600)),
        Text("\n".join(text[:10] + plain(text[10:], 4000) for text in lines)),
    ]
    if show_steps:
        parts.append(render.table([_step_row(r) for r in s["by_step"]], left=("expert", "branches", "cond", "uncond")))
    return parts


def _step_row(r: dict[str, Any]) -> dict[str, str]:
    status: dict[str, str] = {b: r[b] for b in ("cond", "uncond") if b in r}
    status = status or {"branches": r["branches"].replace(",", "+")}
    return {
        "step": str(r["step"]),
        "σ": f"{r['sigma']:.4f}",
        "expert": r["expert"],
        **status,
        "mse": render.number(r["mse"], ".2e"),
        "change": render.number(r["change"], ".2e"),
        "cosine": render.number(r["cosine"], ".4f"),
        "ms": f"{1000 * r['seconds']:.0f}",
    }
