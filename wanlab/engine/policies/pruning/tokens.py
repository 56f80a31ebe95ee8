"""Computing some of a pass's tokens: what the policies that choose them have in common.

A token is a patch of 1 x 2 x 2 latents. In a step that selects, only active tokens enter the blocks; the velocity of
the others, the frozen ones, is made of what they had when they were last computed. All tokens pass the patch
embedding and the head around the blocks, which is a ten-thousandth of a pass's operations at full size and is counted.

A *stretch* is a run of steps of one expert on one number of latent frames; nothing is remembered beyond its end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from wanlab.engine.types import Call, Env, Frozen, Inner, Policy, Session, StepContext, StepPlan
from wanlab.errors import UsageError
from wanlab.runfile import Field

if TYPE_CHECKING:
    from torch import Tensor

    from wanlab.engine.model.transformer import Blocks

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
ACTIVE = Field("active", (), "float64", "1", "share of the tokens that entered the blocks")
SCORE = Field("score", ("quantile",), "float64", "1", f"quantiles {QUANTILES} of the scores that decide")
MASK = Field(
    "mask",
    ("latent_frame", "token_height", "token_width_bytes"),
    "uint8",
    "1",
    "the tokens that entered the blocks: one bit each along the width, the first in the highest bit (numpy.packbits)",
)


@dataclass(frozen=True, kw_only=True)
class TokenPolicy(Policy):
    """Knobs that the policies choosing tokens share.

    scope       the expert whose steps select: "high", "low" or "all"; a model of one expert has "all" alone
    keep        a frozen token keeps its last "velocity", its last predicted clean latents ("x0"), or stays where it is
                ("hold")
    keys        active tokens attend to all tokens, the frozen ones' keys and values being as they were ("stale"), or to
                each other only ("absent")
    keys_dtype  keys and values kept in the "model"'s dtype or as 8-bit floats with a scale for each token ("float8")
    corrector   whether UniPC's corrector moves frozen tokens too; never with keep=hold
    """

    scope: Literal["high", "low", "all"] = "high"
    keep: Literal["velocity", "x0", "hold"] = "velocity"
    keys: Literal["stale", "absent"] = "stale"
    keys_dtype: Literal["model", "float8"] = "model"
    corrector: bool = True


def multiple(tokens: int) -> int:
    """What the number of active tokens is a multiple of: the greatest power of two up to 128 that is at most 1/128 of
    all, so that few shapes occur, and those that a GPU's products like."""
    return min(128, 1 << max(0, (tokens // 128).bit_length() - 1))


def rounded(count: float, tokens: int) -> int:
    """`count` tokens rounded up to a multiple, at least one and at most all."""
    step = multiple(tokens)
    return min(tokens, max(1, math.ceil(count / step - 1e-9)) * step)


@dataclass(frozen=True)
class _Step:
    """What is to happen in a step, as far as it is known beforehand."""

    place: int
    """Steps of its stretch before it."""
    begins: bool
    scoped: bool
    selects: bool
    keeps: bool
    """Whether keys and values are kept for the next step."""


class TokenSession(Session):
    """The machinery: a subclass says in which steps (`selective`) which tokens (`choose`) are computed."""

    fields: ClassVar[tuple[Field, ...]] = (ACTIVE, SCORE, MASK)

    def __init__(self, env: Env, knobs: TokenPolicy) -> None:
        self.env, self.knobs = env, knobs
        self.keeps_keys = knobs.keys == "stale"
        self.keys_float8 = knobs.keys_dtype == "float8"
        self._steps: dict[int, _Step] = {}
        self._stretch: tuple[str, int] = ("", 0)
        self._first = 0
        self._computed: set[tuple[str, ...]] = set()  # branches that have a value to keep, as calls name them

    # What a rule says.

    def selective(self, ctx: StepContext, place: int) -> bool:
        """Whether a step of the scope, with so many of its stretch before it, computes some tokens only."""
        raise NotImplementedError

    def counts(self, tokens: int) -> tuple[int, int]:
        """The least and the greatest number of active tokens in a step that selects, rounded."""
        raise NotImplementedError

    def choose(self, ctx: StepContext, x: Tensor, memory: dict[str, Any], place: int, selects: bool) -> Tensor | None:
        """The positions [n] of the active tokens, ascending, None for all of them, as in a step that does not select.
        Called once in every step of the scope, with its latents x [1,C,F,H,W], the memory of its stretch, and how
        many steps of that came before."""
        raise NotImplementedError

    # What follows from it.

    def plan(self, plan: StepPlan, ctx: StepContext) -> StepPlan:
        if begins := ((ctx.expert, plan.frames) != self._stretch or plan.jump is not None):
            self._stretch, self._first, self._computed = (ctx.expert, plan.frames), ctx.index, set()
        place, scoped = ctx.index - self._first, in_scope(self.knobs.scope, ctx)
        calls: set[tuple[str, ...]] = {(b,) for b in plan.branches if b not in plan.reused}
        if self.env.batched and not plan.reused:
            calls = {plan.branches}
            self._computed &= calls  # what another batch of branches computed last is older than its step
        after = self.env.steps[ctx.index + 1 : ctx.index + 2]
        now = scoped and place > 0 and self.selective(ctx, place)
        selects = now and calls <= self._computed
        keeps = now or any(n.expert == ctx.expert and scoped and self.selective(n, place + 1) for n in after)
        if keeps:
            self._computed |= calls
        self._steps[ctx.index] = _Step(place, begins, scoped, selects, keeps)
        if not selects:
            return plan
        tokens, cost = self.env.tokens(plan.frames), self.env.costs[ctx.expert]
        least, most = (
            cost.block(n, tokens if self.knobs.keys == "stale" else n) / cost.block(tokens, tokens)
            for n in self.counts(tokens)
        )
        return replace(plan, least=plan.least * least, most=plan.most * most)

    def evaluate(self, call: Call, inner: Inner) -> Tensor:
        step = self._steps[call.ctx.index]
        if step.scoped:
            self._begin(call, step)
        else:
            self.note(active=1.0)
        velocity = inner(call)
        if not step.keeps:
            return velocity
        import torch

        active, own = self._active(call), self.recall(call)
        if self.env.batched:  # what another batch of branches kept is of no use any more
            names = ("", "+".join(call.branches))
            self._memory = {key: kept for key, kept in self._memory.items() if key[2] in names}
        if active is not None:
            fresh = pixels(active, call.x)
            velocity = torch.where(fresh, velocity, self._kept(call, own).to(velocity.dtype))
        own["kept"] = call.x.float() - call.ctx.sigma * velocity.float() if self.knobs.keep == "x0" else velocity
        return velocity

    def _begin(self, call: Call, step: _Step) -> None:
        """Once a step: who is active, and the record of it."""
        ctx, x = call.ctx, call.x
        if step.begins and self.memory(ctx, x.shape[2]).get("step") != ctx.index:
            self._memory = {}
        memory = self.memory(ctx, x.shape[2])
        if memory.get("step") == ctx.index:
            return
        memory["step"] = ctx.index
        memory["active"] = self.choose(ctx, x, memory, step.place, step.selects)
        tokens = self.env.tokens(x.shape[2])
        active = memory["active"]
        self.note(active=1.0 if active is None else len(active) / tokens, mask=packed(active, x))

    def _active(self, call: Call) -> Tensor | None:
        """Positions of this call's active tokens; None for all, as where a branch has nothing to keep yet."""
        memory = self.memory(call.ctx, call.x.shape[2])
        active: Tensor | None = memory.get("active") if "kept" in self.recall(call) else None
        return active if memory.get("step") == call.ctx.index else None

    def _kept(self, call: Call, own: dict[str, Any]) -> Tensor:
        """What stands for the velocities of frozen tokens [B,C,F,H,W]."""
        kept: Tensor = own["kept"]
        if self.knobs.keep == "x0":
            return (call.x.float() - kept) / call.ctx.sigma
        return kept if self.knobs.keep == "velocity" else kept.new_zeros(())

    def through(self, call: Call, hidden: Tensor, blocks: Blocks) -> Tensor:
        keeps = self.keeps_keys and self._steps[call.ctx.index].keeps
        keys = self.recall(call) if keeps else None
        active = self._active(call)
        if active is None:
            return blocks(hidden, None, keys, float8=self.keys_float8)
        fresh = blocks(hidden.index_select(1, active), active, keys, float8=self.keys_float8)
        return hidden.new_zeros(hidden.shape).index_copy(1, active, fresh)

    def warm_up(self, call: Call, hidden: Tensor, blocks: Blocks) -> None:
        import torch

        keys: dict[str, Any] | None = {} if self.keeps_keys else None
        one, count = blocks[:1], rounded(hidden.shape[1] / 2, hidden.shape[1])
        one(hidden, None, keys, float8=self.keys_float8)
        active = torch.arange(count, device=hidden.device)
        one(hidden.index_select(1, active), active, keys, float8=self.keys_float8)

    def frozen(self, ctx: StepContext, x: Tensor) -> Frozen | None:
        memory = self.memory(ctx, x.shape[2])
        active, hold = memory.get("active"), self.knobs.keep == "hold"
        if active is None or memory.get("step") != ctx.index or (self.knobs.corrector and not hold):
            return None
        return Frozen(mask=~pixels(active, x), still=hold)


def in_scope(scope: str, ctx: StepContext) -> bool:
    return scope in ("all", ctx.expert)


def check_scope(name: str, scope: str, env: Env) -> None:
    """Raises UsageError where the run has no step of the scope."""
    if not any(in_scope(scope, s) for s in env.steps):
        experts = ", ".join(dict.fromkeys(s.expert for s in env.steps))
        raise UsageError(f"{name}:scope={scope}, and the steps are of: {experts}", f"use {name}:scope=all")


def check_ratio(name: str, ratio: float, least: float = 0.0) -> None:
    """Raises UsageError unless ratio is a share of the tokens, more than 0 and at least `least`."""
    if not 0 < ratio <= 1 or ratio < least:
        raise UsageError(f"{name}:ratio={ratio:g}", f"use {least:.4g} to 1" if least else "use more than 0, up to 1")


def by_token(values: Tensor) -> Tensor:
    """Values of pixels [1,F,H,W] to the means of their tokens [N]."""
    _, frames, height, width = values.shape
    return values.reshape(frames, height // 2, 2, width // 2, 2).mean((2, 4)).flatten()


def pixels(active: Tensor, x: Tensor) -> Tensor:
    """Active tokens' positions [n] to a mask [1,1,F,H,W] of the latents x [1,C,F,H,W]."""
    import torch

    frames, height, width = x.shape[2:]
    mask = torch.zeros(frames * height * width // 4, dtype=torch.bool, device=active.device)
    mask[active] = True
    mask = mask.reshape(1, 1, frames, height // 2, width // 2)
    return mask.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)


def packed(active: Tensor | None, x: Tensor) -> np.ndarray:
    """Active tokens' positions as bits [F, H/2, W/2/8 rounded up]; None is all of them."""
    frames, height, width = x.shape[2:]
    mask = np.ones((frames, height // 2, width // 2), dtype=bool)
    if active is not None:
        mask[...] = False
        mask.reshape(-1)[active.cpu().numpy()] = True
    return np.packbits(mask, axis=-1)


def quantiles(scores: Tensor) -> np.ndarray:
    """`QUANTILES` of scores [N]."""
    import torch

    at = torch.tensor(QUANTILES, device=scores.device, dtype=torch.float64)
    return torch.quantile(scores.double(), at).cpu().numpy()


def largest(scores: Tensor, count: int) -> Tensor:
    """Positions of the `count` largest of scores [N], ascending; of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def drawn(env: Env, seed: int, ctx: StepContext, tokens: int) -> Tensor:
    """A random order [N] of the tokens: another in every step and run, the same whenever the run is made again."""
    import torch

    generator = torch.Generator().manual_seed(((seed * 1_000_003 + env.seed) * 10_007 + ctx.index) % 2**63)
    return torch.randperm(tokens, generator=generator)
