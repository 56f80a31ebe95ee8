"""What is said of methods at one cost against the control, and the picture of cost and quality."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from wanlab.analysis.controls import against_controls
from wanlab.analysis.figures import pareto
from wanlab.analysis.stats import Interval

PROMPTS = [f"prompt {k}" for k in range(8)]


def result(label: str, errors: list[float], *, rule: str = "", cost: float = 0.6, target: float = 0.6) -> Any:
    """What a method's Result says of one seed of each prompt."""
    mse = float(np.mean(errors))
    psnr = -10 * math.log10(mse) if mse else math.inf
    return SimpleNamespace(
        label=label,
        setting={"at_cost": target, "rule": rule or label},
        pairs=[SimpleNamespace(prompt=p, seed=0, figures={"mse": e}) for p, e in zip(PROMPTS, errors, strict=False)],
        identical=mse == 0,
        summary={
            "psnr": Interval(psnr, psnr - 1, psnr + 1, 8),
            "speedup_predicted": Interval(1 / cost, 0.98 / cost, 1.02 / cost, 8),
        },
    )


EVEN = result("evenly spaced, keep=12", [1e-3] * 8, rule="evenly spaced")
HALF = result("half the error", [0.5e-3] * 8)
TWICE = result("twice the error", [2e-3] * 8)
EITHER = result("either", [0.5e-3, 2e-3] * 4, cost=0.62)


def test_methods_are_sorted_by_what_can_be_told_of_them() -> None:
    """Half and twice the squared error are 3.01 dB in every pair; half of one and twice of the other, about 0."""
    less, near, more, off = against_controls([EVEN, HALF, TWICE, EITHER])
    head = "at 0.6 of the operations "
    assert (
        less == head + "less is lost than by evenly spaced, keep=12 (0.600): half the error (+3.01 dB, +3.01 to +3.01)"
    )
    assert more.startswith(head + "more is lost than by evenly spaced, keep=12 (0.600): twice the error (-3.01 dB")
    assert near.startswith(head + "not told apart from evenly spaced, keep=12 (0.600): either (+0.00 dB, -")
    assert off == "further than 0.01 from 0.6 of the operations, the nearest found: either 0.620"


def test_each_cost_is_told_for_itself_and_needs_its_control() -> None:
    other = result("evenly spaced, keep=9", [1e-3] * 8, rule="evenly spaced", cost=0.45, target=0.45)
    half = result("half again", [0.5e-3] * 8, cost=0.45, target=0.45)
    assert [line[:8] for line in against_controls([EVEN, other, half, TWICE])] == ["at 0.6 o", "at 0.45 "]
    assert against_controls([HALF, TWICE]) == [] == against_controls([EVEN])


def test_tokens_drawn_by_lot_are_a_control_too() -> None:
    """The methods are held against all three controls; the controls against evenly spaced steps alone."""
    lot = result("random tokens, ratio=0.5", [1e-3] * 8, rule="random tokens")
    by_chance = result("random, keep=12", [1e-3] * 8, rule="random")
    lines = against_controls([EVEN, by_chance, lot, HALF])
    assert lines == [
        "at 0.6 of the operations less is lost than by evenly spaced, keep=12 (0.600): "
        "half the error (+3.01 dB, +3.01 to +3.01)",
        "at 0.6 of the operations not told apart from evenly spaced, keep=12 (0.600): "
        "random tokens, ratio=0.5 (+0.00 dB, +0.00 to +0.00), random, keep=12 (+0.00 dB, +0.00 to +0.00)",
        "at 0.6 of the operations less is lost than by random, keep=12 (0.600): "
        "half the error (+3.01 dB, +3.01 to +3.01)",
        "at 0.6 of the operations less is lost than by random tokens, ratio=0.5 (0.600): "
        "half the error (+3.01 dB, +3.01 to +3.01)",
    ]


def test_few_prompts_are_told_by_their_means_and_said_so() -> None:
    three = [result(r.label, [p.figures["mse"] for p in r.pairs][:3], rule=r.setting["rule"]) for r in (EVEN, HALF)]
    (line,) = against_controls(three)
    assert "(by the means of 3 prompts alone) less is lost" in line and line.endswith("half the error (+3.01 dB)")


def test_what_is_no_number_is_held_against_nothing() -> None:
    broken = result("broken", [math.nan, *[1e-3] * 7])
    assert against_controls([EVEN, broken]) == [
        "at 0.6 of the operations nothing can be held against evenly spaced, keep=12"
    ]


# --- the picture ------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draw methods; gives the figure."""

    def draw(*results: Any) -> Figure:
        figures: list[Figure] = []
        monkeypatch.setattr(pareto, "save", lambda figure, path: figures.append(figure) or path)
        pareto.front(SimpleNamespace(results=results, thresholds={"psnr": 35.0}), tmp_path / "a.png")  # type: ignore[arg-type]
        return figures[0]

    return draw


