"""Around the expert switch the other expert is asked, for the record only."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from wanlab.engine.model import loading as models
from wanlab.engine.model.transformer import Denoiser
from wanlab.engine.run import execute, resolve
from wanlab.engine.run.forecast import forecast as full_plan
from wanlab.engine.run.forecast import make_env
from wanlab.engine.solvers import Solver
from wanlab.engine.types import Call
from wanlab.runfile import Run
from wanlab.spec import RecordSpec

from .helpers import make_spec, passes, sample


@pytest.mark.parametrize(
    "policies", [[], ["cfg:last=5,high=3,keep=cond"], ["half:rope=strided"], ["cfg:high=1,keep=reuse"]]
)
def test_it_is_asked_at_two_steps_and_changes_nothing(model, checkpoint, policies):
    spec = make_spec(checkpoint, policies=policies)
    plain, asked = sample(model, spec), sample(model, spec, both_experts=True)
    assert torch.equal(plain[-1].x_next, asked[-1].x_next) and passes(plain) == passes(asked)
    assert [r.ctx.index for r in asked if r.other is not None] == [12, 13]  # 13 of 20 steps are high-noise
    for r in (asked[12], asked[13]):
        assert r.other.shape == r.velocity.shape and not torch.equal(r.other, r.velocity)


def test_it_is_guided_as_the_step_is(model, checkpoint):
    """u + 4 (c - u) of the other expert's branches, evaluated one by one."""
    spec = resolve(make_spec(checkpoint, guidance=(2.0, 4.0)), model.checkpoint)
    record = sample(model, spec, both_experts=True)[12]
    solver = Solver(spec.solver, spec.schedule, spec.steps, spec.shift, model.checkpoint.scheduler, model.device)
    low = make_env(spec, model.checkpoint, solver).steps[13]
    assert (record.ctx.expert, low.expert) == ("high", "low")
    embeds = {"cond": model.encode(spec.prompt), "uncond": model.encode("")}
    denoiser = Denoiser(model, embeds)
    ctx = replace(low, t=record.ctx.t)  # the low-noise expert, at the timestep of the high-noise step
    with torch.no_grad():
        c, u = (denoiser(Call(ctx=ctx, branches=(b,), x=record.x_t)) for b in ("cond", "uncond"))
    assert torch.equal(record.other, u + 4.0 * (c - u))


def test_one_expert_has_no_other(single_checkpoint):
    model = models.load(str(single_checkpoint))
    assert all(r.other is None for r in sample(model, make_spec(single_checkpoint, steps=4), both_experts=True))


def test_it_is_in_the_run_file_where_it_was_asked(tmp_path, loaded, checkpoint):
    spec = make_spec(checkpoint, record=RecordSpec(level="all", probe=True, every=6))
    plain = make_spec(checkpoint, record=RecordSpec(level="all"))
    with (
        Run(execute(spec, tmp_path / "a.h5", loaded=loaded)) as asked,
        Run(execute(plain, tmp_path / "b.h5", loaded=loaded)) as without,
    ):
        assert asked["velocity_other_expert"].recorded == (12, 13) and "velocity_other_expert" not in without
        assert asked["x_t"].recorded == (0, 6, 12, 13, 18, 19)  # with what it is held against
        assert np.array_equal(asked["latent"][...], without["latent"][...])
        assert np.array_equal(asked["passes"][...], without["passes"][...])


def test_nobody_is_asked_where_it_is_not_recorded():
    assert [RecordSpec(level=v, probe=True).other_expert for v in ("metrics", "latents", "all")] == [False, False, True]
    assert not RecordSpec(level="all").other_expert


def test_the_plan_counts_its_two_arrays(checkpoint):
    found = models.describe(str(checkpoint))
    disk = [
        full_plan(resolve(make_spec(checkpoint, record=RecordSpec(level="all", probe=p)), found), found).disk_bytes
        for p in (False, True)
    ]
    assert disk[1] - disk[0] == 2 * 4 * 16 * 5 * 4 * 4  # latents [16,5,4,4] in float32
    # Of every sixth step, 12 and 13 among them: one more array each of six, and four of the other expert's two.
    disk = [
        full_plan(
            resolve(make_spec(checkpoint, record=RecordSpec(level="all", probe=p, every=6)), found), found
        ).disk_bytes
        for p in (False, True)
    ]
    assert disk[1] - disk[0] == (2 + 6) * 4 * 16 * 5 * 4 * 4
