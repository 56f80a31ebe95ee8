"""The policies. A new one is one file here, imported below; one from elsewhere is an entry point or a file (docs)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wanlab.engine.policies import (
    cfg,
    easycache,
    firstblock,
    forecasts,
    frames,
    guidance,
    magcache,
    measure,
    pruning,
    seacache,
    sencache,
    steps,
    teacache,
)
from wanlab.engine.types import Env, Policy, Session
from wanlab.registry import build
from wanlab.spec import PolicySpec

__all__ = [
    "begin",
    "cfg",
    "easycache",
    "firstblock",
    "forecasts",
    "frames",
    "guidance",
    "magcache",
    "measure",
    "pruning",
    "seacache",
    "sencache",
    "steps",
    "teacache",
]


def begin(policies: Iterable[PolicySpec], env: Env) -> Sequence[Session]:
    """A fresh session of each policy. Raises UsageError when one does not exist or does not fit the run."""
    built: list[Policy] = [build("policy", p) for p in policies]
    return [policy.begin(env) for policy in built]
