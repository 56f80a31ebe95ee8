"""Policies that compute some of the tokens: who is chosen, what stands for the others, what it costs, what is kept."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wanlab.engine import policies, run
from wanlab.engine.guiders import Cfg
from wanlab.engine.loop import make_plan
from wanlab.engine.model import kernels, placement
from wanlab.engine.model.cost import Cost
from wanlab.engine.policies.pruning import tokens as shared
from wanlab.engine.types import Call
from wanlab.errors import UsageError
from wanlab.runfile import Run
from wanlab.spec import PolicySpec, RecordSpec

from .helpers import collecting, make_spec, passes, sample, toy, toy_env

SOME = ["random_tokens:ratio=0.5,start=1", "ras:ratio=0.5,start=1,reset=4", "topk:ratio=0.5,start=2", "tome:cell=2x1x1"]
PRUNE = "prune:baseline_steps=2,start_step=3,threshold=50"


class Walk:
    """A policy's session on latents given by hand: what it computes and gives in each step."""

    def __init__(self, policy, frames=4, **options):
        self.env, _ = toy_env(frames=frames, **options)
        (self.session,) = policies.begin([PolicySpec.parse(policy)], self.env)

    def step(self, k, x, velocity):
        """The active tokens of step k (from 0), and the velocities that it gives, by token; x and velocity have a
        value for each token, which is a latent frame of 2x2 pixels here."""
        ctx = self.env.steps[k]
        plan = make_plan(self.env, [self.session], Cfg(), ctx)
        latents = spread(x)
        self.session.forget(ctx, plan.frames)
        inner = lambda call: spread(velocity).expand(len(call.branches), -1, -1, -1, -1)  # noqa: E731
        out = [self.session.evaluate(Call(ctx=ctx, branches=(b,), x=latents), inner) for b in plan.branches]
        assert all(torch.equal(out[0], o) for o in out)
        notes = self.session.noted()
        bits = np.unpackbits(notes["mask"], axis=-1, count=1).flatten() if "mask" in notes else np.ones(len(x))
        return np.flatnonzero(bits).tolist(), out[0][0, 0, :, 0, 0].tolist(), notes


def spread(values):
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, -1, 1, 1).expand(-1, -1, -1, 2, 2).contiguous()


# Relative changes of four tokens from step to step, counted from 1: step 2's is that from x_1 to x_2.
CHANGES = {2: (0.1, 0.2, 0.3, 0.4), 3: (0.5, 0.1, 0.2, 0.3), 4: (0.8, 0.9, 0.7, 0.05), 5: (0.1, 0.1, 0.6, 0.1)}


@pytest.mark.parametrize(
    ("update", "active", "frozen"),
    [
        # theta is the median of step 2's changes, (.2 + .3) / 2 = .25, and stays.
        # step 2: .1 and .2 are below: tokens 0 and 1 are frozen, step 3 computes {2, 3}.
        # step 3: .1 and .2 of tokens 1 and 2. Token 0 changed by .5 and stays frozen: step 4 computes {3}.
        # step 4: token 3's .05 would freeze all four. A tenth of 4 is one token: the one of .9, token 1.
        # step 5: token 1's .1 would freeze all: the one of .6, token 2.
        ("cumulative", {3: [2, 3], 4: [3], 5: [1], 6: [2]}, {2: 0.5, 3: 0.75, 4: 0.75, 5: 0.75}),
        # step 3 anew: tokens 1 and 2 are below, step 4 computes {0, 3}; step 4: only token 3; step 5: all but token 2.
        ("step", {3: [2, 3], 4: [0, 3], 5: [0, 1, 2], 6: [2]}, {2: 0.5, 3: 0.5, 4: 0.25, 5: 0.75}),
    ],
)
def test_masks_threshold_and_counts_of_four_tokens_by_hand(update, active, frozen):
    walk = Walk(f"{PRUNE},update={update}")
    x, kept = np.ones(4), [0.0] * 4
    for step in range(1, 7):
        x = x * (1 + np.array(CHANGES.get(step, (0, 0, 0, 0))))
        computed, velocity, notes = walk.step(step - 1, x.tolist(), [float(step)] * 4)
        assert computed == active.get(step, [0, 1, 2, 3]), step
        assert float(notes["active"]) == len(computed) / 4
        # What is not computed keeps the number of the step in which it was.
        kept = [float(step) if t in computed else kept[t] for t in range(4)]
        assert velocity == kept
        if step in CHANGES:
            assert float(notes["threshold"]) == pytest.approx(0.25, abs=1e-6)
            low, *_, high = notes["score"]
            assert (low, high) == pytest.approx((min(CHANGES[step]), max(CHANGES[step])), abs=1e-6)
            assert float(notes["frozen"]) == pytest.approx(frozen[step])
        else:
            assert step in (1, 6)


