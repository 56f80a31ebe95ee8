"""Forwards of a small model on a GPU, recorded once as CUDA graphs and replayed.

A network as small as `tiny` waits for its kernels to be launched, one by one from Python; replayed, a pass costs its
arithmetic. A forward is recorded in pieces: what comes before the blocks, each block, what comes after. So a policy
works between them as it does without, every pass and block is counted and timed where it runs, and a method that leaves
work out is measured beside a baseline that is replayed too. The kernels are the same ones, and so are the results, bit
for bit.

What is not recorded, and runs as it would without: blocks on some of the tokens, and those that keep keys.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Parameters of an expert whose passes are replayed; a larger one keeps a GPU busy by itself. 0: none, until
# `python -m benchmarks.tiny_gpu` has shown on a GPU that the results are equal.
SMALL = 0


class Graphs:
    """The recorded forwards of a model, by what tells one from another."""

    def __init__(self) -> None:
        self._forwards: dict[Hashable, Forward] = {}
        # One memory for all: they run one after the other, and what is kept of one is held as long as it is.
        self._pool = torch.cuda.graph_pool_handle()

    def find(self, key: Hashable) -> Forward | None:
        return self._forwards.get(key)

    def record(self, key: Hashable, expert: Any, x: Tensor, t: Tensor, text: Tensor) -> None:
        """Record a forward that has run before as it is, so that all of it is compiled: nothing runs here."""
        self._forwards[key] = Forward(expert, x, t, text, self._pool)


class Forward:
    """One forward at one shape: the latents x [B,C,F,H,W], timesteps t [B] or [B,N], text [B,L,D]."""

    def __init__(self, expert: Any, x: Tensor, t: Tensor, text: Tensor, pool: Any) -> None:
        self._given = tuple(v.clone() for v in (x, t, text))
        self._before, self._after = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        blocks, stream = expert.blocks, torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        expert.blocks = nn.ModuleList([_Cut(self, pool)])
        torch.cuda.synchronize()
        try:
            with torch.cuda.stream(stream):
                self._before.capture_begin(pool=pool, capture_error_mode="thread_local")
                x, t, text = self._given
                self._velocity = expert(hidden_states=x, timestep=t, encoder_hidden_states=text, return_dict=False)[0]
                self._after.capture_end()
        finally:
            expert.blocks = blocks
        torch.cuda.current_stream().wait_stream(stream)
        self.blocks = [Block(block, self.arguments, pool) for block in blocks]

    arguments: tuple[Tensor, Tensor, tuple[Tensor, Tensor]]
    """Text, timestep and positions, as the blocks get them: rewritten by every replay."""
    _hidden: Tensor
    """The hidden states [B,N,D] before the blocks, and those after them."""
    _result: Tensor

    def cut(self, hidden: Tensor, arguments: tuple[Any, ...], pool: Any) -> Tensor:
        """Between the two pieces, while recording: what the blocks are given, and where their result goes."""
        self._before.capture_end()
        self._hidden, self.arguments = hidden, arguments  # type: ignore[assignment]
        self._result = torch.empty_like(hidden)
        self._after.capture_begin(pool=pool, capture_error_mode="thread_local")
        return self._result

    def __call__(self, x: Tensor, t: Tensor, text: Tensor, stack: Callable[[Tensor], Tensor]) -> Tensor:
        """The velocities [B,C,F,H,W]; `stack` runs the blocks, on hidden states that are its own."""
        for mine, given in zip(self._given, (x, t, text), strict=True):
            mine.copy_(given)
        self._before.replay()
        self._result.copy_(stack(self._hidden.clone()))
        self._after.replay()
        velocity: Tensor = self._velocity.clone()
        return velocity


class Block:
    """A block, recorded for each shape of hidden states that it is given."""

    def __init__(self, block: nn.Module, arguments: Sequence[Any], pool: Any) -> None:
        self._block, self._arguments, self._pool = block, arguments, pool
        self._recorded: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def __call__(self, hidden: Tensor) -> Tensor:
        """What the block makes of `hidden`: to be read before the block runs again."""
        if hidden.shape not in self._recorded:
            given, graph = hidden.clone(), torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                made = self._block(given, *self._arguments)
            self._recorded[hidden.shape] = graph, given, made
        graph, given, made = self._recorded[hidden.shape]
        given.copy_(hidden)
        graph.replay()
        return made


class _Cut(nn.Module):
    """In the place of an expert's blocks while a forward is recorded."""

    def __init__(self, forward: Forward, pool: Any) -> None:
        super().__init__()
        self._forward_of, self._pool = [forward], pool

    def forward(self, hidden: Tensor, text: Tensor, temb: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        return self._forward_of[0].cut(hidden, (text, temb, rotary), self._pool)
