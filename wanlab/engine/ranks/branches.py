"""CFG parallel: each branch of a step on its half of the ranks, what came of it exchanged once a step.

A half evaluates its branch through all policies, as one process would; then every rank is given the other's velocity,
what the policies remember and note of that branch, and what ran. So all ranks go on from the same, and the sum of what
ran is the whole job's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from wanlab.engine.meter import Reading
from wanlab.engine.ranks.group import Ranks
from wanlab.engine.types import Session, State
from wanlab.errors import WanlabError
from wanlab.spec.parallel import Layout

Group = tuple[str, ...]


class Branches:
    """How the branches of a step are shared by a layout's ranks. The default is one process, which has them all."""

    def __init__(self, ranks: Ranks | None = None, layout: Layout | None = None, *, wide: bool = False) -> None:
        """wide  a branch that is alone in its step is evaluated by all ranks, its tokens split among them; else by the
        first half"""
        self._ranks, self._layout, self._wide = ranks or Ranks(), layout or Layout(), wide
        self._half = self._ranks.rank // self._layout.split
        self._sent: dict[tuple[int, Group, str], tuple[Tensor, int]] = {}

    def together(self, groups: Sequence[Group]) -> bool:
        """Whether all ranks evaluate the step's only group."""
        return self._wide and len(groups) == 1

    def own(self, groups: Sequence[Group]) -> Sequence[Group]:
        """Those that this rank evaluates."""
        if self._layout.cfg == 1 or self.together(groups):
            return groups
        return groups[self._half :: self._layout.cfg]

    def agreement(self, groups: Sequence[Group], said: list[float]) -> Callable[[float], float]:
        """What one group's call asks by (`Call.agree`); `said` is the step's."""
        asked = itertools.count()

        def agree(value: float) -> float:
            if (number := next(asked)) == len(said):
                said.append(self._of_first(value) if len(groups) > 1 else value)
            return said[number]

        return agree

    def _of_first(self, value: float) -> float:
        """The first half's value."""
        if self._layout.cfg == 1:
            return value
        group, said = self._ranks.peers(self._layout), [value]
        dist.broadcast_object_list(said, dist.get_global_rank(group, 0), group=group, device=torch.device("cpu"))
        return said[0]

    def exchange(
        self, velocities: Mapping[str, Tensor], reading: Reading | None = None, sessions: Sequence[Session] = ()
    ) -> dict[str, Tensor]:
        """The velocities of all branches, of this rank's own; `reading` becomes the whole job's, and the sessions
        remember what one that saw all branches would.

        Raises WanlabError where a session's memory of both branches is another one on the other half.
        """
        own = dict(velocities)
        if self._layout.cfg == 1:
            return own
        said = {
            "velocities": {b: _described(v) for b, v in own.items()},
            "reading": reading,
            "memory": [self._told(k, s, tuple(own)) if own else {} for k, s in enumerate(sessions)],
            "common": [_summed(s.remembered(())) for s in sessions],
            "shared": [self._told(k, s, ()) for k, s in enumerate(sessions)],
            "notes": [s.notes for s in sessions],
        }
        every: list[Any] = [None] * self._layout.cfg
        dist.all_gather_object(every, said, group=self._ranks.peers(self._layout))
        owners = {b: h for h in reversed(range(len(every))) for b in every[h]["velocities"]}
        for branch, owner in sorted(owners.items()):
            if any(branch not in other["velocities"] for other in every):
                own[branch] = self._sent_by(owner, own.get(branch), every[owner]["velocities"][branch])
                for k, session in enumerate(sessions):
                    self._teach(k, session, (branch,), owner, every[owner]["memory"][k])
        if reading is not None:
            _add_up(reading, [every[h]["reading"] for h in sorted(set(owners.values()))])
        idle = not all(other["velocities"] for other in every)  # a half that evaluated nothing decided nothing
        for k, session in enumerate(sessions):
            if idle:
                owner = min(owners.values())
                self._teach(k, session, (), owner, every[owner]["shared"][k])
            elif any(other["common"][k] != every[0]["common"][k] for other in every):
                raise WanlabError(
                    f"a policy ({type(session).__module__}) remembers of both branches what one of them gave",
                    "without --parallel cfg=2: use --parallel ulysses=N",
                )
            session.complete([other["notes"][k] for other in every])
        return own

    def _told(self, k: int, session: Session, branches: Group) -> dict[str, Any]:
        """What a session remembers of a branch, or of all together; in the place of tensors what is needed to receive
        them."""
        told: dict[str, Any] = {}
        for name, value in session.remembered(branches).items():
            told[name] = value
            if isinstance(value, Tensor):
                tensor, version = self._sent.get((k, branches, name), (None, 0))
                told[name] = replace(_described(value), sent=tensor is value and version == value._version)
        return told

    def _teach(self, k: int, session: Session, branches: Group, owner: int, told: Mapping[str, Any]) -> None:
        """Give a session what the owner's remembers of a branch, or of all together."""
        mine = session.remembered(branches)
        memory: State = {}
        for name, value in told.items():
            if isinstance(value, _Described):
                memory[name] = mine[name] if value.sent else self._sent_by(owner, mine.get(name), value)
                if owner == self._half:
                    self._sent[k, branches, name] = (memory[name], memory[name]._version)
            else:
                memory[name] = value
        if owner != self._half:
            session.remember(branches, memory)

    def _sent_by(self, owner: int, own: Tensor | None, like: _Described) -> Tensor:
        """The owner's tensor."""
        if owner == self._half:
            assert own is not None
            tensor = own.contiguous()
        else:
            place = like.place if like.place == "cpu" else self._ranks.device
            tensor = torch.empty(like.shape, dtype=like.dtype, device=place)
        group = self._ranks.peers(self._layout)
        dist.broadcast(tensor, dist.get_global_rank(group, owner), group=group)
        return tensor if own is None or owner != self._half else own


@dataclass(frozen=True)
class _Described:
    """A tensor's form, and whether the others have it from before."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    place: str
    sent: bool = False


def _described(tensor: Tensor) -> _Described:
    return _Described(tuple(tensor.shape), tensor.dtype, tensor.device.type)


def _summed(memory: State) -> dict[str, Any]:
    """Values, and of tensors a sum: enough to tell two of them apart."""
    return {n: repr(float(v.double().sum())) if isinstance(v, Tensor) else v for n, v in memory.items()}


def _add_up(reading: Reading, readings: Sequence[Reading]) -> None:
    """Let `reading` be the sum of all."""
    for name in ("passes", "tokens", "block_tokens", "attention_pairs", "operations"):
        setattr(reading, name, sum(getattr(r, name) for r in readings))
    for other in readings:
        reading.shares |= other.shares
