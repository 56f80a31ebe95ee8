"""`wanlab continuity`: how far neighbouring frames are from each other at each step, from prompts or existing runs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group as Together
from rich.progress import track
from rich.text import Text

from wanlab import __version__
from wanlab.cli import render
from wanlab.cli.options import Form, Sampling, option, places, with_options
from wanlab.cli.running import run_all
from wanlab.errors import UsageError, WanlabError
from wanlab.spec import METHOD_SETTINGS, MethodSpec, RecordSpec, RunSpec

if TYPE_CHECKING:
    from wanlab.analysis.continuity import Continuity, Group

BOUNDARY = 875  # the timestep from which on Wan2.2-T2V-A14B's high-noise expert works, for files that do not say
DRAWN = 24  # groups of runs in a figure
_WHAT, _OUTPUT = "What is analysed", "Output"


@dataclass(frozen=True)
class Source:
    """A run file, or a folder of `latent_step_XX.pt`, and what is known of it beside what it says."""

    path: Path
    method: str = ""
    settings: str = ""


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
    force: Annotated[bool, option("--force", panel=_OUTPUT, help="Sample again what is already complete.")] = False,
    *,
    sampling: Sampling,
    form: Form,
) -> int:
    """Measure how neighbouring frames differ at every step, and what explains it.

    wanlab continuity --prompt "a large red circle moving right on a black background"
    """
    shown_as = form.choose()
    failed = 0
    if runs:
        if sampling != Sampling() or methods or frames or probe or force:
            raise UsageError("runs are given, so nothing is sampled", "leave out prompts and what decides a sample")
        sources = labelled(find(runs))
        _make(out)
    else:
        sources, missed = _sample(sampling, methods or [], frames, RecordSpec(level="all", probe=probe), out, force)
        failed = len(missed)
    results: list[Continuity] = []
    console = render.talk()
    for source in track(
        sources, "analysing", console=console, transient=True, disable=not console.is_terminal or len(sources) < 2
    ):
        try:
            results.append(analyse(source))
        except WanlabError as error:
            if len(sources) + failed == 1:
                raise
            failed += 1
            render.complain(f"{source.path}: {error.message}", error.hint)
    if not results:
        return 1
    _report(results, out, shown_as, debug_latents)
    return 3 if failed else 0


# --- what is analysed ------------------------------------------------------------------------------------------------


def split(texts: Sequence[str]) -> list[MethodSpec]:
    """The methods of `baseline,cfg:last=5,keep=cond,half`, each once. A piece that is only a knob or a number belongs
    to the method before it. Raises UsageError."""
    pieces: list[str] = []
    for text in texts:
        first = len(pieces)
        for piece in filter(None, (p.strip() for p in text.split(","))):
            knob = re.match(r"[a-z0-9_]+(?==)", piece)
            if len(pieces) > first and (piece[0].isdigit() or (knob and knob[0] not in METHOD_SETTINGS)):
                pieces[-1] += f",{piece}"
            else:
                pieces.append(piece)
    return [MethodSpec.parse(p) for p in dict.fromkeys(pieces)] or [MethodSpec("baseline")]


def counts(text: str | None) -> list[int | None]:
    """The frame counts of `49,81,121`; [None] for the default. Raises UsageError."""
    if text is None:
        return [None]
    if not re.fullmatch(r"\s*\d{1,6}\s*(,\s*\d{1,6}\s*)*", text, re.ASCII):
        raise UsageError(f"--frames '{render.plain(text, 40)}' is no list of frame counts", "write --frames 49,81,121")
    return list(dict.fromkeys(int(n) for n in text.split(",")))


def _sample(
    sampling: Sampling, texts: Sequence[str], frames: str | None, record: RecordSpec, out: Path, force: bool
) -> tuple[list[Source], list[Path]]:
    """(what was sampled, the runs that failed)."""
    from wanlab.analysis.continuity import settings_of

    found: list[tuple[RunSpec, MethodSpec, RunSpec]] = []
    methods = split(texts)
    for count in counts(frames):
        base = replace(sampling, frames=count).specs((), record)
        found += [(m.apply(spec), m, spec) for m in methods for spec in base]
    specs = {spec.digest(): spec for spec, _, _ in found}
    paths = dict(zip(specs, places(list(specs.values()), out / "runs"), strict=True))
    missed = run_all(list(specs.values()), list(paths.values()), force=force)
    made = {
        (paths[spec.digest()], m.label): Source(paths[spec.digest()], m.label, settings_of(base))
        for spec, m, base in found
    }
    return [s for s in made.values() if s.path not in missed], missed


def find(given: Sequence[Path]) -> list[Path]:
    """Run files and folders of `latent_step_XX.pt`; a folder of run files stands for them. Raises UsageError."""
    found: list[Path] = []
    for path in given:
        if not path.is_dir():
            if not path.exists():
                raise UsageError(f"there is no {path}", "name run files, or give --prompt")
            found.append(path)
        elif any(path.glob("latent_step_*.pt")):
            found.append(path)
        elif inside := sorted(path.glob("*.h5")):
            found += [p for p in inside if p.is_file()]
        else:
            raise UsageError(f"{path} holds neither run files nor latent_step_XX.pt", "name another folder")
    return list(dict.fromkeys(found))


def labelled(paths: Sequence[Path]) -> list[Source]:
    """The paths with labels that tell apart what was sampled differently."""
    from wanlab.analysis.continuity import labels
    from wanlab.runfile import Run

    specs: dict[Path, RunSpec] = {}
    for path in paths:
        try:
            if not path.is_dir():
                with Run(path) as run:
                    specs[path] = run.spec
        except WanlabError:
            pass  # said when it is analysed
    named = dict(zip(specs, labels(list(specs.values())), strict=True))
    return [Source(path, named.get(path, "")) for path in paths]


def analyse(source: Source) -> Continuity:
    """The analysis of a run file or folder. Raises WanlabError."""
    from wanlab.analysis import continuity
    from wanlab.runfile import Run

    if source.path.is_dir():
        return _folder(source.path)
    with Run(source.path) as run:
        return continuity.analyse(run, method=source.method, settings=source.settings)


def _folder(folder: Path) -> Continuity:
    from wanlab.analysis.continuity import SPACES, Step, measure
    from wanlab.engine import legacy

    notes: dict[str, None] = {}
    newest: dict[str, Any] = {}

    def steps() -> Iterator[Step]:
        for saved in legacy.read(folder):
            notes.update(dict.fromkeys(saved.notes))
            newest.clear()
            newest.update(saved.arrays)
            yield Step(
                timestep=saved.timestep, sigma=saved.sigma, expert="high" if saved.timestep >= BOUNDARY else "low",
                stride=None, values=saved.arrays["x_t"][:, 0].size,
                spaces={n: list(a.swapaxes(0, 1)) for n, a in saved.arrays.items() if n in SPACES},
            )  # fmt: skip

    def final() -> Iterator[Any]:
        if "latent" in newest:
            yield from newest["latent"].swapaxes(0, 1)

    about = dict(
        source=str(folder), prompt="", seed=None, model="", method=folder.resolve().name, settings="", lifted=None
    )
    made = measure(steps(), final(), about)
    said = (*notes, f"the expert is told by the timestep: high-noise from {BOUNDARY} on")
    for note in said:
        render.say(f"note: {folder}: {note}")
    return replace(made, notes=said)


# --- what is written and shown ---------------------------------------------------------------------------------------


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror}", "choose another --out") from error


def _report(results: Sequence[Continuity], out: Path, form: str, debug_latents: bool) -> None:
    from wanlab.analysis import continuity

    groups = continuity.group(results)
    whole = continuity.statistics(groups, __version__)
    files = _write(groups, whole, out)
    if debug_latents:
        runs = dict.fromkeys(Path(r.source) for r in results)
        files += _debug_latents([p for p in runs if p.is_file()], out / "debug_latents")
    files += [Path(r.source) for r in results]
    if form == "paths":
        sys.stdout.write("".join(f"{path}\n" for path in dict.fromkeys(files)))
    elif form == "human":
        render.show(_picture(groups, files))
    else:
        blank = "" if form == "csv" else "–"
        render.emit([{k: blank if v is None else v for k, v in r.items()} for r in _rows(groups)], form, whole)


def _write(groups: Sequence[Group], whole: dict[str, Any], out: Path) -> list[Path]:
    from wanlab.analysis.figures import continuity as figures

    _make(out)
    first = groups[0].first
    runs = sum(len(g.runs) for g in groups)
    title = (first.prompt or Path(first.source).name) if runs == 1 else f"{runs} runs"
    try:
        place = out / "continuity_statistics.json"
        place.write_text(json.dumps(whole, allow_nan=False, ensure_ascii=True, separators=(",", ":")) + "\n")
        made = [place]
        if len(groups) > DRAWN:
            render.say(f"note: the figures show the first {DRAWN} of {len(groups)} methods and frame counts")
        groups = groups[:DRAWN]
        drawn = [g for g in groups if g.has("x_t")]
        if drawn:
            made += [
                figures.analysis_figure(drawn, out / "continuity_analysis.png", title),
                figures.theory_figure(drawn, out / "continuity_theory.png", title),
            ]
        made += [
            figures.heatmap_figure(groups, out / "continuity_heatmap.png", title),
            figures.spaces_figure(groups, out / "continuity_spaces.png", title),
        ]
        if len({g.frames for g in groups}) > 1:
            made.append(figures.frames_figure(groups, out / "continuity_frames.png", title))
    except OSError as error:
        raise WanlabError(
            f"cannot write to {out}: {error.strerror}", "free some space, or choose another --out"
        ) from error
    return made


def _debug_latents(runs: Sequence[Path], folder: Path) -> list[Path]:
    from wanlab.engine import legacy
    from wanlab.runfile import Run

    made: list[Path] = []
    names: set[str] = set()
    for path in runs:
        name = next(n for k in range(len(runs)) if (n := path.stem + f"-{k + 1}" * (k > 0)) not in names)
        names.add(name)
        with Run(path) as run:
            made += legacy.write(run, folder / name if len(runs) > 1 else folder)
    return made


def _rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Every step of every group: means over pairs, then over runs."""
    from wanlab.analysis.continuity import METRICS, SPACES, plain

    rows = []
    for g in groups:
        columns = {"x_t_mse_std": g.curve("x_t", std=True)}
        columns |= {f"x_t_{n}": g.theory(n) for n in ("expected", "residual", "noise_share")}
        columns |= {"noise_correlation": g.theory("rho")}
        columns |= {f"{n}_{m}": g.curve(n, m) for n in SPACES for m in METRICS}
        for k in range(g.first.steps):
            rows.append(
                {"method": g.method, "frames": g.frames, "runs": len(g.runs), "step": k + 1, "timestep": plain(g.first.timestep[k]),
                 "sigma": plain(g.first.sigma[k]), "expert": str(g.first.expert[k]), "latent_frames": int(g.first.evaluated[k]),
                 "frame_stride": int(g.first.stride[k])} | {n: plain(v[k]) for n, v in columns.items()}
            )  # fmt: skip
    return rows


