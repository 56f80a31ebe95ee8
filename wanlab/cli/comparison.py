"""What is shown of a comparison: its tables, answers and files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from wanlab.cli import render

if TYPE_CHECKING:
    from wanlab.study.results import ComparisonResult

WIDE = 125  # columns that the whole table needs
NARROW = ("end to end", "verdict", "contrast", "sharpness")  # left out where there are fewer
CLIPS = "What the clips show, and look like beside the baseline's"


def finish(result: ComparisonResult, form: str) -> int:
    from wanlab.analysis import table

    if form in ("json", "csv"):
        render.emit(result.rows, form, result.content)
    elif form == "md":
        render.write("\n".join(map(render.markdown, table.tables(result.comparison))))
    else:
        _show(result)
    for text in result.missed:
        render.complain(f"a stated threshold was missed: {text}")
    return 4 if result.missed else 3 if result.failed else 0


def _show(result: ComparisonResult) -> None:
    from wanlab.analysis import table

    comparison = result.comparison
    rows, looks = table.rows(comparison), table.clip_rows(comparison)
    labels = [r.label for r in comparison.results]
    title = f"{', '.join(labels[:3])}{', …' * (len(labels) > 3)} against {comparison.baseline}"
    lines = [*result.answer, *result.remarks, *table.reading(comparison)]
    folders: dict[Path, list[str]] = {}
    for path in result.files.values():
        folders.setdefault(path.parent, []).append(path.name)
    lines += [
        f"{'files' if not k else '':<6}{folder}: {', '.join(names)}"
        for k, (folder, names) in enumerate(folders.items())
    ]
    styles = [_style(str(r["verdict"])) for r in rows]
    if render.output().width < WIDE:  # a narrow terminal: what decides stays, the verdicts go below
        lines = [*(f"{r['method']}: {r['verdict']}" for r in rows if r["verdict"]), *lines]
        rows, looks = ([{k: v for k, v in r.items() if k not in NARROW} for r in t] for t in (rows, looks))
    shown = render.table(rows, left=("method", "verdict"), styles=styles)
    clips = render.table(looks, title=CLIPS, left=("method",))
    more = [render.table(t, left=("convention", "who prints it")) for t in [table.conventions(comparison)] if t]
    above = (Text(""), Text(title, style="bold"), Text(result.description), shown, clips)
    render.show(*above, *(x for t in more for x in (Text(""), t)), Text("\n".join(lines)))


def _style(verdict: str) -> str:
    return "dim" if not verdict else "green" if verdict in ("identical", "minimal loss, structure kept") else ""
