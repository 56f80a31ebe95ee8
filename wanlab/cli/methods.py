"""`wanlab methods`: what there is to choose from, from the same place as docs/methods-reference.md: the registry."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_type_hints

import typer

from wanlab.cli import render
from wanlab.cli.grouping import with_options
from wanlab.cli.options import Form
from wanlab.errors import UsageError
from wanlab.registry import lookup, names, suggest
from wanlab.study.text import plain

# By kind: the module that registers wanlab's own, and what the docs call them.
KINDS = {
    "policy": ("wanlab.engine.policies", "Policies", "`--policy NAME:knob=value,…`; repeat it to combine"),
    "guider": (
        "wanlab.engine.guiders",
        "Guiders",
        "`--guider NAME:knob=value,…`; how the branches become one velocity",
    ),
    "solver": ("wanlab.engine.solvers", "Solvers", "`--solver NAME`"),
    "metric": (
        "wanlab.analysis.metrics",
        "Metrics",
        "Computed by `wanlab compare`; those that are asked for, by `--metric NAME`",
    ),
}
_SOURCE = re.compile(
    r'\(([^()]*(?:"[^"]*"[^()]*)?\b(?:19|20)\d\d[a-z]?)\)|(https?://[^\s)>,]*[^\s)>,.]|\barXiv:\d{4}\.\d{4,5})'
)
_KNOB = re.compile(r"(?m)^(?P<name>[a-z_][a-z0-9_]*) {2,}(?P<text>.+(?:\n {4,}.+)*)")
_SAID = re.compile(r"(?ms)^(?P<what>Cost|Source): +(?P<text>.+?)(?=\n\s*\n|\n(?:Cost|Source): |\Z)")


@dataclass(frozen=True)
class Knob:
    """A setting of a method."""

    name: str
    type: str
    """The type's name, or the words to choose from."""
    default: str
    says: str


@dataclass(frozen=True)
class Entry:
    """One thing to choose, as its docstring has it."""

    kind: str
    name: str
    summary: str
    """The first sentence or paragraph."""
    knobs: tuple[Knob, ...]
    sources: tuple[str, ...]
    """What it says after "Source:", or else what it cites."""
    cost: str
    """What a docstring says after "Cost:", or what a metric needs."""
    defined: str
    """The module."""

    def row(self) -> dict[str, Any]:
        """For a table."""
        knobs = " ".join(f"{k.name}={k.default}" for k in self.knobs)
        return {
            "kind": self.kind,
            "name": self.name,
            "knobs": knobs or "–",
            "what": self.summary,
            "cost": self.cost or "–",
            "source": "; ".join(self.sources) or "–",
        }


@with_options
def methods(
    name: Annotated[str | None, typer.Argument(help="One of them, in full.", show_default=False)] = None,
    *,
    form: Form,
) -> int:
    """List policies, guiders, solvers and metrics, with their knobs, sources and cost."""
    shown_as = form.choose()
    entries = catalogue()
    if name is not None:
        known = list(dict.fromkeys(e.name for e in entries))
        if name not in known:
            hint = suggest(name, known, "`wanlab methods` lists them")  # too many for a line
            raise UsageError(f"there is no policy, guider, solver or metric '{plain(name, 40)}'", hint)
        entries = [e for e in entries if e.name == name]
    if shown_as == "md":
        render.write(markdown(entries, whole=name is None))
    elif shown_as in render.DATA:
        render.emit([e.row() for e in entries], shown_as, [dataclasses.asdict(e) for e in entries])
    elif shown_as == "paths":
        render.write("".join(f"{e.kind}\t{e.name}\n" for e in entries))
    elif name is None:
        rows = [{k: v for k, v in e.row().items() if k not in ("cost", "source")} for e in entries]
        render.show(render.table(rows, left=tuple(rows[0]) if rows else ()))
    else:
        render.show(*(part for e in entries for part in _picture(e)))
    return 0


def catalogue() -> list[Entry]:
    """Everything registered, by kind and name."""
    entries = []
    for kind, (module, *_) in KINDS.items():
        with suppress(ModuleNotFoundError):
            loaded = importlib.import_module(module)
            if kind == "metric":  # its measures lie in modules of their own
                loaded.every()
        entries += [describe(kind, name, lookup(kind, name)) for name in names(kind)]
    return entries


