"""What a transformer makes of timesteps, from the few tensors that do so: known without running the model.

In the network the sinusoids of the timestep t go through two linear layers, which gives the embedding [D], and through
a third, which gives what shifts and scales the blocks [6 D]. Here they are computed in float32 on the CPU, whatever
the run computes in: what follows from them is the same on every device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor
from torch.nn.functional import linear, silu

from wanlab.engine.model import weights
from wanlab.engine.model.checkpoint import Checkpoint, places
from wanlab.engine.types import StepContext

_EMBEDDER = "condition_embedder.time_embedder.linear_{}"
_PROJECTION = "condition_embedder.time_proj"


@torch.no_grad()
def time_embeddings(checkpoint: Checkpoint, steps: Sequence[StepContext], projected: bool = False) -> Tensor | None:
    """[steps, D] float32, each step's of its own expert; projected to [steps, 6 D]. None where the weights are not
    here. Raises UsageError for damaged files."""
    if not checkpoint.files:
        return None
    of_expert = {
        expert: _embed(checkpoint, expert, [s.timestep for s in steps if s.expert == expert], projected)
        for expert in {s.expert for s in steps}
    }
    taken = {expert: iter(embedded) for expert, embedded in of_expert.items()}
    return torch.stack([next(taken[s.expert]) for s in steps])


def _embed(checkpoint: Checkpoint, expert: str, timesteps: Sequence[float], projected: bool) -> Tensor:
    component = checkpoint.experts[expert]
    held = weights.heads(checkpoint.files[component])
    names = {place: name for name, place in places(checkpoint, component, held).items()}

    def layer(x: Tensor, place: str) -> Tensor:
        weight, bias = (
            weights.read(held[name].file, name).float() for name in (names[f"{place}.{n}"] for n in ("weight", "bias"))
        )
        return linear(x, weight, bias)

    sinusoids = get_timestep_embedding(
        torch.tensor(timesteps), checkpoint.expert_config(expert).freq_dim, flip_sin_to_cos=True, downscale_freq_shift=0
    )
    embedded = layer(silu(layer(sinusoids, _EMBEDDER.format(1))), _EMBEDDER.format(2))
    return layer(silu(embedded), _PROJECTION) if projected else embedded
