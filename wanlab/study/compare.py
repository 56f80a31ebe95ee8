"""Comparing methods: run what a design asks for, gather the pairs, write what follows from them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanlab import __version__
from wanlab.errors import UsageError, WanlabError
from wanlab.files import make_folder, write_text
from wanlab.spec import MethodSpec, PolicySpec, RunSpec
from wanlab.spec.paths import is_run_file
from wanlab.study import folders
from wanlab.study.design import Design, Variant, slug
from wanlab.study.drawn import PNG_ONLY, Drawn
from wanlab.study.measuring import measure_pairs
from wanlab.study.results import ComparisonResult
from wanlab.study.runners import HERE, Outcome, Workers
from wanlab.study.runners.groups import turn
from wanlab.study.runners.local import Watcher
from wanlab.study.text import comma_separated, finite, markdown, plain

if TYPE_CHECKING:
    from wanlab.analysis.compare import Comparison, Pair, Result

DETAILED = 8  # more methods than this get figures of their own only on the Pareto front
FORECAST = 100  # methods whose cost is said beforehand


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be said of a comparison beside its figures."""

    conditions: Sequence[tuple[str, str, float]] = ()
    """Conditions that a method fails, as ("psnr", "<", 35)."""
    loss: Sequence[tuple[str, float]] = ()
    """The losses that a sweep may cost, as ("psnr", 35.0); none without a sweep."""
    metrics: Sequence[str] = ()
    """Measures beyond those that always are: names, or files that register some."""
    remarks: Sequence[str] = ()
    """What was found before anything was compared."""
    confirm: Sequence[RunSpec] = ()
    """What the choice of a sweep is measured again on (see `fresh`)."""
    drawn: Drawn = PNG_ONLY
    """What figures are written as beside the PNGs."""

    @property
    def bounds(self) -> list[tuple[str, ...] | tuple[str, str, float]]:
        """The conditions, and the losses by their names."""
        return [*self.conditions, *((name,) for name, _ in self.loss)]


NOTHING = Asked()


def fitting(methods: Sequence[MethodSpec], spec: RunSpec) -> tuple[list[MethodSpec], list[str]]:
    """The methods that a run of `spec` can use, and which are left out, and why: of a list that is the package's.
    Raises UsageError when there is none."""
    from wanlab.engine.run import plan

    kept: list[MethodSpec] = []
    said: list[str] = []
    for method in methods:
        try:
            plan(method.apply(spec))
            kept.append(method)
        except UsageError as reason:
            said.append(f"left out, {method.label}: {reason}")
    if not kept:
        raise UsageError("; ".join(said))
    return kept, said


def fresh(specs: Sequence[RunSpec], seeds: Sequence[int]) -> list[RunSpec]:
    """The same prompts and settings at other seeds. Raises UsageError for a seed that is among theirs."""
    used = {s.seed for s in specs}
    if again := sorted(used & set(seeds)):
        free = max(*used, *seeds) + 1
        raise UsageError(
            f"--confirm: seed {again[0]} has a part in the choice", f"write --confirm {free}:{free + len(seeds)}"
        )
    moved = (replace(s, seed=seed) for seed in seeds for s in specs)
    return list({s.digest(): s for s in moved}.values())


def forecast(design: Design) -> list[dict[str, Any]]:
    """What the runs of the baseline, of each floor and of each method (the first `FORECAST`) are going to cost.

    Raises as the runs would.
    """
    from wanlab.engine.run import plan

    specs = {path: spec for spec, path in design.order}
    labels = [design.baseline.label, *(v.method.label for v in (*design.floors, *design.variants))][:FORECAST]
    firsts = [runs[0] for runs in (design.baseline_runs, *design.floor_runs, *design.variant_runs)][:FORECAST]
    rows: list[dict[str, Any]] = []
    usual = 0.0
    for label, path in zip(labels, firsts, strict=True):
        f = plan(specs[path])
        usual = usual or f.flops
        operations = f.flops_bounds[0] / usual, f.flops_bounds[1] / usual
        rows.append(
            {
                "method": label,
                "passes": _bounds(*f.passes_bounds, "d"),
                "exact": "yes" if f.exact else "bounds",
                "operations": _bounds(*operations, ".3f"),
                "speed-up": _bounds(1 / operations[1], 1 / operations[0] if operations[0] else math.inf, ".2f"),
                "bytes a run": f.disk_bytes,
                "folder": str(path.parent),
            }
        )
    return rows


