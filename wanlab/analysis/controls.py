"""Methods that were asked to cost the same, held against controls: steps left out evenly, tokens left out by lot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from wanlab.analysis.stats import ENOUGH, paired_ratio, relative_difference, simultaneous, units
from wanlab.analysis.verdict import decibels

if TYPE_CHECKING:
    from wanlab.analysis.compare import Result

EVEN, RANDOM, TOKENS = "evenly spaced", "random", "random tokens"  # what the packaged lists call them
OFF = 0.01  # of the baseline's operations: further from the cost asked for than this is said
BETTER, NEAR, WORSE = "less is lost than by", "not told apart from", "more is lost than by"


def against_controls(results: Sequence[Result]) -> list[str]:
    """For each cost that was asked for, which methods lose less than evenly spaced steps, which cannot be told from
    them, and which lose more: a line each; the same of the random steps, which are one draw; of tokens drawn by lot,
    where they are among the methods; and one line that names those whose cost is another.

    By the ratio of squared errors within pairs, with intervals that hold for all methods of a cost together; below four
    prompts by the means alone, and said so.
    """
    said: list[str] = []
    for target in dict.fromkeys(r.setting["at_cost"] for r in results if "at_cost" in r.setting):
        own = [r for r in results if r.setting.get("at_cost") == target]
        for name, besides in ((EVEN, ()), (RANDOM, (EVEN, TOKENS)), (TOKENS, (EVEN, RANDOM))):
            control = next((r for r in own if r.setting["rule"] == name), None)
            others = [r for r in own if r.setting["rule"] not in (name, *besides)]
            if control is not None and others:
                said += _standing(target, control, others)
        off = [f"{r.label} {share(r):.3f}" for r in own if abs(share(r) - target) > OFF]
        if off:
            said.append(f"further than {OFF:g} from {target:g} of the operations, the nearest found: {', '.join(off)}")
    return said


def share(result: Result) -> float:
    """The operations that a method ran, over the baseline's."""
    return 1 / result.summary["speedup_predicted"].mean


def _standing(target: float, control: Result, others: Sequence[Result]) -> list[str]:
    keys = set.intersection(*({(p.prompt, p.seed) for p in r.pairs} for r in (control, *others)))
    pairs = {r.label: sorted((p.prompt, p.seed, p.figures["mse"]) for p in r.pairs) for r in (control, *others)}
    errors = {name: [e for prompt, seed, e in rows if (prompt, seed) in keys] for name, rows in pairs.items()}
    prompts = [prompt for prompt, seed, _ in pairs[control.label] if (prompt, seed) in keys]
    known = [r for r in (control, *others) if np.isfinite(errors[r.label]).all()]
    if control not in known or len(known) < 2 or not prompts:
        return [f"at {target:g} of the operations nothing can be held against {control.label}"]
    others = [r for r in others if r in known]
    theirs = [units(relative_difference(errors[control.label], errors[r.label]), prompts)[0] for r in others]
    enough = len(set(prompts)) >= ENOUGH
    factor = simultaneous(theirs) if enough else None
    groups: dict[str, list[tuple[float, str]]] = {BETTER: [], NEAR: [], WORSE: []}
    for other in others:
        gain = paired_ratio(errors[control.label], errors[other.label], prompts, factor=factor)
        mean, low, high = (decibels(v) for v in (gain.mean, gain.low, gain.high))
        if enough and gain.known:
            where = BETTER if low > 0 else WORSE if high < 0 else NEAR
            text = f"{other.label} ({mean:+.2f} dB, {low:+.2f} to {high:+.2f})"
        else:
            where = BETTER if mean > 0 else WORSE if mean < 0 else NEAR
            text = f"{other.label} ({mean:+.2f} dB)"
        groups[where].append((-mean, text))
    count = len(set(prompts))
    few = "" if enough else f" (by the means of {count} prompt{'s' * (count > 1)} alone)"
    return [
        f"at {target:g} of the operations{few} {where} {control.label} ({share(control):.3f}): "
        f"{', '.join(text for _, text in sorted(texts))}"
        for where, texts in groups.items()
        if texts
    ]
