"""Continuity against numbers that a hand can derive. Noise is made of orthogonal frames of ones and minus ones, so that
its mean square is exactly 1 and that of a difference exactly 2."""

from __future__ import annotations

import json
import math
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.linalg import hadamard

from wanlab import runfile
from wanlab.analysis import continuity
from wanlab.analysis.continuity import BASELINE, Continuity, Step, adjacent, analyse, group, measure
from wanlab.errors import WanlabError
from wanlab.runfile import Field, Run, RunWriter
from wanlab.spec import PolicySpec, RecordSpec, RunSpec

H = hadamard(64).astype(float)  # 64 orthogonal frames of 64 values
SHAPE = (4, 4, 4)  # C, H, W of a frame
DIMS = ("channel", "latent_frame", "latent_height", "latent_width")


def frames(rows: Any) -> list[np.ndarray]:
    return [np.reshape(r, SHAPE) for r in np.asarray(rows, float)]


def about(**changes: Any) -> dict[str, Any]:
    return (
        dict(source="run.h5", prompt="a ball", seed=0, model="m", frames=0, method=BASELINE, settings="s", lifted=None)
        | changes
    )


def run_of(
    x_t: list[Any],
    sigma: list[float],
    final: Any = None,
    expert: str | list[str] = "single",
    stride: int | list[int] = 1,
    x0: list[Any] | None = None,
    eps: list[Any] | None = None,
    **more: Any,
) -> Continuity:
    n = len(sigma)
    experts = [expert] * n if isinstance(expert, str) else expert
    strides = [stride] * n if isinstance(stride, int) else stride
    steps = []
    for k in range(n):
        spaces = {"x_t": frames(x_t[k])}
        spaces |= {"x0_pred": frames(x0[k])} if x0 is not None else {}
        spaces |= {"eps_pred": frames(eps[k])} if eps is not None else {}
        steps.append(
            Step(
                timestep=1000 * sigma[k], sigma=sigma[k], expert=experts[k], stride=strides[k], values=64, spaces=spaces
            )
        )
    return measure(steps, None if final is None else frames(final), about(**more))


# --- the metrics -----------------------------------------------------------------------------------------------------


def test_independent_noise_is_2_sigma_squared_apart() -> None:
    for sigma in (1.0, 0.75, 0.1):
        for dtype in (np.float64, np.float32):
            mse, cosine, distance, power = adjacent((sigma * H[:6]).astype(dtype))
            assert mse == pytest.approx([2 * sigma**2] * 5, rel=1e-6)
            assert cosine == pytest.approx([0] * 5, abs=1e-6)
            assert distance == pytest.approx([1] * 5, rel=1e-6)
            assert power == pytest.approx([sigma**2] * 6, rel=1e-6)


def test_duplicated_frames_are_0_apart() -> None:
    mse, cosine, distance, _ = adjacent(np.repeat(H[:3], 2, axis=0))
    assert mse == [0, 2, 0, 2, 0] and distance == [0, 1, 0, 1, 0]
    assert cosine == pytest.approx([1, 0, 1, 0, 1], abs=1e-12)


def test_bytes_are_multiples_of_a_255th():
    """By hand: (51/255)² = .04 apart; mean squares .04 and .16."""
    mse, cosine, distance, power = adjacent(np.array([[51, 51], [102, 102]], np.uint8))
    assert mse == pytest.approx([0.04], rel=1e-7) and power == pytest.approx([0.04, 0.16], rel=1e-7)
    assert cosine == pytest.approx([1.0]) and distance == pytest.approx([math.sqrt(0.04 / 0.2)])


def test_linear_motion_by_hand() -> None:
    """(1,0) (1,1) (1,2): differences (0,1); products 1 and 3 of norms √1 √2 √5."""
    mse, cosine, distance, power = adjacent(np.array([[1.0, 0], [1, 1], [1, 2]]))
    assert mse == [0.5, 0.5]
    assert cosine == pytest.approx([1 / math.sqrt(2), 3 / math.sqrt(10)], rel=1e-12)
    assert distance == pytest.approx([1 / math.sqrt(3), 1 / math.sqrt(7)], rel=1e-12)
    assert power == [0.5, 1, 2.5]