def alike(design: Design) -> list[str]:
    """Which methods are the baseline itself, or another of the methods, once defaults are written out: in sentences."""
    from wanlab.engine.run import resolved
    from wanlab.registry import build

    specs = {path: spec for spec, path in design.order}

    def computed(run: Path) -> tuple[str, str]:
        spec = resolved(specs[run])
        policies = [(p.name, p.code, vars(build("policy", p))) for p in spec.policies]
        guider = spec.guider.name, spec.guider.code, vars(build("guider", spec.guider))
        return replace(spec, policies=(), guider=PolicySpec("cfg")).digest(), repr((policies, guider))

    try:
        known = {computed(design.baseline_runs[0]): design.baseline}
        firsts = [runs[0] for runs in design.variant_runs]
        variants = list(zip(design.variants, firsts, strict=True))[:FORECAST]
        every = [(variant, computed(first)) for variant, first in variants]
    except UsageError:  # sampled on another machine, whose defaults are not known here
        return []
    said = []
    for variant, key in every:
        same = known.setdefault(key, variant.method)
        if str(same) != str(variant.method):
            said.append(f"{variant.method.label} is {same.label} itself, its values are the defaults")
    return said


def _bounds(low: float, high: float, form: str) -> str:
    """`12`, or `26–40` where it is decided while running."""
    if low == high:
        return f"{low:{form}}"
    return f"{low:{form}} or more" if math.isinf(high) else f"{low:{form}}–{high:{form}}"


def amount(design: Design) -> str:
    """How many new runs there are, and the disk and time that they take at least, in words."""
    from wanlab.engine.run import operations_per_second, plan

    new = design.new
    one = plan(new[0][0])
    seconds = len(new) * one.flops / operations_per_second(one.spec)
    time = f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min"
    size = f"{len(new) * one.disk_bytes / 1e9:.1f} GB before compression"
    return f"{len(new)} runs, {size}, and {time} or more of sampling on {one.spec.device}"


def compare(
    design: Design, out: Path, asked: Asked = NOTHING, *, force: bool = False, watcher: Watcher | None = None
) -> ComparisonResult:
    """Run a design into the folder `out`, measure its pairs, and write what was found.

    Raises UsageError for what cannot be done, before a model is loaded, and WanlabError when no method has a pair left.
    """
    outcome = sample(design, out, asked, force=force, watcher=watcher)
    return measure_all(design, out, asked, failed=outcome.failed, force=force, watcher=watcher)


def sample(
    design: Design,
    out: Path,
    asked: Asked = NOTHING,
    *,
    force: bool = False,
    watcher: Watcher | None = None,
    workers: Workers = HERE,
) -> Outcome:
    """Make the runs of a design. Raises UsageError for what cannot be done, before a model is loaded."""
    from wanlab.analysis.verdict import check_conditions

    check_conditions(asked.bounds, runs=True, asked=asked.metrics)
    make_folder(out)
    return workers.run(design.groups, force=force, watcher=watcher)


def measure_all(
    design: Design,
    out: Path,
    asked: Asked = NOTHING,
    *,
    failed: Sequence[Path] = (),
    force: bool = False,
    watcher: Watcher | None = None,
) -> ComparisonResult:
    """Measure the pairs of a design whose runs are there, and write what was found into the folder `out`. What is asked
    to be confirmed is sampled here (`force`: anew).

    Runs that failed are named in the result's `failed`, their pairs are left out. Raises WanlabError when no method has
    a pair left.
    """
    watcher = watcher or Watcher()
    try:
        gathering = _Gathering(design, set(failed), asked.metrics, watcher)
    finally:
        watcher.end()
    floors = [gathering.result(v, r) for v, r in zip(design.floors, design.floor_runs, strict=True)]
    results = [gathering.result(v, r) for v, r in zip(design.variants, design.variant_runs, strict=True)]
    from wanlab.analysis.compare import Comparison

    comparison = Comparison(
        baseline=design.baseline.label,
        results=tuple(r for r in results if r),
        floors=tuple(f for f in floors if f),
    )
    if not comparison.results:
        raise WanlabError(f"no pair is left of {len(failed)} failed runs", "run the same command again")
    if asked.confirm:
        comparison, more = _confirmed(comparison, design, out, asked, force=force, watcher=watcher)
        failed = [*failed, *more]
    return conclude(
        comparison,
        out,
        design.name,
        asked,
        description=design.description,
        remarks=[*alike(design), *gathering.missing],
        failed=failed,
    )


