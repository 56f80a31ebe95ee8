"""The denoising loop. It names no method: policies change plans and wrap the network, observers read records.

Time and cost are the meter's (meter.py); what is evaluated for the record only is the prober's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce

import numpy as np
import torch
from torch import Tensor

from wanlab.engine.guiders import Cfg, Guider
from wanlab.engine.meter import Meter
from wanlab.engine.ranks.branches import Branches
from wanlab.engine.solvers import Solver
from wanlab.engine.types import BOTH, Call, Env, Frozen, Inner, Session, StepContext, StepPlan, StepRecord
from wanlab.errors import UsageError, WanlabError


@torch.no_grad()
def denoise(
    x: Tensor,
    env: Env,
    solver: Solver,
    network: Inner,
    sessions: Sequence[Session] = (),
    guider: Guider | None = None,
    *,
    start: int = 0,
    x0_pred: Tensor | None = None,
    batched: bool = False,
    shared: Branches | None = None,
) -> Iterator[StepRecord]:
    """Sample from x = x_t of step `start`, yielding each step's record; the last one's `x_next` is the result.

    network   the transformer: Call -> velocities [B,C,F,H,W]
    guider    plain guidance by default
    x0_pred   of step start - 1, when start > 0
    batched   evaluate the branches of a step in one call
    shared    how ranks share the branches; every rank samples, and all get the same
    """
    shared = shared or Branches()
    meter = Meter(network, env)
    evaluate = nest(sessions, meter)
    for ctx, plan in plans(env, sessions, guider or Cfg(), start):
        with meter.step(x) as ran:
            if plan.jump is not None:
                with meter.switch(x):
                    x = jump(plan, ctx, x, x0_pred, solver)
            for session in sessions:
                session.forget(ctx, plan.frames)
            velocities = evaluate_branches(plan, ctx, x, evaluate, batched, shared)
            velocities = shared.exchange(velocities, ran, sessions)
            velocity = plan.guide(velocities)
            x0_pred = x.float() - ctx.sigma * velocity.float()
            x_next = solver.step(velocity, ctx, x, frozen(sessions, ctx, x))
        record = StepRecord(
            ctx=ctx,
            plan=plan,
            x_t=x,
            velocity=velocity,
            x0_pred=x0_pred,
            x_next=x_next,
            ran=ran,
            predictions={b: v for b, v in velocities.items() if fresh(plan, ran.shares.get(b, 0.0))},
            reused={b: v for b, v in velocities.items() if not fresh(plan, ran.shares.get(b, 0.0))},
        )
        for session in sessions:
            session.after(record)
        yield replace(record, notes=noted(sessions))
        x = x_next


def plans(
    env: Env, sessions: Sequence[Session], guider: Guider, start: int = 0
) -> Iterator[tuple[StepContext, StepPlan]]:
    """Each step from `start` with its plan. Those before are planned too: a policy may count on having seen them.
    Raises UsageError where a step is to use a difference of the branches again and there is none."""
    # Experts and lengths of the steps so far that are sure to evaluate both branches wholly.
    whole: set[tuple[str, int]] = set()
    for ctx in env.steps:
        plan = make_plan(env, sessions, guider, ctx)
        if set(plan.branches) == set(BOTH):
            if not plan.reused and not plan.optional and plan.least == plan.most and fresh(plan, plan.most):
                whole.add((ctx.expert, plan.frames))
        elif plan.guide.again and (ctx.expert, plan.frames) not in whole:
            raise UsageError(
                f"{plan.guide.name} at step {ctx.index + 1}: no full step of the {ctx.expert} expert at this length "
                "before, whose difference it could use again",
                "truncate fewer steps, use keep=cond, or name other rules for branches first",
            )
        if ctx.index >= start:
            yield ctx, plan


def fresh(plan: StepPlan, share: float) -> bool:
    """Whether a value of which so much of the blocks' work ran is of this step alone."""
    return share == 1.0 or (plan.merged and share > 0)


def make_plan(env: Env, sessions: Sequence[Session], guider: Guider, ctx: StepContext) -> StepPlan:
    """The step's plan: the guider's branches, then each policy's change of it, in the order of `Session.changes`, and
    left to right."""
    guide = guider.guide(env.guidance[ctx.expert], ctx)
    plan = StepPlan(branches=guide.branches, guide=guide, frames=env.shape[1])
    ordered = sorted(sessions, key=lambda session: ("frames", "branches", "values").index(session.changes))
    return reduce(lambda plan, session: session.plan(plan, ctx), ordered, plan)


