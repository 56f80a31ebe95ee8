"""Step caches: which steps they leave out, what stands in for them, and that nothing is lost, crossed or miscounted."""

from __future__ import annotations

import dataclasses
import json
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wanlab.engine import policies, run
from wanlab.engine.loop import denoise
from wanlab.engine.model import loading
from wanlab.engine.model.time import time_embeddings
from wanlab.engine.model.transformer import Denoiser
from wanlab.engine.policies import magcache, seacache, steps, teacache
from wanlab.engine.run.forecast import make_env
from wanlab.engine.run.resume import pack, restore, save, unpack
from wanlab.engine.solvers import Solver
from wanlab.engine.types import Call, StepContext
from wanlab.errors import UsageError
from wanlab.runfile import Run

from .helpers import make_spec, sample, toy, toy_env

A14B = "wan2.2-t2v-a14b"
PLAN = (0, 1, 2, 5, 9, 13, 14, 15, 18)
# 20 steps of shift 12, 13 of them high-noise. Thresholds at which the small checkpoint has steps of both kinds.
MIXED = [
    "steps:skip=2/4-6/14",
    "steps:keep=9",
    "steps:keep=9,choose=random,reuse=linear,seed=3",
    "steps:keep=9,reuse=residual",
    "steps:keep=9,first=4",
    "teacache:threshold=0.3,calibration=FILE",
    f"magcache:threshold=0.12,consecutive=4,calibration={A14B}",
    "easycache:first=2,threshold=0.3",
    "sencache:start=0.1,threshold=0.3",
    "firstblock:threshold=0.0015",
    "seacache:threshold=0.4",
    "taylorseer:interval=3,order=2",
    "dpcache:keep=9,calibration=FILE",
]
NEVER = [
    "steps:keep=20",
    "teacache:threshold=0,calibration=FILE",
    f"magcache:threshold=0,calibration={A14B}",
    "easycache:first=2,threshold=0",
    "sencache:start=0.1,threshold=0",
    "firstblock:threshold=0",
    "seacache:threshold=0",
    "taylorseer:interval=1",
    "dpcache:keep=20,calibration=FILE",
]
KNOWN = {"steps", "teacache", "magcache", "taylorseer", "dpcache"}


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A calibration of the small checkpoint's schedule, of made-up figures."""
    path = tmp_path_factory.mktemp("calibration") / "c.json"
    fit = {"coefficients": [0.5, 0.0], "r2": 0.5, "pairs": 19, "threshold": 0.1}
    sensitivity = {"x": 1.0, "t": 2.0}
    plain = {
        "format": 1,
        "model": {"name": "small", "fingerprint": None},
        "schedule": {"solver": "unipc", "steps": 20, "shift": 12.0, "switch": 13},
        "size": None,
        "source": "made up",
        "teacache": {"high": fit, "low": fit},
        "sensitivity": {"high": sensitivity, "low": sensitivity},
        "plans": {"9": PLAN, "20": list(range(20))},
    }
    path.write_text(json.dumps(plain))
    return str(path)


def spec_of(checkpoint, policy, calibrated="", **changes):
    texts = [policy] if isinstance(policy, str) else policy
    return make_spec(checkpoint, policies=[t.replace("FILE", calibrated) for t in texts], **changes)


def skipped(records):
    """Steps of which nothing, or not all, of the network ran."""
    return [r.ctx.index for r in records if r.reused]


# --- bit for bit -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(model, checkpoint):
    """The latents after each step with no policy, batched or not."""
    return {b: [r.x_next for r in sample(model, make_spec(checkpoint), batched=b)] for b in (False, True)}


@pytest.mark.parametrize(("policy", "batched"), [*((p, False) for p in NEVER), *((p, True) for p in NEVER[3:7])])
def test_a_cache_that_never_skips_is_the_plain_run_bit_for_bit(model, checkpoint, calibrated, plain, policy, batched):
    records = sample(model, spec_of(checkpoint, policy, calibrated), batched=batched)
    assert all(torch.equal(a, b.x_next) for a, b in zip(plain[batched], records, strict=True))
    assert all(r.status("cond") == r.status("uncond") == "fresh" for r in records)


