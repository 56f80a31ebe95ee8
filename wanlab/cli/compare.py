"""`wanlab compare`: methods against a baseline: what they cost, how far apart they end, and what can be said of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.text import Text

from wanlab.cli import render
from wanlab.cli.grouping import option, with_options
from wanlab.cli.options import Form, Sampling, Shortcuts
from wanlab.cli.running import Watcher
from wanlab.errors import UsageError
from wanlab.spec import MethodSpec, PolicySpec, RecordSpec
from wanlab.study import design as designs
from wanlab.study.design import MODES, Design, Variant

if TYPE_CHECKING:
    from wanlab.study.compare import Asked
    from wanlab.study.results import ComparisonResult

MANY_RUNS = 1000  # more new runs than this ask for --yes
WIDE = 125  # columns that the whole table needs
_WHAT, _HOW, _OUTPUT = "What is compared", "How", "Output"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is compared."""

    mode: Annotated[
        str | None, option("--mode", panel=_WHAT, help=f"{', '.join(MODES)}.  [default: cfg_vs_baseline]")
    ] = None
    a: Annotated[
        str | None,
        option(
            "--a",
            panel=_WHAT,
            help='A method, as "half+cfg:last=5,keep=cond+guidance=3"; or a run file, a video, a folder of images, or '
            "a folder of such, paired with --b's by name.",
        ),
    ] = None
    b: Annotated[str | None, option("--b", panel=_WHAT, help="What A is held against.  [default: baseline]")] = None
    methods: Annotated[
        Path | None,
        option("--methods", panel=_WHAT, help='A TOML file of methods: [methods.fast] policies = ["cfg:last=5"].'),
    ] = None
    sweep: Annotated[
        list[str] | None,
        option(
            "--sweep",
            panel=_WHAT,
            help="policy.knob=values or setting=values, as cfg.last=0:10 (0 to 9), guidance=1:8:1 (1 to 7) or "
            "cfg.keep=uncond,cond. Repeat for all combinations.",
        ),
    ] = None
    suite: Annotated[
        str | None, option("--suite", panel=_WHAT, help="builtin: the prompts in the package.  [default: 3 of them]")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How it is measured and judged."""

    noise_floor: Annotated[
        bool,
        option(
            "--noise-floor",
            panel=_HOW,
            help="Also B itself, computed other ways: what a difference must exceed.",
        ),
    ] = False
    metric: Annotated[
        list[str] | None,
        option(
            "--metric", panel=_HOW, help="A measure beyond the usual, by name or FILE.py that registers it. Repeatable."
        ),
    ] = None
    vmaf: Annotated[bool, option("--vmaf", panel=_HOW, help="--metric vmaf, where ffmpeg has it: similarity only.")] = (
        False
    )
    max_loss: Annotated[
        str | None,
        option("--max-loss", panel=_HOW, help="The loss that a sweep may cost, as ssim=.98.  [default: psnr=35]"),
    ] = None
    fail_if: Annotated[
        list[str] | None,
        option(
            "--fail-if", panel=_HOW, help='Exit with 4 when this holds for a method\'s mean: "psnr<35". Repeatable.'
        ),
    ] = None

    def asked(self, is_sweep: bool) -> Asked:
        """The same for a study. Raises UsageError."""
        from wanlab.analysis.compare import parse_condition, parse_loss
        from wanlab.analysis.metrics import chosen
        from wanlab.study.compare import Asked

        metrics = [*(self.metric or []), *["vmaf"] * self.vmaf]
        chosen(metrics)  # what a file registers is known from here on
        if self.max_loss is not None and not is_sweep:
            raise UsageError("--max-loss is for a sweep", 'give --sweep, or --fail-if "psnr<35"')
        metrics = [*(self.metric or []), *["vmaf"] * self.vmaf]
        chosen(metrics)  # files register theirs before conditions name them
        loss = parse_loss(self.max_loss or "psnr=35")
        conditions = [parse_condition(c) for c in self.fail_if or []]
        return Asked(conditions=conditions, loss=loss if is_sweep else None, metrics=metrics)


@with_options
def compare(
    subject: Subject,
    judging: Judging,
    out: Annotated[Path, option("--out", "-o", panel=_OUTPUT, help="The folder of runs and results.")] = Path(
        "comparison_outputs"
    ),
    force: Annotated[bool, option("--force", panel=_OUTPUT, help="Sample again what is already complete.")] = False,
    dry_run: Annotated[
        bool, option("--dry-run", panel=_OUTPUT, help="Print methods, passes and disk; load no weights.")
    ] = False,
    yes: Annotated[
        bool, option("--yes", "-y", panel=_OUTPUT, help=f"Go ahead with more than {MANY_RUNS} runs.")
    ] = False,
    *,
    shortcuts: Shortcuts,
    sampling: Sampling,
    form: Form,
) -> int:
    """Compare ways to sample: the same prompts, seeds and noise, method A against baseline B.

    wanlab compare --mode cfg_vs_baseline
    """
    shown_as = form.choose()
    asked = judging.asked(bool(subject.sweep))
    named = designs.read_methods(subject.methods) if subject.methods else {}
    if designs.is_source(subject.a, named) or designs.is_source(subject.b, named):
        if subject.mode or subject.sweep or judging.noise_floor:
            raise UsageError("--mode, --sweep and --noise-floor sample; two videos are given", "leave them out")
        return _finish(_of_files(subject.a, subject.b, named, out, asked), shown_as)
    baseline, variants = _methods(subject, named, shortcuts)
    if subject.suite not in (None, "builtin"):
        raise UsageError(
            f"there is no suite '{render.plain(subject.suite, 40)}'", "use --suite builtin, or --prompts FILE"
        )
    prompts = designs.builtin_prompts(subject.suite is not None)
    specs = sampling.specs((), RecordSpec(level="latents", video="float32"), prompts=prompts)
    floors = designs.floors_of(baseline, specs[0]) if judging.noise_floor else []
    design = designs.arrange(specs, baseline, variants, floors, out)
    if dry_run:
        return _dry_run(design, shown_as)
    from wanlab.study import compare as study

    if len(design.new) > MANY_RUNS and not yes:
        raise UsageError(study.amount(design), "add --yes to go ahead, or take fewer values, prompts or seeds")
    return _finish(study.compare(design, out, asked, force=force, watcher=Watcher()), shown_as)


def _of_files(a: str | None, b: str | None, named: dict[str, MethodSpec], out: Path, asked: Asked) -> ComparisonResult:
    from wanlab.study.compare import compare_files

    if not (a and b and designs.is_source(a, named) and designs.is_source(b, named)):
        raise UsageError(
            "a run, video or folder is compared with another one",
            "give both --a FILE and --b FILE, or --a and --b FOLDER",
        )
    return compare_files(Path(a), Path(b), out, asked, watcher=Watcher())


def _methods(subject: Subject, named: dict[str, MethodSpec], given: Shortcuts) -> tuple[MethodSpec, list[Variant]]:
    """(the baseline, what is held against it). Raises UsageError."""
    if subject.mode and (subject.sweep or subject.a or subject.b):
        raise UsageError(f"{'--sweep' if subject.sweep else '--a'} and --mode both name methods", "give one of them")
    if not (subject.sweep or subject.a or subject.b):
        first, baseline = of_mode(subject.mode or MODES[0], given)
        return baseline, [Variant(first)]
    baseline = designs.parse_method(subject.b or "baseline", named)
    method = designs.parse_method(subject.a or "baseline", named)
    return baseline, designs.swept(method, subject.sweep) if subject.sweep else [Variant(method)]


def of_mode(mode: str, given: Shortcuts) -> tuple[MethodSpec, MethodSpec]:
    """A and B of a mode, with the guide's defaults. Raises UsageError, for an option that is no part of it too."""
    cfg = given.cfg(last=5, high=3)
    methods = designs.methods_of(mode, cfg or PolicySpec("cfg"))
    first = mode.replace("-", "_").partition("_vs_")[0]
    uses_cfg = first in ("cfg", "combined")
    used = {
        "--cfg-truncate-steps": given.cfg_truncate_steps is None or uses_cfg,
        "--cfg-truncate-high-noise-steps": given.cfg_truncate_high_noise_steps is None or uses_cfg,
        "--enable-half-frame-generation": not given.enable_half_frame_generation or "half" in mode,
        "--enable-improved-frame-completion": not given.enable_improved_frame_completion
        or first in ("improved", "combined"),
    }
    for name, fits in used.items():
        if not fits:
            raise UsageError(f"{name} is no part of {mode}", "leave it out, or choose another --mode or --a")
    if uses_cfg and cfg is None:
        raise UsageError(f"{mode} truncates no step", "give --cfg-truncate-steps 1 or more")
    return methods


# --- what is shown -----------------------------------------------------------------------------------------------


def _dry_run(design: Design, form: str) -> int:
    from wanlab.study.compare import forecast

    rows = forecast(design)
    methods = 1 + len(design.floors) + len(design.variants)
    if len(rows) < methods:
        render.say(f"note: the first {len(rows)} of {methods} methods are shown")
    if form in ("json", "csv", "md"):
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
    title = f"{len(design.specs)} prompts and seeds, {len(design.order)} runs, {len(design.new)} of them new"
    caption = "exact" if exact else "exact, and least–most of what methods decide while running"
    render.show(
        render.table(shown, title=title, left=("method", "folder"), caption=f"passes and operations: {caption}")
    )
    return 0


def _finish(result: ComparisonResult, form: str) -> int:
    from wanlab.analysis import table

    if form in ("json", "csv"):
        render.emit(result.rows, form, result.content)
    elif form == "md":
        render.emit(table.rows(result.comparison), form)
    else:
        _show(result)
    for text in result.missed:
        render.complain(f"a stated threshold was missed: {text}")
    return 4 if result.missed else 3 if result.failed else 0


def _show(result: ComparisonResult) -> None:
    from wanlab.analysis import table

    comparison = result.comparison
    rows = table.rows(comparison)
    labels = [r.label for r in comparison.results]
    title = f"{', '.join(labels[:3])}{', …' * (len(labels) > 3)} against {comparison.baseline}"
    lines = [*result.answer, *result.remarks, *table.reading(comparison)]
    folders: dict[Path, list[str]] = {}
    for path in result.files.values():
        folders.setdefault(path.parent, []).append(path.name)
    lines += [
        f"{'files' if not k else '':<6}{folder}: {', '.join(names)}"
        for k, (folder, names) in enumerate(folders.items())
    ]
    styles = [_style(str(r["verdict"])) for r in rows]
    if render.output().width < WIDE:  # a narrow terminal: what decides stays, the verdicts go below
        lines = [*(f"{r['method']}: {r['verdict']}" for r in rows if r["verdict"]), *lines]
        rows = [{k: v for k, v in r.items() if k not in ("end to end", "verdict")} for r in rows]
    shown = render.table(rows, left=("method", "verdict"), styles=styles)
    render.show(Text(""), Text(title, style="bold"), Text(result.description), shown, Text("\n".join(lines)))


def _style(verdict: str) -> str:
    return "dim" if not verdict else "green" if verdict in ("identical", "minimal loss, structure kept") else ""
