"""Continuity of frames: prompts or run files in, analyses, statistics and figures out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanlab import __version__
from wanlab.errors import UsageError, WanlabError
from wanlab.files import make_folder, write_text
from wanlab.spec import MethodSpec, RunSpec
from wanlab.spec.paths import is_run_file
from wanlab.study.drawn import PNG_ONLY, Drawn
from wanlab.study.requests import check_names, check_place, places
from wanlab.study.results import ContinuityResult
from wanlab.study.runners import HERE, Outcome, Workers
from wanlab.study.runners.groups import PairGroup
from wanlab.study.runners.local import Watcher

if TYPE_CHECKING:
    from wanlab.analysis.continuity import Continuity, Group

BOUNDARY = 875  # the timestep from which on Wan2.2-T2V-A14B's high-noise expert works, for files that do not say
DRAWN = 24  # groups of runs in a figure


@dataclass(frozen=True)
class Source:
    """A run file, or a folder of `latent_step_XX.pt`, and what is known of it beside what it says."""

    path: Path
    method: str = ""
    settings: str = ""


# --- what is analysed --------------------------------------------------------------------------------------------


def sample(
    specs: Sequence[RunSpec],
    methods: Sequence[MethodSpec],
    out: Path,
    *,
    force: bool = False,
    watcher: Watcher | None = None,
    workers: Workers = HERE,
) -> tuple[list[Source], Outcome]:
    """Every spec by every method into `out`/runs: (what was sampled, what has become of the runs).

    Raises UsageError for what cannot be done, before a model is loaded.
    """
    from wanlab.analysis.continuity import settings_of

    pairs = [(method, base) for method in methods for base in specs]
    runs: dict[str, RunSpec] = {}
    for method, base in pairs:
        spec = method.apply(base)
        check_names(spec)
        runs[spec.digest()] = spec
    paths = dict(zip(runs, places(list(runs.values()), out / "runs"), strict=True))
    groups: list[PairGroup] = []
    placed: set[Path] = set()
    for base in specs:
        row = {paths[d]: runs[d] for d in (m.apply(base).digest() for m in methods) if paths[d] not in placed}
        placed |= set(row)
        if row:
            groups.append(PairGroup(tuple((spec, path) for path, spec in row.items()), next(iter(row))))
    outcome = workers.run(groups, force=force, watcher=watcher)
    sources: dict[tuple[Path, str], Source] = {}
    for method, base in pairs:
        spec = method.apply(base)
        path = paths[spec.digest()]
        sources[path, method.label] = Source(path, method.label, settings_of(spec))
    return [s for s in sources.values() if s.path not in outcome.failed], outcome


def find(given: Sequence[Path]) -> list[Path]:
    """Run files and folders of `latent_step_XX.pt`; a folder of run files stands for them. Raises UsageError."""
    paths: list[Path] = []
    for path in given:
        if not path.is_dir():
            if not path.exists():
                raise UsageError(f"there is no {path}", "name run files, or give --prompt")
            paths.append(path)
        elif any(path.glob("latent_step_*.pt")):
            paths.append(path)
        elif inside := sorted(p for p in path.iterdir() if is_run_file(p) and p.is_file()):
            paths += inside
        else:
            raise UsageError(f"{path} holds neither run files nor latent_step_XX.pt", "name another folder")
    return list(dict.fromkeys(paths))


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
            if saved.expert is None:
                notes[f"the expert is told by the timestep: high-noise from {BOUNDARY} on, as in the A14B"] = None
            newest.clear()
            newest.update(saved.arrays)
            yield Step(
                timestep=saved.timestep,
                sigma=saved.sigma,
                expert=saved.expert or ("high" if saved.timestep >= BOUNDARY else "low"),
                stride=None,
                values=saved.arrays["x_t"][:, 0].size,
                spaces={n: list(a.swapaxes(0, 1)) for n, a in saved.arrays.items() if n in SPACES},
            )

    def final() -> Iterator[Any]:
        if "latent" in newest:
            yield from newest["latent"].swapaxes(0, 1)

    about = dict(
        source=str(folder), prompt="", seed=None, model="", method=folder.resolve().name, settings="", lifted=None
    )
    return replace(measure(steps(), final(), about), notes=tuple(notes))


# --- the whole ---------------------------------------------------------------------------------------------------


def continuity(
    sources: Sequence[Source],
    out: Path,
    drawn: Drawn = PNG_ONLY,
    *,
    failed: Sequence[Path] = (),
    debug_latents: bool = False,
    watcher: Watcher | None = None,
) -> ContinuityResult:
    """Analyse runs, and write what was found into `out`; `failed` are runs that there are no sources of.

    Sources that cannot be read are told to the watcher and named in the result's `failed`. Raises WanlabError when one
    alone cannot be read, or none of several, and when nothing can be written.
    """
    from wanlab.analysis import continuity as analysis
    from wanlab.analysis.figures.style import also_as

    watcher = watcher or Watcher()
    check_place(out / "continuity_statistics.json")
    results: list[Continuity] = []
    missing = list(failed)
    for k, source in enumerate(sources, 1):
        try:
            results.append(analyse(source))
        except WanlabError as error:
            if len(sources) + len(failed) == 1:
                raise
            missing.append(source.path)
            watcher.fail(source.path, error)
        watcher.measure(k, len(sources))
    if not results:
        raise WanlabError(f"none of {len(missing)} runs can be analysed", "see above")
    folders = [r for r in results if Path(r.source).is_dir()]
    notes = [f"note: {r.source}: {note}" for r in folders for note in r.notes]
    groups = analysis.group(results)
    content = analysis.statistics(groups, __version__)
    if len(groups) > DRAWN:
        notes.append(f"note: the figures show the first {DRAWN} of {len(groups)} methods and frame counts")
    for note in notes:
        watcher.say(note)
    with also_as(drawn.kind, drawn.width):
        files = _write(groups, content, make_folder(out))
    files += drawn.beside(files)
    runs = [Path(r.source) for r in results]
    if debug_latents:
        files += _debug_latents([p for p in dict.fromkeys(runs) if p.is_file()], out / "debug_latents")
    return ContinuityResult(
        groups=tuple(groups),
        content=content,
        out=out,
        files=tuple(dict.fromkeys([*files, *runs])),
        failed=tuple(missing),
        notes=tuple(notes),
    )


def _write(groups: Sequence[Group], content: dict[str, Any], out: Path) -> list[Path]:
    from wanlab.analysis.figures import continuity as figures

    first = groups[0].first
    runs = sum(len(g.runs) for g in groups)
    title = (first.prompt or Path(first.source).name) if runs == 1 else f"{runs} runs"
    text = json.dumps(content, allow_nan=False, ensure_ascii=True, separators=(",", ":")) + "\n"
    files = [write_text(out / "continuity_statistics.json", text)]
    groups = groups[:DRAWN]
    if drawn := [g for g in groups if g.has("x_t")]:
        files.append(figures.analysis_figure(drawn, out / "continuity_analysis.png", title))
        files.append(figures.theory_figure(drawn, out / "continuity_theory.png", title))
    files.append(figures.heatmap_figure(groups, out / "continuity_heatmap.png", title))
    files.append(figures.spaces_figure(groups, out / "continuity_spaces.png", title))
    if len({g.frames for g in groups}) > 1:
        files.append(figures.frames_figure(groups, out / "continuity_frames.png", title))
    return files


def _debug_latents(runs: Sequence[Path], folder: Path) -> list[Path]:
    from wanlab.engine import legacy
    from wanlab.runfile import Run

    files: list[Path] = []
    names: set[str] = set()
    for path in runs:
        name = next(n for k in range(len(runs)) if (n := path.stem + f"-{k + 1}" * (k > 0)) not in names)
        names.add(name)
        with Run(path) as run:
            files += legacy.write(run, folder / name if len(runs) > 1 else folder)
    return files


def step_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Every step of every group: means over pairs, then over runs; None where there is no number."""
    from wanlab.analysis.continuity import METRICS, SPACES, plain

    rows = []
    for g in groups:
        columns = {"x_t_mse_std": g.curve("x_t", std=True)}
        columns |= {f"x_t_{n}": g.theory(n) for n in ("expected", "residual", "noise_share")}
        columns |= {"noise_correlation": g.theory("rho")}
        columns |= {f"{n}_{m}": g.curve(n, m) for n in SPACES for m in METRICS}
        for k in range(g.first.steps):
            about = {
                "method": g.method,
                "frames": g.frames,
                "runs": len(g.runs),
                "step": k + 1,
                "timestep": plain(g.first.timestep[k]),
                "sigma": plain(g.first.sigma[k]),
                "expert": str(g.first.expert[k]),
                "latent_frames": int(g.first.evaluated[k]),
                "frame_stride": int(g.first.stride[k]),
            }
            rows.append(about | {n: plain(v[k]) for n, v in columns.items()})
    return rows
