"""`wanlab compare`: methods against a baseline, with what they cost, how far apart they end, and what can be said of it."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.text import Text

from wanlab.cli import render
from wanlab.cli.options import Form, Sampling, Shortcuts, option, run_name, with_options
from wanlab.cli.running import run_all
from wanlab.errors import UsageError
from wanlab.registry import suggest
from wanlab.spec import MethodSpec, PolicySpec, RecordSpec, RunSpec, parse_guidance

if TYPE_CHECKING:
    from wanlab.analysis.compare import Comparison, Result
    from wanlab.analysis.stats import Interval

MODES = ("cfg_vs_baseline", "half_vs_baseline", "improved_vs_baseline", "combined_vs_baseline", "cfg_vs_half")
VIDEOS = (".h5", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")
MANY_RUNS = 1000  # more new runs than this ask for --yes
WIDE = 125  # columns that the whole table needs
DETAILED = 8  # more methods than this get figures of their own only on the Pareto front
_WHAT, _HOW, _OUTPUT = "What is compared", "How", "Output"


@with_options
def compare(
    mode: Annotated[
        str | None, option("--mode", panel=_WHAT, help=f"{', '.join(MODES)}.  [default: cfg_vs_baseline]")
    ] = None,
    a: Annotated[
        str | None,
        option("--a", panel=_WHAT, help='A method, as "half+cfg:last=5,keep=cond+guidance=3"; or a run file or video.'),
    ] = None,
    b: Annotated[str | None, option("--b", panel=_WHAT, help="What A is held against.  [default: baseline]")] = None,
    methods: Annotated[
        Path | None,
        option("--methods", panel=_WHAT, help='A TOML file that names methods: [methods.fast] policies = ["cfg:last=5"].'),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        option(
            "--sweep",
            panel=_WHAT,
            help="policy.knob=values or setting=values, as cfg.last=0:10 (0 to 9), guidance=1:8:1 (1 to 7) or "
            "cfg.keep=uncond,cond. Repeat for all combinations.",
        ),
    ] = None,
    suite: Annotated[
        str | None, option("--suite", panel=_WHAT, help="builtin: the prompts in the package.  [default: 3 of them]")
    ] = None,
    noise_floor: Annotated[
        bool,
        option("--noise-floor", panel=_HOW, help="Also the baseline itself, computed three other ways: what a difference must exceed."),
    ] = False,
    vmaf: Annotated[bool, option("--vmaf", panel=_HOW, help="VMAF too, where ffmpeg has it: similarity only.")] = False,
    max_loss: Annotated[
        str, option("--max-loss", panel=_HOW, help="The loss that a sweep may cost: psnr=DB or ssim=VALUE.")
    ] = "psnr=35",
    fail_if: Annotated[
        list[str] | None,
        option("--fail-if", panel=_HOW, help='Exit with 4 when this holds for a method\'s mean: "psnr<35". Repeatable.'),
    ] = None,
    out: Annotated[Path, option("--out", "-o", panel=_OUTPUT, help="The folder of runs and results.")] = Path("comparison_outputs"),
    force: Annotated[bool, option("--force", panel=_OUTPUT, help="Sample again what is already complete.")] = False,
    dry_run: Annotated[bool, option("--dry-run", panel=_OUTPUT, help="Print methods, passes and disk; load no weights.")] = False,
    yes: Annotated[bool, option("--yes", "-y", panel=_OUTPUT, help=f"Go ahead with more than {MANY_RUNS} runs.")] = False,
    *,
    shortcuts: Shortcuts,
    sampling: Sampling,
    form: Form,
) -> int:  # fmt: skip
    """Compare ways to sample: the same prompts, seeds and noise, method A against baseline B.

    wanlab compare --mode cfg_vs_baseline
    """
    from wanlab.analysis.compare import parse_condition

    shown_as = form.choose()
    conditions = [parse_condition(text) for text in fail_if or []]
    loss = parse_loss(max_loss)
    named = read_methods(methods) if methods else {}
    if is_video(a, named) or is_video(b, named):
        if not (a and b and is_video(a, named) and is_video(b, named)):
            raise UsageError("a run or video is compared with another one", "give both --a FILE and --b FILE")
        if mode or sweep or noise_floor:
            raise UsageError("--mode, --sweep and --noise-floor sample; two files are given", "leave them out")
        return _files(Path(a), Path(b), out, shown_as, conditions, vmaf)
    if sweep:
        if mode:
            raise UsageError("--sweep and --mode both name methods", "give one of them; --a is what a sweep varies")
        against = _method(b or "baseline", named)
        tried = swept(_method(a or "baseline", named), sweep)
    elif a or b:
        if mode:
            raise UsageError("--mode and --a both name methods", "give one of them")
        against = _method(b or "baseline", named)
        tried = [Tried(_method(a or "baseline", named))]
    else:
        first, against = of_mode(mode or MODES[0], shortcuts)
        tried = [Tried(first)]
    if suite not in (None, "builtin"):
        raise UsageError(f"there is no suite '{render.plain(suite, 40)}'", "use --suite builtin, or --prompts FILE")
    specs = sampling.specs((), RecordSpec(level="latents", video="float32"), prompts=builtin_prompts(suite is not None))
    plan = arrange(specs, against, tried, floors_of(specs[0]) if noise_floor else [], out)
    if dry_run:
        return _dry_run(plan, shown_as)
    _check_amount(plan, yes)
    return _compare(plan, out, shown_as, conditions, loss, force=force, vmaf=vmaf, is_sweep=bool(sweep))


# --- what is compared -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Tried:
    """A method and, in a sweep, the values it was given."""

    method: MethodSpec
    setting: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every run that a comparison needs, each once, and which of them each method's pairs are."""

    specs: list[RunSpec]
    """Of the baseline, one for each prompt and seed."""
    baseline: str
    baseline_runs: list[Path]
    tried: list[Tried]
    tried_runs: list[list[Path]]
    floors: list[Tried]
    floor_runs: list[list[Path]]
    order: list[tuple[RunSpec, Path]]
    """What to run, the methods of a pair next to each other, their order rotating so that drift in the machine's speed
    falls on all of them alike."""