def _confirmed(
    comparison: Comparison, design: Design, out: Path, asked: Asked, *, force: bool, watcher: Watcher
) -> tuple[Comparison, list[Path]]:
    """The comparison with what its sweep chose measured again on fresh seeds, and the runs of it that failed."""
    from wanlab.study.design import arrange

    assert asked.loss
    sure, likely = comparison.cheapest(*asked.loss)
    chosen = sure or likely
    if chosen is None:
        return comparison, []
    variant = next(v for v in design.variants if v.method.label == chosen.label)
    again = arrange(asked.confirm, design.baseline, [variant], [], out)
    failed = list(HERE.run(again.groups, force=force, watcher=watcher).failed)
    result = _Gathering(again, set(failed), asked.metrics, watcher).result(variant, again.variant_runs[0])
    if result is None:
        return comparison, failed
    return replace(comparison, confirmed=(replace(result, label=f"{result.label}, confirmed"),)), failed


@dataclass
class _Gathering:
    """Methods with their pairs, which are measured all at once."""

    design: Design
    failed: set[Path]
    metrics: Sequence[str]
    watcher: Watcher
    missing: list[str] = field(default_factory=list)
    measured: dict[tuple[Path, Path], Pair] = field(init=False)

    def __post_init__(self) -> None:
        every = (*self.design.floor_runs, *self.design.variant_runs)
        self.measured = measure_pairs([p for runs in every for p in self._pairs(runs)], self.metrics, self.watcher)

    def _pairs(self, runs: list[Path]) -> list[tuple[Path, Path]]:
        pairs = zip(runs, self.design.baseline_runs, strict=True)
        return [pair for pair in pairs if not self.failed.intersection(pair)]

    def result(self, variant: Variant, runs: list[Path]) -> Result | None:
        from wanlab.analysis.compare import Result

        pairs = [self.measured[pair] for pair in self._pairs(runs)]
        method = variant.method
        if len(pairs) < len(runs):
            self.missing.append(
                f"{method.label}: {len(runs) - len(pairs)} of {len(runs)} pairs are missing, their runs failed"
            )
        if not pairs:
            return None
        return Result(label=method.label, method=str(method), pairs=tuple(pairs), setting=variant.setting)


def compare_files(
    a: Path, b: Path, out: Path, asked: Asked = NOTHING, *, watcher: Watcher | None = None
) -> ComparisonResult:
    """Compare two run files, films or folders of images, or two folders of such, paired by name, or else by prompt and
    seed.

    Pairs that cannot be compared are named in the result's `failed`. Raises UsageError for a folder against a file, and
    for folders without a pair; WanlabError when nothing can be compared.
    """
    from wanlab.analysis.compare import Comparison, measure
    from wanlab.analysis.verdict import check_conditions

    watcher = watcher or Watcher()
    for path in (a, b):
        if not path.exists():
            raise WanlabError(f"there is no {path}", "check --a and --b")
    several = [folders.is_folder_of_videos(p) for p in (a, b)]
    if several[0] != several[1]:
        raise UsageError(
            f"{a if several[0] else b} is a folder of videos, {b if several[0] else a} is one video",
            "compare a folder with a folder, or a video with a video",
        )
    matches, remarks = folders.match(a, b) if all(several) else ([folders.Match(a, b, "", 0)], [])
    runs = all(is_run_file(p) for m in matches for p in (m.a, m.b))
    check_conditions(asked.bounds, runs=runs, asked=asked.metrics)
    make_folder(out)
    pairs, failed = [], []
    try:
        for k, m in enumerate(matches, 1):
            try:
                prompt, seed = folders.request_of(m.b) or folders.request_of(m.a) or (m.prompt, m.seed)
                pairs.append(measure(m.a, m.b, metrics=asked.metrics, prompt=prompt, seed=seed, told=watcher.look))
            except WanlabError as error:
                if len(matches) == 1:
                    raise
                failed.append(m.a)
                watcher.fail(m.a, error)
            watcher.measure(k, len(matches))
    finally:
        watcher.end()
    if not pairs:
        raise WanlabError(f"none of the {len(matches)} pairs can be compared", "see above")
    comparison = Comparison(baseline=plain(b.name), results=by_key(plain(a.name), pairs))
    digest = hashlib.sha256(f"{a.resolve()}\0{b.resolve()}".encode()).hexdigest()[:8]
    name = f"{slug(f'{a.name} vs {b.name}')[:60]}-{digest}"
    description = f"{len(pairs)} pairs of videos: {a} against {b}" if all(several) else ""
    return conclude(comparison, out, name, asked, description=description, remarks=remarks, failed=failed)


