"""Guidance rules: which steps evaluate both branches, what an estimated branch is, and why; by hand-derived numbers.

At shift 12 of 20 steps 13 are high-noise; sigma of step k is 12u / (1 + 11u), u = 1 - .04995 k.
"""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wanlab.engine import policies, run
from wanlab.engine.loop import denoise
from wanlab.engine.policies.guidance import weigh_bands
from wanlab.engine.run.resume import pack, restore, save, unpack
from wanlab.errors import UsageError
from wanlab.runfile import Run
from wanlab.spec import PolicySpec

from .helpers import Toy, make_spec, passes, sample, toy, toy_env

SKIP = f"{Path(__file__).parents[2] / 'examples' / 'skip_every_other.py'}:skip_every_other"
NEUTRAL = ["interval", "adaptive:threshold=1.0", "cfgcache:every=1"]


def aligned(share_of):
    """c = 1 everywhere, u = 1 in m of the 20 values and 0 in the others: cos(c, u) = m / sqrt(20 m) = sqrt(m / 20)."""

    def velocities(call):
        c = torch.ones_like(call.x)
        u = torch.zeros_like(call.x)
        u.view(-1)[: share_of(call.ctx.index)] = 1.0
        return torch.cat([{"cond": c, "uncond": u}[b] for b in call.branches])

    return velocities


def both(records):
    return [r.ctx.index for r in records if r.ran.passes == 2]


@pytest.mark.parametrize("policy", NEUTRAL)
@pytest.mark.parametrize("guider", ["cfg", "cfgzero"])
def test_a_rule_that_never_acts_is_the_plain_run_bit_for_bit(model, checkpoint, policy, guider):
    plain = sample(model, make_spec(checkpoint, steps=8, guider=guider))
    ruled = sample(model, make_spec(checkpoint, steps=8, guider=guider, policies=[policy]))
    assert all(torch.equal(a.x_next, b.x_next) for a, b in zip(plain, ruled, strict=True))
    assert passes(ruled) == 16


@pytest.mark.parametrize("policy", ["interval:low=0.9", "adaptive:threshold=-1.0", "cfgcache"])
def test_one_branch_stays_one_branch(policy):
    assert all(set(r.predictions) == {"cond"} for r in toy([policy], aligned(lambda k: 20), guidance=1.0))
    assert all(set(r.predictions) == {"uncond"} for r in toy([policy], aligned(lambda k: 20), guidance=0.0))


@pytest.mark.parametrize("policy", ["interval:start=0.3,high=0.9", "adaptive:threshold=0.9", "cfgcache:every=3"])
def test_resumed_after_any_step_it_is_the_same_run(policy):
    """At each of 19 steps everything is made anew but for what is saved, as bytes and JSON."""

    def velocities(call):
        c = call.x + call.ctx.sigma
        u = torch.where(torch.arange(20).view(1, 1, 5, 2, 2) < 12 + call.ctx.index % 7, c, 0.1 * c)
        return torch.cat([{"cond": c, "uncond": u}[b] for b in call.branches])

    def begin():
        env, solver = toy_env()
        return env, solver, policies.begin([PolicySpec.parse(policy)], env)

    env, solver, sessions = begin()
    x = torch.randn((1, 1, 5, 2, 2), generator=torch.Generator().manual_seed(0))
    whole, states = [], []
    for record in denoise(x, env, solver, Toy(velocities), sessions):
        whole.append(record)
        states.append(json.loads(json.dumps(pack(save(solver, sessions, [])), default=lambda a: a.tolist())))
    assert 0 < sum(r.ran.passes == 1 for r in whole) < 20
    for k in range(1, 20):
        env, solver, sessions = begin()
        restored = unpack({n: np.uint8(v) if isinstance(v, list) else v for n, v in states[k - 1].items()}, x.device)
        restore(restored, solver, sessions, [])
        again = list(
            denoise(whole[k].x_t, env, solver, Toy(velocities), sessions, start=k, x0_pred=whole[k - 1].x0_pred)
        )
        for a, b in zip(whole[k:], again, strict=True):
            assert torch.equal(a.x_next, b.x_next) and a.ran.passes == b.ran.passes, (k, a.ctx.index)
            assert {n: v.tolist() for n, v in a.notes.items()} == pytest.approx(
                {n: v.tolist() for n, v in b.notes.items()}, nan_ok=True
            )


# --- interval --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "guided"),
    [
        # sigma <= .9 is u <= 3/7, from step 12 on (11.4); sigma > .5 is u > 1/13, up to step 18 (18.5).
        ("low=0.5,high=0.9", range(12, 19)),
        ("start=0.25,stop=0.75", range(5, 15)),
        ("start=0.29,stop=0.31", range(5, 6)),  # int(5.8) to int(6.2)
        ("high=0.9,stop=0.75", range(12, 15)),
        ("stop=0.0", range(0)),
    ],
)
def test_guided_steps_of_an_interval(checkpoint, model, knobs, guided):
    spec = make_spec(checkpoint, policies=[f"interval:{knobs}"])
    records = sample(model, spec)
    assert both(records) == list(guided)
    assert all(torch.equal(r.velocity, r.predictions["cond"]) for r in records if r.ctx.index not in guided)
    planned = run.plan(spec)
    assert planned.exact and planned.passes == passes(records) == 20 + len(guided)


