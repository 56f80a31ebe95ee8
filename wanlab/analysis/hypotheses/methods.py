"""H1 and H2: what a method does to the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wanlab.analysis import stats
from wanlab.analysis.hypotheses.compared import (
    NOTHING,
    Compared,
    compared,
    figure,
    is_guides,
    more_adherent,
    over_baseline,
    samples,
)
from wanlab.analysis.hypotheses.evidence import Evidence, curves, key_of
from wanlab.analysis.hypotheses.verdict import BASELINES, Claim, Sample, Statement, Thresholds, claim
from wanlab.analysis.key import Key, titles
from wanlab.analysis.metrics import adherence

Value = Callable[[Mapping[str, Any]], float]
HALF = BASELINES.replace("cfg_vs", "half_vs")


def h1(evidence: Evidence, held: Thresholds) -> list[Claim]:
    """Fidelity, whether a truncated run is like its baseline, and adherence, whether it shows what was asked as
    often."""
    claims = []
    for method in compared(evidence, "cfg") or [NOTHING]:
        off = _off(method)
        alike = f"fidelity{off}: its mean squared error is at most {held.mse:g}"
        decibels = f"fidelity{off}: its PSNR is at least {held.psnr:g} dB"
        shows = f"adherence{off}: it shows what was asked at most {held.margin:g} less often than the baseline"
        claims += _claims(
            "H1",
            method,
            (Statement(alike, "mse", "<=", held.mse, BASELINES), figure("mse")),
            (Statement(decibels, "psnr", ">=", held.psnr, BASELINES), figure("psnr")),
            (
                Statement(shows, "adherence, difference", ">=", -held.margin, BASELINES, adherence.difference),
                more_adherent,
            ),
        )
    return claims


def _claims(name: str, method: Compared, *statements: tuple[Statement, Value]) -> list[Claim]:
    about = {"on": method.on, "method": method.label}
    return [
        claim(name, statement, samples(method, value), decides=is_guides(method), **about)
        for statement, value in statements
    ]


def _off(method: Compared) -> str:
    """At which steps guidance is off, and their noise levels."""
    last = method.knob("cfg", "last", 0)
    if not isinstance(last, int) or not 0 < last <= len(method.sigma):
        return ""
    return f", its last {f'{last} steps' if last > 1 else 'step'} truncated (σ ≤ {method.sigma[-last]:.2f})"


def h2(evidence: Evidence, held: Thresholds) -> list[Claim]:
    """Likeness, continuity, motion and recovery, each for itself."""
    likeness = Statement(f"its SSIM is at least {held.ssim:g}", "ssim", ">=", held.ssim, HALF)
    says = f"continuity: its warping error is at most {held.warping:g} times the baseline's"
    continuity = Statement(says, "warping error, ratio", "<=", held.warping, HALF)
    slow, fast = (
        Statement(
            f"motion: its frames change at {least} {bound:g} times as fast as the baseline's",
            "frame difference, ratio",
            relation,
            bound,
            HALF,
        )
        for least, relation, bound in (("least", ">=", held.speed_low), ("most", "<=", held.speed_high))
    )
    claims = []
    for method in compared(evidence, "half") or [NOTHING]:
        claims += _claims(
            "H2",
            method,
            (likeness, figure("ssim")),
            (continuity, over_baseline("warping_error")),
            (slow, over_baseline("difference")),
            (fast, over_baseline("difference")),
        )
    back = Statement(
        f"recovery: {held.recovery_steps:g} steps after they were duplicated, frames differ from their originals as "
        f"the baseline's do, in {held.recovered:.0%} of runs",
        "share recovered",
        ">=",
        held.recovered,
        f"{HALF} && wanlab continuity comparison_outputs/baseline comparison_outputs/half_frame",
        lambda values, prompts: stats.share([v > 0 for v in values], prompts),
    )
    return claims + [
        claim("H2", back, seen, on=on, method=label, decides="strided" not in label)
        for (label, on), seen in (_recovered(evidence, held) or {("", ""): []}).items()
    ]


def _recovered(evidence: Evidence, held: Thresholds) -> dict[tuple[str, str], list[Sample]]:
    """By method and key, 1 for each run whose duplicated frames differ in time, else 0."""
    found: dict[tuple[str, Key], list[Sample]] = {}
    for c, r in curves(evidence):
        policies, back = r.get("policies") or r.get("method") or "", r.get("recovery")
        if policies.split(":")[0] == "half" and "+" not in policies and back and back.get("pairs") == "duplicated":
            curve, first = back.get("curve"), back.get("from_step")
            if isinstance(curve, list) and isinstance(first, int) and len(curve) - first < held.recovery_steps:
                continue  # so many steps were not left
            within = back.get("after") is not None and back["after"] <= held.recovery_steps
            sample = Sample(prompt=r.get("prompt") or "", value=float(within), source=str(c.path))
            found.setdefault((policies, key_of(r)), []).append(sample)
    named = titles(key for _, key in found)
    return {(label, named[key] if key.model else ""): seen for (label, key), seen in found.items()}