def by_key(label: str, pairs: Sequence[Pair]) -> tuple[Result, ...]:
    """A result for each kind of runs among the pairs: those of other steps, sizes or guidance are not pooled."""
    from wanlab.analysis.compare import Result
    from wanlab.analysis.key import titles

    groups = {p.keys: [q for q in pairs if q.keys == p.keys] for p in pairs}
    if len(groups) == 1:
        return (Result(label=label, pairs=tuple(pairs)),)
    own, other = (titles(keys[k] for keys in groups if keys) for k in (0, 1))
    named = {keys: f"{label}, {own[keys[0]]}" if keys else label for keys in groups}
    alike = len(set(named.values())) < len(named)  # only the baselines differ
    return tuple(
        Result(label=named[keys] + (f", against {other[keys[1]]}" if alike and keys else ""), pairs=tuple(group))
        for keys, group in groups.items()
    )


# --- what is written ---------------------------------------------------------------------------------------------


def conclude(
    comparison: Comparison,
    out: Path,
    name: str,
    asked: Asked,
    *,
    description: str = "",
    remarks: Sequence[str] = (),
    failed: Sequence[Path] = (),
) -> ComparisonResult:
    """Say what follows from a comparison, and write it: comparisons/NAME.json, .csv, .md and .txt, the same again as
    comparison.json, .csv, .md and error_comparison.txt (the latest), and figures. Raises WanlabError."""
    from wanlab.analysis import table
    from wanlab.analysis.compare import failures
    from wanlab.analysis.controls import against_controls

    said = [*asked.remarks, *remarks, *comparison.remarks()]
    answer = against_controls(comparison.results) + (table.answer(comparison, asked.loss) if asked.loss else [])
    missed = failures((*comparison.results, *comparison.confirmed), asked.conditions)
    content = comparison.to_dict() | {"compared": description, "wanlab": __version__}
    content |= {"remarks": said, "answer": answer, "missed": missed}
    title = f"{description or 'Videos'}; against {comparison.baseline}; wanlab {__version__}\n"
    texts = {
        "json": json.dumps(finite(content), ensure_ascii=True) + "\n",
        "csv": comma_separated(table.pairs(comparison)),
        "md": "\n".join([title, *map(markdown, table.tables(comparison)), *(f"{line}\n" for line in [*answer, *said])]),
        "txt": table.report(comparison, description, [*answer, *said]),
    }
    every = make_folder(make_folder(out) / "comparisons")
    files: dict[str, Path] = {}
    with turn(out):  # the latest are all of one comparison
        for kind, text in texts.items():
            write_text(every / f"{name}.{kind}", text)
            latest = out / ("error_comparison.txt" if kind == "txt" else f"comparison.{kind}")
            files[kind] = write_text(latest, text)
        files |= _figures(comparison, out, asked.drawn)
    return ComparisonResult(
        comparison=comparison,
        content=content | {"files": {k: str(v) for k, v in files.items()}},
        out=out,
        description=description,
        remarks=tuple(said),
        answer=tuple(answer),
        missed=tuple(missed),
        files=files,
        failed=tuple(failed),
    )


def _figures(comparison: Comparison, out: Path, drawn: Drawn) -> dict[str, Path]:
    """The figures' files by name; those for papers beside the PNGs."""
    from wanlab.analysis.figures.style import also_as

    with also_as(drawn.kind, drawn.width):
        files = _draw(comparison, out)
    return files | {f"{name} {drawn.kind}": beside for name, path in files.items() for beside in drawn.beside([path])}


def _draw(comparison: Comparison, out: Path) -> dict[str, Path]:
    from wanlab.analysis.compare import pareto
    from wanlab.analysis.figures import compare as figures
    from wanlab.analysis.figures.pareto import front

    files: dict[str, Path] = {}
    results = list(comparison.results)
    if len(results) > 1:
        files["front"] = front(comparison, out / "pareto.png")
    if len(results) > DETAILED:
        points = [(1 / r.summary["speedup_predicted"].mean, r.summary["psnr"].mean) for r in results]
        results = [results[k] for k in pareto(points)][:DETAILED]
    for result in results:
        if result.identical:
            continue
        folder = make_folder(out / slug(result.label))
        drawn = {
            "per_frame": figures.per_frame(result, folder / "per_frame.png"),
            "divergence": figures.divergence(result, folder / "divergence.png"),
            "worst_frame": figures.worst_frame(result.worst, folder / "worst_frame.png", result.label),
            "side_by_side": figures.side_by_side(
                result.worst, folder / folders.SIDE_BY_SIDE, (result.label, comparison.baseline)
            ),
        }
        files |= {f"{result.label} {name}": path for name, path in drawn.items() if path is not None}
    return files
