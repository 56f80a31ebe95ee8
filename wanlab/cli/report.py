"""`wanlab report`: what runs, comparisons and continuity analyses say together: hypotheses, and a page to show."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from wanlab.cli import render
from wanlab.errors import UsageError
from wanlab.registry import suggest
from wanlab.spec.paths import check_result

if TYPE_CHECKING:
    from wanlab.analysis.hypotheses import Evidence, Thresholds
    from wanlab.study.results import ReportResult

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
    export: Annotated[
        tuple[str, Path] | None,
        typer.Option("--export", metavar="vbench DIR", help="Write the runs' films into DIR as VBench names them."),
    ] = None,
    imported: Annotated[
        tuple[str, Path] | None,
        typer.Option("--import", metavar="vbench FILE", help="VBench's scores, or a folder of them, with intervals."),
    ] = None,
    format: Annotated[str, typer.Option("--format", help="auto, human, json, csv, md or latex.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> int:
    """Decide the hypotheses from what was measured, and write one page that shows it all.

    Reads run files, comparison.json and continuity_statistics.json.

        wanlab report comparison_outputs continuity_analysis
    """
    form = "json" if as_json else format
    if form not in render.FORMATS:
        raise UsageError(f"--format '{render.plain(form, 40)}' is unknown", suggest(form, render.FORMATS))
    given = paths or [Path()]
    for path in given:
        check_result(path)
    from wanlab.analysis import hypotheses as h  # a second: after what is wrong without it
    from wanlab.study.report import collect

    if export or imported:
        if (export and imported) or watch or thresholds or (imported and paths):
            raise UsageError("--export and --import each stand alone", "leave the other options out")
        return _export(*export, given, form) if export else _import(*imported, form) if imported else 0
    held = h.thresholds(thresholds)
    if not watch:
        return _once(collect(given), held, out, form)
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


def _export(project: str, folder: Path, given: Sequence[Path], form: str) -> int:
    from wanlab.study import vbench

    _known(project)
    rows = vbench.export(given, folder)
    if form in render.DATA:
        render.emit(rows, form)
    elif render.choose(form) == "paths":
        render.write("".join(f"{folder / r['film']}\n" for r in rows))
    else:
        lines = [f"{len(rows)} films and manifest.json in {folder}. In VBench's folder:"]
        lines += [f"  {line}" for line in vbench.commands(folder, list(dict.fromkeys(r["method"] for r in rows)))]
        lines.append(f"then: wanlab report --import vbench {folder / 'results'}")
        render.write("\n".join(lines) + "\n")
    return 0


def _import(project: str, file: Path, form: str) -> int:
    from wanlab.study import vbench

    _known(project)
    rows = vbench.scores(file)
    if form in ("json", "csv"):
        render.emit(rows, form)
    elif form in render.DATA:
        render.emit(vbench.table(rows), form)
    else:
        render.show(render.table(vbench.table(rows), left=("method", "figure")))
    return 0


def _known(project: str) -> None:
    if project != "vbench":
        raise UsageError(f"'{render.plain(project, 40)}' is unknown", "write vbench")


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
    from wanlab.study.report import report as decide

    for path, message in evidence.problems:
        render.complain(f"{path}: {message}" if str(path) not in message else message, "left out")
    result = decide(evidence, held, out)
    for note in result.notes:
        render.say(note)
    if form == "md":
        render.write(result.markdown)
    elif form in render.DATA:
        render.emit(result.rows, form, result.content)
    elif render.choose(form) == "human":
        _show(result)
    else:
        render.write("".join(f"{file}\n" for file in result.files))
    return 3 if result.problems else 0


def _show(result: ReportResult) -> None:
    from wanlab.study.report import commands, interval, said, threshold

    judged, figures, files = result.judged, result.figures, result.files
    rows: list[dict[str, Any]] = []
    styles: list[str] = []
    for x in judged:
        rows.append(
            {
                "": x.name,
                "claim": x.says + f"\non {x.on}" * bool(x.on),
                "verdict": x.verdict,
                "value": "",
                "n": "",
                "threshold": "",
            }
        )
        styles.append(f"bold {STYLES.get(x.verdict, 'yellow')}")
        for c in x.claims:
            rows.append(
                {
                    "": "",
                    "claim": c.says
                    + (f"\n{c.method}{'' if c.decides else ' (variant)'}" if c.method else "")
                    + (f"\n{c.needs}" if c.needs and c.decides else ""),
                    "verdict": c.verdict,
                    "value": said(c.value.mean) + (f"\n{interval(c)}" if c.value.known else ""),
                    "n": c.value.n or "–",
                    "threshold": threshold(c),
                }
            )
            styles.append("" if c.decides else "dim")
    left = ("", "claim", "verdict")
    render.show(render.table(rows, title=f"Hypotheses, from {result.counted}", left=left, styles=styles))
    runs = commands(c for x in judged for c in x.claims if c.decides)
    if runs:
        render.show(Text("To decide what is open:\n" + "\n".join(f"  {run}" for run in runs) + "\n"))
    render.show(
        render.table(
            [{"figure": f.what, "stated": f.stated, "theory": f.theory, "measured": f.measured} for f in figures],
            title="The guide's figures",
            left=("figure", "stated", "theory", "measured"),
        )
    )
    against = [f"  {f.what}: {f.contradiction}." for f in figures if f.contradiction]
    render.show(Text("Where the guide contradicts arithmetic, the schedule or itself:\n" + "\n".join(against) + "\n"))
    render.show(Text(f"files {files[0].parent}: " + ", ".join(f.name for f in files)))
