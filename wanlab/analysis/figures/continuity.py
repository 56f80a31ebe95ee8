"""Figures of continuity, as PNG files; a group of runs is drawn as the mean over its runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from wanlab.analysis.continuity import BASELINE, METRICS, SPACES, Floats, Group, names
from wanlab.analysis.figures.style import COLOURS, HIGH, INK, LOW, QUIET, mark_switch, note, save, shorten

PALETTE = (INK, HIGH, LOW, "#0f766e", "#9333ea", "#ca8a04", "#be185d", "#4d7c0f")
ACROSS = 4  # panels in a row
NAMES = {
    "x_t": "x_t",
    "x0_pred": "x0_pred (clean prediction)",
    "eps_pred": "eps_pred (noise prediction)",
    "velocity": "velocity",
}
LABELS = {"mse": "mse", "cosine": "cosine", "normalised_l2": "normalised L2"}


def analysis_figure(groups: Sequence[Group], path: Path, title: str = "") -> Path:
    """The guide's figure: above, the mean over pairs of x_t's mse at each step; below, the standard deviation."""
    figure = Figure(figsize=(8.5, 7), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    one = len(groups) == 1
    for g, name, line in zip(groups, names(groups), _lines(groups), strict=True):
        steps = np.arange(1, g.first.steps + 1)
        mean, std = g.curve("x_t"), g.curve("x_t", std=True)
        if len(g.runs) > 1:
            spread = np.std([r.spaces["x_t"].mean("mse") for r in g.runs], axis=0, ddof=1)
            top.fill_between(steps, mean - spread, mean + spread, color=line["color"], alpha=0.15, linewidth=0)
        top.plot(steps, mean, label="measured" if one else shorten(name, 80), **line)
        bottom.plot(steps, std, **line)
        if one:
            expected = "(1−σ)²·m₀ + 2σ²: independent noise"
            top.plot(steps, g.theory("expected"), color=QUIET, linestyle="--", zorder=3, label=expected)
            _by_expert(top, g, mean)
            _by_expert(bottom, g, std)
    _dress(top, groups, "Adjacent latent frames of x_t: mean over pairs", "mse")
    _dress(bottom, groups, "Standard deviation over pairs", "std of mse", last=True)
    _legend(figure, top)
    return _finish(figure, path, title)


def spaces_figure(groups: Sequence[Group], path: Path, title: str = "") -> Path:
    """Every metric (rows) in every space that was recorded (columns), at each step."""
    spaces = [n for n in SPACES if any(g.has(n) for g in groups)]
    figure = Figure(figsize=(3.6 * len(spaces) + 0.6, 8), layout="constrained")
    axes = figure.subplots(len(METRICS), len(spaces), squeeze=False, sharex=True)
    for row, metric in enumerate(METRICS):
        for column, name in enumerate(spaces):
            ax = axes[row, column]
            for g, said, line in zip(groups, names(groups), _lines(groups), strict=True):
                if g.has(name):
                    steps = np.arange(1, g.first.steps + 1)
                    ax.plot(steps, g.curve(name, metric), label=shorten(said, 80), **line)
            _dress(
                ax,
                groups,
                NAMES[name] if not row else "",
                LABELS[metric] if not column else "",
                last=row + 1 == len(METRICS),
            )
    _legend(figure, axes[0, 0])
    return _finish(figure, path, title)


def theory_figure(groups: Sequence[Group], path: Path, title: str = "") -> Path:
    """For each group, one below the other: x_t's mse on what independent noise and the final latent add up to; the
    residual and its parts; the fitted noise correlation."""
    across = min(ACROSS, len(groups))
    blocks = -(-len(groups) // across)
    figure = Figure(figsize=(max(6.0, 4.2 * across), 8.4 * blocks), layout="constrained")
    axes = figure.subplots(3 * blocks, across, squeeze=False)
    for k, (g, name) in enumerate(zip(groups, names(groups), strict=True)):
        column = axes[3 * (k // across) : 3 * (k // across) + 3, k % across]
        _composition(column[0], g, name)
        _residual(column[1], g)
        _correlation(column[2], g)
    for ax in axes[3 * blocks - 3 :, (len(groups) - 1) % across + 1 :].flat:
        ax.axis("off")
    _legend(figure, axes[0, 0], axes[1, 0], axes[2, 0])
    return _finish(figure, path, title)


def _composition(ax: Axes, g: Group, name: str) -> None:
    steps = np.arange(1, g.first.steps + 1)
    noise = 2 * g.first.sigma**2
    expected = g.theory("expected")
    noise = np.where(np.isfinite(expected), noise, np.nan)
    ax.fill_between(steps, 0, noise, color=QUIET, alpha=0.35, linewidth=0, label="noise: 2σ²")
    ax.fill_between(steps, noise, expected, color=LOW, alpha=0.25, linewidth=0, label="signal: (1−σ)²·m₀")
    ax.plot(steps, g.curve("x_t"), "o", color=INK, markersize=4, label="measured")
    _dress(ax, [g], shorten(name, 44), "mse of x_t")


def _residual(ax: Axes, g: Group) -> None:
    steps = np.arange(1, g.first.steps + 1)
    expected = g.theory("expected")
    ax.axhspan(-0.05, 0.05, color="#e4e7eb", linewidth=0, label="5 %")
    for name, colour, said in (
        ("signal", LOW, "part of x0_pred"),
        ("noise", QUIET, "part of eps_pred"),
        ("cross", HIGH, "part of both together"),
    ):
        part = g.theory(name) / expected
        if np.isfinite(part).any():
            ax.plot(steps, part, color=colour, linewidth=1.1, label=said)
    ax.plot(steps, g.theory("residual") / expected, "o-", color=INK, markersize=3.5, linewidth=1.4, label="residual")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    _dress(ax, [g], "", "measured against expected")


def _correlation(ax: Axes, g: Group) -> None:
    steps = np.arange(1, g.first.steps + 1)
    limit = np.maximum(0.05, 3 * g.theory("correlation_sd") / len(g.runs) ** 0.5)
    ax.fill_between(steps, -limit, limit, color="#e4e7eb", linewidth=0, label="counts as none")
    rho = g.theory("rho")
    ax.plot(steps, rho, "o-", color="#0f766e", markersize=3.5, linewidth=1.4, label="ρ")
    untold = np.flatnonzero(~np.isfinite(rho))
    if len(untold):
        ax.axvspan(untold[0] + 0.5, untold[-1] + 1.5, color="#f1f3f5", linewidth=0, zorder=0)
        note(ax, "noise too small to tell", (untold[0] + untold[-1]) / 2 + 1, size=7)
    ax.set_ylim(min(-0.25, float(np.nanmin(rho, initial=0)) - 0.05), max(1.05, float(np.nanmax(rho, initial=0)) + 0.05))
    _dress(ax, [g], "", "noise correlation ρ", last=True)


def heatmap_figure(groups: Sequence[Group], path: Path, title: str = "") -> Path:
    """Mse of every pair at every step: x_t, and x0_pred where it was recorded. A pair of frames that are two apart is
    as wide as two."""
    spaces = [n for n in ("x_t", "x0_pred") if any(g.has(n) for g in groups)]
    across = min(ACROSS, len(groups))
    blocks = -(-len(groups) // across)
    figure = Figure(figsize=(max(6.0, 4.0 * across), 3.6 * len(spaces) * blocks), layout="constrained")
    axes = figure.subplots(len(spaces) * blocks, across, squeeze=False)
    for row, name in enumerate(spaces):
        images = [_image(g, name) if g.has(name) else None for g in groups]
        known = [i[np.isfinite(i)] for i in images if i is not None]
        scale = Normalize(0, max((float(v.max()) for v in known if len(v)), default=1.0) or 1.0)
        shown, mine = None, []
        for k, (g, said, image) in enumerate(zip(groups, names(groups), images, strict=True)):
            ax = axes[len(spaces) * (k // across) + row, k % across]
            mine.append(ax)
            if image is None:
                ax.axis("off")
                continue
            steps, pairs = image.shape
            ax.set_facecolor("#f1f3f5")
            shown = ax.imshow(
                image,
                norm=scale,
                cmap="viridis",
                aspect="auto",
                interpolation="nearest",
                extent=(1, pairs + 1, steps + 0.5, 0.5),
            )
            if not row:
                ax.set_title(shorten(said, 44), fontsize=10, color=INK, loc="left", parse_math=False)
            ax.set_xlabel("latent frame")
            ax.set_ylabel(f"{name}: step" if not k % across else "", parse_math=False)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.yaxis.set_major_locator(MaxNLocator(integer=True))
            if g.first.switch is not None:
                ax.axhline(g.first.switch + 0.5, color="white", linestyle=":", linewidth=1.2)
        if shown is not None:
            figure.colorbar(shown, ax=mine, label=f"mse of neighbours, {name}", fraction=0.05)
    for ax in axes[len(spaces) * (blocks - 1) :, (len(groups) - 1) % across + 1 :].flat:
        ax.axis("off")
    return _finish(figure, path, title)


def _image(g: Group, name: str) -> Floats:
    """[steps, F-1] between latent frames of the full length, of pairs that are one or more frames apart."""
    values, stride = g.pairs(name), g.first.stride
    width = max(int(np.isfinite(row).sum()) * int(s) for row, s in zip(values, stride, strict=True))
    image = np.full((len(values), width), np.nan)
    for k, (row, s) in enumerate(zip(values, stride, strict=True)):
        wide = np.repeat(row[np.isfinite(row)], s)
        image[k, : len(wide)] = wide
    return image


def frames_figure(groups: Sequence[Group], path: Path, title: str = "") -> Path:
    """Continuity of the result against the number of video frames: every run, and each method's mean."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    panels: list[tuple[str, Any]] = [
        ("Final latent: mse of neighbours", lambda r: r.final.mean("mse")[0] if r.final else np.nan),
        ("Final latent: cosine of neighbours", lambda r: r.final.mean("cosine")[0] if r.final else np.nan),
        ("Video: mse of neighbours", lambda r: r.video.mean("mse")[0] if r.video else np.nan),
    ]
    methods = list(dict.fromkeys(g.method for g in groups))
    counts = sorted({g.frames for g in groups})
    axes = figure.subplots(1, 3)
    for ax, (said, pick) in zip(axes, panels, strict=True):
        for k, method in enumerate(methods):
            own = sorted((g for g in groups if g.method == method), key=lambda g: g.frames)
            values = [np.array([pick(r) for r in g.runs], float) for g in own]
            colour = PALETTE[k % len(PALETTE)]
            for g, v in zip(own, values, strict=True):
                if len(v) > 1:
                    ax.plot(np.full(len(v), g.frames), v, "o", color=colour, alpha=0.35, markersize=3)
            ax.plot([g.frames for g in own], [v.mean() for v in values], "o-", color=colour, label=shorten(method, 60))
        ax.set_title(said, fontsize=11, color=INK, loc="left")
        ax.set_xlabel("video frames")
        ax.set_xticks(counts)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#e4e7eb", linewidth=0.8)
        ax.set_axisbelow(True)
    _legend(figure, axes[0])
    return _finish(figure, path, title)


