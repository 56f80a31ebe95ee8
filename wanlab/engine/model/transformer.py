"""The experts at work: a call to its velocities, and the seams at which a policy may work inside the stack of blocks.

diffusers' own forward runs unchanged. While it does, the expert's list of blocks holds one module, `_Stack`, that hands
the blocks to whoever asked for them, or runs them one after the other; so with no policy inside, the computation is
diffusers' bit for bit, and every block that runs is counted.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from wanlab.engine.model.graphs import Block, launch_bound
from wanlab.engine.model.kernels import KEPT, SelfAttention, set_self_attention
from wanlab.engine.model.loading import Model
from wanlab.engine.model.modules import instead_of_blocks, unviewed
from wanlab.engine.ranks.group import Splits
from wanlab.engine.ranks.sequence import TokenSplit
from wanlab.engine.types import Call
from wanlab.errors import WanlabError

ATTENTION = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


class Denoiser:
    """The experts with a run's prompt embeddings: Call -> velocities [B,C,F,H,W]."""

    def __init__(
        self,
        model: Model,
        embeds: Mapping[str, Tensor],
        kernel: str = "auto",
        *,
        keeps_keys: bool = False,
        splits: Splits = (None, None),
    ) -> None:
        """embeds  by branch, each [1,512,D]; kernel  the attention's; keeps_keys  whether a policy's blocks do; splits
        the ranks that share a branch's tokens, in a step of two branches and in one of one"""
        self.model, self._embeds, self._splits, self._asked = model, embeds, splits, kernel
        for expert in model.experts.values():
            set_self_attention(expert, kernel, ours=keeps_keys or any(splits))
        # FlashAttention-3 is the self-attention's: what else there is has a kernel of torch's.
        others = "cudnn" if model.device.type == "cuda" else "auto"
        self._kernel = others if kernel.startswith("flash3") else kernel
        self._per_token = model.checkpoint.expand_timesteps
        # The positions that are the prompt's own: what follows is zero.
        self._own = {b: own_positions(e) for b, e in embeds.items()}

    def __call__(self, call: Call) -> Tensor:
        expert = self.model.ready(call.ctx.expert)
        batch = len(call.branches)
        x = call.x.to(self.model.dtype)
        if self._per_token:
            # As the official code and WanPipeline have it, though from text alone every token's timestep is the same.
            patches = x.shape[2] * (x.shape[3] // 2) * (x.shape[4] // 2)
            t = (torch.ones(patches, device=x.device) * call.ctx.t).expand(batch, -1)
        else:
            t = call.ctx.t.expand(batch)
        if batch == 1:
            text = self._embeds[call.branches[0]]
        else:
            x = x.expand(batch, -1, -1, -1, -1)
            text = torch.cat([self._embeds[b] for b in call.branches])
        if self.model.short_text is not None:
            own = [self._own[b] for b in call.branches]
            text = self.model.short_text.cut(text, torch.tensor(own), min(max(own) + 1, text.shape[1]))
        split, graphs = self._splits[call.together], self.model.graphs
        with frame_positions(expert, call.positions), attention(self._kernel):
            if graphs is None or split is not None or not launch_bound(x):
                return forward(expert, call, x, t, text, split)
            key = (call.ctx.expert, self._asked, call.positions, x.shape, t.shape, t.dtype, text.shape)
            recorded = graphs.find(key)
            if recorded is None:
                velocity = forward(expert, call, x, t, text)
                graphs.record(key, expert, x, t, text)
                return velocity
            blocks = Blocks([*expert.blocks], recorded.arguments, call.count, replayed=recorded.blocks)
            return recorded(x, t, text, lambda hidden: run(call, hidden, blocks))


def forward(
    expert: WanTransformer3DModel, call: Call, x: Tensor, t: Tensor, text: Tensor, split: TokenSplit | None = None
) -> Tensor:
    """diffusers' own forward: velocities [B,C,F,H,W]."""
    with instead_of_blocks(expert, _Stack(expert.blocks, call, split)):
        velocity: Tensor = expert(hidden_states=x, timestep=t, encoder_hidden_states=text, return_dict=False)[0]
    return velocity


def run(call: Call, hidden: Tensor, blocks: Blocks) -> Tensor:
    """The stack of blocks, by whoever asked for it."""
    return blocks(hidden) if call.through is None else call.through(hidden, blocks)


class Blocks:
    """An expert's blocks, or some of them (`blocks[2:]`), bound to one call's text, timestep and positions."""

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        arguments: tuple[Tensor, Tensor, tuple[Tensor, Tensor]],
        count: Callable[[int, int, int], None] | None,
        first: int = 0,
        split: TokenSplit | None = None,
        replayed: Sequence[Block] = (),
    ) -> None:
        """replayed  the same blocks, where they are recorded on a GPU"""
        self._blocks, self._arguments, self._count, self._first = blocks, arguments, count, first
        self._split, self._replayed = split, replayed

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, which: slice) -> Blocks:
        """A run of neighbouring blocks."""
        start, _, step = which.indices(len(self))
        if step != 1:
            raise ValueError("blocks run in order: no step")
        return Blocks(
            self._blocks[which],
            self._arguments,
            self._count,
            self._first + start,
            self._split,
            self._replayed[which],
        )

    def __call__(
        self,
        hidden: Tensor,
        active: Tensor | None = None,
        keys: dict[str, Any] | None = None,
        *,
        float8: bool = False,
    ) -> Tensor:
        """Run them in order: hidden states [B,n,D] to hidden states [B,n,D].

        active  positions [n] of the tokens that `hidden` holds, whose work is all that is done; None: all N tokens
        keys    where keys and values of all N tokens are kept from call to call (memory of a session with
                `keeps_keys`), 2 N D values a block: active tokens attend to all, those of the others being as they
                were when last computed. None: active tokens attend to each other
        float8  whether they are kept as 8-bit floats (a session with `keys_float8`): the frozen tokens' are rounded
        """
        text, temb, rotary = self._arguments
        if active is not None:
            rotary = (rotary[0].index_select(1, active), rotary[1].index_select(1, active))
            temb = temb.index_select(1, active) if temb.ndim == 4 else temb
        samples, queries = hidden.shape[:2]
        attended = queries if active is None or keys is None else self._arguments[2][0].shape[1]
        split = self._split
        replays = active is None and keys is None and bool(self._replayed) and self._replayed[0].takes(hidden)
        blocks: Sequence[Any] = self._replayed if replays else self._blocks
        if split is not None:
            split.begin(queries, hidden.device)
            hidden, rotary = split.part(hidden), (split.part(rotary[0]), split.part(rotary[1]))
            temb = split.part(temb) if temb.ndim == 4 else temb
        for k, block in enumerate(blocks, self._first):
            if self._count is not None:
                self._count(samples, queries, attended)
            with keeping(block, active, keys, str(k), float8), parted(block, split):
                hidden = block(hidden, text, temb, rotary)
        if replays:
            hidden = hidden.clone()  # the next replay overwrites it
        return hidden if split is None else split.whole(hidden)


