"""A comparison as rows and lines, for the terminal, Markdown, CSV and the page alike.

Which figures there are, what they are called and how they are written says the registry of metrics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from wanlab.analysis import clips, metrics, verdict
from wanlab.analysis.compare import Comparison, Result
from wanlab.analysis.metrics import BASELINE, Metric
from wanlab.analysis.metrics.conventions import PUBLISHED
from wanlab.analysis.stats import ENOUGH, Interval

Row = dict[str, Any]
METHOD, PASSES, VERDICT, CHANGED = "method", "passes", "verdict", "broke, better"


def columns(comparison: Comparison, which: str = "main") -> dict[str, Metric]:
    """The measures that have a column, by its heading: first what a method costs, then what it loses."""
    first = comparison.results[0].metrics
    shown = [m for n, m in first.items() if m.column and n == m.name and m.table == which]
    shown.sort(key=lambda m: m.mean != "geometric")
    return {m.title + f", {m.unit}" * (m.unit not in ("", "x")): m for m in shown}


def rows(comparison: Comparison) -> list[Row]:
    """The table as text: noise floors first, then the methods. A second line of a cell is the interval."""
    table = []
    for result in comparison.every:
        row = {METHOD: result.label, PASSES: _passes(result)}
        row |= {title: cell(result.summary.get(m.name), m) for title, m in columns(comparison).items()}
        table.append(row | {VERDICT: comparison.verdict(result) if result not in comparison.floors else ""})
    return table


def clip_rows(comparison: Comparison) -> list[Row]:
    """A second table as text: what the clips show, and look like beside the baseline's. Columns without any value are
    left out."""
    every = (*comparison.floors, *comparison.results)
    shown = {
        title: m
        for title, m in columns(comparison, "clips").items()
        if any(r.summary[m.name].n and not math.isnan(r.summary[m.name].mean) for r in every)
    }
    table = []
    for result in every:
        row = {METHOD: result.label}
        row |= {short(title): cell(result.summary[m.name], m) for title, m in shown.items()}
        counts = clips.followed(result)
        if counts["judged"]:
            row[CHANGED] = f"{counts['all']['broke']}, {counts['all']['better']}"
        table.append(row)
    return _even(table)


def short(title: str) -> str:
    """A heading where all is said of A beside B."""
    return title.removesuffix(" A/B").removeprefix("followed, ")


def _passes(result: Result) -> str:
    """Evaluations that ran over the baseline's; in whole passes by their operations, where those were counted."""
    s = result.summary
    for name in ("pass_equivalents", "passes"):
        if name in s and math.isfinite(s[name].mean) and math.isfinite(s[name + BASELINE].mean):
            return f"{round(s[name].mean, 1):g}/{round(s[name + BASELINE].mean, 1):g}"
    return "–"


def cell(value: Interval | None, metric: Metric, *, form: str = "", lines: bool = True) -> str:
    """A mean with its interval below it (or behind it); a dash where there is none."""
    form = form or metric.column or metric.format
    if value is None or not value.n or math.isnan(value.mean):
        return "–"
    word = metric.plain(value.mean)
    if isinstance(word, str):
        return word
    mean = f"{value.mean:{form}}{'x' * (metric.unit == 'x')}"
    if not value.known or value.low == value.high:
        return mean
    bounds = f"{value.low:{form}}{'–' if value.low >= 0 else ' to '}{value.high:{form}}"
    return f"{mean}\n{bounds}" if lines else f"{mean} ({bounds})"


def tables(comparison: Comparison) -> list[list[Row]]:
    """Methods, what their clips show, and the field's conventions where these were asked for."""
    return [t for t in (rows(comparison), clip_rows(comparison), conventions(comparison)) if t]


def conventions(comparison: Comparison) -> list[Row]:
    """PSNR and SSIM by the field's conventions, a row each and a column a method; empty where none was asked for."""
    known = comparison.results[0].metrics
    shown = [n for n in PUBLISHED if n in known]
    return [
        {
            "convention": n,
            **{r.label: cell(r.summary[n], r.metrics[n], form=r.metrics[n].format) for r in comparison.results},
            "who prints it": PUBLISHED[n],
        }
        for n in shown
        if any(known[n].asked for n in shown)
    ]