class Resumable:
    """A run of the small checkpoint that goes on from what was saved after any step."""

    def __init__(self, model, spec, *, batched=False):
        self.model, self.spec, self.batched = model, run.resolve(spec, model.checkpoint), batched
        embeds = {"cond": model.encode(spec.prompt), "uncond": model.encode(spec.negative_prompt)}
        self.network = Denoiser(model, embeds)

    def go(self, left=None):
        """Each step's record and saved state, with all that a process holds made anew."""
        spec, checkpoint, device = self.spec, self.model.checkpoint, self.model.device
        solver = Solver(spec.solver, spec.schedule, spec.steps, spec.shift, checkpoint.scheduler, device)
        env = make_env(spec, checkpoint, solver)
        sessions = policies.begin(spec.policies, env)
        x, start, x0_pred = run.initial_noise(spec.seed, env, device), 0, None
        for session in sessions:
            x = session.initial(x)
        if left is not None:
            start, saved = left[0], unpack(left[1], device)
            x, x0_pred = saved.pop("x"), saved.pop("x0_pred")
            restore(saved, solver, sessions, ())
        options = {"start": start, "x0_pred": x0_pred, "batched": self.batched}
        for record in denoise(x, env, solver, self.network, sessions, **options):
            more = {"x": record.x_next, "x0_pred": record.x0_pred}
            yield record, (record.ctx.index + 1, pack(save(solver, sessions, ()) | more))


def alike(a, b):
    return torch.equal(a.x_next, b.x_next) and a.ran.passes == b.ran.passes and a.status("cond") == b.status("cond")


@pytest.mark.parametrize("policy", MIXED)
def test_a_run_interrupted_after_every_step_ends_as_if_nothing_had_been(model, checkpoint, calibrated, policy):
    resumable = Resumable(model, spec_of(checkpoint, policy, calibrated))
    left = None
    for whole, _ in resumable.go():
        record, left = next(resumable.go(left))
        assert alike(whole, record), whole.ctx.index


@pytest.mark.slow
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("policy", MIXED)
def test_resumed_at_twenty_random_steps(model, checkpoint, calibrated, policy, batched):
    resumable = Resumable(model, spec_of(checkpoint, policy, calibrated), batched=batched)
    whole, states = zip(*resumable.go(), strict=True)
    for k in random.Random(policy).choices(range(1, 20), k=20):
        rest = [record for record, _ in resumable.go(states[k - 1])]
        assert len(rest) == 20 - k and all(map(alike, whole[k:], rest)), k


def test_a_killed_run_of_a_cache_goes_on_from_its_file(tmp_path, loaded, checkpoint):
    spec = spec_of(checkpoint, "easycache:first=2,threshold=0.3")
    whole = run.execute(spec, tmp_path / "whole.h5", loaded=loaded)

    def stop(p):
        if p.phase == "sample" and p.step >= 9 and p.durable:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.execute(spec, tmp_path / "a.h5", loaded=loaded, progress=stop)
    with Run(whole) as a, Run(run.execute(spec, tmp_path / "a.h5", loaded=loaded)) as b:
        assert b.attrs["resumed_from_step"] > 0
        for name in ("latent", "easycache_indicator", "passes", "status_uncond"):
            assert np.array_equal(a[name][...], b[name][...], equal_nan=a[name].dtype.kind == "f"), name


# --- what is said and what ran ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", MIXED)
def test_what_a_cache_says_it_skipped_is_what_the_meter_counted(model, checkpoint, calibrated, policy):
    spec = spec_of(checkpoint, policy, calibrated)
    expected, (records, batched) = run.plan(spec), (sample(model, spec, batched=b) for b in (False, True))
    operations = sum(r.ran.operations for r in records)
    assert skipped(batched) == skipped(records)  # batched branches are decided alike
    assert torch.allclose(batched[-1].x_next, records[-1].x_next, atol=1e-3)
    assert 0 < len(skipped(records)) < 19 and {0, 13}.isdisjoint(skipped(records))
    assert all(r.status("cond") == r.status("uncond") for r in records)  # the branches go together
    if policy.partition(":")[0] in KNOWN:
        assert expected.exact and operations == pytest.approx(expected.flops, rel=1e-12)
        assert [r.step for r in expected.rows if r.reused] == skipped(records)
        assert [r.ran.passes for r in records] == [row.passes for row in expected.rows]
        assert all(r.ran.passes == (0 if r.reused else 2) for r in records)
    else:
        assert not expected.exact and expected.flops_bounds[0] <= operations < expected.flops == expected.plain_flops
        said = {r.ctx.index: float(next(iter(r.notes.values()))) for r in records if r.notes}
        threshold = float(dict(spec.policies[0].knobs)["threshold"])
        assert {k for k, value in said.items() if value < threshold} >= set(skipped(records)) > set()
        assert {k for k, value in said.items() if not value < threshold}.isdisjoint(skipped(records))


