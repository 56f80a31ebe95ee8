"""What `--dry-run` and `--show-steps` show: passes exact or between bounds, and no digit broken at 80 columns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wanlab.cli import forecast, generate, render
from wanlab.cli.app import main


@dataclass
class Exact:
    """8 of 16 passes: as examples/skip_every_other.py on 8 steps would have it."""

    passes: int = 8
    passes_bounds: tuple[int, int] = (8, 8)
    plain_passes: int = 16
    flops: float = 4e12
    flops_bounds: tuple[float, float] = (4e12, 4e12)
    plain_flops: float = 8e12
    speedup: float = 2.0
    exact: bool = True


def test_exact_passes() -> None:
    assert forecast.passes(Exact()) == "8 of 16 without policies; predicted speed-up 2.00"
    assert forecast.operations(Exact()) == "4.00 TFLOP"


def test_passes_between_bounds() -> None:
    f = Exact(
        passes=40,
        passes_bounds=(20, 40),
        plain_passes=40,
        flops=8e12,
        flops_bounds=(4e12, 8e12),
        speedup=1.0,
        exact=False,
    )
    assert forecast.passes(f) == (
        "between 20 and 40 of 40 without policies, decided while running; predicted speed-up 1.00 to 2.00"
    )
    assert forecast.operations(f) == "4.00 to 8.00 TFLOP"
    f.flops_bounds = (0.0, 8e12)
    assert forecast.passes(f).endswith("1.00 or more")


def test_passes_known_but_not_their_cost() -> None:
    """A block cache: every pass runs, nobody knows how much of it."""
    f = Exact(passes=16, passes_bounds=(16, 16), flops=8e12, flops_bounds=(2e12, 8e12), speedup=1.0, exact=False)
    assert forecast.passes(f).startswith(
        "16 of 16 without policies, decided while running; predicted speed-up 1.00 to 4"
    )


def test_a_policy_of_a_file_is_forecast_exactly(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Of each expert's steps the first, third, … are evaluated, both branches of them."""
    file = Path(__file__).parents[2] / "examples" / "skip_every_other.py"
    given = ["--prompt", "a ball", "--steps", "8", "--policy", f"{file}:skip_every_other", "--out", str(tmp_path / "o")]
    with pytest.raises(SystemExit) as stop:
        main(["generate", "--dry-run", "--format", "human", *given])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "(reused): an earlier step's value" in out
    experts = [line.split()[3] for line in out.splitlines() if "cond" in line]
    ran = sum(2 for k in range(8) if (k - experts.index(experts[k])) % 2 == 0)
    assert f"passes      {ran} of 16 without policies" in out and out.count("(cond)+(uncond)") == 8 - ran // 2


def test_a_known_schedule_is_printed_with_what_its_threshold_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At 20 steps and the published defaults of consecutive and retention magcache decides about 15 of them."""
    method = "magcache:calibration=wan2.2-t2v-a14b,threshold="  # of shift 12
    given = ["--prompt", "a ball", "--shift", "12", "--policy"]
    nothing = "reuses nothing, indicator 0.00341 to 0.00943"
    for threshold, says in (("0.12", "10 of 15 steps reused"), ("0.002", nothing)):
        with pytest.raises(SystemExit) as stop:
            main(["generate", "--dry-run", "--format", "human", *given, method + threshold])
        assert stop.value.code == 0
        said = " ".join(capsys.readouterr().out.split())
        assert says in said and said.count("(cond)+(uncond)") == (10 if threshold == "0.12" else 0)


def test_reused_branches_stand_in_parentheses() -> None:
    row: dict[str, Any] = dict(
        step=0,
        timestep=999.0,
        sigma=1.0,
        expert="high",
        branches=("cond", "uncond"),
        guidance=4.0,
        frames=7,
        tokens=315,
        passes=2,
        passes_bounds=(1, 2),
        flops=1.0,
        reused=("uncond",),
        jump=True,
    )
    (shown,) = forecast.step_rows(SimpleNamespace(rows=[SimpleNamespace(**row)]))
    assert shown["branches"] == "cond+(uncond)" and shown["passes"] == "1-2" and shown["frames"] == "7*"


def test_a_dry_run_fits_80_columns_with_every_number_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(render, "PIPE_WIDTH", 80)
    given = ["--prompt", "a ball", "--policy", "half", "--frames", "121", "--size", "832x480", "--solver", "euler"]
    with pytest.raises(SystemExit) as stop:
        main(["generate", "--dry-run", "--format", "human", *given, "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and max(map(len, out.splitlines())) <= 80
    steps = [line.split() for line in out.splitlines() if "cond+uncond" in line]
    assert [line[0] for line in steps] == [str(k) for k in range(1, 21)]
    assert {len(line) for line in steps} == {9}
    # 31 latent frames of 52x30 tokens; 16 of them before the switch, where frames are completed: after 12 steps, since
    # t is 539.8 at the thirteenth and the boundary 540
    assert [line[-2] for line in steps] == ["24960"] * 12 + ["48360"] * 8 and steps[12][-3] == "31*"
    assert "frames are completed before the step" in out and "passes      40 of 40" in out


@pytest.mark.parametrize("status", [{}, {"cond": "reused", "uncond": "skipped"}])
def test_show_steps_fits_80_columns(
    status: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(render, "PIPE_WIDTH", 80)
    step = {
        "step": 1000,
        "timestep": 999.123,
        "sigma": 0.9999,
        "expert": "single",
        "branches": "cond,uncond",
        **status,
        "passes": 2,
        "mse": 1.234e-10,
        "change": 1.234e-10,
        "cosine": -0.99991,
        "seconds": 123.4567,
    }
    summary: dict[str, Any] = dict(
        prompt="x\x1b[31m",
        seed=0,
        model="m\x1b",
        size="32x16",
        frames=9,
        steps=1,
        policies="",
        guider="cfgzero",
        device="\x9b",
        passes=2,
        plain_passes=2,
        pass_equivalents=1.52,
        tokens=10,
        timing_seconds={"load\x1b": 1.0},
        peak_memory_bytes=0,
        resumed_from_step=3,
        reading=["r"],
        reuse=["c: 1 of 2 steps reused"],
        files={"run": "a\x1b[31m.h5"},
        by_step=[step],
    )
    render.show(*generate.picture(summary, True))
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.lstrip().startswith("1000")]
    assert max(map(len, out.splitlines())) <= 80 and out.replace("\n", "").isprintable()
    assert "1.23e-10" in line and "123457" in line and "-0.9999" in line
    assert ("reused" in line and "skipped" in line) if status else "cond+uncond" in line
    assert "after step 3" in out
    words = " ".join(out.split())
    assert "guider cfgzero" in words and "2 of 2 without policies, equivalent to 1.5 whole ones" in words


def test_status_comes_from_the_run_when_it_has_it() -> None:
    n = 2
    g = SimpleNamespace(
        steps=n,
        timestep=[9.0] * n,
        sigma=[1.0] * n,
        expert=["high"] * n,
        branches=["cond,uncond"] * n,
        passes=[2] * n,
        mse=[0.0] * n,
        change=[0.0] * n,
        cosine=[0.0] * n,
    )
    plain = generate.by_step({"seconds": [1.0] * n}, g)
    assert "cond" not in plain[0]
    run = {"seconds": [1.0] * n, "status_cond": [b"fresh", b"reused"], "status_uncond": ["fresh", "skipped"]}
    assert [(r["cond"], r["uncond"]) for r in generate.by_step(run, g)] == [("fresh", "fresh"), ("reused", "skipped")]