def describe(kind: str, name: str, item: Any) -> Entry:
    """What the docstring and the fields of a registered object say of it."""
    # A metric may be an object that holds the function which computes it.
    subject = item if inspect.isclass(item) or inspect.isroutine(item) else getattr(item, "function", type(item))
    text = inspect.getdoc(subject) or ""
    # Knobs that several methods share are described where they are declared.
    texts = [inspect.getdoc(c) or "" for c in reversed(item.__mro__)] if inspect.isclass(item) else [text]
    said = {m["name"]: " ".join(m["text"].split()) for t in texts for m in _KNOB.finditer(t)}
    knobs: list[Knob] = []
    if inspect.isclass(item) and dataclasses.is_dataclass(item):
        hints = get_type_hints(item)
        for field in dataclasses.fields(item):
            if field.init:
                knobs.append(Knob(field.name, _type(hints[field.name]), _default(field), said.get(field.name, "")))
    notes = {m["what"]: " ".join(m["text"].split()) for m in _SAID.finditer(text)}
    cited = dict.fromkeys(" ".join((m[1] or m[2]).split()) for m in _SOURCE.finditer(text))
    sources = (notes["Source"].rstrip("."),) if "Source" in notes else tuple(cited)
    cost = notes.get("Cost", "")
    if (turned := getattr(item, "cost_knob", None)) is not None:
        cost = f"{cost} `compare --at-cost` turns {turned[0]}."
    needs = getattr(item, "needs", ())
    if not cost and needs:
        cost = "needs " + ", ".join(map(str, [needs] if isinstance(needs, str) else needs))
    module = getattr(subject, "__module__", "")
    return Entry(kind, name, " ".join(text.partition("\n\n")[0].split()), tuple(knobs), sources, cost, module)


def _type(hint: Any) -> str:
    choices = get_args(hint)
    return " or ".join(map(str, choices)) if choices else getattr(hint, "__name__", str(hint))


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "required" if field.default_factory is dataclasses.MISSING else str(field.default_factory())
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)


def _picture(entry: Entry) -> list[Any]:
    from rich.text import Text

    lines = [
        entry.summary,
        *(f"source  {s}" for s in entry.sources),
        *([f"cost    {entry.cost}"] if entry.cost else []),
    ]
    parts: list[Any] = [Text(f"{entry.kind} {entry.name}", style="bold"), Text("\n".join(plain(x, 600) for x in lines))]
    if entry.knobs:
        rows = [{"knob": k.name, "default": k.default, "values": k.type, "what": k.says} for k in entry.knobs]
        parts.append(render.table(rows, left=tuple(rows[0])))
    return [*parts, Text("")]


def markdown(entries: Sequence[Entry] | None = None, whole: bool = True) -> str:
    """docs/methods-reference.md: `wanlab methods --format md`. `whole` has a title, and a word on each kind."""
    entries = catalogue() if entries is None else entries
    from wanlab.analysis.metrics import table

    lines: list[str] = []
    if whole:
        lines = [
            "# What there is to choose from",
            "",
            "Written by `wanlab methods --format md` from the docstrings.",
            "",
        ]
    for kind, (_, title, usage) in KINDS.items():
        own = [e for e in entries if e.kind == kind]
        if own and whole:
            lines += [f"## {title}", "", usage + ".", ""]
        if kind == "metric" and whole:
            lines += [table()] if own else []
            continue
        for entry in own:
            lines += [f"### `{entry.name}`", "", _inline(entry.summary), ""]
            if entry.knobs:
                rows = [{"knob": k.name, "default": k.default, "values": k.type, "what": k.says} for k in entry.knobs]
                lines += [render.markdown(rows)]
            lines += [f"Cost: {_inline(entry.cost)}", ""] if entry.cost else []
            lines += [f"Source: {'; '.join(map(_inline, entry.sources))}.", ""] if entry.sources else []
    return "\n".join(lines).rstrip() + "\n"


def _inline(text: str) -> str:
    """A docstring's sentence in Markdown: no HTML of its own."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("*", "\\*")