def test_a_residual_cache_costs_embeddings_and_head(checkpoint, model):
    """40 steps less 14: 26 whole ones. 20 tokens, 2 blocks, 2 branches."""
    spec = spec_of(
        checkpoint, f"magcache:threshold=0.06,consecutive=2,retention=0.4,calibration={A14B}", steps=40, shift=12.0
    )
    expected, records = run.plan(spec), sample(model, spec)
    assert expected.passes == sum(r.ran.passes for r in records) == 80 - 28
    assert skipped(records) == [10, 11, 13, 14, 16, 17, 19, 20, 22, 23, 25, 32, 34, 36]
    whole, around = records[0].ran, records[10].ran
    assert around.block_tokens == around.tokens == 0
    # 2 products of 20 tokens and 64 patch values to width 24 and back, text 16 and 24 wide, and 512 of it
    assert around.operations == 2 * (2 * 20 * 24 * 4 * 32 + 2 * 512 * 24 * (16 + 24))
    assert expected.flops == 52 / 2 * whole.operations + 14 * around.operations
    assert expected.memory_bytes["caches"] == (2 + 1) * 20 * 24 * 4


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("cache", ["steps:keep=9,reuse=residual", f"magcache:threshold=0.12,calibration={A14B}"])
def test_a_cache_and_truncated_guidance(model, checkpoint, cache, batched):
    """cfg leaves one branch in steps 10 to 12 and 15 to 19, whichever comes first."""
    for texts in (["cfg:last=5,high=3", cache], [cache, "cfg:last=5,high=3"]):
        spec = spec_of(checkpoint, texts)
        expected, records = run.plan(spec), sample(model, spec, batched=batched)
        assert sum(r.ran.passes for r in records) == expected.passes < 32
        assert sum(r.ran.operations for r in records) == pytest.approx(expected.flops)


def test_nothing_crosses_a_change_of_length(model, checkpoint):
    """Frames are completed before step 6, in the middle of the high-noise expert: it is computed, and step 13."""
    spec = spec_of(checkpoint, ["half:switch=6", "steps:skip=3-9/14"])
    expected, records = run.plan(spec), sample(model, spec)
    assert skipped(records) == [3, 4, 5, 7, 8, 9, 14] and expected.passes == 2 * 13


def test_nothing_is_recorded_of_a_reused_step_as_a_prediction(tmp_path, loaded, checkpoint):
    spec = spec_of(checkpoint, "steps:skip=3/4/7", steps=8)
    with Run(run.execute(spec, tmp_path / "a.h5", loaded=loaded)) as file:
        gone = [3, 4, 7]
        assert np.flatnonzero(np.isnan(file["mse"][...])).tolist() == gone
        assert np.flatnonzero(np.asarray(file["status_cond"]) == "reused").tolist() == gone
        assert np.flatnonzero(file["passes"][...] == 0).tolist() == gone


# --- schedules by hand -----------------------------------------------------------------------------------------------


def a14b_env(total=40, **changes):
    env, _ = toy_env(steps=total, solver="unipc")
    return dataclasses.replace(env, solver="unipc", shift=12.0, model="Wan-AI/Wan2.2-T2V-A14B-Diffusers", **changes)


def planned(policy, env):
    """The steps that a policy declares to be reused."""
    from wanlab.engine.guiders import Cfg
    from wanlab.engine.loop import plans

    return [ctx.index for ctx, plan in plans(env, [policy.begin(env)], Cfg()) if plan.reused]


