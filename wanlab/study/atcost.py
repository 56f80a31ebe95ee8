"""Methods at a stated cost: for each, the value of its knob at which it costs that share of the baseline's operations.

What a method decides beforehand is looked up in forecasts, without sampling. What it decides while it runs is sampled:
a few prompts first, then all; those runs are kept, and the comparison takes them as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from wanlab.analysis.controls import EVEN, RANDOM
from wanlab.errors import UsageError, WanlabError
from wanlab.spec import MethodSpec, PolicySpec, RunSpec
from wanlab.spec.run import short
from wanlab.study.design import Variant, arrange, builtin_methods
from wanlab.study.runners.groups import Shard
from wanlab.study.runners.local import Watcher, run_all

if TYPE_CHECKING:
    from wanlab.engine.run.forecast import Forecast

TOLERANCE = 0.01  # of the baseline's operations: nearer than this is not searched for
FEW = 4  # prompts on which a knob is looked for before all are sampled
SAMPLED = 8  # values of a knob that are sampled on the few prompts, for one cost
PLANNED = 40  # values that are forecast
RUNNING = "it decides while it runs"


@dataclass(frozen=True)
class Knob:
    """A method's knob, its values told by their distance from the one at which everything is evaluated."""

    name: str
    dearest: float
    cheapest: float
    whole: bool
    """Whether its values are whole numbers."""
    first: float
    """The distance to begin with: the value asked for, of whole numbers the one in the middle."""

    @classmethod
    def of(cls, method: MethodSpec, steps: int) -> tuple[Knob, int]:
        """The knob of the last of a method's policies that has one, and that policy's place. Raises UsageError."""
        from wanlab.engine import policies  # noqa: F401 - registers them
        from wanlab.registry import build

        for place in reversed(range(len(method.policies))):
            policy = build("policy", method.policies[place])
            if policy.cost_knob is not None:
                name, *ends = policy.cost_knob
                dearest, cheapest = (steps if math.isinf(e) else e for e in ends)
                whole, span = get_type_hints(type(policy))[name] is int, abs(cheapest - dearest)
                usual = min(abs(getattr(policy, name) - dearest), span) or span / 2
                return cls(name, dearest, cheapest, whole, span // 2 if whole else usual), place
        raise UsageError(f"{short(method.label)} has no knob that trades cost for quality", "leave it out of --at-cost")

    @property
    def span(self) -> float:
        """The distance of the cheapest value."""
        return abs(self.cheapest - self.dearest)

    def at(self, distance: float) -> float | int:
        """The value at a distance, which is taken to three digits."""
        value = self.dearest + math.copysign(float(f"{distance:.3g}"), self.cheapest - self.dearest)
        return round(value) if self.whole else round(value, 12)

    def between(self, dear: float | None, cheap: float | None) -> float | None:
        """The distance to try next, between one that costs too much and one that costs too little (None for one that is
        not known yet); None where there is no value left between them."""
        if self.whole:
            low, high = -1 if dear is None else int(dear), int(self.span) + 1 if cheap is None else int(cheap)
            return (low + high) // 2 if high - low > 1 else None
        if cheap is None:
            return min(4 * (dear or self.first), self.span) if dear != self.span else None
        if dear is None:
            return cheap / 4
        return math.sqrt(dear * cheap) if cheap > 1.001 * dear else None


def search(knob: Knob, cost: Callable[[float], float], target: float, most: int) -> dict[float, float]:
    """The costs of the values of a knob that were tried for a cost, by bisection, `most` of them at most.

    Values that `cost` refuses with a UsageError lie beyond the cheapest. Raises that error when it refuses all.
    """
    costs: dict[float, float] = {}
    dear: float | None = None
    cheap: float | None = None
    distance: float | None = knob.first
    refusal = UsageError(f"{knob.name} has no value to try", "leave the method out of --at-cost")
    for _ in range(most):
        if distance is None or (value := knob.at(distance)) in costs:
            break
        try:
            costs[value] = cost(value)
        except UsageError as error:
            refusal, cheap = error, distance
        else:
            if abs(costs[value] - target) <= TOLERANCE:
                break
            floor = dear is not None and costs[value] == costs[knob.at(dear)] < 1  # it may cost no less than this
            dear, cheap = (distance, cheap) if costs[value] > target else (dear, distance)
            if floor and cheap is None and distance != knob.span:
                distance = knob.span
                continue
        distance = knob.between(dear, cheap)
    if not costs:
        raise refusal
    return costs


def every_value(knob: Knob, cost: Callable[[float], float]) -> dict[float, float]:
    """The costs of all values of a knob of whole numbers, without those that `cost` refuses with a UsageError. Raises
    that error when it refuses all."""
    costs: dict[float, float] = {}
    refusals: list[UsageError] = []
    for distance in range(int(knob.span) + 1):
        try:
            costs[knob.at(distance)] = cost(knob.at(distance))
        except UsageError as error:
            refusals.append(error)
    if not costs:
        raise refusals[0]
    return costs


def nearest(costs: Mapping[float, float], target: float) -> float:
    """The value whose cost is nearest to a target."""
    return min(costs, key=lambda value: abs(costs[value] - target))


def parse_costs(given: str | float | Sequence[float]) -> list[float]:
    """The shares of `0.75,0.6`, or of numbers. Raises UsageError."""
    values = given.split(",") if isinstance(given, str) else given if isinstance(given, Sequence) else [given]
    try:
        costs = list(dict.fromkeys(float(value) for value in values))
    except ValueError:
        costs = []
    if not costs or not all(0 < c < 1 for c in costs):
        raise UsageError(
            f"--at-cost '{short(str(given), 40)}' is no share of the baseline's operations",
            "write --at-cost 0.6, or 0.75,0.6 for several; above 0 and below 1",
        )
    return costs


def controls() -> list[MethodSpec]:
    """Steps left out evenly, and at random: what a rule that chooses its steps is held against."""
    methods = builtin_methods("caches")
    return [methods[EVEN], methods[RANDOM]]


@dataclass
class Costs:
    """What methods cost, as shares of the baseline's operations."""

    specs: Sequence[RunSpec]
    baseline: MethodSpec
    out: Path
    force: bool
    watcher: Watcher
    loaded: Any = None
    _done: set[Path] = field(init=False, default_factory=set)
    _alike: dict[str, list[RunSpec]] = field(init=False, default_factory=dict)
    _usual: list[Forecast] = field(init=False, default_factory=list)
    _planned: dict[str, float | None] = field(init=False, default_factory=dict)
    _sampled: dict[tuple[str, int], float] = field(init=False, default_factory=dict)

    def forecast(self, method: MethodSpec) -> float | None:
        """Of all runs; None where it is not known beforehand. Raises UsageError as the runs would."""
        from wanlab.engine.run import plan

        if (name := str(method)) in self._planned:
            return self._planned[name]
        if not self._alike:
            for spec in (replace(s, prompt="-", seed=0) for s in self.specs):  # which cost nothing
                self._alike.setdefault(spec.digest(), []).append(spec)
            self._usual = [plan(self.baseline.apply(s[0])) for s in self._alike.values()]
        plans = [plan(method.apply(s[0])) for s in self._alike.values()]
        own, usual = (
            sum(len(s) * p.flops for s, p in zip(self._alike.values(), those, strict=True))
            for those in (plans, self._usual)
        )
        self._planned[name] = own / usual if all(p.exact for p in (*plans, *self._usual)) else None
        return self._planned[name]

    def sampled(self, method: MethodSpec, specs: Sequence[RunSpec]) -> float:
        """Of the runs of some specs, which are sampled and kept. Raises UsageError and WanlabError."""
        from wanlab.engine.run import Models

        if (known := self._sampled.get((str(method), len(specs)))) is not None:
            return known
        self.loaded = self.loaded or Models()
        design = arrange(specs, self.baseline, [Variant(method)], [], self.out)
        new = [(s, p) for s, p in design.order if p not in self._done and (self.force or not p.exists())]
        failed = run_all(
            [s for s, _ in new], [p for _, p in new], force=self.force, watcher=self.watcher, loaded=self.loaded
        )
        self._done |= {p for _, p in new}
        pairs = [
            (a, b)
            for a, b in zip(design.variant_runs[0], design.baseline_runs, strict=True)
            if not {a, b} & set(failed)
        ]
        if not pairs:
            raise WanlabError(f"all runs of {method.label} failed", "run the same command again")
        share = sum(_operations(a) for a, _ in pairs) / sum(_operations(b) for _, b in pairs)
        self.watcher.say(f"{method.label}: {share:.3f} of the operations in {len(pairs)} runs")
        self._sampled[str(method), len(specs)] = share
        return share


def _operations(path: Path) -> float:
    from wanlab.analysis.metrics.cost import Cost
    from wanlab.runfile import Run

    with Run(path) as run:
        return Cost.of(run).flops


def find(
    methods: Sequence[MethodSpec],
    targets: Sequence[float],
    costs: Costs,
    *,
    sample: bool = True,
    shard: Shard | None = None,
) -> tuple[list[Variant], list[str]]:
    """Every method and the controls at each cost, and what there is to say: who is left out, and why.

    sample  False: those that have to be sampled are left out, and said
    shard   which of several processes this is: each begins with other methods, and finds the runs of the others there

    Raises UsageError for a method without such a knob, and when no method can have any of the costs.
    """
    every: dict[tuple[Any, ...], MethodSpec] = {}
    for method in (*controls(), *methods):
        every.setdefault((method.policies, method.settings), method)
    wanted = [(target, method) for target in targets for method in every.values()]
    turn = (shard.number - 1) * len(wanted) // shard.count if shard else 0
    found: dict[int, Variant | UsageError] = {}
    for place in (*range(turn, len(wanted)), *range(turn)):
        target, method = wanted[place]
        try:
            found[place] = _at(method, target, costs, sample=sample)
        except UsageError as reason:
            found[place] = reason
    variants: list[Variant] = []
    out: dict[str, list[float]] = {}
    for place, (target, method) in enumerate(wanted):
        if isinstance(made := found[place], Variant):
            variants.append(made)
        else:
            out.setdefault(f"{method.label}: {made}", []).append(target)
    said = [
        f"{'left out' if sample or RUNNING not in why else 'not known before sampling'} at "
        f"{', '.join(f'{t:g}' for t in at)} of the operations, {why}"
        for why, at in out.items()
    ]
    asked = {m.label for m in methods}
    if sample and not any(v.setting["rule"] in asked for v in variants):
        raise UsageError("; ".join(said))
    return variants, said


def _at(method: MethodSpec, target: float, costs: Costs, *, sample: bool) -> Variant:
    """The method at the value of its knob whose cost is nearest to the target. Raises UsageError when there is none."""
    knob, place = Knob.of(method, method.apply(costs.specs[0]).steps)
    firsts: dict[str, RunSpec] = {}
    for spec in costs.specs:
        firsts.setdefault(spec.prompt, spec)
    specs = list(firsts.values())[:FEW]

    def turned(value: float) -> MethodSpec:
        return _turn(method, place, knob.name, value)

    def cost(value: float) -> float:
        known = costs.forecast(turned(value))
        if known is None and not sample:
            raise UsageError(
                f"{RUNNING}: its {knob.name} will be looked for by sampling {len(specs)} "
                f"prompt{'s' * (len(specs) > 1)}, "
                f"{SAMPLED} times at most, then all",
                "leave out --dry-run",
            )
        return costs.sampled(turned(value), specs) if known is None else known

    try:
        decided = costs.forecast(turned(knob.at(knob.first))) is not None
    except UsageError:  # which is known beforehand, too
        decided = True
    if decided and knob.whole:
        tried = every_value(knob, cost)
    else:
        tried = search(knob, cost, target, PLANNED if decided else SAMPLED)
    _check_reach(knob, tried, target)
    value = nearest(tried, target)
    if costs.forecast(turned(value)) is None and len(specs) < len(costs.specs):
        value = _corrected(knob, cost, tried, target, lambda v: costs.sampled(turned(v), costs.specs))
    return Variant(turned(value), {"at_cost": target, "rule": method.label})


def _corrected(
    knob: Knob, few: Callable[[float], float], tried: dict[float, float], target: float, every: Callable[[float], float]
) -> float:
    """The value after all prompts were sampled at it, and at one more where that cost is off: at the value that costs
    the few prompts as much less as all cost more."""
    value = nearest(tried, target)
    whole = every(value)
    if abs(whole - target) <= TOLERANCE:
        return value
    aimed = target - (whole - tried[value])
    again = nearest(tried | search(knob, lambda v: tried[v] if v in tried else few(v), aimed, SAMPLED), aimed)
    return again if again != value and abs(every(again) - target) < abs(whole - target) else value


def _check_reach(knob: Knob, tried: Mapping[float, float], target: float) -> None:
    """Raises UsageError when every value costs more than the target, or every one less."""
    value = nearest(tried, target)
    if min(tried.values()) - TOLERANCE <= target <= max(tried.values()) + TOLERANCE:
        return
    end = "least" if tried[value] > target else "most"
    final = knob.whole or value in (knob.at(0.0), knob.at(knob.span))
    raise UsageError(
        f"{knob.name}={value} costs {tried[value]:.3f} of the operations, the {end} "
        f"{'that it can' if final else f'of {len(tried)} values tried'}",
        f"ask for {tried[value]:.3f}",
    )


def _turn(method: MethodSpec, place: int, knob: str, value: float) -> MethodSpec:
    """The method with a knob of one of its policies set; a method with a name of its own keeps it."""
    policy = method.policies[place]
    changed = PolicySpec(policy.name, {**policy.options, knob: value}, policy.file, policy.code)
    policies = (*method.policies[:place], changed, *method.policies[place + 1 :])
    turned = MethodSpec.parse(str(MethodSpec("", policies, method.settings)))
    return turned if _is_plain(method) else replace(turned, label=f"{method.label}, {knob}={value}")


def _is_plain(method: MethodSpec) -> bool:
    """Whether a method is called by its own text."""
    try:
        said = MethodSpec.parse(method.label)
    except UsageError:
        return False
    return [(p.name, p.knobs) for p in said.policies] == [(p.name, p.knobs) for p in method.policies]
