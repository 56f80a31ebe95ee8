"""Names for the things that can be chosen: policies, guiders, solvers, metrics.

A new one is one file with one `@register` line: in this package (imported beside its like), in another one that names
it as an entry point (`wanlab.policies`, `wanlab.guiders`, `wanlab.solvers`, `wanlab.metrics`), or in a file named on
the command line. An unknown name is answered with the nearest known ones.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_args, get_type_hints

from wanlab.errors import UsageError

T = TypeVar("T")

ENTRY_POINTS = {
    "policy": "wanlab.policies",
    "guider": "wanlab.guiders",
    "solver": "wanlab.solvers",
    "metric": "wanlab.metrics",
}

_known: dict[str, dict[str, Any]] = {}
_files: dict[str, _File] = {}  # by the name of the module that a file became


class Asked(Protocol):
    """A thing by its name with its knobs (wanlab.spec.PolicySpec)."""

    @property
    def name(self) -> str: ...
    @property
    def options(self) -> Mapping[str, Any]: ...
    @property
    def file(self) -> str: ...
    @property
    def code(self) -> str: ...


def register(kind: str, name: str) -> Callable[[T], T]:
    """Decorator: make `name` the way to ask for the decorated object among its `kind`.

    Raises ValueError when the name is already taken by another object (a programming error, not a user's).
    """

    def add(item: T) -> T:
        file = _files.get(getattr(item, "__module__", ""))
        if file is not None:  # what a file named on the command line registers is its own
            file[kind, name] = item
            return item
        if _known.setdefault(kind, {}).setdefault(name, item) is not item:
            raise ValueError(f"{kind} '{name}' is registered twice")
        return item

    return add


def names(kind: str) -> list[str]:
    """The registered names of a kind, those of other packages too, sorted."""
    return sorted({*_known.get(kind, {}), *_entry_points(kind)})


def lookup(kind: str, name: str) -> Any:
    """The object registered under `name`. Raises UsageError, naming the nearest, when there is none."""
    known = _known.get(kind, {})
    if name in known:
        return known[name]
    if (entry := _entry_points(kind).get(name)) is not None:
        try:
            return entry.load()
        except Exception as error:  # another package's code
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            raise UsageError(
                f"{kind} '{name}' of {entry.value} cannot be loaded: {said}", "mend that package"
            ) from error
    raise UsageError(f"unknown {kind} '{name}'", suggest(name, names(kind)))


def build(kind: str, asked: Asked) -> Any:
    """What was asked for, with its knobs: an instance of a dataclass whose fields they are.

    Raises UsageError for an unknown name or knob, or a value of the wrong type.
    """
    made = from_file(asked.file, asked.code)[kind, asked.name] if asked.file else lookup(kind, asked.name)
    known = {f.name for f in dataclasses.fields(made) if f.init}
    hints = get_type_hints(made)
    options = dict(asked.options)
    for knob, value in asked.options.items():
        if knob not in known:
            raise UsageError(f"{kind} {asked.name} has no knob '{knob}'", suggest(knob, known))
        if hints[knob] is str and type(value) is int:  # a list of one step
            options[knob] = value = str(value)
        choices = get_args(hints[knob])
        if choices and value not in choices:
            raise UsageError(f"{asked.name}:{knob} is '{value}'", suggest(str(value), map(str, choices)))
        wanted = (int, float) if hints[knob] is float else hints[knob]
        if not choices and (not isinstance(value, wanted) or isinstance(value, bool) is not (hints[knob] is bool)):
            raise UsageError(f"{asked.name}:{knob} is '{value}'", f"give a value of type {hints[knob].__name__}")
    return made(**options)


class _File(dict[tuple[str, str], Any]):
    """What a file registers, by kind and name."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def __missing__(self, key: tuple[str, str]) -> Any:
        kind, name = key
        raise UsageError(f"{self.path} registers no {kind} '{name}'", suggest(name, (n for k, n in self if k == kind)))


def digest(path: str) -> str:
    """SHA-256 (hex) of a file of code. Raises UsageError when it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "check the path") from error


@cache
def from_file(path: str, code: str) -> _File:
    """Run a Python file and give what it registers, which nothing else sees. Raises UsageError when it fails, or when
    its digest is no longer `code`."""
    if digest(path) != code:
        raise UsageError(f"{path} was changed since it was asked for", "start again")
    name = f"wanlab_file_{code[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file", "name a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    _files[name] = _File(path)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the file's own code
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise UsageError(f"{path} cannot be run: {said}", "mend the file") from error
    return _files[name]


@cache
def _entry_points(kind: str) -> dict[str, metadata.EntryPoint]:
    return {entry.name: entry for entry in metadata.entry_points(group=ENTRY_POINTS.get(kind, f"wanlab.{kind}"))}


def suggest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint that names the nearest of `known`; when nothing is near, `otherwise`, or all of them."""
    ordered = sorted(known)
    near = difflib.get_close_matches(name, ordered, n=3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    if otherwise:
        return otherwise
    return f"choose from {', '.join(ordered)}" if ordered else "there is none to choose from"