def builtin_prompts(whole: bool) -> Sequence[str]:
    """The prompts in the package: all of them, or the first three."""
    from wanlab.embedded.world import SUITE

    return SUITE if whole else SUITE[:3]


def of_mode(mode: str, given: Shortcuts) -> tuple[MethodSpec, MethodSpec]:
    """A and B of a mode, with the guide's defaults. Raises UsageError."""
    mode = mode.replace("-", "_")
    if mode not in MODES:
        raise UsageError(f"--mode '{render.plain(mode, 40)}' is unknown", suggest(mode, MODES))
    first, _, second = mode.partition("_vs_")
    uses_cfg = first in ("cfg", "combined")
    used = {
        "--cfg-truncate-steps": given.cfg_truncate_steps is None or uses_cfg,
        "--cfg-truncate-high-noise-steps": given.cfg_truncate_high_noise_steps is None or uses_cfg,
        "--enable-half-frame-generation": not given.enable_half_frame_generation or "half" in mode,
        "--enable-improved-frame-completion": not given.enable_improved_frame_completion or first in ("improved", "combined"),
    }  # fmt: skip
    for name, fits in used.items():
        if not fits:
            raise UsageError(f"{name} is no part of {mode}", "leave it out, or choose another --mode or --a")
    cfg = given.cfg(last=5, high=3)
    policies: dict[str, tuple[str, list[PolicySpec | None]]] = {
        "cfg": ("cfg_truncated", [cfg]), "half": ("half_frame", [PolicySpec("half")]), "improved": ("improved", [PolicySpec("paired")]),
        "combined": ("combined", [cfg, PolicySpec("paired")]), "baseline": ("baseline", []),
    }  # fmt: skip
    made = [MethodSpec(label, tuple(p for p in own if p)) for label, own in (policies[first], policies[second])]
    return made[0], made[1]


def _method(text: str, named: dict[str, MethodSpec]) -> MethodSpec:
    if text in named:
        return named[text]
    if ":" not in text and "=" not in text and "+" not in text and text != "baseline":
        from wanlab.registry import names

        known = [*named, "baseline", *_policies()]
        if text not in names("policy"):
            raise UsageError(f"'{render.plain(text, 60)}' is no method, run or video", suggest(text, known))
    return MethodSpec.parse(text)


def _policies() -> list[str]:
    from wanlab.engine import policies  # noqa: F401 - registers them
    from wanlab.registry import names

    return names("policy")


def is_video(text: str | None, named: dict[str, MethodSpec]) -> bool:
    """Whether `text` names a run file or a video rather than a method."""
    return text is not None and text not in named and (Path(text).suffix.lower() in VIDEOS or Path(text).is_file())


