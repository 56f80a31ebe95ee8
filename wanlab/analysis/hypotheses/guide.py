"""The guide's stated figures beside what theory gives and what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wanlab.analysis.hypotheses.compared import Compared, compared, figure, is_guides, number, samples
from wanlab.analysis.hypotheses.evidence import Continuity, Evidence, curves, key_of, plain_runs
from wanlab.analysis.hypotheses.scales import pooled
from wanlab.analysis.hypotheses.verdict import Sample
from wanlab.analysis.key import titles


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
    """Sigma of a step, counted from 1, of the flow schedule shifted in time: s u / (1 + (s-1) u),
    u = 1 - (step-1)/steps."""
    u = 1 - (step - 1) / steps
    return shift * u / (1 + (shift - 1) * u)


def reproduce(evidence: Evidence) -> list[Figure]:
    """The guide's stated figures; contradictions are computed here, not quoted."""
    return [*_truncation(evidence), _schedule(evidence), *_neighbours(evidence), _recovery(evidence)]


def _truncation(evidence: Evidence) -> list[Figure]:
    """What the guide says of CFG truncation."""
    methods = [m for m in compared(evidence, "cfg") if is_guides(m)]
    five_of_40 = [m for m in methods if not m.knob("cfg", "high", 0) and m.steps == 40]

    def measured(
        quantity: str, form: str, of: Callable[[Mapping[str, Any]], float], those: Sequence[Compared] = methods
    ) -> tuple[str, tuple[str, ...]]:
        by_key = {f"{' '.join(map(str, m.policies))} on {m.on}" * bool(m.on): samples(m, of) for m in those}
        return _measured(quantity, by_key, form)

    psnr, sources = measured("psnr", "{:.2f} dB", figure("psnr"))
    mse, _ = measured("mse", "{:.6f}", figure("mse"))
    speed, saving = measured("speed-up", "{:.3f}x", lambda p: _over(p, "seconds"), five_of_40)
    saved, _ = measured("passes saved", "{:.1%} of passes", lambda p: 1 - 1 / _over(p, "passes"), five_of_40)
    stated = 0.010234**2 + 0.023456**2
    implied = -10 * math.log10(0.01)
    return [
        Figure(
            what="example: PSNR of MSE .000105",
            stated="39.78 dB",
            theory=f"{-10 * math.log10(0.000105):.2f} dB",
            measured=psnr,
            sources=sources,
        ),
        Figure(
            what="example: MSE beside absolute error (mean .010234, std .023456)",
            stated=".000105",
            theory=f"mean² + std² = {stated:.6f}",
            measured=mse,
            sources=sources,
            contradiction=f"the stated mean and deviation of the absolute error give an MSE of {stated:.6f}, "
            f"{stated / 0.000105:.1f} times the stated one; "
            f".000105 is the square of the mean alone ({0.010234**2:.6f})",
        ),
        Figure(
            what="H1: MSE .01 and PSNR 39 dB",
            stated="both",
            theory=f"MSE .01 is {implied:.0f} dB",
            measured=f"{mse}; {psnr}",
            sources=sources,
            contradiction=f"an MSE of .01 is a PSNR of {implied:.0f} dB; 39 dB is an MSE of {10**-3.9:.6f}",
        ),
        Figure(
            what="saving of 5 truncated steps of 40",
            stated="25–35 %",
            theory=f"{5 / 80:.2%} of passes, {80 / 75:.3f}x",
            measured="–" if saved == "–" else f"{saved}; {speed}",
            sources=saving,
            contradiction="5 of 40 steps lose one of two passes each: 5 of 80",
        ),
    ]


def _over(pair: Mapping[str, Any], name: str) -> float:
    """The baseline's over the method's; NaN where one is missing."""
    own, baseline = number(pair.get(name)), number(pair.get(f"{name}_baseline"))
    return baseline / own if own > 0 and baseline > 0 else math.nan


def _schedule(evidence: Evidence) -> Figure:
    sigma = shifted(13, 20, 12)
    runs = [r for r in plain_runs(evidence) if (r.key.steps, r.key.shift) == (20, 12) and len(r.sigma) == 20]
    at = next(k for k in range(1, 21) if shifted(k, 20, 12) <= 0.7501)
    return Figure(
        what="σ at step 13 of 20, shift 12",
        stated=".75",
        theory=f"{sigma:.3f}",
        measured=f"{runs[0].sigma[12]:.3f}" if runs else "–",
        sources=tuple(str(r.path) for r in runs[:1]),
        contradiction=f"the schedule gives {sigma:.3f}; .75 is step {at}",
    )