def test_frames_of_zeros_have_no_angle() -> None:
    mse, cosine, distance, _ = adjacent(np.array([[0.0, 0], [0, 0], [3, 4]]))
    assert mse == [0, 12.5] and np.isnan(cosine).all() and np.isnan(distance[0]) and distance[1] == 1


@given(hnp.arrays(np.float64, (3, 7), elements=st.floats(-1e3, 1e3)))
@settings(deadline=None)
def test_metrics_hang_together(values: np.ndarray) -> None:
    """|a-b|² = |a|² + |b|² - 2<a,b>, and normalised_l2² = |a-b|²/(|a|²+|b|²) lies in [0,2]."""
    mse, cosine, distance, power = adjacent(values)
    for k in range(2):
        size = power[k] + power[k + 1]
        assert 0 <= mse[k] <= 2 * size * (1 + 1e-9)
        if power[k] > 1e-6 and power[k + 1] > 1e-6:
            product = cosine[k] * math.sqrt(power[k] * power[k + 1])
            assert mse[k] == pytest.approx(size - 2 * product, rel=1e-9, abs=1e-9 * size)
            assert distance[k] ** 2 * size == pytest.approx(mse[k], rel=1e-9, abs=1e-12)


def test_products_of_float32_are_as_good_as_float64s() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 100_003)).astype(np.float32)
    for x, y in ((a, a), (a, b + a)):
        assert continuity.dot(x, y) == pytest.approx(float(x.astype(float) @ y.astype(float)), rel=1e-7)


def test_means_and_deviations_are_over_pairs_and_the_populations() -> None:
    c = run_of([[H[0], H[0], H[1], H[1]]], [1.0])  # 0, 2, 0: mean 2/3, variance 4·(1/3)(2/3)
    x_t = c.spaces["x_t"]
    assert x_t.mean("mse")[0] == pytest.approx(2 / 3) and x_t.std("mse")[0] == pytest.approx(math.sqrt(8 / 9))


def test_values_that_are_no_numbers_are_named() -> None:
    bad = H[:4].copy()
    bad[2, 5] = np.nan
    with pytest.raises(WanlabError, match="x_t of step 2 "):
        run_of([H[:4], bad], [1.0, 0.5])


def test_one_frame_has_no_neighbour() -> None:
    with pytest.raises(WanlabError, match="no neighbour"):
        run_of([H[:1]], [1.0])


# --- theory ----------------------------------------------------------------------------------------------------------

MOTION = np.stack([H[40] + 0.5 * f * H[41] for f in range(5)])  # neighbours .25 apart, orthogonal to any noise used


def mixed(sigma: float, noise: np.ndarray) -> np.ndarray:
    return (1 - sigma) * MOTION + sigma * noise


def test_theory_is_exact_for_independent_noise() -> None:
    sigma = [1.0, 0.75, 0.5, 0.3]
    c = run_of([mixed(s, H[:5]) for s in sigma], sigma, MOTION)
    t = c.theory
    assert t is not None and t.m0 == pytest.approx([0.25] * 4)
    assert t.expected == pytest.approx([(1 - s) ** 2 * 0.25 + 2 * s**2 for s in sigma], rel=1e-6)
    assert t.residual == pytest.approx([0] * 4, abs=1e-6)
    assert t.rho == pytest.approx([0] * 4, abs=1e-6) and t.independent.all()
    assert t.noise_share[0] == 1 and t.noise_share[1] == pytest.approx(1.125 / (1.125 + 0.015625))
    # Four pairs of 64 values: sqrt((3·4 - 1)/64)/4.
    assert t.correlation_sd == pytest.approx([math.sqrt(11 / 64) / 4] * 4)


@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0, -0.5])
def test_the_noise_correlation_is_found(rho: float) -> None:
    """Each frame's noise is ρ times the one before and sqrt(1-ρ²) of a new direction."""
    noise = [H[0]]
    for k in range(1, 5):
        noise.append(rho * noise[-1] + math.sqrt(1 - rho**2) * H[k])
    for sigma in (1.0, 0.8, 0.4):
        c = run_of([mixed(sigma, np.array(noise))], [sigma], MOTION)
        assert c.theory is not None and c.theory.correlation[0] == pytest.approx([rho] * 4, abs=1e-6)