def _picture(groups: Sequence[Group], files: Sequence[Path]) -> Together:
    """The results for a terminal: one group step by step, several side by side; what they say; the files."""
    from wanlab.analysis.continuity import names

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
            Text(render.plain(f"{g.first.model} {g.method}, {g.frames} frames, {runs}: how far neighbouring latent frames are apart (mse)".strip())),
            _by_step(g), *_switch(g),
        ]  # fmt: skip
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
    return Together(*parts, Text("\n".join(lines)))


def reading(g: Group, short: bool) -> list[str]:
    """What a group's numbers say; of several groups only what tells them apart."""
    from wanlab.analysis import continuity

    said = continuity.reading(g)
    return [s for s in said if s.startswith(("The noise", "Its curve"))] if short else said


def _by_step(g: Group) -> Any:
    c, n = g.first, render.number
    columns: dict[str, tuple[Any, str]] = {
        "x_t": (g.curve("x_t"), ".4f"), "± pairs": (g.curve("x_t", std=True), ".4f"), "expected": (g.theory("expected"), ".4f"),
        "off": (g.theory("residual") / g.theory("expected"), "+.1%"), "noise ρ": (g.theory("rho"), "+.3f"),
        "x0_pred": (g.curve("x0_pred"), ".4f"), "eps_pred": (g.curve("eps_pred"), ".4f"),
    }  # fmt: skip
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
            {"method": render.plain(g.method, 60), "frames": g.frames, "runs": len(g.runs), "step 1": n(float(x_t[0]), ".3f"),
             "after switch": n(float(x_t[at]), ".3f") if at is not None else "–", "last step": n(float(x_t[-1]), ".3f"),
             "noise ρ": n(float(rho[at]), "+.3f") if at is not None else "–", "steps to recover": back,
             "final latent": _spread(g, "final"), "video": _spread(g, "video")}
        )  # fmt: skip
    return render.table(
        rows, left=("method",), title="How far neighbouring frames are apart (mse)",
        caption="x_t at step 1, at the first step after frames were completed (or the expert switch), at the last; noise ρ there; steps from "
        "there until within the baseline's spread for good; then what came out. Below, dimmed: the spread over runs.",
    )  # fmt: skip


def _spread(g: Group, name: str) -> str:
    import numpy as np

    values = np.array([float(getattr(r, name).mean("mse")[0]) for r in g.runs if getattr(r, name) is not None])
    if not len(values):
        return "–"
    return f"{values.mean():.4g}" + (f"\n± {values.std(ddof=1):.2g}" if len(values) > 1 else "")
