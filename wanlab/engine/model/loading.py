"""Checkpoints loaded: a module is made without memory, its tensors are compared with what the files hold, by name and
shape, and then read one at a time to the device, in the dtype that is asked for. So loading needs the memory of the
result and of one tensor; a tensor that stays on the CPU in its own dtype stays in the mapped file, as the libraries
leave it (where its bytes lie decides which kernel multiplies by it, and so the last bit of the result).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor, nn
from transformers import AutoTokenizer, UMT5EncoderModel

from wanlab.engine.model import kernels, weights
from wanlab.engine.model import vae as wan_vae
from wanlab.engine.model.checkpoint import Checkpoint, describe, fit, parameters, places, snapshot, weight_files
from wanlab.engine.model.config import TEXT_TOKENS, TRAIN_TIMESTEPS
from wanlab.engine.model.graphs import SMALL, Graphs
from wanlab.engine.model.modules import TIED, blank, expected, kept_in_float32, loading
from wanlab.engine.model.placement import Placement
from wanlab.errors import WanlabError

__all__ = [
    "DTYPES",
    "TEXT_TOKENS",
    "TRAIN_TIMESTEPS",
    "Checkpoint",
    "Model",
    "describe",
    "fetched",
    "load",
    "load_component",
    "parameters",
    "recompile",
]

VOCABULARIES = ("tokenizer.json", "spiece.model")
KNOWN = "a red ball"  # words that every vocabulary for text-to-video has
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Model:
    """A loaded checkpoint. `experts` by name: "high" and "low", or "single"."""

    checkpoint: Checkpoint
    tokenizer: Any
    text_encoder: UMT5EncoderModel
    vae: AutoencoderKLWan
    experts: dict[str, WanTransformer3DModel]
    device: torch.device
    dtype: torch.dtype
    placement: Placement
    """Where the parts are while a run goes on."""
    short_text: kernels.ShortText | None = None
    """The experts' cross-attention, where it is given prompts without their padding."""
    graphs: Graphs | None = None
    """What a GPU replays of a small model's forwards."""

    def ready(self, part: str) -> Any:
        """The text_encoder, vae or expert called `part`, on the device until another is asked for."""
        return self.placement.ready(part)

    @torch.no_grad()
    def encode(self, prompt: str) -> Tensor:
        """Prompt embeddings [1,512,D]: cleaned, tokenized and zero after the prompt's end as WanPipeline has them."""
        given = tokenize(self.tokenizer, prompt)
        ids, mask = given.input_ids.to(self.device), given.attention_mask.to(self.device)
        hidden = self.ready("text_encoder")(ids, mask).last_hidden_state
        embeds: Tensor = hidden.masked_fill(mask.unsqueeze(-1) == 0, 0).to(self.dtype)
        return embeds

    def tokens_in(self, prompt: str) -> int:
        """Tokens of a prompt, its end mark included, before it is cut to 512."""
        return len(self.tokenizer(prompt_clean(prompt), verbose=False).input_ids)


def load(
    name: str | Checkpoint,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    vae_dtype: torch.dtype | None = None,
    revision: str = "",
    precision: str = "reference",
    memory: str = "resident",
) -> Model:
    """Load a checkpoint's weights to compute by `precision` (kernels.py), placed by the plan `memory` (placement.py).

    Raises as `describe` does, and WanlabError for weights that do not fit their configuration.
    """
    found = fetched(name if isinstance(name, Checkpoint) else describe(name, revision))
    device = torch.device(device)
    tokenizer = load_tokenizer(found)
    placement = Placement(memory, device)
    text_encoder = load_component(found, "text_encoder", placement.cradle(False), dtype)
    placement.add("text_encoder", text_encoder)
    # On a GPU the padding's share is small, and a bias keeps the fastest attention away.
    text = kernels.ShortText() if precision != "reference" and device.type == "cpu" else None
    experts, home, compiled = {}, placement.cradle(True), device.type == "cuda"
    # 8-bit weights are made on the device, block by block, of what waits in the mapped files.
    cradle, at = (torch.device("cpu"), device) if precision == "fp8" else (home, home)
    for expert, component in found.experts.items():
        experts[expert] = load_component(found, component, cradle, dtype)
        if precision != "reference":
            kernels.optimize(experts[expert], precision, compiled=compiled, text=text, at=at, home=home)
        placement.add(expert, experts[expert], by_blocks=True)
    vae = load_component(found, "vae", placement.cradle(False), vae_dtype or dtype)
    if device.type == "cpu" and vae.dtype != torch.float32:
        wan_vae.optimize(vae)
    placement.add("vae", vae)
    small = all(sum(p.numel() for p in e.parameters()) <= SMALL for e in experts.values())
    replays = small and precision == "exact" and device.type == "cuda" and memory == "resident"
    graphs = Graphs(device) if replays else None
    return Model(found, tokenizer, text_encoder, vae, experts, device, dtype, placement, text, graphs)


