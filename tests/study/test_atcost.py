"""Methods at a stated cost: where the search for a knob's value ends, what is left out, and what is said of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanlab.analysis.controls import TOKENS
from wanlab.errors import UsageError
from wanlab.spec import MethodSpec, RunSpec
from wanlab.study import atcost
from wanlab.study.atcost import TOLERANCE, Costs, Knob, every_value, find, nearest, parse_costs, search
from wanlab.study.design import builtin_methods, read_methods
from wanlab.study.runners.groups import Shard
from wanlab.study.runners.local import Watcher

SPECS = [RunSpec(prompt=p, seed=s, steps=20) for p in ("a red ball", "a blue ball") for s in (0, 1)]


def costs_of(tmp_path: Path, baseline: str = "baseline") -> Costs:
    return Costs(SPECS, MethodSpec.parse(baseline), tmp_path, False, Watcher())


# --- the search -------------------------------------------------------------------------------------------------------


@given(st.floats(0.02, 0.98), st.floats(1e-3, 50), st.floats(0.8, 5))
def test_a_threshold_is_found_whatever_its_size(target: float, scale: float, power: float) -> None:
    """Costs fall from 1 to 0 as 1 / (1 + (threshold / scale)^power): within the tolerance in 40 tries, from .05."""
    knob = Knob("threshold", 0.0, 1e6, False, 0.05)
    tried = search(knob, lambda v: 1 / (1 + (v / scale) ** power), target, 40)
    assert abs(tried[nearest(tried, target)] - target) <= TOLERANCE


@given(st.integers(1, 60), st.integers(0, 60), st.floats(0.01, 0.99))
def test_whole_numbers_are_bisected_to_the_nearest_step(span: int, hidden: int, target: float) -> None:
    """Costs 1, 1 - 1/span, … 0: no value is nearer than half a step, or one is within the tolerance."""
    knob = Knob("last", 0, span, True, span // 2)
    tried = search(knob, lambda v: 1 - v / span, target, 40)
    assert abs(tried[nearest(tried, target)] - target) <= max(TOLERANCE, 0.5 / span + 1e-9)
    assert len(tried) <= math.ceil(math.log2(span + 1)) + 1
    assert len(every_value(knob, lambda v: 1 - v / span)) == span + 1


def test_a_step_that_jumps_over_the_cost_ends_at_the_nearer_side() -> None:
    """.8 below a threshold of .3, .5 from there on: .7 is nearer to .8, .6 to .5, and the tries close in on .3."""
    knob = Knob("threshold", 0.0, 100.0, False, 0.05)
    for target, cost in ((0.7, 0.8), (0.6, 0.5)):
        tried = search(knob, lambda v: 0.8 if v < 0.3 else 0.5, target, 12)
        assert tried[nearest(tried, target)] == cost and len(tried) <= 12
        assert max(v for v, c in tried.items() if c == 0.8) == pytest.approx(0.3, rel=0.01)


def test_a_floor_above_the_cost_is_seen_at_the_end_of_the_knob_and_not_on_the_way() -> None:
    """Never less than .65: .05 and .2 cost that, so the end is asked; where nothing is saved yet the way goes on."""
    knob = Knob("threshold", 0.0, 100.0, False, 0.05)
    assert list(search(knob, lambda v: 0.65, 0.5, 8)) == [0.05, 0.2, 100.0]
    assert list(search(knob, lambda v: 1.0 if v < 1 else 0.5, 0.5, 8)) == [0.05, 0.2, 0.8, 3.2]


def test_the_knob_can_fall_and_its_end_can_be_refused() -> None:
    """keep = 20 … 1 of 20 steps, 1 refused as a run of two experts would."""

    def cost(keep: float) -> float:
        if keep < 2:
            raise UsageError("steps:keep=1 of 20 steps", "use 2 to 20")
        return keep / 20

    knob = Knob("keep", 20, 1, True, 9)
    assert nearest(search(knob, cost, 0.05, 40), 0.05) == 2 == nearest(every_value(knob, cost), 0.05)
    assert every_value(knob, cost).keys() == set(range(2, 21))
    with pytest.raises(UsageError, match="keep=1"):
        search(Knob("keep", 1, 1, True, 0), cost, 0.5, 40)


@pytest.mark.parametrize("text", ["1", "0", "0.6,", "much", "0.5,1.2", "nan", ""])
def test_a_cost_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"write --at-cost 0\.6"):
        parse_costs(text)
    assert parse_costs("0.75, .6,0.6") == [0.75, 0.6] == parse_costs([0.75, 0.6]) and parse_costs(0.6) == [0.6]


# --- methods ----------------------------------------------------------------------------------------------------------


def test_what_is_decided_beforehand_is_forecast(tmp_path: Path) -> None:
    """20 steps of two passes: .75 is 30 passes. The controls compute 15 steps; 10 of the last steps have one branch;
    guidance stops at half the schedule; cfgcache:every=7 estimates 5 of 7 low-noise steps, 35 of 40 passes; half the
    frames cost .693, and one branch less .668."""
    methods = [MethodSpec.parse(t) for t in ("cfg:last=5,keep=cond", "interval", "cfgcache", "half+cfg:last=2")]
    variants, said = find(methods, [0.75], costs_of(tmp_path))
    assert [v.method.label for v in variants[:4]] == [
        "evenly spaced, keep=15",
        "random, keep=15",
        "cfg:keep=cond,last=10",
        "interval:stop=0.5",
    ]
    assert variants[2].setting == {"at_cost": 0.75, "rule": "cfg:last=5,keep=cond"}
    assert [s.partition("; ")[2] for s in said] == ["ask for 0.875", "ask for 0.668"]
    assert "cfgcache: every=7 costs 0.875 of the operations, the least that it can" in said[0]
    assert "half+cfg:last=2: last=1 costs 0.6" in said[1] and "the most that it can" in said[1]
    assert not list(tmp_path.rglob("*"))  # nothing was sampled


def test_costs_are_shares_of_the_baseline_that_is_asked_for(tmp_path: Path) -> None:
    """Against 30 passes of 40, .8 is 24."""
    variants, _ = find([MethodSpec.parse("interval")], [0.8], costs_of(tmp_path, "cfg:last=10,keep=cond"))
    assert variants[0].method.label == "evenly spaced, keep=12" and len(variants) == 3


def test_no_method_at_any_cost_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cfgcache: every=7 costs 0\.875"):
        find([MethodSpec.parse("cfgcache")], [0.5, 0.6], costs_of(tmp_path))
    with pytest.raises(UsageError, match="paired has no knob that trades cost for quality"):
        find([MethodSpec.parse("paired")], [0.5], costs_of(tmp_path))


@pytest.mark.parametrize("bias", [0.0, 0.1])
def test_a_few_prompts_first_then_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bias: float) -> None:
    """easycache of 5 prompts: the first four seeds cost 1 / (1 + threshold), all of them `bias` more; .6 is looked for
    on the four, all are sampled there, and where that is off once more at what costs the four .1 less."""
    specs = [RunSpec(prompt=p, seed=s, steps=20) for p in "abcde" for s in (0, 1)]
    asked: list[tuple[float, int]] = []

    def sampled(self: Costs, method: MethodSpec, given: list[RunSpec]) -> float:
        threshold = float(method.policies[0].options["threshold"])
        asked.append((threshold, len(given)))
        return 1 / (1 + threshold) + bias * (len(given) == len(specs))

    monkeypatch.setattr(Costs, "sampled", sampled)
    costs = Costs(specs, MethodSpec("baseline"), tmp_path, False, Watcher())
    variants, _ = find([MethodSpec.parse("easycache")], [0.6], costs)
    threshold = float(variants[-1].method.policies[0].options["threshold"])
    assert 1 / (1 + threshold) + bias == pytest.approx(0.6, abs=2 * TOLERANCE)
    assert [n for _, n in asked if n > 4] == [10] * (2 if bias else 1)
    assert {n for _, n in asked} == {4, 10} and len({v for v, n in asked if n == 4}) <= 2 * atcost.SAMPLED


def test_shards_begin_with_different_methods_and_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two controls, known beforehand, and two rules at two costs are eight to find: the fourth of eight shards begins
    with the second rule."""
    asked: list[str] = []

    def sampled(self: Costs, method: MethodSpec, given: list[RunSpec]) -> float:
        asked.append(method.policies[0].name)
        return 1 / (1 + float(method.policies[0].options["threshold"]))

    monkeypatch.setattr(Costs, "sampled", sampled)
    rules = [MethodSpec.parse("easycache"), MethodSpec.parse("sencache")]
    found = [find(rules, [0.75, 0.6], costs_of(tmp_path), shard=shard) for shard in (None, Shard(4, 8))]
    assert found[0] == found[1]
    assert [v.setting["at_cost"] for v in found[0][0]] == [0.75] * 4 + [0.6] * 4
    half = len(asked) // 2
    assert asked[0] == "easycache" and asked[half] == "sencache" and sorted(asked[:half]) == sorted(asked[half:])


