"""H5: what computing some of the tokens does to the result, held against tokens chosen by lot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from wanlab.analysis.hypotheses.compared import (
    NOTHING,
    Compared,
    compared,
    figure,
    more_adherent,
    number,
    over,
    samples,
)
from wanlab.analysis.hypotheses.evidence import Evidence
from wanlab.analysis.hypotheses.verdict import Claim, Sample, Statement, Thresholds, claim
from wanlab.analysis.metrics import adherence

RULES = ("prune", "ras", "topk", "tome")
CONTROL = "random_tokens"
EQUAL = 0.02
"""Two runs cost the same where their operations differ by no more than this share."""
RUN = "wanlab compare --a prune --sweep prune.choice=change,lot --suite builtin --seed 0:{seeds}"


def h5(evidence: Evidence, held: Thresholds) -> list[Claim]:
    """Whether the tokens that change least are the ones to freeze, and whether freezing them is without loss. The
    guide's own form decides; other settings and policies are shown beside it."""
    by_name = {name: compared(evidence, name) for name in (*RULES, CONTROL)}
    controls = [*by_name[CONTROL], *(m for m in by_name["prune"] if _by_lot(m))]
    rules = [(name, m) for name in RULES for m in by_name[name] if not _by_lot(m)] or [("prune", NOTHING)]
    better = Statement(
        "choice: at equal cost its mean squared error is less than that of tokens drawn by lot",
        "mse, over the control's",
        "<",
        1.0,
        RUN,
    )
    alike = Statement(f"fidelity: its PSNR is at least {held.frozen_psnr:g} dB", "psnr", ">=", held.frozen_psnr, RUN)
    shows = Statement(
        f"adherence: it shows what was asked at most {held.margin:g} less often than the baseline",
        "adherence, difference",
        ">=",
        -held.margin,
        RUN,
        adherence.difference,
    )
    claims = []
    for name, method in rules:
        about: dict[str, Any] = {"on": method.on, "method": method.label}
        about["decides"] = name == "prune" and _is_guides(method)
        claims.append(claim("H5", better, _over_control(method, controls), **about))
        if method is not NOTHING:
            claims.append(claim("H5", alike, samples(method, figure("psnr")), **about))
            claims.append(claim("H5", shows, samples(method, more_adherent), **about))
    return claims


def _by_lot(method: Compared) -> bool:
    return bool(method.knob("prune", "choice", "change") == "lot")


def _is_guides(method: Compared) -> bool:
    """Whether no knob is set to anything but the guide's own values."""
    own = {
        "threshold": 20,
        "baseline_steps": 5,
        "start_step": 6,
        "update": "cumulative",
        "keep": "velocity",
        "keys": "stale",
        "keys_dtype": "model",
        "scope": "high",
        "choice": "change",
    }
    return not method.settings and all(bool(method.knob("prune", k, value) == value) for k, value in own.items())


def _over_control(method: Compared, controls: Iterable[Compared]) -> list[Sample]:
    """The error of each pair over that of the control of its prompt and seed, of several the one whose cost is nearest;
    pairs without one of equal cost are left out."""
    there: dict[Any, list[Mapping[str, Any]]] = {}
    for control in controls:
        if control.on == method.on:
            for pair, _ in control.pairs:
                there.setdefault((pair.get("prompt"), pair.get("seed")), []).append(pair)
    found = []
    for pair, source in method.pairs:
        cost, error = number(pair.get("pass_equivalents")), number(pair.get("mse"))
        near = [
            (apart, number(other.get("mse")))
            for other in there.get((pair.get("prompt"), pair.get("seed")), [])
            if cost > 0 and (apart := abs(number(other.get("pass_equivalents")) / cost - 1)) <= EQUAL
        ]
        if near:
            found.append(Sample(prompt=pair.get("prompt") or "", value=over(error, min(near)[1]), source=source))
    return found
