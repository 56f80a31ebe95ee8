"""The report as one HTML page that loads nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from datetime import date
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from wanlab import __version__
from wanlab.errors import WanlabError
from wanlab.files import read_bytes
from wanlab.study.design import slug
from wanlab.study.report import counted, exact, interval, said, sources, threshold

if TYPE_CHECKING:
    from wanlab.analysis.hypotheses import Claim, Evidence, Hypothesis
    from wanlab.analysis.hypotheses import Figure as Stated

CLIPS = 5_000_000  # bytes of clips in the page, before base64 …
FIGURES = 2_000_000  # … and of figures: under 10 MiB together
KINDS = {"supported": "good", "refuted": "bad"}


def page(evidence: Evidence, judged: Sequence[Hypothesis], figures: Sequence[Stated]) -> tuple[str, list[str]]:
    """The whole report as one HTML page that loads nothing from anywhere, and notes on clips that are left out."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    there = resources.files("wanlab.study") / "templates"
    style, script = ((there / name).read_text("utf-8") for name in ("report.css", "report.js"))
    environment = Environment(
        loader=PackageLoader("wanlab.study"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    clips, left_out, notes = _clips(evidence)
    budget = [FIGURES]
    # Style and script are our own text: marked as safe, and named to the browser by their hashes.
    html = environment.get_template("report.html.j2").render(
        title="wanlab report",
        version=__version__,
        date=date.today().isoformat(),
        counted=counted(evidence),
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        hypotheses=[_hypothesis(x) for x in judged],
        claim_columns=("claim", "verdict", "value", "95 % interval", "n", "threshold", "from"),
        numeric=("value", "95 % interval", "n", "threshold", "seed", "frames", "steps", "passes", "seconds"),
        figures=figures,
        comparisons=[_comparison(c.path, c.content, budget) for c in evidence.comparisons],
        continuities=[_continuity(c.path, c.content, budget) for c in evidence.continuities],
        runs=[
            {
                "prompt": r.prompt,
                "method": r.method,
                "model": r.key.model,
                "seed": r.seed,
                "frames": r.key.frames,
                "steps": r.key.steps,
                "passes": r.passes,
                "seconds": f"{r.seconds:.2f}",
            }
            for r in evidence.runs
        ],
        run_columns=("prompt", "method", "model", "seed", "frames", "steps", "passes", "seconds"),
        clips=clips,
        clips_said=f"{len(clips)} clips" + (f"; {left_out} left out to keep the page small" if left_out else ""),
        problems=[{"path": str(p), "message": m} for p, m in evidence.problems],
    )
    return html, notes


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _hypothesis(x: Hypothesis) -> dict[str, Any]:
    return {
        "name": x.name,
        "says": x.says,
        "verdict": x.verdict,
        "on": x.on,
        "kind": KINDS.get(x.verdict, "open"),
        "claims": [_claim(c) for c in x.claims],
    }


def _claim(c: Claim) -> dict[str, Any]:
    return {
        "says": c.says,
        "method": c.method,
        "decides": c.decides,
        "needs": c.needs,
        "run": c.run,
        "verdict": c.verdict,
        "kind": KINDS.get(c.verdict, "open"),
        "value": said(c.value.mean),
        "sort": exact(c.value.mean),
        "interval": interval(c),
        "n": f"{c.value.n} {c.units}" if c.value.n else "–",
        "threshold": threshold(c),
        "sources": sources(c),
    }


SHOWN = {
    "followed": ("adherence", ".1%", ""),
    "A - B": ("adherence_change", "+.1%", ""),
    **{name: (f"{name}_ratio", ".2f", "x") for name in ("motion", "flicker", "sharpness", "saturation", "contrast")},
}
COLUMNS = {
    "predicted": ("speedup_predicted", ".2f", "x"),
    "measured": ("speedup", ".2f", "x"),
    "PSNR": ("psnr", ".1f", " dB"),
    "SSIM": ("ssim", ".3f", ""),
}


def _comparison(path: Path, content: Any, budget: list[int]) -> dict[str, Any]:
    columns = COLUMNS | {name.replace("_", " "): (name, ".4g", "") for name in _others(content)}
    summaries = {m.get("label"): m.get("summary") or {} for m in content["methods"]}
    clips = {title: c for title, c in SHOWN.items() if any(_of(s, *c) != "–" for s in summaries.values())}
    rows = [
        [
            m.get("label"),
            *(_of(m.get("summary") or {}, *c) for c in columns.values()),
            m.get("n", "–"),
            m.get("verdict"),
        ]
        for m in content["methods"]
    ]
    return {
        "title": content.get("compared") or "comparison",
        "path": str(path),
        "rows": rows,
        "columns": ("method", *columns, "n", "verdict"),
        "clip_rows": [[label, *(_of(s, *c) for c in clips.values())] for label, s in summaries.items()],
        "clip_columns": ("method", *clips) if clips else (),
        "figures": _figures(_drawn(path, content), budget),
    }


def _others(content: Any) -> list[str]:
    """The figures that are not wanlab's own: measures that somebody registered."""
    from wanlab.analysis import metrics

    own = {
        name for name, m in metrics.by_figure().items() if getattr(m.function, "__module__", "").startswith("wanlab.")
    }
    names = dict.fromkeys(name for m in content["methods"] for name in m.get("summary") or {})
    return [name for name in names if name not in own and not name.endswith("_baseline")]


def _drawn(path: Path, content: Any) -> list[Path]:
    """The figures of a comparison: its front and those of its methods, in the folder that it was written into."""
    folder = path.parent.parent if path.parent.name == "comparisons" else path.parent
    front = [folder / "pareto.png"] if len(content["methods"]) > 1 else []
    return front + [p for m in content["methods"] for p in sorted((folder / slug(str(m.get("label")))).glob("*.png"))]


def _of(summary: Any, name: str, form: str, unit: str) -> str:
    found = summary.get(name) or {}
    mean, low, high = (found.get(k) for k in ("mean", "low", "high"))
    if not isinstance(mean, int | float):
        return "identical" if mean in ("inf", "identical") else "–"
    spread = ""
    if isinstance(low, int | float) and isinstance(high, int | float):
        spread = f" ({low:{form}}{'–' if low >= 0 else ' to '}{high:{form}})"
    return f"{mean:{form}}{unit}{spread}"


def _continuity(path: Path, content: Any, budget: list[int]) -> dict[str, Any]:
    return {
        "title": str(path),
        "reading": [
            f"{g.get('method')}, {g.get('frames')} frames: {line}"
            for g in content["groups"]
            for line in g.get("reading") or []
        ],
        "figures": _figures(sorted(path.parent.glob("continuity_*.png")), budget),
    }


def _figures(files: Sequence[Path], budget: list[int]) -> list[dict[str, str]]:
    """As data URIs, as long as the budget lasts."""
    found = []
    for file in files:
        try:
            data = read_bytes(file, budget[0])
        except WanlabError:  # too large, no regular file, or one that cannot be read
            continue
        if data[:8] != b"\x89PNG\r\n\x1a\n":
            continue
        budget[0] -= len(data)
        found.append({"name": f"{file.parent.name}: {file.stem.replace('_', ' ')}", "data": _uri("image/png", data)})
    return found


def _clips(evidence: Evidence) -> tuple[list[dict[str, Any]], int, list[str]]:
    """The runs' videos, small, as data URIs; how many are left out to keep the page small; and why others are."""
    from wanlab.runfile import Run
    from wanlab.video import FPS, write_mp4

    shown: list[dict[str, Any]] = []
    notes: list[str] = []
    used = 0
    with TemporaryDirectory() as folder:
        for k, r in enumerate(evidence.runs):
            try:
                with Run(r.path) as run:
                    if "video" not in run:
                        continue
                    small = max(1, math.ceil(run.spec.width / 256))
                    frames = run["video"][...][:, ::small, ::small]
                    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
                    fps = int(run.attrs.get("fps", FPS))
                clip = Path(folder) / f"{k}.mp4"
                write_mp4(clip, frames, fps)
                data = clip.read_bytes()
            except WanlabError as error:
                notes.append(f"{r.path}: {error.message}: its clip is left out")
                continue
            if used + len(data) > CLIPS:
                return shown, len(evidence.runs) - len(shown), notes
            used += len(data)
            shown.append({"prompt": r.prompt, "method": r.method, "seed": r.seed, "data": _uri("video/mp4", data)})
    return shown, 0, notes


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
