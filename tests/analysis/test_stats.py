import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanlab.analysis.stats import Interval, bounds, grouped, interval, ratio


def coverage(draw, mean, n, samples=20_000):
    """The share of samples whose interval holds the true mean. Its own standard error is under .002."""
    low, high = bounds(draw((samples, n)))
    return float(((low <= mean) & (mean <= high)).mean())


@pytest.mark.parametrize("n", [4, 8, 16, 32, 64])
def test_coverage_on_normal_data(n):
    rng = np.random.default_rng(n)
    assert 0.93 <= coverage(lambda s: 5 + 2 * rng.standard_normal(s), 5, n) <= 0.97


@pytest.mark.parametrize("n", [32, 64])
@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_coverage_on_lognormal_data(n, sigma):
    rng = np.random.default_rng(n)
    assert 0.93 <= coverage(lambda s: np.exp(sigma * rng.standard_normal(s)), math.exp(sigma**2 / 2), n) <= 0.97


@pytest.mark.parametrize(("n", "low", "high"), [(4, 0.86, 0.94), (8, 0.895, 0.95), (16, 0.915, 0.955)])
@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_coverage_that_is_said_beside_small_skewed_samples(n, low, high, sigma):
    rng = np.random.default_rng(n)
    found = coverage(lambda s: np.exp(sigma * rng.standard_normal(s)), math.exp(sigma**2 / 2), n)
    assert low <= found <= high


def test_by_hand():
    """Symmetric values have no skewness: Student's t. 1 to 5: s² = 2.5, t(.975; 4) = 2.776445."""
    found = interval([1, 2, 3, 4, 5])
    assert (found.low, found.high) == pytest.approx(
        (3 - 2.776445 * math.sqrt(0.5), 3 + 2.776445 * math.sqrt(0.5)), abs=1e-6
    )


def test_equal_values_and_too_few():
    assert interval([7.0] * 6) == Interval(7.0, 7.0, 7.0, 6)
    assert interval([1.0, 2.0, 3.0]).mean == 2 and not interval([1.0, 2.0, 3.0]).known  # too few to see how they lie
    assert interval([]).n == 0 and not interval([3.0]).known and interval([3.0]).mean == 3.0
    assert not interval([1.0, math.inf]).known


@given(st.lists(st.floats(-100, 100), min_size=4, max_size=30), st.floats(0.1, 10), st.floats(-50, 50))
def test_moves_and_scales_with_its_values(values, scale, move):
    """Another unit, another zero: the same interval in that unit."""
    x = np.array(values)
    if x.std() < 1e-3:
        return
    a, b = interval(x), interval(scale * x + move)
    assert (b.low, b.high) == pytest.approx((scale * a.low + move, scale * a.high + move), abs=1e-5 * scale * x.std())
    assert a.low <= a.high


def test_skew_stretches_the_side_of_the_tail():
    found = interval([1, 1.1, 1.2, 0.9, 1, 5])
    assert found.high - found.mean > found.mean - found.low


def test_seeds_of_one_prompt_are_no_evidence_about_prompts():
    values = [1, 3, 5, 7, 2, 2, 9, 11]  # prompt means 2, 6, 2, 10: mean 5
    found, units = grouped(values, list("aabbccdd"))
    assert (found.n, units, found.mean) == (4, "prompts", 5) and found == interval([2, 6, 2, 10])
    found, units = grouped(values[:4], list("aabb"))
    assert (found.n, units) == (4, "pairs")


def test_ratio_by_hand():
    """Ratios 2 and 8: their geometric mean is 4."""
    assert ratio([1, 1], [2, 8]).mean == pytest.approx(4)
