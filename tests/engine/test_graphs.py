"""Blocks that are replayed instead of run, and on a GPU whole passes."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.engine.helpers import make_spec
from wanlab.engine import run
from wanlab.engine.model import loading
from wanlab.engine.model.graphs import Graphs, launch_bound
from wanlab.engine.model.transformer import Blocks
from wanlab.runfile import Run
from wanlab.spec import PolicySpec, RunSpec


class Replay:
    """Adds its number into a buffer that the next replay overwrites, as a recorded block does."""

    def __init__(self, number: int) -> None:
        self.number, self.made = number, torch.zeros(1, 6, 4)

    def takes(self, hidden: Tensor) -> bool:
        return hidden.shape == self.made.shape

    def __call__(self, hidden: Tensor, *_: object) -> Tensor:
        return self.made.copy_(hidden + self.number)


def test_replayed_blocks_are_those_asked_for_and_counted() -> None:
    """Of blocks that add 1, 10 and 100: by hand."""
    counted: list[tuple[int, int, int]] = []
    rotary = torch.zeros(1, 6, 1, 4), torch.zeros(1, 6, 1, 4)
    blocks = Blocks(
        [nn.Identity()] * 3,
        (torch.zeros(1, 2, 4), torch.zeros(1, 6, 4), rotary),
        lambda *n: counted.append(n),
        replayed=[Replay(1), Replay(10), Replay(100)],  # type: ignore[list-item]
    )
    hidden = torch.zeros(1, 6, 4)
    first = blocks[:1](hidden)
    assert float(first.max()) == 1 and float(blocks[1:](first).max()) == 111 and float(blocks(hidden).max()) == 111
    assert counted == [(1, 6, 6)] * 6
    again = blocks[:1](hidden + 5)
    assert float(first.max()) == 1 and float(again.max()) == 6  # what was given out before is not overwritten


def test_small_clips_wait_for_launches() -> None:
    """13 x 5 x 9 tokens of `tiny`'s own clip, 21 x 30 x 52 of 81 frames at 832x480."""
    assert launch_bound(torch.empty(2, 16, 13, 10, 18)) and not launch_bound(torch.empty(1, 16, 21, 60, 104))


def test_what_is_recorded_goes_between_runs_only(checkpoint: Path) -> None:
    """Forwards that go while a run samples would be recorded again inside the time of a step."""
    loaded, found, gone = run.Models(), loading.describe(str(checkpoint)), []
    spec = run.resolve(make_spec(checkpoint), found)
    model = loaded.load(spec, found)
    loaded.warm.add(("high", 1))
    for full in (False, True):
        model.graphs = cast(Graphs, SimpleNamespace(full=full, forget=lambda: gone.append(True)))
        assert loaded.load(spec, found) is model and bool(loaded.warm) is not full and len(gone) == full


# Made where this file is read, so that a specification that is refused is seen without a GPU too.
SMALL_CLIP = RunSpec(prompt="a red ball", width=48, height=32, frames=17, steps=6, device="cuda", precision="exact")
POLICIES = ["", "half", "half:rope=strided", "cfg:last=2", "firstblock:threshold=0.5", "random_tokens:start=1", "tome"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("policy", [*POLICIES, "steps:keep=4"])
def test_recorded_passes_equal_those_that_run(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two prompts, the first of which comes again."""
    execute = sys.modules["wanlab.engine.run.execute"]
    monkeypatch.setattr(execute, "check_encoder", lambda: None)
    monkeypatch.setattr(execute, "write_mp4", lambda *_: None)
    spec = dataclasses.replace(SMALL_CLIP, policies=(PolicySpec.parse(policy),) if policy else ())
    latents: dict[tuple[int, int], np.ndarray] = {}
    for small in (0, 10**8):
        monkeypatch.setattr(loading, "SMALL", small)
        models = run.Models()
        for k, prompt in enumerate(("a red ball", "a blue square moving left", "a red ball")):
            given = dataclasses.replace(spec, prompt=prompt, seed=k % 2)
            given = dataclasses.replace(given, solver="euler" if k == 2 else "unipc")  # whose timesteps are floats
            with Run(run.execute(given, tmp_path / f"{small}-{k}.h5", loaded=models)) as made:
                latents[small, k] = np.asarray(made["latent"])
    assert all(np.array_equal(latents[0, k], latents[10**8, k]) for k in range(3))
    assert not np.array_equal(latents[0, 0], latents[0, 1])
