"""Options in groups: a command takes a group as one parameter, `sampling: Sampling`, and typer is shown its fields."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import typer


def option(*names: str, panel: str, help: str, hidden: bool = False) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, hidden=hidden)


def with_options(command: Callable[..., int]) -> Callable[..., int]:
    """The command with every parameter that is a dataclass replaced by the dataclass's fields, except those that the
    command has a parameter of its own for: these stay at their defaults."""
    own = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {n: p.annotation for n, p in own.items() if dataclasses.is_dataclass(p.annotation)}
    shown: list[inspect.Parameter] = []
    for name, parameter in own.items():
        if name not in groups:
            shown.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        hints = typing.get_type_hints(groups[name], include_extras=True)
        shown += [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
            for f in dataclasses.fields(groups[name])
            if f.name not in own
        ]

    @functools.wraps(command)
    def called(**given: Any) -> int:
        made = {
            n: g(**{f.name: given.pop(f.name) for f in dataclasses.fields(g) if f.name not in own})
            for n, g in groups.items()
        }
        return command(**made, **given)

    called.__signature__ = inspect.Signature(shown, return_annotation=int)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in shown}
    del called.__wrapped__  # type: ignore[attr-defined]
    return called
