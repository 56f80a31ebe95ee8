"""What the statistics promise, by simulation: few draws here, the number that a bar asks for under `slow`."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest

from wanlab.analysis import stats, verdict
from wanlab.analysis.stats import interval, paired_ratio, share, simultaneous

SHORT, WHOLE = 400, pytest.param(10_000, marks=pytest.mark.slow)


def told_apart(factor, draws, rng):
    """How often the ratio of two floors' mean errors, of 16 prompts each of its own size, is told apart from 1."""
    apart = 0
    for _ in range(draws):
        size = np.exp(rng.standard_normal(16))
        a, b = (size * np.exp(0.3 * rng.standard_normal(16)) for _ in range(2))
        found = paired_ratio(factor * a, b, range(16))
        apart += not found.low <= 1 <= found.high
    return apart / draws


@pytest.mark.parametrize("draws", [1000, WHOLE])
def test_a_noise_floor_against_itself(draws):
    """Not told apart in 95 % of cases, within two standard errors of so many draws; a factor of 2 is told apart."""
    assert told_apart(1, draws, np.random.default_rng(0)) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / draws)
    assert told_apart(2, draws // 10, np.random.default_rng(0)) >= 0.95


def share_coverage(p, correlation, draws, rng):
    """Coverage of a share of 16 prompts x 4 seeds whose prompts differ by this intraclass correlation."""
    groups, holds = np.repeat(np.arange(16), 4).tolist(), 0
    for _ in range(draws):
        own = np.full(16, p)
        if correlation:
            strength = (1 - correlation) / correlation
            own = rng.beta(p * strength, (1 - p) * strength, 16)
        found = share((rng.random((16, 4)) < own[:, None]).ravel().tolist(), groups)
        holds += found.low <= p <= found.high
    return holds / draws


@pytest.mark.parametrize("draws", [SHORT, WHOLE])
@pytest.mark.parametrize("correlation", [0, 0.1, 0.3, 0.6])
def test_shares_of_runs_count_prompts(draws, correlation):
    """93 to 97 %, within two standard errors of so many draws. Over neighbouring shares: which counts of 64 runs there
    are moves that of a single one by up to a point either way."""
    unsure = 2 * math.sqrt(0.95 * 0.05 / draws)
    for shares in ((0.5, 0.52, 0.54, 0.56, 0.58), (0.8, 0.82, 0.84, 0.86, 0.88), (0.9, 0.92, 0.94, 0.96)):
        rng = np.random.default_rng(1)
        held = np.mean([share_coverage(p, correlation, draws // len(shares), rng) for p in shares])
        print(f"{shares[0]} to {shares[-1]}, correlation {correlation}: {100 * held:.1f}")
        assert 0.93 - unsure <= held <= 0.97 + unsure, shares


class Setting:
    """One setting of a sweep, as far as its answer asks: the true mean of its errors, lognormal over prompts, is 1."""

    def __init__(self, errors, cost, words):
        self.errors, self.setting = errors, {"keep": words}
        self.prompts = list(range(len(errors)))
        mse = SimpleNamespace(mean=errors.mean(), n=len(errors))
        self.summary = {"speedup_predicted": SimpleNamespace(mean=cost), "mse": mse}

    def mean(self, name, factor):
        return interval(self.errors, (0, math.inf), factor=factor)


def sure_of_some(count, n, shared, draws, rng):
    """How often a sweep is sure of some of `count` settings, in three walks, that all lie on the bound."""
    wrong = 0
    for _ in range(draws):
        x = rng.standard_normal((count, n)) + shared * rng.standard_normal((1, n))
        x *= 0.5 / math.sqrt(1 + shared**2)
        errors = np.exp(x - 0.125)  # of a logarithm's deviation .5
        settings = [Setting(e, k, "abc"[k % min(3, count)]) for k, e in enumerate(errors)]
        wrong += verdict.cheapest(settings, ("mse", 1.0))[0] is not None
    return wrong / draws


@pytest.mark.parametrize(("count", "n", "shared"), [(7, 16, 0), (21, 16, 2)])
def test_some_false_claim_in_a_sweep(count, n, shared):
    assert sure_of_some(count, n, shared, SHORT, np.random.default_rng(2)) <= 0.07


@pytest.mark.slow
@pytest.mark.parametrize(("count", "n", "shared"), itertools.product([2, 7, 21, 30], [4, 8, 16, 32], [0, 2]))
def test_some_false_claim_in_a_sweep_in_full(count, n, shared):
    found = sure_of_some(count, n, shared, 10_000, np.random.default_rng(2))
    print(f"{count} settings, {n} prompts, shared {shared}: {100 * found:.1f}")
    assert found <= 0.05


def some_better(count, n, shared, draws, rng):
    """How often some of `count` equal methods is told apart from another, by what `at_equal_cost` compares."""
    first, second = np.triu_indices(count, 1)
    wrong = 0
    for _ in range(draws):
        errors = np.exp(0.3 * rng.standard_normal((count, n)) + shared * rng.standard_normal((1, n)))
        apart = stats.relative_difference(errors[first], errors[second])
        t = apart.mean(axis=1) / apart.std(axis=1, ddof=1) * math.sqrt(n)
        wrong += bool(np.abs(t).max() > simultaneous(apart))
    return wrong / draws


@pytest.mark.parametrize(("count", "n"), [(3, 4), (7, 16)])
def test_some_of_equal_methods_loses_least(count, n, monkeypatch):
    monkeypatch.setattr(stats, "DRAWS", 1000)
    assert some_better(count, n, 1, 200, np.random.default_rng(3)) <= 0.09


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "n", "draws"),
    [
        (2, 4, 10_000),
        (2, 16, 10_000),
        (2, 32, 10_000),
        (7, 4, 10_000),
        (7, 16, 10_000),
        (7, 32, 10_000),
        (21, 16, 1000),
    ],
)
def test_some_of_equal_methods_loses_least_in_full(count, n, draws, monkeypatch):
    monkeypatch.setattr(stats, "DRAWS", 1000)
    assert some_better(count, n, 1, draws, np.random.default_rng(3)) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / draws)


@pytest.mark.parametrize(("count", "usual"), [(3, 2.6), (4, 3.0), (7, 3.5), (21, 4.5)])
def test_factors_of_ties(count, usual):
    """What 16 prompts need for every two of so many independent methods together. By Student's range distribution of
    15 degrees 2.60, 2.88, 3.38 and 4.2 (its q over the root of 2), by Bonferroni 2.69, 3.04, 3.67 and 4.9."""
    x = np.random.default_rng(0).standard_normal((count, 16))
    first, second = np.triu_indices(count, 1)
    assert simultaneous(x[first] - x[second]) == pytest.approx(usual, rel=0.1)
