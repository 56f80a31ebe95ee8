"""The seams for methods that decide while they run: what is recorded, counted, forecast, kept and given back."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from wanlab.engine import policies, run
from wanlab.engine.guiders import CfgZero, Linear
from wanlab.engine.model.config import TransformerConfig
from wanlab.engine.model.cost import Cost
from wanlab.engine.model.transformer import Denoiser
from wanlab.engine.run.forecast import make_env
from wanlab.engine.solvers import Solver
from wanlab.engine.types import Call, Session
from wanlab.errors import UsageError, WanlabError
from wanlab.runfile import Run
from wanlab.spec import PolicySpec, RecordSpec

from .helpers import make_spec, passes, sample, toy

EXAMPLES = Path(__file__).parents[2] / "examples"
SKIP = f"{EXAMPLES}/skip_every_other.py:skip_every_other"
BLOCK = f"{EXAMPLES}/first_block_cache.py:first_block_cache"


# --- reuse of whole velocities ---------------------------------------------------------------------------------------


def test_every_other_step_is_eight_of_sixteen_passes(tmp_path, loaded, checkpoint):
    """8 steps of shift 12 have 6 high-noise ones: 0, 2, 4 and 6 are evaluated, 4 steps of 2 branches."""
    spec = make_spec(checkpoint, steps=8, policies=[SKIP])
    expected = run.plan(spec)
    assert (expected.passes, expected.passes_bounds, expected.plain_passes, expected.exact) == (8, (8, 8), 16, True)
    assert expected.speedup == 2.0
    with Run(run.execute(spec, tmp_path / "a.h5", loaded=loaded)) as file:
        odd = np.arange(8) % 2 == 1
        assert file["passes"][...].tolist() == [2, 0] * 4
        assert file["operations"][...].sum() * 2 == expected.plain_flops
        assert not file["block_tokens"][...][odd].any() and not file["attention_pairs"][...][odd].any()
        # 20 tokens, 2 blocks, 2 branches
        assert file["block_tokens"][...][0] == 20 * 2 * 2 and file["attention_pairs"][...][0] == 20 * 20 * 2 * 2
        for branch in ("cond", "uncond"):
            assert np.asarray(file[f"status_{branch}"]).tolist() == ["fresh", "reused"] * 4
        for name in ("mse", "change", "cosine"):
            assert np.isnan(file[name][...][odd]).all(), name
        assert np.isfinite(file["mse"][...][~odd]).all()
        assert np.isnan(file["change"][...]).all()  # never two fresh steps in a row
        assert np.isnan(file["reuse_error_cond"][...]).all()


def test_a_reused_velocity_is_the_one_of_the_step_before(model, checkpoint):
    records = sample(model, make_spec(checkpoint, steps=8, policies=[SKIP]))
    for fresh, reused in zip(records[::2], records[1::2], strict=True):
        assert set(fresh.predictions) == set(reused.reused) == {"cond", "uncond"} and not reused.predictions
        for branch in ("cond", "uncond"):
            assert torch.equal(fresh.predictions[branch], reused.reused[branch])


def test_nothing_crosses_the_expert_switch(model, checkpoint):
    """20 steps: 13 high-noise ones. Step 13, the first of the low-noise expert, is evaluated, though it is odd."""
    records = sample(model, make_spec(checkpoint, policies=[SKIP]))
    evaluated = [r.ctx.index for r in records if r.ran.passes]
    assert evaluated == [0, 2, 4, 6, 8, 10, 12, 13, 15, 17, 19]


@pytest.mark.parametrize("batched", [False, True])
def test_probes_say_how_far_off_a_reused_value_is_and_disturb_nothing(model, checkpoint, batched):
    spec = make_spec(checkpoint, steps=8, policies=[SKIP])
    plain = sample(model, spec, batched=batched)
    probed = sample(model, spec, batched=batched, probe=True)
    assert torch.equal(plain[-1].x_next, probed[-1].x_next) and passes(plain) == passes(probed) == 8
    assert [set(r.probes) for r in probed] == [set(), {"cond", "uncond"}] * 4
    assert not torch.equal(probed[1].probes["cond"], probed[1].reused["cond"])


def test_the_reuse_error_is_relative_to_the_fresh_value(tmp_path, loaded, checkpoint):
    spec = make_spec(checkpoint, steps=8, policies=[SKIP], record=RecordSpec(probe=True))
    with Run(run.execute(spec, tmp_path / "a.h5", loaded=loaded)) as file:
        error = file["reuse_error_cond"][...]
        assert np.isnan(error[::2]).all() and (error[1::2] > 0).all()
        assert np.asarray(file["probed"]).tolist() == [False, True] * 4
        assert np.isfinite(file["mse"][...]).all() and np.isfinite(file["change"][...][1:]).all()


def test_a_toy_reuse_error_by_hand():
    """v = (k+1)^2 at step k: at step 1 the value of step 0 is reused, |1 - 4| / 4."""
    from wanlab.engine.observers.reuse import Reuse

    def squares(call):
        return torch.full((len(call.branches), *call.x.shape[1:]), float((call.ctx.index + 1) ** 2))

    records = toy([SKIP], squares, steps=8, probe=True)
    assert float(Reuse().observe(records[1])["reuse_error_cond"]) == pytest.approx(0.75)
    assert math.isnan(float(Reuse().observe(records[0])["reuse_error_cond"]))


def test_a_policy_that_knew_wrong_is_recorded_as_it_ran(model, checkpoint):
    """It says that all is reused, and evaluates all the same."""

    class Liar(Session):
        def plan(self, plan, ctx):
            return dataclasses.replace(plan, reused=plan.branches)

    (record, *_) = toy_with(Liar())
    assert record.ran.passes == 2 and set(record.predictions) == {"cond", "uncond"}


def toy_with(*sessions, **options):
    """A toy run of given sessions."""
    from wanlab.engine.loop import denoise

    from .helpers import Toy, toy_env

    env, solver = toy_env(**options)
    x = torch.zeros(1, 1, env.shape[1], 2, 2)
    return list(denoise(x, env, solver, Toy(lambda c: c.x.expand(len(c.branches), -1, -1, -1, -1)), sessions))


# --- inside the blocks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [False, True])
def test_a_block_cache_that_never_skips_is_the_plain_run_bit_for_bit(model, checkpoint, batched):
    plain = sample(model, make_spec(checkpoint), batched=batched)
    cached = sample(model, make_spec(checkpoint, policies=[f"{BLOCK}:threshold=0.0"]), batched=batched)
    assert all(torch.equal(a.x_next, b.x_next) for a, b in zip(plain, cached, strict=True))
    assert all(r.status("cond") == "fresh" for r in cached)


def test_a_block_cache_counts_the_blocks_that_ran(tmp_path, loaded, checkpoint):
    """With a threshold above everything only the first step of each expert runs both blocks: 20 tokens, 2 branches."""
    spec = make_spec(checkpoint, policies=[f"{BLOCK}:threshold=1e9"])
    expected = run.plan(spec)
    cost = Cost.of(
        TransformerConfig.from_json(
            {
                "num_attention_heads": 2,
                "attention_head_dim": 12,
                "ffn_dim": 32,
                "num_layers": 2,
                "text_dim": 16,
                "freq_dim": 32,
            }
        )
    )
    one = cost.block(20, 20) + cost.around(20)
    assert not expected.exact and expected.passes_bounds == (40, 40)
    assert expected.flops_bounds[0] == pytest.approx(40 * one) and expected.flops == expected.plain_flops
    with Run(run.execute(spec, tmp_path / "a.h5", loaded=loaded)) as file:
        whole = [0, 13]
        assert file["block_tokens"][...].tolist() == [20 * 2 * (2 if k in whole else 1) for k in range(20)]
        assert file["passes"][...].sum() == 40
        assert np.flatnonzero(np.asarray(file["status_cond"]) == "fresh").tolist() == whole
        assert np.flatnonzero(np.isfinite(file["mse"][...])).tolist() == whole
        ran = file["operations"][...].sum()
        assert ran == pytest.approx(36 * one + 4 * cost.whole(20))
        assert expected.flops_bounds[0] <= ran <= expected.flops_bounds[1]
        difference = file["first_block_cache_difference"]
        assert difference.shape == (20, 2) and np.isnan(difference[...][whole]).all()
        assert np.isfinite(np.delete(difference[...], whole, axis=0)).all()


def test_two_policies_inside_the_blocks_are_refused(checkpoint):
    with pytest.raises(UsageError, match="two policies work inside the blocks"):
        run.plan(make_spec(checkpoint, policies=[BLOCK, f"{BLOCK}:threshold=0.2"]))


class Partial(Session):
    """From the second step of an expert on, the first tokens alone: the others keep what the blocks last made of
    them."""

    def __init__(self, active, keys):
        self.active, self.keys_kept = active, keys

    keeps_keys = True

    def through(self, call, hidden, blocks):
        memory = self.recall(call)
        keys = memory.setdefault("keys", {}) if self.keys_kept else None
        if "last" not in memory:
            memory["last"] = blocks(hidden, None, keys)
        else:
            active = torch.arange(self.active)
            fresh = blocks(hidden.index_select(1, active), active, keys)
            memory["last"] = memory["last"].index_copy(1, active, fresh)
        return memory["last"]


def partial(model, checkpoint, active, keys, steps=4):
    from wanlab.engine.loop import denoise

    spec = run.resolve(make_spec(checkpoint, steps=steps), model.checkpoint)
    solver = Solver(spec.solver, spec.schedule, spec.steps, spec.shift, model.checkpoint.scheduler, model.device)
    env = make_env(spec, model.checkpoint, solver)
    embeds = {"cond": model.encode(spec.prompt), "uncond": model.encode("")}
    x = run.initial_noise(0, env, model.device)
    network = Denoiser(model, embeds, keeps_keys=True)
    return list(denoise(x, env, solver, network, [Partial(active, keys)]))


@pytest.mark.parametrize("keys", [True, False])
def test_all_tokens_active_is_the_plain_run_bit_for_bit(model, checkpoint, keys):
    plain = sample(model, make_spec(checkpoint, steps=4))
    some = partial(model, checkpoint, 20, keys)
    assert all(torch.equal(a.x_next, b.x_next) for a, b in zip(plain, some, strict=True))


@pytest.mark.parametrize(("keys", "attended"), [(True, 20), (False, 5)])
def test_inactive_tokens_cost_nothing(model, checkpoint, keys, attended):
    """5 of 20 tokens: 2 blocks, 2 branches; keys that are kept are attended to."""
    records = partial(model, checkpoint, 5, keys)
    assert [r.ran.block_tokens for r in records[:2]] == [20 * 4, 5 * 4]
    assert [r.ran.attention_pairs for r in records[:2]] == [20 * 20 * 4, 5 * attended * 4]
    assert records[1].status("cond") == "reused" and records[0].status("cond") == "fresh"


def test_active_tokens_attend_to_stale_keys(model, checkpoint):
    """A block's self-attention of some tokens, against softmax(q k^T / sqrt(d)) v written out."""
    from wanlab.engine.model.kernels import SelfAttention

    attn = model.experts["high"].blocks[0].attn1
    torch.manual_seed(0)
    before, now = torch.randn(1, 20, 24), torch.randn(1, 20, 24)
    rotary = model.experts["high"].rope(torch.zeros(1, 16, 5, 4, 4))
    ours, active = SelfAttention(), torch.tensor([1, 7, 19])
    ours.keeps = True
    ours(attn, before, rotary_emb=rotary)
    some = tuple(r.index_select(1, active) for r in rotary)
    ours.active = active
    out = ours(attn, now[:, active], rotary_emb=some)
    mixed = before.clone()
    mixed[:, active] = now[:, active]
    q, k, v = ours.project(attn, mixed, rotary)
    weights = torch.softmax(torch.einsum("bqhd,bkhd->bhqk", q[:, active], k) / math.sqrt(12), -1)
    expected = attn.to_out[0](torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))
    assert torch.allclose(out, expected, atol=1e-5)


