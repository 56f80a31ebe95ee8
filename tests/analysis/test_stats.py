import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from wanlab.analysis.stats import Interval, bounds, geometric, grouped, interval, paired_ratio, share, simultaneous


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


@pytest.mark.parametrize(("n", "least"), [(4, 0.92), (8, 0.91), (16, 0.915), (32, 0.925)])
def test_coverage_of_errors(n, least):
    """Of lognormal ones of σ 1, and of σ .5 the usual 95 %: an upper end by the logarithm alone has 90 % of four."""
    rng = np.random.default_rng(n)
    for sigma, low in ((0.5, 0.935), (1.0, least)):
        found = [interval(e, (0, math.inf)) for e in np.exp(sigma * rng.standard_normal((4000, n)))]
        assert low <= np.mean([f.low <= math.exp(sigma**2 / 2) <= f.high for f in found]) <= 0.965, sigma


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


@settings(deadline=None)
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
    assert geometric([2, 8]).mean == pytest.approx(4)


def test_a_limit_holds_its_interval():
    """Errors end above 0, shares inside 0 and 1, an SSIM below 1."""
    found = interval([0, 0, 0.01, 0.16], (0, math.inf))
    assert 0 < found.low < found.mean < found.high
    assert interval([0, 1, 1, 1], (0, 1)).low > 0 and interval([0, 1, 1, 1], (0, 1)).high < 1
    assert interval([1, 1, 1, 0.5], (-1, 1)).high < 1
    assert interval([1.0] * 5, (-1, 1)) == Interval(1, 1, 1, 5) and interval([0.0] * 5, (0, math.inf)) == Interval(
        0, 0, 0, 5
    )


def test_errors_by_hand():
    """2, 2, 2, 0, 2, 2 above 0: mean 5/3, s = √(2/3), t(.975; 5) = 2.570582, h = t s/√6 over the mean. The skewness
    pulls the cubic transformation's upper end in, and the limit's stands."""
    h = 2.570582 * math.sqrt(2 / 3) / math.sqrt(6) / (5 / 3)
    found = interval([2, 2, 2, 0, 2, 2], (0, math.inf))
    assert found.high == pytest.approx(5 / 3 * math.exp(h + h**2 / 2), rel=1e-6)


def test_odds_by_hand():
    """0, 0, 1, 1 between 0 and 1: mean 1/2, s/√4 = √(1/3)/2, t(.975; 3) = 3.182446."""
    half = 3.182446 * math.sqrt(1 / 3) / 2 / 0.25
    found = interval([0, 0, 1, 1], (0, 1))
    assert (found.low, found.high) == pytest.approx((1 / (1 + math.exp(half)), 1 / (1 + math.exp(-half))), abs=1e-6)


PSNRS = st.lists(st.floats(10, 60), min_size=16, max_size=16)


@settings(max_examples=300, deadline=None)  # a busy machine takes its time
@given(PSNRS, st.floats(-0.1, 0.1))
def test_one_value_that_moves_a_little_moves_no_bound_far(psnrs, move):
    """One of 16 PSNRs by .1 dB: no bound by .2 dB, of the mean in dB or of the mean error in dB."""
    moved = [psnrs[0] + move, *psnrs[1:]]
    a, b = interval(psnrs), interval(moved)
    assert abs(a.low - b.low) <= 0.2 and abs(a.high - b.high) <= 0.2
    a, b = (interval(10 ** (-np.array(p) / 10), (0, math.inf)) for p in (psnrs, moved))
    assert abs(10 * math.log10(a.low / b.low)) <= 0.2 and abs(10 * math.log10(a.high / b.high)) <= 0.2


