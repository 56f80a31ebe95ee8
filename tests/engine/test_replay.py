"""Methods held against recorded runs: the same decisions as in a run of their own, errors by hand, refusals."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from wanlab.engine import run
from wanlab.engine.replay import replay
from wanlab.errors import UsageError
from wanlab.runfile import Run
from wanlab.spec import PolicySpec, RecordSpec

from .helpers import make_spec

STEPS = 8  # shift 12: 6 of the high-noise expert
EVERY = RecordSpec(level="all")


@pytest.fixture(scope="module")
def whole(checkpoint, loaded, tmp_path_factory):
    spec = make_spec(checkpoint, steps=STEPS, policies=["measure"], record=EVERY)
    return run.execute(spec, tmp_path_factory.mktemp("replay") / "whole.h5", loaded=loaded)


def held_against(path, *texts, guider="cfg"):
    with Run(path) as file:
        made = tuple(PolicySpec.parse(t) for t in texts)
        return replay(file, dataclasses.replace(file.spec, policies=made, guider=PolicySpec.parse(guider)))


def test_no_method_reuses_nothing_and_is_off_by_nothing(whole):
    for step in held_against(whole):
        assert (step.passes, step.of, step.reused, step.left_out) == (2, 2, (), ())
        assert step.error == 0.0  # the guide and the velocities are those of the run, bit for bit


@pytest.mark.parametrize(
    "text", ["steps:skip=2/4-5/7", "easycache:threshold=5,first=2", "sencache:threshold=9,start=0"]
)
def test_up_to_the_first_reuse_it_is_what_a_run_of_its_own_does(whole, checkpoint, loaded, tmp_path, text):
    """Until something is reused both have the same latents: the first step that is must be the same, and off by as
    much as `--probe` measures in a real run."""
    estimate = held_against(whole, text)
    spec = make_spec(checkpoint, steps=STEPS, policies=[text], record=RecordSpec(probe=True))
    with Run(run.execute(spec, tmp_path / "real.h5", loaded=loaded)) as real:
        reused = [k for k in range(STEPS) if real["status_cond"][...][k] == "reused"]
        first = reused[0]
        assert next(s.step for s in estimate if s.reused) == first
        assert [s.passes for s in estimate[: first + 1]] == real["passes"][...][: first + 1].tolist()
        for branch in ("cond", "uncond"):
            assert estimate[first].errors[branch] == pytest.approx(real[f"reuse_error_{branch}"][...][first], rel=1e-4)


def test_the_error_of_a_reused_velocity_by_hand(whole):
    estimate = held_against(whole, "steps:skip=3-4")
    with Run(whole) as file:
        old, new = (file["velocity_cond"][k].astype(float) for k in (2, 4))
        assert estimate[4].errors["cond"] == pytest.approx(np.linalg.norm(old - new) / np.linalg.norm(new), rel=1e-5)
        # what the solver would have been given: u + 4 (c - u) of step 2 for that of step 4
        guided = file["velocity_uncond"][2] + 4 * (file["velocity_cond"][2] - file["velocity_uncond"][2])
        true = file["velocity"][4]
        assert estimate[4].error == pytest.approx(np.linalg.norm(guided - true) / np.linalg.norm(true), rel=1e-4)
    assert [s.passes for s in estimate] == [2, 2, 2, 0, 0, 2, 2, 2]


def test_a_residual_that_is_reused_is_the_last_velocity(whole):
    residual, velocity = held_against(whole, "steps:skip=3-4,reuse=residual"), held_against(whole, "steps:skip=3-4")
    assert residual == velocity


def test_branches_that_are_left_out_are_said(whole):
    estimate = held_against(whole, "cfg:last=2,keep=cond")
    assert [s.left_out for s in estimate] == [()] * 6 + [("uncond",)] * 2
    assert sum(s.passes for s in estimate) == 14
    with Run(whole) as file:
        cond, true = file["velocity_cond"][7], file["velocity"][7]
        assert estimate[7].error == pytest.approx(np.linalg.norm(cond - true) / np.linalg.norm(true), rel=1e-4)


def test_another_guider_is_held_against_the_runs_own(whole):
    estimate = held_against(whole, guider="cfgzero")
    assert estimate[0].error == pytest.approx(1.0)  # no velocity at all
    assert all(s.passes == 2 for s in estimate)


def test_teacache_skips_what_a_run_of_its_own_skips(whole, checkpoint, tmp_path):
    """Its schedule comes from the recorded change of the embedding, without the weights."""
    fit = {"coefficients": [1.0, 0.0], "threshold": 0.2}
    with Run(whole) as file:
        plain = {
            "format": 1,
            "model": {"name": "m", "fingerprint": file.attrs["weights_fingerprint"]},
            "schedule": {"solver": "unipc", "steps": STEPS, "shift": 12.0, "switch": 6},
            "size": None,
            "source": "a test",
            "teacache": {"high": fit, "low": fit},
        }
        change = file["measure_embedding"][...]
    path = tmp_path / "c.json"
    path.write_text(json.dumps(plain))
    threshold = float(change[5]) * 1.01  # step 5 is the first that may be reused, and is just below
    text = f"teacache:threshold={threshold},calibration={path}"
    estimate = held_against(whole, text)
    expected = run.plan(make_spec(checkpoint, steps=STEPS, policies=[text]))
    assert [s.step for s in estimate if s.reused] == [r.step for r in expected.rows if r.reused]
    assert 5 in [s.step for s in estimate if s.reused]
    plain["model"]["fingerprint"] = "0" * 64
    path.write_text(json.dumps(plain))
    with pytest.raises(UsageError, match="other weights"):
        held_against(whole, text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("firstblock:threshold=.1", "decides inside the network"),
        ("random_tokens:scope=all,start=1", "decides inside the network"),
        ("topk:scope=all,keys=absent", "decides inside the network"),
        ("tome:scope=all", "decides inside the network"),
        ("half", "works on other latents"),
        ("paired", "works on other latents"),
        ("measure", "asks for what the run did not evaluate"),
    ],
)
def test_what_velocities_cannot_answer_is_refused(whole, text, said):
    with pytest.raises(UsageError, match=said):
        held_against(whole, text)


def test_runs_that_do_not_hold_enough_are_refused(checkpoint, loaded, tmp_path):
    for k, (given, said) in enumerate(
        [
            ({"policies": ["cfg:last=1"], "record": EVERY}, "was made with policy cfg"),
            ({}, "does not hold the velocity of every step"),
            ({"record": RecordSpec(level="all", every=2)}, "does not hold the velocity of every step"),
        ]
    ):
        path = run.execute(make_spec(checkpoint, steps=3, **given), tmp_path / f"{k}.h5", loaded=loaded)
        with pytest.raises(UsageError, match=said):
            held_against(path, "steps:skip=1")


def test_a_velocity_of_zero_is_met_or_not(checkpoint, loaded, tmp_path):
    """CFG-Zero* gives no velocity at its first step: the same guider is off by nothing there, another by all."""
    spec = make_spec(checkpoint, steps=2, guider="cfgzero", record=EVERY)
    path = run.execute(spec, tmp_path / "zero.h5", loaded=loaded)
    assert [s.error for s in held_against(path, guider="cfgzero")] == [0.0, 0.0]
    assert held_against(path)[0].error == np.inf


STOP = """
from dataclasses import dataclass, replace
from torch.nn.functional import cosine_similarity
from wanlab.engine.guiders import Alone
from wanlab.engine.types import Policy, Session
from wanlab.registry import register