def test_magcache_with_the_published_ratios():
    """Schedules of the published program (MagCache4Wan2.2 at df81cb1) followed through its ratios by hand: 28 and 46 of
    80 passes. In the second its sums go on over the switch; begun anew there, one more step of the low-noise expert."""
    env = a14b_env()
    assert env.switch == 26
    first = [10, 11, 13, 14, 16, 17, 19, 20, 22, 23, 25, 32, 34, 36]
    high = [5, 6, 7, 8, 10, 11, 12, 13, 15, 16, 17, 18, 20, 21, 22, 23, 25]
    for carry in (False, True):
        assert planned(magcache.MagCache(threshold=0.06, consecutive=2, retention=0.4, carry=carry), env) == first
    knobs = {"threshold": 0.12, "consecutive": 4, "retention": 0.2}
    assert planned(magcache.MagCache(**knobs, carry=True), env) == [*high, 29, 30, 32, 33, 35, 37]
    assert planned(magcache.MagCache(**knobs), env) == [*high, 29, 30, 31, 33, 34, 36, 38]


def test_magcache_by_hand():
    """Ratios .9: errors .1, .1 + .19 = .29, .29 + .271 = .561 in one branch; the other's .99 never matters."""
    ratios = np.array([[1.0] + [0.9] * 7, [1.0] + [0.99] * 7])
    allowed = set(range(1, 8))
    assert magcache.schedule(ratios, allowed, 0.3, 9)[0] == {1, 2, 4, 5, 7}
    assert magcache.schedule(ratios, allowed, 0.6, 9)[0] == {1, 2, 3, 5, 6, 7}
    assert magcache.schedule(ratios, allowed, 0.6, 1)[0] == {1, 3, 5, 7}
    assert magcache.schedule(ratios, allowed - {2}, 0.3, 9)[0] == {1, 3, 4, 6, 7}
    assert magcache.schedule(ratios, allowed, 0.3, 9)[1][1:4] == pytest.approx([0.1, 0.29, 0.561])


def test_magcache_at_twenty_steps_computes_the_step_of_the_switch():
    env = a14b_env(20)
    assert env.switch == 13
    reused = planned(magcache.MagCache(threshold=0.5, consecutive=9, retention=0), env)
    assert 12 in reused and 13 not in reused and 14 in reused


COEFFICIENTS = {
    "ret": (-3.03318725e5, 4.90537029e4, -2.65530556e3, 5.87365115e1, -3.15583525e-1),
    "plain": (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404),
}


@pytest.mark.parametrize("threshold", [0.08, 0.14, 0.2])
@pytest.mark.parametrize("mode", ["ret", "plain"])
def test_teacache_with_the_published_polynomials_of_the_14b(single_checkpoint, mode, threshold):
    """50 steps of shift 5. The embeddings are the small checkpoint's, moved to where the polynomials were fitted."""
    checkpoint = loading.describe(str(single_checkpoint))
    spec = run.resolve(make_spec(single_checkpoint, steps=50, shift=5.0), checkpoint)
    env = make_env(spec, checkpoint, Solver("unipc", "diffusers", 50, 5.0, checkpoint.scheduler, torch.device("cpu")))
    embedded = {
        "ret": time_embeddings(checkpoint, env.steps, True) + 2.0,
        "plain": time_embeddings(checkpoint, env.steps, False) + 0.4,
    }
    env = dataclasses.replace(env, read_time_embeddings=lambda projected: embedded["ret" if projected else "plain"])
    a4, a3, a2, a1, a0 = COEFFICIENTS[mode]
    expected, total = [], 0.0
    for k in range(1, 50):
        e, before = embedded[mode][k].double(), embedded[mode][k - 1].double()
        d = float((e - before).abs().mean()) / float(before.abs().mean())
        total += a4 * d**4 + a3 * d**3 + a2 * d**2 + a1 * d + a0
        if (k < 5) if mode == "ret" else (k == 49):
            total = 0.0
        elif total < threshold:
            expected.append(k)
        else:
            total = 0.0
    assert 5 < len(expected) < 44
    tea = teacache.TeaCache(threshold=threshold, mode=mode, calibration="wan2.1-t2v-14b")
    assert planned(tea, env) == expected


