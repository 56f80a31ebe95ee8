"""The error analysis of a run: how much guidance matters at each step, and how fast it changes.

With d_k = v_cond - v_uncond at step k (velocities, latent units):
mse_k = mean(d_k²), how much the prompt matters; change_k = mean((d_k - d_{k-1})²), how fast guidance changes.
A step of which a branch was skipped or reused has no value: NaN here, a gap in the figure, a dash in the report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanlab.analysis.columns import is_column, numbers, words
from wanlab.runfile import Run

Floats = NDArray[np.float64]
METRICS = ("mse", "change", "cosine", "norm_ratio", "projection")
BRANCHES = ("cond", "uncond")
KNOWN = {
    *METRICS,
    "timestep",
    "sigma",
    "sigma_next",
    "expert",
    "branches",
    "guidance_scale",
    "frames",
    "frame_stride",
    "passes",
    "tokens",
    "seconds",
    "probed",
    "guider",
    "block_tokens",
    "attention_pairs",
    "operations",
    *(f"status_{b}" for b in BRANCHES),
    *(f"reuse_error_{b}" for b in BRANCHES),
}
"""The fields of a step that every run has; all others are its policies' own."""


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Per-step arrays [steps] of one run; every metric is NaN where it has no value."""

    timestep: Floats
    sigma: Floats
    expert: NDArray[np.str_]
    branches: NDArray[np.str_]
    status_cond: NDArray[np.str_]
    """"fresh" (evaluated), "reused" (from an earlier step) or "skipped"."""
    status_uncond: NDArray[np.str_]
    passes: NDArray[np.int64]
    probed: NDArray[np.bool_]
    mse: Floats
    change: Floats
    cosine: Floats
    norm_ratio: Floats
    projection: Floats
    reuse_error_cond: Floats
    """How far a reused branch is from what it would have been; NaN unless it was probed."""
    reuse_error_uncond: Floats
    fields: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """What the policies recorded by their own names: numbers, or words."""

    @property
    def steps(self) -> int:
        return len(self.sigma)

    @property
    def switch(self) -> int | None:
        """Index of the first low-noise step, None without an expert switch."""
        low = np.flatnonzero(self.expert == "low")
        return int(low[0]) if len(low) and "high" in self.expert else None

    @property
    def reuse_errors(self) -> dict[str, Floats]:
        """The branches' reuse errors that have a value, by the branch."""
        errors = {b: getattr(self, f"reuse_error_{b}") for b in BRANCHES}
        return {b: e for b, e in errors.items() if np.isfinite(e).any()}

    def has_status(self, status: str) -> NDArray[np.bool_]:
        """Whether a branch has this status [steps]."""
        return np.asarray((self.status_cond == status) | (self.status_uncond == status))

    def by_expert(self) -> dict[str, dict[str, float]]:
        """Mean of each metric over an expert's steps that have one, and how many steps `n` have an mse."""
        means = {}
        for expert in dict.fromkeys(self.expert.tolist()):
            own = self.expert == expert
            means[expert] = {"steps": float(own.sum()), "n": float(np.isfinite(self.mse[own]).sum())} | {
                m: mean(getattr(self, m)[own]) for m in METRICS
            }
        return means


