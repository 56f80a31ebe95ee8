"""Fits, plans and spreads, against numbers worked out by hand, brute force and known polynomials."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wanlab.analysis import calibration as c


def test_a_polynomial_is_recovered() -> None:
    truth = [3.0, -2.0, 0.5, 1.5, 0.1]
    inputs = np.linspace(0.02, 0.9, 12)
    outputs = np.array([3 * x**4 - 2 * x**3 + 0.5 * x**2 + 1.5 * x + 0.1 for x in inputs])
    assert c.fit(inputs, outputs) == pytest.approx(truth, rel=1e-8)
    assert c.r_squared(np.array(truth), inputs, outputs) == pytest.approx(1.0)


def test_r_squared_by_hand() -> None:
    # y = 1, 2, 6 around their mean 3: 4 + 1 + 9 = 14. The line x + 1 at 0, 1, 2 gives 1, 2, 3: 0 + 0 + 9 = 9 is left
    assert c.r_squared(np.array([1.0, 1.0]), np.arange(3.0), np.array([1.0, 2.0, 6.0])) == pytest.approx(1 - 9 / 14)
    assert np.isnan(c.r_squared(np.array([1.0]), np.arange(3.0), np.ones(3)))


def test_the_suggested_threshold_by_hand() -> None:
    # slopes -.5 .005 -.005 .3 .001: the longest flat stretch is .1 .105 .1, twice its mean is .61/3
    assert c.suggested_threshold(np.array([0.6, 0.1, 0.105, 0.1, 0.4, 0.401])) == pytest.approx(0.61 / 3)
    assert c.suggested_threshold(np.array([0.6, 0.4, 0.2])) == 0.2
    # of two of one length the first
    assert c.suggested_threshold(np.array([0.1, 0.1, 0.5, 0.5])) == pytest.approx(0.2)


def test_misses_by_hand() -> None:
    # h = 0, 1, 3, 3: the line through 0 and 1 is 2 and 3 at steps 2 and 3; through 1 and 3 it is 5 at step 3, through
    # 0 and 3 (steps 0 and 2) it is 4.5
    misses = c.misses_of(np.array([[0.0], [1.0], [3.0], [3.0]], dtype=np.float32))
    assert misses[0, 0, 1:].tolist() == [1.0, 3.0, 3.0]
    assert misses[1, 1, 2:].tolist() == [1.0, 0.0]
    assert (misses[2, 2, 3], misses[1, 2, 3]) == (2.0, 1.5)
    costs = c.costs_of(misses)
    assert costs[0, 0].tolist() == [np.inf, 0.0, 1.0, 4.0, 7.0]
    assert costs[1, 1].tolist() == [np.inf, np.inf, 0.0, 1.0, 1.0]
    # two computed steps: 0 1 misses 1, 0 2 misses 1 + 1.5, 0 3 misses 1 + 3
    assert c.best_plans(costs)[2] == (1.0, (0, 1))


def total(misses: np.ndarray, keys: tuple[int, ...]) -> float:
    """What a plan misses, said another way: step by step."""
    missed = 0.0
    for t in range(misses.shape[1]):
        if t not in keys:
            last = [k for k in keys if k < t][-2:]
            missed += misses[0, 0, t] if len(last) == 1 else misses[last[0] + 1, last[1], t]
    return missed


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_plans_are_the_best_of_all(n: int, mandatory: int, seed: int) -> None:
    misses = c.misses_of(np.random.default_rng(seed).normal(size=(n, 3)).cumsum(axis=0))
    plans = c.best_plans(c.costs_of(misses), mandatory)
    first = tuple(range(min(mandatory, n)))
    assert sorted(plans) == list(range(len(first), n + 1))
    for count, (cost, steps) in plans.items():
        all_of_them = (k for k in itertools.combinations(range(n), count) if k[: len(first)] == first)
        assert cost == pytest.approx(min(total(misses, k) for k in all_of_them), abs=1e-9)
        assert total(misses, steps) == pytest.approx(cost, abs=1e-9)


def run_of(high: np.ndarray, low: np.ndarray, prompt: str = "a", **given: Any) -> c.Measured:
    n = len(high) + len(low)
    gaps = {"magnitude": np.ones((2, n)), "embedding": np.full(n, np.nan), "output": np.full((2, n), np.nan)}
    gaps |= {"sensitivity": np.full((2, n), np.nan)} | given
    experts = ("high",) * len(high) + ("low",) * len(low)
    misses = {"high": c.misses_of(high), "low": c.misses_of(low)}
    return c.Measured(prompt=prompt, experts=experts, misses=misses, size=1.0, **gaps)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_plans_of_two_experts_share_the_budget_and_cross_nothing(seed: int) -> None:
    numbers = np.random.default_rng(seed)
    high, low = numbers.normal(size=(4, 2)).cumsum(axis=0), numbers.normal(size=(3, 2)).cumsum(axis=0)
    run = run_of(high, low)
    parts = c.summarise([run])[0]
    assert sorted(map(int, parts["plans"])) == [4, 5, 6, 7]
    for count, plan in parts["plans"].items():
        assert {0, 1, 2, 4} <= set(plan) and len(plan) == int(count)
        every = [k for k in itertools.combinations(range(7), int(count)) if {0, 1, 2, 4} <= set(k)]

        def both(keys: tuple[int, ...]) -> float:
            own = tuple(k for k in keys if k < 4), tuple(k - 4 for k in keys if k >= 4)
            return total(run.misses["high"], own[0]) + total(run.misses["low"], own[1])

        assert both(tuple(plan)) == pytest.approx(min(map(both, every)), abs=1e-9)
        assert parts["plan_errors"][count]["mean"] == pytest.approx(both(tuple(plan)) / 7)


def test_spread_is_over_prompts_not_over_seeds() -> None:
    # prompt a: 1 and 3, mean 2; prompt b: 6. Mean 4, deviation of (2, 6) is 2 sqrt 2
    mean, sd = c.over_prompts([1.0, 6.0, 3.0], ["a", "b", "a"])
    assert mean == 4.0
    assert sd == pytest.approx(8**0.5)
    assert c.over_prompts([1.0, 3.0], ["a", "a"])[1] is None


def test_a_summary_by_hand() -> None:
    """7 high-noise steps whose output changes by twice the embedding's, 2 low-noise ones: too few for a fit there."""
    embedding = np.array([np.nan, 0.1, 0.12, 0.15, 0.2, 0.3, 0.5, np.nan, 0.7])
    sensitivity = np.array([[np.nan, 1, 1, 1, 1, 1, 1, np.nan, 4], [np.nan, 2, 2, 2, 2, 2, 5, np.nan, 8]])
    runs = [
        run_of(
            np.zeros((7, 1)),
            np.zeros((2, 1)),
            prompt,
            embedding=embedding,
            output=np.tile(2 * embedding, (2, 1)),
            sensitivity=factor * sensitivity,
            magnitude=np.full((2, 9), factor),
        )
        for prompt, factor in (("a", 1.0), ("b", 3.0))
    ]
    parts, remarks = c.summarise(runs)
    assert parts["magnitude"]["uncond"] == {"mean": [2.0] * 9, "sd": [2**0.5] * 9}
    assert parts["embedding_change"] == [None, 0.1, 0.12, 0.15, 0.2, 0.3, 0.5, None, 0.7]
    assert list(parts["teacache"]) == ["high"]
    fit = parts["teacache"]["high"]
    assert np.polyval(fit["coefficients"], 0.2) == pytest.approx(0.4)
    assert (fit["pairs"], fit["r2"]) == (24, pytest.approx(1.0))
    assert remarks == ["no TeaCache fit of the low expert: 2 steps, 7 are needed"]
    # medians of the high expert's: x 1 and 3, t 2 and 6; means over prompts by step: t 4 and, at step 6, 10
    root = 2**0.5
    assert parts["sensitivity"]["high"] == pytest.approx({"x": 2, "t": 4, "x_sd": root, "t_sd": 2 * root})
    assert parts["sensitivity_by_step"]["t"] == [None, 4, 4, 4, 4, 4, 10, None, 16]
