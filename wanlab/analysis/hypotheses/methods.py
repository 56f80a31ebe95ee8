"""H1 and H2: what a method does to the result."""

from __future__ import annotations

from wanlab.analysis.hypotheses.compared import NOTHING, compared, is_guides, samples
from wanlab.analysis.hypotheses.evidence import Evidence, curves
from wanlab.analysis.hypotheses.verdict import BASELINES, Claim, Sample, Thresholds, claim, share


def h1(evidence: Evidence, held: Thresholds) -> list[Claim]:
    return [
        claim(
            "H1", says, quantity, samples(method, quantity), relation, threshold, BASELINES,
            method=method.label, decides=is_guides(method),
        )
        for method in compared(evidence, "cfg") or [NOTHING]
        for quantity, relation, threshold, says in (
            ("mse", "<=", held.mse, f"its mean squared error is at most {held.mse:g}"),
            ("psnr", ">=", held.psnr, f"its PSNR is at least {held.psnr:g} dB"),
        )
    ]  # fmt: skip


def h2(evidence: Evidence, held: Thresholds) -> list[Claim]:
    run = BASELINES.replace("cfg_vs", "half_vs")
    claims = [
        claim(
            "H2", f"its SSIM is at least {held.ssim:g}", "ssim", samples(method, "ssim"), ">=", held.ssim, run,
            method=method.label, decides=is_guides(method),
        )
        for method in compared(evidence, "half") or [NOTHING]
    ]  # fmt: skip
    recovered: dict[str, list[tuple[bool, Sample]]] = {}
    for c, r in curves(evidence):
        label, back = str(r.get("method", "")), r.get("recovery")
        if label.split(":")[0] == "half" and "+" not in label and " " not in label and isinstance(back, dict):
            within = back.get("after") is not None and back["after"] <= held.recovery_steps
            sample = Sample(prompt=str(r.get("prompt")), value=float(within), source=str(c.path))
            recovered.setdefault(label, []).append((within, sample))
    run += " && wanlab continuity comparison_outputs/baseline comparison_outputs/half_frame"
    for label, seen in (recovered or {"": []}).items():
        claims.append(
            claim(
                "H2", f"continuity is back within {held.recovery_steps:g} steps in {held.recovered:.0%} of runs",
                "share recovered", [s for _, s in seen], ">=", held.recovered, run, method=label,
                decides="renoise" not in label and "strided" not in label, value=share([ok for ok, _ in seen]),
            )
        )  # fmt: skip
    return claims
