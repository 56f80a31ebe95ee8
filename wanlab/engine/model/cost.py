"""What an expert's passes cost in floating-point operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
TEXT_TOKENS = 512  # the prompt's embeddings are cut or zero-padded to this length


@dataclass(frozen=True)
class Cost:
    """Floating-point operations (a multiply-add is two), matrix products only."""

    layers: int
    width: int
    inner: int
    text_width: int
    channels: int
    """In and out together."""
    frequencies: int = 0
    text: int = TEXT_TOKENS

    @classmethod
    def of(cls, config: Mapping[str, Any], per_token: bool = False) -> Self:
        width = int(config.get("num_attention_heads") or 40) * int(config.get("attention_head_dim") or 128)
        return cls(
            layers=int(config.get("num_layers") or 40), width=width, inner=int(config.get("ffn_dim") or 13824),
            text_width=int(config.get("text_dim") or 4096),
            channels=int(config.get("in_channels") or 16) + int(config.get("out_channels") or 16),
            frequencies=int(config.get("freq_dim") or 256) if per_token else 0,
        )  # fmt: skip

    def block(self, queries: int, keys: int) -> float:
        q, d, text = queries, self.width, self.text
        return float(12 * q * d**2 + 4 * q * keys * d + 4 * text * d**2 + 4 * q * text * d + 4 * q * d * self.inner)

    def around(self, n: int) -> float:
        d = self.width
        around = 2 * n * d * 4 * self.channels + 2 * self.text * d * (self.text_width + d)
        return float(around + (2 * n * d * (self.frequencies + 7 * d) if self.frequencies else 0))

    def whole(self, n: int) -> float:
        return self.layers * self.block(n, n) + self.around(n)