def test_the_change_is_relative_to_the_pixel_and_averaged_over_the_token():
    """Two channels: pixel (3,4) moves by (0,5): 5/5 = 1; (0,1) by (0,2): 2; (1,0) not: 0; 0 by 1e-6: 1e-6/1e-6 = 1.
    The mean of four is 1."""
    from wanlab.engine.policies.pruning.rules import change

    before = torch.tensor([[[3.0, 0.0], [1.0, 0.0]], [[4.0, 1.0], [0.0, 0.0]]]).reshape(1, 2, 1, 2, 2)
    moved = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[5.0, 2.0], [0.0, 1e-6]]]).reshape(1, 2, 1, 2, 2)
    assert change(before + moved, before).tolist() == pytest.approx([1.0], rel=1e-5)


def test_ras_leaves_out_the_largest_and_lets_the_starving_back():
    """Two of four tokens at the high end, of |d| = 1, 2, 3, 4 times the solver's step. Step 1: 4 and 3 are left out.
    With starvation 1 theirs count exp(-1) times: 1, 2, 1.10, 1.47: step 2 leaves out tokens 1 and 3 (2 and 1.47)."""
    walk = Walk("ras:ratio=0.5,start=1,reset=0,starvation=1,metric=l2norm")
    chosen = []
    for k in range(3):
        computed, velocity, _ = walk.step(k, [1.0] * 4, [1.0, 2.0, 3.0, 4.0])
        chosen.append(computed)
        after(walk, k, velocity)
    assert chosen == [[0, 1, 2, 3], [0, 1], [0, 2]]


def test_ras_at_the_low_end_keeps_the_largest():
    """high=0: of |d| = 1, 2, 3, 4 the two smallest are left out; then they count e times: 2.7, 5.4, 3, 4."""
    walk = Walk("ras:ratio=0.5,start=1,reset=3,high=0,starvation=1,metric=l2norm")
    chosen = []
    for k in range(5):
        computed, velocity, _ = walk.step(k, [1.0] * 4, [1.0, 2.0, 3.0, 4.0])
        chosen.append(computed)
        after(walk, k, velocity)
    # The third step after the start is a reset.
    assert chosen[:4] == [[0, 1, 2, 3], [2, 3], [1, 3], [0, 1, 2, 3]]


def test_topk_takes_those_that_waited_and_then_those_that_changed_most():
    """Ratio 1/2 of four tokens and at most one step of waiting: the two that were left out are always next. With at
    most three steps one of the two is the oldest, of the largest change first; the other the largest change."""
    walk = Walk("topk:ratio=0.5,start=2,stale=3")
    chosen = []
    for k, v in enumerate([[0.0] * 4, [1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 4.5], [5.0, 5.0, 5.0, 5.0], [5.0] * 4]):
        computed, velocity, _ = walk.step(k, [1.0] * 4, v)
        chosen.append(computed)
        after(walk, k, velocity)
    # Step 2: no one waited, changes 1 2 3 4: {2, 3}; then these changed by 2 and .5. Step 3: of 0 and 1, which waited,
    # token 1 changed by 2; of the others token 2 by 2. Step 4: token 0 has waited two steps; changes 1, 3, 0, .5.
    assert chosen == [[0, 1, 2, 3], [0, 1, 2, 3], [2, 3], [1, 2], [0, 1]]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.floats(0.0, 1.0), st.integers(0, 99))
