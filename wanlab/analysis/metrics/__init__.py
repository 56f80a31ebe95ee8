"""Measures by name. A function under `@metric` is all that it takes: tables, JSON, CSV, conditions, schema and docs
follow from what the registration says.

    @metric("edge_error", needs="frame pair", better="lower", bounds=(0, math.inf), format=".4f")
    def edge_error(x, y):
        "Mean absolute difference of the Sobel edges."
        return float(np.abs(sobel(x) - sobel(y)).mean())

What a function is given, by `needs`:

    frame pair  (x, y)           a frame of A and of B, [H,W,3] in [0,1]; a value a frame, put together by `reduce`
    frame       (frame)          a frame of A and then of B: NAME and NAME_baseline
    clip        (before, frame)  a frame and the one before, of A and then of B
    clips       (f, g, h)        three frames in a row, of A and then of B
    pair        (a, b)           both clips (metrics.clip.Clip), to be read by the function itself
    run         (cost)           what a run did (metrics.cost.Cost), of A and then of B
    verdict     (verdict)        what the verifier says of a run of the embedded world (metrics.adherence), A then B
    runs        (a, b)           both open run files (wanlab.runfile.Run)
    figures     (figures)        the figures of the pair that were registered before, by name
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wanlab.errors import UsageError
from wanlab.registry import digest, from_file, lookup, names, register, suggest

if TYPE_CHECKING:
    from wanlab.analysis.stats import Interval

Needs = Literal["frame pair", "frame", "clip", "clips", "pair", "run", "runs", "verdict", "figures"]
WINDOW = {"frame": 1, "clip": 2, "clips": 3}  # frames in a row of one video
OF_BOTH = (*WINDOW, "run", "verdict")  # measured of A and of B
MODULES = (
    "pixels",
    "conventions",
    "learned.distances",
    "learned.video",
    "latent",
    "temporal",
    "adherence",
    "appearance",
    "cost",
)
BASELINE = "_baseline"

_of_files: dict[str, Metric] = {}  # what files named on the command line register


@dataclass(frozen=True, kw_only=True, eq=False)
class Metric:
    """A measure and everything that follows from it."""

    name: str
    function: Callable[..., float]
    needs: Needs
    title: str
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""
    bounds: tuple[float, float] = (-math.inf, math.inf)
    """What the figure can be; its interval never leaves them."""
    format: str = ".4g"
    reduce: Literal["mean", "max", "mean of unequal"] = "mean"
    """How a value a frame becomes one of the pair. "mean of unequal", over pairs too: of those that do not stand for
    equal frames (`identical`), if there are any."""
    mean: str = "arithmetic"
    """Over pairs: "arithmetic"; "geometric", of the pairs that have it; "none"; or the name of a figure, whose mean and
    bounds the function turns into this one's."""
    interval: Callable[[str, Callable[[str], Sequence[float]], Sequence[str], float | None], Interval] | None = None
    """Its mean and interval where `mean` does not say them: of the figure's name, the values of any figure by name, the
    prompts, and the factor that stands in for Student's quantile."""
    asked: bool = False
    """Measured only where it is asked for by name."""
    check: Callable[[], None] = field(default=lambda: None)
    """Raises WanlabError where what it needs is not installed; called before anything is measured or sampled."""
    column: str = ""
    """How the table shows it, as ".1f"; "" where it does not."""
    table: Literal["main", "clips"] = "main"
    """Which table: what a method costs and loses, or what its clips show and look like."""
    identical: float = math.nan
    """The value that stands for two equal clips and is written as "identical"."""

    def __call__(self, *given: Any) -> float:
        """The value for what was given; NaN where that lacks something, or the value cannot be."""
        try:
            value = float(self.function(*given))
        except (KeyError, ZeroDivisionError):
            return math.nan
        low, high = self.bounds
        possible = value == self.identical or (math.isfinite(value) and low - 1e-9 <= value <= high + 1e-9)
        return value if possible else math.nan

    def counted(self, values: Iterable[float]) -> list[bool]:
        """Which of the values enter their mean: all, or those that do not stand for equal frames, if there are any."""
        unequal = [v != self.identical for v in values]
        return unequal if self.reduce == "mean of unequal" and any(unequal) else [True] * len(unequal)

    @property
    def names(self) -> tuple[str, ...]:
        """The figures of a pair that it gives."""
        return (self.name, self.name + BASELINE) if self.needs in OF_BOTH else (self.name,)

    @property
    def doc(self) -> str:
        """What it is, in a sentence."""
        return " ".join((self.function.__doc__ or self.title).split("\n\n")[0].split())

    def plain(self, value: float) -> float | str:
        """The value for files: the word "identical" where it means that; NaN for what cannot be written as a number."""
        if value == self.identical:
            return "identical"
        return value if math.isfinite(value) else math.nan

    def text(self, value: float) -> str:
        """The value for people; a dash where there is none."""
        plain = self.plain(value)
        if isinstance(plain, str):
            return plain
        return "–" if math.isnan(plain) else f"{plain:{self.format}}{self.unit if self.unit == 'x' else ''}"