def test_frames_copied_with_their_signal_are_beyond_1() -> None:
    """Copies are 0 apart, so ρ = 1 + (1-σ)² m0/(2σ²); pairs between copies keep noise and signal: ρ = 0 there needs
    their own m0, which is the motion's."""
    x = mixed(0.5, H[:5])
    x[1], x[3] = x[0], x[2]
    c = run_of([x], [0.5], MOTION)
    assert c.theory is not None
    copied = 1 + 0.25 * 0.25 / 0.5
    # From a copy to the next frame the motion is of two frames, 4 · .25, where .25 is expected.
    onward = 1 - (0.25 * 1.0 + 0.5 - 0.25 * 0.25) / 0.5
    assert c.theory.correlation[0] == pytest.approx([copied, onward, copied, onward], abs=1e-6)


def test_no_correlation_where_noise_is_the_lesser_part() -> None:
    """With m0 = .25 noise is half of the expected mse at (1-σ)²/σ² = 8: σ = .2612."""
    sigma = [0.27, 0.25]
    c = run_of([mixed(s, H[:5]) for s in sigma], sigma, MOTION)
    assert c.theory is not None
    assert np.isfinite(c.theory.rho).tolist() == [True, False] and c.theory.independent.tolist() == [True, False]


def test_the_parts_of_the_residual_add_up_and_are_what_they_say() -> None:
    rng = np.random.default_rng(0)
    x0, eps = rng.standard_normal((2, 5, 64))
    for sigma in (0.9, 0.4):
        c = run_of([(1 - sigma) * x0 + sigma * eps], [sigma], MOTION, x0=[x0], eps=[eps])
        t = c.theory
        assert t is not None
        assert t.signal + t.noise + t.cross == pytest.approx(t.residual, abs=1e-12)
        d0, de = np.diff(x0, axis=0), np.diff(eps, axis=0)
        assert t.cross[0] == pytest.approx(2 * sigma * (1 - sigma) * (d0 * de).mean(), rel=1e-9)
        assert t.signal[0] == pytest.approx((1 - sigma) ** 2 * ((d0**2).mean() - 0.25), rel=1e-9)


def test_a_perfect_model_keeps_rho_at_0_where_its_noise_prediction_is_correlated() -> None:
    """Two frames, data of variance s² along their sum and r² along their difference. The flow of an exact model takes
    x_T to sqrt((1-σ)²s²+σ²) x_T along each, which has the variance of independent x0 and ε: ρ = 0 at every step.
    Its eps_pred is σ/((1-σ)²s²+σ²) x_t: smaller where there is more signal, so negatively correlated."""
    s, r = 1.3, 0.3
    total, apart = H[0], H[1]

    def frames_of(a: float, b: float) -> np.ndarray:
        return np.stack([a * total + b * apart, a * total - b * apart]) / math.sqrt(2)

    sigmas = [0.99, 0.889, 0.5, 0.387]
    sizes = [[(1 - w) ** 2 * v**2 + w**2 for v in (s, r)] for w in sigmas]
    x_t = [frames_of(math.sqrt(a), math.sqrt(b)) for a, b in sizes]
    eps = [frames_of(w / a * math.sqrt(a), w / b * math.sqrt(b)) for w, (a, b) in zip(sigmas, sizes, strict=True)]
    x0 = [(x - w * e) / (1 - w) for x, w, e in zip(x_t, sigmas, eps, strict=True)]
    c = run_of(x_t, sigmas, frames_of(s, r), x0=x0, eps=eps)
    assert c.theory is not None and c.theory.rho == pytest.approx([0] * 4, abs=1e-6)
    cosine = c.spaces["eps_pred"].mean("cosine")
    a, b = sizes[2]
    assert cosine[2] == pytest.approx((1 / a - 1 / b) / (1 / a + 1 / b)) and cosine[2] < -0.4
    assert c.theory.cross[2] == pytest.approx(4 * 0.25 * 0.25 * r**2 / b)  # Δx0 and Δε are not independent here
    assert c.theory.residual == pytest.approx([0] * 4, abs=1e-6)