def test_topk_leaves_no_token_out_for_longer_than_it_says(stale, more, seed):
    ratio = min(1.0, 1 / (stale + 1) + more * 0.5)
    walk, generator = Walk(f"topk:ratio={ratio},start=2,stale={stale}", frames=9), torch.Generator().manual_seed(seed)
    waits = np.zeros(9, int)
    for k in range(13):
        computed, velocity, _ = walk.step(k, [1.0] * 9, torch.randn(9, generator=generator).tolist())
        waits = np.where(np.isin(np.arange(9), computed), 0, waits + 1)
        assert waits.max() <= stale
        after(walk, k, velocity)


def after(walk, k, velocity):
    """The end of step k, whose guided velocity is that of its branches."""
    from types import SimpleNamespace

    record = SimpleNamespace(ctx=walk.env.steps[k], velocity=spread(velocity))
    walk.session.after(record)


# --- what stands for the velocity of a frozen token -------------------------------------------------------------------


def bend(call):
    """A velocity that depends on where and when."""
    return (call.x * (1 + call.ctx.index)).expand(len(call.branches), -1, -1, -1, -1)


def test_on_a_first_order_solver_a_kept_velocity_is_a_kept_clean_latent():
    """x moves along v, so x - sigma v stays the same: with Euler both are one and the same."""
    kept = [toy([f"{PRUNE},keep={k}"], bend, frames=6) for k in ("velocity", "x0")]
    assert torch.allclose(kept[0][-1].x_next, kept[1][-1].x_next, atol=1e-5)
    unipc = [toy([f"{PRUNE},keep={k}"], bend, frames=6, solver="unipc") for k in ("velocity", "x0")]
    assert float((unipc[0][2].x_next - unipc[1][2].x_next).abs().max()) > 1e-5  # by its terms of second order


@pytest.mark.parametrize("solver", ["euler", "unipc", "dpm++"])
def test_what_is_held_does_not_move(solver):
    records = toy([f"{PRUNE},keep=hold"], bend, frames=6, solver=solver)
    for record in records[2:13]:
        frozen = ~computed(record)
        assert frozen.any()
        assert torch.equal(record.x_next[:, :, frozen], record.x_t[:, :, frozen])
        assert not torch.equal(record.x_next[:, :, ~frozen], record.x_t[:, :, ~frozen])
    assert computed(records[13]).all()  # the expert switch


