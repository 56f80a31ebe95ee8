"""How results look: rich tables on a terminal, plain data in a pipe. stdout is data, stderr is talk."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

FORMATS = ("auto", "human", "json", "csv", "md")
Rows = Sequence[Mapping[str, Any]]


def plain(text: object, most: int = 200) -> str:
    """One printable line of text from anywhere: no escape sequence, no line break, not longer than `most`."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(str(text).split()))
    return line if len(line) <= most else line[: most - 1] + "…"


def talk() -> Console:
    """stderr."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line on stderr."""
    talk().print(Text(plain(text, 1000)))


def complain(message: str, hint: str = "") -> None:
    """An error in one line on stderr: what, then what to do."""
    line = Text("wanlab: ", style="bold red")
    line.append(plain(message, 600), style="not bold default")
    if hint:
        line.append(f" ({plain(hint, 300)})", style="not bold default")
    talk().print(line)


def choose(form: str) -> str:
    """The format that "auto" means here: "human" on a terminal, "paths" in a pipe."""
    return form if form != "auto" else "human" if sys.stdout.isatty() else "paths"


def number(value: Any, form: str = "") -> str:
    """A number for a table; a dash where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return format(value, form) if form else str(value)


def size(count: float) -> str:
    """Bytes in the unit that reads best."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def table(
    rows: Rows, *, title: str = "", left: Sequence[str] = (), caption: str = "", styles: Sequence[str] = ()
) -> Table:
    """A table of equal rows; columns named in `left` are aligned left, the others right; `styles` are the rows'. A
    second line in a cell is shown below the first, dimmed."""
    made = Table(title=Text(plain(title)) if title else None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False,
                 caption=Text(plain(caption, 400)) if caption else None, caption_justify="left")  # fmt: skip
    for name in rows[0] if rows else ():
        made.add_column(name, justify="left" if name in left else "right", overflow="fold")
    for k, row in enumerate(rows):
        made.add_row(*map(_cell, row.values()), style=styles[k] if styles else None)
    return made


def _cell(value: Any) -> Text:
    first, newline, second = str(value).partition("\n")
    return Text.assemble(plain(first), newline, (plain(second), "dim"))


def output() -> Console:
    """stdout; a pipe gets no colour and as much width as is needed."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=240, no_color=True)


def show(*things: Any) -> None:
    """Print rich things on stdout."""
    console = output()
    for thing in things:
        console.print(thing)


def emit(rows: Rows, form: str, whole: Any = None) -> None:
    """Rows as JSON (`whole` instead, if given), CSV or Markdown on stdout."""
    if form == "json":
        sys.stdout.write(json.dumps(finite(rows if whole is None else whole), ensure_ascii=True, default=str) + "\n")
    elif form == "csv":
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        sys.stdout.write(buffer.getvalue())
    else:
        sys.stdout.write(markdown(rows))


def markdown(rows: Rows) -> str:
    """Rows as a Markdown table."""
    names = list(rows[0]) if rows else []
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    lines += [
        "| " + " | ".join(plain(v).replace("\\", "\\\\").replace("|", "\\|") for v in row.values()) + " |"
        for row in rows
    ]
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