def mean(values: Floats) -> float:
    """Mean of the finite values, NaN when there is none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def analyse(run: Run) -> Guidance:
    """The analysis of a finished run file, of version 1 or 2. Raises WanlabError when it was recorded without these
    metrics, or holds something else under their names."""
    branches = words(run, "branches")
    nothing = np.full(len(branches), np.nan)
    optional: dict[str, Any] = {}
    for branch in BRANCHES:
        status, error = f"status_{branch}", f"reuse_error_{branch}"
        # Version 1 has no status: a branch that was used was evaluated, for nothing was reused.
        used = [("fresh" if branch in b.split(",") else "skipped") for b in branches.tolist()]
        optional[status] = words(run, status) if status in run else np.array(used, np.str_)
        optional[error] = numbers(run, error) if error in run else nothing
    own = [n for n, d in run.data.items() if d.group == "steps" and n not in KNOWN and is_column(run, n)]
    metrics: dict[str, Any] = {m: numbers(run, m) for m in METRICS}
    return Guidance(
        **metrics,
        **optional,
        timestep=numbers(run, "timestep"),
        sigma=numbers(run, "sigma"),
        expert=words(run, "expert"),
        branches=branches,
        passes=numbers(run, "passes").astype(np.int64),
        probed=numbers(run, "probed") == 1,
        fields={n: words(run, n) if run[n].dtype.kind in "SU" else numbers(run, n) for n in own},
    )


def report(g: Guidance, *, prompt: str, title: str) -> str:
    """The text report, `error_analysis_report.txt`: every step, the means by expert, and what they say."""
    lines = [
        "Error analysis of classifier-free guidance",
        "===========================================",
        f"run     {_printable(title)}",
        f"prompt  {prompt!r}",
        "",
        "d_k = v_cond - v_uncond;  mse = mean(d_k^2);  change = mean((d_k - d_(k-1))^2)",
        "cosine = <c,u>/(|c||u|);  norm = |c|/|u|;  projection = <c,u>/|u|^2",
        "cond, uncond: whether the branch was evaluated (fresh), reused or skipped;  - : no value",
        "",
        *_table(g),
        "",
        "Means by expert",
    ]
    for expert, m in g.by_expert().items():
        lines.append(
            f"  {expert:<7} {m['n']:.0f} of {m['steps']:.0f} steps with a value: mse {_number(m['mse'], '.4e')}  "
            f"change {_number(m['change'], '.4e')}  cosine {_number(m['cosine'], '.5f')}"
        )
    if g.fields:
        lines += ["", "What the policies recorded", *_fields_table(g)]
    lines += ["", "Reading", *(f"  {line}" for line in reading(g))]
    return "\n".join(lines) + "\n"


def _table(g: Guidance) -> Iterator[str]:
    errors = g.reuse_errors
    head = f"{'step':>4} {'timestep':>9} {'sigma':>7} {'expert':>7} {'branches':>12} {'mse':>11} {'change':>11}"
    head += f" {'cosine':>8} {'norm':>7} {'proj':>7} {'cond':>7} {'uncond':>7}"
    yield head + "".join(f" {f'error {b}':>12}" for b in errors)
    for k in range(g.steps):
        branches = g.branches[k].replace("uncond", "u").replace("cond", "c") + (" +probe" if g.probed[k] else "")
        line = (
            f"{k + 1:>4} {g.timestep[k]:>9.1f} {g.sigma[k]:>7.4f} {g.expert[k]:>7} {branches:>12} "
            f"{_number(g.mse[k], '.4e', 11)} {_number(g.change[k], '.4e', 11)} {_number(g.cosine[k], '.5f', 8)} "
            f"{_number(g.norm_ratio[k], '.4f', 7)} {_number(g.projection[k], '.4f', 7)} "
            f"{g.status_cond[k]:>7} {g.status_uncond[k]:>7}"
        )
        yield _printable(line + "".join(f" {_number(e[k], '.4e', 12)}" for e in errors.values()))


def _fields_table(g: Guidance) -> Iterator[str]:
    width = {n: max(11, len(n)) for n in g.fields}
    yield f"{'step':>4}" + "".join(f"  {n:>{w}}" for n, w in width.items())
    for k in range(g.steps):
        cells = (v[k] if v.dtype.kind == "U" else _number(v[k], ".5g") for v in g.fields.values())
        yield _printable(f"{k + 1:>4}" + "".join(f"  {c:>{w}}" for c, w in zip(cells, width.values(), strict=True)))


def reading(g: Guidance) -> list[str]:
    """What the numbers say, in sentences; only what they can say."""
    said = []
    first, last = g.mse[0], g.mse[-1]
    if np.isfinite(first) and np.isfinite(last) and last > 0:
        said.append(f"The prompt matters {first / last:.1f} times as much at the first step as at the last (mse).")
    elif not np.isfinite(last):
        why = "its guidance was truncated" if g.has_status("skipped")[-1] else "a branch was reused"
        said.append(f"The last step has no value: {why}. --probe records it all the same.")
    means = g.by_expert()
    if {"high", "low"} <= set(means) and np.isfinite(means["high"]["mse"]) and means["low"]["mse"] > 0:
        times = means["high"]["mse"] / means["low"]["mse"]
        said.append(f"The high-noise expert's mean mse is {times:.1f} times the low-noise expert's.")
    both = np.isfinite(g.change) & np.isfinite(g.mse)
    if both.any():
        small = int((g.change < g.mse)[both].sum())
        said.append(f"Guidance changes by less than its own size (change < mse) at {small} of {int(both.sum())} steps.")
    if not np.isfinite(g.mse).any():
        said = ["No step evaluated both branches, so nothing can be said of guidance."]
    return said + unevaluated(g)


def unevaluated(g: Guidance) -> list[str]:
    """The steps at which nothing was evaluated, as "steps 2, 4 and 8 to 10: both branches reused"."""
    stretches: dict[str, list[str]] = {}
    for first, last, (cond, uncond) in _stretches(
        list(zip(g.status_cond.tolist(), g.status_uncond.tolist(), strict=True))
    ):
        if "fresh" not in (cond, uncond):
            what = f"both branches {cond}" if cond == uncond else f"conditional branch {cond}, unconditional {uncond}"
            stretches.setdefault(what, []).append(f"{first + 1}" if first == last else f"{first + 1} to {last + 1}")
    lines = []
    for what, where in stretches.items():
        *most, end = where
        said = f"{', '.join(most)} and {end}" if most else end
        lines.append(f"step{'' if said.isdigit() else 's'} {said}: {_printable(what)}")
    return lines


def _stretches(values: list[Any]) -> Iterator[tuple[int, int, Any]]:
    """(first, last, value) of each stretch of equal values."""
    first = 0
    for k in range(1, len(values) + 1):
        if k == len(values) or values[k] != values[first]:
            yield first, k - 1, values[first]
            first = k


def _number(value: float, form: str, width: int = 0) -> str:
    return f"{format(value, form) if np.isfinite(value) else '-':>{width}}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
