"""MagCache: the blocks' residual shrinks from step to step by ratios that hardly depend on the prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from wanlab.engine import calibration
from wanlab.engine.policies.reuse import ResidualCache, at_least, indicator
from wanlab.engine.types import BOTH, Env, Policy, Session
from wanlab.errors import UsageError
from wanlab.registry import register


@register("policy", "magcache")
@dataclass(frozen=True)
class MagCache(Policy):
    """Use the blocks' residual again while the error that its shrinking makes, summed since the last computed step, is
    below the threshold. The ratios are measured beforehand: `--dry-run` prints the steps.

    threshold    of the summed |1 - product of ratios|, 0 for never
    consecutive  steps reused in a row at most
    retention    share of each expert's steps, the first ones, that is always computed
    carry        go on with the sums over always computed steps and the expert switch, as the original program does; by
                 default they begin anew there, with the residual
    calibration  a file of `wanlab calibrate` or a name such as wan2.2-t2v-a14b; by default the model's

    Cost: embeddings and head at reused steps.
    Source: Z. Ma et al., "MagCache: Fast Video Generation with Magnitude-Aware Cache", 2025; for two experts
    github.com/Zehong-Ma/MagCache, MagCache4Wan2.2.
    """

    threshold: float = 0.04
    consecutive: int = 2
    retention: float = 0.2
    carry: bool = False
    calibration: str = ""

    cost_knob = ("threshold", 0.0, 100.0)

    def begin(self, env: Env) -> Session:
        """Raises UsageError where there are no ratios for the run, or knobs are out of range."""
        at_least("magcache", threshold=(self.threshold, 0), consecutive=(self.consecutive, 1))
        if not 0 <= self.retention <= 1:
            raise UsageError(f"magcache:retention={self.retention}", "use 0 to 1")
        measured = calibration.load(self.calibration or calibration.of_model(env.model))
        measured.refuse(env, steps=False)
        ratios = np.stack([measured.magnitude(b, env.total, env.switch) for b in BOTH])
        allowed = self._allowed(env)
        skipped, errors = schedule(ratios, allowed, self.threshold, self.consecutive, carry=self.carry)
        return _MagCache(env, skipped, measured=errors)

    def _allowed(self, env: Env) -> set[int]:
        """Where neither pass of a step is one of those that the rule computes. It counts passes c, two a step: with two
        experts c < int(2 split R), and 2 split <= c <= 2 split + (2 N - 2 split) R; with one c < int(2 N R)."""
        passes, split = 2 * env.total, 2 * (env.switch or env.total)
        first = int(split * self.retention)
        second = split + (passes - split) * self.retention
        forced = {c // 2 for c in range(passes) if c < first or split <= c <= second}
        return {s.index for s in env.steps if env.since(s)} - forced


class _MagCache(ResidualCache):
    fields = (indicator("sum of |1 - product of the magnitude ratios|, the greater of both branches'"),)


def schedule(
    ratios: np.ndarray, allowed: set[int], threshold: float, consecutive: int, *, carry: bool = False
) -> tuple[set[int], list[float]]:
    """The steps that are reused, and each allowed one's error (NaN at others); ratios [branch, step].

    Both branches go together: a step is reused where both errors are below the threshold. With `carry` the steps that
    are not allowed change no sum.
    """
    skipped, errors = set(), []
    product, error, row = np.ones(len(ratios)), np.zeros(len(ratios)), 0
    for k in range(ratios.shape[1]):
        if carry and k not in allowed:
            errors.append(math.nan)
            continue
        product, row = product * ratios[:, k], row + 1
        error = error + abs(1 - product)
        errors.append(float(error.max()) if k in allowed else math.nan)
        if k in allowed and errors[-1] < threshold and row <= consecutive:
            skipped.add(k)
        else:
            product, error, row = np.ones(len(ratios)), np.zeros(len(ratios)), 0
    return skipped, errors
