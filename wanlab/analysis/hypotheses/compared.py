"""The methods that were held against the baseline, from the comparisons."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from wanlab.analysis.hypotheses.evidence import Evidence, key_of
from wanlab.analysis.hypotheses.verdict import Sample
from wanlab.analysis.key import Key, titles
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
    on: str = ""
    """Model, steps and frames, and what else tells its runs from others."""
    sigma: tuple[float, ...] = ()
    """Of each step; () where the run files are gone."""
    steps: int = 0
    """Of the baseline; 0 where nothing says."""

    def knob(self, policy: str, name: str, default: Any) -> Any:
        return next((p.options.get(name, default) for p in self.policies if p.name == policy), default)


# What `wanlab compare --mode` calls them, for files that do not say what they stand for.
NAMED = {"cfg_truncated": "cfg:last=5,high=3", "half_frame": "half"}
NOTHING = Compared("", (), False, ())


def compared(evidence: Evidence, policy: str) -> list[Compared]:
    """The methods of this policy alone that were held against the baseline, told by the run files, or by the label
    where these are gone; one for each key of the baseline's runs. A prompt and seed counts once."""
    runs = {os.path.realpath(r.path): r for r in evidence.runs}
    methods: dict[tuple[Any, ...], dict[Any, tuple[Mapping[str, Any], str]]] = {}
    sigma: dict[Key | str, tuple[float, ...]] = {}
    for comparison in evidence.comparisons:
        content = comparison.content
        for method in content["methods"]:
            label = method.get("label") or ""
            said = MethodSpec("")
            with suppress(UsageError):
                said = MethodSpec.parse(method.get("method") or NAMED.get(label, label))
            for pair in method.get("pairs") or []:
                a, b = (runs.get(os.path.realpath(pair.get(side) or "")) for side in "ab")
                if b.policies if b else content.get("baseline") != "baseline":
                    continue
                policies = a.policies if a else said.policies
                settings = a.settings != b.settings if a and b else bool(said.settings)
                if [p.name for p in policies] == [policy]:
                    known = b or a
                    key = known.key if known else key_of(pair) if pair.get("key") else content.get("compared") or ""
                    sigma.setdefault(key, known.sigma if known else ())
                    pairs = methods.setdefault((label, policies, settings, a.key if a else None, key), {})
                    pairs[pair.get("prompt"), pair.get("seed")] = (pair, str(comparison.path))
    named = titles(key for *_, key in methods if isinstance(key, Key))
    return [
        Compared(
            label,
            policies,
            settings,
            tuple(pairs.values()),
            named.get(key) or str(key),
            sigma[key],
            key.steps if isinstance(key, Key) else 0,
        )
        for (label, policies, settings, _, key), pairs in methods.items()
    ]


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


def samples(method: Compared, value: Callable[[Mapping[str, Any]], float]) -> list[Sample]:
    """A value of each pair."""
    return [Sample(prompt=p.get("prompt") or "", value=value(p), source=source) for p, source in method.pairs]


def figure(name: str) -> Callable[[Mapping[str, Any]], float]:
    """A pair's figure."""
    return lambda pair: number(pair.get(name))


def over_baseline(name: str) -> Callable[[Mapping[str, Any]], float]:
    """A pair's figure over that of its baseline."""
    return lambda pair: over(number(pair.get(name)), number(pair.get(f"{name}_baseline")))


def over(own: float, other: float) -> float:
    """The ratio of two values >= 0: 1 where both are 0, infinite where only the other is."""
    if math.isnan(own) or math.isnan(other):
        return math.nan
    return own / other if other > 0 else math.inf if own > 0 else 1.0


def more_adherent(pair: Mapping[str, Any]) -> float:
    """1 where only the method shows what was asked, -1 where only the baseline does, else 0; NaN where the prompt
    cannot be checked."""
    own, baseline = number(pair.get("adherence")), number(pair.get("adherence_baseline"))
    return math.nan if math.isnan(own) or math.isnan(baseline) else float((own > 0.5) - (baseline > 0.5))