def test_teacache_by_hand():
    """Sums .1, .2, .3 (computed), .1; below 0 a sum is still below the threshold, unless that is 0."""
    allowed = {1, 2, 3, 4}
    skipped, sums = teacache.schedule([0.0, 0.1, 0.1, 0.1, 0.1], allowed, 0.25)
    assert skipped == {1, 2, 4} and sums[1:] == pytest.approx([0.1, 0.2, 0.3, 0.1]) and math.isnan(sums[0])
    assert teacache.schedule([0.0, -0.1, -0.1, 0.1, 0.1], allowed, 0.05)[0] == {1, 2, 3, 4}
    assert teacache.schedule([0.0, -0.1, -0.1, 0.1, 0.1], allowed, 0.0)[0] == set()


def test_a_schedule_is_not_known_without_weights(checkpoint, calibrated, monkeypatch):
    """As of a model on the hub: bounds, from the steps that are computed in any case to the plain run."""
    monkeypatch.setattr("wanlab.engine.run.forecast.time_embeddings", lambda *_: None)
    spec = spec_of(checkpoint, "teacache:calibration=FILE", calibrated)
    expected = run.plan(spec)
    assert not expected.exact and expected.passes_bounds == (2 * 6, 40)  # 0 to 4, and 13


@pytest.mark.parametrize("projected", [False, True])
def test_the_time_embeddings_are_the_transformers_own(model, projected):
    steps = [
        StepContext(index=k, total=3, timestep=t, sigma=0, sigma_next=0, expert=e, t=torch.tensor(t))
        for k, (t, e) in enumerate([(999.0, "high"), (881.0, "high"), (417.0, "low")])
    ]
    ours = time_embeddings(model.checkpoint, steps, projected)
    for step, embedded in zip(steps, ours, strict=True):
        own = model.experts[step.expert].condition_embedder
        whole = own.time_embedder(own.timesteps_proj(step.t[None]))
        whole = own.time_proj(own.act_fn(whole)) if projected else whole
        assert torch.allclose(embedded, whole[0], atol=1e-6)


def test_taylorseer_computes_as_diffusers_counts():
    """Each expert's steps 0 to warmup - 1, and k with (k - warmup - 1) divisible by the interval: of 13 and 7 steps
    0 1 2 4 9 and 0 1 2 4."""
    env, _ = toy_env()
    taylor = policies.forecasts.TaylorSeer()
    assert sorted(set(range(20)) - set(planned(taylor, env))) == [0, 1, 2, 4, 9, 13, 14, 15, 17]


def cubes(call):
    """v = (k + 1)^3 at step k, whatever x is."""
    return torch.full((len(call.branches), *call.x.shape[1:]), float((call.ctx.index + 1) ** 3))


def values(records):
    """The conditional velocity of each step, of networks that give one value."""
    return [float((r.predictions or r.reused)["cond"].flatten()[0]) for r in records]


@pytest.mark.parametrize(
    ("policy", "third"),
    [
        ("steps:skip=3", 27.0),  # the last value
        ("steps:skip=3,reuse=linear", 27 + 19),  # + (27 - 8)
        ("taylorseer:order=1", 27 + 19),
        ("taylorseer:order=2", 27 + 19 + 12 / 2),  # second difference (27 - 8) - (8 - 1)
        ("taylorseer:order=0", 27.0),
    ],
)
def test_a_forecast_by_hand(policy, third):
    records = toy([policy], cubes, steps=8)
    assert values(records)[:3] == [1, 8, 27] and values(records)[3] == third
    assert records[3].reused and not records[2].reused


def test_a_linear_forecast_over_gaps_of_other_lengths():
    """Computed: 0, 3, then 4 to 6 from them: 64 + (64 - 1) / 3 d."""
    records = toy(["steps:skip=1-2/4-6,reuse=linear"], cubes)
    assert values(records)[:8] == [1, 1, 1, 64, 64 + 21, 64 + 42, 64 + 63, 512]


