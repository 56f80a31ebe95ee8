"""Figures, as PNG files. Text from a user is never read as mathematics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from wanlab.analysis.guidance import Guidance

INK, HIGH, LOW, QUIET = "#1f2933", "#c2410c", "#1d4ed8", "#9aa5b1"
COLOURS = {"high": HIGH, "low": LOW, "single": LOW}


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150, metadata={"Software": "wanlab"})
    return path


def guidance_figure(g: Guidance, path: Path, title: str = "") -> Path:
    """Two panels over the steps: left how fast guidance changes, right how much the prompt matters (log scales)."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _panel(left, g, g.change, "How fast guidance changes", "mean (dₖ − dₖ₋₁)²")
    _panel(right, g, g.mse, "How much the prompt matters", "mean dₖ²,  dₖ = v_cond − v_uncond")
    handles, labels = right.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False)
    if title:
        figure.suptitle(shorten(title), color=INK, fontsize=10, parse_math=False)
    return save(figure, path)


def _panel(ax: Axes, g: Guidance, values: NDArray[np.float64], title: str, label: str) -> None:
    steps = np.arange(1, g.steps + 1)
    ax.set_title(title, color=INK, fontsize=11, loc="left")
    ax.set_xlabel("step")
    ax.set_ylabel(label, parse_math=False)
    ax.set_xlim(0.5, g.steps + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.plot(steps, values, color=QUIET, linewidth=1.2, zorder=2)  # NaN is a gap
    for expert in dict.fromkeys(g.expert.tolist()):
        for probed, marker in ((False, "o"), (True, "D")):
            own = (g.expert == expert) & (g.probed == probed) & np.isfinite(values)
            if own.any():
                name = {"high": "high-noise expert", "low": "low-noise expert"}.get(expert, "one expert")
                ax.plot(
                    steps[own], values[own], marker, color=COLOURS.get(expert, INK), markersize=5, zorder=3,
                    markerfacecolor="white" if probed else None, label=name + (", probed" if probed else ""),
                )  # fmt: skip
    if np.isfinite(values).any() and np.nanmin(values) > 0:
        ax.set_yscale("log")
    if g.switch is not None:
        ax.axvline(g.switch + 0.5, color=QUIET, linestyle=":", linewidth=1)
        ax.annotate(
            "switch",
            (g.switch + 0.5, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, -9),
            textcoords="offset points",
            fontsize=8,
            color="#616e7c",
        )
    skipped = [k for k in range(g.steps) if g.branches[k].count(",") == 0 and not g.probed[k]]
    for k in skipped:
        ax.axvspan(k + 0.5, k + 1.5, color="#f1f3f5", zorder=0, linewidth=0)
    if skipped:
        ax.annotate(
            "one branch",
            ((skipped[0] + skipped[-1]) / 2 + 1, 0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color="#616e7c",
        )


def contact_sheet(video: NDArray[np.uint8], path: Path, *, pictures: int = 8, title: str = "") -> Path:
    """`pictures` frames of a video [T,H,W,3], evenly from the first to the last, four in a row, each with its number."""
    at = np.unique(np.linspace(0, len(video) - 1, min(pictures, len(video))).round().astype(int))
    columns = min(4, len(at))
    rows = -(-len(at) // columns)
    aspect = video.shape[1] / video.shape[2]
    figure = Figure(
        figsize=(2.9 * columns, (2.9 * aspect + 0.22) * rows + (0.35 if title else 0)), layout="constrained"
    )
    for k, ax in enumerate(np.atleast_1d(figure.subplots(rows, columns)).flat):
        ax.axis("off")
        if k < len(at):
            ax.imshow(video[at[k]], interpolation="nearest")
            ax.set_title(f"frame {at[k]}", fontsize=8, color=INK, pad=2)
    if title:
        figure.suptitle(shorten(title), fontsize=9, color=INK, parse_math=False)
    return save(figure, path)


def shorten(text: str, most: int = 110) -> str:
    """One line of printable text."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return line if len(line) <= most else line[: most - 1] + "…"