def read_methods(path: Path) -> dict[str, MethodSpec]:
    """The methods of a TOML file by name. Raises UsageError."""
    try:
        plain = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}", "check --methods") from error
    tables = plain.get("methods")
    if not isinstance(tables, dict) or not tables or not all(isinstance(t, dict) for t in tables.values()):
        raise UsageError(f"{path} names no method", 'write [methods.fast] policies = ["cfg:last=5"]')
    return {name: MethodSpec.from_dict(name, table) for name, table in tables.items()}


def swept(base: MethodSpec, texts: Sequence[str]) -> list[Tried]:
    """The base method at every combination of the values. Raises UsageError."""
    axes = [_axis(t) for t in texts]
    made: dict[tuple[Any, ...], Tried] = {}
    for values in itertools.product(*(v for _, v in axes)):
        setting = dict(zip((n for n, _ in axes), values, strict=True))
        knobs = {p.name: p.options for p in base.policies}
        settings = dict(base.settings)
        for name, value in setting.items():
            policy, dot, knob = name.partition(".")
            if dot:
                knobs.setdefault(policy, {})[knob] = value
            else:
                settings[policy] = parse_guidance(str(value)) if policy == "guidance" else value
        policies = tuple(PolicySpec(n, k) for n, k in knobs.items() if not _does_nothing(n, k))
        label = "+".join([*map(str, policies), *(f"{n}={setting[n]}" for n in setting if "." not in n)]) or "baseline"
        method = MethodSpec(label, policies, tuple(settings.items()))
        made.setdefault((method.policies, method.settings), Tried(method, setting))
    return list(made.values())


def _does_nothing(name: str, knobs: dict[str, Any]) -> bool:
    return name == "cfg" and not knobs.get("last") and not knobs.get("high")


def _axis(text: str) -> tuple[str, list[Any]]:
    name, equals, values = (p.strip() for p in text.partition("="))
    if not equals or not re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)?", name) or not values:
        raise UsageError(
            f"'{render.plain(text, 60)}' is no sweep", "write cfg.last=0:10, guidance=1:8:1 or cfg.keep=uncond,cond"
        )
    bounds = values.split(":")
    if len(bounds) == 1:
        return name, [PolicySpec.parse(f"x:y={v}").options["y"] for v in values.split(",") if v.strip()]
    try:
        numbers = [float(v) for v in bounds]
        start, stop, step = numbers if len(numbers) == 3 else (*numbers, 1.0)
        count = math.ceil((stop - start) / step - 1e-9)
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"'{render.plain(values, 40)}' is no range", "write 0:10 (0 to 9) or 1:8:0.5") from None
    if not 1 <= count <= 100_000:
        raise UsageError(f"the range {render.plain(values, 40)} is empty or too long", "write 0:10 (0 to 9) or 1:8:0.5")
    found = [start + k * step for k in range(count)]
    return name, [int(v) if v.is_integer() else round(v, 9) for v in found]


def floors_of(spec: RunSpec) -> list[Tried]:
    """The baseline computed three other ways: both branches in one forward, another attention kernel, another dtype."""
    from wanlab.engine.run import resolved

    known = resolved(spec)
    ways: dict[str, Any] = {
        "batch_cfg": not known.batch_cfg,
        "attention": "math" if known.device == "cpu" else "efficient",
        "dtype": "bfloat16" if known.dtype == "float32" else "float32",
    }
    # What is for 16 bits alone gives way to the other dtype.
    wide = [("attention", "auto")] if known.attention in ("flash3", "cudnn") else []
    wide += [("precision", "exact")] if known.precision == "fp8" else []
    return [
        Tried(MethodSpec(f"floor: {n}={str(v).lower()}", (), ((n, v), *(wide if n == "dtype" else ()))))
        for n, v in ways.items()
    ]