def test_what_the_schedule_alone_makes_of_each_space() -> None:
    """e = mean square of the final frames, c = mean product of neighbours; weights a, b of x0 and ε in each space."""
    final = run_of([H[:5]], [1.0], MOTION).final
    assert final is not None
    power = [1 + 0.25 * f**2 for f in range(5)]
    e, m0 = sum(power) / 5, 0.25
    c = sum((power[k] + power[k + 1]) / 2 - m0 / 2 for k in range(4)) / 4
    got = continuity.expectation("x_t", 0.75, final)
    size = 0.0625 * e + 0.5625
    mse = 0.0625 * m0 + 2 * 0.5625
    assert got == pytest.approx({"mse": mse, "cosine": 0.0625 * c / size, "normalised_l2": math.sqrt(mse / 2 / size)})
    assert continuity.expectation("eps_pred", 0.3, final) == pytest.approx({"mse": 2, "cosine": 0, "normalised_l2": 1})
    assert continuity.expectation("velocity", 0.3, final)["mse"] == pytest.approx(m0 + 2)
    assert continuity.expectation("x0_pred", 0.3, final)["cosine"] == pytest.approx(c / e)


# --- half the frames, and the expert switch --------------------------------------------------------------------------

SIGMAS = [1.0, 0.9, 0.8, 0.6, 0.3]
EXPERTS = ["high", "high", "low", "low", "low"]


def half() -> Continuity:
    """Frames 0, 2, 4 for two steps; then copies, which become independent again one step later."""
    first = [mixed(s, H[:5])[::2] for s in SIGMAS[:2]]
    copied = mixed(0.8, H[:5])
    copied[1::2] = copied[:4:2]
    return run_of(
        [*first, copied, *(mixed(s, H[:5]) for s in SIGMAS[3:])],
        SIGMAS,
        MOTION,
        EXPERTS,
        [2, 2, 1, 1, 1],
        method="half",
    )


def plain_run(**more: Any) -> Continuity:
    return run_of([mixed(s, H[:5]) for s in SIGMAS], SIGMAS, MOTION, EXPERTS, **more)


def test_half_the_frames_are_held_against_every_second_frame_of_the_result() -> None:
    c = half()
    assert c.evaluated.tolist() == [3, 3, 5, 5, 5] and c.stride.tolist() == [2, 2, 1, 1, 1]
    assert c.spaces["x_t"].mse.shape == (5, 4) and np.isfinite(c.spaces["x_t"].mse).sum(1).tolist() == [2, 2, 4, 4, 4]
    assert c.theory is not None
    assert c.theory.m0 == pytest.approx([1.0, 1.0, 0.25, 0.25, 0.25])  # two frames move twice as far
    assert c.theory.residual[[0, 1, 3, 4]] == pytest.approx([0] * 4, abs=1e-6)
    assert (c.switch, c.disturbed) == (2, 2)


def test_a_stride_that_does_not_fit_the_frames_is_not_believed() -> None:
    c = run_of([H[:5], H[:3], H[:5]], [1.0, 0.9, 0.8], MOTION, stride=[2**31, 2, 2])
    assert c.stride.tolist() == [1, 2, 1]


def test_noise_is_correlated_right_after_copying_and_then_back() -> None:
    c = half()
    assert c.theory is not None
    # Of four pairs two are copies: mse 0; the others move two frames on: .04·1 + 1.28.
    rho = 1 - ((0.04 * 1.0 + 1.28) / 2 - 0.04 * 0.25) / 1.28
    assert c.theory.rho == pytest.approx([0, 0, rho, 0, 0], abs=1e-6)
    assert continuity.noise_back_after(c) == 1
    assert continuity.noise_back_after(plain_run()) == 0
    said = " ".join(continuity.reading(group([c])[0]))
    assert (
        f"independent until step 2, then correlated: ρ is {rho:+.2f} at step 3, and none is left from step 4 on" in said
    )


def test_the_jump_across_the_switch_by_hand() -> None:
    c = plain_run()
    found = continuity.change_at_switch(c)["x_t"]["mse"]
    at = {s: (1 - s) ** 2 * 0.25 + 2 * s * s for s in SIGMAS}
    assert found["before"] == pytest.approx(at[0.9]) and found["after"] == pytest.approx(at[0.8])
    assert found["jump"] == pytest.approx(at[0.8] - at[0.9]) and found["expected_jump"] == pytest.approx(found["jump"])
    assert found["change_before"] == pytest.approx(at[0.9] - at[1.0])
    assert found["change_after"] == pytest.approx(at[0.6] - at[0.8])
    changed = continuity.change_at_switch(half())
    assert changed["x_t"]["mse"]["expected_jump"] == pytest.approx(0.04 * 0.25 + 1.28 - 0.01 * 1.0 - 1.62)
    assert math.isnan(changed["x_t"]["cosine"]["expected_jump"])  # the products of frames two apart are not kept