def _neighbours(evidence: Evidence) -> list[Figure]:
    """What the guide says of neighbouring frames of x_t."""
    baselines: dict[str, list[tuple[Continuity, Mapping[str, Any]]]] = {}
    for on, c, r in _named(evidence):
        if r.get("method") == "baseline" and len(r.get("sigma") or []) == len(_curve(r)) == 20:
            baselines.setdefault(on, []).append((c, r))
    figures = []
    for step, stated in ((1, "≈ 2.5"), (13, "≈ 1.4 (theory 1.13 at σ .75)"), (20, "≈ 0.3, to be verified")):
        sigma = shifted(step, 20, 12)
        values = {
            on: [
                Sample(prompt=r.get("prompt") or "", value=number(_curve(r)[step - 1]), source=str(c.path))
                for c, r in own
                if abs(number(r["sigma"][step - 1]) - sigma) < 0.01  # the guide's schedule, of shift 12
            ]
            for on, own in baselines.items()
        }
        measured, sources = _measured("continuity", values, "{:.3f}")
        noise = 2 * sigma**2
        figures.append(
            Figure(
                what=f"adjacent-frame MSE of x_t at step {step} of 20",
                stated=stated,
                theory=f"2σ² = {noise:.2f} of noise, and {(1 - sigma) ** 2:.3f} times the clip's own",
                measured=measured,
                sources=sources,
                contradiction={
                    1: f"independent unit noise alone gives 2σ² = {noise:.2f}; "
                    "2.5 needs neighbouring noises that oppose each other",
                    13: f"1.13 is 2 x .75²; at the schedule's σ of {sigma:.3f} noise alone gives {noise:.2f}",
                }.get(step, ""),
            )
        )
    return figures


def _curve(r: Mapping[str, Any]) -> Sequence[float | None]:
    """The mean mse of x_t at each step."""
    x_t = (r.get("spaces") or {}).get("x_t") or {}
    curve: Sequence[float | None] = (x_t.get("mse") or {}).get("mean") or []
    return curve


def _recovery(evidence: Evidence) -> Figure:
    backs: dict[str, list[int | None]] = {}
    for on, _, r in _named(evidence):
        if (r.get("method") or "").startswith("half") and (back := r.get("recovery")) is not None:
            backs.setdefault(on, []).append(back.get("after"))
    said = []
    for on, own in backs.items():
        known = [b for b in own if b is not None]
        median = f", the others after {np.median(known):g} (median)" if known else ""
        said.append(_on(on, f"{len(own) - len(known)} of {len(own)} runs never{median}"))
    return Figure(
        what="H2: 7 steps after step 13 recover continuity",
        stated="7",
        theory=f"20 - 13 = {20 - 13}",
        measured="; ".join(said) or "–",
        sources=tuple(str(c.path) for c in evidence.continuities),
        contradiction="7 is every step that is left after step 13, so the statement holds whenever the result is good "
        "at all",
    )


def _named(evidence: Evidence) -> Iterator[tuple[str, Continuity, Mapping[str, Any]]]:
    """The runs of the continuity analyses, each with the name of its key."""
    found = curves(evidence)
    named = titles(key_of(r) for _, r in found)
    for c, r in found:
        yield named[key_of(r)] if key_of(r).model else "", c, r


def _on(name: str, text: str) -> str:
    """What was measured, and of which runs."""
    return f"{name}: {text}" if name else text


def _measured(quantity: str, samples: Mapping[str, Sequence[Sample]], form: str) -> tuple[str, tuple[str, ...]]:
    """The mean of each kind of runs, its interval where there are enough values for one, and the files that it comes
    from. Kinds are not pooled."""
    known = {on: [x for x in own if not math.isnan(x.value)] for on, own in samples.items()}
    known = {on: own for on, own in known.items() if own}
    said = []
    for on, own in known.items():
        value, _ = pooled(quantity, [x.value for x in own], [x.prompt for x in own])
        text = form.format(value.mean)
        if value.known:
            text += f" ({form.format(value.low)} to {form.format(value.high)})"
        said.append(_on(on, f"{text}, n = {value.n}"))
    return "; ".join(said) or "–", tuple(dict.fromkeys(x.source for own in known.values() for x in own))
