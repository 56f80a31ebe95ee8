"""`wanlab compare`: methods against a baseline: what they cost, how far apart they end, and what can be said of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from wanlab.cli import render
from wanlab.cli.comparison import finish
from wanlab.cli.forecast import show_design
from wanlab.cli.grouping import option, with_options
from wanlab.cli.options import Figures, Form, Shortcuts
from wanlab.cli.running import Watcher
from wanlab.cli.sampling import Sampling
from wanlab.cli.workers import Sharing, wait_for_others
from wanlab.errors import UsageError
from wanlab.spec import MethodSpec, RecordSpec, RunSpec
from wanlab.study import design as designs
from wanlab.study.design import MODES, Variant
from wanlab.study.drawn import Drawn
from wanlab.study.requests import check_names, check_place, parse_seeds

if TYPE_CHECKING:
    from wanlab.study.compare import Asked
    from wanlab.study.results import ComparisonResult
    from wanlab.study.runners.groups import Shard

MANY_RUNS = 1000  # more new runs than this ask for --yes
_WHAT, _HOW, _OUTPUT = "What is compared", "How", "Output"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is compared."""

    mode: Annotated[
        str | None, option("--mode", panel=_WHAT, help=f"{', '.join(MODES)}.  [default: cfg_vs_baseline]")
    ] = None
    a: Annotated[
        list[str] | None,
        option(
            "--a",
            panel=_WHAT,
            help='A method, as "half+cfg:last=5,keep=cond+guidance=3", repeatable; or a run file, a video, a folder of '
            "images, or a folder of such, paired with --b's by name, or prompt and seed.",
        ),
    ] = None
    b: Annotated[str | None, option("--b", panel=_WHAT, help="What A is held against.  [default: baseline]")] = None
    methods: Annotated[
        Path | None,
        option(
            "--methods",
            panel=_WHAT,
            help='A TOML file of methods: [methods.fast] policies = ["cfg:last=5"]; or builtin:caches. All of them, or '
            "those that --a names.",
        ),
    ] = None
    at_cost: Annotated[
        str | None,
        option(
            "--at-cost",
            panel=_WHAT,
            help="Shares of the baseline's operations, as 0.75,0.6: compare each method, and steps left out evenly and "
            "at random, where its knob makes it cost that.",
        ),
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
        str | None,
        option(
            "--suite",
            panel=_WHAT,
            help="Prompts in the package: builtin (32), or held-out, its twin to report on.  [default: 3 of builtin]",
        ),
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
    figures: Figures = None
    conventions: Annotated[
        str | None,
        option(
            "--conventions", panel=_HOW, help="published: PSNR and SSIM as other projects compute them, side by side."
        ),
    ] = None
    max_loss: Annotated[
        list[str] | None,
        option(
            "--max-loss",
            panel=_HOW,
            help="The loss that a sweep may cost, as ssim=.98. Repeat for several, all to be kept.  [default: psnr=35]",
        ),
    ] = None
    confirm: Annotated[
        list[str] | None,
        option(
            "--confirm",
            panel=_HOW,
            help="Measure what a sweep chose again on these seeds, as 8:16, and report that.",
        ),
    ] = None
    fail_if: Annotated[
        list[str] | None,
        option(
            "--fail-if", panel=_HOW, help='Exit with 4 when this holds for a method\'s mean: "psnr<35". Repeatable.'
        ),
    ] = None

    def asked(self, is_sweep: bool) -> Asked:
        """The same for a study. Raises UsageError."""
        from wanlab.analysis.compare import parse_condition, parse_losses
        from wanlab.analysis.metrics import chosen
        from wanlab.analysis.metrics.conventions import PUBLISHED
        from wanlab.study.compare import Asked

        if self.conventions not in (None, "published"):
            raise UsageError(
                f"--conventions '{render.plain(self.conventions, 40)}' is unknown", "write --conventions published"
            )
        if self.max_loss is not None and not is_sweep:
            raise UsageError("--max-loss is for a sweep", 'give --sweep, or --fail-if "psnr<35"')
        if self.confirm is not None and not is_sweep:
            raise UsageError("--confirm is for what a sweep chose", "give --sweep, or other seeds with --seed")
        metrics = [*(self.metric or []), *["vmaf"] * self.vmaf, *(PUBLISHED if self.conventions else [])]
        chosen(metrics)  # files register theirs before conditions name them
        loss = parse_losses(self.max_loss or ["psnr=35"])
        conditions = [parse_condition(c) for c in self.fail_if or []]
        drawn = Drawn.parse(self.figures)
        return Asked(conditions=conditions, loss=loss if is_sweep else (), metrics=metrics, drawn=drawn)


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
    sharing: Sharing,
    form: Form,
) -> int:
    """Compare ways to sample: the same prompts, seeds and noise, method A against baseline B.

    wanlab compare --mode cfg_vs_baseline
    """
    shown_as = form.choose()
    workers = sharing.workers()
    named = designs.read_methods(subject.methods) if subject.methods else {}
    if any(designs.is_source(text, named) for text in (*(subject.a or ()), subject.b)):
        if subject.mode or subject.sweep or subject.at_cost or judging.noise_floor or sharing != Sharing():
            raise UsageError(
                "--mode, --sweep, --at-cost, --noise-floor, --shard and --runner sample; two videos are given",
                "leave them out",
            )
        return finish(_of_files(subject.a, subject.b, named, out, judging), shown_as)
    baseline, methods = _methods(subject, named, shortcuts)
    prompts = designs.suite_prompts(subject.suite)
    specs = sampling.specs((), RecordSpec(level="latents", video="float32"), prompts=prompts)
    specs, floors = designs.with_floors(specs, baseline) if judging.noise_floor else (specs, [])
    for method in (baseline, *methods):
        check_names(method.apply(specs[0]))
    check_place(out / "comparison.json")
    asked = judging.asked(bool(subject.sweep))  # imports what measures: after what is wrong without it
    how = {"force": force, "dry_run": dry_run, "yes": yes}
    variants, said = _variants(subject, methods, specs, baseline, out, workers.shard, **how)
    asked = replace(asked, remarks=said)
    design = designs.arrange(specs, baseline, variants, floors, out)
    from wanlab.study import compare as study

    if dry_run:
        for line in [*asked.remarks, *study.alike(design)]:
            render.say(f"note: {line}")
        return show_design(design, shown_as)
    asked = replace(asked, confirm=study.fresh(specs, parse_seeds(judging.confirm or [])))
    if len(design.new) > MANY_RUNS and not yes:
        raise UsageError(study.amount(design), "add --yes to go ahead, or take fewer values, prompts or seeds")
    watcher = Watcher()
    outcome = study.sample(design, out, asked, force=force, watcher=watcher, workers=workers)
    if outcome.awaited:
        return wait_for_others(outcome)
    return finish(study.measure_all(design, out, asked, failed=outcome.failed, force=force, watcher=watcher), shown_as)