def computed(record, width=1):
    """The tokens [N] that a step computed, `width` of them in a row."""
    everything = np.full((*record.x_t.shape[2:3], record.x_t.shape[3] // 2, 1), 255, np.uint8)
    mask = next((v for k, v in record.notes.items() if k.endswith("/mask")), everything)
    return torch.from_numpy(np.unpackbits(mask, axis=-1, count=width).astype(bool)).flatten()


def test_the_corrector_can_be_kept_from_frozen_tokens():
    """UniPC corrects x_t by the newest prediction before it steps on; active tokens are none the wiser. Its first step
    is of first order, after which a velocity used again corrects nothing. Euler has no corrector."""
    for solver, same in (("unipc", False), ("euler", True)):
        with_it, without = (
            toy([f"random_tokens:start=1,corrector={c}"], bend, frames=6, solver=solver) for c in ("true", "false")
        )
        active = computed(with_it[2])
        assert torch.allclose(with_it[1].x_next, without[1].x_next, atol=1e-6)
        assert torch.equal(with_it[2].x_next[:, :, active], without[2].x_next[:, :, active])
        assert torch.equal(with_it[2].x_next[:, :, ~active], without[2].x_next[:, :, ~active]) is same


def test_nothing_outlives_the_expert_switch_or_a_jump():
    records = toy(["random_tokens:ratio=0.5,start=1,scope=all"], bend, frames=6)
    assert [int(computed(r).sum()) for r in records] == [6] + [3] * 12 + [6] + [3] * 6
    # Copied frames have no velocity of their own: the step after is whole.
    records = toy(["paired:switch=5", "random_tokens:ratio=0.5,start=1"], bend, frames=6)
    assert [int(computed(r).sum()) for r in records[:13]] == [6] + [3] * 4 + [6] + [3] * 7


def test_half_frames_drop_the_mask_where_they_are_completed(model, checkpoint):
    """9 latent frames' half is 5 of 4 tokens: 20, then 36."""
    spec = make_spec(checkpoint, frames=33, policies=["half:switch=6", "random_tokens:ratio=0.5,start=1"])
    records = sample(model, spec)
    assert [r.ran.block_tokens // 4 for r in records] == [20] + [10] * 5 + [36] + [18] * 6 + [36] * 7
    assert run.plan(spec).flops == pytest.approx(sum(r.ran.operations for r in records))


# --- the network ------------------------------------------------------------------------------------------------------

NEUTRAL = [
    "prune:threshold=0",
    "prune:threshold=0,keys=absent,keep=x0",
    "prune:threshold=0,keys_dtype=float8,corrector=false",
    "random_tokens:ratio=1",
    "ras:ratio=1",
    "topk:ratio=1",
    "tome:ratio=1",
]


@pytest.mark.parametrize("policy", NEUTRAL)
def test_with_all_tokens_it_is_the_plain_run_bit_for_bit(model, checkpoint, policy):
    plain, same = (sample(model, make_spec(checkpoint, policies=p)) for p in ([], [policy]))
    assert all(torch.equal(a.x_next, b.x_next) for a, b in zip(plain, same, strict=True))
    assert all(r.status("cond") == "fresh" for r in same)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(("policy", "attended"), [*((p, 20) for p in SOME[:3]), (SOME[3], 12)])
def test_frozen_tokens_enter_no_block(model, checkpoint, policy, attended, batched):
    """20 tokens, 2 blocks, 2 branches; half of them, or of merged ones 12: cells of 2x1x1 leave 3 of 5 frames."""
    if policy.startswith("tome"):
        policy += ",ratio=0.6"
    spec = make_spec(checkpoint, policies=[policy])
    records, planned = sample(model, spec, batched=batched), run.plan(spec)
    active = 12 if policy.startswith("tome") else 10
    last = records[11]
    assert last.ran.block_tokens == active * 4 and last.ran.attention_pairs == active * attended * 4
    # A merged token's value is of this step too.
    assert last.status("cond") == ("fresh" if policy.startswith("tome") else "reused")
    assert records[13].status("cond") == "fresh"
    assert planned.exact and planned.flops == pytest.approx(sum(r.ran.operations for r in records))
    assert passes(records) == planned.passes == 40


def test_a_batch_of_other_branches_is_computed_wholly_once(model, checkpoint):
    """Batched, a branch by itself has nothing to keep at the first step without the other, and the plan knows it."""
    spec = make_spec(
        checkpoint, steps=12, policies=["random_tokens:scope=all,start=1,keep=hold", "cfg:last=3"], batch_cfg=True
    )
    records, planned = sample(model, spec, batched=True), run.plan(spec)
    assert planned.exact and planned.flops == pytest.approx(sum(r.ran.operations for r in records))
    assert [r.ran.block_tokens for r in records[8:]] == [2 * 2 * 20, 2 * 20, 2 * 10, 2 * 10]
    assert [float(r.notes["0/active"]) for r in records[8:]] == [1.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize("rule", ["cfg:last=1,keep=reuse", "cfgcache:every=4"])
def test_what_merged_tokens_gave_can_be_used_again(model, checkpoint, rule):
    spec = make_spec(checkpoint, steps=10, policies=["tome:scope=all,ratio=0.6", rule])
    records, planned = sample(model, spec), run.plan(spec)
    assert passes(records) == planned.passes < 20
    assert all(r.status("cond") == "fresh" and 0 < r.ran.shares["cond"] < 1 for r in records)


def test_absent_keys_are_not_attended_to_nor_kept(model, checkpoint):
    spec = make_spec(checkpoint, policies=[f"{SOME[0]},keys=absent"])
    assert sample(model, spec)[5].ran.attention_pairs == 10 * 10 * 4
    assert "keys" not in run.plan(spec).memory_bytes


def test_prune_runs_within_the_bounds_that_the_dry_run_gives(model, checkpoint):
    spec = make_spec(checkpoint, policies=["prune"])
    records, planned = sample(model, spec), run.plan(spec)
    low, high = planned.flops_bounds
    assert low < sum(r.ran.operations for r in records) < high == planned.plain_flops
    # Linear interpolation at 20 % of 19 gaps is 3.8: four tokens are below, 16 of 20 are computed in step 6.
    assert records[5].ran.block_tokens == 16 * 4 and records[4].ran.block_tokens == 80
    shares = [r.ran.block_tokens for r in records[5:13]]
    assert shares == sorted(shares, reverse=True) and min(shares) >= 2 * 4


def test_the_control_by_lot_leaves_out_as_many(model, checkpoint):
    lot = sample(model, make_spec(checkpoint, policies=["prune:choice=lot"]))
    rule = sample(model, make_spec(checkpoint, policies=["prune"]))
    assert [r.ran.block_tokens for r in lot[:6]] == [r.ran.block_tokens for r in rule[:6]]
    assert not torch.equal(lot[5].x_next, rule[5].x_next)


def test_stale_keys_are_those_of_the_last_computation(model, checkpoint):
    """Frozen tokens' keys stay bit for bit, active ones' are new, in every block and branch."""
    kept = []

    def look(session_state):
        kept.append({k: v.clone() for k, v in session_state.items() if "/key " in k or "/value " in k})

    spec = run.resolve(make_spec(checkpoint, policies=[SOME[0]]), model.checkpoint)
    for record, state in states(model, spec, 4):
        look(state)
        if record.ctx.index > 0:
            before, now = kept[-2:]
            mask = computed(record, 2)
            assert len(now) == 2 * 2 * 2
            for name in now:
                assert torch.equal(before[name][:, ~mask], now[name][:, ~mask]), name
                assert not torch.equal(before[name][:, mask], now[name][:, mask]), name


def states(model, spec, steps):
    """The first steps' records, each with the state of the session after it."""
    from wanlab.engine.loop import denoise
    from wanlab.engine.model.transformer import Denoiser
    from wanlab.engine.run.forecast import make_env
    from wanlab.engine.solvers import Solver

    solver = Solver(spec.solver, spec.schedule, spec.steps, spec.shift, model.checkpoint.scheduler, model.device)
    env = make_env(spec, model.checkpoint, solver)
    sessions = policies.begin(spec.policies, env)
    embeds = {"cond": model.encode(spec.prompt), "uncond": model.encode("")}
    network = Denoiser(model, embeds, keeps_keys=True)
    for record in denoise(run.initial_noise(0, env, model.device), env, solver, network, sessions):
        yield record, sessions[0].state()
        if record.ctx.index + 1 == steps:
            return


def test_keys_of_8_bits_round_what_is_remembered_and_nothing_else(model, checkpoint):
    """A kept key is within 1/16 of what it was (e4m3 has 3 bits of mantissa), and the next step attends to it."""
    spec = make_spec(checkpoint, policies=[SOME[0]])
    exact, small = (
        sample(model, dataclasses.replace(spec, policies=(p,)))
        for p in (PolicySpec.parse(SOME[0]), PolicySpec.parse(f"{SOME[0]},keys_dtype=float8"))
    )
    assert torch.equal(exact[0].x_next, small[0].x_next) and not torch.equal(exact[1].x_next, small[1].x_next)
    assert float((exact[12].x_next - small[12].x_next).norm() / exact[12].x_next.norm()) < 0.02
    x = torch.randn(1, 5, 2, 12, generator=torch.Generator().manual_seed(0))
    values, scale = kernels.tokens_to_float8(x)
    assert (values.shape, scale.shape, values.dtype) == (x.shape, (1, 5, 1, 1), torch.float8_e4m3fn)
    assert ((values.float() * scale - x).abs() <= x.abs() / 16 + scale / 512).all()


@pytest.mark.slow
def test_one_compilation_serves_every_block_and_number_of_active_tokens(model):
    """Three graphs: all tokens; all with keys kept; some. As many for two blocks as for one, and no more for another
    number of active tokens."""
    from wanlab.engine.model.transformer import Blocks

    graphs, backend = collecting()
    torch._dynamo.reset()
    expert = model.experts["high"]
    kernels.set_self_attention(expert, "auto", ours=True)
    blocks = [copy.deepcopy(block) for block in expert.blocks]
    for block in blocks:
        block.compile(dynamic=True, backend=backend)
    hidden, text = torch.randn(1, 20, 24), torch.randn(1, 9, 24)
    rotary = expert.rope(torch.zeros(1, 16, 5, 4, 4))
    stack, keys = Blocks(blocks, (text, torch.randn(1, 6, 24), rotary), None), {}
    with torch.no_grad():
        stack(hidden)
        stack(hidden, None, keys)
        for count in (7, 8, 11, 14, 17):
            stack(hidden.index_select(1, torch.arange(count)), torch.arange(count), keys)
    kernels.set_self_attention(expert, "auto")
    torch._dynamo.reset()
    assert len(graphs) == 3


# --- merging ----------------------------------------------------------------------------------------------------------


def merged(hidden, function, policy, frames):
    """What tome makes of hidden states [1,N,D] with blocks that are a function of them, and which tokens it ran."""
    env, _ = toy_env(frames=frames)
    (session,) = policies.begin([PolicySpec.parse(policy)], env)
    seen = []

    class Some:
        def __call__(self, x, active=None, keys=None, **_):
            seen.append((x, active))
            return function(x)

    call = Call(ctx=env.steps[0], branches=("cond",), x=torch.zeros(1, 1, frames, 2, 2))
    return session.through(call, hidden, Some()), *seen[0]


def test_merged_tokens_are_averaged_and_get_what_their_destination_gets():
    """Four tokens in two cells of two frames, three left: of (1,0), (1,1) and (1,0), (1,.1) the second are more alike.
    Their mean is (1,.05); blocks that add twice their input give both tokens (2,.1)."""
    hidden = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [1.0, 0.1]]])
    out, ran, active = merged(hidden, lambda x: 3 * x, "tome:cell=2x1x1,ratio=0.75", 4)
    assert active.tolist() in ([0, 1, 2], [0, 1, 3])  # the destination is drawn
    assert torch.allclose(ran, torch.tensor([[[1.0, 0.0], [1.0, 1.0], [1.0, 0.05]]]))
    assert torch.allclose(out, torch.tensor([[[3.0, 0.0], [3.0, 3.0], [3.0, 0.1], [3.0, 0.2]]]))


def test_tokens_that_are_equal_lose_nothing_by_merging():
    hidden = torch.randn(1, 3, 4).repeat_interleave(2, dim=1)
    out, ran, _ = merged(hidden, lambda x: x * x, "tome:cell=2x1x1,ratio=0.5", 6)
    assert ran.shape == (1, 3, 4) and torch.allclose(out, hidden * hidden, atol=1e-6)


# --- cost, in the model's own operations ------------------------------------------------------------------------------

A14B = Cost(layers=40, width=5120, inner=13824, text_width=4096, channels=32)


@pytest.mark.parametrize(
    ("tokens", "stale", "absent"),
    [
        # Of rho .9, .8, .7, .5, .3: recomputed from 8nD² + 4n²D + 4nD² + 4LD² + 4nLD + 4nDM.
        (20_280, (0.900, 0.801, 0.701, 0.501, 0.302), (0.864, 0.736, 0.616, 0.400, 0.217)),
        (32_760, (0.900, 0.800, 0.700, 0.501, 0.301), (0.853, 0.716, 0.590, 0.370, 0.191)),
        (75_600, (0.900, 0.800, 0.700, 0.500, 0.300), (0.835, 0.685, 0.549, 0.321, 0.150)),
    ],
)
def test_the_share_of_a_block_at_full_size(tokens, stale, absent):
    whole = A14B.block(tokens, tokens)
    for rho, with_keys, without in zip((0.9, 0.8, 0.7, 0.5, 0.3), stale, absent, strict=True):
        assert A14B.block(round(rho * tokens), tokens) / whole == pytest.approx(with_keys, abs=6e-4)
        assert A14B.block(round(rho * tokens), round(rho * tokens)) / whole == pytest.approx(without, abs=6e-4)


@pytest.mark.parametrize(
    ("tokens", "steps", "stale", "absent"),
    [
        (20_280, 20, 1.06, 1.09),
        (32_760, 20, 1.06, 1.09),
        (75_600, 20, 1.06, 1.10),
        (20_280, 40, 1.22, 1.28),
        (32_760, 40, 1.22, 1.30),
        (75_600, 40, 1.22, 1.34),
    ],
)
def test_the_bound_of_the_origins_claims(tokens, steps, stale, absent):
    """Active shares as it expects them: steps 1-5 all, 6-10 .9, 11-15 .775, 16-20 .6, then .4; 13 of 20 steps are of
    the high-noise expert, 26 of 40; the other one's are whole."""
    high = {20: 13, 40: 26}[steps]
    shares = [*([1.0] * 5), *([0.9] * 5), *([0.775] * 5), *([0.6] * 5), *([0.4] * 20)][:high]
    for keys, bound in (("stale", stale), ("absent", absent)):
        ran = sum(A14B.block(round(r * tokens), tokens if keys == "stale" else round(r * tokens)) for r in shares)
        ran += (steps - high) * A14B.block(tokens, tokens)
        assert steps * A14B.block(tokens, tokens) / ran == pytest.approx(bound, abs=0.006)


def test_rounding_keeps_shapes_few_and_costs_little():
    assert [shared.multiple(n) for n in (4, 20, 585, 1560, 20_280, 75_600)] == [1, 1, 4, 8, 128, 128]
    assert shared.rounded(0.5 * 20_280, 20_280) == 10_240 and shared.rounded(20_270, 20_280) == 20_280
    assert shared.rounded(0.1 * 585, 585) == 60 and shared.rounded(0.5 * 20, 20) == 10
    for n in (4, 585, 20_280):
        assert all(shared.rounded(k, n) - k <= max(n / 128, 0) for k in range(1, n + 1, max(1, n // 97)))


# --- memory -----------------------------------------------------------------------------------------------------------


def test_kept_keys_are_in_the_dry_run(checkpoint):
    """20 tokens, 2 blocks, D 24, 2 branches, float32: 2 x 2 x 24 x 4 x 20 x 2 = 15360; in 8 bits (24 + 4) in place of
    96 bytes a token: 4480; of 9 latent frames' half 5 x 4 tokens, though afterwards there are 36."""

    def keys(*texts, frames=17):
        return run.plan(make_spec(checkpoint, frames=frames, policies=texts)).memory_bytes.get("keys")

    assert keys(SOME[0]) == 15360 and keys(f"{SOME[0]},keys_dtype=float8") == 4480
    assert keys("prune") == 15360 and keys("tome") is None and keys("prune:threshold=0") == 15360
    assert keys("half", SOME[0], frames=33) == 15360 and keys("half", f"{SOME[0]},scope=low", frames=33) == 27648


def test_a_plan_that_does_not_fit_is_refused():
    """33 GB of keys beside one expert of 28 GB fit 80 GB, beside both they do not."""
    peaks = {"resident": 110 * 10**9, "swap": 64 * 10**9, "offload": 40 * 10**9}
    placement.check_keys(peaks, 33 * 10**9, "swap", 80 * 10**9)
    placement.check_keys(peaks, 0, "resident", 80 * 10**9)  # without keys as ever
    with pytest.raises(
        UsageError, match=r"33.0 GB of kept keys.*110.0 GB under plan resident.*80.0 GB.*--memory swap, or"
    ):
        placement.check_keys(peaks, 33 * 10**9, "resident", 80 * 10**9)
    with pytest.raises(UsageError, match="; use keys_dtype=float8 or keys=absent"):
        placement.check_keys(peaks, 33 * 10**9, "offload", 30 * 10**9)


def test_at_full_size_the_keys_are_33_gigabytes(tmp_path):
    """2 x 40 blocks x 5120 x 2 bytes x 20 280 tokens x 2 branches = 33.2 GB; 8 bits halve it."""
    assert 2 * A14B.layers * A14B.width * 2 * 20_280 * 2 == pytest.approx(33.2e9, rel=2e-3)


# --- the record -------------------------------------------------------------------------------------------------------


def test_the_record_of_a_pruned_run(tmp_path, loaded, checkpoint):
    spec = make_spec(checkpoint, policies=["prune"], record=RecordSpec(level="latents", probe=True))
    with Run(run.execute(spec, tmp_path / "a.h5", loaded=loaded)) as file:
        active, mask = file["prune_active"][...], file["prune_mask"][...]
        assert mask.shape == (20, 5, 2, 1) and mask.dtype == np.uint8
        bits = np.unpackbits(mask, axis=-1, count=2)
        assert bits[5:13].mean((1, 2, 3)) == pytest.approx(active[5:13]) and (active[13:] == 1).all()
        assert file["block_tokens"][...][5:13] == pytest.approx(active[5:13] * 80)
        assert file["prune_score"].shape == (20, 5) and (np.diff(file["prune_score"][...][1:13]) >= 0).all()
        assert (
            np.isfinite(file["prune_threshold"][...][4:13]).all() and np.isnan(file["prune_threshold"][...][:4]).all()
        )
        for branch in ("cond", "uncond"):
            whole, inside, outside = (file[f"reuse_error{p}_{branch}"][...] for p in ("", "_active", "_frozen"))
            assert (outside[5:13] > 0).all() and np.isnan(outside[:5]).all() and np.isnan(outside[13:]).all()
            # Of two parts' errors the whole's lies between them.
            assert (whole[5:13] <= np.maximum(inside, outside)[5:13] + 1e-9).all()
            assert (whole[5:13] >= np.minimum(inside, outside)[5:13] - 1e-9).all()


def test_the_mask_is_recorded_with_latents_only(tmp_path, loaded, checkpoint):
    spec = make_spec(checkpoint, policies=[SOME[0]])
    with Run(run.execute(spec, tmp_path / "a.h5", loaded=loaded)) as file:
        assert "random_tokens_active" in file and "random_tokens_mask" not in file


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("prune:threshold=101", "use 0 to 100"),
        ("prune:start_step=5", "use start_step=6 or more"),
        ("prune:baseline_steps=13,start_step=14", "13 in scope; use more --steps"),
        ("prune:start_step=7,end_step=6", "leaves out nothing"),
        ("prune:baseline_steps=1", "use 2 or more"),
        ("random_tokens:ratio=0", "use more than 0"),
        ("random_tokens:start=13", "use a smaller start"),
        ("random_tokens:scope=single", "choose from all, high, low"),
        ("topk:start=1", "use start=2 or more"),
        ("topk:ratio=0.2", "use 0.25 to 1"),
        ("ras:high=1.5", "use 0 to 1"),
        ("ras:reset=1", "or 0 for none"),
        ("tome:ratio=0.2,cell=2x1x1", "use ratio=0.6 or more"),
        ("tome:cell=2x2", "such as 2x2x2"),
        ("tome:start=13", "use 0 to 12"),
    ],
)
def test_what_means_nothing_is_refused(checkpoint, policy, says):
    with pytest.raises(UsageError, match=says):
        run.plan(make_spec(checkpoint, policies=[policy]))


def test_a_model_of_one_expert_has_no_high_noise_steps(single_checkpoint):
    with pytest.raises(UsageError, match="the steps are of: single; use prune:scope=all"):
        run.plan(make_spec(single_checkpoint, policies=["prune"]))
    assert not run.plan(make_spec(single_checkpoint, policies=["prune:scope=all"])).exact
