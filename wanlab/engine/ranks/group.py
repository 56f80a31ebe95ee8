"""The group of processes: joined, given orders, ended.

Two kinds of messages: orders and other small things go between CPUs (gloo), tensors between devices (NCCL on GPUs).
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from wanlab.engine.ranks.lifeline import GO_ON, Head, Line
from wanlab.engine.ranks.sequence import TokenSplit
from wanlab.errors import UsageError, WanlabError
from wanlab.spec.parallel import Layout, processes

MEETING = timedelta(minutes=5)  # for all processes to have started
PATIENCE = timedelta(days=30)  # one that died is noticed by its lifeline; the others may wait for as long as it is
Step = TypeVar("Step")
Splits = tuple[TokenSplit | None, TokenSplit | None]


class JobError(WanlabError):
    """An error after which the processes are no longer in step: no further run can be done by this job."""


class Ranks:
    """This process among those that share the runs of a job."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.lifeline: Head | Line | None = None
        self.out_of_step = False
        """Whether an error came in the midst of what the ranks do together."""
        self._orders = dist.new_group(timeout=PATIENCE, backend="gloo") if size > 1 else None
        self._heard: tuple[str, Any] | None = None
        self._splits: dict[str, Splits] = {}
        self._peers: dict[str, dist.ProcessGroup] = {}

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")

    # --- orders ------------------------------------------------------------------------------------------------------

    def tell(self, order: str, content: Any = None) -> None:
        """Rank 0: let the others hear of what they do next."""
        if self.size > 1:
            dist.broadcast_object_list([(order, content)], src=0, group=self._orders)

    def hear(self) -> tuple[str, Any]:
        """The others: what `tell` said."""
        if self._heard is not None:
            order, self._heard = self._heard, None
            return order
        heard: list[Any] = [None]
        dist.broadcast_object_list(heard, src=0, group=self._orders)
        said: tuple[str, Any] = heard[0]
        return said

    def meet(self) -> None:
        """Wait until every rank is here and its device has done all it was given."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        dist.barrier(group=self._orders)

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """What is inside, every rank of a run does together. An error there leaves the others waiting for this one, so
        it ends the job."""
        try:
            yield
        except Exception as error:
            self.out_of_step = True
            if self.rank or isinstance(error, torch.OutOfMemoryError):  # which are said elsewhere
                raise
            if isinstance(error, WanlabError):
                raise JobError(error.message, error.hint) from error
            raise JobError(f"rank 0: {type(error).__name__}: {str(error)[:300]}", GO_ON) from error

    def in_lockstep(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The steps of a run, each begun by every rank when rank 0 begins it; the others stop when it goes no
        further."""
        while True:
            if self.rank == 0:
                self.tell("step")
            elif (order := self.hear())[0] != "step":
                self._heard = order  # to be obeyed by whoever asks next
                return
            with self.in_step():
                step = next(steps, None)
            if step is None:
                return
            yield step

    # --- what is shared ----------------------------------------------------------------------------------------------

    def splits(self, layout: Layout) -> Splits:
        """Those who share the tokens of a branch: a half of the ranks, and all of them for a branch that all evaluate
        together. None for one."""
        return self._splits.get(str(layout), (None, None))

    def peers(self, layout: Layout) -> dist.ProcessGroup:
        """The ranks that have the same tokens, one of each branch."""
        return self._peers[str(layout)]

    def form(self, layout: Layout) -> None:
        """Make the groups of a layout; all ranks do it together, once for each."""
        if str(layout) in self._peers or layout.ranks == 1:
            return
        split = layout.split
        halves = [[*range(h * split, (h + 1) * split)] for h in range(layout.cfg)]
        name = str(layout)
        self._peers[name] = self._own([[*range(k, layout.ranks, split)] for k in range(split)])
        half = self._split(halves, layout.ulysses, layout.ring)
        everybody = [[*range(layout.ranks)]]
        whole = half if halves == everybody else self._split(everybody, layout.ulysses * layout.cfg, layout.ring)
        self._splits[name] = half, whole

    def _split(self, groups: Sequence[list[int]], ulysses: int, ring: int) -> TokenSplit | None:
        """The split of the group of `groups` that this rank is in; None for groups of one."""
        if ulysses * ring == 1:
            return None
        nearest = [g[k : k + ulysses] for g in groups for k in range(0, len(g), ulysses)]
        across = [g[k::ulysses] for g in groups for k in range(ulysses)]
        own = next(g for g in groups if self.rank in g)
        return TokenSplit(
            group=self._own(groups),
            ulysses=ulysses,
            ring=ring,
            ulysses_group=self._own(nearest),
            ring_group=self._own(across),
            rank=own.index(self.rank),
        )

    def _own(self, groups: Sequence[list[int]]) -> dist.ProcessGroup:
        """Of new groups, the one that this rank is in."""
        made: list[dist.ProcessGroup] = [dist.new_group(ranks, timeout=PATIENCE) for ranks in groups]
        own = made[next(k for k, ranks in enumerate(groups) if self.rank in ranks)]
        if own.size() > 1:  # connect them, before anything is timed
            dist.all_reduce(torch.zeros(1, device=self.device), group=own)
        return own


_here = Ranks()


def here() -> Ranks:
    """This process's place; that of the only one before `join`."""
    return _here


def join() -> Ranks:
    """Meet the other processes that `torchrun` started. Raises UsageError where each cannot have a GPU of its own, and
    WanlabError where they do not meet."""
    global _here
    size = processes()
    if size == 1 or _here.size > 1:
        return _here
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    if cuda:
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"this machine has {torch.cuda.device_count()} GPUs, fewer than processes",
                f"use torchrun --nproc-per-node {torch.cuda.device_count()}",
            )
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=MEETING)
        ranks = Ranks(rank, size)
        _connect(ranks, os.environ["MASTER_ADDR"])
    except (RuntimeError, OSError) as error:
        raise WanlabError(
            f"rank {rank} does not reach the others: {str(error)[:200]}", "check torchrun's addresses"
        ) from error
    _here = ranks
    return _here


def _connect(ranks: Ranks, address: str) -> None:
    """Watch over each other from now on."""
    if ranks.rank:
        port, secret = ranks.hear()[1]
        ranks.lifeline = Line(address, port, ranks.rank, secret)
        return
    head = Head(address, ranks.size - 1, secrets.token_hex())
    ranks.tell("connect", (head.port, head.secret))
    head.accept(_end_all)
    ranks.lifeline = head


def _end_all(what: str) -> NoReturn:
    """Another rank is lost: say so and end, for the main thread may be waiting for it."""
    cursor = "\x1b[?25h" if sys.__stderr__ is not None and sys.__stderr__.isatty() else ""
    os.write(2, f"{cursor}wanlab: {what} ({GO_ON})\n".encode())
    if isinstance(_here.lifeline, Head):
        _here.lifeline.dismiss()
    os._exit(1)


def quit(code: int) -> NoReturn:
    """End rank 0 with an exit code, and all others before. Groups of a library whose members are gone may wait for
    them for ever when they are taken apart, so they are not."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    if isinstance(_here.lifeline, Head):
        _here.lifeline.end()
    os._exit(code)