def arrange(specs: list[RunSpec], against: MethodSpec, tried: list[Tried], floors: list[Tried], out: Path) -> Plan:
    """Give every run a place, equal runs the same one. Raises UsageError for a method that cannot be."""
    if out.suffix in VIDEOS or (out.exists() and not out.is_dir()):
        raise UsageError(f"{out} is not a folder", "name a folder with --out")
    base = [against.apply(s) for s in specs]
    place = _places(base, out, against.label, {})
    known = {s.digest(): p for s, p in zip(base, place, strict=True)}

    def runs(methods: list[Tried]) -> tuple[list[list[RunSpec]], list[list[Path]]]:
        made = [[t.method.apply(s) for s in specs] for t in methods]
        # A method equal to its baseline is sampled again: the result must be the same, and is not taken for granted.
        reused = known if len(methods) > 1 else {}
        return made, [_places(m, out, t.method.label, reused, taken=place) for m, t in zip(made, methods, strict=True)]

    tried_specs, tried_runs = runs(tried)
    floor_specs, floor_runs = runs(floors)
    order: dict[Path, RunSpec] = {}
    for k in range(len(specs)):
        row = [(base[k], place[k])]
        row += [(s[k], p[k]) for s, p in zip([*floor_specs, *tried_specs], [*floor_runs, *tried_runs], strict=True)]
        turn = k % len(row)
        order |= {path: spec for spec, path in row[turn:] + row[:turn] if path not in order}
    return Plan(
        specs=base, baseline=against.label, baseline_runs=place, tried=tried, tried_runs=tried_runs, floors=floors,
        floor_runs=floor_runs, order=[(spec, path) for path, spec in order.items()],
    )  # fmt: skip


def _places(
    specs: Sequence[RunSpec], out: Path, label: str, known: dict[str, Path], taken: Sequence[Path] = ()
) -> list[Path]:
    folder = out / slug(label)
    if any(folder == p.parent for p in taken):
        folder = folder.with_name(f"{folder.name}-again")
    return [known.get(s.digest(), folder / f"{run_name(s)}.h5") for s in specs]


def slug(label: str) -> str:
    """A folder's name for a method."""
    return re.sub(r"[^a-z0-9_.=,+-]+", "-", label.lower()).strip("-.")[:80] or "method"


def parse_loss(text: str) -> tuple[str, float]:
    """`psnr=35` as ("psnr", 35.0). Raises UsageError."""
    name, _, value = text.partition("=")
    try:
        if name.strip() in ("psnr", "ssim"):
            return name.strip(), float(value)
    except ValueError:
        pass
    raise UsageError(f"--max-loss '{render.plain(text, 40)}' is not psnr=DB or ssim=VALUE", "write --max-loss psnr=35")


# --- doing it -------------------------------------------------------------------------------------


def _dry_run(plan: Plan, form: str) -> int:
    rows = _predict(plan)
    if form in ("json", "csv", "md"):
        render.emit(rows, form)
        return 0
    new = [path for _, path in plan.order if not path.exists()]
    render.show(
        render.table(rows, title=f"{len(plan.specs)} prompts and seeds, {len(plan.order)} runs, {len(new)} of them new", left=("method", "folder"))
    )  # fmt: skip
    return 0


def _predict(plan: Plan) -> list[dict[str, Any]]:
    """What each method's runs will cost; raises as the runs would."""
    from wanlab.engine.run import plan as predict

    specs = {path: spec for spec, path in plan.order}
    labels = [plan.baseline, *(t.method.label for t in (*plan.floors, *plan.tried))]
    firsts = [runs[0] for runs in (plan.baseline_runs, *plan.floor_runs, *plan.tried_runs)]
    plans = [predict(specs[path]) for path in firsts]
    return [
        {"method": label, "passes": p.passes, "operations": f"{p.flops / plans[0].flops:.3f}", "speed-up": f"{plans[0].flops / p.flops:.2f}",
         "disk a run": render.size(p.disk_bytes), "folder": str(path.parent)}
        for label, path, p in zip(labels, firsts, plans, strict=True)
    ]  # fmt: skip


def _check_amount(plan: Plan, yes: bool) -> None:
    """Raises UsageError, with the predicted time and disk, for more new runs than anybody starts by accident."""
    new = [(spec, path) for spec, path in plan.order if not path.exists()]
    if len(new) <= MANY_RUNS or yes:
        return
    from wanlab.engine.run import operations_per_second
    from wanlab.engine.run import plan as predict

    one = predict(new[0][0])
    seconds = len(new) * one.flops / operations_per_second(one.spec)
    raise UsageError(
        f"{len(new)} runs, {len(new) * one.disk_bytes / 1e9:.1f} GB before compression, and {_hours(seconds)} or more of sampling on {one.spec.device}",
        "add --yes to go ahead, or take fewer values, prompts or seeds",
    )


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min"


