"""TeaCache: the change of the timestep embedding says how far the output has moved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wanlab.engine import calibration
from wanlab.engine.policies.reuse import ResidualCache, at_least, indicator
from wanlab.engine.types import Env, Policy, Session
from wanlab.errors import UsageError
from wanlab.registry import register

# Highest power first. ali-vilab/TeaCache, TeaCache4Wan2.1/teacache_generate.py; that of the 5B is LightX2V's,
# configs/caching/teacache/wan_ti2v_tea_720p.json.
PUBLISHED: Mapping[tuple[str, str], tuple[float, ...]] = {
    ("wan2.1-t2v-1.3b", "ret"): (-5.21862437e4, 9.23041404e3, -5.28275948e2, 1.36987616e1, -4.99875664e-2),
    ("wan2.1-t2v-1.3b", "plain"): (2.39676752e3, -1.31110545e3, 2.01331979e2, -8.29855975, 1.37887774e-1),
    ("wan2.1-t2v-14b", "ret"): (-3.03318725e5, 4.90537029e4, -2.65530556e3, 5.87365115e1, -3.15583525e-1),
    ("wan2.1-t2v-14b", "plain"): (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404),
    ("wan2.2-ti2v-5b", "plain"): (1.57472669e5, -1.15702395e5, 3.10761669e4, -3.83116651e3, 2.21608777e2, -4.81179567),
}


@register("policy", "teacache")
@dataclass(frozen=True)
class TeaCache(Policy):
    """Use the blocks' residual again while a polynomial of the timestep embedding's change, summed since the last
    computed step, is below the threshold. It depends on the timesteps alone: `--dry-run` prints the steps.

    threshold    of the sum, 0 for never; published: .05 to .08 for the 1.3B, .14 or .2 for the 14B
    mode         "ret": of the embedding as it modulates the blocks, the first five steps computed; "plain": of the
                 embedding itself, the first step and the last computed
    calibration  whose polynomial: wan2.1-t2v-1.3b, wan2.1-t2v-14b or wan2.2-ti2v-5b (plain) as published, or a file of
                 `wanlab calibrate` (ret); by default the model's

    Cost: embeddings and head at reused steps.
    Source: F. Liu et al., "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model", 2024.
    """

    threshold: float = 0.2
    mode: Literal["ret", "plain"] = "ret"
    calibration: str = ""

    cost_knob = ("threshold", 0.0, 100.0)

    def begin(self, env: Env) -> Session:
        """Raises UsageError for a threshold below 0, and where there is no polynomial for the model."""
        at_least("teacache", threshold=(self.threshold, 0))
        polynomials = {expert: self._polynomial(expert, env) for expert in dict.fromkeys(s.expert for s in env.steps)}
        forced = set(range(5)) if self.mode == "ret" else {0, env.total - 1}
        allowed = {s.index for s in env.steps if env.since(s)} - forced
        embedded = env.read_time_embeddings(self.mode == "ret")
        if embedded is None:  # only in a forecast
            return _TeaCache(env, allowed, threshold=self.threshold)
        change = changes(embedded.numpy())
        rescaled = [float(np.polyval(polynomials[s.expert], change[s.index])) for s in env.steps]
        skipped, sums = schedule(rescaled, allowed, self.threshold)
        return _TeaCache(env, skipped, measured=sums)

    def _polynomial(self, expert: str, env: Env) -> Sequence[float]:
        name = self.calibration or calibration.of_model(env.model)
        if (name, self.mode) in PUBLISHED and expert == "single":
            return PUBLISHED[name, self.mode]
        if expert == "single" and any(known == name for known, _ in PUBLISHED):
            raise UsageError(
                f"no polynomial of {name} is published for teacache:mode={self.mode}", "use the other mode"
            )
        measured = calibration.load(name)
        coefficients = measured.fit(expert).coefficients
        measured.refuse(env)
        if self.mode != "ret":
            raise UsageError(f"calibration {name} has no polynomial for teacache:mode=plain", "use mode=ret")
        return coefficients


class _TeaCache(ResidualCache):
    fields = (indicator("sum of the polynomial of the timestep embedding's change"),)


def changes(embedded: np.ndarray) -> np.ndarray:
    """mean |e_k - e_(k-1)| / mean |e_(k-1)| of embeddings [steps, D]; 0 at step 0."""
    e = embedded.astype(np.float64)
    change = np.abs(np.diff(e, axis=0)).mean(1) / np.abs(e[:-1]).mean(1)
    return np.concatenate([[0.0], change])


def schedule(values: Sequence[float], allowed: set[int], threshold: float) -> tuple[set[int], list[float]]:
    """The steps that are reused, and each allowed one's sum: of the values since the last computed step, itself
    included (NaN at others). A step is reused where it is allowed and the sum is below the threshold."""
    skipped, sums, total = set(), [], 0.0
    for k, value in enumerate(values):
        total += value
        sums.append(total if k in allowed else math.nan)
        if k in allowed and total < threshold and threshold:  # the sum can be below 0, and 0 is for never
            skipped.add(k)
        else:
            total = 0.0
    return skipped, sums
