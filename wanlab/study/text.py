"""Text made fit to be written: on a terminal, in CSV, in Markdown, in JSON; and the system's errors in words.

Prompts, file names, labels and attributes of run files are untrusted: they go through these functions, everywhere.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from wanlab.files import remedy

Rows = Sequence[Mapping[str, Any]]


def printable(text: object) -> str:
    """Text from anywhere on one line: no escape sequence, no line break, nothing that turns the direction."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def plain(text: object, most: int = 200) -> str:
    """`printable` text with single spaces, not longer than `most`."""
    line = " ".join(printable(text).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def csv_cell(value: Any) -> Any:
    """A value that no spreadsheet takes for a formula; numbers stay as they are."""
    if value is None or isinstance(value, int | float):
        return value
    text = printable(value)
    if str(value)[:1] not in ("=", "+", "-", "@", "\t", "\r"):
        return text
    try:
        float(text)
    except ValueError:
        return "'" + text
    return text


def md_cell(value: Any) -> str:
    """A value that stays in its cell of a Markdown table and is neither HTML nor a link."""
    text = plain(value, 2000).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\|`[]*~" else c for c in text)


def comma_separated(rows: Rows) -> str:
    """Rows as CSV; columns in the order in which they first appear, a blank where a row has none."""
    buffer = io.StringIO()
    names = list(dict.fromkeys(n for row in rows for n in row))
    writer = csv.DictWriter(buffer, names, lineterminator="\n", restval="")
    writer.writerow({n: csv_cell(n) for n in names})
    writer.writerows({k: csv_cell(v) for k, v in row.items()} for row in rows)
    return buffer.getvalue()


def markdown(rows: Rows) -> str:
    """Rows as a Markdown table."""
    names = list(rows[0]) if rows else []
    lines = ["| " + " | ".join(map(md_cell, names)) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(map(md_cell, row.values())) + " |" for row in rows]
    return "\n".join(lines) + "\n"


_TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
_TEX |= {"≥": r"$\geq$", "≤": r"$\leq$", "σ": r"$\sigma$", "∞": r"$\infty$", "²": r"\textsuperscript{2}", "–": "--"}
_TEX |= {
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "×": r"$\times$",
    "…": r"\ldots{}",
    "−": "$-$",
}


def latex_cell(value: Any) -> str:
    """A value that LaTeX sets as it is; a character of no usual font keeps its place as a question mark."""
    return "".join(_TEX.get(c, c if c.isascii() or c.isalpha() else "?") for c in plain(value, 2000))


def latex(rows: Rows) -> str:
    """Rows as a LaTeX tabular with the rules of the package booktabs; columns of numbers right, the others left."""
    names = list(rows[0]) if rows else []
    lines = [[latex_cell(n) for n in names], *([latex_cell(v) for v in row.values()] for row in rows)]
    head, *body = [" & ".join(cells) + r" \\" for cells in lines]
    columns = "".join("l" if any(str(r.get(n, ""))[:1].isalpha() for r in rows) else "r" for n in names)
    parts = [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(parts) + "\n"


def finite(value: Any) -> Any:
    """The value with every NaN and infinity as null: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def in_words(error: OSError) -> tuple[str, str]:
    """(what is wrong, what to do) for an error of the operating system that nobody nearer to it has explained."""
    place = " to ".join(os.fsdecode(f) for f in (error.filename, error.filename2) if isinstance(f, str | bytes))
    what = error.strerror or str(error) or type(error).__name__
    return f"{place}: {what}" if place else what, remedy(error)


def steps_in_short(steps: Sequence[int]) -> str:
    """Steps as 0-3/7/9-11, as `steps:skip=` takes them; "none" for none."""
    rows: list[list[int]] = []
    for k in steps:
        if rows and k == rows[-1][-1] + 1:
            rows[-1].append(k)
        else:
            rows.append([k])
    return "/".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in rows) or "none"