# --- rules that decide while they run --------------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [False, True])
def test_easycache_by_hand(batched):
    """Straight-line code of the rule beside it, on a network that bends: v = sin(x) + sigma."""
    records = toy(["easycache:first=3,threshold=0.2"], bent, batched=batched)
    computed: list[int] = []
    total = 0.0
    for k, r in enumerate(records):
        x = r.x_t
        if k in (0, 13):
            computed, total = [], 0.0
        below = False
        if 3 <= k < 19 and len(computed) >= 2:
            i, j = computed[-2:]
            v_i, v_j = records[i].predictions["cond"], records[j].predictions["cond"]
            slope = (v_j - v_i).abs().mean() / (records[j].x_t - records[i].x_t).abs().mean()
            total += float(slope * (x - records[k - 1].x_t).abs().mean() / v_j.abs().mean())
            below = total < 0.2
            assert float(r.notes["0/indicator"]) == pytest.approx(total, rel=1e-5)
        if below:
            assert set(r.reused) == {"cond", "uncond"}
            for b in ("cond", "uncond"):
                last = records[computed[-1]]
                assert torch.allclose(r.reused[b], x + (last.predictions[b] - last.x_t), atol=1e-5)
        else:
            assert set(r.predictions) == {"cond", "uncond"}
            computed, total = [*computed, k], 0.0
    assert 3 <= len(skipped(records)) <= 14


def bent(call):
    x = torch.sin(call.x) + call.ctx.sigma
    return torch.cat([x * (1.0 if b == "cond" else 0.5) for b in call.branches])


def test_sencache_by_hand(calibrated):
    """Weights 1 and 2 of the calibration; steps 6 to 17 may be reused, three in a row at most."""
    records = toy([f"sencache:threshold=0.5,calibration={calibrated}"], bent, solver="unipc")
    reference, total, row = 0, 0.0, 0
    for k, r in enumerate(records):
        last = records[reference]
        total += float((r.x_t - last.x_t).square().mean().sqrt()) + 2 * (last.ctx.timestep - r.ctx.timestep) / 1000
        if 6 <= k < 18 and k != 13 and total < 0.5 and row < 3:
            assert torch.equal(r.reused["uncond"], last.predictions["uncond"])
            row += 1
        else:
            assert r.predictions
            reference, total, row = k, 0.0, 0
    assert len(skipped(records)) > 3


class FakeBlocks:
    """Four blocks x -> x + step + number, that say which of them ran."""

    def __init__(self, ran, numbers=(0, 1, 2, 3), step=0.0):
        self.ran, self.numbers, self.step = ran, numbers, step

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, which):
        return FakeBlocks(self.ran, self.numbers[which], self.step)

    def __call__(self, hidden):
        for n in self.numbers:
            self.ran.append(n)
            hidden = hidden + self.step + n + 1
        return hidden


def test_dbcache_by_hand():
    """Front block 0, back block 3. The front's residual is 1 + step: from step value 0 to .04 it changes by .04."""
    env, _ = toy_env()
    env = dataclasses.replace(env, costs={e: dataclasses.replace(c, layers=4) for e, c in env.costs.items()})
    knobs = policies.firstblock.FirstBlock(threshold=0.05, front=1, back=1, warmup=1, consecutive=2)
    session, hidden = knobs.begin(env), torch.zeros(1, 3, 2)
    seen = []
    for k, value in enumerate([0.0, 0.04, 0.04, 0.04, 0.045, 0.2]):
        session.plan(plan_of(env, k), env.steps[k])
        ran: list[int] = []
        for branch in ("cond", "uncond"):
            x = torch.zeros(1, 1, 5, 2, 2)
            call = Call(ctx=env.steps[k], branches=(branch,), x=x, step_branches=("cond", "uncond"))
            # the unconditional branch's own front differs much, and follows all the same
            out = session.through(call, hidden, FakeBlocks(ran, step=value if branch == "cond" else 10.0 * k))
        seen.append((ran, float(out[0, 0, 0])))
    whole, part = [0, 1, 2, 3] * 2, [0, 3] * 2
    assert [ran for ran, _ in seen] == [whole, part, part, whole, part, whole]  # two in a row at most
    # step 1, unconditional: front 1 + 10, the middle blocks' residual of step 0 is 2 + 3, back 4 + 10
    assert seen[1][1] == 11 + 5 + 14


