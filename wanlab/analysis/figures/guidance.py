"""The figure of a run's error analysis."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from wanlab.analysis.figures.style import COLOURS, INK, QUIET, dress, mark_switch, note, save, shorten
from wanlab.analysis.guidance import Guidance

BRANCHES = {"cond": "#0f766e", "uncond": "#7c3aed"}  # neither is an expert's
PARTS = "reuse_error_"  # of fields, the errors of some of the tokens
MOST_FIELDS = 6  # of the policies' own that are drawn; the text report has all


def guidance_figure(g: Guidance, path: Path, title: str = "") -> Path:
    """Over the steps, how fast guidance changes and how much the prompt matters (log scales); below, where there are
    any, the reuse errors and what the policies recorded."""
    fields = {n: v for n, v in g.fields.items() if v.dtype.kind == "f" and np.isfinite(v).any()}
    parts = {n.removeprefix(PARTS): fields.pop(n) for n in list(fields) if n.startswith(PARTS)}
    extra = ["reuse error"] * bool(g.reuse_errors) + list(fields)[:MOST_FIELDS]
    rows = 1 + -(-len(extra) // 2)
    figure = Figure(figsize=(11, 4.4 + 2.6 * (rows - 1)), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False, height_ratios=[1.7] + [1.0] * (rows - 1)).flat
    left, right, *below = axes
    _panel(left, g, g.change, "How fast guidance changes", "mean (dₖ − dₖ₋₁)²")
    _panel(right, g, g.mse, "How much the prompt matters", "mean dₖ²,  dₖ = v_cond − v_uncond")
    for ax, name in zip(below, extra, strict=False):
        if name == "reuse error" and g.reuse_errors:
            _reuse_panel(ax, g, parts)
        else:
            dress(ax, shorten(name, 60), "", g.steps)
            ax.plot(np.arange(1, g.steps + 1), fields[name], "o-", color="#0f766e", markersize=3.5, linewidth=1.2)
    for ax in below[len(extra) :]:
        ax.axis("off")
    handles, labels = right.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False)
    if title:
        figure.suptitle(shorten(title), color=INK, fontsize=10, parse_math=False)
    return save(figure, path)


def _panel(ax: Axes, g: Guidance, values: NDArray[np.float64], title: str, label: str) -> None:
    steps = np.arange(1, g.steps + 1)
    dress(ax, title, label, g.steps)
    ax.plot(steps, values, color=QUIET, linewidth=1.2, zorder=2)  # NaN is a gap
    for expert in dict.fromkeys(g.expert.tolist()):
        for probed, marker in ((False, "o"), (True, "D")):
            own = (g.expert == expert) & (g.probed == probed) & np.isfinite(values)
            if own.any():
                name = {"high": "high-noise expert", "low": "low-noise expert"}.get(expert, "one expert")
                ax.plot(
                    steps[own],
                    values[own],
                    marker,
                    color=COLOURS.get(expert, INK),
                    markersize=5,
                    zorder=3,
                    markerfacecolor="white" if probed else None,
                    label=name + (", probed" if probed else ""),
                )
    if np.isfinite(values).any() and np.nanmin(values) > 0:
        ax.set_yscale("log")
    if g.switch is not None:
        mark_switch(ax, g.switch)
    reused = g.has_status("reused")
    for said, own in (("one branch", g.has_status("skipped") & ~reused), ("reused", reused)):
        _shade(ax, np.flatnonzero(own & ~g.probed), said)


def _shade(ax: Axes, steps: NDArray[np.int64], said: str) -> None:
    """Grey behind the steps (from 0), and a word under their first stretch."""
    for k in steps:
        ax.axvspan(k + 0.5, k + 1.5, color="#f1f3f5", zorder=0, linewidth=0)
    if len(steps):
        stretch = np.split(steps, np.flatnonzero(np.diff(steps) > 1) + 1)[0]
        note(ax, said, float(stretch[0] + stretch[-1]) / 2 + 1)


def _reuse_panel(ax: Axes, g: Guidance, parts: Mapping[str, NDArray[np.float64]]) -> None:
    dress(ax, "Reuse error, where it was probed", "", g.steps)
    steps = np.arange(1, g.steps + 1)
    for branch, error in g.reuse_errors.items():
        ax.plot(steps, error, "o-", color=BRANCHES[branch], markersize=4, linewidth=1.2, label=branch)
    for name, error in parts.items():  # of active and of frozen tokens alone
        part, _, branch = name.rpartition("_")
        line = {"active": ":", "frozen": "--"}.get(part, "-.")
        ax.plot(steps, error, line, color=BRANCHES.get(branch, INK), linewidth=1, label=f"{branch}, {part} tokens")
    ax.legend(frameon=False, fontsize=8)
