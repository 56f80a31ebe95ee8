"""Guidance metrics, by hand."""

import math

import numpy as np
import pytest
import torch

from wanlab.engine.observers.guidance import Guidance, metrics

from .helpers import make_spec, sample


def test_metrics_by_hand():
    """c = (3,4), u = (0,2): d = (3,2), <c,u> = 8, |c| = 5, |u| = 2."""
    got = metrics(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]))
    assert got == pytest.approx({"mse": 6.5, "cosine": 0.8, "norm_ratio": 2.5, "projection": 2.0})
    nothing = metrics(torch.ones(2), torch.zeros(2))
    assert nothing["mse"] == 1 and all(math.isnan(nothing[k]) for k in ("cosine", "norm_ratio", "projection"))


def test_change_is_between_neighbouring_steps(model, checkpoint):
    records = sample(model, make_spec(checkpoint, steps=4))
    observer = Guidance()
    seen = [observer.observe(r) for r in records]
    d = [(r.predictions["cond"].double() - r.predictions["uncond"].double()).numpy() for r in records]
    assert math.isnan(seen[0]["change"])
    for k in range(1, 4):
        assert float(seen[k]["change"]) == pytest.approx(((d[k] - d[k - 1]) ** 2).mean(), rel=1e-12)
    assert [float(s["mse"]) for s in seen] == pytest.approx([(x**2).mean() for x in d], rel=1e-12)
    assert {f.name for f in observer.fields} == set(seen[0])


def test_change_needs_equal_lengths(model, checkpoint):
    observer = Guidance()
    seen = [observer.observe(r) for r in sample(model, make_spec(checkpoint, policies=["half"]))]
    assert np.flatnonzero([math.isnan(s["change"]) for s in seen]).tolist() == [0, 13]


def test_state_goes_on():
    assert Guidance().state() == {"previous": None}
