"""One-off work of the network, done before its time is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from wanlab.engine.model.transformer import Blocks, Denoiser
from wanlab.engine.ranks.branches import Branches
from wanlab.engine.run.forecast import Forecast
from wanlab.engine.types import Call, Env, Session


@torch.no_grad()
def warm_up(
    denoiser: Denoiser,
    expected: Forecast,
    env: Env,
    start: int,
    device: torch.device,
    warm: set[tuple[Any, ...]],
    shared: Branches,
    sessions: Sequence[Session] = (),
) -> None:
    """A forward of each expert, length and batch to come that has not run before, so that no step's time holds
    one-off work. Where experts take turns on the device the first one's serves for both, which are built alike."""
    turns = expected.spec.memory == "swap"
    inside = [s for s in sessions if type(s).warm_up is not Session.warm_up]
    policies = expected.spec.policies if inside else ()

    def through(call: Call, hidden: Tensor, blocks: Blocks) -> Tensor:
        for session in inside:
            session.warm_up(call, hidden, blocks)
        return blocks(hidden)

    for ctx, row in zip(env.steps[start:], expected.rows[start:], strict=True):
        evaluated = tuple(b for b in row.branches if b not in row.reused)
        groups = [row.branches] if expected.spec.batch_cfg else [(b,) for b in row.branches]
        if not evaluated or not shared.own(groups):
            continue
        group = evaluated if expected.spec.batch_cfg else evaluated[:1]
        together = shared.together(groups)
        shape = (1, env.shape[0], row.frames, *env.shape[2:])
        key = (
            "" if turns else ctx.expert,
            len(group),
            shape,
            ctx.t.dtype,
            expected.spec.attention,
            expected.spec.parallel,
            together,
            row.positions,
            *map(str, policies),
        )
        if key not in warm:
            warm.add(key)
            x = torch.zeros(shape, device=device)
            call = Call(ctx=ctx, branches=group, x=x, positions=row.positions, together=together)
            denoiser(replace(call, through=partial(through, call)) if inside else call)
    for ctx in env.steps[start : start + 1]:  # no step waits for weights, but the one that switches
        denoiser.model.ready(ctx.expert)