def test_keys_that_were_never_kept_are_missed(model, checkpoint):
    blocks = Denoiser(model, {"cond": model.encode("a"), "uncond": model.encode("")}, keeps_keys=True)

    def through(hidden, blocks):
        return blocks(hidden[:, :3], torch.arange(3), {})

    with pytest.raises(ValueError, match="run all tokens first"):
        ctx = toy_with()[0].ctx
        blocks(Call(ctx=ctx, branches=("cond",), x=torch.zeros(1, 16, 5, 4, 4), through=through))


# --- memory ----------------------------------------------------------------------------------------------------------


def test_a_session_gives_back_what_it_was_given(model, checkpoint):
    ctx = toy_with()[0].ctx
    one, other = Session(), Session()
    one.memory(ctx, 5, ("cond",)).update(velocity=torch.ones(2), count=3)
    one.memory(ctx, 5)["mask"] = [1, 0]
    other.restore(one.state())
    assert other.memory(ctx, 5, ("cond",))["count"] == 3 and other.memory(ctx, 5)["mask"] == [1, 0]
    assert torch.equal(other.memory(ctx, 5, ("cond",))["velocity"], torch.ones(2))
    other.forget(ctx, 4)
    assert not other.state()


@pytest.mark.parametrize(
    "policy",
    [
        SKIP,
        f"{BLOCK}:threshold=0.3",
        "cfg:last=6,high=4,keep=reuse",
        "half:rope=strided",
        pytest.param("prune:scope=all,baseline_steps=2,start_step=3,threshold=50", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_as_if_nothing_had_been(tmp_path, loaded, checkpoint, policy):
    """kill -9 after some step, in another process; then the same command again."""
    spec = make_spec(checkpoint, policies=[policy])
    whole = run.execute(spec, tmp_path / "whole.h5", loaded=loaded)
    code = (
        "import os, signal, sys, json\n"
        "from wanlab.engine.run import execute\n"
        "from wanlab.spec import RunSpec\n"
        "def tell(p):\n"
        "    if p.phase == 'sample' and p.step >= int(sys.argv[3]) and p.durable:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "execute(RunSpec.from_json(sys.argv[1]), sys.argv[2], progress=tell)\n"
    )
    for k in (4, 15):
        out = tmp_path / f"{k}.h5"
        done = subprocess.run(
            [sys.executable, "-c", code, spec.to_json(), str(out), str(k)], env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == -signal.SIGKILL and not out.exists()
        resumed = []
        run.execute(spec, out, loaded=loaded, progress=lambda p, seen=resumed: seen.append((p.phase, p.step)))
        assert any(phase == "resume" and 0 < step < 20 for phase, step in resumed)
        with Run(whole) as a, Run(out) as b:
            assert np.array_equal(a["latent"][...], b["latent"][...])
            for name in ("mse", "passes", "status_cond", "block_tokens"):
                assert np.array_equal(a[name][...], b[name][...], equal_nan=a[name].dtype.kind == "f"), name


def test_a_large_state_is_saved_rarely_and_the_run_still_goes_on(tmp_path, loaded, checkpoint, monkeypatch):
    """As if saving took ten seconds: after the first step's there is no other; stopped at step 9, steps 1 to 8 are done
    again, with the same result."""
    module = sys.modules["wanlab.engine.run.execute"]
    spec = make_spec(checkpoint, policies=[f"{BLOCK}:threshold=0.3"])
    whole = run.execute(spec, tmp_path / "whole.h5", loaded=loaded)
    monkeypatch.setattr(module, "LARGE", 0)
    real = module.pack

    def slow(state):
        packed = real(state)
        monkeypatch.setattr(module.time, "perf_counter", lambda now=module.time.perf_counter: now() + 10)
        return packed

    monkeypatch.setattr(module, "pack", slow)

    class Stop(Exception):
        pass

    def stop(p):
        if p.phase == "sample" and p.step == 9:
            raise Stop

    with pytest.raises(Stop):
        run.execute(spec, tmp_path / "a.h5", loaded=loaded, progress=stop)
    monkeypatch.undo()
    seen = []
    run.execute(spec, tmp_path / "a.h5", loaded=loaded, progress=lambda p: seen.append((p.phase, p.step)))
    assert ("resume", 1) in seen
    with Run(whole) as a, Run(tmp_path / "a.h5") as b:
        assert np.array_equal(a["latent"][...], b["latent"][...])
        assert np.array_equal(a["block_tokens"][...], b["block_tokens"][...])


# --- guiders ---------------------------------------------------------------------------------------------------------


def test_plain_guidance_and_its_rescaled_form_by_hand():
    """c = (3,4), u = (0,2): <c,u>/|u|^2 = 2, so s* u = (0,4) and s* u + 2 (c - s* u) = (6,4)."""
    c, u = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])
    both = {"cond": c, "uncond": u}
    assert Linear(2.0)(both).tolist() == [6.0, 6.0]
    steps = toy_with(steps=3)
    zero, plain = (CfgZero(zero_init=1).guide(2.0, r.ctx) for r in steps[:2])
    assert zero(both).tolist() == [0.0, 0.0] and plain(both).tolist() == pytest.approx([6.0, 4.0])
    assert CfgZero().guide(1.0, steps[0].ctx).branches == ("cond",)


def test_a_guider_is_asked_for_by_name_and_in_the_record(tmp_path, loaded, checkpoint):
    plain = make_spec(checkpoint, steps=4)
    zero = make_spec(checkpoint, steps=4, guider="cfgzero:zero_init=2")
    assert plain.digest() != zero.digest()
    with Run(run.execute(zero, tmp_path / "z.h5", loaded=loaded)) as file:
        assert np.asarray(file["guider"]).tolist() == ["cfgzero"] * 4
        assert file.spec.guider == PolicySpec("cfgzero", {"zero_init": 2})
    with pytest.raises(UsageError, match="did you mean zero_init"):
        run.plan(make_spec(checkpoint, guider="cfgzero:zero_int=2"))
    with pytest.raises(UsageError, match="choose from cfg, cfgzero"):
        run.plan(make_spec(checkpoint, guider="nothing"))


# --- files and entry points ------------------------------------------------------------------------------------------


def test_a_file_is_known_by_its_code_not_its_place(tmp_path, checkpoint):
    text = (EXAMPLES / "skip_every_other.py").read_text()
    (tmp_path / "mine.py").write_text(text)
    (tmp_path / "changed.py").write_text(text + "\n")
    specs = [make_spec(checkpoint, policies=[f"{tmp_path}/{n}.py:skip_every_other"]) for n in ("mine", "changed")]
    original = make_spec(checkpoint, policies=[SKIP])
    assert specs[0].digest() == original.digest() != specs[1].digest()
    assert type(specs[0]).from_json(specs[0].to_json()) == specs[0]
    assert str(specs[0].policies[0]) == f"{tmp_path}/mine.py:skip_every_other"


def test_a_method_from_a_file_is_called_by_its_name():
    from wanlab.spec import MethodSpec

    guider = f"guider={EXAMPLES}/guidance_interval.py:interval:low=0.5,high=0.9"
    method = MethodSpec.parse(f"{SKIP}:every=3+{guider}+steps=10")
    assert method.label == "skip_every_other:every=3+guider=interval:low=0.5,high=0.9+steps=10"
    assert MethodSpec.parse(str(method)).policies == method.policies
    assert MethodSpec.parse("cfg:last=5").label == "cfg:last=5"


@pytest.mark.parametrize(
    ("text", "says"),
    [("1/0", "cannot be run: ZeroDivisionError"), ("x = 1", "registers no policy 'mine'"), (None, "cannot read")],
)
def test_a_file_that_is_no_policy(tmp_path, checkpoint, text, says):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=says):
        run.plan(make_spec(checkpoint, policies=[f"{path}:mine"]))


def test_the_example_refuses_a_period_that_is_none(checkpoint):
    with pytest.raises(UsageError, match="every=0; use 1 or more"):
        run.plan(make_spec(checkpoint, policies=[f"{SKIP}:every=0"]))


def test_a_files_policy_is_nobody_elses(checkpoint):
    run.plan(make_spec(checkpoint, policies=[SKIP]))
    with pytest.raises(UsageError, match="unknown policy 'skip_every_other'"):
        run.plan(make_spec(checkpoint, policies=["skip_every_other"]))


def test_policies_are_judged_without_torch():
    code = (
        "import sys\n"
        "from wanlab.engine import policies\n"
        "from wanlab.registry import build\n"
        "from wanlab.spec import PolicySpec\n"
        "try: build('policy', PolicySpec('cfg', {'lst': 1}))\n"
        "except Exception as e: print(e, 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "did you mean last" in said and said.rstrip().endswith("False")


# --- numbers that are none -------------------------------------------------------------------------------------------


SPOILS = """
from dataclasses import dataclass
from wanlab.engine.types import Policy, Session
from wanlab.registry import register

@register("policy", "spoils")
@dataclass(frozen=True)
class Spoils(Policy):
    def begin(self, env):
        return Spoiling()

class Spoiling(Session):
    def evaluate(self, call, inner):
        return inner(call) * (float("nan") if call.ctx.index == 3 else 1.0)
"""


def test_a_bad_step_is_said_at_once_and_not_kept(tmp_path, loaded, checkpoint):
    (tmp_path / "spoils.py").write_text(SPOILS)
    spec = make_spec(checkpoint, steps=8, policies=[f"{tmp_path}/spoils.py:spoils"])
    for _ in range(2):  # the second time goes on from step 3, and meets it again
        with pytest.raises(WanlabError, match="step 4: the latents are no numbers"):
            run.execute(spec, tmp_path / "a.h5", loaded=loaded)
    shards = sorted(p.name for p in (tmp_path / "a.h5.part").glob("step-*"))
    assert shards == ["step-000000.wls", "step-000001.wls", "step-000002.wls"]


def test_what_a_policy_did_not_declare_is_refused(checkpoint):
    class Silent(Session):
        def evaluate(self, call, inner):
            self.note(surprise=1.0)
            return inner(call)

    from wanlab.engine.observers.reuse import Declared

    (record, *_) = toy_with(Silent())
    with pytest.raises(KeyError, match="surprise"):
        Declared(["silent"], [Silent()]).observe(record)


def test_sessions_begin_afresh(checkpoint, model):
    spec = run.resolve(make_spec(checkpoint), model.checkpoint)
    solver = Solver(spec.solver, spec.schedule, spec.steps, spec.shift, model.checkpoint.scheduler, model.device)
    env = make_env(spec, model.checkpoint, solver)
    a, b = (policies.begin([PolicySpec.parse(SKIP)], env)[0] for _ in range(2))
    a.memory(env.steps[0], 5)["x"] = 1
    assert not b.state()
