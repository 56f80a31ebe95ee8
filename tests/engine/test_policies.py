"""Policies: what they plan, what runs, and what it makes, by hand-derived numbers.

The small clip has 5 latent frames of 4 tokens; at shift 12 of 20 steps 13 are high-noise and 7 low-noise.
"""

import dataclasses
from pathlib import Path

import pytest
import torch

from wanlab.engine import run
from wanlab.engine.guiders import Again
from wanlab.engine.loop import denoise
from wanlab.engine.policies.frames import duplicate, pair, renoise
from wanlab.engine.run.forecast import make_env
from wanlab.engine.solvers import Solver
from wanlab.engine.types import Session
from wanlab.errors import UsageError, WanlabError

from .helpers import Toy, make_spec, passes, relative, sample, toy, toy_env


def squares(call):
    """c = (k+1)^2 and u = 1 at step k: the difference is never that of another step."""
    values = {"cond": float((call.ctx.index + 1) ** 2), "uncond": 1.0}
    return torch.cat([torch.full_like(call.x, values[b]) for b in call.branches])


@pytest.mark.parametrize(
    ("policy", "velocity"),
    [
        ("cfg:last=5,high=3", lambda k, last: 1.0),
        ("cfg:last=5,high=3,keep=cond", lambda k, last: (k + 1.0) ** 2),
        ("cfg:last=5,high=3,keep=reuse", lambda k, last: (k + 1.0) ** 2 + 3 * ((last + 1.0) ** 2 - 1)),
    ],
)
def test_cfg_truncation(policy, velocity):
    records = toy([policy], squares)
    truncated = {10, 11, 12, 15, 16, 17, 18, 19}
    for k, record in enumerate(records):
        full = 1 + 4 * ((k + 1.0) ** 2 - 1)
        last = 9 if k < 13 else 14  # the last full step of this step's expert
        expected = velocity(k, last) if k in truncated else full
        assert record.velocity.unique().tolist() == [pytest.approx(expected)], k
        assert record.ran.passes == (1 if k in truncated else 2)
        kept = "uncond" if policy == "cfg:last=5,high=3" else "cond"
        assert set(record.predictions) == ({kept} if k in truncated else {"cond", "uncond"})
    assert passes(records) == 12 * 2 + 8 == 32


def test_pass_and_token_counts(model, checkpoint):
    """passes: 40; 40 - 8. tokens: half a clip is 3 of 5 frames, 12 tokens of 20."""
    for texts, ran, used in [
        ([], 40, 40 * 20),
        (["cfg:last=5,high=3"], 32, 32 * 20),
        (["half"], 40, 26 * 12 + 14 * 20),
        (["half", "cfg:last=5,high=3"], 32, (10 * 2 + 3) * 12 + (2 * 2 + 5) * 20),
        (["paired", "cfg:last=5"], 35, 35 * 20),
    ]:
        spec = make_spec(checkpoint, policies=texts)
        records = sample(model, spec)
        assert (passes(records), sum(r.ran.tokens for r in records)) == (ran, used), texts
        planned = run.plan(spec)
        assert (planned.passes, planned.totals()["tokens"], planned.plain_passes) == (ran, used, 40)
        assert [r.branches for r in planned.rows] == [tuple(r.predictions) for r in records]
        assert [r.frames for r in planned.rows] == [r.x_t.shape[2] for r in records]


def test_document_case_is_a_sixteenth():
    """5 of 40 steps truncated is 5 of 80 passes, 6.25 %."""
    assert passes(toy(["cfg:last=5"], squares, steps=40)) == 80 - 5


