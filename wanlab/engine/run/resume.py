"""What an earlier run left: a finished file, or what it goes on from, and as which bytes that is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wanlab.engine.solvers import Solver
from wanlab.engine.types import Observer, Session, State
from wanlab.errors import UsageError
from wanlab.runfile import Run
from wanlab.spec import RunSpec
from wanlab.spec.run import FREE


def is_done(out: Path, spec: RunSpec, weights: str) -> bool:
    """Whether `out` is this run, finished, with at least what is to be recorded. Raises UsageError for another run."""
    with Run(out) as run:
        if run.digest != spec.digest():
            there, now = run.spec.to_dict(), spec.to_dict()
            differ = [
                f"{name} {there.get(name)!r} there, {now[name]!r} now"
                for name in now
                if name not in FREE and there.get(name) != now[name]
            ]
            raise UsageError(
                f"{out} is a finished run of another specification ({'; '.join(differ)[:300]})",
                "name another --out, or use --force",
            )
        same = run.status == "complete" and run.attrs.get("weights_fingerprint") == weights
        return same and run.spec.record.covers(spec.record)


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