def flat(comparison: Comparison) -> list[Row]:
    """The same for machines: a row a method, every figure's mean and bounds."""
    table = []
    for result in comparison.every:
        row: Row = {METHOD: result.label, **result.setting, "n": result.units[0], "units": result.units[1]}
        for name, value in result.summary.items():
            plain = result.metrics[name].plain
            row |= {name: plain(value.mean), f"{name}_low": plain(value.low), f"{name}_high": plain(value.high)}
            if name == "psnr":
                row["psnr_median"] = plain(result.median(name))
        table.append(row | {VERDICT: comparison.verdict(result) if result not in comparison.floors else "noise floor"})
    return _even(table)


def pairs(comparison: Comparison) -> list[Row]:
    """A row for every pair."""
    return _even(
        [
            {
                METHOD: result.label,
                "baseline": comparison.baseline,
                "prompt": pair.prompt,
                "seed": pair.seed,
                **result.setting,
                **{n: result.metrics[n].plain(v) for n, v in pair.figures.items()},
            }
            for result in comparison.every
            for pair in result.pairs
        ]
    )


def _even(table: list[Row]) -> list[Row]:
    names = list(dict.fromkeys(n for r in table for n in r))
    return [{n: r.get(n, "") for n in names} for r in table]


def report(comparison: Comparison, described: str, remarks: list[str]) -> str:
    """`error_comparison.txt`: every figure of every method."""
    lines = [f"Comparison against {comparison.baseline}", described, ""]
    for result in comparison.every:
        lines += [result.label, "-" * len(result.label)]
        for name, value in result.summary.items():
            if not math.isnan(value.mean):
                lines.append(_line(name, value, result))
        if result not in comparison.floors:
            lines.append(f"  {'verdict':<32}{comparison.verdict(result)}")
        if said := clips.reading(result):
            lines.append(f"  {said.removeprefix(f'{result.label}: ')}")
            lines += [f"    {line}" for line in clips.changed(result)]
        by_prompt = result.by_prompt()
        if len(by_prompt) > 1:
            psnr = metrics.get("psnr")
            lines.append("  by prompt")
            for r in by_prompt:
                loss = psnr.text(r["psnr"]) + " dB" * math.isfinite(r["psnr"])
                lines.append(f"    {loss:>10}  SSIM {r['ssim']:.4f}  {r['name'] or repr(r['prompt'])}")
        lines.append("")
    return "\n".join([*lines, *remarks]) + "\n"


def _line(name: str, value: Interval, result: Result) -> str:
    m = result.metrics[name]
    title = "  of the baseline" if name.endswith(BASELINE) else "speed-up " * name.startswith("speedup") + m.title
    title += f", {m.unit}" * (m.unit not in ("", "x") and not name.endswith(BASELINE))
    form = m.format
    whole = "95 % interval" if len(set(result.prompts)) >= ENOUGH else "over these pairs"
    spread = f"   {whole} {value.low:{form}} to {value.high:{form}}, n = {value.n}" if value.known else ""
    if m.mean not in ("arithmetic", "geometric"):
        spread += f"; median pair {m.text(result.median(name))}"
    return f"  {title:<32}{m.text(value.mean):>14}{spread}"


SIDES = {"higher": ("above", "below"), "lower": ("below", "above")}  # of a bound, the good one first