def test_without_a_switch_there_is_no_jump() -> None:
    c = run_of([H[:5]] * 2, [1.0, 0.5], MOTION)
    assert c.switch is None and continuity.change_at_switch(c) == {} and continuity.noise_back_after(c) is None


# --- recovery --------------------------------------------------------------------------------------------------------


def scaled(factor: float, **more: Any) -> Continuity:
    """A run whose curve is `factor` times 2σ², and whose final latent's is 2 · factor · .01."""
    root = math.sqrt(factor)
    return run_of([root * s * H[:5] for s in SIGMAS], SIGMAS, 0.1 * root * H[:5], EXPERTS, **more)


def curve_of(factors: list[float], **more: Any) -> Continuity:
    """Likewise, with a factor for each step and for the final latent."""
    roots = [math.sqrt(f) for f in factors]
    x_t = [r * s * H[:5] for r, s in zip(roots, SIGMAS, strict=False)]
    return run_of(x_t, SIGMAS, 0.1 * roots[-1] * H[:5], EXPERTS, **{"method": "half"} | more)


def test_recovery_against_three_seeds_of_the_prompt() -> None:
    """Baselines .9, 1, 1.1 times: mean 1, s = .1, t(.975, 2) = 4.30265: 1 ± 4.30265 · .1 · sqrt(4/3) = 1 ± .49683."""
    seeds = [scaled(f, seed=k) for k, f in enumerate((0.9, 1.0, 1.1))]
    found = continuity.recovery(curve_of([1, 1, 0.50, 0.52, 1, 1]), seeds)
    assert found is not None and (found.step, found.after, found.spread, found.n) == (2, 1, "seeds", 3)
    assert found.high[0] / 2 == pytest.approx(1.49683, abs=1e-5) and found.low[5] / 0.02 == pytest.approx(
        0.50317, abs=1e-5
    )
    for factors, after in (
        ([1] * 6, 0),
        ([1, 1, 1, 1, 0.4, 1], 3),
        ([1, 1, 1, 1, 1, 1.6], None),
        ([0.1, 0.1, 1, 1, 1, 1], 0),
    ):
        assert getattr(continuity.recovery(curve_of(factors), seeds), "after", -1) == after


def test_recovery_against_the_pairs_of_the_one_baseline() -> None:
    """Its pairs are 2 and 0 apart by turns: mean 1, deviation 1 (times σ²): within -1 to 3."""
    x = np.repeat(H[:3], 2, axis=0)[:5]
    own = run_of([s * x for s in SIGMAS], SIGMAS, 0.1 * x, EXPERTS)
    found = continuity.recovery(curve_of([1, 1, 1.6, 1.4, 1, 1]), [own])
    assert found is not None and (found.after, found.spread, found.n) == (1, "pairs", 4)
    assert found.low == pytest.approx([*(-(s**2) for s in SIGMAS), -0.01])
    assert continuity.recovery(curve_of([1] * 6, seed=5), [own]) is None  # another seed's noise is no measure


def test_recovery_across_prompts_needs_three_runs_of_the_same_settings() -> None:
    others = [scaled(f, prompt=f"p{k}") for k, f in enumerate((0.9, 1.0, 1.1))]
    found = continuity.recovery(curve_of([1] * 6), others)
    assert found is not None and found.spread == "runs"
    assert continuity.recovery(curve_of([1] * 6), others[:2]) is None
    assert continuity.recovery(curve_of([1] * 6, settings="other"), others) is None
    assert continuity.recovery(curve_of([1] * 6, method=BASELINE), others) is None


def test_recovery_counts_from_where_frames_were_completed() -> None:
    seeds = [scaled(f, seed=k) for k, f in enumerate((0.9, 1.0, 1.1))]
    found = continuity.recovery(curve_of([1, 0.1, 0.1, 1, 1, 1], lifted=1), seeds)
    assert found is not None and (found.step, found.after) == (1, 2)