@register("policy", "stop")
@dataclass(frozen=True)
class Stop(Policy):
    above: float = 1.0

    def begin(self, env):
        session = Stopping()
        session.above, session.stopped = self.above, False
        return session


class Stopping(Session):
    def plan(self, plan, ctx):
        return replace(plan, branches=("cond",), guide=Alone("cond")) if self.stopped else plan

    def after(self, record):
        if not self.stopped:
            c, u = (record.predictions[b].double().flatten() for b in ("cond", "uncond"))
            self.stopped = float(cosine_similarity(c, u, dim=0)) > self.above
"""


def test_where_a_rule_that_looks_at_both_branches_would_stop(whole, tmp_path):
    """As adaptive guidance (arXiv:2312.12487): one branch from the step after the cosine first exceeds a bound, for
    bounds between any two steps' cosines; a method of one's own, from a file."""
    path = tmp_path / "stop.py"
    path.write_text(STOP)
    with Run(whole) as file:
        cosine = file["cosine"][...]
    for bound in (np.sort(cosine)[:-1] + 1e-9).tolist():
        expected = int(np.argmax(cosine > bound)) + 1
        estimate = held_against(whole, f"{path}:stop:above={bound}")
        assert [s.step for s in estimate if s.left_out] == list(range(expected, STEPS))
