"""SeaCache: the latents' change in the frequencies that count at their noise level."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wanlab.engine.policies.reuse import ResidualCache, at_least, difference, indicator
from wanlab.engine.types import Call, Env, Policy, Session
from wanlab.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("policy", "seacache")
@dataclass(frozen=True)
class SeaCache(Policy):
    """Use the blocks' residual again while the relative change of the filtered latents, summed since the last computed
    step, is below the threshold. The filter passes what is not yet noise: low frequencies early, all late. The last
    step is always computed.

    threshold    of the sum, 0 for never
    order        0: the residual as it was; 1: extrapolated from the last two computed, and so on
    consecutive  steps reused in a row at most, 0 for any number

    Cost: embeddings, head and a Fourier transform of the latents at reused steps.
    Source: J. Chung et al., "SeaCache: Spectral-Evolution-Aware Cache for Accelerating Diffusion Models", 2026; as in
    huggingface/diffusers, `hooks/sea_cache.py`.
    """

    threshold: float = 0.25
    order: int = 1
    consecutive: int = 2

    cost_knob = ("threshold", 0.0, 100.0)

    def begin(self, env: Env) -> Session:
        """Raises UsageError when a knob is negative."""
        at_least("seacache", threshold=(self.threshold, 0), order=(self.order, 0))
        at_least("seacache", consecutive=(self.consecutive, 0))
        steps = range(env.total - 1)
        return _SeaCache(env, steps, threshold=self.threshold, order=self.order, consecutive=self.consecutive)


class _SeaCache(ResidualCache):
    fields = (indicator("relative change of the filtered latents, summed"),)

    def measure(self, call: Call, memory: Mapping[str, Any], told: dict[str, Any], given: Tensor | None) -> float:
        told["filtered"] = filtered(call.x, call.ctx.sigma)
        return difference(told["filtered"], memory["filtered"]) if "filtered" in memory else math.nan


def filtered(x: Tensor, sigma: float, power: float = 3.0) -> Tensor:
    """Latents [1,C,F,H,W] in float32 through the filter of noise level sigma.

    Along each axis F, H, W of frequency f the gain is g(f) = (1 - s) S / ((1 - s)^2 S + s^2) with S = 1 / |f|^power,
    the clean signal's power; their product over the axes is scaled to mean 1 (eq. 7 of the source).
    """
    import torch

    axes = (2, 3, 4)
    s = min(max(sigma, 1e-6), 1 - 1e-6)
    gain = torch.ones(1, device=x.device)
    for axis in axes:
        frequencies = torch.fft.fftfreq(x.shape[axis], device=x.device)
        signal = 1 / (frequencies.abs() ** power + 1e-16)
        along = (1 - s) * signal / ((1 - s) ** 2 * signal + s**2)
        gain = gain * along.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    gain = gain / gain.mean()
    passed: Tensor = torch.fft.ifftn(torch.fft.fftn(x.float(), dim=axes) * gain, dim=axes).real
    return passed