def test_duplicated_pairs_are_held_against_the_same_pairs_from_below() -> None:
    """Frames 0 and 1, and 2 and 3, are a pair each. In the baselines both pairs are .9, 1 and 1.1 times σ² · 2 apart:
    below 1 - t(.95, 2) · .1 · √(4/3) = 1 - 2.91999 · .11547 = .66282 they are not yet frames of their own. The pairs
    between, twice as far apart as the baselines', do not matter, nor do duplicated ones that are further apart."""
    seeds = [scaled(f, seed=k) for k, f in enumerate((0.9, 1.0, 1.1))]

    def copied(*shares: float) -> Continuity:
        """Pairs (0, 1) and (2, 3) `shares` of the usual distance apart, by step and in the end."""
        frames = [np.stack([a, a + root * (b - a), c, c + root * (d - c), e]) for root in np.sqrt(shares)]
        x_t = [s * f for s, f in zip(SIGMAS, frames, strict=False)]
        return run_of(x_t, SIGMAS, 0.1 * frames[-1], EXPERTS, method="half", duplicated=0)

    a, b, c, d, e = H[:5]
    found = continuity.recovery(copied(1, 1, 0, 0.66, 0.67, 1), seeds)
    assert found is not None and (found.pairs, found.after) == ("duplicated", 2)
    assert found.low[0] / 2 == pytest.approx(0.66282, abs=1e-5) and found.high[0] == math.inf
    assert getattr(continuity.recovery(copied(1, 1, 1, 1, 1, 4), seeds), "after", -1) == 0
    assert getattr(continuity.recovery(copied(1, 1, 1, 1, 1, 0.5), seeds), "after", -1) is None


def test_a_baseline_is_one_whatever_it_is_called() -> None:
    """One run of other settings among the runs renames all: their policies still say which are baselines."""
    seeds = [scaled(f, seed=k, method="baseline+steps=5", policies=BASELINE) for k, f in enumerate((0.9, 1.0, 1.1))]
    found = continuity.recovery(curve_of([1] * 6, method="half+steps=5", policies="half"), seeds)
    assert found is not None and found.spread == "seeds"
    assert continuity.recovery(seeds[0], seeds[1:]) is None


# --- run files -------------------------------------------------------------------------------------------------------

FIELDS = [
    Field("timestep", (), "float64"),
    Field("sigma", (), "float64"),
    Field("expert", (), "S6"),
    Field("frame_stride", (), "int32"),
    *(Field(n, DIMS) for n in (*continuity.SPACES, "velocity_other_expert")),
]


def block(rows: Any) -> np.ndarray:
    return np.stack(frames(rows), axis=1).astype(np.float32)


def write(
    path: Path, level: str = "all", every: int = 1, other: bool = False, sigmas: list[float] = SIGMAS, **spec: Any
) -> Path:
    """A run with the noise H[:5] and the signal MOTION throughout; half the frames in the first two steps if `half`."""
    made = RunSpec(
        **{
            "prompt": "a ball",
            "width": 32,
            "height": 32,
            "frames": 17,
            "steps": len(sigmas),
            "record": RecordSpec(level=level),
        }
        | spec
    )
    halved = any(p.name == "half" for p in made.policies)
    with RunWriter(path, spec_json=made.to_json(), digest=made.digest(), fields=FIELDS) as run:
        for k, sigma in enumerate(sigmas):
            stride = 2 if halved and k < 2 else 1
            expert = "high" if k < 2 else "low"
            values: dict[str, Any] = {
                "timestep": 1000 * sigma,
                "sigma": sigma,
                "expert": expert,
                "frame_stride": stride,
            }
            x0, eps = MOTION[::stride], H[:5][::stride]
            if level != "metrics" and k % every == 0:
                values["x_t"] = block((1 - sigma) * x0 + sigma * eps)
            if level == "all" and k % every == 0:
                values |= {"x0_pred": block(x0), "eps_pred": block(eps), "velocity": block(eps - x0)}
                if other and k in (1, 2):
                    values["velocity_other_expert"] = block(eps - x0 + H[50])
            run.step(k, values)
        video = np.zeros((17, 2, 2, 3), np.uint8)
        video[1::2] = 51  # every pair .2 apart
        run.finish(
            {Field("latent", DIMS): block(MOTION), Field("video", ("frame", "height", "width", "rgb"), "uint8"): video}
        )
    return path


