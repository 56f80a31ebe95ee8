"""What a run says of its step caches."""

import math

import numpy as np
import pytest

from wanlab.analysis import guidance, reuse
from wanlab.engine import run
from wanlab.runfile import Run
from wanlab.spec import PolicySpec, RunSpec

NAN = math.nan


@pytest.mark.parametrize(
    ("indicator", "reused", "says"),
    [
        ([NAN, 0.1, 0.2, 0.4], [0, 1, 0, 0], "c: 1 of 3 steps reused that the threshold decides about"),
        ([NAN, 0.1, 0.2, 0.4], [0, 1, 1, 1], "c: the threshold reuses everything it can, 3 steps"),
        ([NAN, 0.1, 0.2, 0.4], [1, 0, 0, 0], "c: the threshold reuses nothing, indicator 0.1 to 0.4, median 0.2 at 3"),
        ([NAN, NAN], [0, 0], "c: its threshold had no step to decide about, all were computed"),
    ],
)
def test_a_line_says_how_many_steps_and_where_the_indicator_lay(indicator, reused, says):
    assert reuse.line("c", indicator, np.array(reused, bool)).startswith(says)


def test_a_run_says_it_of_its_own_policies(tmp_path):
    policy = PolicySpec.parse("easycache:first=1,threshold=0")
    spec = RunSpec(prompt="a ball", width=32, height=32, frames=5, steps=6, device="cpu", policies=(policy,))
    with Run(run.execute(spec, tmp_path / "a.h5")) as file:
        (said,) = reuse.reading(guidance.analyse(file))
    assert said.startswith("easycache: the threshold reuses nothing, indicator ")