def _lines(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """How each group's line looks: among others the baseline is wide and grey, to be seen below them."""
    made: list[dict[str, Any]] = []
    for g in groups:
        if len(groups) > 1 and g.method == BASELINE and not any(m["color"] == QUIET for m in made):
            made.append({"color": QUIET, "linewidth": 4.0, "alpha": 0.7, "zorder": 1})
        else:
            used = sum(m["color"] != QUIET for m in made)
            dash = "--" if used // len(PALETTE) % 2 else "-"
            made.append({"color": PALETTE[used % len(PALETTE)], "linewidth": 1.3, "linestyle": dash, "zorder": 2})
            made[-1] |= {"marker": "o", "markersize": 2.5} if len(groups) > 1 else {}
    return made


def _by_expert(ax: Axes, g: Group, values: Floats) -> None:
    for expert in dict.fromkeys(g.first.expert.tolist()):
        own = (g.first.expert == expert) & np.isfinite(values)
        said = {"high": "high-noise expert", "low": "low-noise expert"}.get(expert, "one expert")
        ax.plot(np.flatnonzero(own) + 1, values[own], "o", color=COLOURS.get(expert, INK), markersize=5, label=said)


def _dress(ax: Axes, groups: Sequence[Group], title: str, label: str, last: bool = False) -> None:
    most = max(g.first.steps for g in groups)
    ax.set_title(title, color=INK, fontsize=10, loc="left", parse_math=False)
    ax.set_ylabel(label, parse_math=False)
    if last:
        ax.set_xlabel("step")
    ax.set_xlim(0.5, most + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    ax.set_axisbelow(True)
    for switch in dict.fromkeys(g.first.switch for g in groups if g.first.switch is not None):
        mark_switch(ax, switch, size=7)
    halved = [k for g in groups for k in np.flatnonzero(g.first.stride > 1)] if len(groups) == 1 else []
    if halved:
        ax.axvspan(halved[0] + 0.5, halved[-1] + 1.5, color="#fff7ed", zorder=0, linewidth=0)
        said = f"1 latent frame in {int(groups[0].first.stride.max())}"
        note(ax, said, (halved[0] + halved[-1]) / 2 + 1, size=7)


def _legend(figure: Figure, *axes: Axes) -> None:
    found: dict[str, Any] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    if len(found) > 1:
        room = figure.get_figwidth() / (0.6 + 0.07 * max(map(len, found)))  # inches, at this font size
        legend = figure.legend(
            list(found.values()),
            list(found),
            loc="outside lower center",
            ncols=max(1, min(4, len(found), int(room))),
            frameon=False,
            fontsize=8,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def _finish(figure: Figure, path: Path, title: str) -> Path:
    if title:
        figure.suptitle(shorten(title), color=INK, fontsize=10, parse_math=False)
    return save(figure, path)