@settings(deadline=None)
@given(
    st.lists(st.floats(1e-6, 1e-2), min_size=4, max_size=20), st.lists(st.floats(1e-6, 1e-2), min_size=4, max_size=20)
)
def test_an_error_that_goes_to_nothing_leaves_no_jump(x, y):
    n = min(len(x), len(y))
    near, gone = ([e, *x[1:n]] for e in (1e-13, 0.0))
    for a, b in (
        (interval(near, (0, math.inf)), interval(gone, (0, math.inf))),
        (paired_ratio(near, y[:n], range(n)), paired_ratio(gone, y[:n], range(n))),
    ):
        assert (a.mean, a.low, a.high) == pytest.approx((b.mean, b.low, b.high), rel=1e-4)


def test_paired_ratio_by_hand():
    """2, 4, 2, 4 over 1, 1, 1, 1: relative differences 1/3 and 3/5, mean 7/15, ratio (22/15)/(8/15) = 2.75; s = √(4/3)
    2/15, t(.975; 3) = 3.182446, and the logarithm's half-width is t s/2 · 2/(1 - (7/15)²)."""
    found = paired_ratio([2, 4, 2, 4], [1, 1, 1, 1], "abcd")
    factor = math.exp(3.182446 * math.sqrt(4 / 3) * (2 / 15) / (1 - (7 / 15) ** 2))
    assert (found.mean, found.low, found.high) == pytest.approx((2.75, 2.75 / factor, 2.75 * factor), rel=1e-6)
    same = paired_ratio([1, 2, 3, 4], [2, 4, 6, 8], "abcd")
    assert (same.mean, same.low, same.high) == pytest.approx((0.5, 0.5, 0.5))
    assert paired_ratio([0] * 4, [0] * 4, "abcd") == Interval(1, 1, 1, 4)
    assert paired_ratio([1] * 4, [0] * 4, "abcd").low == math.inf and paired_ratio([0] * 4, [1] * 4, "abcd").high == 0
    assert not paired_ratio([math.nan, 1, 1, 1], [1] * 4, "abcd").known


def test_shares_by_hand():
    """One run for each of 16 prompts, 11 good: correlation says nothing, and the posterior of a uniform prior is
    Beta(12, 6), whose 2.5 and 97.5 % points are .4404 and .8579. Three prompts are too few."""
    found = share([True] * 11 + [False] * 5, range(16))
    assert (found.mean, found.n) == (11 / 16, 16)
    assert (found.low, found.high) == pytest.approx((0.4404, 0.8579), abs=1e-4)
    assert share([True] * 10, [k // 2 for k in range(10)]).high == 1
    assert share([False] * 10, [k // 2 for k in range(10)]).low == 0
    assert not share([True, False, True], "abc").known and math.isnan(share([], []).mean)


def test_a_factor_widens_a_share():
    """Student's own quantile, t(.975; 15) = 2.131450, changes nothing; t(.995; 15) = 2.946713 has 99 %: of 16 prompts
    with one run the .5 and 99.5 % points of Beta(12, 6)."""
    args = [True] * 11 + [False] * 5, range(16)
    assert share(*args, factor=2.131450).low == pytest.approx(share(*args).low, abs=1e-5)
    wide = share(*args, factor=2.946713)
    assert (wide.low, wide.high) == pytest.approx(tuple(scipy.stats.beta.ppf([0.005, 0.995], 12, 6)), abs=2e-4)


def test_seeds_that_say_what_their_prompt_says_add_little():
    """Four of 16 prompts fail with all of their four seeds, or one seed of each prompt does."""
    groups = [k // 4 for k in range(64)]
    together, spread = share([k >= 16 for k in range(64)], groups), share([k % 4 > 0 for k in range(64)], groups)
    assert together.mean == spread.mean == 0.75
    assert together.high - together.low > 1.5 * (spread.high - spread.low)


def test_one_interval_alone_is_students():
    """t(.975; 7) = 2.364624; of the same values twice it is simulated, at most Bonferroni's t(.9875; 7) = 2.841244."""
    x = np.random.default_rng(0).standard_normal((1, 8))
    assert 2.364624 < simultaneous(np.concatenate([x, x])) <= 2.841245
    assert simultaneous(np.random.default_rng(0).standard_normal((1, 8))) == pytest.approx(2.364624, rel=1e-6)
