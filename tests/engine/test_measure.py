"""What the policy `measure` records, against numbers worked out by hand or outside of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wanlab.engine import run
from wanlab.engine.types import Call
from wanlab.errors import UsageError
from wanlab.runfile import Run

from .helpers import make_spec, passes, sample, toy


def noted(record):
    return {name.partition("/")[2]: value for name, value in record.notes.items()}


@pytest.mark.parametrize("batched", [False, True])
def test_sensitivities_of_a_linear_network_are_its_slopes(batched):
    # v = 0.3 x + 2 t/1000: changing x by d changes v by 0.3 d, changing t/1000 by d changes v by 2 d, in every step
    def linear(call: Call) -> torch.Tensor:
        velocity = 0.3 * call.x + 2 * call.ctx.timestep / 1000
        return velocity.expand(len(call.branches), *velocity.shape[1:])

    for record in toy(["measure"], linear, batched=batched):
        first = record.ctx.index in (0, 13)  # of each expert
        assert ("sensitivity_x" in noted(record)) is not first
        assert record.ran.passes == (2 if first else 3)
        assert record.status("cond") == record.status("uncond") == "fresh"
        if not first:
            assert noted(record)["sensitivity_x"] == pytest.approx(0.3, rel=1e-3)
            assert noted(record)["sensitivity_t"] == pytest.approx(2.0, rel=1e-3)


def hooked(model):
    """By call: what goes into the expert's stack and what comes out; and its timestep embedding [1,6 D]."""
    calls, embedded, handles = [], [], []
    for expert in {id(e): e for e in model.experts.values()}.values():
        first, last = expert.blocks[0], expert.blocks[-1]
        handles += [
            first.register_forward_pre_hook(lambda _, args: calls.append([args[0], None])),
            last.register_forward_hook(lambda _, args, out: calls[-1].__setitem__(1, out)),
            expert.condition_embedder.register_forward_hook(lambda _, args, out: embedded.append(out[1][:1])),
        ]
    return calls, embedded, handles


@pytest.mark.parametrize("batched", [False, True])
def test_ratios_are_those_of_the_stack_and_cross_the_switch(model, checkpoint, batched):
    """8 steps of shift 12, 6 of the high-noise expert; the ratio at step 6 is between the two experts' residuals."""
    calls, embedded, handles = hooked(model)
    try:
        records = sample(model, make_spec(checkpoint, steps=8, policies=["measure"]), batched=batched)
    finally:
        for handle in handles:
            handle.remove()
    norms, embeddings = [], []
    for k in range(8):
        extra = k not in (0, 6)
        count = (1 if batched else 2) + extra
        own = [(calls.pop(0), embedded.pop(0)) for _ in range(count)][extra:]
        norms.append(torch.cat([out - into for (into, out), _ in own]).norm(dim=-1).double())
        embeddings.append(own[0][1])
    assert not calls
    assert np.isnan(noted(records[0]).get("magnitude", np.nan)).all()
    for k in range(1, 8):
        expected = (norms[k] / norms[k - 1]).mean(dim=-1)
        assert noted(records[k])["magnitude"] == pytest.approx(expected.numpy(), rel=1e-5)
        if k == 6:
            assert "embedding" not in noted(records[k])
        else:
            changed = (embeddings[k] - embeddings[k - 1]).abs().mean() / embeddings[k - 1].abs().mean()
            assert noted(records[k])["embedding"] == pytest.approx(float(changed), rel=1e-6)


def test_it_changes_nothing_and_the_forecast_knows_its_passes(tmp_path, loaded, checkpoint):
    plain = run.execute(make_spec(checkpoint, steps=8), tmp_path / "plain.h5", loaded=loaded)
    spec = make_spec(checkpoint, steps=8, policies=["measure"])
    with Run(plain) as a, Run(run.execute(spec, tmp_path / "measured.h5", loaded=loaded)) as b:
        assert np.array_equal(a["latent"][...], b["latent"][...])
        expected = run.plan(spec)
        assert expected.passes == b["passes"][...].sum() == 8 * 2 + 6
        assert b["operations"][...].sum() == pytest.approx(expected.flops)


def test_killed_and_resumed_it_measures_the_same(tmp_path, loaded, checkpoint):
    spec = make_spec(checkpoint, steps=8, policies=["measure"])
    whole = run.execute(spec, tmp_path / "whole.h5", loaded=loaded)
    for stop in (5, 6):
        out = tmp_path / f"{stop}.h5"

        def kill(progress, stop=stop):
            if progress.phase == "sample" and progress.step == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run.execute(spec, out, loaded=loaded, progress=kill)
        with Run(whole) as a, Run(run.execute(spec, out, loaded=loaded)) as b:
            assert b.attrs["resumed_from_step"] == stop
            for name in ("magnitude", "embedding", "sensitivity_x", "sensitivity_t"):
                assert np.array_equal(a[f"measure_{name}"][...], b[f"measure_{name}"][...], equal_nan=True), name


def test_a_first_velocity_of_zero_moves_nothing():
    """As CFG-Zero* has it: there is no change to be had at the second step, and no division by it."""
    records = toy(["measure"], lambda call: call.x.expand(len(call.branches), -1, -1, -1, -1), guider="cfgzero")
    assert np.isnan(records[1].notes["0/sensitivity_x"]) and np.isfinite(records[2].notes["0/sensitivity_x"])
    assert passes(
        toy(["easycache:first=3"], lambda call: call.x.expand(len(call.branches), -1, -1, -1, -1), guider="cfgzero")
    )


@pytest.mark.parametrize("before", ["half:switch=5", "steps:keep=6", "taylorseer:interval=2,warmup=1"])
def test_the_forecast_knows_its_passes_beside_others(model, checkpoint, before):
    """What was remembered goes with the number of frames, and a step that is used again asks for nothing."""
    spec = make_spec(checkpoint, frames=33, steps=10, policies=[before, "measure"])
    assert [r.ran.passes for r in sample(model, spec)] == [r.passes for r in run.plan(spec).rows]


def test_one_branch_is_refused(checkpoint):
    with pytest.raises(UsageError, match="guidance 0 or 1 evaluates one branch"):
        run.plan(make_spec(checkpoint, guidance=(1.0, 4.0), policies=["measure"]))
