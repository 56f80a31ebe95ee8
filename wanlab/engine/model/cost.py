"""What an expert's passes cost in floating-point operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from wanlab.engine.model.config import TEXT_TOKENS, TransformerConfig

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Cost:
    """Floating-point operations (a multiply-add is two), matrix products only, of a sample of n tokens.

    With width D, feed-forward width M and L text tokens, a block of q active tokens that attend to k keys costs 8qD²
    for self-attention's four projections, 4qkD for its two products, 4qD² and 4LD² for cross-attention's projections,
    4qLD for its products and 4qDM for the feed-forward; around the blocks 2nDP in and out (P = patch values) and
    2LD(T + D) for the text. A timestep for each token (TI2V) costs 2nD(E + 7D), E being the width of its sinusoids; one
    for the sample costs nothing.
    """

    layers: int
    width: int
    inner: int
    text_width: int
    channels: int
    """In and out together."""
    frequencies: int = 0
    text: int = TEXT_TOKENS

    @classmethod
    def of(cls, config: TransformerConfig, per_token: bool = False) -> Self:
        """per_token  whether every token has a timestep of its own (TI2V)"""
        return cls(
            layers=config.num_layers,
            width=config.width,
            inner=config.ffn_dim,
            text_width=config.text_dim,
            channels=config.in_channels + config.out_channels,
            frequencies=config.freq_dim if per_token else 0,
        )

    def block(self, queries: int, keys: int) -> float:
        """One block, of so many active tokens that attend to so many keys."""
        q, d, text = queries, self.width, self.text
        return float(12 * q * d**2 + 4 * q * keys * d + 4 * text * d**2 + 4 * q * text * d + 4 * q * d * self.inner)

    def around(self, n: int) -> float:
        """What is not in the blocks: patches in and out, the text, and timesteps where every token has one."""
        d = self.width
        around = 2 * n * d * 4 * self.channels + 2 * self.text * d * (self.text_width + d)
        return float(around + (2 * n * d * (self.frequencies + 7 * d) if self.frequencies else 0))

    def whole(self, n: int) -> float:
        """A whole pass."""
        return self.layers * self.block(n, n) + self.around(n)
