"""What the clips of a comparison show and look like, A against B: which prompts are followed, and how much moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wanlab.analysis.metrics import BASELINE
from wanlab.analysis.metrics.adherence import ATTRIBUTES
from wanlab.analysis.metrics.appearance import MEASURES
from wanlab.analysis.proportions import mcnemar
from wanlab.analysis.stats import relative_difference
from wanlab.embedded.suite import NAMES

if TYPE_CHECKING:
    from wanlab.analysis.compare import Result


def followed(result: Result) -> dict[str, Any]:
    """How many pairs could be judged, and of each attribute how many broke, got better, and McNemar's exact p."""
    known = sum(math.isfinite(v) for v in result.values("adherence_change"))
    counts: dict[str, Any] = {"judged": known, "not_judged": len(result.pairs) - known}
    for attribute in ATTRIBUTES:
        change = result.values("adherence_change" if attribute == "all" else f"adherence_{attribute}_change")
        better, broke = sum(v > 0 for v in change), sum(v < 0 for v in change)
        counts[attribute] = {"broke": broke, "better": better, "mcnemar": mcnemar(better, broke)}
    return counts


def reading(result: Result) -> str:
    """In how many pairs A and B show all that their prompts ask for, in a sentence; "" where nothing can be judged."""
    counts = followed(result)
    if not counts["judged"]:
        return ""
    a, b = (int(np.nansum(result.values(name))) for name in ("adherence", "adherence" + BASELINE))
    every = counts["all"]
    changes = (("worse", "broke"), ("better", "better"))  # of pairs, too, that follow their prompts neither way
    single = "".join(
        f"; {says} in {', '.join(f'{n} {counts[n][kind]}' for n in ATTRIBUTES[1:] if counts[n][kind])}"
        for says, kind in changes
        if any(counts[n][kind] for n in ATTRIBUTES[1:])
    )
    return (
        f"{result.label}: prompt followed in {a} of {counts['judged']} pairs, by the baseline in {b}; "
        f"{every['broke']} broke, {every['better']} got better; McNemar's exact p {every['mcnemar']:.2g}{single}"
    )


def changed(result: Result) -> list[str]:
    """The pairs in which an attribute broke or got better, and which, a line each: "broke" and "got better" where the
    whole prompt is followed by one of both clips alone, else "worse" and "better"."""
    lines = []
    for pair in result.pairs:
        whole = pair.figures.get("adherence_change", math.nan)
        for change, all_of_it, some in ((-1.0, "broke", "worse"), (1.0, "got better", "better")):
            by = [a for a in ATTRIBUTES[1:] if pair.figures.get(f"adherence_{a}_change") == change]
            if by or whole == change:
                what = all_of_it if whole == change else some
                name = NAMES.get(pair.prompt) or repr(pair.prompt)
                lines.append(f"{what:<10}  {', '.join(by)}: {name}, seed {pair.seed}")
    return lines


def remarks(results: Sequence[Result]) -> list[str]:
    """Prompts that could not be judged, once; and of every method what changed by more than seeds change it."""
    said = []
    first = next((r for r in results if followed(r)["judged"]), None)
    if first is not None and (n := followed(first)["not_judged"]):
        values = first.values("adherence_change")
        outside = next(p.prompt for p, v in zip(first.pairs, values, strict=True) if math.isnan(v))
        few = len({p.prompt for p, v in zip(first.pairs, values, strict=True) if math.isnan(v)})
        said.append(
            f"{n} pairs of {few} prompt{'s' * (few > 1)} have no share followed: the verifier judges shapes in the "
            f"embedded world's words, not {outside[:60]!r}"
        )
    return said + [line for r in results if (line := beyond_seeds(r))]


def beyond_seeds(result: Result) -> str:
    """What looks different in A by more than the baseline's own spread over seeds, in a sentence; "" for nothing."""
    changed = []
    for m in MEASURES:
        ratio, own = result.summary[f"{m.name}_ratio"], spread(result, m.name)
        if ratio.known and own < 1 and not (ratio.low <= (1 + own) / (1 - own) and ratio.high >= (1 - own) / (1 + own)):
            changed.append(
                f"{m.name} {ratio.mean:.2f}x ({ratio.low:.2f}–{ratio.high:.2f}; "
                f"a seed to its prompt's mean {(1 + own) / (1 - own):.2f}x)"
            )
    return f"{result.label}: beyond what another seed changes in the baseline: {', '.join(changed)}" if changed else ""


def spread(result: Result, name: str) -> float:
    """Standard deviation of the baseline's values around their prompt's mean, relative (stats.relative_difference);
    NaN where no prompt has two seeds."""
    values, prompts = np.array(result.values(name + BASELINE)), np.array(result.prompts, object)
    deviations, free = 0.0, 0
    for prompt in dict.fromkeys(result.prompts):
        own = values[prompts == prompt]
        deviations += float((relative_difference(own, np.full(len(own), own.mean())) ** 2).sum())
        free += len(own) - 1
    return math.sqrt(deviations / free) if free else math.nan
