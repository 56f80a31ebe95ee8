"""The error analysis against numbers that a hand can derive."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wanlab.analysis import figures, guidance
from wanlab.analysis.figures import style
from wanlab.analysis.guidance import Guidance
from wanlab.runfile import Field, Run, RunWriter
from wanlab.spec import RunSpec

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
        timestep=np.linspace(999, 100, n),
        sigma=np.linspace(1, 0.1, n),
        expert=np.array(expert),
        branches=np.array(branches),
        passes=np.array([b.count(",") + 1 for b in branches]),
        probed=np.array(probed or [False] * n),
        mse=np.array(mse),
        change=np.array(change),
        **statuses,
        reuse_error_cond=np.full(n, NAN),
        reuse_error_uncond=np.full(n, NAN),
        cosine=np.full(n, 0.5),
        norm_ratio=np.ones(n),
        projection=np.full(n, 0.5),
    )


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


def reused() -> Guidance:
    """Five steps: both branches evaluated, at 2 and 3 both reused, at 4 one reused and one skipped."""
    g = make([4.0, NAN, NAN, NAN, 1.0], [NAN] * 5, ["single"] * 5, ["cond,uncond"] * 5)
    errors = np.array([NAN, 0.25, NAN, NAN, NAN])
    return replace(
        g,
        status_cond=np.array(["fresh", "reused", "reused", "reused", "fresh"]),
        status_uncond=np.array(["fresh", "reused", "reused", "skipped", "fresh"]),
        reuse_error_cond=errors,
        fields={"cache_distance": np.array([0.5, 0.125, NAN, 1.0, 2.0]), "cache_mode": np.array(["a"] * 4 + ["b\x1b"])},
    )


def test_what_was_reused_is_said_and_nothing_is_claimed_of_it() -> None:
    said = guidance.reading(reused())
    assert said[-2:] == [
        "steps 2 to 3: both branches reused",
        "step 4: conditional branch reused, unconditional skipped",
    ]
    assert said[0].startswith("The prompt matters 4.0 times")
    rows = {
        line.split()[0]: line.split() for line in guidance.report(reused(), prompt="", title="").splitlines() if line
    }
    assert rows["2"][-2:] == ["0.125", "a"]  # the second table is the policies' own
    text = guidance.report(reused(), prompt="", title="a\x1b[2J")
    second = next(line.split() for line in text.splitlines() if line.startswith("   2 "))
    assert second[5:8] == ["-", "-", "0.50000"] and second[-3:] == ["reused", "reused", "2.5000e-01"]
    assert "\x1b" not in text and "cache_distance" in text


def test_stretches_of_one_kind_share_a_line() -> None:
    status = np.array(["fresh", "reused", "fresh", "reused", "reused"])
    g = replace(reused(), status_cond=status, status_uncond=status)
    assert guidance.unevaluated(g) == ["steps 2 and 4 to 5: both branches reused"]


def test_only_reuse_says_no_step_evaluated_both() -> None:
    g = replace(reused(), mse=np.full(5, NAN))
    assert guidance.reading(g)[0].startswith("No step evaluated both branches")


def test_a_panel_for_reuse_errors_and_policy_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wanlab.analysis.figures import guidance as drawn

    figures_seen: list[Any] = []
    monkeypatch.setattr(drawn, "save", lambda figure, path: figures_seen.append(figure) or path)
    drawn.guidance_figure(reused(), tmp_path / "g.png")
    titles = [ax.get_title(loc="left") for ax in figures_seen[0].axes if ax.axison]
    assert titles[2:] == ["Reuse error, where it was probed", "cache_distance"]
    drawn.guidance_figure(replace(reused(), reuse_error_cond=np.full(5, NAN), fields={}), tmp_path / "g.png")
    assert len(figures_seen[1].axes) == 2


def test_a_notebooks_backend_is_never_loaded(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import numpy as np; from wanlab.analysis import figures\n"
        "figures.contact_sheet(np.zeros((2, 8, 8, 3), np.uint8), Path(sys.argv[1]))\n"
        "import os; assert os.environ['MPLBACKEND'] == sys.argv[2] and 'matplotlib.pyplot' not in sys.modules"
    )
    for k, backend in enumerate(("module://matplotlib_inline.backend_inline", "TkAgg", "nonsense")):
        path = tmp_path / f"{k}.png"
        done = subprocess.run(
            [sys.executable, "-c", code, str(path), backend],
            env=os.environ | {"MPLBACKEND": backend},
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr.decode()
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


PROMPT = "一只红色的球 \x1b[31m $x_{$ \u0e01 ﬁ"


def test_any_script_is_drawn_or_escaped_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    style._family_with.cache_clear()
    style._glyphs.cache_clear()
    for installed in (True, False):
        if not installed:
            monkeypatch.setattr(style, "_family_with", lambda characters: "")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figures.contact_sheet(np.zeros((2, 8, 8, 3), np.uint8), tmp_path / f"{installed}.png", title=PROMPT)
    assert not caplog.records  # matplotlib speaks of fonts in its log
    shown, families = style.legible("水 \x07 a\nb")
    assert (shown, families) == ("\\u6c34 \N{REPLACEMENT CHARACTER} a\nb", [style.FONT])


def test_text_in_a_figure_is_never_mathematics(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    ax = figure.subplots()
    ax.set_title("$\\frac{")
    ax.annotate("$x$", (0, 0))
    ax.plot([0, 1], [1, 1000], label="$\\nope$")
    ax.set_yscale("log")
    ax.legend()
    style.save(figure, tmp_path / "x.png")  # an unclosed formula would raise
    assert not any(t.get_parse_math() for t in style._texts(figure))


def test_a_figure_is_written_whole_or_not_at_all_and_through_no_link(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    target = tmp_path / "mine.txt"
    target.write_text("mine")
    (tmp_path / "x.png").symlink_to(target)
    style.save(Figure(), tmp_path / "x.png")
    assert target.read_text() == "mine" and not (tmp_path / "x.png").is_symlink()
    before = (tmp_path / "x.png").read_bytes()
    broken = Figure()
    broken.text(0, 0, "x").draw = lambda *args: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        style.save(broken, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.txt", "x.png"]


def test_a_version_2_run_file_is_read_and_a_version_1_falls_back(tmp_path: Path) -> None:
    spec = RunSpec(prompt="p", width=32, height=32, frames=17, steps=2)
    old = {n: Field(n, (), "float64") for n in (*guidance.METRICS, "timestep", "sigma")}
    old |= {"expert": Field("expert", (), "S6"), "branches": Field("branches", (), "S16")}
    old |= {"passes": Field("passes", (), "int32"), "probed": Field("probed", (), "bool")}
    new = {f"status_{b}": Field(f"status_{b}", (), "S7") for b in guidance.BRANCHES}
    new |= {
        n: Field(n, (), "float64") for n in ("reuse_error_cond", "reuse_error_uncond", "operations", "cache_distance")
    }
    values: dict[str, Any] = dict.fromkeys((*guidance.METRICS, "timestep", "sigma"), 1.0)
    values |= {"expert": "single", "branches": "uncond", "passes": 1, "probed": False}
    more = {"status_cond": "reused", "status_uncond": "fresh", "reuse_error_cond": 0.5, "reuse_error_uncond": NAN}
    more |= {"operations": 7.0, "cache_distance": 0.25}
    for name, fields, given in (("1", old, values), ("2", old | new, values | more)):
        path = tmp_path / f"{name}.h5"
        with RunWriter(path, spec_json=spec.to_json(), digest=spec.digest(), fields=list(fields.values())) as writer:
            for k in range(2):
                writer.step(k, {n: np.asarray(v) for n, v in given.items()})
            writer.finish({}, {})
        with Run(path) as run:
            g = guidance.analyse(run)
        if name == "1":
            assert g.status_cond.tolist() == ["skipped"] * 2 and g.status_uncond.tolist() == ["fresh"] * 2
            assert not g.fields and not g.reuse_errors
        else:
            assert g.status_cond.tolist() == ["reused"] * 2 and list(g.reuse_errors) == ["cond"]
            assert {n: v.tolist() for n, v in g.fields.items()} == {"cache_distance": [0.25, 0.25]}