@contextlib.contextmanager
def keeping(
    block: Any, active: Tensor | None, keys: dict[str, Any] | None, name: str, float8: bool = False
) -> Iterator[None]:
    """The block's self-attention keeps its keys there while inside. Raises ValueError where it cannot."""
    if keys is None:
        yield
        return
    attention = block.attn1.processor
    if not isinstance(attention, SelfAttention):
        raise ValueError("the session that keeps keys does not say so: keeps_keys = True")
    kinds = KEPT[float8]
    if active is not None:
        if f"{kinds[0]} {name}" not in keys:
            raise ValueError("no keys are kept yet: run all tokens first")
        attention.kept = tuple(keys[f"{kind} {name}"] for kind in kinds)
    attention.keeps, attention.float8, attention.active = True, float8, active
    try:
        yield
        keys.update({f"{kind} {name}": kept for kind, kept in zip(kinds, attention.kept, strict=True)})
    finally:
        attention.keeps, attention.active, attention.kept = False, None, ()


@contextlib.contextmanager
def parted(block: Any, split: TokenSplit | None) -> Iterator[None]:
    """The block's self-attention sees the tokens of all ranks while inside."""
    if split is None:
        yield
        return
    attention = block.attn1.processor
    attention.split = split
    try:
        yield
    finally:
        attention.split = None


class _Stack(nn.Module):
    """In the place of an expert's blocks during one call."""

    def __init__(self, blocks: Sequence[nn.Module], call: Call, split: TokenSplit | None) -> None:
        super().__init__()
        # In a list: no submodules, the expert's parameters stay as they are.
        self._blocks, self._call, self._split = [*blocks], call, split

    def forward(self, hidden: Tensor, text: Tensor, temb: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        blocks = Blocks(self._blocks, (text, temb, unviewed(rotary)), self._call.count, split=self._split)
        return run(self._call, hidden, blocks)


def own_positions(embeds: Tensor) -> int:
    """Positions of prompt embeddings [1,N,D] up to the last that is not zero."""
    found = (embeds[0] != 0).any(-1).nonzero()
    return int(found.max()) + 1 if len(found) else 0


@contextlib.contextmanager
def attention(kernel: str) -> Iterator[None]:
    """Attention inside with this kernel of torch's; "auto" leaves the choice to it. Raises WanlabError where there is
    none for what is asked of it."""
    if kernel == "auto":
        yield
        return
    try:
        with sdpa_kernel(ATTENTION[kernel]):
            yield
    except RuntimeError as error:
        if not re.search("no (available kernel|viable backend)", str(error), re.IGNORECASE):
            raise
        raise WanlabError(
            f"--attention {kernel} cannot do this here: {str(error)[:120]}", "use --attention math"
        ) from error


@contextlib.contextmanager
def frame_positions(expert: WanTransformer3DModel, stride: int) -> Iterator[None]:
    """Temporal rotary positions 0, stride, 2 stride, … while inside."""
    if stride == 1:
        yield
        return
    plain = expert.rope
    expert.rope = _StridedRope(plain, stride)
    try:
        yield
    finally:
        expert.rope = plain


class _StridedRope(nn.Module):
    """The rotary embedding of a clip `stride` times as long, of which every `stride`-th frame is kept."""

    def __init__(self, plain: nn.Module, stride: int) -> None:
        super().__init__()
        self._plain, self._stride = [plain], stride  # in a list: no submodule, as in _Stack

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        frames = x.shape[2]
        long = (frames - 1) * self._stride + 1
        shape = (*x.shape[:2], long, *x.shape[3:])
        cos, sin = self._plain[0](x.new_empty(1).expand(shape))
        return self._every(cos, long), self._every(sin, long)

    def _every(self, table: Tensor, long: int) -> Tensor:
        # [1, frames * patches, 1, D]
        by_frame = table.reshape(table.shape[0], long, -1, *table.shape[2:])
        return by_frame[:, :: self._stride].flatten(1, 2)
