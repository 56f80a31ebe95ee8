"""What is shown of a comparison: its tables, answers and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from wanlab.cli import render

if TYPE_CHECKING:
    from rich.table import Table

    from wanlab.study.results import ComparisonResult

NARROW = ("end to end", "verdict", "contrast", "sharpness")  # columns left out of a table wider than the terminal
CLIPS = "What the clips show, and look like beside the baseline's"


def finish(result: ComparisonResult, form: str) -> int:
    from wanlab.analysis import table

    if form in ("json", "csv"):
        render.emit(result.rows, form, result.content)
    elif form in ("md", "latex"):
        write = render.markdown if form == "md" else render.latex
        render.write("\n".join(map(write, table.tables(result.comparison))))
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
    title = f"{'; '.join(labels[:3])}{'; …' * (len(labels) > 3)} against {comparison.baseline}"
    lines = [*result.answer, *result.remarks, *table.reading(comparison)]
    folders: dict[Path, list[str]] = {}
    for path in result.files.values():
        folders.setdefault(path.parent, []).append(path.name)
    lines += [
        f"{'files' if not k else '':<6}{folder}: {', '.join(names)}"
        for k, (folder, names) in enumerate(folders.items())
    ]
    styles = [_style(str(r["verdict"])) for r in rows]
    shown, gone = _fitting(rows, left=("method", "verdict"), styles=styles)
    clips, more_gone = _fitting(looks, title=CLIPS, left=("method",))
    if "verdict" in gone:
        lines = [*(f"{r['method']}: {r['verdict']}" for r in rows if r["verdict"]), *lines]
    if names := [n for n in (*gone, *more_gone) if n != "verdict"]:
        lines.append(f"no room here for {', '.join(names)}: they are in the files")
    more = [render.table(t, left=("convention", "who prints it")) for t in [table.conventions(comparison)] if t]
    above = (Text(""), Text(title, style="bold"), Text(result.description), shown, clips)
    render.show(*above, *(x for t in more for x in (Text(""), t)), Text("\n".join(lines)))


def _fitting(rows: Sequence[Mapping[str, Any]], **given: Any) -> tuple[Table, list[str]]:
    """The table, without some of its columns where it is wider than the terminal, and the names of these."""
    console = render.output()
    anywhere = console.options.update(max_width=render.PIPE_WIDTH)  # or it would need no more than there is
    shown = render.table(rows, **given)
    if not rows or console.measure(shown, options=anywhere).maximum <= console.width:
        return shown, []
    kept = [name for name in rows[0] if name not in NARROW]
    while True:
        shown = render.table([{name: row[name] for name in kept} for row in rows], **given)
        if len(kept) <= 2 or console.measure(shown, options=anywhere).minimum <= console.width:
            return shown, [name for name in rows[0] if name not in kept]
        kept.pop()


def _style(verdict: str) -> str:
    return "dim" if not verdict else "green" if verdict in ("identical", "minimal loss, structure kept") else ""
