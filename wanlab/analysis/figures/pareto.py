"""Quality against cost of every method of a comparison, each with its number and, beside the picture, its name."""

from __future__ import annotations

import itertools
import math
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from wanlab.analysis.compare import Comparison, Result, pareto
from wanlab.analysis.figures.style import HIGH, INK, LOW, QUIET, legible, save, shorten
from wanlab.analysis.stats import Interval

BESIDE, LINE, LETTER = 7.38, 0.165, 0.07  # inches: from the left to the names, of a line and of a letter of them
ABOVE, BELOW = 0.45, 1.05  # inches: over the axes, and under them for the legend
NAMES = 64  # characters of a line of names
SIZE = 7  # points, of a number
ROOM = 3.0  # dB: bars are drawn this much past the outermost means, or more


def front(comparison: Comparison, path: Path) -> Path:
    """PSNR over operations, both with their intervals; the Pareto front joined. Methods whose PSNR is infinite, because
    they give the baseline's videos, or is not a number have no place in the picture and are named below the others."""
    shown = [r for r in comparison.results if math.isfinite(r.summary["psnr"].mean) and math.isfinite(cost(r).mean)]
    shown.sort(key=lambda r: (cost(r).mean, -r.summary["psnr"].mean))
    best = pareto([(cost(r).mean, r.summary["psnr"].mean) for r in shown])
    window = limits([r.summary["psnr"] for r in shown], comparison.thresholds["psnr"])
    lines = list(_names(comparison, shown, best, window))
    height = max(5.5, 0.9 + LINE * len(lines))
    width = BESIDE + LETTER * max((_columns(text) for text, _ in lines), default=0) + 0.15
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0.72 / width, BELOW / height, 6.36 / width, 1 - (BELOW + ABOVE) / height))
    _dress(ax, comparison.thresholds["psnr"], height)
    for k, result in enumerate(shown):
        _point(ax, result, HIGH if k in best else QUIET, window)
    points = [(cost(r).mean, r.summary["psnr"].mean) for r in shown]
    ax.plot([points[k][0] for k in best], [points[k][1] for k in best], color=HIGH, linewidth=1, zorder=2)
    ax.margins(0.08)
    _number(ax, points)
    for k, (text, colour) in enumerate(lines):
        y = 1 - (ABOVE + LINE * k) / height
        figure.text(BESIDE / width, y, text, fontsize=8, color=colour, va="top", parse_math=False)
    return save(figure, path)


def cost(result: Result) -> Interval:
    """A method's share of the baseline's operations."""
    s = result.summary["speedup_predicted"]
    return Interval(1 / s.mean, 1 / s.high, 1 / s.low, s.n)


def _dress(ax: Axes, threshold: float, height: float) -> None:
    ax.set_title("Quality against cost", color=INK, fontsize=11, loc="left")
    ax.set_xlabel("operations that ran, the baseline's being 1")
    ax.set_ylabel("PSNR against the baseline, dB")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#e4e7eb", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.axhline(threshold, color=LOW, linestyle=":", linewidth=1)
    ax.legend(
        handles=[
            Line2D(
                [],
                [],
                color=HIGH,
                linewidth=1,
                marker="o",
                markersize=5,
                label="on the front: none costs no more and loses less",
            ),
            Line2D([], [], color=QUIET, linestyle="", marker="o", markersize=5, label="other methods"),
            Line2D([], [], color=QUIET, linewidth=1, label="95 % intervals, where there are any"),
            Line2D([], [], color=QUIET, linestyle="", marker="^", markersize=4, label="cut: the interval goes on"),
            Line2D([], [], color=LOW, linestyle=":", linewidth=1, label=f"{threshold:g} dB: minimal loss"),
        ],
        loc="upper left",
        bbox_to_anchor=(0, -0.45 / (height - BELOW - ABOVE)),  # below the axis' own name
        ncols=2,
        frameon=False,
        fontsize=7,
    )


def limits(psnrs: Sequence[Interval], threshold: float) -> tuple[float, float]:
    """How far down and up the bars of intervals are drawn, in dB: past the lowest and the highest mean, the threshold
    among them, by as much as these are apart, 3 dB at least. An interval of few prompts is wider than all methods."""
    means = [x.mean for x in psnrs] + [threshold]
    apart = max(max(means) - min(means), ROOM)
    return min(means) - apart, max(means) + apart


