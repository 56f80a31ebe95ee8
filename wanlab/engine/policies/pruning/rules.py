"""Which tokens are computed: by the change of the latents, by the predicted velocity, by its change, or by lot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from wanlab.engine.policies.pruning.tokens import (
    ACTIVE,
    MASK,
    SCORE,
    TokenPolicy,
    TokenSession,
    by_token,
    check_ratio,
    check_scope,
    drawn,
    in_scope,
    largest,
    quantiles,
    rounded,
)
from wanlab.engine.types import Env, Session, StepContext, StepRecord
from wanlab.errors import UsageError
from wanlab.registry import register
from wanlab.runfile import Field

if TYPE_CHECKING:
    from torch import Tensor

FLOOR = 0.1  # of the tokens stay active, whatever their change


@register("policy", "prune")
@dataclass(frozen=True, kw_only=True)
class Prune(TokenPolicy):
    """Freeze the tokens whose latents change least.

    The change of a token from step to step is |x_k - x_(k-1)| / |x_(k-1)|, norms over channels, mean over its pixels.
    In the last baseline step the threshold θ is a percentile of all tokens' changes; it stays. A token that changes by
    less in a step is frozen in the next one. A tenth of the tokens always stays active: those that change most.

    threshold       percentile of the changes
    baseline_steps  first steps of the expert that compute all tokens; θ is of the last one
    start_step      first step of the expert, counted from 1, that may leave tokens out (the guide's "start layer")
    end_step        last one that may (the guide's "end layer"); the expert's last one at the latest
    update          "cumulative": a frozen token stays frozen; "step": each step's changes decide anew
    choice          "change", or the control: so many tokens as the rule says, drawn by "lot" anew in each step

    Cost: keys=stale: about the share of active tokens of each block; keys=absent: less, attention falling with its
    square. Between a tenth and all of the tokens, decided while running.
    Source: the experiment guide ("dynamic token pruning"); update=step, choice=lot, keep=x0 and hold are this
    project's.
    """

    threshold: float = 20.0
    baseline_steps: int = 5
    start_step: int = 6
    end_step: int = 999
    update: Literal["cumulative", "step"] = "cumulative"
    choice: Literal["change", "lot"] = "change"

    cost_knob = ("threshold", 0.0, 100.0)

    def begin(self, env: Env) -> Session:
        """Raises UsageError when no step of the scope can be pruned, and for values that mean nothing."""
        check_scope("prune", self.scope, env)
        if not 0 <= self.threshold <= 100:
            raise UsageError(f"prune:threshold={self.threshold:g} is no percentile", "use 0 to 100")
        if self.baseline_steps < 2:
            raise UsageError(f"prune:baseline_steps={self.baseline_steps}: a change needs two steps", "use 2 or more")
        if self.start_step <= self.baseline_steps:
            raise UsageError(
                f"prune:start_step={self.start_step} is one of {self.baseline_steps} baseline steps",
                f"use start_step={self.baseline_steps + 1} or more",
            )
        longest = max(sum(s.expert == e and in_scope(self.scope, s) for s in env.steps) for e in env.costs)
        if not self.start_step <= min(self.end_step, longest):
            raise UsageError(
                f"prune leaves out nothing: steps {self.start_step} to {self.end_step} of {longest} in scope",
                "use more --steps, or fewer baseline_steps and an earlier start_step",
            )
        return _Prune(env, self)


class _Prune(TokenSession):
    fields = (
        ACTIVE,
        Field("frozen", (), "float64", "1", "share of the tokens that the rule freezes for the next step"),
        Field("threshold", (), "float64", "1", "change below which a token is frozen"),
        SCORE,
        MASK,
    )
    knobs: Prune

    def selective(self, ctx: StepContext, place: int) -> bool:
        return self.knobs.start_step <= place + 1 <= self.knobs.end_step

    def counts(self, tokens: int) -> tuple[int, int]:
        return rounded(FLOOR * tokens, tokens), tokens

    def choose(self, ctx: StepContext, x: Tensor, memory: dict[str, Any], place: int, selects: bool) -> Tensor | None:
        import torch

        active: Tensor | None = memory.pop("next", None) if selects else None
        before, memory["x"] = memory.get("x"), x
        if before is None:
            return active
        scores = change(x, before)
        self.note(score=quantiles(scores))
        if place + 1 == self.knobs.baseline_steps:
            at = torch.tensor(self.knobs.threshold / 100, dtype=torch.float64, device=x.device)
            memory["threshold"] = float(torch.quantile(scores, at))
        if "threshold" in memory:
            self.note(threshold=memory["threshold"])
            if self.selective(ctx, place + 1):
                memory["next"] = self._next(ctx, scores, memory)
        return active

    def _next(self, ctx: StepContext, scores: Tensor, memory: dict[str, Any]) -> Tensor | None:
        """The tokens that the next step computes; None for all."""
        tokens = len(scores)
        frozen = scores < memory["threshold"]
        if self.knobs.update == "cumulative" and "frozen" in memory:
            frozen |= memory["frozen"]
        floor = math.ceil(FLOOR * tokens)
        if int((~frozen).sum()) < floor:
            frozen[largest(scores, floor)] = False
        memory["frozen"] = frozen
        left = tokens - int(frozen.sum())
        self.note(frozen=1 - left / tokens)
        count = rounded(left, tokens)
        if count == tokens:
            return None
        if self.knobs.choice == "lot":
            return drawn(self.env, 0, ctx, tokens)[:count].sort().values.to(scores.device)
        return largest(scores.masked_fill(~frozen, math.inf), count)  # filled up with those that change most


def change(x: Tensor, before: Tensor) -> Tensor:
    """Relative change [N] float64 of each token from latents to latents [1,C,F,H,W]."""
    old = before.double()
    return by_token((x.double() - old).norm(dim=1) / old.norm(dim=1).clamp(min=1e-6))


@dataclass(frozen=True, kw_only=True)
class SharePolicy(TokenPolicy):
    """Knobs of the policies that compute a fixed share of the tokens.

    ratio  share of the tokens that is computed
    start  full steps at the beginning of each expert
    reset  a full step every so many steps after these; 0 for none
    """

    ratio: float = 0.5
    start: int = 4
    reset: int = 0

    cost_knob = ("ratio", 1.0, 0.0)

    def check(self, name: str, env: Env, least_start: int = 1) -> None:
        """Raises UsageError where the knobs mean nothing or no step of the scope selects."""
        check_scope(name, self.scope, env)
        check_ratio(name, self.ratio)
        if self.start < least_start:
            raise UsageError(
                f"{name}:start={self.start}: nothing was computed before", f"use start={least_start} or more"
            )
        if self.reset < 0 or self.reset == 1:
            raise UsageError(f"{name}:reset={self.reset}", "use 2 or more steps, or 0 for none")
        longest = max(sum(s.expert == e and in_scope(self.scope, s) for s in env.steps) for e in env.costs)
        if self.start >= longest:
            raise UsageError(
                f"{name} leaves out nothing: {self.start} full steps of {longest} in scope", "use a smaller start"
            )


class ShareSession(TokenSession):
    """A fixed share in every step after the first ones, but for resets."""

    knobs: SharePolicy

    def selective(self, ctx: StepContext, place: int) -> bool:
        after = place - self.knobs.start
        return after >= 0 and not (self.knobs.reset and (after + 1) % self.knobs.reset == 0)

    def counts(self, tokens: int) -> tuple[int, int]:
        count = rounded(self.knobs.ratio * tokens, tokens)
        return count, count

    def choose(self, ctx: StepContext, x: Tensor, memory: dict[str, Any], place: int, selects: bool) -> Tensor | None:
        tokens = self.env.tokens(x.shape[2])
        count, _ = self.counts(tokens)
        return self.pick(ctx, memory, count, tokens).to(x.device) if selects and count < tokens else None

    def pick(self, ctx: StepContext, memory: dict[str, Any], count: int, tokens: int) -> Tensor:
        """The positions of `count` tokens, ascending."""
        raise NotImplementedError


@register("policy", "random_tokens")
@dataclass(frozen=True, kw_only=True)
class RandomTokens(SharePolicy):
    """The control for every policy that chooses tokens: the same share, drawn anew in each step.

    seed  of the draw, beside the run's own

    Cost: keys=stale: about `ratio` of each block; keys=absent: less.
    Source: this project's; no publication known shows it.
    """

    seed: int = 0

    def begin(self, env: Env) -> Session:
        """Raises UsageError when no step of the scope selects."""
        self.check("random_tokens", env)
        return _Random(env, self)


class _Random(ShareSession):
    fields = (ACTIVE, MASK)
    knobs: RandomTokens

    def pick(self, ctx: StepContext, memory: dict[str, Any], count: int, tokens: int) -> Tensor:
        return drawn(self.env, self.knobs.seed, ctx, tokens)[:count].sort().values


@register("policy", "ras")
@dataclass(frozen=True, kw_only=True)
class Ras(SharePolicy):
    """Region-adaptive sampling: tokens whose predicted velocity varies much over channels are left out.

    metric      of a pixel of the solver's step d = (sigma_next - sigma) v: "std" over channels, or their "l2norm"
    high        share of the left-out tokens that have the largest metric; the others have the smallest
    starvation  a token's metric counts exp(starvation times the steps it was left out so far) times less at the high
                end and more at the low end, so that it comes back
    reset       full steps, every so many; the publication has them at 12 and 22 of 30

    Cost: keys=stale: about `ratio` of each block; keys=absent: less.
    Source: Z. Liu et al., "Region-Adaptive Sampling for Diffusion Transformers", 2025 (github.com/microsoft/RAS), whose
    code raises the metric at the high end too and so keeps out what is out; the sign is mended here.
    """

    reset: int = 10
    metric: Literal["std", "l2norm"] = "std"
    high: float = 1.0
    starvation: float = 0.1

    def begin(self, env: Env) -> Session:
        """Raises UsageError when no step of the scope selects, and for values that mean nothing."""
        self.check("ras", env)
        if not 0 <= self.high <= 1:
            raise UsageError(f"ras:high={self.high:g} is no share", "use 0 to 1")
        if self.starvation < 0:
            raise UsageError(f"ras:starvation={self.starvation:g}", "use 0 or more")
        return _Ras(env, self)


class _Ras(ShareSession):
    knobs: Ras

    def pick(self, ctx: StepContext, memory: dict[str, Any], count: int, tokens: int) -> Tensor:
        import torch

        metric, waits = memory["metric"], memory["waits"]
        self.note(score=quantiles(metric))
        favour = (self.knobs.starvation * waits).exp()
        out = tokens - count
        high = int(out * self.knobs.high)
        active = torch.ones(tokens, dtype=torch.bool, device=metric.device)
        active[(metric / favour).argsort(descending=True, stable=True)[:high]] = False
        # Of those that are left, the smallest.
        active[(metric * favour).masked_fill(~active, math.inf).argsort(stable=True)[: out - high]] = False
        memory["waits"] = waits + (~active).double()
        return active.nonzero().flatten()

    def after(self, record: StepRecord) -> None:
        if not in_scope(self.knobs.scope, record.ctx):
            return
        import torch

        step = (record.ctx.sigma_next - record.ctx.sigma) * record.velocity.double()
        pixel = step.std(dim=1) if self.knobs.metric == "std" else step.norm(dim=1)
        memory = self.memory(record.ctx, step.shape[2])
        memory["metric"] = by_token(pixel)
        memory.setdefault("waits", torch.zeros_like(memory["metric"]))


@register("policy", "topk")
@dataclass(frozen=True, kw_only=True)
class TopK(SharePolicy):
    """Compute the tokens whose velocity changed most when they were last computed, none being left out for long.

    The tokens that have waited longest come first, so many that none waits more than `stale` steps; then those of the
    largest change |v - v before| of the guided velocity, norm over channels, mean over pixels.

    stale  steps in a row that a token may be left out

    Cost: keys=stale: about `ratio` of each block; keys=absent: less.
    Source: X. Cheng et al., "CAT Pruning", 2025 (arXiv:2502.00433), without its clusters.
    """

    stale: int = 3

    def begin(self, env: Env) -> Session:
        """Raises UsageError when no step of the scope selects, or the ratio is too small for the bound."""
        self.check("topk", env, least_start=2)
        if self.stale < 1:
            raise UsageError(f"topk:stale={self.stale}", "use 1 or more")
        check_ratio("topk", self.ratio, 1 / (self.stale + 1))
        return _TopK(env, self)


class _TopK(ShareSession):
    knobs: TopK

    def pick(self, ctx: StepContext, memory: dict[str, Any], count: int, tokens: int) -> Tensor:
        moved, waits = memory["moved"], memory["waits"]
        self.note(score=quantiles(moved))
        # Waiting decides, and the change among equals.
        by_change = moved.argsort(descending=True, stable=True)
        ordered = by_change[waits[by_change].argsort(descending=True, stable=True)]
        oldest = ordered[: min(count, math.ceil(tokens / (self.knobs.stale + 1)))]
        active = largest(moved.index_fill(0, oldest, math.inf), count)
        memory["waits"] = (waits + 1).index_fill(0, active, 0)
        return active

    def after(self, record: StepRecord) -> None:
        if not in_scope(self.knobs.scope, record.ctx):
            return
        velocity = record.velocity.double()
        memory = self.memory(record.ctx, velocity.shape[2])
        before, memory["velocity"] = memory.get("velocity"), velocity
        if before is None:
            return
        moved = by_token((velocity - before).norm(dim=1))
        active = memory.get("active")
        if active is None or "moved" not in memory:
            memory["moved"], memory["waits"] = moved, moved.new_zeros(moved.shape)
        else:
            memory["moved"] = memory["moved"].index_copy(0, active, moved[active])
