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
    first   of those to keep, so many at the beginning of the run; the others are chosen among the steps after them, of
            which each expert has its share
    seed    of the random choice
    reuse   "velocity"; "residual": what the blocks added to the hidden states; "linear": the velocity, extrapolated
            from the last two computed

    Cost: that of the computed steps; with "residual" also embeddings and head of the others.
    Source: the control that the publications of step caches leave out.
    """

    skip: str = ""
    keep: int = 0
    choose: Literal["even", "random"] = "even"
    first: int = 0
    seed: int = 0
    reuse: Literal["velocity", "residual", "linear"] = "velocity"

    cost_knob = ("keep", math.inf, 1)

    def begin(self, env: Env) -> Session:
        """Raises UsageError when there are no such steps, or nothing says which."""
        if bool(self.skip) is bool(self.keep):
            raise UsageError(
                "steps needs one of skip and keep", "such as steps:skip=3/4/7 or steps:keep=10, or leave it out"
            )
        if self.skip and self.first:
            raise UsageError("steps:first goes with keep", "leave it out: skip says every step")
        stretches = lengths(env)
        if self.skip:
            skipped = set(listed(self.skip, env))
        else:
            least = len(stretches)
            if not least <= self.keep <= env.total:
                raise UsageError(f"steps:keep={self.keep} of {env.total} steps", f"use {least} to {env.total}")
            most = min(self.keep - least + 1, stretches[0])
            if not 0 <= self.first <= most:
                which = f" of keep={self.keep}" if most < stretches[0] else f" of the first expert's {most} steps"
                raise UsageError(f"steps:first={self.first}{which}", f"use 0 to {most}")
            even = self.choose == "even"
            kept = evenly(stretches, self.keep, self.first) if even else self._drawn(stretches)
            skipped = set(range(env.total)) - set(kept)
        kind: type[StepCache] = ResidualCache if self.reuse == "residual" else VelocityCache
        return kind(env, skipped, order=1 if self.reuse == "linear" else 0)

    def _drawn(self, stretches: Sequence[int]) -> list[int]:
        """Each stretch's first step, the run's first ones, and others at random."""
        always = np.union1d(np.cumsum([0, *stretches[:-1]]), np.arange(self.first))
        others = np.setdiff1d(np.arange(sum(stretches)), always)
        drawn = np.random.default_rng(self.seed).choice(others, self.keep - len(always), replace=False)
        return sorted(map(int, [*always, *drawn]))


def lengths(env: Env) -> list[int]:
    """Steps of each expert, in order."""
    experts = [s.expert for s in env.steps]
    return [experts.count(e) for e in dict.fromkeys(experts)]


def evenly(stretches: Sequence[int], keep: int, first: int = 0) -> list[int]:
    """`keep` steps, the first `first` of all among them: of each stretch its share of the others, rounded by the
    largest remainder and one at least; within it the steps floor(i length / number), and behind the first ones, which
    it need not begin with, floor((i + 1) (length + 1) / (number + 1)) - 1."""
    rest, others = [stretches[0] - first, *stretches[1:]], keep - first
    forced = [1.0 if k or not first else 0.0 for k in range(len(rest))]  # an expert's first step is computed
    shares = [max(one, others * n / max(1, sum(rest))) for one, n in zip(forced, rest, strict=True)]
    counts = [int(share) for share in shares]
    for at in sorted(range(len(shares)), key=lambda i: counts[i] - shares[i])[: max(0, others - sum(counts))]:
        counts[at] += 1
    while sum(counts) > others:  # a short stretch was given its one
        counts[counts.index(max(counts))] -= 1
    starts = [int(s) for s in np.cumsum([first, *rest[:-1]])]
    kept = [*range(first)]
    for stretch, (start, n, k) in enumerate(zip(starts, rest, counts, strict=True)):
        behind = first > 0 and stretch == 0
        kept += [start + ((i + 1) * (n + 1) // (k + 1) - 1 if behind else i * n // k) for i in range(k)]
    return kept


def listed(text: str, env: Env) -> list[int]:
    """The steps of a list such as 3/4/7-9. Raises UsageError for another form, and steps that are none or must be
    computed."""
    steps: list[int] = []
    for part in text.split("/"):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
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