def test_a_dry_run_says_what_it_cannot_know(tmp_path: Path) -> None:
    variants, said = find([MethodSpec.parse("adaptive")], [0.75], costs_of(tmp_path), sample=False)
    assert [v.setting["rule"] for v in variants] == ["evenly spaced", "random"]
    assert "adaptive: it decides while it runs: its threshold will be looked for by sampling 2 prompts" in said[0]


def test_a_whole_number_given_for_a_threshold_leaves_it_a_threshold() -> None:
    knob, place = Knob.of(MethodSpec.parse("half+adaptive:threshold=1"), 20)
    assert (knob.name, knob.whole, place, knob.first) == ("threshold", False, 1, 1.0)
    assert Knob.of(MethodSpec.parse("cfg:last=5+half"), 20)[0] == Knob("last", 1, 20, True, 9)


# --- lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["caches", "guidance", "pruning"])
def test_every_method_of_a_packaged_list_has_a_cost_knob(name: str) -> None:
    for method in builtin_methods(name).values():
        assert Knob.of(method, 20)[0].span > 0, method.label


def test_shares_of_tokens_are_forecast(tmp_path: Path) -> None:
    """9 of 20 steps select: .8 is found by all that say their share beforehand. The other 11 cost .55 in any case."""
    costs = costs_of(tmp_path)
    variants, said = find(list(builtin_methods("pruning").values()), [0.8, 0.5], costs, sample=False)
    found = {v.setting["rule"]: costs.forecast(v.method) for v in variants if v.setting["at_cost"] == 0.8}
    assert found == {
        name: pytest.approx(0.8, abs=TOLERANCE)
        for name in ("evenly spaced", "random", "random tokens", "ras", "topk", "tome")
    }
    assert any(
        "not known before sampling at 0.8, 0.5 of the operations, prune: it decides while it runs: its thresh" in s
        for s in said
    )
    assert any("left out at 0.5 of the operations, topk: ratio=0.25" in s and "the least of" in s for s in said)


def test_the_control_has_the_name_that_is_looked_for() -> None:
    assert TOKENS in builtin_methods("pruning")


def test_a_list_is_known_by_its_name() -> None:
    assert read_methods(Path("builtin:caches"))["evenly spaced"] == atcost.controls()[0]
    with pytest.raises(UsageError, match="did you mean caches"):
        read_methods(Path("builtin:cache"))