def _files(a: Path, b: Path, out: Path, form: str, conditions: list[tuple[str, str, float]], vmaf: bool) -> int:
    from wanlab.analysis.compare import Comparison, Result, measure

    pair = measure(a, b, vmaf=vmaf)
    result = Comparison(baseline=render.plain(b.name), results=(Result(label=render.plain(a.name), pairs=(pair,)),))
    return _finish(result, out, form, conditions, None, [])


def _compare(
    plan: Plan, out: Path, form: str, conditions: list[tuple[str, str, float]], loss: tuple[str, float], *,
    force: bool, vmaf: bool, is_sweep: bool,
) -> int:  # fmt: skip
    from wanlab.analysis.compare import Comparison, Result, measure
    from wanlab.analysis.fidelity import Steadiness

    failed = set(run_all([s for s, _ in plan.order], [p for _, p in plan.order], force=force))
    steady: dict[Path, Steadiness] = {}
    lost: list[str] = []

    def result(tried: Tried, runs: list[Path]) -> Result | None:
        pairs = [
            measure(run, against, vmaf=vmaf, steady=steady)
            for run, against in zip(runs, plan.baseline_runs, strict=True)
            if run not in failed and against not in failed
        ]
        if len(pairs) < len(runs):
            lost.append(
                f"{tried.method.label}: {len(runs) - len(pairs)} of {len(runs)} pairs are missing, their runs failed"
            )
        if not pairs:
            return None
        return Result(label=tried.method.label, method=str(tried.method), pairs=tuple(pairs), setting=tried.setting)

    floors = [result(t, r) for t, r in zip(plan.floors, plan.floor_runs, strict=True)]
    results = [result(t, r) for t, r in zip(plan.tried, plan.tried_runs, strict=True)]
    comparison = Comparison(
        baseline=plan.baseline, results=tuple(r for r in results if r), floors=tuple(f for f in floors if f)
    )
    if not comparison.results:
        return 1
    code = _finish(comparison, out, form, conditions, loss if is_sweep else None, lost, _described(plan))
    return code or (3 if failed else 0)


def _described(plan: Plan) -> str:
    spec = plan.specs[0]
    prompts, seeds = len({s.prompt for s in plan.specs}), len({s.seed for s in plan.specs})
    return (
        f"{prompts} prompt{'s' * (prompts > 1)} x {seeds} seed{'s' * (seeds > 1)}; {spec.model}, {spec.width}x{spec.height}, "
        f"{spec.frames} frames, {spec.steps} steps, guidance {spec.guidance[0]:g},{spec.guidance[1]:g}"
    )


def _finish(
    comparison: Comparison, out: Path, form: str, conditions: list[tuple[str, str, float]], loss: tuple[str, float] | None,
    lost: list[str], described: str = "",
) -> int:  # fmt: skip
    from wanlab.analysis.compare import failures

    remarks = [*lost, *comparison.remarks()]
    answer = _answer(comparison, loss) if loss else []
    missed = failures(comparison.results, conditions)
    whole = comparison.to_dict() | {"compared": described, "remarks": remarks, "answer": answer, "missed": missed}
    files = _write(comparison, whole, out, described, [*answer, *remarks])
    whole |= {"files": {k: str(v) for k, v in files.items()}}
    if form in ("json", "csv"):
        render.emit(_flat(comparison), form, whole)
    elif form == "md":
        render.emit(_rows(comparison), form)
    else:
        rows = _rows(comparison)
        title = f"{', '.join(r.label for r in comparison.results[:3])}{', …' * (len(comparison.results) > 3)} against {comparison.baseline}"
        lines = [*answer, *remarks, *_reading(comparison)]
        folders: dict[Path, list[str]] = {}
        for path in files.values():
            folders.setdefault(path.parent, []).append(path.name)
        lines += [
            f"{'files' if not k else '':<6}{folder}: {', '.join(names)}"
            for k, (folder, names) in enumerate(folders.items())
        ]
        styles = [_style(str(r["verdict"])) for r in rows]
        if render.output().width < WIDE:  # a narrow terminal: what decides stays, the verdicts go below
            lines = [*(f"{r['method']}: {r['verdict']}" for r in rows if r["verdict"]), *lines]
            rows = [{k: v for k, v in r.items() if k not in ("end to end", "verdict")} for r in rows]
        render.show(Text(""), Text(title, style="bold"), Text(described), render.table(rows, left=("method", "verdict"), styles=styles),
                    Text("\n".join(lines)))  # fmt: skip
    for text in missed:
        render.complain(f"a stated threshold was missed: {text}")
    return 4 if missed else 0