def jump(plan: StepPlan, ctx: StepContext, x: Tensor, x0_pred: Tensor | None, solver: Solver) -> Tensor:
    """The latents [1,C,F,H,W] after the plan's change of them, the solver's history forgotten if it no longer fits."""
    assert plan.jump is not None
    if plan.jump.restart:
        solver.restart(ctx.index)
    return plan.jump.apply(x, x0_pred)


def evaluate_branches(
    plan: StepPlan, ctx: StepContext, x: Tensor, inner: Inner, batched: bool, shared: Branches
) -> dict[str, Tensor]:
    """The velocity [1,C,F,H,W] of each of the plan's branches that this rank evaluates."""
    groups = [plan.branches] if batched else [(b,) for b in plan.branches]
    velocities: dict[str, Tensor] = {}
    said: list[float] = []
    for group in shared.own(groups):
        call = Call(ctx=ctx, branches=group, x=x, step_branches=plan.branches, positions=plan.positions)
        together, agree = shared.together(groups), shared.agreement(groups, said)
        batch = inner(replace(call, together=together, agree=agree))
        if batch.shape != (len(group), *x.shape[1:]):
            raise WanlabError(f"step {ctx.index}: velocities {tuple(batch.shape)} for latents {tuple(x.shape)}")
        velocities |= {b: batch[i : i + 1] for i, b in enumerate(group)}
    return velocities


def nest(sessions: Sequence[Session], network: Inner) -> Inner:
    """The network wrapped by the sessions, the first outermost. Raises UsageError when two work inside its blocks."""
    inside = [s for s in sessions if type(s).through is not Session.through]
    if len(inside) > 1:
        raise UsageError("two policies work inside the blocks", "use one of them at a time")
    inner = partial(_through, inside[0], network) if inside else network
    for session in reversed(sessions):
        if type(session).evaluate is not Session.evaluate:
            inner = partial(_evaluate, session, inner)
    return inner


def _evaluate(session: Session, inner: Inner, call: Call) -> Tensor:
    return session.evaluate(call, inner)


def _through(session: Session, inner: Inner, call: Call) -> Tensor:
    return inner(replace(call, through=partial(session.through, call)))


def frozen(sessions: Sequence[Session], ctx: StepContext, x: Tensor) -> Frozen | None:
    """What the one policy that works inside the blocks has frozen."""
    return next((f for session in sessions if (f := session.frozen(ctx, x)) is not None), None)


def noted(sessions: Sequence[Session]) -> Mapping[str, np.ndarray]:
    """What the sessions reported of this step, each under its number."""
    return {f"{k}/{name}": value for k, session in enumerate(sessions) for name, value in session.noted().items()}


class Prober:
    """Evaluates what a run does not use, for the record only: around every policy, so that none is disturbed.

    branches  those that were reused or skipped
    experts   the other expert, at the last step before the expert switch and the first after it
    """

    def __init__(
        self, network: Inner, env: Env, *, branches: bool, experts: bool, shared: Branches | None = None
    ) -> None:
        self._network, self._switch = network, env.switch
        self._branches, self._experts, self._shared = branches, experts, shared or Branches()

    @torch.no_grad()
    def __call__(self, record: StepRecord) -> StepRecord:
        """The record with its `probes` and `other`."""
        plan, ctx, x = record.plan, record.ctx, record.x_t
        probes, other = {}, None
        if self._branches:
            missing = tuple(b for b in BOTH if b not in record.predictions)
            probes = self._evaluate(replace(plan, branches=missing), ctx, x)
        if self._experts and self._switch is not None and ctx.index in (self._switch - 1, self._switch):
            swapped = replace(ctx, expert={"high": "low", "low": "high"}[ctx.expert])
            other = plan.guide(self._evaluate(plan, swapped, x))
        return replace(record, probes=probes, other=other)

    def _evaluate(self, plan: StepPlan, ctx: StepContext, x: Tensor) -> dict[str, Tensor]:
        return self._shared.exchange(evaluate_branches(plan, ctx, x, self._network, False, self._shared))
