"""Methods: policies and settings of the sampler, laid over a specification."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from wanlab.errors import UsageError
from wanlab.registry import suggest
from wanlab.spec.run import PolicySpec, RunSpec, parse_guidance, parse_value, short

# What a method may change beside its policies: the sampler, never what is asked for.
METHOD_SETTINGS = (
    "guidance",
    "guider",
    "solver",
    "schedule",
    "steps",
    "shift",
    "batch_cfg",
    "dtype",
    "vae_dtype",
    "precision",
    "attention",
)
SETTABLE = (*METHOD_SETTINGS, "parallel")  # the layout of ranks is told apart by the noise floor alone


def _setting(name: str, text: str) -> Any:
    """A setting's value as a specification has it. Raises UsageError."""
    if name == "guidance":
        return parse_guidance(text)
    return PolicySpec.parse(text) if name == "guider" else parse_value(text)


@dataclass(frozen=True)
class MethodSpec:
    """A way to sample: policies, and settings of the sampler, laid over a specification.

    `parse` reads "baseline" (nothing), a policy, or several joined with "+": "half+cfg:last=5". A setting is written
    like a policy of that name alone: "guidance=3", "cfg:last=5+steps=10+batch_cfg=true".
    """

    label: str
    policies: tuple[PolicySpec, ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()
    """Pairs of a name in `SETTABLE` and its value."""

    def __post_init__(self) -> None:
        for name, _ in self.settings:
            if name not in SETTABLE:
                raise UsageError(f"a method cannot set '{short(name)}'", suggest(name, SETTABLE))

    @classmethod
    def parse(cls, text: str, label: str = "") -> Self:
        """The method that `text` says; labelled by its text unless `label` is given. Raises UsageError."""
        policies, settings = [], {}
        for part in filter(None, (p.strip() for p in text.split("+"))):
            name, equals, value = (p.strip() for p in part.partition("="))
            if part == "baseline":
                continue
            if equals and (":" not in name or name == "guider"):
                if not value:
                    raise UsageError(f"'{short(part)}' sets nothing", "write guidance=3")
                settings[name.replace("-", "_")] = _setting(name, value)
            else:
                policies.append(PolicySpec.parse(part))
        title = re.sub(r"(^|[+=])[^+=]*\.py:(?=[a-z])", r"\1", text.strip())  # a file's own name says enough in a table
        return cls(label or title or "baseline", tuple(policies), tuple(settings.items()))

    @classmethod
    def from_dict(cls, label: str, plain: Mapping[str, Any]) -> Self:
        """A method of a TOML file: `method = "…"`, or `policies = ["…"]` and settings. Raises UsageError."""
        given = dict(plain)
        method = given.pop("method", "")
        texts = given.pop("policies", [])
        if not isinstance(method, str) or not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise UsageError(f"method '{short(label)}' is malformed", 'write policies = ["cfg:last=5"]')
        whole = cls.parse(method, label)
        for name in ("guidance", "guider"):
            if name in given:
                given[name] = _setting(name, str(given[name]).strip("[]() "))
        policies = whole.policies + tuple(PolicySpec.parse(t) for t in texts)
        return cls(label, policies, whole.settings + tuple(given.items()))

    def __str__(self) -> str:
        """What `parse` reads."""
        plain = {n: ",".join(map(str, v)) if isinstance(v, tuple) else str(v).lower() for n, v in self.settings}
        return "+".join([*map(str, self.policies), *(f"{n}={v}" for n, v in plain.items())]) or "baseline"

    def apply(self, spec: RunSpec) -> RunSpec:
        """`spec` sampled this way; its own policies come first. Raises UsageError."""
        return dataclasses.replace(spec, policies=spec.policies + self.policies, **dict(self.settings))