def _style(verdict: str) -> str:
    return "dim" if not verdict else "green" if verdict in ("identical", "minimal loss, structure kept") else ""


def _answer(comparison: Comparison, loss: tuple[str, float]) -> list[str]:
    """The cheapest method of a sweep that keeps within the stated loss, in words."""
    metric, bound = loss
    limit = f"{metric.upper()} {bound:g}{' dB' * (metric == 'psnr')}"

    def shown(result: Result) -> str:
        s = result.summary
        kept = _value(s[metric], ".2f" if metric == "psnr" else ".4f", lines=False)
        return f"{result.label}, {metric.upper()} {kept} at {1 / s['speedup_predicted'].mean:.3f} of the operations"

    sure, likely = comparison.cheapest(metric, bound)
    if likely is None:
        best = max(comparison.results, key=lambda r: r.summary[metric].mean)
        return [f"no method of this sweep keeps above {limit}; the nearest is {shown(best)}"]
    said = [f"cheapest that keeps above {limit}: {shown(sure)}"] if sure else []
    if likely is not sure:
        said.append(f"by its mean alone {shown(likely)} would do, but its interval reaches below {limit}")
    return said


def _value(s: Interval | None, form: str, unit: str = "", *, spread: bool = True, lines: bool = True) -> str:
    """A mean with its interval below it (or behind it); a dash where there is none."""
    if s is None or not s.n or math.isnan(s.mean):
        return "–"
    if math.isinf(s.mean):
        return "identical"
    mean = f"{s.mean:{form}}{unit}"
    if not s.known or not spread:
        return mean
    bounds = f"{s.low:{form}}{'–' if s.low >= 0 else ' to '}{s.high:{form}}"
    return f"{mean}\n{bounds}" if lines else f"{mean} ({bounds})"


def _rows(comparison: Comparison) -> list[dict[str, Any]]:
    """The table: noise floors first, then the methods."""
    rows = []
    for result in (*comparison.floors, *comparison.results):
        s = result.summary
        rows.append({
            "method": result.label,
            "passes": f"{s['passes'].mean:g}/{s['passes_baseline'].mean:g}" if "passes" in s else "–",
            "predicted": _value(s.get("speedup_predicted"), ".2f", "x", spread=False),
            "measured": _value(s["speedup"], ".2f", "x"), "end to end": _value(s["speedup_total"], ".2f", "x"),
            "PSNR, dB": _value(s["psnr"], ".1f"), "SSIM": _value(s["ssim"], ".3f"),
            "verdict": comparison.verdict(result) if result in comparison.results else "",
        })  # fmt: skip
    return rows


def _flat(comparison: Comparison) -> list[dict[str, Any]]:
    """The same for machines: a row a method, every figure's mean and bounds."""
    rows = []
    for result in (*comparison.floors, *comparison.results):
        row: dict[str, Any] = {"method": result.label, **result.setting, "n": result.units[0], "units": result.units[1]}
        for name, s in result.summary.items():
            row |= {name: "identical" if math.isinf(s.mean) else s.mean, f"{name}_low": s.low, f"{name}_high": s.high}
        rows.append(row | {"verdict": comparison.verdict(result) if result in comparison.results else "noise floor"})
    names = list(dict.fromkeys(n for r in rows for n in r))
    return [{n: r.get(n, "") for n in names} for r in rows]


def _reading(comparison: Comparison) -> list[str]:
    """Where the trajectories part and which pair is worst."""
    said = []
    for result in comparison.results[:3]:
        worst = result.worst
        if result.identical:
            continue
        line = (
            f"{result.label}: worst pair {render.plain(worst.prompt, 60)!r}, seed {worst.seed}: "
            if worst.prompt
            else f"{result.label}: "
        )
        line += f"PSNR {worst.fidelity.psnr:.2f} dB, worst frame {worst.fidelity.worst_frame}"
        if worst.divergence is not None and worst.divergence.parted is not None:
            line += f"; latents part at step {worst.divergence.parted} and end {worst.divergence.error[-1]:.1%} apart"
        said.append(line)
    return said


# --- files ----------------------------------------------------------------------------------------


