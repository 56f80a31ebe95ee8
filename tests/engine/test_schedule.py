"""Schedules, against numbers worked out by hand."""

import numpy as np
import pytest
import torch

from wanlab.engine.solvers import Solver, default_shift, official_schedule, step_contexts
from wanlab.errors import UsageError

CPU = torch.device("cpu")


def contexts(solver="unipc", schedule="diffusers", steps=20, shift=12.0, boundary=0.875):
    return step_contexts(Solver(solver, schedule, steps, shift, {"num_train_timesteps": 1000}, CPU), boundary)


def shifted(u, shift=12.0):
    return shift * u / (1 + (shift - 1) * u)


@pytest.mark.parametrize(
    ("solver", "schedule", "even"),
    [
        # diffusers: even steps from 1 towards 0.001 (UniPC's very first is 1e-6 lower), or 0.999 towards 0
        ("unipc", "diffusers", lambda k: 1 - k * 0.999 / 20),
        # the official repository: UniPC from 0.999, DPM++ from 1, both towards 0
        ("unipc", "wan", lambda k: 0.999 * (1 - k / 20)),
        ("dpm++", "wan", lambda k: 1 - k / 20),
    ],
)
def test_twenty_steps_at_shift_12(solver, schedule, even):
    steps = contexts(solver, schedule)
    for k, step in enumerate(steps):
        assert step.sigma == pytest.approx(shifted(even(k)), abs=2e-6)
        assert step.sigma_next == pytest.approx(shifted(even(k + 1)) if k < 19 else 0, abs=2e-6)
        assert step.timestep == int(step.timestep) and abs(step.timestep - 1000 * step.sigma) <= 1
    assert [s.expert for s in steps] == ["high"] * 13 + ["low"] * 7


def test_end_points_differ():
    ends = {
        (solver, schedule): (contexts(solver, schedule)[0].sigma, contexts(solver, schedule)[-1].sigma)
        for solver, schedule in [("unipc", "diffusers"), ("unipc", "wan"), ("dpm++", "wan")]
    }
    # 12 * .05095 / (1 + 11 * .05095); 12 * .999 / (1 + 11 * .999); 12 * .04995 / …; 12 * .05 / (1 + 11 * .05)
    assert ends["unipc", "diffusers"] == pytest.approx((0.999999, 0.391810), abs=1e-6)
    assert ends["unipc", "wan"] == pytest.approx((0.999917, 0.386847), abs=1e-6)
    assert ends["dpm++", "wan"] == pytest.approx((1.0, 0.387097), abs=1e-6)


def test_official_schedule_as_the_official_code_prints_it():
    """8 steps at shift 12, printed by the official repository's own schedulers."""
    sigmas, timesteps = official_schedule("unipc", 8, 12.0)
    assert timesteps.tolist() == [999, 988, 972, 952, 922, 877, 799, 631]
    assert sigmas.tolist() == [
        0.9999166131019592,
        0.988142192363739,
        0.9728676676750183,
        0.95225989818573,
        0.9229347705841064,
        0.8778772950172424,
        0.7997865080833435,
        0.6313128471374512,
        0.0,
    ]
    sigmas, timesteps = official_schedule("dpm++", 8, 12.0)
    assert timesteps.tolist() == [1000, 988, 972, 952, 923, 878, 800, 631]
    assert sigmas.tolist() == [
        1.0,
        0.9882352948188782,
        0.9729729890823364,
        0.9523809552192688,
        0.9230769276618958,
        0.8780487775802612,
        0.800000011920929,
        0.6315789222717285,
        0.0,
    ]


def test_official_timesteps_are_cut_not_rounded():
    # k = 12: 1000 * 12 * .4 / (1 + 11 * .4) = 888.89 for DPM++; with .3996, 888.72 for UniPC
    assert official_schedule("dpm++", 20, 12.0)[1][12] == 888
    assert official_schedule("unipc", 20, 12.0)[1][[0, 12]].tolist() == [999, 888]
    assert official_schedule("dpm++", 20, 12.0)[1][0] == 1000
    sigmas, timesteps = official_schedule("unipc", 40, 12.0)
    assert (sigmas.dtype, timesteps.dtype, len(sigmas), len(timesteps)) == (np.float32, np.int64, 41, 40)
    with pytest.raises(UsageError):
        official_schedule("euler", 20, 12.0)


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_official_schedule_reaches_x0(solver):
    """With the exact velocity of a point, every solver lands on the point, from sigma 1 on too (DPM++'s lambda is
    infinite there)."""
    run = Solver(solver, "wan", 8, 5.0, {"num_train_timesteps": 1000}, CPU)
    steps = step_contexts(run, None)
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn((2, 1, 3, 2, 2, 2), generator=generator)
    x = (1 - steps[0].sigma) * x0 + steps[0].sigma * eps
    for step in steps:
        x = run.step(eps - x0, step, x)
    assert torch.allclose(x, x0, atol=1e-5)


def test_restart_is_a_first_order_step():
    """After a restart the step is Euler's, x + (sigma' - sigma) v, for both multistep solvers."""
    for name in ("unipc", "dpm++"):
        run = Solver(name, "diffusers", 6, 3.0, {"num_train_timesteps": 1000}, CPU)
        steps = step_contexts(run, None)
        generator = torch.Generator().manual_seed(1)
        x, *velocities = torch.randn((5, 1, 2, 3, 2, 2), generator=generator)
        for step, velocity in zip(steps[:3], velocities, strict=False):
            x = run.step(velocity, step, x)
        run.restart(3)
        longer = torch.randn((1, 2, 5, 2, 2), generator=generator)
        velocity = torch.randn((1, 2, 5, 2, 2), generator=generator)
        euler = longer + (steps[3].sigma_next - steps[3].sigma) * velocity
        assert torch.allclose(run.step(velocity, steps[3], longer), euler, atol=1e-6)


def test_one_expert_has_no_boundary():
    assert {s.expert for s in contexts(boundary=None)} == {"single"}


def test_default_shift():
    assert (
        default_shift({"flow_shift": 3.0}) == 3.0 and default_shift({"shift": 5.0}) == 5.0 and default_shift({}) == 1.0
    )


def test_unknown_solver():
    with pytest.raises(UsageError, match="did you mean unipc"):
        Solver("unipcc", "diffusers", 2, 1.0, {}, CPU)