def metric(name: str, *, needs: Needs, title: str = "", **more: Any) -> Callable[[Callable[..., float]], Metric]:
    """Decorator: register a function as the measure `name`; `more` are fields of Metric.

    Raises ValueError for a name that is taken, or is no identifier in lower case, dots apart.
    """
    if not name.replace(".", "_").isidentifier() or name != name.lower() or name.endswith(BASELINE):
        raise ValueError(f"'{name}' is no name for a metric: write lower case, as psnr, edge_error or psnr.frames")

    def add(function: Callable[..., float]) -> Metric:
        made = Metric(name=name, function=function, needs=needs, title=title or name.replace("_", " "), **more)
        object.__setattr__(made, "__module__", function.__module__)  # by which the registry knows a file's own
        return register("metric", name)(made)

    return add


def every() -> list[Metric]:
    """All measures: those of this package in the order that figures are shown in, then those of others."""
    for module in MODULES:
        import_module(f"{__name__}.{module}")
    known = [*(lookup("metric", n) for n in names("metric")), *_of_files.values()]
    return sorted(known, key=lambda m: (not m.function.__module__.startswith(__name__), _place(m)))


def _place(item: Metric) -> tuple[int, int]:
    order = [f"{__name__}.{m}" for m in MODULES]
    module = item.function.__module__
    return (order.index(module) if module in order else len(order), item.function.__code__.co_firstlineno)


def chosen(asked: Sequence[str] = ()) -> list[Metric]:
    """The measures of a comparison: all that are not measured on request only, and those asked for, by name or as the
    file that registers them, with what these are made from. Raises UsageError for an unknown one, WanlabError for what
    is not installed."""
    known, wanted = by_figure(), set()
    for text in asked:
        for m in load(text) if text.endswith(".py") else [get(text)]:
            m.check()
            wanted |= {m.name, m.mean} if m.mean in known else {m.name}
    return [m for m in every() if not m.asked or m.name in wanted]


def get(name: str) -> Metric:
    """The measure that gives the figure `name`. Raises UsageError, naming the nearest, when there is none."""
    known = by_figure()
    if name not in known:
        raise UsageError(f"'{name[:40]}' is no figure of a comparison", suggest(name, known))
    return known[name]


def by_figure(metrics: Iterable[Metric] | None = None) -> dict[str, Metric]:
    """The measures by the figures that they give."""
    return {n: m for m in (every() if metrics is None else metrics) for n in m.names}


def load(path: str | Path) -> list[Metric]:
    """Take up the measures of a file of code, as it is now, and return them. Raises UsageError when it has none, or
    when a name is taken."""
    own = [m for (kind, _), m in from_file(str(path), digest(str(path))).items() if kind == "metric"]
    if not own:
        raise UsageError(f"{path} registers no metric", "put @metric(NAME, needs=…) on its function")
    for m in own:
        before = _of_files.get(m.name, m)
        if m.name in names("metric") or _place_of(before) != _place_of(m):
            raise UsageError(f"{path}: there is a metric '{m.name}' already", "give it another name")
    _of_files.update({m.name: m for m in own})
    return own


def _place_of(item: Metric) -> Path:
    return Path(item.function.__code__.co_filename).resolve()


def table(metrics: Iterable[Metric] | None = None) -> str:
    """The measures as a Markdown table, for the documentation."""
    lines = ["| figure | what it is | unit | better | range |", "| --- | --- | --- | --- | --- |"]
    for m in every() if metrics is None else metrics:
        shown = ", ".join(f"`{n}`" for n in m.names) + " (asked for)" * m.asked
        low, high = (f"{b:g}".replace("inf", "∞") for b in m.bounds)
        doc = m.doc.replace("|", "\\|")
        lines.append(f"| {shown} | {doc} | {m.unit or '1'} | {m.better or '–'} | {low} to {high} |")
    return "\n".join(lines) + "\n"


def schema(metrics: Iterable[Metric] | None = None) -> dict[str, Any]:
    """The properties of a summary in comparison.json, as JSON schema."""
    return {
        n: {"$ref": "#/$defs/interval", "description": f"{m.doc} Unit: {m.unit or '1'}."}
        for n, m in by_figure(metrics).items()
        if m.mean != "none"
    }


def values(metrics: Iterable[Metric], figures: Mapping[str, float]) -> dict[str, float]:
    """The figures with those that are made from them; NaN where what they need is not there."""
    known = dict(figures)
    for m in metrics:
        if m.needs == "figures":
            known[m.name] = m(known)
    return known
