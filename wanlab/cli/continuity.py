"""`wanlab continuity`: how far neighbouring frames are from each other at each step, from prompts or existing runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from wanlab.cli import render
from wanlab.cli.grouping import option, with_options
from wanlab.cli.options import Figures, Form
from wanlab.cli.running import Watcher
from wanlab.cli.sampling import Sampling
from wanlab.cli.workers import Sharing, wait_for_others
from wanlab.errors import UsageError
from wanlab.spec import RecordSpec
from wanlab.study.design import split_counts, split_methods
from wanlab.study.drawn import Drawn
from wanlab.study.runners import Outcome

if TYPE_CHECKING:
    from wanlab.analysis.continuity import Group
    from wanlab.study.results import ContinuityResult

_WHAT, _OUTPUT = "What is analysed", "Output"


@with_options
def continuity(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Run files, folders of them, or folders of latent_step_XX.pt; without any, prompts are sampled.",
            show_default=False,
        ),
    ] = None,
    methods: Annotated[
        list[str] | None,
        option(
            "--methods",
            panel=_WHAT,
            help="Ways to sample, as baseline,half,half+cfg:last=5. The recovery of each is held against baseline.  "
            "[default: baseline]",
        ),
    ] = None,
    frames: Annotated[
        str | None, option("--frames", panel=_WHAT, help="Video frames, 4n+1; several as 49,81,121.  [default: 49]")
    ] = None,
    probe: Annotated[
        bool,
        option("--probe", panel=_WHAT, help="At the expert switch also ask the other expert, for the record only."),
    ] = False,
    out: Annotated[Path, option("--out", "-o", panel=_OUTPUT, help="The folder of runs and results.")] = Path(
        "continuity_analysis"
    ),
    debug_latents: Annotated[
        bool, option("--debug-latents", panel=_OUTPUT, help="Also write debug_latents/latent_step_XX.pt.")
    ] = False,
    figures: Figures = None,
    force: Annotated[bool, option("--force", panel=_OUTPUT, help="Sample again what is already complete.")] = False,
    *,
    sampling: Sampling,
    sharing: Sharing,
    form: Form,
) -> int:
    """Measure how neighbouring frames differ at every step, and what explains it.

    wanlab continuity --prompt "a large red circle moving right on a black background"
    """
    from wanlab.study import continuity as study

    shown_as, drawn = form.choose(), Drawn.parse(figures)
    watcher, outcome = Watcher(), Outcome(runs=0, failed=[], awaited=0)
    if runs:
        if (sampling, sharing) != (Sampling(), Sharing()) or methods or frames or probe or force:
            raise UsageError("runs are given, so nothing is sampled", "leave out prompts and what decides a sample")
        sources = study.labelled(study.find(runs))
    else:
        record = RecordSpec(level="all", probe=probe)
        specs = [s for n in split_counts(frames) for s in replace(sampling, frames=n).specs((), record)]
        chosen, workers = split_methods(methods or []), sharing.workers()
        sources, outcome = study.sample(specs, chosen, out, force=force, watcher=watcher, workers=workers)
        if outcome.awaited:
            return wait_for_others(outcome)
    result = study.continuity(sources, out, drawn, failed=outcome.failed, debug_latents=debug_latents, watcher=watcher)
    _show(result, shown_as)
    return 3 if result.failed else 0


def _show(result: ContinuityResult, form: str) -> None:
    if form == "paths":
        render.write("".join(f"{path}\n" for path in result.files))
    elif form == "human":
        render.show(*_picture(result))
    else:
        blank = "" if form == "csv" else "–"
        rows = [{k: blank if v is None else v for k, v in r.items()} for r in result.rows]
        render.emit(rows, form, result.content)


def _picture(result: ContinuityResult) -> list[Any]:
    """The results for a terminal: one group step by step, several side by side; what they say; the files."""
    from wanlab.analysis.continuity import names

    groups, files = result.groups, result.files
    parts: list[Any] = [Text("")]
    if len(groups) == 1:
        g = groups[0]
        runs = (
            f"mean of {len(g.runs)} runs"
            if len(g.runs) > 1
            else f"seed {g.first.seed}"
            if g.first.prompt
            else "one run"
        )
        parts += [
            Text(render.plain((len(g.runs) == 1 and g.first.prompt) or g.method), style="bold"),
            Text(
                render.plain(
                    f"{g.first.model} {g.method}, {g.frames} frames, {runs}: "
                    "how far neighbouring latent frames are apart (mse)".strip()
                )
            ),
            _by_step(g),
            *_switch(g),
        ]
    else:
        parts.append(_summary(groups))
    lines: list[str] = []
    for g, name in zip(groups, names(groups), strict=True):
        lead = "" if len(groups) == 1 else f"{render.plain(name, 80)}: "
        lines += [lead + line for line in reading(g, len(groups) > 1)]
    lines = [f"{'' if k else 'reading':<10}{line}" for k, line in enumerate(lines)]
    shown = [f for f in files if f.suffix != ".pt"]
    lines += [f"{'files' if not k else '':<10}{render.plain(f)}" for k, f in enumerate(dict.fromkeys(shown)) if k < 12]
    if len(shown) > 12:
        lines.append(f"{'':<10}and {len(shown) - 12} run files more")
    return [*parts, Text("\n".join(lines))]


def reading(g: Group, short: bool) -> list[str]:
    """What a group's numbers say; of several groups only what tells them apart."""
    from wanlab.analysis import continuity

    said = continuity.reading(g)
    return [s for s in said if s.startswith(("The noise", "Its curve"))] if short else said


