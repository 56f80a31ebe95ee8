"""Steps left out by a list, evenly or at random: the controls for every rule that chooses them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wanlab.engine.policies.reuse import ResidualCache, StepCache, VelocityCache
from wanlab.engine.types import Env, Policy, Session
from wanlab.errors import UsageError
from wanlab.registry import register


@register("policy", "steps")
@dataclass(frozen=True)
class Steps(Policy):
    """Evaluate some of the steps, and use the last computed value again in the others. The first step of each expert
    is always computed.

    skip    steps to leave out, counted from 0, such as 3/4/7-9; or
    keep    how many to compute, chosen by `choose`
    choose  "even": spaced evenly, each expert having its share; "random": drawn by `seed`
    seed    of the random choice
    reuse   "velocity"; "residual": what the blocks added to the hidden states; "linear": the velocity, extrapolated
            from the last two computed

    Cost: that of the computed steps; with "residual" also embeddings and head of the others.
    Source: the control that the publications of step caches leave out.
    """

    skip: str = ""
    keep: int = 0
    choose: Literal["even", "random"] = "even"
    seed: int = 0
    reuse: Literal["velocity", "residual", "linear"] = "velocity"

    cost_knob = ("keep", math.inf, 1)

    def begin(self, env: Env) -> Session:
        """Raises UsageError when there are no such steps, or nothing says which."""
        if bool(self.skip) is bool(self.keep):
            raise UsageError(
                "steps needs one of skip and keep", "such as steps:skip=3/4/7 or steps:keep=10, or leave it out"
            )
        stretches = lengths(env)
        if self.skip:
            skipped = set(listed(self.skip, env))
        else:
            least = len(stretches)
            if not least <= self.keep <= env.total:
                raise UsageError(f"steps:keep={self.keep} of {env.total} steps", f"use {least} to {env.total}")
            kept = evenly(stretches, self.keep) if self.choose == "even" else self._drawn(stretches)
            skipped = set(range(env.total)) - set(kept)
        kind: type[StepCache] = ResidualCache if self.reuse == "residual" else VelocityCache
        return kind(env, skipped, order=1 if self.reuse == "linear" else 0)

    def _drawn(self, stretches: Sequence[int]) -> list[int]:
        """Each stretch's first step, and others at random."""
        first = np.cumsum([0, *stretches[:-1]])
        others = np.setdiff1d(np.arange(sum(stretches)), first)
        drawn = np.random.default_rng(self.seed).choice(others, self.keep - len(first), replace=False)
        return sorted(map(int, [*first, *drawn]))


def lengths(env: Env) -> list[int]:
    """Steps of each expert, in order."""
    experts = [s.expert for s in env.steps]
    return [experts.count(e) for e in dict.fromkeys(experts)]


def evenly(stretches: Sequence[int], keep: int) -> list[int]:
    """`keep` steps: of each stretch its share, rounded by the largest remainder and one at least; within it the steps
    floor(i length / number)."""
    shares = [max(1.0, keep * n / sum(stretches)) for n in stretches]
    counts = [int(share) for share in shares]
    for at in sorted(range(len(shares)), key=lambda i: counts[i] - shares[i])[: max(0, keep - sum(counts))]:
        counts[at] += 1
    while sum(counts) > keep:  # a short stretch was given its one
        counts[counts.index(max(counts))] -= 1
    starts = np.cumsum([0, *stretches[:-1]])
    return [int(s) + i * n // k for s, n, k in zip(starts, stretches, counts, strict=True) for i in range(k)]


def listed(text: str, env: Env) -> list[int]:
    """The steps of a list such as 3/4/7-9. Raises UsageError for another form, and steps that are none or must be
    computed."""
    steps: list[int] = []
    for part in text.split("/"):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip())
        if match is None:
            raise UsageError(f"steps:skip={text}", "write skip=3/4/7-9, steps counted from 0")
        steps += range(int(match[1]), int(match[2] or match[1]) + 1)
    firsts = {s.index for s in env.steps if not env.since(s)}
    for k in steps or [-1]:
        if not 0 <= k < env.total:
            raise UsageError(f"steps:skip={text} of {env.total} steps", f"use steps from 1 to {env.total - 1}")
        if k in firsts:
            raise UsageError(
                f"steps:skip={text}: step {k} is the first of the {env.steps[k].expert} expert",
                f"leave it out, or use step {k + 1}: nothing is there to use again",
            )
    return steps
