"""How figures look and how they are written. Text from a user is never read as mathematics."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from io import BytesIO
from pathlib import Path

from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from wanlab.files import write_bytes

INK, HIGH, LOW, QUIET = "#1f2933", "#c2410c", "#1d4ed8", "#9aa5b1"
COLOURS = {"high": HIGH, "low": LOW, "single": LOW}
FONT = "DejaVu Sans"  # matplotlib brings it along
# Where glyphs that it lacks are looked for first: these cover whole scripts.
WIDE = ("CJK", "Noto Sans", "WenQuanYi", "Hei", "Gothic", "Unicode", "Song", "Ming")

_also: ContextVar[tuple[str, float | None] | None] = ContextVar("_also", default=None)


@contextmanager
def also_as(kind: str, width: float | None = None) -> Iterator[None]:
    """Figures saved in here are written beside the PNG as `kind` too, "pdf" or "svg" ("" for none): with letters of the
    same size, `width` inches wide, as wide as the PNG without it."""
    before = _also.set((kind, width) if kind else None)
    try:
        yield
    finally:
        _also.reset(before)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, and as `also_as` says, whole or not at all; the folder is made. Raises OSError."""
    FigureCanvasAgg(figure)
    for text in _texts(figure):
        text.set_parse_math(False)
        shown, families = legible(text.get_text())
        text.set_text(shown)
        text.set_fontfamily(families)
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=150, metadata={"Software": "wanlab"})
    path.parent.mkdir(parents=True, exist_ok=True)
    written = write_bytes(path, picture.getvalue())
    if (also := _also.get()) is not None:
        kind, width = also
        if width is not None:
            figure.set_size_inches(width, width * figure.get_figheight() / figure.get_figwidth())
        picture = BytesIO()
        # No date: the same figure is the same file. Type 42: journals take no Type 3 fonts.
        with rc_context({"pdf.fonttype": 42, "svg.hashsalt": "wanlab"}):
            figure.savefig(picture, format=kind, metadata={"CreationDate" if kind == "pdf" else "Date": None})
        write_bytes(path.with_suffix(f".{kind}"), picture.getvalue())
    return written


def _texts(figure: Figure) -> Iterator[Text]:
    """Every text but the numbers at the ticks, which may be powers of ten set as mathematics."""
    numbers = {
        id(text)
        for ax in figure.axes
        for axis in (ax.xaxis, ax.yaxis)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        for text in (tick.label1, tick.label2)
    }
    yield from (t for t in figure.findobj(Text) if id(t) not in numbers and t.get_text())


def legible(text: str) -> tuple[str, list[str]]:
    """The text as it can be drawn, and the fonts that draw it: control characters are replaced, and what no font here
    has a glyph for is decomposed or escaped."""
    clean = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    missing = {c for c in clean if c != "\n"} - _glyphs(FONT)
    families = [FONT]
    if missing and (family := _family_with(frozenset(missing))):
        families.append(family)
        missing -= _glyphs(family)
    return "".join(_escape(c) if c in missing else c for c in clean), families


def _escape(character: str) -> str:
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or character.encode("ascii", "backslashreplace").decode()


@cache
def _glyphs(family: str) -> frozenset[str]:
    font = font_manager.get_font(font_manager.findfont(family))
    return frozenset(map(chr, font.get_charmap()))


@cache
def _family_with(characters: frozenset[str]) -> str:
    """The installed font with the most of these characters, the first that has all; "" when none has any."""
    # Of another weight than the usual one, the library would say so in the log.
    weights, every = font_manager.weight_dict, [f for f in font_manager.fontManager.ttflist if f.style == "normal"]
    fonts = ((f, weights.get(f.weight, 0) if isinstance(f.weight, str) else f.weight) for f in every)
    families = dict.fromkeys(f.name for f, weight in fonts if weight == 400)
    best, most = "", 0
    for family in sorted(families, key=lambda name: not any(w in name for w in WIDE)):
        try:
            count = len(characters & _glyphs(family))
        except (OSError, RuntimeError, ValueError):  # a broken font file, or one that is gone
            continue
        if count > most:
            best, most = family, count
        if most == len(characters):
            break
    return best


def shorten(text: str, most: int = 110) -> str:
    """One line of printable text."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return line if len(line) <= most else line[: most - 1] + "…"


def dress(ax: Axes, title: str, label: str, steps: int) -> None:
    """A panel over the steps of a run."""
    ax.set_title(title, color=INK, fontsize=11, loc="left", parse_math=False)
    ax.set_xlabel("step")
    ax.set_ylabel(label, parse_math=False)
    ax.set_xlim(0.5, steps + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    ax.set_axisbelow(True)


def note(ax: Axes, text: str, x: float, size: float = 8) -> None:
    """A small word at the foot of a panel."""
    ax.annotate(
        text,
        (x, 0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        fontsize=size,
        color="#616e7c",
    )


def mark_switch(ax: Axes, switch: float, size: float = 8) -> None:
    """The expert switch in a panel over steps counted from 1: a line before the first low-noise step (from 0)."""
    ax.axvline(switch + 0.5, color=QUIET, linestyle=":", linewidth=1)
    ax.annotate(
        "switch",
        (switch + 0.5, 1),
        xycoords=("data", "axes fraction"),
        xytext=(3, -9),
        textcoords="offset points",
        fontsize=size,
        color="#616e7c",
    )
