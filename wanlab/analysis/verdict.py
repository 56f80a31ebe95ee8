"""What can be said of a method: against thresholds, against the noise floor, against other methods.

Intervals decide, not means; below four prompts nothing is said but what these prompts show. A figure that is not a
number meets no condition.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wanlab.analysis import metrics
from wanlab.analysis.stats import (
    ENOUGH,
    Interval,
    caution,
    paired_ratio,
    quantile,
    relative_difference,
    simultaneous,
    units,
)
from wanlab.errors import UsageError
from wanlab.registry import suggest

if TYPE_CHECKING:
    from wanlab.analysis.compare import Result

# The experiment guide's reading: PSNR above 35 dB is "minimal loss", SSIM above .98 "structure kept".
THRESHOLDS = {"psnr": 35.0, "ssim": 0.98}
WORDS = {"psnr": ("minimal loss", "loss", "dB"), "ssim": ("structure kept", "structure lost", "SSIM")}
FAR = 0.10  # predicted and measured speed-ups further apart than this are explained
NOTES = 4  # remarks on single pairs that are said
SLOW = 2  # times the usual
ABOVE, BELOW, NEAR = "above", "below", "not told apart"
Condition = tuple[str, str, float]
Bound = tuple[str, float]
LOSS = "write --max-loss psnr=35, and repeat it for several"


def verdict(result: Result, floors: Sequence[Result], thresholds: Mapping[str, float]) -> str:
    """A method in few words, against the thresholds and the noise floors."""
    if any(math.isnan(result.summary[name].mean) for name in thresholds):
        return "not a number"
    if result.identical:
        return "identical after rounding" if result.rounded else "identical"
    near = [(f, s) for f in floors if (s := standing(result, f)) != ABOVE]
    if near:
        floor, where = max(near, key=lambda found: found[0].summary["mse"].mean)
        return f"{where} {'from ' if where == NEAR else ''}{floor.label}"
    few = len(set(result.prompts)) < ENOUGH
    said = [_against(result.summary[name], bound, *WORDS[name], few=few) for name, bound in thresholds.items()]
    these = "this pair only: " if len(result.pairs) == 1 else "these prompts only: "
    return these * few + ", ".join(said)


def _against(value: Interval, bound: float, good: str, bad: str, unit: str, *, few: bool) -> str:
    if value.known and value.low <= bound <= value.high:
        return f"undecided at {bound:g} {unit}"
    if few:
        return f"{'above' if value.mean > bound else 'below'} {bound:g} {unit}"
    return good if value.mean > bound else bad


def standing(result: Result, floor: Result) -> str:
    """Whether a method's error is above a noise floor's, below it, or not told apart: by the interval of the ratio of
    their errors within the pairs that both have; of too few pairs for one, by all of them alike.

    Errors are those of the latents, in which both arise; of the frames, where a decoder's rounding hides them, only
    where the latents are not known or are equal.
    """
    own = {(p.prompt, p.seed): p.figures for p in result.pairs}
    shared = [p for p in floor.pairs if (p.prompt, p.seed) in own]
    sides = [own[p.prompt, p.seed] for p in shared], [p.figures for p in shared]
    a, b = ([f.get("latent_error", math.nan) ** 2 for f in side] for side in sides)
    if not (np.isfinite([a, b]).all() and any(a) and any(b)):
        a, b = ([f["mse"] for f in side] for side in sides)
    value = paired_ratio(a, b, [p.prompt for p in shared])
    if value.known:
        return ABOVE if value.low > 1 else BELOW if value.high < 1 else NEAR
    differs = [x > y for x, y in zip(a, b, strict=True) if x != y]
    if len(differs) < len(shared) or not differs:
        return NEAR
    return ABOVE if all(differs) else BELOW if not any(differs) else NEAR


def remarks(results: Sequence[Result], floors: Sequence[Result]) -> list[str]:
    """What to bear in mind when reading the table, in sentences."""
    every = (*floors, *results)
    said = list(at_equal_cost(results))
    said += [caution(*r.units, len(set(r.prompts))) for r in every[:1]]
    if broken := [r.label for r in every if not all(math.isfinite(v) for v in r.values("mse"))]:
        said.append(f"frames or latents that are not finite, in {', '.join(broken)}: nothing can be said of them")
    kinds: dict[str, dict[str, None]] = {}  # the same sentence of several pairs is said once, of the first
    for p in dict.fromkeys(p for r in every for p in r.pairs):
        for note in p.fidelity.notes:
            kinds.setdefault(note.replace(p.a.name, "A").replace(p.b.name, "B"), {})[note] = None
    notes = [next(iter(own)) + f" (and {len(own) - 1} more pairs)" * (len(own) > 1) for own in kinds.values()]
    said += notes[:NOTES] + [f"{len(notes) - NOTES} more of such remarks on pairs"] * (len(notes) > NOTES)
    if any(r.rounded for r in every):
        said.append("some videos were compared after rounding to integers: small differences are hidden")
    sampled = any(p.cost_a and p.cost_b for r in results for p in r.pairs)  # of films nobody knows what they cost
    if sampled and not any(r.timed for r in results):
        said.append("no measured speed-up: the runs are of different processes; --force samples them again together")
    said += [where_time_went(r) for r in results]
    said += slow_runs(results)
    return [s for s in said if s]


def where_time_went(result: Result) -> str:
    """A sentence when predicted and measured speed-up of the sampling loop are further apart than 10 %, and the
    measured one has an interval that does not hold the prediction; else ""."""
    timed, s = result.timed, result.summary
    if not timed or not math.isfinite(s["speedup_predicted"].mean):
        return ""
    predicted, measured = s["speedup_predicted"].mean, s["speedup"]
    if abs(measured.mean / predicted - 1) <= FAR or not measured.known or measured.low <= predicted <= measured.high:
        return ""
    excess: dict[tuple[int, int], list[float]] = {}
    for pair in timed:
        a, b = pair.cost_a, pair.cost_b
        assert a and b
        rate = b.sampling / b.flops  # seconds per operation that the baseline took
        for frames in np.unique(a.frames_by_step):
            for passes in np.unique(a.passes_by_step):
                own = (a.frames_by_step == frames) & (a.passes_by_step == passes)
                if own.any():
                    took, expected = a.seconds_by_step[own].sum(), a.flops_by_step[own].sum() * rate
                    excess.setdefault((int(frames), int(passes)), []).append(float(took - expected))
    (frames, passes), seconds = max(excess.items(), key=lambda item: abs(np.mean(item[1])))
    more = float(np.mean(seconds))
    return (
        f"{result.label}: {predicted:.2f}x predicted from operations, {measured.mean:.2f}x measured; its steps of "
        f"{frames} latent frames and {passes} pass{'es' * (passes != 1)} took {abs(more):.2f} s "
        f"{'more' if more > 0 else 'less'} than at the baseline's pace"
    )


def slow_runs(results: Sequence[Result]) -> list[str]:
    """Runs that took more than `SLOW` times as long an operation as the median of their method's, in a sentence for
    each method: something else had the machine, and their times are in the speed-up."""
    said, seen = list[str](), set[Any]()
    for result in results:
        for label, side in ((result.label, "a"), ("the baseline", "b")):
            costs = {p: cost for p in result.timed if (cost := getattr(p, f"cost_{side}")).flops > 0}
            pace = {p: cost.sampling / cost.flops for p, cost in costs.items()}
            usual = float(np.median([*pace.values()])) if len(pace) > 2 else math.inf
            slow = [p for p, v in pace.items() if v > SLOW * usual and getattr(p, side) not in seen]
            if not slow:
                continue
            seen |= {getattr(p, side) for p in slow}
            worst = max(slow, key=lambda p: pace[p])
            said.append(
                f"{label}: {len(slow)} of {len(pace)} runs took more than {SLOW} times as long an operation as usual, "
                f"at most {pace[worst] / usual:.1f} times ({worst.prompt[:60]!r}, seed {worst.seed}): was the machine "
                "busy? --force samples again"
            )
    return said


def at_equal_cost(results: Sequence[Result]) -> list[str]:
    """Which of the methods that cost the same operations loses least, from errors within pairs: the methods share
    prompts and seeds, so their ratio is known much better than either loss. The best is picked by its error, so the
    intervals hold for all pairs of methods together."""
    groups: dict[float, list[Result]] = {}
    for result in results:
        cost = result.summary["speedup_predicted"].mean
        asked = "at_cost" in result.setting  # those are held against the controls (controls.py)
        if math.isfinite(cost) and cost > 1 and math.isfinite(result.summary["mse"].mean) and not asked:
            groups.setdefault(round(1 / cost, 6), []).append(result)
    return [
        f"at {share:.3f} of the operations {_loses_least(own)}" for share, own in sorted(groups.items()) if len(own) > 1
    ]


def _loses_least(results: Sequence[Result]) -> str:
    keys = set.intersection(*({(p.prompt, p.seed) for p in r.pairs} for r in results))
    shared = {
        r: sorted((p.prompt, p.seed, p.figures["mse"]) for p in r.pairs if (p.prompt, p.seed) in keys) for r in results
    }
    errors = {r: [e for _, _, e in rows] for r, rows in shared.items()}
    prompts = [prompt for prompt, _, _ in shared[results[0]]]
    if not prompts:
        return "no two methods share a pair"
    best, *others = sorted(results, key=lambda r: float(np.mean(errors[r])))
    pairs = [
        units(relative_difference(errors[x], errors[y]), prompts)[0] for k, x in enumerate(results) for y in results[:k]
    ]
    factor = simultaneous(pairs) if len(pairs[0]) >= ENOUGH else None
    against = []
    for other in others:
        ratio = paired_ratio(errors[other], errors[best], prompts, factor=factor)
        mean, low, high = (decibels(v) for v in (ratio.mean, ratio.low, ratio.high))
        spread = f" ({low:.2f} to {high:.2f})" if ratio.known else ""
        apart = "" if ratio.known and low > 0 else ", which is not enough to tell them apart"
        against.append(f"{mean:.2f} dB{spread} above {other.label}{apart}")
    return f"{best.label} loses least: PSNR {'; '.join(against)}"


def decibels(ratio: float) -> float:
    """A ratio of squared errors in dB."""
    return 10 * math.log10(ratio) if ratio > 0 else -math.inf if ratio == 0 else math.nan


def within(name: str, value: float, bound: float) -> bool:
    """Whether a figure is on the better side of a bound."""
    return value > bound if metrics.get(name).better == "higher" else value < bound


def cheapest(results: Sequence[Result], *bounds: Bound) -> tuple[Result | None, Result | None]:
    """The cheapest method whose figures keep within all `bounds` for certain, and the cheapest one of which only the
    means do."""
    ordered = _by_cost(results)
    likely = [r for r in ordered if all(within(name, r.summary[name].mean, bound) for name, bound in bounds)]
    return max(certain(results, *bounds), key=ordered.index, default=None), (likely[-1] if likely else None)


def certain(results: Sequence[Result], *bounds: Bound) -> list[Result]:
    """The methods whose figures keep within all `bounds` for certain.

    The methods are walked from the baseline outward in cost, and the walk stops at the first of which an interval does
    not keep within its bound. Tests in an order that was fixed before need no correction for their number (W. Maurer,
    L. A. Hothorn, W. Lehmacher, 1995), and none where all must pass (R. L. Berger, 1982). Methods that differ in more
    than numbers (what a truncated step keeps) have a walk each, and the intervals hold for all walks together
    (Bonferroni). Below four prompts nothing is certain.
    """
    walks: dict[tuple[Any, ...], list[Result]] = {}
    for result in _by_cost(results):
        words = tuple(v for v in result.setting.items() if isinstance(v[1], str | bool))
        walks.setdefault(words, []).append(result)

    def keeps(result: Result) -> bool:
        for name, bound in bounds:
            prompts = min(len(set(result.prompts)), result.summary[name].n)  # some have no value of some figures
            value = result.mean(name, quantile(prompts, len(walks))) if prompts >= ENOUGH else None
            if value is None or not value.known:
                return False
            if not within(name, value.low if metrics.get(name).better == "higher" else value.high, bound):
                return False
        return True

    return [result for walk in walks.values() for result in itertools.takewhile(keeps, walk)]


def _by_cost(results: Sequence[Result]) -> list[Result]:
    """Dearest first; methods whose operations are not known are left out."""
    known = [r for r in results if math.isfinite(r.summary["speedup_predicted"].mean)]
    return sorted(known, key=lambda r: r.summary["speedup_predicted"].mean)


def failures(results: Iterable[Result], conditions: Sequence[Condition]) -> list[str]:
    """The conditions that hold for a method's mean, in words: ("psnr", "<", 35). What is not measured, or is not a
    number, holds every one."""
    said = []
    for result in results:
        for name, sign, bound in conditions:
            value = result.summary[name].mean if name in result.summary else math.nan
            holds = {"<": value < bound, "<=": value <= bound, ">": value > bound, ">=": value >= bound}[sign]
            if math.isnan(value):
                said.append(f"{result.label}: {name} is not a number, {sign} {bound:g} cannot be tested")
            elif holds:
                said.append(f"{result.label}: {name} is {value:.6g}, {sign} {bound:g}")
    return said


def parse_condition(text: str) -> Condition:
    """`psnr<35` as ("psnr", "<", 35.0). Raises UsageError for another form, an unknown figure or no finite number."""
    for sign in ("<=", ">=", "<", ">"):
        name, found, value = text.partition(sign)
        if found:
            return _figure(name), sign, _number(value, text, "condition", 'write --fail-if "psnr<35"')
    raise UsageError(f"'{text[:60]}' is no condition", 'write --fail-if "psnr<35"')


def parse_losses(given: str | Sequence[str]) -> list[Bound]:
    """`psnr=35` as ("psnr", 35.0), or several, each figure once. Raises UsageError."""
    if not given:
        raise UsageError("a sweep has no loss that it may cost", LOSS)
    losses = [_loss(text) for text in ([given] if isinstance(given, str) else given)]
    (name, times), *_ = Counter(name for name, _ in losses).most_common()
    if times > 1:
        raise UsageError(f"--max-loss says {name} twice", "give each figure one bound")
    return losses


def _loss(text: str) -> Bound:
    name, found, value = text.partition("=")
    if not found:
        raise UsageError(f"--max-loss '{text[:40]}' is no bound", LOSS)
    name = _figure(name)
    if not metrics.get(name).better or name.startswith("speedup"):
        raise UsageError(f"--max-loss: {name} is nothing that is lost", LOSS)
    return name, _number(value, text, "bound", LOSS)


def check_conditions(
    conditions: Iterable[tuple[str, ...] | Condition], *, runs: bool, asked: Sequence[str] = ()
) -> None:
    """Raises UsageError for a figure that will not be measured: of runs where videos are given, or not asked for."""
    measured = metrics.by_figure(metrics.chosen(asked))
    for name, *_ in conditions:
        metric = metrics.get(str(name))
        if name not in measured:
            raise UsageError(f"{name} is measured only where it is asked for", f"add --metric {metric.name}")
        if not runs and (metric.needs in ("run", "runs", "verdict") or metric.name.startswith("speedup")):
            raise UsageError(f"{name} is a figure of runs, and videos are given", "name run files, or another figure")


def _figure(text: str) -> str:
    name = text.strip().lower()
    known = {n for n, m in metrics.by_figure().items() if m.mean != "none"}
    if name not in known:
        raise UsageError(f"'{name[:40]}' is no figure of a comparison", suggest(name, known))
    return name


def _number(value: str, text: str, what: str, hint: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"'{text[:60]}' is no {what}", hint)
    return number