def test_one_branch_stays_one_branch():
    records = toy(["cfg:last=5"], squares, guidance=1.0)
    assert all(set(r.predictions) == {"cond"} for r in records) and passes(records) == 20
    assert all(set(r.predictions) == {"uncond"} for r in toy([], squares, guidance=0.0))


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("cfg:last=21", "use 0 to 20"),
        ("cfg:last=-1", "use 0 to 20"),
        ("cfg:high=14", "use 0 to 13"),
        ("cfg:last=7,keep=reuse", "truncate fewer"),
        ("cfg:high=13,keep=reuse", "truncate fewer"),
        ("cfg:last=1,keep=both", "choose from"),
        ("cfg:keep=cond", "truncates no step"),
        ("cfg:lsat=2", "did you mean last"),
        ("cfg:last=2.5", "type int"),
        ("cfg:last=true", "type int"),
        ("half:switch=20", "use 1 to 19"),
        ("half:complete=copy", "choose from"),
        ("hlaf", "did you mean half"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_loads(checkpoint, policy, says, monkeypatch):
    monkeypatch.setattr("wanlab.engine.model.loading.load", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(UsageError, match=says):
        run.plan(make_spec(checkpoint, policies=[policy]))


def test_more_that_does_not_fit(checkpoint, single_checkpoint):
    with pytest.raises(UsageError, match="no expert switch"):
        run.plan(make_spec(single_checkpoint, policies=["half"]))
    run.plan(make_spec(single_checkpoint, policies=["half:switch=10"]))
    with pytest.raises(UsageError, match="use 0 to 0"):
        run.plan(make_spec(single_checkpoint, policies=["cfg:high=1"]))
    with pytest.raises(UsageError, match="no expert switch"):
        run.plan(make_spec(checkpoint, policies=["half"], steps=1))
    with pytest.raises(UsageError, match="half or paired"):
        run.plan(make_spec(checkpoint, policies=["half", "paired"]))
    with pytest.raises(UsageError, match="5 or more"):
        run.plan(make_spec(checkpoint, policies=["half"], frames=1))
    with pytest.raises(UsageError, match="9 or more"):
        run.plan(make_spec(checkpoint, policies=["paired"], frames=5))


def test_a_stale_difference_is_impossible():
    """At another length than it was made at: refused by the plan. Without any: refused by the arithmetic."""
    # half changes the length before step 16; a difference made at 3 frames must not be used at 5
    with pytest.raises(UsageError, match="at this length"):
        toy(["half:switch=16", "cfg:last=4,keep=reuse"], squares)
    with pytest.raises(WanlabError, match="no difference"):
        Again(4.0, {})({"cond": torch.ones(1)})
    assert Again(4.0, {"difference": torch.full((1,), 2.0)})({"cond": torch.ones(1)}).tolist() == [1 + 3 * 2]


@pytest.mark.parametrize("frames", ["half", "half:switch=6", "paired:switch=6"])
@pytest.mark.parametrize(
    "other",
    [
        "adaptive:threshold=0.3",
        "cfgcache:every=3",
        "cfg:last=2,high=2,keep=reuse",
        "steps:keep=10",
        "easycache:threshold=1,first=2",
        "prune:baseline_steps=2,start_step=3,scope=all",
    ],
)
def test_frames_are_settled_first_wherever_they_are_named(model, checkpoint, frames, other):
    """What is remembered by the number of frames, and what ends where frames are completed."""
    check_order(model, make_spec(checkpoint, frames=33, policies=[frames, other]))


@pytest.mark.parametrize("cache", ["easycache:first=2,threshold=9", "sencache:start=0,threshold=9"])
@pytest.mark.parametrize(
    "other", ["random_tokens:scope=all,start=1", "tome:scope=all,ratio=0.6", "firstblock:threshold=9"]
)
def test_what_runs_is_within_the_forecast_whatever_is_named_first(model, checkpoint, cache, other):
    for named in ([cache, other], [other, cache]):
        spec = make_spec(checkpoint, steps=10, policies=named)
        planned, records = run.plan(spec), sample(model, spec)
        least, most = planned.flops_bounds
        assert not planned.exact and passes(records) < 20
        assert planned.passes_bounds[0] <= passes(records) <= planned.passes_bounds[1]
        assert least <= sum(r.ran.operations for r in records) <= most


def test_half_of_half_is_refused(checkpoint):
    with pytest.raises(UsageError, match="half is named twice"):
        run.plan(make_spec(checkpoint, frames=33, policies=["half", "half:switch=5"]))


@pytest.mark.parametrize("rule", ["interval:start=0.3,stop=0.9", "adaptive:threshold=0.3", "cfg:last=4,high=3"])
@pytest.mark.parametrize("cache", ["steps:keep=10", "sencache:threshold=1", "taylorseer:interval=3"])
def test_branches_are_settled_before_what_is_used_again(model, checkpoint, rule, cache):
    """A cache that was named first would forecast branches that are not evaluated."""
    check_order(model, make_spec(checkpoint, policies=[rule, cache]))


def check_order(model, spec):
    """Both orders of two policies are one forecast, which the run keeps, and one result."""
    swapped = dataclasses.replace(spec, policies=spec.policies[::-1])
    rows, others = (run.plan(s).rows for s in (spec, swapped))
    assert rows == others
    records = sample(model, spec)
    for record, other, row in zip(records, sample(model, swapped), rows, strict=True):
        assert torch.equal(record.x_next, other.x_next)
        assert row.passes_bounds[0] <= record.ran.passes <= row.passes_bounds[1]


@pytest.mark.parametrize("other", ["half:switch=5", "interval:start=0.3", "cfg:last=5"])
@pytest.mark.parametrize("batched", [False, True])
def test_the_documented_example_goes_with_what_changes_frames_and_branches(model, checkpoint, other, batched):
    """Where there is nothing to use again, it evaluates."""
    example = f"{Path(__file__).parents[2] / 'examples' / 'skip_every_other.py'}:skip_every_other"
    spec = make_spec(checkpoint, policies=[other, example], batch_cfg=batched, steps=12)
    records = sample(model, spec, batched=batched)
    assert all(
        row.passes_bounds[0] <= r.ran.passes <= row.passes_bounds[1]
        for r, row in zip(records, run.plan(spec).rows, strict=True)
    )


def test_a_difference_that_a_later_rule_takes_away_is_refused_beforehand():
    """Of the low-noise steps 13 to 19 `interval` guides none. Named first it leaves cfg one branch, which stays."""
    with pytest.raises(UsageError, match=r"reuse at step 17: no full step .*name other rules for branches first"):
        toy(["cfg:last=4,keep=reuse", "interval:stop=0.6"], squares)
    assert passes(toy(["interval:stop=0.6", "cfg:last=4,keep=reuse"], squares)) == 12 * 2 + 8


def test_a_branch_that_did_not_run_is_in_no_record():
    """An evaluator that keeps its last answers cannot leak one: predictions are made of what the step asked for."""
    for record in toy(["cfg:last=3"], squares)[-3:]:
        assert set(record.predictions) == {"uncond"} and not record.probes


def test_evaluate_nests_first_outermost_and_is_counted_innermost():
    order = []

    class Named(Session):
        def __init__(self, name):
            self.name = name

        def evaluate(self, call, inner):
            order.append(self.name)
            return inner(call) if self.name != "skips" else torch.zeros_like(call.x)

    env, solver = toy_env(steps=1, frames=1, guidance=1.0)
    (record,) = denoise(torch.zeros(1, 1, 1, 2, 2), env, solver, Toy(squares), [Named("a"), Named("b")])
    assert order == ["a", "b"] and record.ran.passes == 1 and set(record.predictions) == {"cond"}
    solver.restart(0)
    (record,) = denoise(torch.zeros(1, 1, 1, 2, 2), env, solver, Toy(squares), [Named("skips")])
    assert record.ran.passes == record.ran.tokens == record.ran.operations == 0
    assert set(record.reused) == {"cond"} and not record.predictions and record.status("uncond") == "skipped"


def test_probe_changes_nothing_and_counts_nothing(model, checkpoint):
    spec = make_spec(checkpoint, policies=["half", "cfg:last=5,high=3"])
    plain, probed = sample(model, spec), sample(model, spec, probe=True)
    assert torch.equal(plain[-1].x_next, probed[-1].x_next)
    assert passes(plain) == passes(probed)
    for a, b in zip(plain, probed, strict=True):
        assert torch.equal(a.velocity, b.velocity) and not a.probes
        assert {*b.probes, *b.predictions} == {"cond", "uncond"} and not {*b.probes} & {*b.predictions}


# --- frames ----------------------------------------------------------------------------------------------------------


def line(*values):
    return torch.tensor(values, dtype=torch.float32).view(1, 1, -1, 1, 1)


def test_duplicate():
    assert duplicate(line(1, 2, 3), 5).flatten().tolist() == [1, 1, 2, 2, 3]
    assert duplicate(line(1, 2, 3), 6).flatten().tolist() == [1, 1, 2, 2, 3, 3]


def test_renoise():
    """Odd frames: (1 - .25) * mean of neighbours' x0 + .25 * their own noise; even ones are as they were."""
    noise = line(0, 100, 0, 200, 0)
    made = renoise(line(1, 2, 3), line(10, 20, 40), noise, 0.25)
    assert made.flatten().tolist() == [1, 0.75 * 15 + 25, 2, 0.75 * 30 + 50, 3]
    even = renoise(line(1, 2), line(10, 20), line(0, 100, 0, 200), 0.25)
    assert even.flatten().tolist() == [1, 0.75 * 15 + 25, 2, 0.75 * 20 + 50]
    assert noise.flatten().tolist() == [0, 100, 0, 200, 0]


def test_pair():
    assert pair(line(0, 1, 2, 3, 4)).flatten().tolist() == [0, 1, 1, 3, 3]
    assert pair(line(0, 1, 2, 3, 4, 5)).flatten().tolist() == [0, 1, 1, 3, 3, 5]


@pytest.mark.parametrize("solver", ["unipc", "dpm++", "euler"])
def test_half_frames_begin_with_common_noise_and_restart_the_solver(model, checkpoint, solver):
    plain = sample(model, make_spec(checkpoint, solver=solver))
    half = sample(model, make_spec(checkpoint, solver=solver, policies=["half"]))
    assert torch.equal(half[0].x_t, plain[0].x_t[:, :, ::2])
    assert [r.x_t.shape[2] for r in half] == [3] * 13 + [5] * 7
    assert torch.equal(half[13].x_t, duplicate(half[12].x_next, 5))
    step = half[13]  # first order again: Euler's step, which for these solvers is exact in x0
    euler = step.x_t + (step.ctx.sigma_next - step.ctx.sigma) * step.velocity
    assert relative(step.x_next, euler) < 1e-5


def test_paired_replaces_frames_and_keeps_the_history(model, checkpoint):
    plain = sample(model, make_spec(checkpoint))
    paired = sample(model, make_spec(checkpoint, policies=["paired"]))
    assert torch.equal(paired[12].x_next, plain[12].x_next)
    assert torch.equal(paired[13].x_t, pair(plain[13].x_t))
    step = paired[13]
    euler = step.x_t + (step.ctx.sigma_next - step.ctx.sigma) * step.velocity
    assert relative(step.x_next, euler) > 1e-3  # of second order: the history was not forgotten


def test_renoise_keeps_even_frames_and_first_noise(model, checkpoint):
    half = sample(model, make_spec(checkpoint, policies=["half:complete=renoise"]))
    plain = sample(model, make_spec(checkpoint))
    at = half[13]
    assert torch.equal(at.x_t[:, :, ::2], half[12].x_next)
    clean = (half[12].x0_pred[:, :, :-1] + half[12].x0_pred[:, :, 1:]) / 2
    odd = (1 - at.ctx.sigma) * clean + at.ctx.sigma * plain[0].x_t[:, :, 1::2]
    assert torch.allclose(at.x_t[:, :, 1::2], odd, atol=1e-6)


def test_strided_positions_are_those_of_every_second_frame(model):
    from wanlab.engine.model.transformer import frame_positions

    expert = model.experts["high"]
    full, half = torch.zeros(1, 16, 5, 4, 4), torch.zeros(1, 16, 3, 4, 4)
    plain = expert.rope
    with frame_positions(expert, 2):
        strided = expert.rope(half)
    for got, whole, compact in zip(strided, plain(full), plain(half), strict=True):
        by_frame = whole.unflatten(1, (5, 4))
        assert torch.equal(got, by_frame[:, [0, 2, 4]].flatten(1, 2))
        assert not torch.equal(got, compact)
    assert expert.rope is plain
    with pytest.raises(RuntimeError), frame_positions(expert, 2):
        raise RuntimeError
    assert expert.rope is plain


def test_strided_rope_reaches_the_transformer(model, checkpoint):
    compact = sample(model, make_spec(checkpoint, policies=["half"]))
    strided = sample(model, make_spec(checkpoint, policies=["half:rope=strided"]))
    assert torch.equal(compact[0].x_t, strided[0].x_t)
    assert not torch.equal(compact[0].velocity, strided[0].velocity)
    # once the frames are complete, positions are plain again
    again = sample(model, make_spec(checkpoint, policies=["half:rope=strided"]))
    assert torch.equal(strided[-1].x_next, again[-1].x_next)


def test_env_of_a_plan(checkpoint):
    from wanlab.engine.model import loading as models

    found = models.describe(str(checkpoint))
    spec = run.resolve(make_spec(checkpoint), found)
    env = make_env(spec, found, Solver("unipc", "diffusers", 20, 12.0, found.scheduler, torch.device("cpu")))
    assert env.switch == 13 and env.total == 20 and env.shape == (16, 5, 4, 4)
