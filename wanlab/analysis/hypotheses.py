"""The experiment guide's hypotheses, decided from data, and its figures beside what was measured.

Evidence comes from run files, `comparison.json` and `continuity_statistics.json`. A claim is a number with a
threshold: supported when its whole 95 % interval lies on the right side, refuted when the whole of it lies on the
other, undecided otherwise. Independent units are prompts, or runs where there are fewer than four prompts (stats.py).
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from wanlab.analysis import guidance, stats
from wanlab.analysis.stats import Interval
from wanlab.errors import UsageError, WanlabError
from wanlab.registry import suggest
from wanlab.runfile import Run
from wanlab.spec import METHOD_SETTINGS, MethodSpec, PolicySpec

BASELINES = "wanlab compare --mode cfg_vs_baseline --suite builtin --seed 0:{seeds}"  # and the plain runs that it needs
COMPARISON, CONTINUITY = "wanlab-comparison/1", "wanlab-continuity/1"
SUPPORTED, REFUTED, UNDECIDED = "supported", "refuted", "not enough data"


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What each claim is held against. The defaults are the guide's, or (`recovered`, `settled`, `noise`) what its
    words must mean to be tested."""

    mse: float = 0.01
    """H1: mean squared error of a truncated run against its baseline, at most."""
    psnr: float = 39.0
    """H1: PSNR in dB, at least."""
    ssim: float = 0.95
    """H2: SSIM of a half-frame run against its baseline, at least."""
    recovery_steps: float = 7.0
    """H2: steps after the frames' completion until continuity is back within the baseline's spread, at most …"""
    recovered: float = 0.9
    """… in at least this share of runs."""
    noise: float = 0.5
    """H3: share of x_t's mean square at the expert switch that is noise, more than."""
    first_steps: int = 5
    """H4: the guidance difference is larger in this many first steps …"""
    first_over_rest: float = 1.0
    """… than in the rest by more than this factor (mean mse over mean mse)."""
    settled: float = 0.9
    """H4: share of a run's steps at which guidance changes by less than its own size (change < mse), at least."""
    high_over_low: float = 2.0
    """H4: the high-noise expert's mean mse over the low-noise expert's, more than."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One testable statement."""

    hypothesis: str
    says: str
    quantity: str
    method: str
    """The method that it is about, "" for plain runs."""
    value: Interval
    units: str
    """What n counts: "prompts" or "pairs" (of a prompt and a seed)."""
    relation: str
    """">=", "<=" or ">": how the value has to stand to the threshold."""
    threshold: float
    verdict: str
    sources: tuple[str, ...]
    run: str = ""
    """The command that makes enough data, when there is not."""
    decides: bool = True
    """Whether the hypothesis rests on it; a variant of the guide's method is shown beside."""


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    name: str
    says: str
    verdict: str
    claims: tuple[Claim, ...]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One stated figure of the guide."""

    what: str
    stated: str
    theory: str
    measured: str
    sources: tuple[str, ...]
    contradiction: str = ""
    """Where the guide contradicts arithmetic or itself."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One run's value of a quantity."""

    prompt: str
    value: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is needed of a run file; NaN where it was not recorded."""

    path: Path
    prompt: str
    seed: int
    model: str
    policies: tuple[PolicySpec, ...]
    settings: tuple[Any, ...]
    """What a method can set beside its policies (spec.METHOD_SETTINGS)."""
    frames: int
    steps: int
    shift: float
    passes: int
    seconds: float
    size: tuple[int, int]
    sigma: tuple[float, ...]
    switch: int | None
    noise: float
    """Share of x_t's mean square at the expert switch that is noise."""
    mse: tuple[float, ...]
    change: tuple[float, ...]
    high_over_low: float

    @property
    def asked(self) -> tuple[Any, ...]:
        """What tells runs of one prompt and seed apart that are no copies of each other, whatever their method."""
        return (self.model, self.frames, self.size, self.steps, self.shift)

    @property
    def method(self) -> str:
        return " ".join(map(str, self.policies)) or "baseline"


@dataclass(frozen=True)
class Comparison:
    path: Path
    content: Mapping[str, Any]


