"""Thresholds, claims and verdicts."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from wanlab.analysis import stats
from wanlab.analysis.stats import Interval
from wanlab.errors import UsageError
from wanlab.registry import suggest

SUPPORTED, REFUTED, UNDECIDED = "supported", "refuted", "not enough data"
LEAST = 4
"""Independent units (prompts, pairs or runs) below which nothing is decided."""
BOUNDS = {
    "mse": (0.0, 1.0),
    "psnr": (0.0, 120.0),
    "ssim": (-1.0, 1.0),
    "noise share": (0.0, 1.0),
    "share of steps settled": (0.0, 1.0),
    "share recovered": (0.0, 1.0),
    "passes saved": (-math.inf, 1.0),
    "continuity": (0.0, math.inf),
}
RATIOS = ("first over rest", "high over low", "speed-up")


BASELINES = "wanlab compare --mode cfg_vs_baseline --suite builtin --seed 0:{seeds}"  # and the plain runs that it needs


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
    }[relation]
    return SUPPORTED if good[0] else REFUTED if good[1] else UNDECIDED


def share(successes: Sequence[bool]) -> Interval:
    """A proportion with Wilson's 95 % score interval (E. B. Wilson, JASA 22, 1927)."""
    n = len(successes)
    if not n:
        return Interval(math.nan, math.nan, math.nan, 0)
    p, z = sum(successes) / n, 1.959963984540054
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n), n).within(0, 1)


def pooled(quantity: str, values: Sequence[float], prompts: Sequence[str]) -> tuple[Interval, str]:
    """The mean with an interval that ends where the quantity does, and what its n counts. Of ratios it is the
    geometric mean, with the interval of the logarithms."""
    if quantity not in RATIOS:
        value, units = stats.grouped(values, prompts)
        return value.within(*BOUNDS.get(quantity, (-math.inf, math.inf))), units
    known = [(math.log(v), p) for v, p in zip(values, prompts, strict=True) if v > 0]
    value, units = stats.grouped([v for v, _ in known], [p for _, p in known])
    return Interval(_exp(value.mean), _exp(value.low), _exp(value.high), value.n), units


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def whole(name: str, says: str, claims: list[Claim]) -> Hypothesis:
    """Claims on too few units do not decide beside claims of the same quantity on enough."""
    enough = {c.quantity for c in claims if c.decides and c.value.n >= LEAST}
    claims = [replace(c, decides=c.decides and (c.value.n >= LEAST or c.quantity not in enough)) for c in claims]
    verdicts = {c.verdict for c in claims if c.decides}
    verdict = REFUTED if REFUTED in verdicts else SUPPORTED if verdicts == {SUPPORTED} else UNDECIDED
    return Hypothesis(name=name, says=says, verdict=verdict, claims=tuple(claims))


def claim(
    hypothesis: str,
    says: str,
    quantity: str,
    samples: Sequence[Sample],
    relation: str,
    threshold: float,
    run: str,
    *,
    on: str = "",
    method: str = "",
    decides: bool = True,
    value: Interval | None = None,
) -> Claim:
    known = [s for s in samples if math.isfinite(s.value)]
    units = "pairs"
    if value is None:
        value, units = pooled(quantity, [s.value for s in known], [s.prompt for s in known])
    verdict = decide(value, relation, threshold)
    seeds = math.ceil(len(known) / max(1, len({s.prompt for s in known})))
    run = run.format(seeds=4 if value.n < 16 else 2 * max(2, seeds))
    return Claim(
        hypothesis=hypothesis,
        says=f"on {on}: {says}" if on else says,
        quantity=quantity,
        method=method,
        value=value,
        units=units,
        relation=relation,
        threshold=threshold,
        verdict=verdict,
        sources=tuple(dict.fromkeys(s.source for s in known)),
        run=run if verdict == UNDECIDED else "",
        decides=decides,
    )