def plan_of(env, k):
    from wanlab.engine.guiders import Linear
    from wanlab.engine.types import StepPlan

    return StepPlan(branches=("cond", "uncond"), guide=Linear(4.0), frames=5)


def test_the_sea_filter_against_its_formula():
    """Along each axis g = (1-s) S / ((1-s)^2 S + s^2), S = |f|^-3, scaled to mean 1: by explicit sums over waves."""
    x = torch.randn(1, 2, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    s, size = 0.6, (3, 2, 4)

    def gain(f):
        return 1 / (1 - s) if f == 0 else (1 - s) * abs(f) ** -3 / ((1 - s) ** 2 * abs(f) ** -3 + s**2)

    waves = list(np.ndindex(*size))
    gains = {w: math.prod(gain((k if k <= n / 2 else k - n) / n) for k, n in zip(w, size, strict=True)) for w in waves}
    mean = sum(gains.values()) / len(gains)
    expected = torch.zeros_like(x, dtype=torch.complex128)
    at = torch.tensor(waves, dtype=torch.float64)
    for w in waves:
        phase = 2 * math.pi * (at * torch.tensor([k / n for k, n in zip(w, size, strict=True)])).sum(1)
        wave = torch.exp(1j * phase).reshape(size)
        weight = (x * wave.conj()).mean(dim=(2, 3, 4), keepdim=True)
        expected += gains[w] / mean * weight * wave
    assert torch.allclose(seacache.filtered(x, s).double(), expected.real, atol=1e-5)


def test_seacache_computes_the_last_step_and_two_in_three_at_most(model, checkpoint):
    records = sample(model, spec_of(checkpoint, "seacache:threshold=1e9"))
    assert skipped(records) == [1, 2, 4, 5, 7, 8, 10, 11, 14, 15, 17, 18]
    unlimited = sample(model, spec_of(checkpoint, "seacache:threshold=1e9,consecutive=0"))
    assert skipped(unlimited) == [*range(1, 13), *range(14, 19)]


# --- the controls ----------------------------------------------------------------------------------------------------


@given(stretches=st.lists(st.integers(1, 40), min_size=1, max_size=2), data=st.data())
def test_evenly_spaced_steps(stretches, data):
    keep = data.draw(st.integers(len(stretches), sum(stretches)))
    kept = steps.evenly(stretches, keep)
    assert len(set(kept)) == keep and kept == sorted(kept)
    start = 0
    for n in stretches:
        own = [k for k in kept if start <= k < start + n]
        assert own[0] == start
        gaps = np.diff([*own, start + n])
        assert gaps.max() - gaps.min() <= 1
        assert abs(len(own) - keep * n / sum(stretches)) < 1 or len(own) == 1 or min(stretches) < 3
        start += n


@given(stretches=st.lists(st.integers(1, 40), min_size=1, max_size=2), data=st.data())
def test_first_steps_are_among_those_that_are_kept(stretches, data):
    keep = data.draw(st.integers(len(stretches), sum(stretches)))
    first = data.draw(st.integers(1, min(keep - len(stretches) + 1, stretches[0])))
    kept = steps.evenly(stretches, keep, first)
    assert len(set(kept)) == keep and kept == sorted(kept)
    assert kept[:first] == [*range(first)] and set(np.cumsum([0, *stretches[:-1]])) <= set(kept)
    gaps = np.diff([*(k for k in kept if first - 1 <= k < stretches[0]), stretches[0]])
    assert gaps.max() - gaps.min() <= 1


def test_steps_left_out_by_hand():
    """10 of 13 + 7 steps: 6.5 and 3.5 of them, the first remainder rounded up."""
    env, _ = toy_env()
    kept = sorted(set(range(20)) - set(planned(steps.Steps(keep=10), env)))
    assert kept == [0, 1, 3, 5, 7, 9, 11, 13, 15, 17]


def test_first_steps_are_kept_by_hand():
    """10 of 13 + 7 steps, the first 3 among them: of 10 + 7 others 4.1 and 2.9, rounded to 4 and 3. The 4 of 10 lie at
    floor(11 i / 5) - 1."""
    env, _ = toy_env()
    kept = sorted(set(range(20)) - set(planned(steps.Steps(keep=10, first=3), env)))
    assert kept == [0, 1, 2, 4, 6, 8, 10, 13, 15, 17]
    drawn = [planned(steps.Steps(keep=8, choose="random", first=3, seed=seed), env) for seed in range(20)]
    assert all(len(d) == 12 and {0, 1, 2, 13}.isdisjoint(d) for d in drawn) and len(set(map(tuple, drawn))) > 10
    assert planned(steps.Steps(keep=14, first=13), env) == [*range(14, 20)]
    assert not planned(steps.Steps(keep=20, first=13), env)


def test_random_steps_are_the_seeds():
    env, _ = toy_env()
    drawn = [planned(steps.Steps(keep=8, choose="random", seed=seed), env) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(d) == 12 and {0, 13}.isdisjoint(d) for d in drawn)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("steps", "one of skip and keep; such as steps:skip=3/4/7"),
        ("steps:skip=3,keep=4", "one of skip and keep"),
        ("steps:skip=3.5", "give a value of type str"),
        ("steps:skip=a", "write skip=3/4/7-9"),
        ("steps:skip=20", "use steps from 1 to 19"),
        ("steps:skip=9-7", "write skip=3"),
        ("steps:skip=13", "step 13 is the first of the low expert; leave it out, or use step 14"),
        ("steps:keep=1", "use 2 to 20"),
        ("steps:keep=21", "use 2 to 20"),
        ("steps:keep=5,first=5", "steps:first=5 of keep=5; use 0 to 4"),
        ("steps:keep=20,first=14", "steps:first=14 of the first expert's 13 steps; use 0 to 13"),
        ("steps:skip=3,first=2", "steps:first goes with keep"),
        ("teacache", "in the package; make one: wanlab calibrate"),
        (f"teacache:calibration={A14B}", "no TeaCache fit for the high expert"),
        ("teacache:calibration=wan2.1-t2v-14b", "no TeaCache fit for the high expert"),
        ("teacache:threshold=-1,calibration=FILE", "threshold=-1; use 0 or more"),
        ("teacache:mode=plain,calibration=FILE", "use mode=ret"),
        ("magcache", "in the package; make one: wanlab calibrate"),
        ("magcache:calibration=wan2.1-t2v-14b", "has no expert switch"),
        (f"magcache:retention=1.5,calibration={A14B}", "use 0 to 1"),
        (f"magcache:consecutive=0,calibration={A14B}", "use 1 or more"),
        ("magcache:calibration=FILE", "no magnitude ratios"),
        ("easycache:first=19", "use 0 to 18"),
        ("easycache:threshold=-1", "use 0 or more"),
        ("sencache:start=0.9,stop=0.3", "use 0 <= start < stop <= 1"),
        ("firstblock:front=2", "use 1 or fewer together"),
        ("firstblock:front=0", "use 1 or more"),
        ("seacache:order=-1", "use 0 or more"),
        ("taylorseer:interval=0", "use 1 or more"),
        ("dpcache:keep=11,calibration=FILE", "no plan of 11 steps; use 9 or 20"),
    ],
)
def test_knobs_that_do_not_fit_are_refused(checkpoint, calibrated, policy, says):
    with pytest.raises(UsageError) as refused:
        run.plan(spec_of(checkpoint, policy, calibrated))
    assert says in f"{refused.value.message}; {refused.value.hint}"


def test_a_calibration_of_another_schedule_is_refused(checkpoint, calibrated):
    for changes, says in (
        ({"steps": 21}, "steps 20"),
        ({"solver": "euler"}, "solver unipc"),
        ({"shift": 5.0}, "shift 12"),
    ):
        for policy in ("teacache:calibration=FILE", "dpcache:keep=9,calibration=FILE", "sencache:calibration=FILE"):
            with pytest.raises(UsageError, match=says):
                run.plan(spec_of(checkpoint, policy, calibrated, **changes))


def test_two_caches_inside_the_blocks_are_refused(checkpoint):
    with pytest.raises(UsageError, match="two policies work inside the blocks"):
        run.plan(make_spec(checkpoint, policies=["seacache", "firstblock"]))
