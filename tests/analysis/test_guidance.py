"""The error analysis against numbers that a hand can derive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wanlab.analysis import figures, guidance
from wanlab.analysis.guidance import Guidance

NAN = float("nan")


def make(
    mse: list[float], change: list[float], expert: list[str], branches: list[str], probed: list[bool] | None = None
) -> Guidance:
    n = len(mse)
    statuses = {
        f"status_{b}": np.array(["fresh" if b in s.split(",") else "skipped" for s in branches])
        for b in guidance.BRANCHES
    }
    return Guidance(
        timestep=np.linspace(999, 100, n), sigma=np.linspace(1, 0.1, n), expert=np.array(expert), branches=np.array(branches),
        passes=np.array([b.count(",") + 1 for b in branches]), probed=np.array(probed or [False] * n), mse=np.array(mse), change=np.array(change),
        **statuses, reuse_error_cond=np.full(n, NAN), reuse_error_uncond=np.full(n, NAN),
        cosine=np.full(n, 0.5), norm_ratio=np.ones(n), projection=np.full(n, 0.5),
    )  # fmt: skip


@pytest.fixture
def truncated() -> Guidance:
    both = "cond,uncond"
    return make(
        [4.0, 2.0, 1.0, 0.5, NAN],
        [NAN, 1.0, 3.0, 0.1, NAN],
        ["high", "high", "low", "low", "low"],
        [both] * 4 + ["uncond"],
    )


def test_means_leave_out_what_has_no_value(truncated: Guidance) -> None:
    means = truncated.by_expert()
    assert means["high"] == {
        "steps": 2,
        "n": 2,
        "mse": 3.0,
        "change": 1.0,
        "cosine": 0.5,
        "norm_ratio": 1.0,
        "projection": 0.5,
    }
    assert (means["low"]["steps"], means["low"]["n"], means["low"]["mse"]) == (3, 2, 0.75)
    assert means["low"]["change"] == pytest.approx(1.55)
    assert truncated.switch == 2


def test_the_report_has_a_dash_and_no_stale_number(truncated: Guidance) -> None:
    text = guidance.report(truncated, prompt="a [red] \x1b[31m ball", title="run.h5")
    last = next(line for line in text.splitlines() if line.startswith("   5 "))
    assert last.split()[4:7] == ["u", "-", "-"]
    assert "\x1b" not in text
    said = " ".join(guidance.reading(truncated))
    assert "high-noise expert's mean mse is 4.0 times" in said
    assert "at 2 of 3 steps" in said  # 1 < 2 and .1 < .5, but 3 > 1
    assert "truncated" in said


def test_without_any_value_nothing_is_claimed() -> None:
    none = make([NAN] * 3, [NAN] * 3, ["single"] * 3, ["cond"] * 3)
    assert none.switch is None and np.isnan(none.by_expert()["single"]["mse"])
    assert not any(ch.isdigit() for ch in " ".join(guidance.reading(none)))


def test_figures_are_written_whatever_the_prompt(truncated: Guidance, tmp_path: Path) -> None:
    path = figures.guidance_figure(truncated, tmp_path / "deep" / "figure.png", title="$\\frac{ [b] \x00 " + "x" * 500)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    sheet = figures.contact_sheet(np.zeros((5, 16, 32, 3), np.uint8), tmp_path / "sheet.png", title="$x_{")
    assert sheet.stat().st_size > 1000


def test_a_gap_is_a_gap(truncated: Guidance) -> None:
    from matplotlib.figure import Figure

    from wanlab.analysis.figures.guidance import _panel

    ax = Figure().subplots()
    _panel(ax, truncated, truncated.mse, "t", "l")
    line = ax.get_lines()[0]
    assert np.isnan(np.asarray(line.get_ydata(), float)[4])
    points = np.concatenate([np.asarray(m.get_xdata(), float) for m in ax.get_lines() if m.get_marker() == "o"])
    assert sorted(points) == [1, 2, 3, 4]
