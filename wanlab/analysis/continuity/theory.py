"""What independent noise and the final latent would give, and what is there beside it.

x_t = (1-σ) x0 + σ ε with noise that is independent of x0 and from frame to frame gives mse = (1-σ)² m0 + 2σ², m0 being
that of the final latent. docs/methods.md, "Continuity", has what follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanlab.analysis.continuity.spaces import Floats, Space, adjacent, over_pairs

TELLING = 0.5  # noise's least share of the expected mse at which a correlation of the noise can be told from it
INDEPENDENT = 0.05  # noise correlations up to this size, or three standard errors, count as none


@dataclass(frozen=True, kw_only=True)
class Theory:
    """What independent noise would give, beside what is there; arrays [steps] unless said otherwise."""

    m0: Floats
    """Mean mse of the final latent's frames at the step's stride."""
    expected: Floats
    """(1-σ)² m0 + 2σ²."""
    residual: Floats
    """Measured minus expected mse of x_t."""
    signal: Floats
    """The part of the residual from x0_pred, (1-σ)² (mse(x0_pred) - m0); the three parts add up to it exactly."""
    noise: Floats
    """The part from eps_pred, σ² (mse(eps_pred) - 2)."""
    cross: Floats
    """The part from x0_pred and eps_pred together, 2σ(1-σ) mean(Δx0_pred Δeps_pred)."""
    noise_share: Floats
    """2σ² / expected."""
    correlation: Floats
    """[steps, pairs]: ρ for which (1-σ)² m0 + 2σ² (1-ρ) is the pair's mse, with the pair's own m0; NaN where
    `noise_share` is under one half."""
    correlation_sd: Floats
    """Standard deviation of a step's mean ρ when the noise is independent: sqrt((3P-1)/n)/P of P pairs, n values
    each."""

    @property
    def rho(self) -> Floats:
        """Mean fitted noise correlation over pairs [steps]."""
        return over_pairs(np.mean, self.correlation)

    @property
    def independent(self) -> NDArray[np.bool_]:
        """Where ρ is known and counts as none [steps]."""
        return np.asarray(np.abs(self.rho) <= np.maximum(INDEPENDENT, 3 * self.correlation_sd))


def explain(
    sigma: Floats, stride: NDArray[np.int64], spaces: Mapping[str, Space], last: list[NDArray[Any]], values: int
) -> Theory | None:
    if "x_t" not in spaces:
        return None
    measured = spaces["x_t"]
    m0 = np.full_like(measured.mse, np.nan)
    for s in set(stride.tolist()):
        apart = np.array(adjacent(last[::s])[0])
        for k in np.flatnonzero(stride == s):
            if np.isfinite(measured.mse[k]).sum() == len(apart):
                m0[k, : len(apart)] = apart
    clean, noise = (1 - sigma) ** 2, sigma**2
    mean0 = over_pairs(np.mean, m0)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = clean * mean0 + 2 * noise
        share = 2 * noise / expected
        rho = 1 - (measured.mse - clean[:, None] * m0) / (2 * noise[:, None])
    rho[~(share >= TELLING)] = np.nan
    count = np.isfinite(measured.mse).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        sd = np.sqrt((3 * count - 1) / values) / count
    parts = np.full((3, len(sigma)), np.nan)
    total = measured.mean("mse")
    if {"x0_pred", "eps_pred"} <= set(spaces):
        x0, eps = spaces["x0_pred"].mean("mse"), spaces["eps_pred"].mean("mse")
        # x_t = (1-σ) x0_pred + σ eps_pred exactly, so the cross term is what the other two leave.
        parts = np.stack([clean * (x0 - mean0), noise * (eps - 2), total - clean * x0 - noise * eps])
    return Theory(
        m0=mean0,
        expected=expected,
        residual=total - expected,
        signal=parts[0],
        noise=parts[1],
        cross=parts[2],
        noise_share=share,
        correlation=rho,
        correlation_sd=sd,
    )


def mixture(name: str, sigma: float) -> tuple[float, float]:
    """The weights of x0 and of ε in a space."""
    return {"x_t": (1 - sigma, sigma), "x0_pred": (1.0, 0.0), "eps_pred": (0.0, 1.0), "velocity": (-1.0, 1.0)}[name]


def expectation(name: str, sigma: float, final: Space) -> dict[str, float]:
    """Each metric that independent noise gives in a space, from the final latent's frames: with weights a of x0 and b
    of ε, mean square e and mean product c of neighbours, mse = a² m0 + 2b², cosine = a² c/(a² e + b²) and
    normalised_l2 = sqrt(mse / (2 (a² e + b²))). A prediction's own blur is not in it."""
    a, b = mixture(name, sigma)
    power = final.power[0]
    apart = final.mse[0]
    e, m0 = float(np.nanmean(power)), float(np.nanmean(apart))
    pairs = (power[:-1] + power[1:])[: len(apart)] / 2
    c = float(np.nanmean(pairs - apart / 2))
    size, mse = a * a * e + b * b, a * a * m0 + 2 * b * b
    nan = math.nan
    return {
        "mse": mse,
        "cosine": a * a * c / size if size else nan,
        "normalised_l2": math.sqrt(mse / (2 * size)) if size else nan,
    }