def recompile(model: Model | None) -> None:
    """Forget all compiled code, and what `model` recorded of it."""
    torch.compiler.reset()
    if model is not None and model.graphs is not None:
        model.graphs.forget()


def load_tokenizer(found: Checkpoint) -> Any:
    """The tokenizer of a fetched checkpoint. Raises WanlabError when it has no vocabulary (the library makes an empty
    one then, in which every word is unknown), or not the text encoder's."""
    where = found.path / found.tokenizer
    if not any((where / name).is_file() for name in VOCABULARIES):
        raise WanlabError(f"{where} has no vocabulary: {' or '.join(VOCABULARIES)} missing", "get the checkpoint again")
    with loading(found.name):
        tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=True, trust_remote_code=False)
        given = tokenize(tokenizer, KNOWN)
        ids = given.input_ids[given.attention_mask.bool()].tolist()
        words = max(tokenizer.get_vocab().values(), default=0) + 1
        unknown, end, padding = tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = expected(found.name, "text_encoder", found.configs["text_encoder"])["shared.weight"][0]
    problem = ""
    if words > rows:
        problem = f"the tokenizer has {words} words, the text encoder {rows}"
    elif unknown in ids or set(ids) <= {end, padding}:
        problem = f"the tokenizer knows not all words of {KNOWN!r}: it is cut short"
    elif ids[-1] != end:
        problem = "the tokenizer does not end a prompt with its end mark, as T5's does"
    if problem:
        raise WanlabError(f"{where}: {problem}", "get the checkpoint again")
    return tokenizer


def tokenize(tokenizer: Any, prompt: str) -> Any:
    """A prompt's input_ids and attention_mask, each [1,512], as WanPipeline has them."""
    return tokenizer(
        [prompt_clean(prompt)],
        padding="max_length",
        max_length=TEXT_TOKENS,
        truncation=True,
        add_special_tokens=True,
        return_attention_mask=True,
        return_tensors="pt",
    )


def fetched(found: Checkpoint) -> Checkpoint:
    """A checkpoint of the hub with its weights here and judged; a local one as it is. Raises as `load` does."""
    if found.files:
        return found
    path = Path(snapshot(found.name, found.revision, ["*.json", "*/*.json", "*/*.safetensors", "tokenizer/*"]))
    found = replace(found, path=path, files=weight_files(path, found.configs))
    fit(found, {component: weights.heads(files) for component, files in found.files.items()})
    return found


def load_component(found: Checkpoint, component: str, device: torch.device | str, dtype: torch.dtype) -> Any:
    """One component (a key of `found.configs`) of a fetched checkpoint on the device, ready to be evaluated.

    Parameters that the libraries keep in float32 stay so. Raises WanlabError for weights that do not fit.
    """
    with loading(found.name):
        module = blank(component, found.configs[component].raw)
        exact = kept_in_float32(module, dtype)
        names = places(found, component, weights.heads(found.files[component]))
        for name, tensor in weights.stream(found.files[component]):
            if name not in names:
                continue
            place = names[name]
            kept = torch.float32 if exact & set(place.split(".")) else dtype
            parameter = nn.Parameter(tensor.to(device, kept), requires_grad=False)
            for known_as in (place, *(alias for alias, real in TIED.items() if real == place)):
                owner, _, leaf = known_as.rpartition(".")
                setattr(module.get_submodule(owner), leaf, parameter)
        lacking = [name for name, p in module.named_parameters() if p.is_meta]
        if lacking:
            raise WanlabError(f"{found.name}: no weights for {', '.join(lacking[:8])}", "get the checkpoint again")
        return module.eval().requires_grad_(False).to(device)
