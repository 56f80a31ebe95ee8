"""One branch on several ranks: its tokens are split among them, and attention sees them all.

The tokens are parted just before blocks run and joined just after, so that whoever works between blocks has all of
them, the same on every rank. Inside attention, Ulysses exchanges some tokens of all heads for all tokens of some heads;
a ring passes keys and values on and weighs the parts of the result by their log-sum-exp. Neither needs the number of
tokens or of heads to be divisible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

UNIT = 64  # queries that a CPU's attention works on at a time; how many there are in one go decides the last bits
Attend = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Query, key and value, each [B,n,heads,D], to the result, alike, and its log-sum-exp [B,heads,n] in float32."""


def parts(total: int, count: int, unit: int = 1) -> list[int]:
    """`total` in `count` parts of whole units, but for the last one, that differ by a unit at most; of single values
    where there are not enough units. The larger ones come first."""
    units = -(-total // unit)
    if units < count and unit > 1:
        return parts(total, count)
    sizes = [unit * (units // count + (k < units % count)) for k in range(count)]
    sizes[-1] -= unit * units - total
    return sizes


@dataclass
class TokenSplit:
    """The ranks that share a branch's tokens, as seen by one of them: `ring` times `ulysses`, the latter innermost."""

    group: Any
    ulysses: int
    ring: int
    ulysses_group: Any
    ring_group: Any
    rank: int
    """Among those of `group`."""
    tokens: int = 0
    """Of the blocks that are running, on all ranks."""
    unit: int = 1
    """Tokens are split in multiples of this, so that a rank's last bits are those of one process."""

    @property
    def size(self) -> int:
        """Ranks."""
        return self.ulysses * self.ring

    def begin(self, tokens: int, device: torch.device) -> None:
        """So many tokens are about to go through blocks."""
        self.tokens, self.unit = tokens, UNIT if device.type == "cpu" else 1

    def _sizes(self, total: int) -> list[int]:
        return parts(total, self.size, self.unit)

    # --- around the blocks -------------------------------------------------------------------------------------------

    def part(self, x: Tensor, dim: int = 1) -> Tensor:
        """This rank's tokens of all that are along `dim`."""
        sizes = self._sizes(x.shape[dim])
        return x.narrow(dim, sum(sizes[: self.rank]), sizes[self.rank])

    def whole(self, x: Tensor) -> Tensor:
        """All tokens [B,N,D] of every rank's own [B,n,D]."""
        sizes = self._sizes(self.tokens)
        padded = x.new_zeros(x.shape[0], sizes[0], *x.shape[2:])
        padded[:, : x.shape[1]] = x
        every = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(every, padded, group=self.group)
        return torch.cat([t[:, :n] for t, n in zip(every, sizes, strict=True)], dim=1)

    # --- inside attention --------------------------------------------------------------------------------------------

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def to_heads(self, *every: Tensor) -> tuple[Tensor, ...]:
        """Some tokens of all heads [B,n,heads,D] to the Ulysses group's tokens of this rank's heads, of each tensor."""
        if self.ulysses == 1:
            return every
        under_way = [self._to_heads(x) for x in every]  # one is on its way while the next is put in order
        return tuple(arrive() for arrive in under_way)

    def _to_heads(self, x: Tensor) -> Callable[[], Tensor]:
        batch, own, heads, width = x.shape
        tokens, shares = self._of_ulysses(), parts(heads, self.ulysses)
        mine = shares[self._place]
        sends = [own * batch * h * width for h in shares]
        sent = x.new_empty(x.numel())
        for piece, some in zip(torch.split(sent, sends), torch.split(x.transpose(0, 1), shares, 2), strict=True):
            piece.view(some.shape).copy_(some)
        received = x.new_empty(sum(tokens) * batch * mine * width)
        receives = [n * batch * mine * width for n in tokens]
        work = dist.all_to_all_single(received, sent, receives, sends, group=self.ulysses_group, async_op=True)
        held = _Held([sent])

        def arrive() -> Tensor:
            for request in (work, held):
                request.wait()
            return received.view(sum(tokens), batch, mine, width).transpose(0, 1)

        return arrive

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def to_tokens(self, x: Tensor, heads: int) -> Tensor:
        """What `to_heads` did, undone: [B,tokens of the group,this rank's heads,D] to [B,n,heads,D]."""
        if self.ulysses == 1:
            return x
        batch, _, mine, width = x.shape
        tokens, shares = self._of_ulysses(), parts(heads, self.ulysses)
        own = tokens[self._place]
        sent = x.transpose(0, 1).reshape(-1)
        counts = [own * batch * h * width for h in shares]
        received = x.new_empty(sum(counts))
        sends = [n * batch * mine * width for n in tokens]
        dist.all_to_all_single(received, sent, counts, sends, group=self.ulysses_group)
        by_rank = [r.view(own, batch, -1, width) for r in torch.split(received, counts)]
        return torch.cat(by_rank, dim=2).transpose(0, 1)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def around(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of this rank's queries to the keys of every rank of the ring, each [B,n,heads,D]."""
        total: Tensor | None = None
        weight = torch.empty(0)
        sizes = self._of_ring()
        place = self.rank // self.ulysses
        for turn in range(self.ring):
            coming = sizes[(place - turn - 1) % self.ring]
            passed = self._pass_on(key, value, coming) if turn + 1 < self.ring else None
            out, lse = attend(query, key, value)
            out, lse = out.float(), lse.float().transpose(1, 2).unsqueeze(-1)
            if total is None:
                total, weight = out, lse
            else:
                joint = torch.logaddexp(weight, lse)
                total = total * (weight - joint).exp() + out * (lse - joint).exp()
                weight = joint
            if passed is not None:
                for request in passed[2]:
                    request.wait()
                key, value = passed[0], passed[1]
        assert total is not None
        return total.to(query.dtype)

    @property
    def _place(self) -> int:
        """Among the Ulysses group."""
        return self.rank % self.ulysses

    def _of_ulysses(self) -> list[int]:
        """Tokens of each rank of the Ulysses group."""
        first = self.rank - self._place
        return self._sizes(self.tokens)[first : first + self.ulysses]

    def _of_ring(self) -> list[int]:
        """Tokens of each Ulysses group along the ring."""
        sizes = self._sizes(self.tokens)
        return [sum(sizes[k : k + self.ulysses]) for k in range(0, self.size, self.ulysses)]

    def _pass_on(self, key: Tensor, value: Tensor, coming: int) -> tuple[Tensor, Tensor, list[Any]]:
        """Keys and values sent to the next rank of the ring, and those that come from the one before."""
        place = self.rank // self.ulysses
        after, before = (dist.get_global_rank(self.ring_group, (place + d) % self.ring) for d in (1, -1))
        arriving = [x.new_empty(x.shape[0], coming, *x.shape[2:]) for x in (key, value)]
        leaving = [x.contiguous() for x in (key, value)]
        sends = [dist.P2POp(dist.isend, x, after, self.ring_group) for x in leaving]
        receives = [dist.P2POp(dist.irecv, x, before, self.ring_group) for x in arriving]
        # Between two ranks the order decides what is matched with what: all send first.
        return arriving[0], arriving[1], [*dist.batch_isend_irecv([*sends, *receives]), _Held(leaving)]


@dataclass
class _Held:
    """What is being sent, kept until it has been."""

    tensors: Sequence[Tensor]

    def wait(self) -> None:
        """Nothing to wait for."""