def test_a_run_file_by_hand(tmp_path: Path) -> None:
    with Run(write(tmp_path / "run.h5")) as run:
        c = analyse(run)
    assert (c.method, c.frames, c.steps, c.switch, c.prompt) == (BASELINE, 17, 5, 2, "a ball")
    assert c.spaces["eps_pred"].mean("mse") == pytest.approx([2] * 5, rel=1e-6)
    assert c.spaces["velocity"].mean("mse") == pytest.approx([2.25] * 5, rel=1e-6)
    assert c.theory is not None and c.theory.residual == pytest.approx([0] * 5, abs=1e-6)
    assert c.video is not None and c.video.mean("mse") == pytest.approx([0.04], rel=1e-6)
    assert c.final is not None and c.final.mean("mse") == pytest.approx([0.25], rel=1e-6)


def test_a_half_frame_run_file(tmp_path: Path) -> None:
    policies = (PolicySpec("half"),)
    with Run(write(tmp_path / "run.h5", policies=policies)) as run:
        c = analyse(run)
    assert c.method == "half" and c.evaluated.tolist() == [3, 3, 5, 5, 5]
    assert c.theory is not None and c.theory.m0 == pytest.approx([1, 1, 0.25, 0.25, 0.25])
    with Run(write(tmp_path / "late.h5", policies=(PolicySpec("paired", {"switch": 3}),))) as run:
        assert analyse(run).disturbed == 3


def test_what_was_not_recorded_is_a_gap(tmp_path: Path) -> None:
    with Run(write(tmp_path / "run.h5", level="latents", every=2)) as run:
        c = analyse(run)
    assert set(c.spaces) == {"x_t"} and np.isfinite(c.spaces["x_t"].mean("mse")).tolist() == [True, False] * 2 + [True]
    assert c.theory is not None and np.isnan(c.theory.cross).all() and np.isnan(c.theory.rho[1])
    assert continuity.reading(group([c])[0])  # says what it can
    with Run(write(tmp_path / "none.h5", level="metrics")) as run, pytest.raises(WanlabError, match="--record latents"):
        analyse(run)


def test_what_the_other_expert_says(tmp_path: Path) -> None:
    """w = v + h with h orthogonal to v and of mean square 1: cosine |v|/|w|, and 1/|v| away. Adding the same h to every
    frame moves none of them against another."""
    with Run(write(tmp_path / "run.h5", other=True)) as run:
        c = analyse(run)
    power = 1 + np.mean([1 + 0.25 * f**2 for f in range(5)])  # of v = ε - x0
    assert [(o.step, o.used, o.other) for o in c.experts] == [(1, "high", "low"), (2, "low", "high")]
    assert c.experts[0].cosine == pytest.approx(math.sqrt(power / (power + 1)), rel=1e-6)
    assert c.experts[0].difference == pytest.approx(1 / math.sqrt(power), rel=1e-6)
    assert c.experts[1].spaces["x0_pred"].mean("mse") == pytest.approx([0.25], rel=1e-5)
    assert c.experts[1].spaces["velocity"].mean("mse") == pytest.approx([2.25], rel=1e-5)


def test_a_file_is_read_once_and_a_frame_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, tuple[int, ...]]] = []
    plain = runfile.Data.__getitem__

    def counted(data: runfile.Data, key: Any) -> Any:
        value = plain(data, key)
        read.append((data.name, value.shape))
        return value

    path = write(tmp_path / "run.h5")
    monkeypatch.setattr(runfile.Data, "__getitem__", counted)
    with Run(path) as run:
        analyse(run)
    for name in continuity.SPACES:
        assert [s for n, s in read if n == name] == [SHAPE] * 25  # 5 frames of 5 steps
    assert [s for n, s in read if n == "video"] == [(2, 2, 3)] * 17


def test_memory_does_not_grow_with_steps() -> None:
    def steps(count: int) -> Iterator[Step]:
        rng = np.random.default_rng(0)
        for k in range(count):
            made = (rng.standard_normal((16, 40, 40)) for _ in range(5))
            yield Step(timestep=1.0, sigma=1 - k / count, values=25600, spaces={"x_t": made})

    def peak(count: int) -> int:
        tracemalloc.start()
        measure(steps(count), None, about())
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(2)
    frame = 16 * 40 * 40 * 8
    assert peak(60) < peak(4) + frame < 8 * frame


# --- what is said and written ----------------------------------------------------------------------------------------