def test_the_lower_end_is_outside_and_the_upper_one_inside():
    """Published: (low, high]."""
    env, _ = toy_env()
    at = env.steps[7].sigma
    for knobs, guided in (({"high": at}, range(7, 20)), ({"low": at}, range(7))):
        (session,) = policies.begin([PolicySpec("interval", knobs)], env)
        plan = toy([], aligned(lambda k: 20))[0].plan
        assert [s.index for s in env.steps if len(session.plan(plan, s).branches) == 2] == list(guided)


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("interval:low=0.9,high=0.5", "interval:low=0.9,high=0.5; use 0 <= low <= high <= 1"),
        ("interval:start=-0.1", "interval:start=-0.1,stop=1; use 0 <= start <= stop <= 1"),
        ("adaptive:threshold=1.01", "adaptive:threshold=1.01; use -1 to 1, the range of a cosine"),
        ("cfgcache:every=0", "cfgcache:every=0; use 1 or more"),
    ],
)
def test_what_no_rule_can_be_is_refused(checkpoint, policy, says):
    with pytest.raises(UsageError) as error:
        run.plan(make_spec(checkpoint, policies=[policy]))
    assert str(error.value) == says


# --- adaptive --------------------------------------------------------------------------------------------------------


def test_guidance_stops_after_the_step_that_shows_it_and_in_each_expert_anew():
    """17 of 20 values is a cosine of .922, 16 of .894. At .9 step 4 is the last guided one of the high-noise expert and
    step 15 that of the other, though step 14 would not have stopped either: 5 + 3 steps of two passes, 12 of one."""
    records = toy(["adaptive:threshold=0.9"], aligned(lambda k: 17 if k in (4, 15, 16) else 16))
    assert both(records) == [0, 1, 2, 3, 4, 13, 14, 15]
    assert passes(records) == 8 * 2 + 12
    gamma = [float(r.notes["0/gamma"]) for r in records]
    assert gamma[:5] == pytest.approx([math.sqrt(0.8)] * 4 + [math.sqrt(0.85)])
    assert all(math.isnan(g) for g in gamma[5:13] + gamma[16:])
    assert [int(r.notes["0/stop"]) for r in records] == [-1] * 4 + [4] * 9 + [-1] * 2 + [15] * 5
    assert all(torch.equal(r.velocity, r.predictions["cond"]) for r in records if r.ran.passes == 1)


def test_at_the_threshold_guidance_goes_on():
    """Equal branches have a cosine of 1, whatever rounding makes of it, and it does not exceed 1."""
    assert passes(toy(["adaptive:threshold=1.0"], aligned(lambda k: 20))) == 40
    assert passes(toy(["adaptive:threshold=0.999"], aligned(lambda k: 20))) == 2 * 2 + 18


def test_a_reused_branch_says_nothing_of_guidance(checkpoint, model):
    """A value of an earlier step is no evidence: gamma is of steps that evaluated both branches."""
    skip = f"{SKIP}:every=2"
    records = sample(model, make_spec(checkpoint, steps=8, policies=[skip, "adaptive:threshold=1.0"]))
    known = [r.ctx.index for r in records if math.isfinite(float(r.notes["1/gamma"]))]
    assert known == [r.ctx.index for r in records if set(r.predictions) == {"cond", "uncond"}] == [0, 2, 4, 6]


def test_the_forecast_of_what_is_decided_while_running(tmp_path, loaded, checkpoint):
    """At the least both branches of each expert's first step and one of the other 18."""
    spec = make_spec(checkpoint, policies=["adaptive:threshold=0.5"])
    planned = run.plan(spec)
    assert planned.passes_bounds == (2 * 2 + 18, 40) and not planned.exact
    assert planned.flops_bounds == pytest.approx((22 / 40 * planned.plain_flops, planned.plain_flops))
    with Run(run.execute(spec, tmp_path / "a.h5", loaded=loaded)) as file:
        assert planned.flops_bounds[0] <= file["operations"][...].sum() <= planned.flops_bounds[1]
        evaluated = np.asarray(file["status_uncond"]) == "fresh"
        assert file["passes"][...].tolist() == (1 + evaluated).tolist()
        gamma, cosine = file["adaptive_gamma"][...], file["cosine"][...]
        assert np.array_equal(np.isfinite(gamma), evaluated) and gamma == pytest.approx(cosine, nan_ok=True)
        stop = file["adaptive_stop"][...]
        assert all((gamma[: s + 1] > 0.5).any() for s in stop if s >= 0)


# --- cfgcache --------------------------------------------------------------------------------------------------------


def checkered(call):
    """c = (k+1) and u = 0 times a checkerboard: of 2 x 2 values the highest frequency there is."""
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).expand_as(call.x)
    return torch.cat([board * (call.ctx.index + 1.0) * (b == "cond") for b in call.branches])