def _point(ax: Axes, result: Result, colour: str, window: tuple[float, float]) -> None:
    x, y = cost(result), result.summary["psnr"]
    if y.known:
        low, high = max(y.low, window[0]), min(y.high, window[1])
        ax.plot([x.mean, x.mean], [low, high], color=QUIET, linewidth=1, zorder=1)
        for end, cut, marker in ((low, low > y.low, "v"), (high, high < y.high, "^")):
            if cut:
                ax.plot([x.mean], [end], marker, color=QUIET, markersize=4, zorder=1)
    if x.known:
        ax.plot([x.low, x.high], [y.mean, y.mean], color=QUIET, linewidth=1, zorder=1)
    ax.plot([x.mean], [y.mean], "o", color=colour, markersize=5, zorder=3)


def _names(
    comparison: Comparison, shown: Sequence[Result], best: Sequence[int], window: tuple[float, float]
) -> Iterator[tuple[str, str]]:
    """The lines beside the picture, and their colours; nothing is cut. An interval whose bar is, is said."""
    for k, result in enumerate(shown):
        psnr = result.summary["psnr"]
        text = f"{result.label}  ({cost(result).mean:.3f}, {psnr.mean:.1f} dB)"
        if psnr.known and (psnr.low < window[0] or psnr.high > window[1]):
            text += f"; its bar is cut: {psnr.low:.1f} to {psnr.high:.1f} dB"
        for line in fold(text, f"{k + 1:>2}  "):
            yield line, HIGH if k in best else INK
    for said, those in (
        ("identical to the baseline: ", [r for r in comparison.results if r.identical]),
        ("not a number: ", [r for r in comparison.results if math.isnan(r.summary["psnr"].mean)]),
    ):
        for k, result in enumerate(those):
            yield from ((line, INK) for line in fold(f"{result.label}  ({cost(result).mean:.3f})", "" if k else said))


def fold(text: str, first: str = "") -> list[str]:
    """Text in lines that fit beside the picture, with something before the first."""
    whole = first + legible(shorten(text, len(text) + 1))[0]
    wide = _columns(whole) > len(whole)
    return textwrap.wrap(whole, NAMES // (2 if wide else 1), subsequent_indent="      ")


def _columns(text: str) -> int:
    """The width of a text in letters: some scripts' are twice as wide."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _number(ax: Axes, points: Sequence[tuple[float, float]]) -> None:
    """A number near each point, where it covers no point, no line and no other number."""
    scale = ax.figure.dpi / 72  # pixels of a point of type
    ax.autoscale_view()
    places = [tuple(ax.transData.transform(p)) for p in points]
    taken = [Bbox.from_bounds(x - 3 * scale, y - 3 * scale, 6 * scale, 6 * scale) for x, y in places]
    taken += [Bbox.from_bounds(x - 1, y - 1, 2, 2) for line in ax.lines for x, y in _along(line)]
    for k, (x, y) in enumerate(places):
        width, height = 0.68 * SIZE * len(str(k + 1)) * scale, 1.2 * SIZE * scale
        boxes = [
            (
                reach,
                Bbox.from_bounds(
                    x + dx * reach * scale - width / 2, y + dy * reach * scale - height / 2, width, height
                ),
            )
            for reach in range(9, 200, 3)
            for dx, dy in ((1, 0), (0, 1), (0, -1), (-1, 0), (0.7, 0.7), (0.7, -0.7), (-0.7, 0.7), (-0.7, -0.7))
        ]
        reach, box = next((rb for rb in boxes if not any(rb[1].overlaps(t) for t in taken)), boxes[0])
        taken.append(box)
        at = ((box.x0 + box.x1) / 2 - x) / scale, ((box.y0 + box.y1) / 2 - y) / scale
        ax.annotate(
            str(k + 1),
            points[k],
            xytext=at,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=SIZE,
            color=INK,
            path_effects=[withStroke(linewidth=2, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": QUIET, "linewidth": 0.5} if reach > 9 else None,
        )


def _along(line: Line2D) -> Iterator[tuple[float, float]]:
    """Places on a line, in pixels, closer to each other than a number is wide."""
    corners = line.get_transform().transform(line.get_xydata())
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        pieces = math.ceil(math.hypot(x1 - x0, y1 - y0) / 4) or 1
        yield from ((x0 + (x1 - x0) * k / pieces, y0 + (y1 - y0) * k / pieces) for k in range(pieces + 1))
