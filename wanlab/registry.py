"""Names for the things that can be chosen: policies, observers, solvers.

A new one is one file with one `@register` line; an unknown name is answered with the nearest known ones.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from wanlab.errors import UsageError

T = TypeVar("T")

_known: dict[str, dict[str, Any]] = {}


def register(kind: str, name: str) -> Callable[[T], T]:
    """Decorator: make `name` the way to ask for the decorated object among its `kind`.

    Raises ValueError when the name is already taken by another object (a programming error, not a user's).
    """

    def add(item: T) -> T:
        held = _known.setdefault(kind, {})
        if held.setdefault(name, item) is not item:
            raise ValueError(f"{kind} '{name}' is registered twice")
        return item

    return add


def names(kind: str) -> list[str]:
    """The registered names of a kind, sorted."""
    return sorted(_known.get(kind, {}))


def lookup(kind: str, name: str) -> Any:
    """The object registered under `name`. Raises UsageError, naming the nearest, when there is none."""
    known = _known.get(kind, {})
    if name not in known:
        raise UsageError(f"unknown {kind} '{name}'", suggest(name, known))
    return known[name]


def suggest(name: str, known: Iterable[str]) -> str:
    """A hint that names the nearest of `known`, or all of them when nothing is near."""
    ordered = sorted(known)
    near = difflib.get_close_matches(name, ordered, n=3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"choose from {', '.join(ordered)}" if ordered else "there is none to choose from"
