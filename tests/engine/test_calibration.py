"""Calibration files: what is read, what is refused, how ratios are resampled."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from wanlab.engine.calibration import Calibration, load, of_model, packaged, parse
from wanlab.errors import UsageError


@dataclass(frozen=True)
class Run:
    fingerprint: str = "f" * 64
    solver: str = "unipc"
    shift: float = 5.0
    shape: tuple[int, int, int, int] = (16, 13, 10, 18)
    total: int = 6
    switch: int | None = 4
    sigmas: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7, 0.5, 0.3)

    @property
    def steps(self) -> list[Any]:
        return [SimpleNamespace(sigma=s) for s in self.sigmas]


def plain() -> dict[str, Any]:
    ratios = {"mean": [1.0, 0.9, 0.8, 0.7, 0.5, 0.6], "sd": [0.0] * 6}
    return {
        "format": 1,
        "model": {"name": "tiny", "fingerprint": "f" * 64},
        "schedule": {"solver": "unipc", "steps": 6, "shift": 5.0, "switch": 4, "sigmas": [1, 0.9, 0.8, 0.7, 0.5, 0.3]},
        "size": {"width": 144, "height": 80, "frames": 49, "latents": [13, 10, 18]},
        "guidance": [3.0, 4.0],
        "prompts": 2,
        "seeds": 1,
        "source": "a test",
        "magnitude": {"cond": ratios, "uncond": ratios},
        "teacache": {"high": {"coefficients": [1, 0], "r2": 0.5, "pairs": 3, "threshold": 0.2}},
        "sensitivity": {"high": {"x": 0.1, "t": 2}},
        "plans": {"3": [0, 4, 5], "5": [0, 1, 2, 4, 5]},
    }


def calibration() -> Calibration:
    return parse("a test", plain())


def test_the_published_ratios_are_known_by_name() -> None:
    # MagCache@df81cb1, magcache_generate.py: two 1.0 in front, .65523/.65252 at step 26, .80263 at the last
    a14b = load("wan2.2-t2v-a14b")
    assert (a14b.steps, a14b.switch, a14b.shift, a14b.fingerprint) == (40, 26, 12.0, None)
    assert a14b.ratios["cond"][[0, 1, 26, 39]].tolist() == [1.0, 1.00124, 0.65523, 0.80263]
    assert a14b.ratios["uncond"][26] == 0.65252
    assert {"wan2.1-t2v-1.3b", "wan2.1-t2v-14b", "wan2.2-ti2v-5b"} < set(packaged())
    assert of_model("Wan-AI/Wan2.2-T2V-A14B-Diffusers") == "wan2.2-t2v-a14b"
    with pytest.raises(UsageError, match="wanlab calibrate --model"):
        of_model("owner/another")


def test_every_packaged_file_is_whole() -> None:
    for name in packaged():
        assert load(name).source


def test_at_half_the_steps_the_switch_keeps_its_value() -> None:
    # 26 values at 13 places: index round(k * 25/12) = 0 2 4 6 8 10 12 15 17 19 21 23 25; 14 at 7: round(k * 13/6).
    # One list for both would take index round(13 * 39/19) = 27 for the switch: .98808.
    a14b = load("wan2.2-t2v-a14b")
    high = [0, 2, 4, 6, 8, 10, 12, 15, 17, 19, 21, 23, 25]
    low = [26, 28, 30, 32, 35, 37, 39]
    halved = a14b.magnitude("cond", 20, 13)
    assert halved.tolist() == a14b.ratios["cond"][high + low].tolist()
    assert halved[13] == 0.65523


def test_at_its_own_steps_a_list_is_itself_and_one_step_of_an_expert_is_its_first() -> None:
    assert calibration().magnitude("cond", 6, 4).tolist() == [1.0, 0.9, 0.8, 0.7, 0.5, 0.6]
    assert calibration().magnitude("cond", 3, 2).tolist() == [1.0, 0.7, 0.5]


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (Run(fingerprint="e" * 64), "other weights"),
        (Run(solver="euler"), "solver unipc, and this run has euler"),
        (Run(shift=12.0), "shift 5, and this run has 12"),
        (Run(shape=(16, 13, 10, 20)), "latents 13x10x18, and this run has 13x10x20"),
        (Run(total=7), "steps 6, and this run has 7"),
        (Run(switch=3), "step 4, and this run has step 3"),
        (Run(sigmas=(1.0, 0.9, 0.8, 0.71, 0.5, 0.3)), "sigma 0.7000 at step 3, and this run has 0.7100"),
        (Run(switch=None), "an expert switch, and this run has none"),
    ],
)
def test_a_run_that_it_does_not_belong_to_is_refused(run: Run, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        calibration().refuse(run)


def test_what_belongs_is_not_refused() -> None:
    calibration().refuse(Run())
    calibration().refuse(Run(fingerprint=""))
    calibration().refuse(Run(total=3, switch=2), steps=False)
    load("wan2.2-t2v-a14b").refuse(Run(shift=12.0, total=40, switch=26))


def test_what_it_does_not_hold_is_refused_in_words() -> None:
    assert calibration().plan(3) == (0, 4, 5)
    assert calibration().fit("high").coefficients == (1.0, 0.0)
    assert calibration().sensitivity("high").t == 2.0
    for ask, said in (
        (lambda c: c.plan(4), "no plan of 4 steps; use 3 or 5"),
        (lambda c: c.fit("low"), "no TeaCache fit for the low expert"),
        (lambda c: c.sensitivity("low"), "no sensitivity for the low expert"),
        (lambda c: replace(c, ratios={}).magnitude("cond", 6, 4), "no magnitude ratios"),
        (lambda c: replace(c, plans={}).plan(4), "no plans"),
    ):
        with pytest.raises(UsageError, match=said):
            ask(calibration())


def spoiled(path: str, value: Any) -> dict[str, Any]:
    *way, last = path.split("/")
    whole = plain()
    at: Any = whole
    for key in way:
        at = at[key]
    at[last] = value
    return whole


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("format", 2, "format 2"),
        ("model/fingerprint", 7, "7 is no text"),
        ("schedule/steps", 0, "steps 0"),
        ("schedule/switch", 6, "switch 6"),
        ("magnitude/cond/mean", [1.0] * 5, "5 magnitude ratios for 6 steps"),
        ("magnitude/cond/mean", [0.5] * 6, "first magnitude ratio is 0.5"),
        ("magnitude/cond/mean", [1.0, "a", 1, 1, 1, 1], "magnitude ratio 'a'"),
        ("magnitude/cond/mean", [1.0, float("nan"), 1, 1, 1, 1], "NaN is no JSON"),
        ("teacache/middle", {}, "unknown expert 'middle'"),
        ("teacache/high/coefficients", [], "no coefficients"),
        ("plans/3", [0, 1, 2], "leaves out an expert's first step"),
        ("plans/3", [0, 4], "the plan of 3 steps"),
        ("plans/3", [0, 4, 9], "step of a plan 9"),
        ("size/latents", [13, 0, 18], "size of the latents 0"),
        ("size/latents", [13, 10], "not enough values"),
        ("schedule/sigmas", [1.0], "1 sigmas for 6 steps"),
    ],
)
def test_a_spoiled_file_is_refused_in_one_line(tmp_path: Path, path: str, value: Any, said: str) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps(spoiled(path, value)))
    with pytest.raises(UsageError, match=said) as refused:
        load(str(file))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", "1", '{"format": 1}', "[" * 10**5, '{"format": 1, "schedule": 3}'])
def test_what_is_no_calibration_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.json"
    file.write_text(text)
    with pytest.raises(UsageError, match="is no calibration"):
        load(str(file))


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"did you mean wan2\.2-t2v-a14b"):
        load("wan2.2-t2v-14b")
    with pytest.raises(UsageError, match=r"there is no file nowhere\.json"):
        load("nowhere.json")


def test_reading_imports_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, wanlab.engine.calibration as c; c.load('wan2.2-t2v-a14b'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_resampling_keeps_the_ends() -> None:
    for total in range(2, 60):
        resampled = load("wan2.1-t2v-14b").magnitude("uncond", total, None)
        assert len(resampled) == total
        assert resampled[[0, -1]].tolist() == load("wan2.1-t2v-14b").ratios["uncond"][[0, -1]].tolist()
    assert np.array_equal(load("wan2.1-t2v-14b").magnitude("cond", 50, None), load("wan2.1-t2v-14b").ratios["cond"])


@pytest.mark.skipif("tiny" not in packaged(), reason="tiny has no calibration: docs/caches.md makes it")
def test_tinys_own_belongs_to_its_weights() -> None:
    from wanlab.engine.model import loading
    from wanlab.engine.run import fingerprint

    tiny = load("tiny")
    assert tiny.fingerprint == fingerprint(loading.fetched(loading.describe("tiny", "")))
    assert set(tiny.fits) == set(tiny.sensitivities) == {"high", "low"}
    assert set(tiny.plans) == set(range(4, tiny.steps + 1))
