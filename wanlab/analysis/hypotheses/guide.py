"""The guide's stated figures beside what theory gives and what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wanlab.analysis import stats
from wanlab.analysis.hypotheses.compared import compared, is_guides, number
from wanlab.analysis.hypotheses.evidence import Evidence, curves, plain_runs


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One stated figure of the guide."""

    what: str
    stated: str
    theory: str
    measured: str
    sources: tuple[str, ...]
    contradiction: str = ""
    """Where the guide contradicts arithmetic or itself."""


def shifted(step: int, steps: int, shift: float) -> float:
    """Sigma of a step, counted from 1, of the flow schedule shifted in time: s u / (1 + (s-1) u), u = 1 - (step-1)/steps."""
    u = 1 - (step - 1) / steps
    return shift * u / (1 + (shift - 1) * u)


def reproduce(evidence: Evidence) -> list[Figure]:
    """The guide's stated figures; contradictions are computed here, not quoted."""
    cfg = [p for method in compared(evidence, "cfg") if is_guides(method) for p in method.pairs]
    psnr, cfg_from = _measured([(str(p["prompt"]), number(p.get("psnr")), s) for p, s in cfg], "{:.2f} dB")
    mse, _ = _measured([(str(p["prompt"]), number(p.get("mse")), s) for p, s in cfg], "{:.6f}")
    speed, _ = _measured([(str(p["prompt"]), number(p.get("seconds_baseline")) / number(p.get("seconds")), s) for p, s in cfg if number(p.get("seconds")) > 0], "{:.3f}x")  # fmt: skip
    saved = [1 - p["passes"] / p["passes_baseline"] for p, _ in cfg if p.get("passes") and p.get("passes_baseline")]
    sigma13 = shifted(13, 20, 12)
    baselines = [
        (c, r) for c, r in curves(evidence) if r.get("method") == "baseline" and len(r.get("sigma") or []) == 20
    ]  # fmt: skip

    def at(step: int) -> tuple[str, tuple[str, ...]]:
        values = []
        for c, r in baselines:
            curve = ((r.get("spaces") or {}).get("x_t") or {}).get("mse", {}).get("mean") or []
            if len(curve) == 20 and curve[step - 1] is not None:
                values.append((str(r.get("prompt")), float(curve[step - 1]), str(c.path)))
        return _measured(values, "{:.3f}")

    schedules = [r for r in plain_runs(evidence) if r.steps == 20 and r.shift == 12 and len(r.sigma) == 20]
    seen13 = f"{schedules[0].sigma[12]:.3f}" if schedules else "–"
    implied = -10 * math.log10(0.01)
    figures = [
        Figure(
            what="example: PSNR of MSE .000105", stated="39.78 dB", theory=f"{-10 * math.log10(0.000105):.2f} dB",
            measured=psnr, sources=cfg_from,
        ),
        Figure(
            what="example: MSE beside absolute error (mean .010234, std .023456)", stated=".000105",
            theory=f"mean² + std² = {0.010234**2 + 0.023456**2:.6f}", measured=mse, sources=cfg_from,
            contradiction=f"the stated mean and deviation of the absolute error give an MSE of {0.010234**2 + 0.023456**2:.6f}, "
            f"{(0.010234**2 + 0.023456**2) / 0.000105:.1f} times the stated one; .000105 is the square of the mean alone ({0.010234**2:.6f})",
        ),
        Figure(
            what="H1: MSE .01 and PSNR 39 dB", stated="both", theory=f"MSE .01 is {implied:.0f} dB", measured=f"{mse}, {psnr}",
            sources=cfg_from,
            contradiction=f"an MSE of .01 is a PSNR of {implied:.0f} dB; 39 dB is an MSE of {10**-3.9:.6f}",
        ),
        Figure(
            what="saving of 5 truncated steps of 40", stated="25–35 %", theory=f"{5 / 80:.2%} of passes, {80 / 75:.3f}x",
            measured=f"{np.mean(saved):.1%} of passes, {speed}" if saved else "–", sources=cfg_from,
            contradiction="5 of 40 steps lose one of two passes each: 5 of 80",
        ),
        Figure(
            what="σ at step 13 of 20, shift 12", stated=".75", theory=f"{sigma13:.3f}", measured=seen13,
            sources=tuple(str(r.path) for r in schedules[:1]),
            contradiction=f"the schedule gives {sigma13:.3f}; .75 is step {next(k for k in range(1, 21) if shifted(k, 20, 12) <= 0.7501)}",
        ),
    ]  # fmt: skip
    for step, stated in ((1, "≈ 2.5"), (13, "≈ 1.4 (theory 1.13 at σ .75)"), (20, "≈ 0.3, to be verified")):
        sigma = shifted(step, 20, 12)
        measured, sources = at(step)
        noise = 2 * sigma**2
        figures.append(
            Figure(
                what=f"adjacent-frame MSE of x_t at step {step} of 20", stated=stated,
                theory=f"2σ² = {noise:.2f}, and {(1 - sigma) ** 2:.3f} of the clip's own", measured=measured, sources=sources,
                contradiction={
                    1: f"independent unit noise alone gives 2σ² = {noise:.2f}; 2.5 needs neighbouring noises that oppose each other",
                    13: f"1.13 is 2 x .75²; at the schedule's σ of {sigma:.3f} noise alone gives {noise:.2f}",
                }.get(step, ""),
            )
        )  # fmt: skip
    figures.append(
        Figure(
            what="H2: 7 steps after step 13 recover continuity", stated="7", theory=f"20 - 13 = {20 - 13}", measured=_recovery(evidence),
            sources=tuple(str(c.path) for c in evidence.continuities),
            contradiction="7 is every step that is left after step 13, so the statement holds whenever the result is good at all",
        )
    )  # fmt: skip
    return figures


def _measured(values: Sequence[tuple[str, float, str]], form: str) -> tuple[str, tuple[str, ...]]:
    known = [(p, v, s) for p, v, s in values if math.isfinite(v)]
    if not known:
        return "–", ()
    found, _ = stats.grouped([v for _, v, _ in known], [p for p, _, _ in known])
    text = form.format(found.mean)
    if found.known:
        text += f" ({form.format(found.low)} to {form.format(found.high)})"
    return f"{text}, n = {found.n}", tuple(dict.fromkeys(s for _, _, s in known))


def _recovery(evidence: Evidence) -> str:
    backs = [
        r["recovery"]["after"] for _, r in curves(evidence)
        if str(r.get("method", "")).startswith("half") and isinstance(r.get("recovery"), dict)
    ]  # fmt: skip
    if not backs:
        return "–"
    known = [b for b in backs if b is not None]
    return (f"median {np.median(known):g}" if known else "none") + f"; {len(backs) - len(known)} of {len(backs)} never"
