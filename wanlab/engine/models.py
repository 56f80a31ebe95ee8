"""Checkpoints: find them, judge them from their small files, load them, encode prompts, evaluate an expert.

With `solvers` the only place that knows diffusers and transformers. Layout (diffusers'): `model_index.json`, and a
directory each for tokenizer, text_encoder, vae, scheduler, transformer and, with two experts, transformer_2.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel
from transformers.utils import logging as transformers_logging

from wanlab.embedded import tiny_path
from wanlab.engine.types import Call
from wanlab.errors import UsageError, WanlabError
from wanlab.registry import suggest

TEXT_TOKENS = 512  # the prompt's embeddings are cut or zero-padded to this length
TRAIN_TIMESTEPS = 1000
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_WEIGHTS = {
    "text_encoder": "model",
    "vae": "diffusion_pytorch_model",
    "transformer": "diffusion_pytorch_model",
    "transformer_2": "diffusion_pytorch_model",
}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_ORIGINAL = (
    "high_noise_model",
    "low_noise_model",
    "Wan2.1_VAE.pth",
    "Wan2.2_VAE.pth",
    "models_t5_umt5-xxl-enc-bf16.pth",
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint's small files say; no weights are read."""

    name: str
    path: Path
    """Where its configurations lie, and its weights unless it is on the hub."""
    local: bool
    revision: str
    configs: Mapping[str, Mapping[str, Any]] = field(repr=False)
    """config.json by component."""
    scheduler: Mapping[str, Any] = field(repr=False)
    """The scheduler's configuration."""
    boundary: float | None
    """Noise level at which the high-noise expert takes over (.875), None with one expert."""

    @property
    def experts(self) -> dict[str, str]:
        """The component that is each expert's."""
        if self.boundary is None:
            return {"single": "transformer"}
        return {"high": "transformer", "low": "transformer_2"}

    def latent_shape(self, frames: int, width: int, height: int) -> tuple[int, int, int, int]:
        """C, F, H, W of a clip. Raises UsageError when the model cannot make that size."""
        vae, transformer = self.configs["vae"], self.configs["transformer"]
        temporal = int(vae.get("scale_factor_temporal") or 4)
        spatial = int(vae.get("scale_factor_spatial") or 8)
        patch = transformer.get("patch_size") or (1, 2, 2)
        for name, pixels, cells in (("width", width, patch[2]), ("height", height, patch[1])):
            step = spatial * cells
            if pixels % step:
                low = max(step, pixels // step * step)
                raise UsageError(
                    f"{name} {pixels} is not a multiple of {step}, as this model needs", f"use {low} or {low + step}"
                )
        positions = int(transformer.get("rope_max_seq_len") or 1024)
        shape = (
            int(transformer.get("in_channels") or 16), (frames - 1) // temporal + 1, height // spatial, width // spatial,
        )  # fmt: skip
        if shape[1] > positions or max(shape[2] // patch[1], shape[3] // patch[2]) > positions:
            raise UsageError(
                f"{frames} frames of {width}x{height} exceed the model's {positions} positions", "use less"
            )
        return shape


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

    @torch.no_grad()
    def encode(self, prompt: str) -> Tensor:
        """Prompt embeddings [1,512,D]: cleaned, tokenized and zero after the prompt's end as WanPipeline has them."""
        given = self.tokenizer(
            [prompt_clean(prompt)], padding="max_length", max_length=TEXT_TOKENS, truncation=True,
            add_special_tokens=True, return_attention_mask=True, return_tensors="pt",
        )  # fmt: skip
        ids, mask = given.input_ids.to(self.device), given.attention_mask.to(self.device)
        hidden = self.text_encoder(ids, mask).last_hidden_state
        embeds: Tensor = hidden.masked_fill(mask.unsqueeze(-1) == 0, 0).to(self.dtype)
        return embeds

    def tokens_in(self, prompt: str) -> int:
        """Tokens of a prompt, its end mark included, before it is cut to 512."""
        return len(self.tokenizer(prompt_clean(prompt)).input_ids)


class Denoiser:
    """The experts with a run's prompt embeddings: Call -> velocities [B,C,F,H,W]."""

    def __init__(self, model: Model, embeds: Mapping[str, Tensor]) -> None:
        """embeds  by branch, each [1,512,D]"""
        self._model, self._embeds = model, embeds

    def __call__(self, call: Call) -> Tensor:
        expert = self._model.experts[call.ctx.expert]
        batch = len(call.branches)
        x = call.x.to(expert.dtype)
        t = call.ctx.t.expand(batch)
        if batch == 1:
            text = self._embeds[call.branches[0]]
        else:
            x = x.expand(batch, -1, -1, -1, -1)
            text = torch.cat([self._embeds[b] for b in call.branches])
        with frame_positions(expert, call.frame_stride):
            velocity: Tensor = expert(hidden_states=x, timestep=t, encoder_hidden_states=text, return_dict=False)[0]
        return velocity


@contextlib.contextmanager
def frame_positions(expert: WanTransformer3DModel, stride: int) -> Iterator[None]:
    """Temporal rotary positions 0, stride, 2 stride, … while inside."""
    if stride == 1:
        yield
        return
    plain = expert.rope
    expert.rope = _StridedRope(plain, stride)
    try:
        yield
    finally:
        expert.rope = plain


class _StridedRope(nn.Module):
    """The rotary embedding of a clip `stride` times as long, of which every `stride`-th frame is kept."""

    def __init__(self, plain: nn.Module, stride: int) -> None:
        super().__init__()
        self._plain, self._stride = (
            [plain],
            stride,
        )  # in a list: not a submodule, the expert's parameters stay as they are

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        frames = x.shape[2]
        long = (frames - 1) * self._stride + 1
        shape = (*x.shape[:2], long, *x.shape[3:])
        cos, sin = self._plain[0](x.new_empty(1).expand(shape))
        return self._every(cos, long), self._every(sin, long)

    def _every(self, table: Tensor, long: int) -> Tensor:
        # [1, frames * patches, 1, D]
        by_frame = table.reshape(table.shape[0], long, -1, *table.shape[2:])
        return by_frame[:, :: self._stride].flatten(1, 2)


def describe(name: str, revision: str = "") -> Checkpoint:
    """What the checkpoint `name` ("tiny", a directory, or a hub id) is, from its small files.

    Raises UsageError when there is no such checkpoint and WanlabError when it is not whole or not one that can be
    loaded, saying what to do.
    """
    if name == "tiny":
        return _read(name, tiny_path(), True, "")
    path = Path(name).expanduser()
    if path.is_dir():
        return _read(name, path, True, "")
    if path.exists():
        raise UsageError(f"model {name} is a file", "name the checkpoint's directory")
    if not _HUB_ID.match(name) or name.startswith((".", "/", "~")):
        if "/" in name or "\\" in name:
            raise UsageError(f"there is no directory {name}", "check --model, or use --model tiny")
        raise UsageError(f"unknown model '{name}'", suggest(name, ["tiny"]) + ", a directory, or a hub id OWNER/NAME")
    return _read(name, Path(_snapshot(name, revision, ["*.json", "*/*.json"])), False, revision)


def load(
    name: str | Checkpoint,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    vae_dtype: torch.dtype | None = None,
    revision: str = "",
) -> Model:
    """Load a checkpoint's weights (safetensors only). Raises as `describe` does, and WanlabError for weights that do
    not fit their configuration."""
    found = name if isinstance(name, Checkpoint) else describe(name, revision)
    device = torch.device(device)
    path = found.path
    if not found.local:
        wanted = ["*.json", "*/*.json", "*/*.safetensors", "tokenizer/*"]
        path = Path(_snapshot(found.name, found.revision, wanted))
        _check_weights(path, found.configs)
    with _loading(found.name):
        tokenizer = AutoTokenizer.from_pretrained(path / "tokenizer", local_files_only=True)
        text_encoder, info = UMT5EncoderModel.from_pretrained(
            path / "text_encoder", dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
        _complete(path / "text_encoder", info)
        vae = _diffusers(AutoencoderKLWan, path, "vae", vae_dtype or dtype)
        experts = {
            expert: _diffusers(WanTransformer3DModel, path, component, dtype)
            for expert, component in found.experts.items()
        }
        for module in (text_encoder, vae, *experts.values()):
            module.eval().requires_grad_(False).to(device)
    return Model(found, tokenizer, text_encoder, vae, experts, device, dtype)


def parameters(found: Checkpoint) -> dict[str, int]:
    """Parameters by component. Raises WanlabError for a configuration that makes no model."""
    with _loading(found.name):
        return {name: _count(name, json.dumps(found.configs[name])) for name in found.configs}


@functools.lru_cache(maxsize=32)
def _count(component: str, config: str) -> int:
    """Counted on a model without memory."""
    plain = json.loads(config)
    with torch.device("meta"):
        if component == "text_encoder":
            module: nn.Module = UMT5EncoderModel(UMT5Config(**plain))
        else:
            module = (AutoencoderKLWan if component == "vae" else WanTransformer3DModel).from_config(plain)
    return sum(p.numel() for p in module.parameters())


def _diffusers(kind: Any, path: Path, component: str, dtype: torch.dtype) -> Any:
    module, info = kind.from_pretrained(
        path, subfolder=component, torch_dtype=dtype, use_safetensors=True, local_files_only=True,
        output_loading_info=True,
    )  # fmt: skip
    _complete(path / component, info)
    return module


def _complete(where: Path, info: Mapping[str, Any]) -> None:
    """Raise WanlabError when weights were missing (they would be random) or left over, or had another shape."""
    wrong = {
        "missing": sorted(info.get("missing_keys") or ()),
        "unexpected": sorted(info.get("unexpected_keys") or ()),
        "of another shape": sorted(str(k[0] if isinstance(k, tuple) else k) for k in info.get("mismatched_keys") or ()),
    }
    said = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for what, keys in wrong.items()
        if keys
    ]
    if said:
        raise WanlabError(
            f"the weights in {where} do not fit its config.json: {'; '.join(said)}", "get the checkpoint again"
        )


@contextlib.contextmanager
def _loading(name: str) -> Iterator[None]:
    """What the libraries raise for a checkpoint they cannot load, in one line; no progress bars of theirs."""
    noisy = [log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()]
    try:
        for log in noisy:
            log.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of the libraries to each other
            yield
    except (WanlabError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise WanlabError(f"cannot load {name}: {said}", "get the checkpoint again") from error
    finally:
        for log in noisy:
            log.enable_progress_bar()


def _read(name: str, path: Path, local: bool, revision: str) -> Checkpoint:
    if not (path / "model_index.json").is_file():
        if name == "tiny":
            raise UsageError("the embedded checkpoint is not installed", "install wanlab again")
        if any((path / there).exists() for there in _ORIGINAL):
            raise UsageError(f"{path} is in the original layout", "use the checkpoint whose name ends in -Diffusers")
        raise UsageError(f"{path} holds no checkpoint: no model_index.json", "name a directory in diffusers' layout")
    index = _json(path / "model_index.json")
    kind = index.get("_class_name")
    if kind != "WanPipeline":
        raise UsageError(f"{path} is a {kind}, not a Wan text-to-video checkpoint", "use a T2V checkpoint")
    if index.get("expand_timesteps"):
        raise UsageError(f"{path} has per-token timesteps (TI2V), which are not supported", "use a T2V checkpoint")
    boundary = index.get("boundary_ratio")
    names = ["text_encoder", "vae", "transformer"] + (["transformer_2"] if boundary is not None else [])
    needed = [
        "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json", *(f"{n}/config.json" for n in names),
    ]  # fmt: skip
    _there(path, needed)
    configs = {n: _json(path / n / "config.json") for n in names}
    if local:
        _check_weights(path, configs)
    return Checkpoint(
        name=name, path=path, local=local, revision=revision, configs=configs,
        scheduler=_json(path / "scheduler" / "scheduler_config.json"), boundary=boundary,
    )  # fmt: skip


def _there(path: Path, needed: list[str]) -> None:
    missing = [n for n in needed if not (path / n).is_file()]
    if missing:
        raise UsageError(
            f"{path} is only part of a checkpoint: {', '.join(missing)} missing", "get the checkpoint again"
        )


def _check_weights(path: Path, components: Mapping[str, Any]) -> None:
    """Raise WanlabError unless each component's safetensors are all there and as long as they say."""
    missing: list[str] = []
    for component in components:
        stem, where = _WEIGHTS[component], path / component
        index = where / f"{stem}.safetensors.index.json"
        files = sorted(set(_json(index).get("weight_map", {}).values())) if index.is_file() else [f"{stem}.safetensors"]
        if any("/" in f or "\\" in f for f in files):
            raise UsageError(f"{index} names files elsewhere", "get the checkpoint again")
        absent = [f for f in files if not (where / f).is_file()]
        pickles = sorted(f.name for f in where.iterdir() if f.suffix in _PICKLES)
        if absent and pickles:
            raise UsageError(
                f"{where / pickles[0]} is a pickle, which can run code when it is loaded",
                f"convert it to {files[0]}, or get the checkpoint's safetensors",
            )
        missing += [f"{component}/{f}" for f in absent]
        for name in set(files) - set(absent):
            _check_safetensors(where / name)
    _there(path, missing)


def _check_safetensors(path: Path) -> None:
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if not 2 <= length <= min(100 << 20, size - 8):
                raise ValueError("its header is no safetensors header")
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        if size != 8 + length + max(ends, default=0):
            raise ValueError(f"it has {size} bytes, its header says {8 + length + max(ends, default=0)}")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise UsageError(f"{path} is damaged: {error}", "get the file again") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(path.read_bytes())
        if not isinstance(plain, dict):
            raise ValueError("no JSON object")
        return plain
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read {path}: {error}", "get the checkpoint again") from error


def _snapshot(name: str, revision: str, patterns: list[str]) -> str:
    """The hub's files, downloaded unless they are in its cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return str(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UsageError(f"the hub has no model {name} {revision}".rstrip(), "check its name, or log in") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        said = " ".join(str(error).split())[:160]
        raise WanlabError(
            f"cannot get {name} from the hub: {said}", "check the network, or name a directory"
        ) from error