def test_labels_say_what_differs() -> None:
    base = RunSpec(prompt="a ball")
    half_run = RunSpec(prompt="a ball", policies=(PolicySpec("half"), PolicySpec("cfg", {"last": 5})))
    assert continuity.labels([base, half_run]) == ["baseline", "half+cfg:last=5"]
    guided = RunSpec(prompt="a cube", seed=3, guidance=(3.0, 4.0))
    assert continuity.labels([base, guided]) == ["baseline+guidance=4", "baseline+guidance=3,4"]
    assert continuity.settings_of(base) == continuity.settings_of(half_run) != continuity.settings_of(guided)


def test_groups_are_of_one_method_length_and_schedule() -> None:
    runs = [plain_run(seed=0), half(), plain_run(seed=1), plain_run(frames=33)]
    groups = group(runs)
    assert [(g.method, g.frames, len(g.runs)) for g in groups] == [
        ("baseline", 17, 2),
        ("baseline", 33, 1),
        ("half", 17, 1),
    ]
    assert continuity.names(groups) == ["baseline, 17 frames", "baseline, 33 frames", "half, 17 frames"]
    assert continuity.names([groups[0], groups[2]]) == ["baseline", "half"]
    assert groups[2].recoveries[0] is not None and groups[2].recoveries[0].spread == "pairs"


def test_the_statistics_are_json_without_nan_and_count_steps_from_1(tmp_path: Path) -> None:
    with Run(write(tmp_path / "run.h5", other=True)) as run:
        runs = [analyse(run), half()]
    whole = continuity.statistics(group(runs), "1.0")
    again = json.loads(json.dumps(whole, allow_nan=False))
    assert again["format"] == "wanlab-continuity/1"
    first, second = again["runs"]
    assert first["step"] == [1, 2, 3, 4, 5] and first["switch"]["last_high_noise_step"] == 2
    assert first["switch"]["first_low_noise_step"] == 3 and [o["step"] for o in first["switch"]["other_expert"]] == [
        2,
        3,
    ]
    assert first["spaces"]["x_t"]["mse"]["mean"][0] == pytest.approx(2.0)
    assert len(first["spaces"]["x_t"]["mse"]["pairs"][0]) == 4
    assert second["frame_stride"] == [2, 2, 1, 1, 1] and [len(p) for p in second["spaces"]["x_t"]["mse"]["pairs"]] == [
        2,
        2,
        4,
        4,
        4,
    ]
    assert second["theory"]["parts"]["cross"] == [None] * 5 and second["video"] is None
    assert second["theory"]["independent_again_after"] == 1 and second["recovery"] is None  # settings differ
    assert again["groups"][0]["video"]["mse"]["mean"] == pytest.approx(0.04)


def test_readings_claim_only_what_is_there() -> None:
    bare = run_of([H[:5]] * 2, [1.0, 0.5])  # no final latent, no switch
    said = continuity.reading(group([bare])[0])
    assert said == ["Neighbouring latent frames of x_t differ by 2.00 (mse) at step 1 and by 2.00 at step 2."]
    said = " ".join(continuity.reading(group([plain_run()])[0]))
    assert "at the expert switch 99.2% of that difference is noise" in said  # 2 x .64 of .04 x .25 + 2 x .64
    assert "independent at the 4 of 5 steps that can tell" not in said and "independent at every step" in said
    assert re.search(r"of x_t by -0\.33\d \(the schedule alone: -0\.33\d\)", said)


def test_figures_are_written_whatever_the_text(tmp_path: Path) -> None:
    from wanlab.analysis.figures import continuity as figures

    hostile = "$\\frac{ [b] \x00 " + "x" * 300
    groups = group([plain_run(method=hostile), half(), plain_run(frames=33), run_of([H[:5]] * 2, [1.0, 0.5])])
    for k, draw in enumerate(
        (
            figures.analysis_figure,
            figures.spaces_figure,
            figures.theory_figure,
            figures.heatmap_figure,
            figures.frames_figure,
        )
    ):
        path = draw(groups if k < 4 else groups[:3], tmp_path / f"{k}.png", hostile)
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 10_000


def test_a_pair_of_frames_two_apart_is_two_wide() -> None:
    from wanlab.analysis.figures.continuity import _image

    image = _image(group([half()])[0], "x_t")
    assert image.shape == (5, 4) and np.isfinite(image).all()
    assert image[0, 0] == image[0, 1] and image[2, 0] == 0 and image[2, 1] > 1
