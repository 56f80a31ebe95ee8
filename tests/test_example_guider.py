"""examples/guidance_interval.py, asked for as a user asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wanlab.engine.run import plan
from wanlab.errors import UsageError
from wanlab.spec import PolicySpec, RunSpec

FILE = Path(__file__).parent.parent / "examples" / "guidance_interval.py"


def forecast(knobs: str) -> Any:
    guider = PolicySpec.parse(f"{FILE}:interval{knobs}")
    return plan(RunSpec(prompt="a large red circle moving right on a black background", guider=guider))


def test_steps_outside_the_interval_take_one_pass() -> None:
    """20 steps at shift 2, u_k = 1 - .04995 k, sigma = 2u/(1+u): sigma <= .9 is u <= 9/11, from step 4 on;
    sigma >= .5 is u >= 1/3, up to step 13. Ten steps of two passes and ten of one."""
    result = forecast(":low=0.5,high=0.9")
    assert result.passes == 10 * 2 + 10
    assert result.plain_passes == 40


def test_the_whole_interval_is_plain_guidance() -> None:
    assert forecast("").passes == 40


@pytest.mark.parametrize("knobs", [":low=0.9,high=0.5", ":low=-0.1", ":high=1.5"])
def test_an_interval_that_is_none_is_refused(knobs: str) -> None:
    with pytest.raises(UsageError, match="use 0 <= low < high <= 1"):
        forecast(knobs)
