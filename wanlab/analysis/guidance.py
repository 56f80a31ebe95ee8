"""The error analysis of a run: how much guidance matters at each step, and how fast it changes.

With d_k = v_cond - v_uncond at step k (velocities, latent units):
mse_k = mean(d_k²), how much the prompt matters; change_k = mean((d_k - d_{k-1})²), how fast guidance changes.
A step whose second branch was skipped has no value: NaN here, a gap in the figure, a dash in the report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanlab.runfile import Run

Floats = NDArray[np.float64]
METRICS = ("mse", "change", "cosine", "norm_ratio", "projection")


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Per-step arrays [steps] of one run; every metric is NaN where it has no value."""

    timestep: Floats
    sigma: Floats
    expert: NDArray[np.str_]
    branches: NDArray[np.str_]
    passes: NDArray[np.int64]
    probed: NDArray[np.bool_]
    mse: Floats
    change: Floats
    cosine: Floats
    norm_ratio: Floats
    projection: Floats

    @property
    def steps(self) -> int:
        return len(self.sigma)

    @property
    def switch(self) -> int | None:
        """Index of the first low-noise step, None without an expert switch."""
        low = np.flatnonzero(self.expert == "low")
        return int(low[0]) if len(low) and "high" in self.expert else None

    def by_expert(self) -> dict[str, dict[str, float]]:
        """Mean of each metric over an expert's steps that have one, and how many steps `n` have an mse."""
        found = {}
        for expert in dict.fromkeys(self.expert.tolist()):
            own = self.expert == expert
            found[expert] = {"steps": float(own.sum()), "n": float(np.isfinite(self.mse[own]).sum())} | {
                m: mean(getattr(self, m)[own]) for m in METRICS
            }
        return found


def mean(values: Floats) -> float:
    """Mean of the finite values, NaN when there is none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def analyse(run: Run) -> Guidance:
    """The analysis of a finished run file. Raises WanlabError when it was recorded without these metrics."""
    floats: dict[str, Any] = {m: np.asarray(run[m], np.float64) for m in (*METRICS, "timestep", "sigma")}
    return Guidance(
        **floats,
        expert=np.asarray(run["expert"]),
        branches=np.asarray(run["branches"]),
        passes=np.asarray(run["passes"], np.int64),
        probed=np.asarray(run["probed"], bool),
    )


def report(g: Guidance, *, prompt: str, title: str) -> str:
    """The text report, `error_analysis_report.txt`: every step, the means by expert, and what they say."""
    lines = [
        "Error analysis of classifier-free guidance",
        "===========================================",
        f"run     {title}",
        f"prompt  {prompt!r}",
        "",
        "d_k = v_cond - v_uncond;  mse = mean(d_k^2);  change = mean((d_k - d_(k-1))^2)",
        "cosine = <c,u>/(|c||u|);  norm = |c|/|u|;  projection = <c,u>/|u|^2;  - : no value, a branch was skipped",
        "",
        f"{'step':>4} {'timestep':>9} {'sigma':>7} {'expert':>7} {'branches':>12} {'mse':>11} {'change':>11} {'cosine':>8} {'norm':>7} {'proj':>7}",
    ]
    for k in range(g.steps):
        branches = g.branches[k].replace("uncond", "u").replace("cond", "c") + (" +probe" if g.probed[k] else "")
        lines.append(
            f"{k + 1:>4} {g.timestep[k]:>9.1f} {g.sigma[k]:>7.4f} {g.expert[k]:>7} {branches:>12} "
            f"{_number(g.mse[k], '.4e', 11)} {_number(g.change[k], '.4e', 11)} {_number(g.cosine[k], '.5f', 8)} "
            f"{_number(g.norm_ratio[k], '.4f', 7)} {_number(g.projection[k], '.4f', 7)}"
        )
    lines += ["", "Means by expert"]
    means = g.by_expert()
    for expert, m in means.items():
        lines.append(
            f"  {expert:<7} {m['n']:.0f} of {m['steps']:.0f} steps with a value: mse {_number(m['mse'], '.4e')}  "
            f"change {_number(m['change'], '.4e')}  cosine {_number(m['cosine'], '.5f')}"
        )
    lines += ["", "Reading", *(f"  {line}" for line in reading(g))]
    return "\n".join(lines) + "\n"


def reading(g: Guidance) -> list[str]:
    """What the numbers say, in sentences; only what they can say."""
    said = []
    first, last = g.mse[0], g.mse[-1]
    if np.isfinite(first) and np.isfinite(last) and last > 0:
        said.append(f"The prompt matters {first / last:.1f} times as much at the first step as at the last (mse).")
    elif not np.isfinite(last):
        said.append("The last step has no value: its guidance was truncated. --probe records it all the same.")
    means = g.by_expert()
    if {"high", "low"} <= set(means) and np.isfinite(means["high"]["mse"]) and means["low"]["mse"] > 0:
        said.append(
            f"The high-noise expert's mean mse is {means['high']['mse'] / means['low']['mse']:.1f} times the low-noise expert's."
        )
    both = np.isfinite(g.change) & np.isfinite(g.mse)
    if both.any():
        said.append(
            f"Guidance changes by less than its own size (change < mse) at {int((g.change < g.mse)[both].sum())} of {int(both.sum())} steps."
        )
    return said or ["No step evaluated both branches, so nothing can be said of guidance."]


def _number(value: float, form: str, width: int = 0) -> str:
    return f"{format(value, form) if np.isfinite(value) else '-':>{width}}"