def answer(comparison: Comparison, loss: Sequence[verdict.Bound]) -> list[str]:
    """The cheapest method of a sweep that keeps within the stated losses, in words."""
    kept = " and ".join(f"{SIDES[metrics.get(n).better][0]} {_limit(n, b)}" for n, b in loss)

    def shown(result: Result) -> str:
        s = result.summary
        of = {name: metrics.get(name) for name, _ in loss}
        figures = ", ".join(f"{m.title} {cell(s[n], m, form=m.format, lines=False)}" for n, m in of.items())
        return f"{result.label}, {figures} at {1 / s['speedup_predicted'].mean:.3f} of the operations"

    sure, likely = comparison.cheapest(*loss)
    if likely is None:
        name = next((n for n, b in loss if comparison.cheapest((n, b))[1] is None), "")
        if not name:
            return [f"no method of this sweep keeps {kept}: each is kept by some, together by none"]
        m = metrics.get(name)
        known = [r for r in comparison.results if not math.isnan(r.summary[name].mean)]
        if not known:
            return [f"{m.title} is known of no method of this sweep"]
        best = (max if m.better == "higher" else min)(known, key=lambda r: r.summary[name].mean)
        return [f"no method of this sweep keeps {kept}; the nearest is {shown(best)}"]
    said = [f"cheapest that keeps {kept}: {shown(sure)}"] if sure else []
    if likely is not sure:
        alone = "its mean alone" if len(loss) == 1 else "the means alone"
        said.append(f"by {alone} {shown(likely)} would do, but {_doubt(comparison, likely, loss)}")
    if not comparison.confirmed:
        return said
    (again,) = comparison.confirmed
    few = len(set(again.prompts)) < ENOUGH
    stands = f"too few prompts to be sure that it keeps {kept}" if few else "; ".join(_stands(again, *b) for b in loss)
    seeds = len({p.seed for p in again.pairs})
    measured = f"measured again on {seeds} fresh seed{'s' * (seeds > 1)}: {shown(again)}; {stands}"
    return [measured, *(f"in the sweep, {line}" for line in said)]


def _limit(name: str, bound: float) -> str:
    m = metrics.get(name)
    return f"{m.title} {bound:g}{f' {m.unit}' if m.unit not in ('', 'x') else ''}"


def _doubt(comparison: Comparison, likely: Result, loss: Sequence[verdict.Bound]) -> str:
    """Why it is not certain of a method that it keeps within the losses, which by its means it does."""
    if len(set(likely.prompts)) < ENOUGH:
        return "these prompts are too few to be sure"
    unsure = [b for b in loss if not any(r is likely for r in verdict.certain(comparison.results, b))]
    if few := [metrics.get(n).title for n, _ in unsure if not likely.summary[n].known]:
        return f"too few prompts have {' and '.join(few)} to be sure"
    lost = " or ".join(f"{SIDES[metrics.get(n).better][1]} {_limit(n, b)}" for n, b in unsure or loss)
    return f"its interval, or that of a method nearer the baseline, reaches {lost}"


def _stands(again: Result, name: str, bound: float) -> str:
    """On which side of a bound the interval lies of what a sweep chose and was measured again."""
    value, better, limit = again.summary[name], metrics.get(name).better, _limit(name, bound)
    side, other = SIDES[better]
    if not value.known:
        return f"too few prompts to be sure that it keeps {side} {limit}"
    near, far = (value.low, value.high) if better == "higher" else (value.high, value.low)
    if verdict.within(name, near, bound):
        return f"its whole interval is {side} {limit}"
    reaches = "its interval reaches" if verdict.within(name, far, bound) else "its whole interval is"
    return f"{reaches} {other} {limit}"


def reading(comparison: Comparison) -> list[str]:
    """Which prompts are followed, where the trajectories part and which pair is worst."""
    said = []
    for result in comparison.results[:3]:
        worst = result.worst
        if result.identical:
            continue
        said += [line] if (line := clips.reading(result)) else []
        where = f"worst pair {worst.prompt!r}, seed {worst.seed}: " if worst.prompt else ""
        psnr = metrics.get("psnr").text(worst.figures["psnr"])
        line = f"{result.label}: {where}PSNR {psnr} dB, worst frame {worst.fidelity.worst_frame}"
        if (d := worst.divergence) is not None and d.error[-1] > 0:
            part = f"part at step {d.parted} and " if d.parted is not None else ""
            line += f"; latents {part}end {d.error[-1]:.1%} apart"
        said.append(line)
    if more := comparison.results[3:]:
        names = ", ".join(r.label for r in more[:3]) + ", …" * (len(more) > 3)
        said.append(f"of {len(more)} more methods error_comparison.txt says the same: {names}")
    return said
