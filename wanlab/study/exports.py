"""A comparison as tables and texts. (Moved as they are; wanlab/analysis takes them over.)"""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING, Any

from wanlab.study.text import plain

if TYPE_CHECKING:
    from wanlab.analysis.compare import Comparison, Result
    from wanlab.analysis.stats import Interval


def _answer(comparison: Comparison, loss: tuple[str, float]) -> list[str]:
    """The cheapest method of a sweep that keeps within the stated loss, in words."""
    metric, bound = loss
    limit = f"{metric.upper()} {bound:g}{' dB' * (metric == 'psnr')}"

    def shown(result: Result) -> str:
        s = result.summary
        kept = _value(s[metric], ".2f" if metric == "psnr" else ".4f", lines=False)
        return f"{result.label}, {metric.upper()} {kept} at {1 / s['speedup_predicted'].mean:.3f} of the operations"

    sure, likely = comparison.cheapest(metric, bound)
    if likely is None:
        best = max(comparison.results, key=lambda r: r.summary[metric].mean)
        return [f"no method of this sweep keeps above {limit}; the nearest is {shown(best)}"]
    said = [f"cheapest that keeps above {limit}: {shown(sure)}"] if sure else []
    if likely is not sure:
        said.append(f"by its mean alone {shown(likely)} would do, but its interval reaches below {limit}")
    return said


def _value(s: Interval | None, form: str, unit: str = "", *, spread: bool = True, lines: bool = True) -> str:
    """A mean with its interval below it (or behind it); a dash where there is none."""
    if s is None or not s.n or math.isnan(s.mean):
        return "–"
    if math.isinf(s.mean):
        return "identical"
    mean = f"{s.mean:{form}}{unit}"
    if not s.known or not spread:
        return mean
    bounds = f"{s.low:{form}}{'–' if s.low >= 0 else ' to '}{s.high:{form}}"
    return f"{mean}\n{bounds}" if lines else f"{mean} ({bounds})"


def _rows(comparison: Comparison) -> list[dict[str, Any]]:
    """The table: noise floors first, then the methods."""
    rows = []
    for result in (*comparison.floors, *comparison.results):
        s = result.summary
        rows.append({
            "method": result.label,
            "passes": f"{s['passes'].mean:g}/{s['passes_baseline'].mean:g}" if "passes" in s else "–",
            "predicted": _value(s.get("speedup_predicted"), ".2f", "x", spread=False),
            "measured": _value(s["speedup"], ".2f", "x"), "end to end": _value(s["speedup_total"], ".2f", "x"),
            "PSNR, dB": _value(s["psnr"], ".1f"), "SSIM": _value(s["ssim"], ".3f"),
            "verdict": comparison.verdict(result) if result in comparison.results else "",
        })  # fmt: skip
    return rows


def _flat(comparison: Comparison) -> list[dict[str, Any]]:
    """The same for machines: a row a method, every figure's mean and bounds."""
    rows = []
    for result in (*comparison.floors, *comparison.results):
        row: dict[str, Any] = {"method": result.label, **result.setting, "n": result.units[0], "units": result.units[1]}
        for name, s in result.summary.items():
            row |= {name: "identical" if math.isinf(s.mean) else s.mean, f"{name}_low": s.low, f"{name}_high": s.high}
        rows.append(row | {"verdict": comparison.verdict(result) if result in comparison.results else "noise floor"})
    names = list(dict.fromkeys(n for r in rows for n in r))
    return [{n: r.get(n, "") for n in names} for r in rows]


def _reading(comparison: Comparison) -> list[str]:
    """Where the trajectories part and which pair is worst."""
    said = []
    for result in comparison.results[:3]:
        worst = result.worst
        if result.identical:
            continue
        line = (
            f"{result.label}: worst pair {plain(worst.prompt, 60)!r}, seed {worst.seed}: "
            if worst.prompt
            else f"{result.label}: "
        )
        line += f"PSNR {worst.fidelity.psnr:.2f} dB, worst frame {worst.fidelity.worst_frame}"
        if worst.divergence is not None and worst.divergence.parted is not None:
            line += f"; latents part at step {worst.divergence.parted} and end {worst.divergence.error[-1]:.1%} apart"
        said.append(line)
    return said


def _pairs_csv(comparison: Comparison) -> str:
    """A line for every pair."""
    rows = []
    for result in (*comparison.floors, *comparison.results):
        for pair in result.pairs:
            figures = {k: "identical" if k == "psnr" and math.isinf(v) else v for k, v in pair.figures.items()}
            rows.append({"method": result.label, "baseline": comparison.baseline, "prompt": pair.prompt, "seed": pair.seed, **result.setting, **figures})  # fmt: skip
    names = list(dict.fromkeys(n for r in rows for n in r))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _report(comparison: Comparison, described: str, remarks: list[str]) -> str:
    """`error_comparison.txt`: every figure of every method, in the guide's order."""
    lines = [f"Comparison against {comparison.baseline}", described, ""]
    for result in (*comparison.floors, *comparison.results):
        s = result.summary
        lines += [result.label, "-" * len(result.label)]
        for title, name, form in (
            ("absolute error, mean", "abs_mean", ".6f"), ("absolute error, max", "abs_max", ".6f"), ("absolute error, std", "abs_std", ".6f"),
            ("relative error, mean", "rel_mean", ".6g"), ("relative error, max", "rel_max", ".6g"), ("MSE", "mse", ".6g"), ("PSNR, dB", "psnr", ".2f"),
            ("SSIM", "ssim", ".6f"), ("VMAF (similarity only)", "vmaf", ".2f"), ("latents, relative error", "latent_error", ".6g"),
            ("frame difference", "difference", ".6f"), ("  of the baseline", "difference_baseline", ".6f"),
            ("warping error", "warping_error", ".6f"), ("  of the baseline", "warping_error_baseline", ".6f"),
            ("speed-up predicted", "speedup_predicted", ".3f"), ("speed-up of sampling", "speedup", ".3f"), ("speed-up end to end", "speedup_total", ".3f"),
        ):  # fmt: skip
            if name in s and not math.isnan(s[name].mean):
                value = "identical" if math.isinf(s[name].mean) else format(s[name].mean, form)
                spread = (
                    f"   95 % interval {s[name].low:{form}} to {s[name].high:{form}}, n = {s[name].n}"
                    if s[name].known
                    else ""
                )
                lines.append(f"  {title:<26}{value:>14}{spread}")
        if result in comparison.results:
            lines.append(f"  {'verdict':<26}{comparison.verdict(result)}")
        if len(result.by_prompt()) > 1:
            lines.append("  by prompt")
            lines += [f"    {'identical' if math.isinf(r['psnr']) else format(r['psnr'], '.2f') + ' dB':>10}  SSIM {r['ssim']:.4f}  {r['prompt']!r}" for r in result.by_prompt()]  # fmt: skip
        lines.append("")
    return "\n".join([*lines, *remarks]) + "\n"
