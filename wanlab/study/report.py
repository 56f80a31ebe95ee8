"""Hypotheses decided from what was measured, as tables, Markdown, JSON and a page."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanlab import __version__
from wanlab.errors import UsageError
from wanlab.files import make_folder, write_text
from wanlab.study.requests import check_place
from wanlab.study.results import ReportResult
from wanlab.study.text import finite, markdown, plain

if TYPE_CHECKING:
    from wanlab.analysis.hypotheses import Claim, Evidence, Hypothesis, Thresholds
    from wanlab.analysis.hypotheses import Figure as Stated

FORMAT = "wanlab-report/1"


def collect(paths: Sequence[Path]) -> Evidence:
    """What is below these files and folders. Raises UsageError when there is nothing, not even a problem."""
    from wanlab.analysis import hypotheses

    evidence = hypotheses.collect(paths)
    if evidence.empty and not evidence.problems:
        raise UsageError(
            f"there is nothing to report in {', '.join(map(str, paths))[:200]}",
            "run wanlab compare, continuity or generate there first",
        )
    return evidence


def report(evidence: Evidence, thresholds: Thresholds, out: Path) -> ReportResult:
    """Decide the hypotheses, and write report.html, report.md and report.json into `out`. Raises UsageError and
    WanlabError when these cannot be written."""
    from wanlab.analysis import hypotheses
    from wanlab.study.page import page

    check_place(out / "report.html")
    make_folder(out)
    judged, figures = hypotheses.judge(evidence, thresholds), hypotheses.reproduce(evidence)
    content = whole(evidence, judged, figures, thresholds)
    html, notes = page(evidence, judged, figures)
    texts = {
        "html": html,
        "md": as_markdown(judged, figures, evidence),
        "json": json.dumps(finite(content), ensure_ascii=True, default=str) + "\n",
    }
    files = [write_text(out / f"report.{kind}", text) for kind, text in texts.items()]
    return ReportResult(
        content=content,
        rows=claim_rows(judged),
        files=tuple(files),
        problems=evidence.problems,
        judged=tuple(judged),
        figures=tuple(figures),
        markdown=texts["md"],
        counted=counted(evidence),
        notes=tuple(notes),
    )


def whole(
    evidence: Evidence, judged: Sequence[Hypothesis], figures: Sequence[Stated], thresholds: Thresholds
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "wanlab": __version__,
        "thresholds": asdict(thresholds),
        "hypotheses": [
            {"name": x.name, "says": x.says, "verdict": x.verdict, "on": x.on, "claims": [asdict(c) for c in x.claims]}
            for x in judged
        ],
        "reproduction": [asdict(f) for f in figures],
        "runs": [
            {
                "path": str(r.path),
                "prompt": r.prompt,
                "seed": r.seed,
                "model": r.key.model,
                "method": r.method,
                "frames": r.key.frames,
                "steps": r.key.steps,
                "passes": r.passes,
                "seconds": r.seconds,
            }
            for r in evidence.runs
        ],
        "comparisons": [{"path": str(c.path), "compared": c.content.get("compared")} for c in evidence.comparisons],
        "continuities": [{"path": str(c.path), "groups": len(c.content["groups"])} for c in evidence.continuities],
        "problems": [{"path": str(p), "message": m} for p, m in evidence.problems],
    }


def claim_rows(judged: Sequence[Hypothesis]) -> list[dict[str, Any]]:
    return [
        {
            "hypothesis": c.hypothesis,
            "claim": c.says,
            "method": c.method,
            "decides": c.decides,
            "verdict": c.verdict,
            "quantity": c.quantity,
            "value": exact(c.value.mean),
            "low": exact(c.value.low),
            "high": exact(c.value.high),
            "n": c.value.n,
            "units": c.units,
            "relation": c.relation,
            "threshold": c.threshold,
            "needs": c.needs,
            "run": c.run,
            "sources": " ".join(c.sources),
        }
        for x in judged
        for c in x.claims
    ]


def exact(value: float) -> Any:
    return value if math.isfinite(value) else ""


def said(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "∞" if value > 0 else "–"


def threshold(c: Claim) -> str:
    sign = {">=": "≥", "<=": "≤"}.get(c.relation, c.relation)
    return f"{sign} {c.threshold:g}"


def interval(c: Claim) -> str:
    return f"{said(c.value.low)} to {said(c.value.high)}" if c.value.known else "–"


def sources(c: Claim) -> str:
    if not c.sources:
        return "–"
    return c.sources[0] + (f" and {len(c.sources) - 1} more" if len(c.sources) > 1 else "")


def commands(claims: Iterable[Claim]) -> list[str]:
    """What would decide the claims, each once; not what another one begins with."""
    runs = dict.fromkeys(c.run for c in claims if c.run)
    return [run for run in runs if not any(other != run and other.startswith(run) for other in runs)]


def counted(evidence: Evidence) -> str:
    parts = {
        "run": len(evidence.runs),
        "comparison": len(evidence.comparisons),
        "continuity analysis": len(evidence.continuities),
    }
    words = [f"{n} {name if n == 1 else name.replace('analysis', 'analyse') + 's'}" for name, n in parts.items() if n]
    return ", ".join(words) or "nothing"


def as_markdown(judged: Sequence[Hypothesis], figures: Sequence[Stated], evidence: Evidence) -> str:
    lines = [f"# Report\n\nFrom {counted(evidence)}.\n\n## Hypotheses\n"]
    for x in judged:
        lines.append(f"### {x.name}: {x.says} **{x.verdict}**{f' on {x.on}' if x.on else ''}\n")
        lines.append(
            markdown(
                [
                    {
                        "claim": c.says,
                        "method": c.method or "–",
                        "verdict": c.verdict,
                        "value": said(c.value.mean),
                        "95 % interval": interval(c),
                        "n": c.value.n,
                        "threshold": threshold(c),
                        "from": sources(c),
                    }
                    for c in x.claims
                ]
            )
        )
        lines += [f"- {c.says}: {c.needs}\n" for c in x.claims if c.needs and c.decides]
        lines += [f"To decide it: `{run}`\n" for run in commands(c for c in x.claims if c.decides)]
    lines.append("## The guide's figures\n")
    lines.append(
        markdown(
            [
                {
                    "figure": f.what,
                    "stated": f.stated,
                    "theory": f.theory,
                    "measured": f.measured,
                    "contradiction": f.contradiction or "–",
                }
                for f in figures
            ]
        )
    )
    if evidence.problems:
        lines.append("## Not read\n")
        lines.append("".join(f"- {plain(p)}: {plain(m)}\n" for p, m in evidence.problems))
    return "\n".join(lines)
