"""Forwards of a small model on a GPU, recorded once as CUDA graphs and replayed.

A network as small as `tiny` waits for its kernels to be launched, one by one from Python; replayed, a pass costs its
arithmetic. A forward is recorded in pieces: what comes before the blocks, each block, what comes after. So a policy
works between them as it does without, every pass and block is counted and timed where it runs, and a method that leaves
work out is measured beside a baseline that is replayed too. The kernels are the same ones, and so are the results, bit
for bit.

What is not recorded, and runs as it would without: blocks on some of the tokens, and those that keep keys.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from wanlab.engine.model.modules import instead_of_blocks, unviewed

# Parameters of an expert whose passes are replayed, at most: a larger one keeps a GPU busy by itself.
SMALL = 100_000_000
TOKENS = 8192  # of a forward, at most: with more, too, a GPU is busy, and what is kept would take much of its memory
MOST = 32  # forwards: with so many a run begins without any


def launch_bound(x: Tensor) -> bool:
    """Whether a small model's forward of latents x [B,C,F,H,W] waits for its kernels to be launched."""
    return x.shape[0] * x.shape[2] * (x.shape[3] // 2) * (x.shape[4] // 2) <= TOKENS


class Graphs:
    """The recorded forwards of a model on a GPU, by what tells one from another."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # one: workspaces are kept for each
        self.forget()

    def forget(self) -> None:
        """Let go of everything recorded."""
        self._forwards: dict[Hashable, Forward] = {}
        # Two memories: between its pieces a forward has what nobody holds (diffusers' timestep embedding), so what runs
        # there must not write into the same one. New ones: into those that nothing holds nothing can be recorded.
        self._around, self._inside = torch.cuda.graph_pool_handle(), torch.cuda.graph_pool_handle()

    @property
    def full(self) -> bool:
        """Whether the next run begins without what is recorded: all of it, since workspaces are shared."""
        return len(self._forwards) >= MOST

    def find(self, key: Hashable) -> Forward | None:
        return self._forwards.get(key)

    def record(self, key: Hashable, expert: Any, x: Tensor, t: Tensor, text: Tensor) -> None:
        """Record a forward that has run before as it is, so that all of it is compiled. Its result is given nowhere."""
        with torch.cuda.device(self._device):
            self._forwards[key] = Forward(expert, (x, t, text), self._stream, self._around, self._inside)


class Forward:
    """One forward at one shape: the latents x [B,C,F,H,W], timesteps t [B] or [B,N], text [B,L,D]."""

    arguments: tuple[Tensor, Tensor, tuple[Tensor, Tensor]]
    """Text, timestep and positions, as the blocks get them: rewritten by every replay."""

    def __init__(self, expert: Any, given: tuple[Tensor, ...], stream: Any, around: Any, inside: Any) -> None:
        self._given = tuple(v.clone() for v in given)
        self._before, self._after = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        self._open: torch.cuda.CUDAGraph | None = None
        torch.cuda.synchronize()
        with instead_of_blocks(expert, _Cut(self, around)), torch.cuda.stream(stream):
            self._record(expert, around)
        self._before.replay()  # true values for the run of each block before it is recorded
        hidden = self._hidden.clone()
        self.blocks = [Block(block, hidden, self.arguments, stream, inside) for block in expert.blocks]

    def _record(self, expert: Any, pool: Any) -> None:
        try:
            self._begin(self._before, pool)
            x, t, text = self._given
            self._velocity = expert(hidden_states=x, timestep=t, encoder_hidden_states=text, return_dict=False)[0]
            self._end()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # what went wrong is said, not that the recording is broken
                self._end()
            raise

    def _begin(self, graph: torch.cuda.CUDAGraph, pool: Any) -> None:
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        self._open = graph

    def _end(self) -> None:
        graph, self._open = self._open, None
        if graph is not None:
            graph.capture_end()

    def cut(self, hidden: Tensor, arguments: Any, pool: Any) -> Tensor:
        """Between the two pieces, while recording: what the blocks are given, and where their result goes."""
        self._end()
        self._hidden, self.arguments = hidden, arguments
        self._result = torch.empty_like(hidden)
        self._begin(self._after, pool)
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
    """A block, recorded for hidden states like the ones `given`, whose memory is its input's."""

    def __init__(self, block: nn.Module, given: Tensor, arguments: Any, stream: Any, pool: Any) -> None:
        self._given, self._graph = given, torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            block(given, *arguments)  # whatever is made once is made here: none of it may be while recording
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self._made: Tensor = block(given, *arguments)

    def takes(self, hidden: Tensor) -> bool:
        return hidden.shape == self._given.shape and hidden.dtype == self._given.dtype

    def __call__(self, hidden: Tensor, *_: Any) -> Tensor:
        """What the block makes of `hidden`, and of its arguments as they are now: to be read before a block runs
        again."""
        self._given.copy_(hidden)
        self._graph.replay()
        return self._made


class _Cut(nn.Module):
    """In the place of an expert's blocks while a forward is recorded."""

    def __init__(self, forward: Forward, pool: Any) -> None:
        super().__init__()
        self._recording, self._pool = forward, pool

    def forward(self, hidden: Tensor, text: Tensor, temb: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        return self._recording.cut(hidden, (text, temb, unviewed(rotary)), self._pool)
