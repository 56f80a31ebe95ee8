"""A video decoded by several ranks, each of them some columns of every frame.

The decoder is causal in time, so frames cannot be shared; columns can, exactly: before each convolution neighbours
give each other the column at their border, and the one attention of the decoder, at the latents' own size, sees all of
them. Every value is computed from the same ones as by one rank; where a kernel rounds by the width of what it is given
the last bits differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanCausalConv3d
from torch import Tensor, nn

from wanlab.engine.ranks.sequence import parts


class Columns:
    """The ranks of a group (None: all), by the columns that they have."""

    def __init__(self, group: Any = None) -> None:
        self._group, self._rank, self._size = group, dist.get_rank(group), dist.get_world_size(group)
        self._shares: list[int] = []

    def decode(self, decoder: Any, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        """What `run`, which uses `decoder`, makes of x [B,C,F,h,w], a column of it becoming some of the result's."""
        self._shares = parts(x.shape[-1], self._size)
        with self._beside_each_other(decoder):
            return self._whole(run(self._part(x)))

    @contextmanager
    def _beside_each_other(self, decoder: nn.Module) -> Iterator[None]:
        others: dict[Any, Callable[..., Tensor]] = {}
        for module in decoder.modules():
            if isinstance(module, WanAttentionBlock):
                others[module] = partial(self._attend, module.forward)
            elif isinstance(module, WanCausalConv3d) and module.kernel_size[2] > 1:
                others[module] = partial(self._convolve, module)
            elif type(module) is nn.Conv2d and module.kernel_size[1] > 1:
                others[module] = partial(self._convolve_images, module)
        for module, forward in others.items():
            module.forward = forward
        try:
            yield
        finally:
            for module in others:
                del module.forward

    def _convolve(self, conv: WanCausalConv3d, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        """A causal convolution of [B,C,T,H,w], as diffusers has it, with the neighbours' columns in the place of
        zeros."""
        _, _, above, below, before, _ = conv._padding
        if cache_x is not None and before:
            x, before = torch.cat([cache_x, x], dim=2), before - cache_x.shape[2]
        return nn.Conv3d.forward(conv, F.pad(self._widened(x), (0, 0, above, below, before, 0)))

    def _convolve_images(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """A convolution of [B,C,H,w]."""
        return F.conv2d(self._widened(x), conv.weight, conv.bias, conv.stride, (int(conv.padding[0]), 0))

    def _attend(self, whole: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Attention of [B,C,T,H,w] over the whole width."""
        return self._part(whole(self._whole(x)))

    def _widened(self, x: Tensor) -> Tensor:
        """[…,w] to […,w+2]: the neighbours' columns, zeros beyond the frame."""
        every = self._gathered(torch.cat([x[..., :1], x[..., -1:]], dim=-1))
        zeros = torch.zeros_like(x[..., :1])
        left = every[self._rank - 1][..., 1:] if self._rank else zeros
        right = every[self._rank + 1][..., :1] if self._rank + 1 < self._size else zeros
        return torch.cat([left, x, right], dim=-1)

    def _gathered(self, x: Tensor) -> list[Tensor]:
        every = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in self._shares]
        dist.all_gather(every, x.contiguous(), group=self._group)
        return every

    def _part(self, x: Tensor) -> Tensor:
        """This rank's columns."""
        return torch.split(x, self._shares, -1)[self._rank].contiguous()

    def _whole(self, x: Tensor) -> Tensor:
        """The columns of all ranks."""
        scale = x.shape[-1] // self._shares[self._rank]
        every = self._gathered(F.pad(x, (0, self._shares[0] * scale - x.shape[-1])))
        return torch.cat([c[..., : n * scale] for c, n in zip(every, self._shares, strict=True)], dim=-1)