@dataclass(frozen=True)
class Continuity:
    path: Path
    content: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    runs: tuple[Measured, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    continuities: tuple[Continuity, ...] = ()
    problems: tuple[tuple[Path, str], ...] = ()
    """Files that could not be read, and why."""

    @property
    def empty(self) -> bool:
        return not (self.runs or self.comparisons or self.continuities)


# --- reading ----------------------------------------------------------------------------------------------------------


def thresholds(path: Path | None) -> Thresholds:
    """The thresholds of a TOML file, the defaults for what it leaves out. Raises UsageError."""
    if path is None:
        return Thresholds()
    try:
        given = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}", "write lines such as psnr = 35.0") from error
    known = {f.name for f in fields(Thresholds)}
    for name, value in given.items():
        if name not in known:
            raise UsageError(f"{path}: unknown threshold '{name[:40]}'", suggest(name, sorted(known)))
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise UsageError(f"{path}: {name} is {value!r}, no number from 0", "write lines such as psnr = 35.0")
    if type(steps := given.get("first_steps", 5)) is not int or steps < 1:
        raise UsageError(f"{path}: first_steps is {steps!r}", "use a whole number from 1")
    return replace(Thresholds(), **given)


def collect(paths: Iterable[Path]) -> Evidence:
    """Everything below these files and folders. A file that cannot be read is named among the problems, and skipped.
    Raises UsageError for a path that is not there."""
    runs: dict[Path, Measured] = {}
    comparisons: dict[Path, Comparison] = {}
    continuities: dict[Path, Continuity] = {}
    problems: dict[Path, str] = {}
    for path in dict.fromkeys(p for given in paths for p in files(given)):
        try:
            if path.suffix == ".h5":
                runs[path] = read_run(path)
                continue
            content = _json(path)
            if content["format"] == COMPARISON:
                comparisons[path] = Comparison(path, content)
            else:
                continuities[path] = Continuity(path, content)
        except WanlabError as error:
            problems[path] = error.message
    return Evidence(
        runs=tuple(runs.values()), comparisons=tuple(comparisons.values()), continuities=tuple(continuities.values()),
        problems=tuple(problems.items()),
    )  # fmt: skip


def files(given: Path) -> list[Path]:
    """The files below a path that `collect` reads. Raises UsageError for a path that is not there."""
    if given.is_file():
        if given.suffix in (".h5", ".json"):
            return [given]
        raise UsageError(f"{given} is no run file and no comparison or continuity analysis", "name one, or a folder")
    if not given.is_dir():
        raise UsageError(f"there is no {given}", "name folders that wanlab wrote, or run files")
    wanted = (*given.rglob("*.h5"), *given.rglob("comparison.json"), *given.rglob("continuity_statistics.json"))
    return sorted(p for p in wanted if p.is_file() and not any(q.name.endswith(".h5.part") for q in p.parents))


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WanlabError(f"cannot read {path}: {str(error)[:120]}") from error
    lists = {COMPARISON: ("methods",), CONTINUITY: ("groups", "runs")}
    form = content.get("format") if isinstance(content, dict) else None
    if form not in lists:
        raise WanlabError(f"{path} is in none of the formats {', '.join(lists)}")
    if not all(isinstance(content.get(name), list) for name in lists[form]):
        raise WanlabError(f"{path} is not whole")
    whole: Mapping[str, Any] = content
    return whole


def read_run(path: Path) -> Measured:
    """What is needed of one run file. Raises WanlabError."""
    with Run(path) as run:
        if run.status != "complete":
            raise WanlabError(f"{path} is not complete")
        spec = run.spec
        g = guidance.analyse(run)
        by = g.by_expert()
        share = math.nan
        if g.switch is not None and "latent" in run:
            # x_t = (1-sigma) x0 + sigma eps; the final latent stands for x0, and eps has unit variance.
            sigma = float(g.sigma[g.switch])
            signal = (1 - sigma) ** 2 * float(np.mean(np.asarray(run["latent"], np.float64) ** 2))
            share = sigma**2 / (sigma**2 + signal)
        high, low = (by.get(e, {}).get("mse", math.nan) for e in ("high", "low"))
        return Measured(
            path=path, prompt=spec.prompt, seed=spec.seed, model=spec.model, frames=spec.frames, steps=spec.steps,
            policies=spec.policies, settings=tuple(getattr(spec, name) for name in METHOD_SETTINGS), shift=float(run.attrs.get("shift", math.nan)),
            passes=int(g.passes.sum()), seconds=float(np.asarray(run["seconds"]).sum()), size=(spec.width, spec.height),
            sigma=tuple(g.sigma.tolist()), switch=g.switch, noise=share, mse=tuple(g.mse.tolist()),
            change=tuple(g.change.tolist()), high_over_low=high / low if low > 0 else math.nan,
        )  # fmt: skip


