"""Text from elsewhere made fit to be written: on a terminal, in CSV, in Markdown, in JSON.

Prompts, file names, labels and attributes of run files are untrusted: they go through these functions, everywhere.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

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


def finite(value: Any) -> Any:
    """The value with every NaN and infinity as null: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value
