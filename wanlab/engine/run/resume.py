"""What an interrupted run needs to go on, and as which bytes it is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wanlab.engine.solvers import Solver
from wanlab.engine.types import Observer, Session, State


@contextmanager
def own_threads() -> Iterator[None]:
    """A number of threads that is set inside does not stay."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def save(solver: Solver, sessions: Sequence[Session], observers: Sequence[Observer]) -> State:
    """The states of all that carries anything from step to step, under flat names."""
    parts = {"solver": solver, **_numbered("session", sessions), **_numbered("observer", observers)}
    return {f"{name}/{key}": value for name, part in parts.items() for key, value in part.state().items()}


def restore(saved: State, solver: Solver, sessions: Sequence[Session], observers: Sequence[Observer]) -> None:
    """Give back what `save` took."""
    parts = {"solver": solver, **_numbered("session", sessions), **_numbered("observer", observers)}
    for name, part in parts.items():
        own = {k.partition("/")[2]: v for k, v in saved.items() if k.partition("/")[0] == name}
        if own:
            part.restore(own)


def _numbered(kind: str, parts: Sequence[Any]) -> dict[str, Any]:
    return {f"{kind}{i}": part for i, part in enumerate(parts)}


def size(state: State) -> int:
    """Bytes of the tensors in a state."""
    return sum(value.numel() * value.element_size() for value in state.values() if isinstance(value, Tensor))


def pack(state: State) -> dict[str, Any]:
    """Tensors as numpy arrays of their bytes (numpy knows no bfloat16), with dtypes and shapes beside them."""
    packed: dict[str, Any] = {}
    kinds: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            kinds[name] = [str(value.dtype).removeprefix("torch."), list(value.shape), value.device.type]
            packed[name] = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        else:
            packed[name] = value
    return {**packed, "tensors": kinds}


def unpack(packed: dict[str, Any], device: torch.device) -> State:
    """What `pack` was given, tensors where they were."""
    state = dict(packed)
    for name, (dtype, shape, place) in state.pop("tensors").items():
        flat = torch.from_numpy(np.array(state[name])).view(getattr(torch, dtype)).reshape(shape)
        state[name] = flat if place == "cpu" else flat.to(device)
    return state
