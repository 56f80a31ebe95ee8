"""Merging tokens that are alike within cells of latent frames, rows and columns."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from wanlab.engine.policies.pruning.tokens import (
    ACTIVE,
    MASK,
    SCORE,
    check_ratio,
    check_scope,
    drawn,
    in_scope,
    largest,
    packed,
    quantiles,
    rounded,
)
from wanlab.engine.types import Call, Env, Policy, Session, StepContext, StepPlan
from wanlab.errors import UsageError
from wanlab.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from wanlab.engine.model.transformer import Blocks


@register("policy", "tome")
@dataclass(frozen=True, kw_only=True)
class TokenMerging(Policy):
    """Merge tokens into one of their cell's: nothing is kept from step to step.

    One token of each cell, drawn anew in each step, is the destination. Of the others those of the largest cosine to
    theirs, as embedded, are averaged into it; it enters the blocks at its own position, and what the blocks add to it
    is added to each of its tokens.

    ratio  share of the tokens that is left
    cell   latent frames x rows x columns of tokens
    scope  the expert whose steps merge: "high", "low" or "all"; a model of one expert has "all" alone
    start  full steps at the beginning of each expert
    seed   of the draw, beside the run's own

    Cost: `ratio` of each block, and of its attention the square.
    Source: D. Bolya and J. Hoffman, "Token Merging for Fast Stable Diffusion", 2023 (github.com/dbolya/tomesd), which
    merges around each self-attention and looks for the best destination anywhere.
    """

    ratio: float = 0.5
    cell: str = "2x2x2"
    scope: Literal["high", "low", "all"] = "high"
    start: int = 0
    seed: int = 0

    cost_knob = ("ratio", 1.0, 0.0)

    def begin(self, env: Env) -> Session:
        """Raises UsageError when no step of the scope merges, and for cells that leave more than the ratio."""
        check_scope("tome", self.scope, env)
        check_ratio("tome", self.ratio)
        if not re.fullmatch(r"[1-9]\d?x[1-9]\d?x[1-9]\d?", self.cell) or self.cell == "1x1x1":
            raise UsageError(
                f"tome:cell={self.cell[:20]} is no cell", "use FRAMESxROWSxCOLUMNS, such as 2x2x2 or 1x2x2"
            )
        longest = max(sum(s.expert == e and in_scope(self.scope, s) for s in env.steps) for e in env.costs)
        if not 0 <= self.start < longest:
            raise UsageError(f"tome:start={self.start} of {longest} steps in scope", f"use 0 to {longest - 1}")
        return _Merging(env, self)


class _Merging(Session):
    fields = (ACTIVE, SCORE, MASK)

    def __init__(self, env: Env, knobs: TokenMerging) -> None:
        self.env, self.knobs = env, knobs
        self._cell = tuple(map(int, knobs.cell.split("x")))

    def plan(self, plan: StepPlan, ctx: StepContext) -> StepPlan:
        if not self._merges(ctx):
            return plan
        tokens, cost = self.env.tokens(plan.frames), self.env.costs[ctx.expert]
        count = self._left(tokens)
        sides = plan.frames, self.env.shape[2] // 2, self.env.shape[3] // 2
        cells = math.prod(math.ceil(side / c) for side, c in zip(sides, self._cell, strict=True))
        if count < cells:
            raise UsageError(
                f"tome:ratio={self.knobs.ratio:g} leaves {count} of {tokens} tokens, and {cells} cells of "
                f"{self.knobs.cell} leave one each",
                f"use ratio={math.ceil(100 * cells / tokens) / 100:g} or more, or larger cells",
            )
        share = cost.block(count, count) / cost.block(tokens, tokens)
        return replace(plan, least=plan.least * share, most=plan.most * share, merged=True)

    def _merges(self, ctx: StepContext) -> bool:
        return in_scope(self.knobs.scope, ctx) and self.env.since(ctx) >= self.knobs.start

    def through(self, call: Call, hidden: Tensor, blocks: Blocks) -> Tensor:
        tokens = hidden.shape[1]
        if not self._merges(call.ctx) or self._left(tokens) == tokens:
            self.note(active=1.0)
            return blocks(hidden)
        added, notes = self._merged(call, hidden, blocks)
        self.note(**notes)
        return hidden + added

    def warm_up(self, call: Call, hidden: Tensor, blocks: Blocks) -> None:
        tokens = hidden.shape[1]
        if self._left(tokens) < tokens:
            self._merged(call, hidden, blocks[:1])

    def _left(self, tokens: int) -> int:
        return rounded(self.knobs.ratio * tokens, tokens)

    def _merged(self, call: Call, hidden: Tensor, blocks: Blocks) -> tuple[Tensor, dict[str, Any]]:
        """What the blocks add to hidden states [B,N,D], merged for them; and what is to be noted."""
        tokens, count = hidden.shape[1], self._left(hidden.shape[1])
        cells, places = self._cells(call.x)
        # The embedding does not depend on the text: all branches merge alike.
        target, similarity = self._targets(call.ctx, hidden[0], cells.to(hidden.device), count)
        kept = (target == target.new_tensor(range(tokens))).nonzero().flatten()
        row = target.new_zeros(tokens).index_fill(0, kept, 1).cumsum(0)[target] - 1  # in `kept`, of each one's target
        notes = {"active": count / tokens, "score": quantiles(similarity), "mask": packed(kept, call.x)}
        sums = hidden.new_zeros((hidden.shape[0], count, hidden.shape[2])).float()
        for place in range(math.prod(self._cell)):  # one token of a cell at a time: the order of the sum is fixed
            own = (places == place).nonzero().flatten().to(hidden.device)
            sums = sums.index_add(1, row[own], hidden[:, own].float())
        merged = (sums / row.bincount(minlength=count).unsqueeze(1)).to(hidden.dtype)
        return (blocks(merged, kept) - merged)[:, row], notes

    def _cells(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of each token of latents x the number of its cell [N], and its place in it [N]."""
        import torch

        sides = x.shape[2], x.shape[3] // 2, x.shape[4] // 2
        at = torch.meshgrid(*(torch.arange(side) for side in sides), indexing="ij")
        cell, place = torch.zeros(sides, dtype=torch.long), torch.zeros(sides, dtype=torch.long)
        for index, side, c in zip(at, sides, self._cell, strict=True):
            cell = cell * math.ceil(side / c) + index // c
            place = place * c + index % c
        return cell.flatten(), place.flatten()

    def _targets(self, ctx: StepContext, hidden: Tensor, cells: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Into which token [N] each of hidden [N,D] is merged, itself where it is kept; and the cosines [N - cells] of
        those that are no destinations to theirs."""
        import torch

        tokens = len(hidden)
        order = drawn(self.env, self.knobs.seed, ctx, tokens).to(hidden.device)
        first = order.new_zeros(int(cells.max()) + 1).scatter_reduce(0, cells, order, "amax", include_self=False)
        destination = order.argsort()[first][cells]  # the token of the cell that was drawn last
        own = torch.arange(tokens, device=hidden.device)
        wide = hidden.float()
        cosine = torch.cosine_similarity(wide, wide[destination], dim=-1)
        sources = destination != own
        merged = largest(cosine.masked_fill(~sources, -math.inf), tokens - count)
        return own.index_copy(0, merged, destination[merged]), cosine[sources]
