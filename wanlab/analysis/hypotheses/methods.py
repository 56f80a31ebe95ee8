"""H1 and H2: what a method does to the result."""

from __future__ import annotations

from wanlab.analysis.hypotheses.compared import NOTHING, compared, is_guides, samples
from wanlab.analysis.hypotheses.evidence import Evidence, curve_key, curves, titles
from wanlab.analysis.hypotheses.verdict import BASELINES, Claim, Sample, Thresholds, claim, share


def h1(evidence: Evidence, held: Thresholds) -> list[Claim]:
    return [
        claim(
            "H1",
            says,
            quantity,
            samples(method, quantity),
            relation,
            threshold,
            BASELINES,
            on=method.on,
            method=method.label,
            decides=is_guides(method),
        )
        for method in compared(evidence, "cfg") or [NOTHING]
        for quantity, relation, threshold, says in (
            ("mse", "<=", held.mse, f"its mean squared error is at most {held.mse:g}"),
            ("psnr", ">=", held.psnr, f"its PSNR is at least {held.psnr:g} dB"),
        )
    ]


def h2(evidence: Evidence, held: Thresholds) -> list[Claim]:
    run = BASELINES.replace("cfg_vs", "half_vs")
    claims = [
        claim(
            "H2",
            f"its SSIM is at least {held.ssim:g}",
            "ssim",
            samples(method, "ssim"),
            ">=",
            held.ssim,
            run,
            on=method.on,
            method=method.label,
            decides=is_guides(method),
        )
        for method in compared(evidence, "half") or [NOTHING]
    ]
    run += " && wanlab continuity comparison_outputs/baseline comparison_outputs/half_frame"
    return claims + [
        claim(
            "H2",
            f"continuity is back within {held.recovery_steps:g} steps in {held.recovered:.0%} of runs",
            "share recovered",
            seen,
            ">=",
            held.recovered,
            run,
            on=on,
            method=label,
            decides="renoise" not in label and "strided" not in label,
            value=share([bool(s.value) for s in seen]),
        )
        for (label, on), seen in (_recovered(evidence, held) or {("", ""): []}).items()
    ]


def _recovered(evidence: Evidence, held: Thresholds) -> dict[tuple[str, str], list[Sample]]:
    """By method and key, 1 for each run whose continuity is back in time, else 0."""
    known = curves(evidence)
    named = titles(curve_key(r) for _, r in known)
    samples: dict[tuple[str, str], list[Sample]] = {}
    for c, r in known:
        label, back, key = r.get("method") or "", r.get("recovery"), curve_key(r)
        if label.split(":")[0] == "half" and "+" not in label and " " not in label and back is not None:
            after = back.get("after")
            within = after is not None and after <= held.recovery_steps
            sample = Sample(prompt=r.get("prompt") or "", value=float(within), source=str(c.path))
            samples.setdefault((label, named[key] if key.model else ""), []).append(sample)
    return samples