def _write(
    comparison: Comparison, whole: dict[str, Any], out: Path, described: str, remarks: list[str]
) -> dict[str, Path]:
    from wanlab.analysis import compare_figures as figures
    from wanlab.analysis.compare import pareto

    out.mkdir(parents=True, exist_ok=True)
    files = {name: out / f"comparison.{name}" for name in ("json", "csv", "md")} | {"txt": out / "error_comparison.txt"}
    files["json"].write_text(json.dumps(render.finite(whole), ensure_ascii=True) + "\n", "utf-8")
    files["csv"].write_text(_pairs_csv(comparison), "utf-8")
    files["md"].write_text(render.markdown(_rows(comparison)) + "".join(f"\n{r}\n" for r in remarks), "utf-8")
    files["txt"].write_text(_report(comparison, described, remarks), "utf-8")
    results = list(comparison.results)
    if len(results) > 1:
        files["front"] = figures.front(comparison, out / "pareto.png")
    if len(results) > DETAILED:
        points = [(1 / r.summary["speedup_predicted"].mean, r.summary["psnr"].mean) for r in results]
        results = [results[k] for k in pareto(points)][:DETAILED]
    for result in results:
        if result.identical:
            continue
        folder = out / slug(result.label)
        made = {
            "per_frame": figures.per_frame(result, folder / "per_frame.png"),
            "divergence": figures.divergence(result, folder / "divergence.png"),
            "worst_frame": figures.worst_frame(result.worst, folder / "worst_frame.png", result.label),
            "side_by_side": figures.side_by_side(result.worst, folder / "side_by_side.mp4"),
        }
        files |= {f"{result.label} {name}": path for name, path in made.items() if path is not None}
    return files


def _pairs_csv(comparison: Comparison) -> str:
    """A line for every pair."""
    rows = []
    for result in (*comparison.floors, *comparison.results):
        for pair in result.pairs:
            figures = {k: "identical" if k == "psnr" and math.isinf(v) else v for k, v in pair.figures.items()}
            rows.append({"method": result.label, "baseline": comparison.baseline, "prompt": pair.prompt, "seed": pair.seed, **result.setting, **figures})  # fmt: skip
    names = list(dict.fromkeys(n for r in rows for n in r))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _report(comparison: Comparison, described: str, remarks: list[str]) -> str:
    """`error_comparison.txt`: every figure of every method, in the guide's order."""
    lines = [f"Comparison against {comparison.baseline}", described, ""]
    for result in (*comparison.floors, *comparison.results):
        s = result.summary
        lines += [result.label, "-" * len(result.label)]
        for title, name, form in (
            ("absolute error, mean", "abs_mean", ".6f"), ("absolute error, max", "abs_max", ".6f"), ("absolute error, std", "abs_std", ".6f"),
            ("relative error, mean", "rel_mean", ".6g"), ("relative error, max", "rel_max", ".6g"), ("MSE", "mse", ".6g"), ("PSNR, dB", "psnr", ".2f"),
            ("SSIM", "ssim", ".6f"), ("VMAF (similarity only)", "vmaf", ".2f"), ("latents, relative error", "latent_error", ".6g"),
            ("frame difference", "difference", ".6f"), ("  of the baseline", "difference_baseline", ".6f"),
            ("warping error", "warping_error", ".6f"), ("  of the baseline", "warping_error_baseline", ".6f"),
            ("speed-up predicted", "speedup_predicted", ".3f"), ("speed-up of sampling", "speedup", ".3f"), ("speed-up end to end", "speedup_total", ".3f"),
        ):  # fmt: skip
            if name in s and not math.isnan(s[name].mean):
                value = "identical" if math.isinf(s[name].mean) else format(s[name].mean, form)
                spread = (
                    f"   95 % interval {s[name].low:{form}} to {s[name].high:{form}}, n = {s[name].n}"
                    if s[name].known
                    else ""
                )
                lines.append(f"  {title:<26}{value:>14}{spread}")
        if result in comparison.results:
            lines.append(f"  {'verdict':<26}{comparison.verdict(result)}")
        if len(result.by_prompt()) > 1:
            lines.append("  by prompt")
            lines += [f"    {'identical' if math.isinf(r['psnr']) else format(r['psnr'], '.2f') + ' dB':>10}  SSIM {r['ssim']:.4f}  {r['prompt']!r}" for r in result.by_prompt()]  # fmt: skip
        lines.append("")
    return "\n".join([*lines, *remarks]) + "\n"
