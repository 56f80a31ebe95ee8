"""The policies. A new one is one file here that ends up in `build`'s registry by importing it below."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import get_args, get_type_hints

from wanlab.engine.policies import cfg, frames
from wanlab.engine.types import Env, Policy, Session
from wanlab.errors import UsageError
from wanlab.registry import lookup, suggest
from wanlab.spec import PolicySpec

__all__ = ["begin", "build", "cfg", "frames"]


def build(spec: PolicySpec) -> Policy:
    """The policy with its knobs. Raises UsageError for an unknown name or knob, or a value of the wrong type."""
    made = lookup("policy", spec.name)
    known = {f.name for f in dataclasses.fields(made)}
    hints = get_type_hints(made)
    for knob, value in spec.options.items():
        if knob not in known:
            raise UsageError(f"policy {spec.name} has no knob '{knob}'", suggest(knob, known))
        choices = get_args(hints[knob])
        if choices and value not in choices:
            raise UsageError(f"{spec.name}:{knob} is '{value}'", suggest(str(value), choices))
        if not choices and (not isinstance(value, hints[knob]) or isinstance(value, bool) is not (hints[knob] is bool)):
            raise UsageError(f"{spec.name}:{knob} is '{value}'", f"give a value of type {hints[knob].__name__}")
    policy: Policy = made(**spec.options)
    return policy


def begin(policies: Iterable[PolicySpec], env: Env) -> Sequence[Session]:
    """A fresh session of each policy. Raises UsageError when one does not fit the run."""
    return [build(p).begin(env) for p in policies]