def boxes(figure: Figure, kind: type[Text]) -> list[Any]:
    figure.canvas.draw()  # which puts annotations into their places
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    return [Text.get_window_extent(t, renderer) for t in figure.findobj(kind) if t.get_text() and type(t) is kind]


def test_bars_are_cut_where_the_picture_would_be_theirs_alone_and_this_is_said(drawn) -> None:
    """Means of 30 and 31.8 dB, 35 dB asked: 5 apart, so bars end 5 below the lowest and 5 above the highest."""
    assert pareto.limits([Interval(30.0, 29.0, 31.0, 8), Interval(31.8, 20.0, 70.0, 8)], 35.0) == (25.0, 40.0)
    assert pareto.limits([Interval(34.0, 29.0, 31.0, 8)], 35.0) == (31.0, 38.0)  # 3 dB at least
    wild = result("wild", [10**-3.18] * 8, cost=0.5)
    wild.summary["psnr"] = Interval(31.8, 20.0, 70.0, 8)
    figure = drawn(result("tame", [1e-3] * 8), wild)
    low, high = figure.axes[0].get_ylim()
    assert 23 < low < 25 and 40 < high < 42  # what is drawn, and the axes' margin of 8 %
    names = " ".join(" ".join(t.get_text() for t in figure.texts).split())
    assert "wild (0.500, 31.8 dB); its bar is cut: 20.0 to 70.0 dB" in names and names.count("is cut") == 1
    markers = [line.get_marker() for line in figure.axes[0].lines]
    assert markers.count("^") == markers.count("v") == 1
    assert "cut: the interval goes on" in [t.get_text() for t in figure.axes[0].get_legend().get_texts()]


def test_numbers_cover_no_line(drawn) -> None:
    """Six methods on a rising front: to the right of a point, where its number went, the front goes on."""
    figure = drawn(*(result(f"m{k}", [10 ** -(3 + 0.1 * k)] * 8, cost=0.4 + 0.1 * k) for k in range(6)))
    numbers = [box for box in boxes(figure, Annotation) if box.width]
    ax = figure.axes[0]
    bars = [b for line in ax.lines if line.get_linestyle() == "-" for b in [line.get_path()] if len(b.vertices) > 1]
    assert len(numbers) == 6 and len(bars) == 13  # two bars each, and the front
    ends = [b.transformed(ax.transData) for b in bars]
    assert not [n for n in numbers for e in ends if e.intersects_bbox(n.shrunk(0.8, 0.8), filled=False)]


def test_every_method_is_named_and_nothing_overlaps_or_is_cut(drawn) -> None:
    """40 methods at three costs, some of them alike, and long names."""
    random = np.random.default_rng(0)
    results = [
        result(
            f"method {k} " + "half:complete=renoise,rope=strided+cfg:last=5,keep=cond+" * (k % 7 == 0),
            [10 ** random.normal(-3, 0.1)] * 8,
            cost=float(random.choice([0.45, 0.6, 0.61, 0.75])),
        )
        for k in range(40)
    ]
    figure = drawn(*results)
    names = "".join(t.get_text() for t in figure.texts)
    assert all(f"method {k} " in names for k in range(40))
    numbers, lines = boxes(figure, Annotation), boxes(figure, Text)
    assert len(numbers) == 40
    assert not any(a.overlaps(b) for i, a in enumerate(numbers) for b in numbers[:i])
    whole = figure.bbox
    assert all(whole.x0 <= b.x0 and b.x1 <= whole.x1 and whole.y0 <= b.y0 and b.y1 <= whole.y1 for b in lines)
    beside = [t.get_window_extent() for t in figure.texts]
    assert not any(a.y0 < b.y1 - 1 and b.y0 < a.y1 - 1 for i, a in enumerate(beside) for b in beside[:i])


def test_both_figures_have_their_intervals_and_the_front_a_legend(drawn) -> None:
    """Cost .6 with a speed-up of 2 % about 1/.6: .6/1.02 to .6/.98."""
    (ax,) = drawn(EVEN, HALF).axes
    segments = [tuple(map(float, line.get_xdata())) for line in ax.get_lines() if len(line.get_xdata()) == 2]
    assert (pytest.approx(0.6 / 1.02), pytest.approx(0.6 / 0.98)) in segments
    assert any(a == b == pytest.approx(0.6) for a, b in segments)
    assert "on the front" in ax.get_legend().get_texts()[0].get_text()


def test_methods_without_a_place_are_said(drawn) -> None:
    broken = result("broken", [math.nan] * 8)
    texts = [t.get_text() for t in drawn(EVEN, result("the same", [0.0] * 8), broken).texts]
    assert texts[1:] == ["identical to the baseline: the same (0.600)", "not a number: broken (0.600)"]
