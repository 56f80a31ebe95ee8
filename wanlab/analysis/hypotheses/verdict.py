"""Thresholds, claims and verdicts."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from wanlab.analysis import stats
from wanlab.analysis.hypotheses.scales import RATIO, SCALES, Scale, Summary, advice, enough, on_scale, shown
from wanlab.analysis.key import Key
from wanlab.analysis.stats import Interval
from wanlab.errors import UsageError
from wanlab.files import read_toml
from wanlab.registry import suggest
from wanlab.spec.run import RunSpec, short

SUPPORTED, REFUTED, UNDECIDED, PARTLY = "supported", "refuted", "not enough data", "in part"
LEAST = stats.ENOUGH
"""Prompts below which nothing is decided."""
PROMPTS = 32  # of --suite builtin
BASELINES = "wanlab compare --mode cfg_vs_baseline --suite builtin --seed 0:{seeds}"  # and the plain runs that it needs

USUAL = str(Key("tiny", RunSpec.steps, RunSpec.frames))  # what such a command samples


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What each claim is held against. `mse`, `psnr`, `ssim`, `recovery_steps` and `first_steps` are the guide's, the
    others what its words must mean to be tested."""

    mse: float = 0.01
    """H1: mean squared error of a truncated run against its baseline, at most."""
    psnr: float = 39.0
    """H1: PSNR in dB, at least."""
    margin: float = 0.05
    """H1, H5: by how much less often a run may show what was asked (non-inferiority)."""
    ssim: float = 0.95
    """H2: SSIM of a half-frame run against its baseline, at least."""
    warping: float = 1.1
    """H2: its warping error over the baseline's, at most."""
    speed_low: float = 0.9
    """H2: how fast it moves over the baseline, at least …"""
    speed_high: float = 1.1
    """… and at most."""
    recovery_steps: float = 7.0
    """H2: steps after the frames' completion until the duplicated ones differ as the baseline's do, at most …"""
    recovered: float = 0.9
    """… in at least this share of runs."""
    noise: float = 0.5
    """H3: share of x_t's power at the expert switch that is noise, more than, at low and at high frequencies."""
    predicted: float = 0.5
    """H3: share of the result's low-frequency variance that x0_pred holds already at the switch, less than."""
    first_steps: int = 5
    """H4: the guidance difference is larger in this many first steps …"""
    first_over_rest: float = 1.0
    """… than in the rest by more than this factor (mean mse over mean mse)."""
    change_over_mse: float = 1.0
    """H4: the sum of a run's changes over that of its mse, within the experts, less than."""
    slowing: float = 1.0
    """H4: how fast the difference changes with sigma in its first four changes, over the rest, more than."""
    high_over_low: float = 2.0
    """H4: the high-noise expert's mean mse over the low-noise expert's, more than."""
    frozen_psnr: float = 35.0
    """H5: PSNR in dB of a run with frozen tokens against its baseline, at least (the guide's "minimal loss")."""


def thresholds(path: Path | None) -> Thresholds:
    """The thresholds of a TOML file, the defaults for what it leaves out. Raises UsageError."""
    if path is None:
        return Thresholds()
    given = read_toml(path, "write lines such as psnr = 35.0")
    known = {f.name for f in fields(Thresholds)}
    for name, value in given.items():
        if name not in known:
            raise UsageError(f"{path}: unknown threshold '{short(name, 40)}'", suggest(name, sorted(known)))
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
            raise UsageError(
                f"{path}: {name} is {short(repr(value), 40)}, no number from 0", "write lines such as psnr = 35.0"
            )
    if type(steps := given.get("first_steps", 5)) is not int or steps < 1:
        raise UsageError(f"{path}: first_steps is {short(repr(steps), 40)}", "use a whole number from 1")
    return replace(Thresholds(), **given)


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
    """What n counts: "prompts" or, where there are fewer than four, "pairs" (of a prompt and a seed)."""
    relation: str
    """">=", "<=", ">" or "<": how the value has to stand to the threshold."""
    threshold: float
    verdict: str
    sources: tuple[str, ...]
    on: str = ""
    """Model, steps and frames of its runs, and what else tells them from others."""
    needs: str = ""
    """How many prompts or seeds would decide it, when it is open."""
    run: str = ""
    """The command that makes enough data, where one does."""
    decides: bool = True
    """Whether the hypothesis rests on it; a variant of the guide's method is shown beside."""


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    name: str
    says: str
    verdict: str
    """That of all claims that decide it; "in part" where some are supported and some refuted."""
    claims: tuple[Claim, ...]

    @property
    def on(self) -> str:
        """What the verdict is about: model, steps and frames."""
        return "; ".join(dict.fromkeys(c.on for c in self.claims if c.on and c.decides))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One run's value of a quantity."""

    prompt: str
    value: float
    source: str


