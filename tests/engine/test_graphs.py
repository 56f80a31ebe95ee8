"""Blocks that are replayed instead of run, and on a GPU whole passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wanlab.engine import run
from wanlab.engine.model import loading
from wanlab.engine.model.transformer import Blocks
from wanlab.runfile import Run
from wanlab.spec import PolicySpec, RunSpec


class Replay:
    """Adds its number into a buffer that the next replay overwrites, as a recorded block does."""

    def __init__(self, number: int) -> None:
        self.number, self.made = number, torch.zeros(1, 6, 4)

    def __call__(self, hidden: Tensor) -> Tensor:
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("policy", ["", "half", "cfg:last=2", "magcache", "firstblock:threshold=0.5", "random_tokens"])
def test_recorded_passes_equal_those_that_run(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = RunSpec(
        prompt="a red ball",
        width=48,
        height=32,
        frames=17,
        steps=6,
        device="cuda",
        precision="exact",
        policies=(PolicySpec.parse(policy),) if policy else (),
    )
    latents = []
    for small in (0, 10**8):
        monkeypatch.setattr(loading, "SMALL", small)
        models = run.Models()
        for name in ("first", "second"):  # recorded in the first
            with Run(run.execute(spec, tmp_path / f"{small}-{name}.h5", loaded=models)) as made:
                latents.append(np.asarray(made["latent"]))
    assert all(np.array_equal(latents[0], other) for other in latents[1:])
