"""What ran: counted where it runs, so that it is true for every policy.

A pass is one sample that went through blocks of the transformer, all or some. A block-token is one token in one block;
an attention pair one query with one key in one block's self-attention. Operations follow from these (model/cost.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from wanlab.engine.types import Call, Env, Inner


@dataclass
class Reading:
    """What one step ran."""

    passes: int = 0
    tokens: int = 0
    """Tokens of the passes."""
    block_tokens: int = 0
    attention_pairs: int = 0
    operations: float = 0.0
    seconds: float = 0.0
    """Time of the step, the device synchronised, without recording and probing."""
    switching: float = 0.0
    """The part of it that completing frames took."""
    shares: dict[str, float] = field(default_factory=dict)
    """By branch, the share of its whole pass's block-tokens that ran; absent where nothing ran."""


class Meter:
    """Wraps the network, innermost of all: nothing is counted that does not run."""

    def __init__(self, network: Inner, env: Env) -> None:
        self._network, self._env = network, env
        self.reading = Reading()

    def __call__(self, call: Call) -> Tensor:
        ran, cost = self.reading, self._env.costs[call.ctx.expert]
        tokens, before = self._env.tokens(call.x.shape[2]), self.reading.block_tokens

        def count(samples: int, queries: int, keys: int) -> None:
            ran.block_tokens += samples * queries
            ran.attention_pairs += samples * queries * keys
            ran.operations += samples * cost.block(queries, keys)

        velocities = self._network(replace(call, count=count))
        if ran.block_tokens > before:  # else a policy used the blocks' work of an earlier step
            ran.passes += len(call.branches)
            ran.tokens += len(call.branches) * tokens
        ran.operations += len(call.branches) * cost.around(tokens)
        share = (ran.block_tokens - before) / (len(call.branches) * tokens * cost.layers)
        ran.shares |= dict.fromkeys(call.branches, share)
        return velocities

    @contextmanager
    def step(self, x: Tensor) -> Iterator[Reading]:
        """A new reading, of what runs inside."""
        self.reading = Reading()
        began = clock(x)
        yield self.reading
        self.reading.seconds = clock(x) - began

    @contextmanager
    def switch(self, x: Tensor) -> Iterator[None]:
        """Time inside is that of completing frames."""
        began = clock(x)
        yield
        self.reading.switching += clock(x) - began


def clock(x: Tensor) -> float:
    """Seconds, after all that was queued on x's device is done."""
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