def decide(value: Interval, relation: str, threshold: float) -> str:
    """The verdict: by the interval, not by the mean."""
    if not value.known or value.n < LEAST:
        return UNDECIDED
    good = {
        ">=": (value.low >= threshold, value.high < threshold),
        ">": (value.low > threshold, value.high <= threshold),
        "<=": (value.high <= threshold, value.low > threshold),
        "<": (value.high < threshold, value.low >= threshold),
    }[relation]
    return SUPPORTED if good[0] else REFUTED if good[1] else UNDECIDED


def whole(name: str, says: str, claims: list[Claim]) -> Hypothesis:
    """Claims on too few units do not decide beside claims of the same quantity on enough."""
    enough = {c.quantity for c in claims if c.decides and c.value.n >= LEAST}
    claims = [replace(c, decides=c.decides and (c.value.n >= LEAST or c.quantity not in enough)) for c in claims]
    verdicts = {c.verdict for c in claims if c.decides}
    if {SUPPORTED, REFUTED} <= verdicts:
        verdict = PARTLY
    else:
        verdict = REFUTED if REFUTED in verdicts else SUPPORTED if verdicts == {SUPPORTED} else UNDECIDED
    return Hypothesis(name=name, says=says, verdict=verdict, claims=tuple(claims))


@dataclass(frozen=True)
class Statement:
    """What a claim says, whatever its runs: a quantity, and how it has to stand to a threshold."""

    says: str
    quantity: str
    relation: str
    threshold: float
    run: str
    """The command that makes more data, with {seeds}."""
    summary: Summary | None = None
    """The value and its interval, of values and prompts; without it `scales.pooled` by the quantity."""


def claim(
    hypothesis: str, s: Statement, samples: Sequence[Sample], *, on: str = "", method: str = "", decides: bool = True
) -> Claim:
    """The statement decided from samples."""
    scale = SCALES.get(s.quantity, RATIO) if s.summary is None else Scale()
    known = [x for x in samples if math.isfinite(scale.to(x.value))]
    x, prompts = [scale.to(k.value) for k in known], [k.prompt for k in known]
    found, units = on_scale(scale, [k.value for k in known], prompts)
    if s.summary is not None and known:
        found = s.summary(x, prompts)
    value = shown(scale, found)
    verdict = decide(value, s.relation, s.threshold)
    needs = run = ""
    if verdict == UNDECIDED:
        more, again = enough(found, x, prompts, scale.to(s.threshold), s.summary)
        needs = advice(x, prompts, more, again) if known else ""
        # It samples the guide's own method at the usual size, which decides nothing of others.
        run = _command(s.run, x, prompts, more, again) if decides and USUAL.startswith(on) else ""
    return Claim(
        hypothesis=hypothesis,
        says=f"on {on}: {s.says}" if on else s.says,
        quantity=s.quantity,
        method=method,
        value=value,
        units=units,
        relation=s.relation,
        threshold=s.threshold,
        verdict=verdict,
        sources=tuple(dict.fromkeys(k.source for k in known)),
        on=on,
        needs=needs,
        run=run,
        decides=decides,
    )


def _command(run: str, x: Sequence[float], prompts: Sequence[str], more: int, again: int) -> str:
    """The command with as many seeds as would decide it; "" where no number of seeds of the suite's prompts would."""
    if len(set(prompts)) < LEAST:
        return run.format(seeds=4)
    if again:
        return run.format(seeds=again)
    return run.format(seeds=math.ceil(len(x) / len(set(prompts)))) if 0 < more <= PROMPTS else ""
