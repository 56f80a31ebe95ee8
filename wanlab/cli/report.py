"""`wanlab report`: what runs, comparisons and continuity analyses say together: hypotheses, and a page to show."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from wanlab import __version__
from wanlab.cli import render
from wanlab.errors import UsageError, WanlabError
from wanlab.registry import suggest

if TYPE_CHECKING:
    from wanlab.analysis.hypotheses import Claim, Evidence, Hypothesis, Thresholds
    from wanlab.analysis.hypotheses import Figure as Stated

FORMAT = "wanlab-report/1"
CLIPS = 5_000_000  # bytes of clips in the page, before base64 …
FIGURES = 2_000_000  # … and of figures: under 10 MiB together
KINDS = {"supported": "good", "refuted": "bad"}
STYLES = {"supported": "green", "refuted": "red"}


def report(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Folders or files that wanlab wrote.  [default: .]", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the page and its data.")] = Path("report"),
    thresholds: Annotated[
        Path | None, typer.Option("--thresholds", help="A TOML file with other thresholds than the guide's.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Do it again whenever there is something new.")] = False,
    format: Annotated[str, typer.Option("--format", help="auto, human, json, csv or md.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> int:
    """Decide the hypotheses from what was measured, and write one page that shows it all.

    Reads run files, comparison.json and continuity_statistics.json.

        wanlab report comparison_outputs continuity_analysis
    """
    from wanlab.analysis import hypotheses as h

    form = "json" if as_json else format
    if form not in render.FORMATS:
        raise UsageError(f"--format '{render.plain(form, 40)}' is unknown", suggest(form, render.FORMATS))
    given = paths or [Path()]
    held = h.thresholds(thresholds)
    if not watch:
        evidence = h.collect(given)
        if evidence.empty and not evidence.problems:
            raise UsageError(
                f"there is nothing to report in {', '.join(map(str, given))[:200]}",
                "run wanlab compare, continuity or generate there first",
            )
        return _once(evidence, held, out, form)
    seen: frozenset[tuple[str, int, int]] = frozenset()
    code = 0
    try:
        while True:
            now = _state(given)
            if now != seen:
                new = len({name for name, *_ in now} - {name for name, *_ in seen})
                render.say(f"{new} new, {len(now)} files in all; ctrl-c stops")
                seen, evidence = now, h.collect(given)
                if not evidence.empty:
                    code = _once(evidence, held, out, form)
            time.sleep(1.0)
    except KeyboardInterrupt:
        return code


def _state(given: Sequence[Path]) -> frozenset[tuple[str, int, int]]:
    from wanlab.analysis import hypotheses as h

    found = set()
    for path in (p for g in given for p in h.files(g)):
        try:
            stat = path.stat()
        except OSError:  # gone since it was listed
            continue
        found.add((str(path), stat.st_mtime_ns, stat.st_size))
    return frozenset(found)


def _once(evidence: Evidence, held: Thresholds, out: Path, form: str) -> int:
    from wanlab.analysis import hypotheses as h

    for path, message in evidence.problems:
        render.complain(f"{path}: {message}" if str(path) not in message else message, "left out")
    judged, figures = h.judge(evidence, held), h.reproduce(evidence)
    whole = _whole(evidence, judged, figures, held)
    files = _write(evidence, judged, figures, whole, out)
    if form in ("json", "csv", "md"):
        if form == "md":
            print(_markdown(judged, figures, evidence), end="")
        else:
            render.emit(_claim_rows(judged), form, whole)
    elif render.choose(form) == "human":
        _show(evidence, judged, figures, files)
    else:
        print("\n".join(map(str, files)))
    return 3 if evidence.problems else 0


def _whole(
    evidence: Evidence, judged: Sequence[Hypothesis], figures: Sequence[Stated], held: Thresholds
) -> dict[str, Any]:
    return {
        "format": FORMAT, "wanlab": __version__, "thresholds": asdict(held),
        "hypotheses": [
            {"name": x.name, "says": x.says, "verdict": x.verdict, "claims": [asdict(c) for c in x.claims]} for x in judged
        ],
        "reproduction": [asdict(f) for f in figures],
        "runs": [
            {"path": str(r.path), "prompt": r.prompt, "seed": r.seed, "model": r.model, "method": r.method,
             "frames": r.frames, "steps": r.steps, "passes": r.passes, "seconds": r.seconds} for r in evidence.runs
        ],
        "comparisons": [{"path": str(c.path), "compared": c.content.get("compared")} for c in evidence.comparisons],
        "continuities": [{"path": str(c.path), "groups": len(c.content["groups"])} for c in evidence.continuities],
        "problems": [{"path": str(p), "message": m} for p, m in evidence.problems],
    }  # fmt: skip


# --- tables -----------------------------------------------------------------------------------------------------------


def _claim_rows(judged: Sequence[Hypothesis]) -> list[dict[str, Any]]:
    return [
        {"hypothesis": c.hypothesis, "claim": c.says, "method": c.method, "decides": c.decides, "verdict": c.verdict,
         "quantity": c.quantity, "value": _exact(c.value.mean), "low": _exact(c.value.low), "high": _exact(c.value.high),
         "n": c.value.n, "units": c.units, "relation": c.relation, "threshold": c.threshold, "run": c.run,
         "sources": " ".join(c.sources)}
        for x in judged for c in x.claims
    ]  # fmt: skip


def _exact(value: float) -> Any:
    return value if math.isfinite(value) else ""


def _said(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "–"


def _threshold(c: Claim) -> str:
    sign = {">=": "≥", "<=": "≤"}.get(c.relation, c.relation)
    return f"{sign} {c.threshold:g}"


def _interval(c: Claim) -> str:
    return f"{_said(c.value.low)} to {_said(c.value.high)}" if c.value.known else "–"


def _sources(c: Claim) -> str:
    if not c.sources:
        return "–"
    return c.sources[0] + (f" and {len(c.sources) - 1} more" if len(c.sources) > 1 else "")


def _counted(evidence: Evidence) -> str:
    parts = {
        "run": len(evidence.runs), "comparison": len(evidence.comparisons),
        "continuity analysis": len(evidence.continuities),
    }  # fmt: skip
    said = [f"{n} {name if n == 1 else name.replace('analysis', 'analyse') + 's'}" for name, n in parts.items() if n]
    return ", ".join(said) or "nothing"


def _show(evidence: Evidence, judged: Sequence[Hypothesis], figures: Sequence[Stated], files: Sequence[Path]) -> None:
    rows: list[dict[str, Any]] = []
    styles: list[str] = []
    for x in judged:
        rows.append(
            {
                "": x.name,
                "claim": x.says,
                "verdict": x.verdict,
                "value": "",
                "n": "",
                "threshold": "",
            }
        )
        styles.append(f"bold {STYLES.get(x.verdict, 'yellow')}")
        for c in x.claims:
            rows.append(
                {"": "", "claim": c.says + (f"\n{c.method}{'' if c.decides else ' (variant)'}" if c.method else ""), "verdict": c.verdict,
                 "value": _said(c.value.mean) + (f"\n{_interval(c)}" if c.value.known else ""), "n": c.value.n or "–",
                 "threshold": _threshold(c)}
            )  # fmt: skip
            styles.append("" if c.decides else "dim")
    left = ("", "claim", "verdict")
    render.show(render.table(rows, title=f"Hypotheses, from {_counted(evidence)}", left=left, styles=styles))
    commands = dict.fromkeys(c.run for x in judged for c in x.claims if c.run and c.decides)
    if commands:
        render.show(Text("To decide what is open:\n" + "\n".join(f"  {c}" for c in commands) + "\n"))
    render.show(
        render.table(
            [{"figure": f.what, "stated": f.stated, "theory": f.theory, "measured": f.measured} for f in figures],
            title="The guide's figures", left=("figure", "stated", "theory", "measured"),
        )
    )  # fmt: skip
    against = [f"  {f.what}: {f.contradiction}." for f in figures if f.contradiction]
    render.show(Text("Where the guide contradicts arithmetic, the schedule or itself:\n" + "\n".join(against) + "\n"))
    render.show(Text(f"files {files[0].parent}: " + ", ".join(f.name for f in files)))


def _markdown(judged: Sequence[Hypothesis], figures: Sequence[Stated], evidence: Evidence) -> str:
    lines = [f"# Report\n\nFrom {_counted(evidence)}.\n\n## Hypotheses\n"]
    for x in judged:
        lines.append(f"### {x.name}: {x.says} **{x.verdict}**\n")
        lines.append(
            render.markdown(
                [{"claim": c.says, "method": c.method or "–", "verdict": c.verdict, "value": _said(c.value.mean),
                  "95 % interval": _interval(c), "n": c.value.n, "threshold": _threshold(c),
                  "from": _sources(c)} for c in x.claims]
            )
        )  # fmt: skip
        lines += [f"To decide it: `{run}`\n" for run in dict.fromkeys(c.run for c in x.claims if c.run)]
    lines.append("## The guide's figures\n")
    lines.append(
        render.markdown(
            [{"figure": f.what, "stated": f.stated, "theory": f.theory, "measured": f.measured,
              "contradiction": f.contradiction or "–"} for f in figures]
        )
    )  # fmt: skip
    if evidence.problems:
        lines.append("## Not read\n")
        lines.append("".join(f"- {render.plain(p)}: {render.plain(m)}\n" for p, m in evidence.problems))
    return "\n".join(lines)


# --- the page ---------------------------------------------------------------------------------------------------------


def _write(
    evidence: Evidence, judged: Sequence[Hypothesis], figures: Sequence[Stated], whole: dict[str, Any], out: Path
) -> list[Path]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        files = [out / f"report.{kind}" for kind in ("html", "md", "json")]
        texts = (
            page(evidence, judged, figures), _markdown(judged, figures, evidence),
            json.dumps(render.finite(whole), ensure_ascii=True, default=str) + "\n",
        )  # fmt: skip
        for file, text in zip(files, texts, strict=True):
            part = file.with_name(f".{file.name}.part")
            part.write_text(text, "utf-8")
            part.replace(file)  # a browser that reloads never sees half a page
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror or error}", "choose another --out") from error
    return files


def page(evidence: Evidence, judged: Sequence[Hypothesis], figures: Sequence[Stated]) -> str:
    """The whole report as one HTML page that loads nothing from anywhere."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    there = resources.files("wanlab.cli") / "templates"
    style, script = ((there / name).read_text("utf-8") for name in ("report.css", "report.js"))
    environment = Environment(
        loader=PackageLoader("wanlab.cli"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    clips, left_out = _clips(evidence)
    budget = [FIGURES]
    # Style and script are this package's own text: marked as safe, and named to the browser by their hashes.
    from markupsafe import Markup

    return environment.get_template("report.html.j2").render(
        title="wanlab report", version=__version__, date=date.today().isoformat(), counted=_counted(evidence),
        style=Markup(style), script=Markup(script), style_hash=_hash(style), script_hash=_hash(script),
        hypotheses=[
            {"name": x.name, "says": x.says, "verdict": x.verdict, "kind": KINDS.get(x.verdict, "open"),
             "claims": [_claim(c) for c in x.claims]} for x in judged
        ],
        claim_columns=("claim", "verdict", "value", "95 % interval", "n", "threshold", "from"),
        numeric=("value", "95 % interval", "n", "threshold", "seed", "frames", "steps", "passes", "seconds"),
        figures=figures, comparisons=[_comparison(c.path, c.content, budget) for c in evidence.comparisons],
        continuities=[_continuity(c.path, c.content, budget) for c in evidence.continuities],
        runs=[
            {"prompt": r.prompt, "method": r.method, "model": r.model, "seed": r.seed, "frames": r.frames,
             "steps": r.steps, "passes": r.passes, "seconds": f"{r.seconds:.2f}"} for r in evidence.runs
        ],
        run_columns=("prompt", "method", "model", "seed", "frames", "steps", "passes", "seconds"),
        clips=clips, clips_said=f"{len(clips)} clips" + (f"; {left_out} left out to keep the page small" if left_out else ""),
        problems=[{"path": str(p), "message": m} for p, m in evidence.problems],
    )  # fmt: skip


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _claim(c: Claim) -> dict[str, Any]:
    return {
        "says": c.says, "method": c.method, "decides": c.decides, "run": c.run, "verdict": c.verdict,
        "kind": KINDS.get(c.verdict, "open"), "value": _said(c.value.mean), "sort": _exact(c.value.mean),
        "interval": _interval(c), "n": f"{c.value.n} {c.units}" if c.value.n else "–",
        "threshold": _threshold(c), "sources": _sources(c),
    }  # fmt: skip


def _comparison(path: Path, content: Any, budget: list[int]) -> dict[str, Any]:
    rows = []
    for m in content["methods"]:
        s = m.get("summary") or {}
        rows.append([
            m.get("label"), *(_of(s, *k) for k in (("speedup_predicted", ".2f", "x"), ("speedup", ".2f", "x"), ("psnr", ".1f", " dB"), ("ssim", ".3f", ""))),
            m.get("n", "–"), m.get("verdict"),
        ])  # fmt: skip
    return {
        "title": content.get("compared") or "comparison", "path": str(path), "rows": rows,
        "columns": ("method", "predicted", "measured", "PSNR", "SSIM", "n", "verdict"),
        "figures": _figures(sorted(path.parent.glob("*.png")) + sorted(path.parent.glob("*/*.png")), budget),
    }  # fmt: skip


def _of(summary: Any, name: str, form: str, unit: str) -> str:
    found = summary.get(name) or {}
    mean, low, high = (found.get(k) for k in ("mean", "low", "high"))
    if not isinstance(mean, int | float):
        return "identical" if mean in ("inf", "identical") else "–"
    spread = f" ({low:{form}}–{high:{form}})" if all(isinstance(v, int | float) for v in (low, high)) else ""
    return f"{mean:{form}}{unit}{spread}"


def _continuity(path: Path, content: Any, budget: list[int]) -> dict[str, Any]:
    return {
        "title": str(path),
        "reading": [f"{g.get('method')}, {g.get('frames')} frames: {line}" for g in content["groups"] for line in g.get("reading") or []],
        "figures": _figures(sorted(path.parent.glob("continuity_*.png")), budget),
    }  # fmt: skip


def _figures(files: Sequence[Path], budget: list[int]) -> list[dict[str, str]]:
    """As data URIs, as long as the budget lasts."""
    found = []
    for file in files:
        data = file.read_bytes()
        if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) > budget[0]:
            continue
        budget[0] -= len(data)
        found.append({"name": f"{file.parent.name}: {file.stem.replace('_', ' ')}", "data": _uri("image/png", data)})
    return found


def _clips(evidence: Evidence) -> tuple[list[dict[str, Any]], int]:
    """The runs' videos, small, as data URIs, and how many are left out."""
    from wanlab.runfile import Run
    from wanlab.video import FPS, write_mp4

    shown: list[dict[str, Any]] = []
    used = 0
    with TemporaryDirectory() as folder:
        for k, r in enumerate(evidence.runs):
            try:
                with Run(r.path) as run:
                    if "video" not in run:
                        continue
                    small = max(1, math.ceil(r.size[0] / 256))
                    frames = run["video"][...][:, ::small, ::small]
                    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
                    fps = int(run.attrs.get("fps", FPS))
                clip = Path(folder) / f"{k}.mp4"
                write_mp4(clip, frames, fps)
                data = clip.read_bytes()
            except WanlabError as error:
                render.complain(f"{r.path}: {error.message}", "its clip is left out")
                continue
            if used + len(data) > CLIPS:
                return shown, len(evidence.runs) - len(shown)
            used += len(data)
            shown.append({"prompt": r.prompt, "method": r.method, "seed": r.seed, "data": _uri("video/mp4", data)})
    return shown, 0


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