# --- deciding ---------------------------------------------------------------------------------------------------------


def decide(value: Interval, relation: str, threshold: float) -> str:
    """The verdict: by the interval, not by the mean."""
    if not value.known:
        return UNDECIDED
    good = {
        ">=": (value.low >= threshold, value.high < threshold),
        ">": (value.low > threshold, value.high <= threshold),
        "<=": (value.high <= threshold, value.low > threshold),
    }[relation]
    return SUPPORTED if good[0] else REFUTED if good[1] else UNDECIDED


def share(successes: Sequence[bool]) -> Interval:
    """A proportion with Wilson's 95 % score interval (E. B. Wilson, JASA 22, 1927)."""
    n = len(successes)
    if not n:
        return Interval(math.nan, math.nan, math.nan, 0)
    p, z = sum(successes) / n, 1.959963984540054
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n), n)


def judge(evidence: Evidence, held: Thresholds) -> list[Hypothesis]:
    """H1 to H4. The guide's own method decides; its variants are shown beside it."""
    return [
        _whole("H1", "CFG truncation does not affect the final quality.", _h1(evidence, held)),
        _whole("H2", "Half-frame generation keeps continuity.", _h2(evidence, held)),
        _whole("H3", "x_t at the expert switch is mostly noise.", _h3(evidence, held)),
        _whole("H4", "The guidance difference converges over the steps.", _h4(evidence, held)),
    ]


def _whole(name: str, says: str, claims: list[Claim]) -> Hypothesis:
    verdicts = {c.verdict for c in claims if c.decides}
    verdict = REFUTED if REFUTED in verdicts else SUPPORTED if verdicts == {SUPPORTED} else UNDECIDED
    return Hypothesis(name=name, says=says, verdict=verdict, claims=tuple(claims))


def _claim(
    hypothesis: str, says: str, quantity: str, samples: Sequence[Sample], relation: str, threshold: float, run: str,
    *, method: str = "", decides: bool = True, value: Interval | None = None,
) -> Claim:  # fmt: skip
    known = [s for s in samples if math.isfinite(s.value)]
    units = "pairs"
    if value is None:
        value, units = stats.grouped([s.value for s in known], [s.prompt for s in known])
    verdict = decide(value, relation, threshold)
    seeds = math.ceil(len(known) / max(1, len({s.prompt for s in known})))
    run = run.format(seeds=4 if value.n < 16 else 2 * max(2, seeds))
    return Claim(
        hypothesis=hypothesis, says=says, quantity=quantity, method=method, value=value, units=units,
        relation=relation, threshold=threshold, verdict=verdict, sources=tuple(dict.fromkeys(s.source for s in known)),
        run=run if verdict == UNDECIDED else "", decides=decides,
    )  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """A compared method's pairs, as comparison.json has them, each with the file it came from."""

    label: str
    policies: tuple[PolicySpec, ...]
    settings: bool
    """Whether the method also sets something beside its policies: steps, guidance, a dtype …"""
    pairs: tuple[tuple[Mapping[str, Any], str], ...]

    def knob(self, policy: str, name: str, default: Any) -> Any:
        return next((p.options.get(name, default) for p in self.policies if p.name == policy), default)


# What `wanlab compare --mode` calls them, for files that do not say what they stand for.
NAMED = {"cfg_truncated": "cfg:last=5,high=3", "half_frame": "half"}


def _compared(evidence: Evidence, policy: str) -> list[Compared]:
    """The methods of this policy alone that were held against the baseline, told by the run files, or by the label where
    these are gone. A prompt and seed of one model, length and schedule counts once."""
    known = {r.path.resolve(): r for r in evidence.runs}
    found: dict[tuple[str, tuple[PolicySpec, ...], bool], dict[Any, tuple[Mapping[str, Any], str]]] = {}
    for comparison in evidence.comparisons:
        whole = comparison.content
        for method in whole["methods"]:
            label = str(method.get("label", ""))
            said = MethodSpec("")
            with suppress(UsageError):
                said = MethodSpec.parse(str(method.get("method") or NAMED.get(label, label)))
            for pair in method.get("pairs") or []:
                a, b = (known.get(Path(str(pair.get(side, ""))).resolve()) for side in "ab")
                if b.policies if b else whole.get("baseline") != "baseline":
                    continue
                policies = a.policies if a else said.policies
                settings = a.settings != b.settings if a and b else bool(said.settings)
                if policies and [p.name for p in policies] == [policy]:
                    kept = found.setdefault((label, policies, settings), {})
                    asked = a.asked if a else b.asked if b else whole.get("compared")
                    kept[pair.get("prompt"), pair.get("seed"), asked] = (pair, str(comparison.path))
    return [Compared(*method, tuple(pairs.values())) for method, pairs in found.items()]


