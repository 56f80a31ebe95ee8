"""Policies that the tests of ranks need: one that keeps keys, one whose branches look at each other and may hide it."""

import os
from dataclasses import dataclass, replace

import torch

from wanlab.engine.types import Policy, Session
from wanlab.registry import register


@register("policy", "kept_keys")
@dataclass(frozen=True)
class KeptKeys(Policy):
    """All tokens at a step of an expert, then the even ones, which attend to all."""

    def begin(self, env):
        return _Kept()


class _Kept(Session):
    keeps_keys = True

    def through(self, call, hidden, blocks):
        memory = self.recall(call)
        if "out" in memory:
            keys = {n: v for n, v in memory.items() if n != "out"}
            active = torch.arange(0, hidden.shape[1], 2)
            part = blocks(hidden[:, active], active, keys)
            out = memory["out"].index_copy(1, active, part)
        else:
            keys = {}
            out = blocks(hidden, None, keys)
        memory |= keys
        memory["out"] = out
        return out


@register("policy", "coupled")
@dataclass(frozen=True)
class Coupled(Policy):
    """The unconditional branch is the conditional one of the same step, halved; said, or not."""

    said: bool = True

    def begin(self, env):
        return _Said() if self.said else _Unsaid()


class _Unsaid(Session):
    def evaluate(self, call, inner):
        together = self.memory(call.ctx, call.x.shape[2])
        if call.branches == ("cond",):
            together["velocity"] = inner(call)
            return together["velocity"]
        return together.get("velocity", call.x) / 2


class _Said(_Unsaid):
    couples = True


@register("policy", "led")
@dataclass(frozen=True)
class Led(Policy):
    """Half of the blocks, in both branches, where a digit of the first one's hidden states is odd."""

    def begin(self, env):
        return _Led()


class _Led(Session):
    def plan(self, plan, ctx):
        return replace(plan, least=0.5)

    def through(self, call, hidden, blocks):
        hidden = blocks[:1](hidden)
        odd = int(call.agree(float(hidden.abs().mean())) * 1e4) % 2
        return hidden if odd else blocks[1:](hidden)


@register("policy", "faulty")
@dataclass(frozen=True)
class Faulty(Policy):
    """Fails on rank 1 alone."""

    def begin(self, env):
        return _Faulty()


class _Faulty(Session):
    def evaluate(self, call, inner):
        if os.environ["RANK"] == "1" and call.ctx.index == 2:
            raise RuntimeError("no luck here")
        return inner(call)