def level(call):
    """c = (k+1), u = 0: the lowest frequency."""
    return torch.cat([torch.full_like(call.x, (call.ctx.index + 1.0) * (b == "cond")) for b in call.branches])


@pytest.mark.parametrize(
    ("steps", "every", "estimated"),
    [
        (20, 5, [14, 15, 17, 18]),  # int(20/3) = 6: 11 and 16 are full, and 13, the expert's first, and 19, the last
        (40, 5, [27, *range(29, 33), *range(34, 38)]),  # from 13 in fives: 28, 33 and 38; 26 is the expert's first
        (20, 2, [15, 17]),
        (20, 100, range(14, 19)),
    ],
)
def test_estimated_steps(steps, every, estimated):
    records = toy([f"cfgcache:every={every}"], level, steps=steps, solver="unipc")
    assert [r.ctx.index for r in records if r.ran.passes == 1] == list(estimated)
    assert passes(records) == 2 * steps - len(estimated)


def test_of_720_rows_the_last_tenth_is_full():
    """90 latent rows: until int(.9 x 40) = 36."""
    env, _ = toy_env(steps=40, solver="unipc")
    env = dataclasses.replace(env, shape=(1, 5, 90, 2))
    (session,) = policies.begin([PolicySpec("cfgcache")], env)
    plan = toy([], level)[0].plan
    alone = [s.index for s in env.steps if session.plan(plan, s).branches == ("cond",)]
    assert alone == [27, 29, 30, 31, 32, 34, 35]


@pytest.mark.parametrize(("velocities", "weight"), [(checkered, 1.2), (level, 1.0)])
def test_an_estimated_branch_by_hand(velocities, weight):
    """c = k+1 and u = c - w (j+1), j the last full step: u + 4 (c - u) = (k+1) + 3 w (j+1)."""
    records = toy(["cfgcache"], velocities)
    pattern = records[0].predictions["cond"]  # k + 1 = 1
    for k, full in ((14, 13), (15, 13), (17, 16), (18, 16)):
        expected = pattern * ((k + 1) + 3 * weight * (full + 1))
        assert torch.allclose(records[k].velocity, expected, rtol=1e-6), k
        assert records[k].status("uncond") == "skipped" and records[k].plan.guide.name == "cfgcache"


def test_in_the_first_half_of_one_expert_the_low_band_weighs_more():
    """10 steps: full at 0 to 3 (int(10/3) = 3), 8 and 9; the low band weighs 1.2 before step 5 and 1 after."""
    env, solver = toy_env(steps=10)
    env = dataclasses.replace(
        env,
        steps=tuple(dataclasses.replace(s, expert="single") for s in env.steps),
        guidance={"single": 4.0},
        costs={"single": env.costs["low"]},
    )
    sessions = policies.begin([PolicySpec("cfgcache")], env)
    records = list(denoise(torch.zeros(1, 1, 5, 2, 2), env, solver, Toy(level), sessions))
    assert [r.ctx.index for r in records if r.ran.passes == 1] == [4, 5, 6, 7]
    assert records[4].velocity.unique().item() == pytest.approx(5 + 3 * 1.2 * 4)
    assert records[5].velocity.unique().item() == pytest.approx(6 + 3 * 1.0 * 4)


def test_an_estimated_branch_goes_through_the_runs_own_guider():
    """CFG-Zero* of step 14: c = 15 and u = c - 14 = 1 give s* = 15 and s* u + 4 (c - s* u) = 15; plain guidance 57."""
    assert toy(["cfgcache"], level)[14].velocity.unique().item() == pytest.approx(1 + 4 * 14)
    assert toy(["cfgcache"], level, guider="cfgzero")[14].velocity.unique().item() == pytest.approx(15)


def test_without_a_weight_it_is_the_last_difference_again():
    """alpha = 0: u = c + (u - c of step 13), which is what cfg:keep=reuse computes of its last five steps."""
    ours = toy(["cfgcache:every=100,alpha=0.0"], checkered)
    known = toy(["cfg:last=6,keep=reuse"], checkered)
    for k in range(14, 19):
        assert torch.allclose(ours[k].velocity, known[k].velocity, rtol=1e-6), k


@given(st.integers(1, 12), st.integers(1, 12), st.floats(-2, 2, allow_nan=False), st.integers(0, 2**31 - 1))
def test_bands_of_equal_weight_are_the_whole(height, width, weight, seed):
    x = torch.randn((1, 2, height, width), generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(weigh_bands(x, weight, weight), weight * x, atol=1e-5)


@pytest.mark.parametrize(("cycles", "weight"), [(0, 3.0), (2, 3.0), (3, 3.0), (4, 5.0), (8, 5.0)])
def test_the_low_band_reaches_a_fifth_of_the_image(cycles, weight):
    """16 x 16 values: min(16, 16) // 5 = 3 cycles along either axis."""
    wave = torch.cos(2 * math.pi * cycles * torch.arange(16) / 16)
    for x in (wave.expand(1, 1, 16, 16), wave[:, None].expand(1, 1, 16, 16)):
        assert torch.allclose(weigh_bands(x, 3.0, 5.0), weight * x, atol=1e-4)
