"""The denoising loop. It names no method: policies change plans and wrap evaluation, observers read records."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce

import torch
from torch import Tensor

from wanlab.engine.solvers import Solver
from wanlab.engine.types import BOTH, COND, UNCOND, Call, Env, Inner, Session, StepContext, StepPlan, StepRecord
from wanlab.errors import WanlabError


@torch.no_grad()
def denoise(
    x: Tensor,
    env: Env,
    solver: Solver,
    evaluate: Inner,
    sessions: Sequence[Session] = (),
    *,
    start: int = 0,
    x0_pred: Tensor | None = None,
    batched: bool = False,
    probe: bool = False,
    both_experts: bool = False,
) -> Iterator[StepRecord]:
    """Sample from x = x_t of step `start`, yielding each step's record; the last one's `x_next` is the result.

    evaluate      the transformer: Call -> velocities [B,C,F,H,W]
    x0_pred       of step start - 1, when start > 0
    batched       evaluate the branches of a step in one call
    probe         evaluate the branches that the plan skips too, after the step and for the record only
    both_experts  likewise the other expert, at the last step before the expert switch and the first after it
    """
    for ctx in env.steps[start:]:
        plan = make_plan(env, sessions, ctx)
        began = clock(x)
        if plan.lift is not None:
            x = plan.lift.apply(x, x0_pred)
            if plan.lift.restart:
                solver.restart(ctx.index)
        switching = clock(x) - began if plan.lift is not None else 0.0
        ran = Counted(evaluate)
        predictions = evaluate_branches(plan.branches, ctx, x, nest(sessions, ran), batched=batched)
        velocity = guide(predictions, plan)
        x0_pred = x.float() - ctx.sigma * velocity.float()
        x_next = solver.step(velocity, ctx, x)
        seconds = clock(x) - began
        probes = {}
        if probe:
            skipped = tuple(b for b in BOTH if b not in plan.branches)
            probes = evaluate_branches(skipped, ctx, x, nest(sessions, evaluate), batched=False, probe=True)
        other = None
        if both_experts and env.switch is not None and ctx.index in (env.switch - 1, env.switch):
            other = other_expert(plan, ctx, x, nest(sessions, evaluate))
        record = StepRecord(
            ctx=ctx, plan=plan, x_t=x, predictions=predictions, probes=probes, velocity=velocity,
            x0_pred=x0_pred, x_next=x_next, passes=ran.passes, tokens=ran.tokens, seconds=seconds, switching=switching,
            other=other,
        )  # fmt: skip
        for session in sessions:
            session.after(record)
        yield record
        x = x_next


def make_plan(env: Env, sessions: Sequence[Session], ctx: StepContext) -> StepPlan:
    """The step's plan: plain guidance, then each policy's change of it, left to right.

    A scale of 1 is the conditional branch alone and 0 the unconditional one, each expert for itself.
    """
    scale = env.guidance[ctx.expert]
    branches = {1.0: (COND,), 0.0: (UNCOND,)}.get(scale, BOTH)
    plan = StepPlan(branches=branches, guidance=scale, frames=env.shape[1])
    return reduce(lambda made, session: session.plan(made, ctx), sessions, plan)


def evaluate_branches(
    branches: tuple[str, ...], ctx: StepContext, x: Tensor, inner: Inner, *, batched: bool, probe: bool = False
) -> dict[str, Tensor]:
    """A fresh velocity [1,C,F,H,W] for each of `branches` and nothing else."""
    groups = [branches] if batched and branches else [(b,) for b in branches]
    fresh: dict[str, Tensor] = {}
    for group in groups:
        velocities = inner(Call(ctx=ctx, branches=group, x=x, probe=probe))
        if velocities.shape != (len(group), *x.shape[1:]):
            raise WanlabError(f"step {ctx.index}: velocities {tuple(velocities.shape)} for latents {tuple(x.shape)}")
        fresh |= {b: velocities[i : i + 1] for i, b in enumerate(group)}
    return fresh


def other_expert(plan: StepPlan, ctx: StepContext, x: Tensor, inner: Inner) -> Tensor:
    """The velocity [1,C,F,H,W] that the other expert gives in this one's place: the same branches, guided alike."""
    swapped = replace(ctx, expert={"high": "low", "low": "high"}[ctx.expert])
    return guide(evaluate_branches(plan.branches, swapped, x, inner, batched=False, probe=True), plan)


def guide(predictions: Mapping[str, Tensor], plan: StepPlan) -> Tensor:
    """The velocity to step with, [1,C,F,H,W]: u + s(c - u) (Ho & Salimans, "Classifier-Free Diffusion Guidance",
    2022), one branch alone, or c + (s - 1) d with an earlier step's difference d."""
    if set(predictions) == set(BOTH):
        cond, uncond = predictions[COND], predictions[UNCOND]
        return uncond + plan.guidance * (cond - uncond)
    (alone,) = predictions.values()
    if not plan.reuse:
        return alone
    if plan.difference is None or COND not in predictions or plan.difference.shape != alone.shape:
        raise WanlabError("there is no difference of an earlier step to use again", "truncate fewer steps")
    return alone + (plan.guidance - 1) * plan.difference


def nest(sessions: Sequence[Session], inner: Inner) -> Inner:
    """`inner` wrapped by the sessions' `evaluate`, the first outermost."""
    for session in reversed(sessions):
        inner = partial(_call, session, inner)
    return inner


def _call(session: Session, inner: Inner, call: Call) -> Tensor:
    return session.evaluate(call, inner)


class Counted:
    """Counts what really runs: wrapped by every policy, wrapping only the transformer."""

    def __init__(self, inner: Inner, patch: int = 4) -> None:
        self.inner, self.passes, self.tokens, self._patch = inner, 0, 0, patch

    def __call__(self, call: Call) -> Tensor:
        self.passes += len(call.branches)
        self.tokens += len(call.branches) * tokens(call.x.shape[2:], self._patch)
        return self.inner(call)


def tokens(shape: Sequence[int], patch: int = 4) -> int:
    """Transformer tokens of latents of F,H,W: patches of 1 x 2 x 2."""
    frames, height, width = shape
    return frames * height * width // patch


def clock(x: Tensor) -> float:
    """Seconds, after all that was queued on x's device is done."""
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
