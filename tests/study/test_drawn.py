"""Figures and tables for papers."""

import re

import pytest
from matplotlib.figure import Figure

from wanlab.analysis.figures.style import also_as, save
from wanlab.errors import UsageError
from wanlab.study.drawn import Drawn
from wanlab.study.text import latex


def figure():
    made = Figure(figsize=(8, 4), layout="constrained")
    made.subplots().set_title("σ of x_t, 50 %")
    return made


@pytest.mark.parametrize(("text", "size"), [("pdf", (8, 4)), ("pdf:3.5", (3.5, 1.75)), ("svg:3.5", (3.5, 1.75))])
def test_a_figure_has_its_stated_size(text, size, tmp_path):
    """72 points an inch; twice the same is the same file."""
    drawn, files = Drawn.parse(text), []
    for name in ("a", "b"):
        with also_as(drawn.kind, drawn.width):
            path = save(figure(), tmp_path / f"{name}.png")
        files += drawn.beside([path])
    data = [f.read_bytes() for f in files]
    assert data[0] == data[1] and path.is_file()
    pattern = (
        rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+)" if drawn.kind == "pdf" else rb'width="([\d.]+)pt" height="([\d.]+)pt"'
    )
    found = re.search(pattern, data[0])
    assert [float(v) / 72 for v in found.groups()] == pytest.approx(size, abs=1e-3)
    assert b"/Type3" not in data[0]


def test_png_alone_without_being_asked(tmp_path):
    drawn = Drawn.parse(None)
    with also_as(drawn.kind, drawn.width):
        path = save(figure(), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == [path] and drawn.beside([path]) == []


@pytest.mark.parametrize("text", ["eps", "pdf:", "pdf:wide", "pdf:0.5", "svg:nan", "pdf:300"])
def test_other_kinds_and_sizes_are_refused(text):
    with pytest.raises(UsageError, match="--figures"):
        Drawn.parse(text)


def test_a_table_for_latex():
    """Each of TeX's ten special characters is set as itself; the interval stays in its cell."""
    rows = [{"method": r"a_b & 50% #1 ~ ^ \ {x} $", "PSNR, dB": "29.9\n28.1–31.0"}]
    lines = latex(rows).splitlines()
    assert lines[0] == r"\begin{tabular}{lr}" and lines[-1] == r"\end{tabular}"
    assert lines[2] == r"method & PSNR, dB \\"
    assert lines[4] == (
        r"a\_b \& 50\% \#1 \textasciitilde{} \textasciicircum{} \textbackslash{} \{x\} \$ & 29.9 28.1--31.0 \\"
    )
    assert [lines[k] for k in (1, 3, 5)] == [r"\toprule", r"\midrule", r"\bottomrule"]
