"""The methods that were held against the baseline, from the comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wanlab.analysis.hypotheses.evidence import Evidence
from wanlab.analysis.hypotheses.verdict import Sample
from wanlab.errors import UsageError
from wanlab.spec import MethodSpec, PolicySpec


@dataclass(frozen=True)
class Compared:
    """A compared method's pairs, as comparison.json has them, each with the file it came from."""

    label: str
    policies: tuple[PolicySpec, ...]
    settings: bool
    """Whether the method also sets something beside its policies: steps, guidance, a dtype …"""
    pairs: tuple[tuple[Mapping[str, Any], str], ...]

    def knob(self, policy: str, name: str, default: Any) -> Any:
        return next((p.options.get(name, default) for p in self.policies if p.name == policy), default)


# What `wanlab compare --mode` calls them, for files that do not say what they stand for.
NAMED = {"cfg_truncated": "cfg:last=5,high=3", "half_frame": "half"}
NOTHING = Compared("", (), False, ())


def compared(evidence: Evidence, policy: str) -> list[Compared]:
    """The methods of this policy alone that were held against the baseline, told by the run files, or by the label where
    these are gone. A prompt and seed of one model, length and schedule counts once."""
    known = {r.path.resolve(): r for r in evidence.runs}
    found: dict[tuple[str, tuple[PolicySpec, ...], bool], dict[Any, tuple[Mapping[str, Any], str]]] = {}
    for comparison in evidence.comparisons:
        whole = comparison.content
        for method in whole["methods"]:
            label = str(method.get("label", ""))
            said = MethodSpec("")
            with suppress(UsageError):
                said = MethodSpec.parse(str(method.get("method") or NAMED.get(label, label)))
            for pair in method.get("pairs") or []:
                a, b = (known.get(Path(str(pair.get(side, ""))).resolve()) for side in "ab")
                if b.policies if b else whole.get("baseline") != "baseline":
                    continue
                policies = a.policies if a else said.policies
                settings = a.settings != b.settings if a and b else bool(said.settings)
                if policies and [p.name for p in policies] == [policy]:
                    kept = found.setdefault((label, policies, settings), {})
                    asked = a.asked if a else b.asked if b else whole.get("compared")
                    kept[pair.get("prompt"), pair.get("seed"), asked] = (pair, str(comparison.path))
    return [Compared(*method, tuple(pairs.values())) for method, pairs in found.items()]


def is_guides(method: Compared) -> bool:
    """Whether this is the guide's own form of the method, not a variant: 5 last steps, the unconditional branch kept;
    frames duplicated, positions compact; nothing else set."""
    own = {
        ("cfg", "last"): 5,
        ("cfg", "keep"): "uncond",
        ("half", "complete"): "duplicate",
        ("half", "rope"): "compact",
    }
    return not method.settings and all(bool(method.knob(*name, value) == value) for name, value in own.items())


def number(value: Any) -> float:
    """A number of a JSON export: null is no value, "inf" an identical pair."""
    if value is None:
        return math.nan
    return math.inf if value in ("inf", "identical") else float(value)


def samples(method: Compared, quantity: str) -> list[Sample]:
    """A figure of each pair; an identical pair's PSNR counts as 120 dB, so that a mean exists."""
    return [
        Sample(prompt=str(p.get("prompt")), value=min(number(p.get(quantity)), 120.0), source=s) for p, s in method.pairs
    ]  # fmt: skip