def _guides(method: Compared) -> bool:
    """Whether this is the guide's own form of the method, not a variant: 5 last steps, the unconditional branch kept;
    frames duplicated, positions compact; nothing else set."""
    own = {
        ("cfg", "last"): 5,
        ("cfg", "keep"): "uncond",
        ("half", "complete"): "duplicate",
        ("half", "rope"): "compact",
    }
    return not method.settings and all(bool(method.knob(*name, value) == value) for name, value in own.items())


def _number(value: Any) -> float:
    """A number of a JSON export: null is no value, "inf" an identical pair."""
    if value is None:
        return math.nan
    return math.inf if value in ("inf", "identical") else float(value)


NOTHING = Compared("", (), False, ())


def _h1(evidence: Evidence, held: Thresholds) -> list[Claim]:
    return [
        _claim(
            "H1", says, quantity, _samples(method, quantity), relation, threshold, BASELINES,
            method=method.label, decides=_guides(method),
        )
        for method in _compared(evidence, "cfg") or [NOTHING]
        for quantity, relation, threshold, says in (
            ("mse", "<=", held.mse, f"its mean squared error is at most {held.mse:g}"),
            ("psnr", ">=", held.psnr, f"its PSNR is at least {held.psnr:g} dB"),
        )
    ]  # fmt: skip


def _samples(method: Compared, quantity: str) -> list[Sample]:
    """A figure of each pair; an identical pair's PSNR counts as 120 dB, so that a mean exists."""
    return [
        Sample(prompt=str(p.get("prompt")), value=min(_number(p.get(quantity)), 120.0), source=s) for p, s in method.pairs
    ]  # fmt: skip


def _h2(evidence: Evidence, held: Thresholds) -> list[Claim]:
    run = BASELINES.replace("cfg_vs", "half_vs")
    claims = [
        _claim(
            "H2", f"its SSIM is at least {held.ssim:g}", "ssim", _samples(method, "ssim"), ">=", held.ssim, run,
            method=method.label, decides=_guides(method),
        )
        for method in _compared(evidence, "half") or [NOTHING]
    ]  # fmt: skip
    recovered: dict[str, list[tuple[bool, Sample]]] = {}
    for c, r in _curves(evidence):
        label, back = str(r.get("method", "")), r.get("recovery")
        if label.split(":")[0] == "half" and "+" not in label and " " not in label and isinstance(back, dict):
            within = back.get("after") is not None and back["after"] <= held.recovery_steps
            sample = Sample(prompt=str(r.get("prompt")), value=float(within), source=str(c.path))
            recovered.setdefault(label, []).append((within, sample))
    run += " && wanlab continuity comparison_outputs/baseline comparison_outputs/half_frame"
    for label, seen in (recovered or {"": []}).items():
        claims.append(
            _claim(
                "H2", f"continuity is back within {held.recovery_steps:g} steps in {held.recovered:.0%} of runs",
                "share recovered", [s for _, s in seen], ">=", held.recovered, run, method=label,
                decides="renoise" not in label and "strided" not in label, value=share([ok for ok, _ in seen]),
            )
        )  # fmt: skip
    return claims


def _curves(evidence: Evidence) -> list[tuple[Continuity, Mapping[str, Any]]]:
    """Runs of the continuity analyses, each once however many analyses hold it."""
    seen: dict[Any, tuple[Continuity, Mapping[str, Any]]] = {}
    for c in evidence.continuities:
        for r in c.content["runs"]:
            which = ("method", "model", "prompt", "seed", "frames") if r.get("prompt") else ("source",)
            seen.setdefault((*(r.get(name) for name in which), len(r.get("sigma") or [])), (c, r))
    return list(seen.values())


