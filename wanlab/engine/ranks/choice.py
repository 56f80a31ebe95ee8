"""Which layout a run gets: what was asked for, judged; or chosen for the processes that there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from wanlab.engine.ranks.group import here
from wanlab.engine.types import Session
from wanlab.errors import UsageError
from wanlab.spec import RunSpec
from wanlab.spec.parallel import AUTO, NONE, Layout

EVEN = 1.15  # how much more than its share of the heads the busiest rank may have


def choose(spec: RunSpec, heads: int) -> RunSpec:
    """The spec with its layout named, for a model of so many heads. Raises UsageError for one that the processes of
    this job or the run cannot have."""
    size = here().size
    if spec.parallel == AUTO:
        layout = _auto(spec, size, heads)
    else:
        layout = Layout.parse(spec.parallel)
        _check(layout, spec, size, heads)
    if layout.ranks > 1 and spec.device not in ("cpu", "cuda"):
        raise UsageError(f"--device {spec.device} is one device, and there are {size} processes", "use --device auto")
    return dataclasses.replace(spec, parallel=str(layout))


def guided(spec: RunSpec) -> bool:
    """Whether any step may have two branches."""
    return spec.guider.name != "cfg" or any(scale not in (0.0, 1.0) for scale in spec.guidance)


def _auto(spec: RunSpec, size: int, heads: int) -> Layout:
    """CFG parallel first, which changes no value, then Ulysses as far as the heads can be shared about evenly, then a
    ring."""
    cfg = 2 if size % 2 == 0 and not spec.batch_cfg and guided(spec) else 1
    split = size // cfg
    fit = [n for n in range(1, split + 1) if split % n == 0 and n * cfg <= heads and -(-heads // n) * n <= EVEN * heads]
    return Layout(cfg=cfg, ulysses=max(fit), ring=split // max(fit))


def _check(layout: Layout, spec: RunSpec, size: int, heads: int) -> None:
    if layout.ranks not in (1, size):
        there = "there is one process" if size == 1 else f"there are {size}"
        raise UsageError(
            f"--parallel {layout} is for {layout.ranks} processes, {there}",
            f"start it with torchrun --nproc-per-node {layout.ranks} -m wanlab, or use --parallel auto",
        )
    if layout.ulysses * layout.cfg > heads:
        most = heads // layout.cfg
        raise UsageError(
            f"--parallel {layout}: the model has {heads} heads to share", f"use ulysses={most} or less, or ring"
        )
    if layout.cfg == 2 and spec.batch_cfg:
        raise UsageError("--batch-cfg evaluates both branches in one place, --parallel cfg=2 in two", "use one of them")


def check_policies(spec: RunSpec, sessions: Sequence[Session], tokens: int) -> None:
    """Refuse the policies of a resolved spec that its layout cannot have, and too many ranks for so many tokens. Raises
    UsageError."""
    if spec.parallel in (AUTO, NONE):
        return
    layout = Layout.parse(spec.parallel)
    if tokens < layout.ranks:
        raise UsageError(f"{layout.ranks} processes for {tokens} tokens", "use a larger size, or fewer processes")
    for policy, session in zip(spec.policies, sessions, strict=True):
        if session.keeps_keys and layout.split > 1:
            raise UsageError(
                f"policy {policy.name} keeps keys of all heads, and --parallel {layout} shares the heads",
                "use two processes with --parallel cfg=2, or --parallel none",
            )
        if session.couples and layout.cfg == 2:
            raise UsageError(
                f"policy {policy.name} looks at one branch to evaluate the other, which --parallel {layout} does apart",
                f"use --parallel ulysses={layout.ranks}",
            )


def rounds(spec: RunSpec) -> bool:
    """Whether the ranks of a resolved spec may share what changes the last bits when it is shared. With precision
    reference, whose results are equal to WanPipeline's bit by bit, they do not unless tokens are split anyway."""
    layout = Layout.parse(spec.parallel)
    return layout.split > 1 or (layout.cfg > 1 and spec.precision != "reference")


def wide(spec: RunSpec, sessions: Sequence[Session]) -> bool:
    """Whether all ranks share the tokens of a branch that is alone in its step; never where keys are kept, which are
    each half's own."""
    return rounds(spec) and Layout.parse(spec.parallel).cfg > 1 and not any(s.keeps_keys for s in sessions)