def _by_step(g: Group) -> Any:
    c, n = g.first, render.number
    columns: dict[str, tuple[Any, str]] = {
        "x_t": (g.curve("x_t"), ".4f"),
        "± pairs": (g.curve("x_t", std=True), ".4f"),
        "expected": (g.theory("expected"), ".4f"),
        "off": (g.theory("residual") / g.theory("expected"), "+.1%"),
        "noise ρ": (g.theory("rho"), "+.3f"),
        "x0_pred": (g.curve("x0_pred"), ".4f"),
        "eps_pred": (g.curve("eps_pred"), ".4f"),
    }
    columns = {k: v for k, v in columns.items() if any(w == w for w in v[0])}
    frames = [f"{f}" + (f" (every {s})" if s > 1 else "") for f, s in zip(c.evaluated, c.stride, strict=True)]
    rows = [
        {"step": k + 1, "σ": f"{c.sigma[k]:.4f}", "expert": str(c.expert[k])}
        | ({"frames": frames[k]} if len(set(frames)) > 1 else {})
        | {name: n(float(v[k]), form) for name, (v, form) in columns.items()}
        for k in range(c.steps)
    ]
    last = (
        "expected: (1-σ)²·m0 + 2σ², by independent noise and the final latent; off: x_t against it; "
        "noise ρ: 0 when independent, – when too small to tell"
    )
    return render.table(rows, left=("expert", "frames"), caption=last)


def _switch(g: Group) -> list[Any]:
    from wanlab.analysis.continuity import change_at_switch

    c = g.first
    if c.switch is None:
        return []
    jumps = [change_at_switch(r) for r in g.runs]
    rows = []
    for name in jumps[0]:
        row = {
            k: sum(j[name]["mse"][k] for j in jumps) / len(jumps)
            for k in ("before", "after", "jump", "expected_jump", "change_before", "change_after")
        }
        said = ("before", "after", "jump", "schedule alone", "one step earlier", "one step later")
        forms = (".4f", ".4f", "+.4f", "+.4f", "+.4f", "+.4f")
        rows.append({"": name} | {s: render.number(v, f) for s, v, f in zip(said, row.values(), forms, strict=True)})
    title = f"Across the expert switch, step {c.switch} to {c.switch + 1} (mse)"
    return [render.table(rows, title=title, left=("",))]


def _summary(groups: Sequence[Group]) -> Any:
    """One row a method and frame count."""
    rows = []
    for g in groups:
        c, x_t, n = g.first, g.curve("x_t"), render.number
        at = c.disturbed
        rho = g.theory("rho")
        after, never = g.recovered
        back = "–"
        if after or never:
            back = f"{sorted(after)[len(after) // 2]}" if after else "never"
            back += f"\n{min(after)} to {max(after)}" if len(set(after)) > 1 else ""
            back += f"\nnever in {never}" if after and never else ""
        rows.append(
            {
                "method": render.plain(g.method, 60),
                "frames": g.frames,
                "runs": len(g.runs),
                "step 1": n(float(x_t[0]), ".3f"),
                "after switch": n(float(x_t[at]), ".3f") if at is not None else "–",
                "last step": n(float(x_t[-1]), ".3f"),
                "noise ρ": n(float(rho[at]), "+.3f") if at is not None else "–",
                "steps to recover": back,
                "final latent": _spread(g, "final"),
                "video": _spread(g, "video"),
            }
        )
    return render.table(
        rows,
        left=("method",),
        title="How far neighbouring frames are apart (mse)",
        caption="x_t at step 1, at the first step after frames were completed (or the expert switch), at the last; "
        "noise ρ there; steps from there until within the baseline's spread for good; then what came out. Below, "
        "dimmed: the spread over runs.",
    )


def _spread(g: Group, name: str) -> str:
    import numpy as np

    values = np.array([float(getattr(r, name).mean("mse")[0]) for r in g.runs if getattr(r, name) is not None])
    if not len(values):
        return "–"
    return f"{values.mean():.4g}" + (f"\n± {values.std(ddof=1):.2g}" if len(values) > 1 else "")