def _of_files(
    texts: list[str] | None, b: str | None, named: dict[str, MethodSpec], out: Path, judging: Judging
) -> ComparisonResult:
    a = texts[0] if texts and len(texts) == 1 else None
    if not (a and b and designs.is_source(a, named) and designs.is_source(b, named)):
        raise UsageError(
            "a run, video or folder is compared with another one",
            "give both --a FILE and --b FILE, or --a and --b FOLDER",
        )
    asked = judging.asked(False)
    from wanlab.study.compare import compare_files

    return compare_files(Path(a), Path(b), out, asked, watcher=Watcher())


def _methods(subject: Subject, named: dict[str, MethodSpec], given: Shortcuts) -> tuple[MethodSpec, list[MethodSpec]]:
    """(the baseline, what is held against it, or swept). Raises UsageError."""
    for name, value in (
        ("--sweep", subject.sweep),
        ("--at-cost", subject.at_cost),
        ("--methods", named),
        ("--a", subject.a or subject.b),
    ):
        if subject.mode and value:
            raise UsageError(f"{name} and --mode both name methods", "give one of them")
    if subject.sweep and (subject.at_cost or len(subject.a or ()) > 1):
        raise UsageError("a sweep is laid over one method, and says its values", "give one --a, and no --at-cost")
    if subject.at_cost and not (subject.a or named):
        raise UsageError("--at-cost is there for methods", "give --a METHOD, or --methods builtin:caches")
    if not (subject.sweep or subject.a or subject.b or named):
        first, baseline = given.of_mode(subject.mode or MODES[0])
        return baseline, [first]
    baseline = designs.parse_method(subject.b or "baseline", named)
    texts = subject.a or ([n for n in named if n != subject.b] if not subject.sweep else [])
    return baseline, [designs.parse_method(text, named) for text in dict.fromkeys(texts or ["baseline"])]


def _variants(
    subject: Subject,
    methods: list[MethodSpec],
    specs: list[RunSpec],
    baseline: MethodSpec,
    out: Path,
    shard: Shard,
    *,
    force: bool,
    dry_run: bool,
    yes: bool,
) -> tuple[list[Variant], list[str]]:
    """The methods as they are compared, and what there is to say of the choice. Raises UsageError."""
    from wanlab.study import compare as study

    if subject.sweep:
        return designs.swept(methods[0], subject.sweep), []
    if not subject.at_cost:
        listed = str(subject.methods).startswith(designs.BUILTIN) and not subject.a
        kept, said = study.fitting(methods, specs[0]) if listed else (methods, [])
        return [Variant(m) for m in kept], said
    from wanlab.study import atcost

    targets = atcost.parse_costs(subject.at_cost)
    least = len(specs) * (1 + len(targets) * (len(methods) + 2))
    if least > MANY_RUNS and not (yes or dry_run):
        raise UsageError(f"{least} runs or more", "add --yes to go ahead, or take fewer costs, prompts or seeds")
    costs = atcost.Costs(specs, baseline, out, force, Watcher())
    return atcost.find(methods, targets, costs, sample=not dry_run, shard=shard)
