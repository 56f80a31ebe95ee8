"""How results look: rich tables on a terminal, plain data in a pipe. stdout is data, stderr is talk.

Text from elsewhere (prompts, file names, attributes of run files) goes through wanlab.study.text.
"""

from __future__ import annotations

import codecs
import io
import json
import math
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from wanlab.errors import WanlabError
from wanlab.study.text import Rows, comma_separated, finite, latex, markdown, plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = [
    "DATA",
    "FORMATS",
    "choose",
    "complain",
    "emit",
    "finite",
    "give_up_stdout",
    "latex",
    "markdown",
    "number",
    "output",
    "plain",
    "prepare",
    "say",
    "show",
    "size",
    "table",
    "talk",
    "write",
]
DATA = ("json", "csv", "md", "latex")  # what `emit` writes
FORMATS = ("auto", "human", *DATA)
PIPE_WIDTH = 240


# --- stdout and stderr -----------------------------------------------------------------------------------------------


def _encode(error: UnicodeError) -> tuple[bytes, int]:
    """What the terminal's encoding lacks: the bytes of a file's name as they are, else an escape."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return b"".join(
        bytes([ord(c) - 0xDC00]) if 0xDC80 <= ord(c) < 0xDD00 else c.encode("ascii", "backslashreplace")
        for c in lacking
    ), error.end


codecs.register_error("wanlab", _encode)  # type: ignore[arg-type]


def prepare() -> None:
    """Make stdout and stderr fit for any text. Raises WanlabError when stdout is closed."""
    if sys.stderr is None:  # nobody listens; and no file of ours may become number 2
        sys.stderr = io.TextIOWrapper(io.FileIO(os.devnull, "w"), encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="wanlab")
    if sys.stdout is None:
        raise WanlabError("standard output is closed", "send it to a file, or to /dev/null")


def write(text: str) -> None:
    """Text on stdout. A reader that has enough ends nothing: the rest goes nowhere.

    Raises WanlabError when it cannot be written.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        give_up_stdout()
    except OSError as error:
        give_up_stdout()
        raise WanlabError(
            f"cannot write to standard output: {error.strerror}", "send it elsewhere; the files written are whole"
        ) from error


def give_up_stdout() -> None:
    """Let what is still to be written vanish: flushing it again at the end would fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def output() -> Console:
    """stdout; a pipe gets no colour and as much width as is needed, whatever FORCE_COLOR says."""
    from rich.console import Console

    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, width=PIPE_WIDTH, no_color=True, force_terminal=False)


def talk() -> Console:
    """stderr; colours and bars on a terminal only, whatever FORCE_COLOR says."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True, force_terminal=None if sys.stderr.isatty() else False)


def say(text: str) -> None:
    """One line on stderr."""
    from rich.text import Text

    with suppress(OSError):  # stderr may be closed or full; what is said is not the work
        talk().print(Text(plain(text, 1000)))


def complain(message: str, hint: str = "") -> None:
    """An error in one line on stderr: what, then what to do."""
    from rich.text import Text

    line = Text("wanlab: ", style="bold red")
    line.append(plain(message, 600), style="not bold default")
    if hint:
        line.append(f" ({plain(hint, 300)})", style="not bold default")
    with suppress(OSError):
        talk().print(line)


def choose(form: str) -> str:
    """The format that "auto" means here: "human" on a terminal, "paths" in a pipe."""
    return form if form != "auto" else "human" if sys.stdout.isatty() else "paths"


# --- numbers and tables ----------------------------------------------------------------------------------------------


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
    """A table of equal rows; columns named in `left` are aligned left and fold, the others are aligned right and are
    never broken; `styles` are the rows'. A second line in a cell is shown below the first, dimmed."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(
        title=Text(plain(title)) if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        caption=Text(plain(caption, 400)) if caption else None,
        caption_justify="left",
    )
    for name in rows[0] if rows else ():
        folds = name in left
        shown.add_column(Text(plain(name)), justify="left" if folds else "right", overflow="fold", no_wrap=not folds)
    for k, row in enumerate(rows):
        shown.add_row(*map(_cell, row.values()), style=styles[k] if styles else None)
    return shown


def _cell(value: Any) -> Text:
    from rich.text import Text

    first, newline, second = str(value).partition("\n")
    return Text.assemble(plain(first, 400), newline, (plain(second), "dim"))


def show(*things: Any) -> None:
    """Print rich things on stdout. A table that would have to break numbers is wider than the terminal instead."""
    from rich.measure import Measurement
    from rich.table import Table

    console = output()
    with console.capture() as captured:
        for thing in things:
            width = console.width
            if isinstance(thing, Table):
                console.width = 10_000
                console.width = max(width, Measurement.get(console, console.options, thing).minimum)
            console.print(thing)
            console.width = width
    write(captured.get())


def emit(rows: Rows, form: str, whole: Any = None) -> None:
    """Rows as JSON (`whole` instead, if given), CSV, Markdown or LaTeX on stdout."""
    if form == "json":
        write(json.dumps(finite(rows if whole is None else whole), ensure_ascii=True, default=str) + "\n")
    else:
        write({"csv": comma_separated, "md": markdown, "latex": latex}[form](rows))