def _plain(evidence: Evidence) -> list[Measured]:
    """Runs without policies, each (model, prompt, seed, length) once however often it was copied; of several that
    were sampled differently (another guidance, kernel, dtype) the one that a comparison put under baseline/."""
    seen: dict[tuple[Any, ...], Measured] = {}
    for r in sorted(evidence.runs, key=lambda r: r.path.parent.name != "baseline"):
        if not r.policies:
            seen.setdefault((r.prompt, r.seed, r.asked), r)
    return list(seen.values())


def _h3(evidence: Evidence, held: Thresholds) -> list[Claim]:
    samples = [Sample(prompt=r.prompt, value=r.noise, source=str(r.path)) for r in _plain(evidence)]
    return [
        _claim(
            "H3", f"more than {held.noise:.0%} of its mean square is noise", "noise share", samples, ">", held.noise,
            BASELINES,
        )
    ]  # fmt: skip


def _h4(evidence: Evidence, held: Thresholds) -> list[Claim]:
    run = BASELINES
    runs = [r for r in _plain(evidence) if len(r.mse) > held.first_steps and np.isfinite(r.mse).all()]

    def samples(value: Any) -> list[Sample]:
        return [Sample(prompt=r.prompt, value=value(r), source=str(r.path)) for r in runs]

    def first(r: Measured) -> float:
        rest = float(np.mean(r.mse[held.first_steps :]))
        return float(np.mean(r.mse[: held.first_steps])) / rest if rest > 0 else math.nan

    def settled(r: Measured) -> float:
        both = [(c, m) for c, m in zip(r.change, r.mse, strict=True) if math.isfinite(c)]
        return float(np.mean([c < m for c, m in both])) if both else math.nan

    return [
        _claim("H4", f"its mean over the first {held.first_steps} steps is more than {held.first_over_rest:g} times the rest's",
               "first over rest", samples(first), ">", held.first_over_rest, run),
        _claim("H4", f"it changes by less than its own size at {held.settled:.0%} of steps", "share of steps settled",
               samples(settled), ">=", held.settled, run),
        _claim("H4", f"the high-noise expert's is more than {held.high_over_low:g} times the low-noise expert's",
               "high over low", samples(lambda r: r.high_over_low), ">", held.high_over_low, run),
    ]  # fmt: skip


# --- the guide's figures ----------------------------------------------------------------------------------------------


def shifted(step: int, steps: int, shift: float) -> float:
    """Sigma of a step, counted from 1, of the flow schedule shifted in time: s u / (1 + (s-1) u), u = 1 - (step-1)/steps."""
    u = 1 - (step - 1) / steps
    return shift * u / (1 + (shift - 1) * u)


def reproduce(evidence: Evidence) -> list[Figure]:
    """The guide's stated figures; contradictions are computed here, not quoted."""
    cfg = [p for method in _compared(evidence, "cfg") if _guides(method) for p in method.pairs]
    psnr, cfg_from = _measured([(str(p["prompt"]), _number(p.get("psnr")), s) for p, s in cfg], "{:.2f} dB")
    mse, _ = _measured([(str(p["prompt"]), _number(p.get("mse")), s) for p, s in cfg], "{:.6f}")
    speed, _ = _measured([(str(p["prompt"]), _number(p.get("seconds_baseline")) / _number(p.get("seconds")), s) for p, s in cfg if _number(p.get("seconds")) > 0], "{:.3f}x")  # fmt: skip
    saved = [1 - p["passes"] / p["passes_baseline"] for p, _ in cfg if p.get("passes") and p.get("passes_baseline")]
    sigma13 = shifted(13, 20, 12)
    baselines = [
        (c, r) for c, r in _curves(evidence) if r.get("method") == "baseline" and len(r.get("sigma") or []) == 20
    ]  # fmt: skip

    def at(step: int) -> tuple[str, tuple[str, ...]]:
        values = []
        for c, r in baselines:
            curve = ((r.get("spaces") or {}).get("x_t") or {}).get("mse", {}).get("mean") or []
            if len(curve) == 20 and curve[step - 1] is not None:
                values.append((str(r.get("prompt")), float(curve[step - 1]), str(c.path)))
        return _measured(values, "{:.3f}")

    schedules = [r for r in _plain(evidence) if r.steps == 20 and r.shift == 12 and len(r.sigma) == 20]
    seen13 = f"{schedules[0].sigma[12]:.3f}" if schedules else "–"
    implied = -10 * math.log10(0.01)
    figures = [
        Figure(
            what="example: PSNR of MSE .000105", stated="39.78 dB", theory=f"{-10 * math.log10(0.000105):.2f} dB",
            measured=psnr, sources=cfg_from,
        ),
        Figure(
            what="example: MSE beside absolute error (mean .010234, std .023456)", stated=".000105",
            theory=f"mean² + std² = {0.010234**2 + 0.023456**2:.6f}", measured=mse, sources=cfg_from,
            contradiction=f"the stated mean and deviation of the absolute error give an MSE of {0.010234**2 + 0.023456**2:.6f}, "
            f"{(0.010234**2 + 0.023456**2) / 0.000105:.1f} times the stated one; .000105 is the square of the mean alone ({0.010234**2:.6f})",
        ),
        Figure(
            what="H1: MSE .01 and PSNR 39 dB", stated="both", theory=f"MSE .01 is {implied:.0f} dB", measured=f"{mse}, {psnr}",
            sources=cfg_from,
            contradiction=f"an MSE of .01 is a PSNR of {implied:.0f} dB; 39 dB is an MSE of {10**-3.9:.6f}",
        ),
        Figure(
            what="saving of 5 truncated steps of 40", stated="25–35 %", theory=f"{5 / 80:.2%} of passes, {80 / 75:.3f}x",
            measured=f"{np.mean(saved):.1%} of passes, {speed}" if saved else "–", sources=cfg_from,
            contradiction="5 of 40 steps lose one of two passes each: 5 of 80",
        ),
        Figure(
            what="σ at step 13 of 20, shift 12", stated=".75", theory=f"{sigma13:.3f}", measured=seen13,
            sources=tuple(str(r.path) for r in schedules[:1]),
            contradiction=f"the schedule gives {sigma13:.3f}; .75 is step {next(k for k in range(1, 21) if shifted(k, 20, 12) <= 0.7501)}",
        ),
    ]  # fmt: skip
    for step, stated in ((1, "≈ 2.5"), (13, "≈ 1.4 (theory 1.13 at σ .75)"), (20, "≈ 0.3, to be verified")):
        sigma = shifted(step, 20, 12)
        measured, sources = at(step)
        noise = 2 * sigma**2
        figures.append(
            Figure(
                what=f"adjacent-frame MSE of x_t at step {step} of 20", stated=stated,
                theory=f"2σ² = {noise:.2f}, and {(1 - sigma) ** 2:.3f} of the clip's own", measured=measured, sources=sources,
                contradiction={
                    1: f"independent unit noise alone gives 2σ² = {noise:.2f}; 2.5 needs neighbouring noises that oppose each other",
                    13: f"1.13 is 2 x .75²; at the schedule's σ of {sigma:.3f} noise alone gives {noise:.2f}",
                }.get(step, ""),
            )
        )  # fmt: skip
    figures.append(
        Figure(
            what="H2: 7 steps after step 13 recover continuity", stated="7", theory=f"20 - 13 = {20 - 13}", measured=_recovery(evidence),
            sources=tuple(str(c.path) for c in evidence.continuities),
            contradiction="7 is every step that is left after step 13, so the statement holds whenever the result is good at all",
        )
    )  # fmt: skip
    return figures


def _measured(values: Sequence[tuple[str, float, str]], form: str) -> tuple[str, tuple[str, ...]]:
    known = [(p, v, s) for p, v, s in values if math.isfinite(v)]
    if not known:
        return "–", ()
    found, _ = stats.grouped([v for _, v, _ in known], [p for p, _, _ in known])
    text = form.format(found.mean)
    if found.known:
        text += f" ({form.format(found.low)} to {form.format(found.high)})"
    return f"{text}, n = {found.n}", tuple(dict.fromkeys(s for _, _, s in known))


def _recovery(evidence: Evidence) -> str:
    backs = [
        r["recovery"]["after"] for _, r in _curves(evidence)
        if str(r.get("method", "")).startswith("half") and isinstance(r.get("recovery"), dict)
    ]  # fmt: skip
    if not backs:
        return "–"
    known = [b for b in backs if b is not None]
    return (f"median {np.median(known):g}" if known else "none") + f"; {len(backs) - len(known)} of {len(backs)} never"
