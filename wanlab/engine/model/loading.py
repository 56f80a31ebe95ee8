"""Checkpoints: find them, judge them from their small files, load them, encode prompts, evaluate an expert.

With `solvers` and `convert` the only place that knows diffusers and transformers. Two layouts are read. diffusers':
`model_index.json`, and a directory each for tokenizer, text_encoder, vae, scheduler, transformer and, with two experts,
transformer_2. And the original one (convert.py), whose tensors are given their names in diffusers while they load.

Both load alike: a module is made without memory, its tensors are compared with what the files hold, by name and shape,
and then read one at a time to the device, in the dtype that is asked for. So loading needs the memory of the result
and of one tensor; a tensor that stays on the CPU in its own dtype stays in the mapped file, as the libraries leave it
(where its bytes lie decides which kernel multiplies by it, and so the last bit of the result).
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel
from transformers.utils import logging as transformers_logging

from wanlab.embedded import tiny_path
from wanlab.engine.model import kernels as fast
from wanlab.engine.model import original as convert
from wanlab.engine.model import vae as wan_vae
from wanlab.engine.model import weights
from wanlab.engine.model.placement import Placement
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
_KINDS = {"text_encoder": UMT5EncoderModel, "vae": AutoencoderKLWan, "transformer": WanTransformer3DModel}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_ORIGINAL = (convert.TEXT_ENCODER, *convert.VAES)  # the pickles that belong to a checkpoint
_TIED = {"encoder.embed_tokens.weight": "shared.weight"}  # UMT5's word embeddings have two names
# The least and most that a configuration may say: generous, and small enough that no memory is lost to a false one.
_LIMITS = {
    "transformer": {
        "num_attention_heads": (1, 256), "attention_head_dim": (2, 512), "in_channels": (1, 512),
        "out_channels": (1, 512), "text_dim": (1, 2**16), "freq_dim": (2, 2**16), "ffn_dim": (1, 2**18),
        "num_layers": (1, 256), "rope_max_seq_len": (1, 2**16),
    },
    "vae": {
        "base_dim": (1, 4096), "decoder_base_dim": (1, 4096), "z_dim": (1, 512), "num_res_blocks": (1, 16),
        "in_channels": (1, 512), "out_channels": (1, 512), "patch_size": (1, 16), "scale_factor_spatial": (1, 256),
        "scale_factor_temporal": (1, 64),
    },
    "text_encoder": {
        "vocab_size": (1, 2**21), "d_model": (1, 2**16), "d_kv": (1, 1024), "num_heads": (1, 256), "d_ff": (1, 2**18),
        "num_layers": (1, 256), "relative_attention_num_buckets": (2, 4096),
        "relative_attention_max_distance": (2, 2**16),
    },
}  # fmt: skip
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
    layout: str = "diffusers"
    """"diffusers" or "original"."""
    expand_timesteps: bool = False
    """Whether the transformer is given a timestep for each token (TI2V) instead of one for the sample."""
    tokenizer: Path = Path("tokenizer")
    """The tokenizer's directory, within `path`."""
    files: Mapping[str, tuple[Path, ...]] = field(default_factory=dict, repr=False)
    """The files of weights by component; none of a checkpoint on the hub."""

    @property
    def fps(self) -> int:
        """Frames a second that the model was trained on (`sample_fps` in the official wan/configs)."""
        return 24 if self.expand_timesteps else 16

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
    memory: str = "resident"
    """The plan by which the parts are on the device (placement.py)."""
    short_text: fast.ShortText | None = None
    """The experts' cross-attention, where it is given prompts without their padding."""

    def __post_init__(self) -> None:
        parts = {"text_encoder": self.text_encoder, **self.experts, "vae": self.vae}
        self._placement = Placement(self.memory, self.device, parts, self.experts)

    def ready(self, part: str) -> Any:
        """The text_encoder, vae or expert called `part`, on the device until another is asked for."""
        return self._placement.ready(part)

    @torch.no_grad()
    def encode(self, prompt: str) -> Tensor:
        """Prompt embeddings [1,512,D]: cleaned, tokenized and zero after the prompt's end as WanPipeline has them."""
        given = self.tokenizer(
            [prompt_clean(prompt)], padding="max_length", max_length=TEXT_TOKENS, truncation=True,
            add_special_tokens=True, return_attention_mask=True, return_tensors="pt",
        )  # fmt: skip
        ids, mask = given.input_ids.to(self.device), given.attention_mask.to(self.device)
        hidden = self.ready("text_encoder")(ids, mask).last_hidden_state
        embeds: Tensor = hidden.masked_fill(mask.unsqueeze(-1) == 0, 0).to(self.dtype)
        return embeds

    def tokens_in(self, prompt: str) -> int:
        """Tokens of a prompt, its end mark included, before it is cut to 512."""
        return len(self.tokenizer(prompt_clean(prompt)).input_ids)


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
    precision: str = "reference",
    memory: str = "resident",
) -> Model:
    """Load a checkpoint's weights to compute by `precision` (fast.py), placed by the plan `memory` (placement.py).

    Raises as `describe` does, and WanlabError for weights that do not fit their configuration.
    """
    found = fetched(name if isinstance(name, Checkpoint) else describe(name, revision))
    device = torch.device(device)
    with _loading(found.name):
        tokenizer = AutoTokenizer.from_pretrained(
            found.path / found.tokenizer, local_files_only=True, trust_remote_code=False
        )
        known = _expected(found.name, "text_encoder", found.configs["text_encoder"])["shared.weight"][0]
        if len(tokenizer) > known:
            raise WanlabError(
                f"{found.path}: the tokenizer has {len(tokenizer)} words, the text encoder {known}",
                "get the checkpoint again",
            )
    place = device if memory == "resident" else torch.device("cpu")
    text_encoder = load_component(found, "text_encoder", place, dtype)
    vae = load_component(found, "vae", place, vae_dtype or dtype)
    if device.type == "cpu" and vae.dtype != torch.float32:
        wan_vae.quicken(vae)
    # On a GPU the padding's share is small, and a bias keeps the fastest attention away.
    text = fast.ShortText() if precision != "reference" and device.type == "cpu" else None
    experts = {}
    for expert, component in found.experts.items():
        experts[expert] = load_component(found, component, place, dtype)
        if precision != "reference":
            fast.optimize(experts[expert], precision, compiled=device.type == "cuda", text=text)
    return Model(found, tokenizer, text_encoder, vae, experts, device, dtype, memory, text)


def fetched(found: Checkpoint) -> Checkpoint:
    """A checkpoint of the hub with its weights here and judged; a local one as it is. Raises as `load` does."""
    if found.files:
        return found
    path = Path(_snapshot(found.name, found.revision, ["*.json", "*/*.json", "*/*.safetensors", "tokenizer/*"]))
    found = replace(found, path=path, files=_weight_files(path, found.configs))
    _fit(found, {component: weights.heads(files) for component, files in found.files.items()})
    return found


def load_component(found: Checkpoint, component: str, device: torch.device | str, dtype: torch.dtype) -> Any:
    """One component (a key of `found.configs`) of a fetched checkpoint on the device, ready to be evaluated.

    Parameters that the libraries keep in float32 stay so. Raises WanlabError for weights that do not fit.
    """
    with _loading(found.name):
        module = _blank(component, found.configs[component])
        exact = _kept_in_float32(module, dtype)
        places = _places(found, component, weights.heads(found.files[component]))
        for name, tensor in weights.stream(found.files[component]):
            if name not in places:
                continue
            place = places[name]
            kept = torch.float32 if exact & set(place.split(".")) else dtype
            parameter = nn.Parameter(tensor.to(device, kept), requires_grad=False)
            for known_as in (place, *(alias for alias, real in _TIED.items() if real == place)):
                owner, _, leaf = known_as.rpartition(".")
                setattr(module.get_submodule(owner), leaf, parameter)
        lacking = [name for name, p in module.named_parameters() if p.is_meta]
        if lacking:
            raise WanlabError(f"{found.name}: no weights for {', '.join(lacking[:8])}", "get the checkpoint again")
        return module.eval().requires_grad_(False).to(device)


def parameters(found: Checkpoint) -> dict[str, int]:
    """Parameters by component. Raises WanlabError for a configuration that makes no model."""
    return {
        name: sum(math.prod(shape) for shape in _expected(found.name, name, config).values())
        for name, config in found.configs.items()
    }


def _blank(component: str, config: Mapping[str, Any]) -> nn.Module:
    """A component with parameters that have a shape and no memory."""
    with init_empty_weights(include_buffers=False):
        if component == "text_encoder":
            encoder: nn.Module = UMT5EncoderModel(UMT5Config(**config))
            return encoder
        made: nn.Module = _KINDS[component.removesuffix("_2")].from_config(dict(config))
        return made


def _expected(name: str, component: str, config: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
    """The shape of every parameter, by name. Raises WanlabError for a configuration that makes no model."""
    with _loading(name):
        return _shapes(component.removesuffix("_2"), json.dumps(config))


@functools.lru_cache(maxsize=32)
def _shapes(component: str, config: str) -> dict[str, tuple[int, ...]]:
    state = _blank(component, json.loads(config)).state_dict()
    return {name: tuple(value.shape) for name, value in state.items() if name not in _TIED}


def _kept_in_float32(module: nn.Module, dtype: torch.dtype) -> set[str]:
    """The parts of names whose parameters stay in float32, as the libraries' own loading has them."""
    if isinstance(module, UMT5EncoderModel) and dtype != torch.float16:
        return set()  # transformers means these for float16 alone
    return set(getattr(module, "_keep_in_fp32_modules", None) or ())


def _places(found: Checkpoint, component: str, held: Mapping[str, weights.Head]) -> dict[str, str]:
    """Where each tensor of the files goes: the parameter's name by the tensor's, without those that have no place."""
    names = convert.names(component, held) if found.layout == "original" else {name: name for name in held}
    names = {old: new if _TIED.get(new) in held else _TIED.get(new, new) for old, new in names.items()}
    expected = _expected(found.name, component, found.configs[component])
    return {old: new for old, new in names.items() if new in expected}


def _fit(found: Checkpoint, held: Mapping[str, Mapping[str, weights.Head]]) -> None:
    """Raise WanlabError unless the files hold every parameter, in its shape, and nothing else. It names all that is
    wrong in every component: a missing tensor as the module calls it, others as their file does."""
    wrong: dict[str, list[str]] = {"missing": [], "unexpected": [], "of another shape": [], "not in floating point": []}
    for component, heads in held.items():
        expected = _expected(found.name, component, found.configs[component])
        places = _places(found, component, heads)
        times = Counter(places.values())
        wrong["missing"] += [f"{component}: {name}" for name in expected if name not in times]
        for name, head in heads.items():
            said = f"{component}: {weights.shown(name)}"
            if name not in places:
                if not _is_surplus(component, name):
                    wrong["unexpected"].append(said)
            elif times[places[name]] > 1:
                wrong["unexpected"].append(f"{said}, twice")
            elif head.shape != expected[places[name]]:
                wrong["of another shape"].append(f"{said} {_by(head.shape)}, not {_by(expected[places[name]])}")
            elif not head.is_float:
                wrong["not in floating point"].append(f"{said} {head.dtype}")
    listed = [f"{len(them)} {what} ({_first(them)})" for what, them in wrong.items() if them]
    if listed:
        raise WanlabError(
            f"the weights in {found.path} do not fit its configuration: {'; '.join(listed)}", "get the checkpoint again"
        )


def _is_surplus(component: str, name: str) -> bool:
    """Whether the libraries leave this tensor of their own checkpoints aside: a second name, or another model's."""
    kind = _KINDS[component.removesuffix("_2")]
    ignored = getattr(kind, "_keys_to_ignore_on_load_unexpected", None) or ()
    return (component == "text_encoder" and name in _TIED) or any(re.search(pattern, name) for pattern in ignored)


def _first(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "one number"


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
    if (path / "model_index.json").is_file():
        found = _read_diffusers(name, path, local, revision)
    elif name == "tiny":
        raise UsageError("the embedded checkpoint is not installed", "install wanlab again")
    elif convert.is_original(path):
        if not local:
            raise UsageError(
                f"{name} is in the original layout on the hub",
                f"use {name}-Diffusers, or download it and name the directory",
            )
        found = _read_original(name, path)
    else:
        raise UsageError(
            f"{path} holds no checkpoint: no model_index.json",
            "name a directory in diffusers' layout or in the original one",
        )
    _check_configs(found)
    if "auto_map" in _json(path / found.tokenizer / "tokenizer_config.json"):
        raise UsageError(f"{path}: the tokenizer is code of its own, which is not run", "get Wan's own checkpoint")
    if local:
        _fit(found, {component: weights.heads(files) for component, files in found.files.items()})
    return found


def _read_diffusers(name: str, path: Path, local: bool, revision: str) -> Checkpoint:
    index = _json(path / "model_index.json")
    kind = index.get("_class_name")
    if kind != "WanPipeline":
        raise UsageError(f"{path} is a {kind}, not a Wan text-to-video checkpoint", "use a T2V checkpoint")
    boundary = index.get("boundary_ratio")
    names = ["text_encoder", "vae", "transformer"] + (["transformer_2"] if boundary is not None else [])
    needed = [
        "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json", *(f"{n}/config.json" for n in names),
    ]  # fmt: skip
    _there(path, needed)
    configs = {n: _json(path / n / "config.json") for n in names}
    return Checkpoint(
        name=name, path=path, local=local, revision=revision, configs=configs,
        scheduler=_json(path / "scheduler" / "scheduler_config.json"), boundary=boundary,
        expand_timesteps=bool(index.get("expand_timesteps")), files=_weight_files(path, configs) if local else {},
    )  # fmt: skip


def _read_original(name: str, path: Path) -> Checkpoint:
    parts = convert.find(path)
    plain = {component: _json(folder / "config.json") for component, folder in parts.transformers.items()}
    files = {"text_encoder": (parts.text_encoder,), "vae": (parts.vae,)} | {
        component: _shards(folder, "diffusion_pytorch_model") for component, folder in parts.transformers.items()
    }
    held = {component: weights.heads(of_it) for component, of_it in files.items()}
    configs = {
        "text_encoder": convert.text_encoder_config(held["text_encoder"], parts.text_encoder),
        "vae": convert.vae_config(held["vae"], parts.vae),
    } | {
        component: convert.transformer_config(plain[component], held[component], folder)
        for component, folder in parts.transformers.items()
    }
    kinds = {str(p["model_type"]) for p in plain.values()}
    return Checkpoint(
        name=name, path=path, local=True, revision="", configs=configs, layout="original", files=files,
        scheduler=convert.scheduler_config(kinds, len(plain)), boundary=convert.BOUNDARY if len(plain) == 2 else None,
        expand_timesteps="ti2v" in kinds, tokenizer=parts.tokenizer.relative_to(path),
    )  # fmt: skip


def _check_configs(found: Checkpoint) -> None:
    """Raise UsageError for configurations that no text-to-video model has, or that do not go together: before modules
    are made of them, and before the sizes in them are trusted."""
    wrong = [
        f"{component}/{key} is {value!r}, not {low} to {high}"
        for component, config in found.configs.items()
        for key, (low, high) in _LIMITS[component.removesuffix("_2")].items()
        if (value := config.get(key)) is not None and (type(value) is not int or not low <= value <= high)
    ]
    text, vae = found.configs["text_encoder"], found.configs["vae"]
    if not wrong:
        width, latents = text.get("d_model", 512), vae.get("z_dim") or 16
        for component in found.experts.values():
            config = found.configs[component]
            patch, ins = config.get("patch_size") or (1, 2, 2), config.get("in_channels") or 16
            outs = config.get("out_channels") or ins
            checks = {
                f"patches are {patch!r}, not 1x2x2": tuple(patch) != (1, 2, 2) if isinstance(patch, list | tuple) else True,
                f"heads of {config.get('attention_head_dim')} are not even": (config.get("attention_head_dim") or 128) % 2,
                "it takes images too": any(config.get(k) for k in ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len")),
                f"{ins} channels in, {outs} out, {latents} in the VAE": not ins == outs == latents,
                f"it reads texts of width {config.get('text_dim')}, the text encoder writes {width}": (config.get("text_dim") or 4096) != width,
            }  # fmt: skip
            wrong += [f"{component}: {said}" for said, holds in checks.items() if holds]
        wrong += [f"vae: {said}" for said in _wrong_in_vae(vae, latents)]
    for component, config in found.configs.items():
        epsilon = config.get("layer_norm_epsilon" if component == "text_encoder" else "eps")
        if epsilon is not None and not _is_number(epsilon, 0, 0.1):
            wrong.append(f"{component}: epsilon {epsilon!r}, not 0 to .1")
    trained = found.scheduler.get("num_train_timesteps", TRAIN_TIMESTEPS)
    if trained != TRAIN_TIMESTEPS:
        wrong.append(f"scheduler: {trained!r} timesteps, not {TRAIN_TIMESTEPS}")
    shift = found.scheduler.get("flow_shift", found.scheduler.get("shift"))
    if shift is not None and not _is_number(shift, 0.01, 1000):
        wrong.append(f"scheduler: flow shift {shift!r}, not .01 to 1000")
    if found.boundary is not None and not _is_number(found.boundary, 0, 1):
        wrong.append(f"boundary_ratio {found.boundary!r}, not 0 to 1")
    if wrong:
        listed = weights.shown(_first(wrong), 800)
        raise UsageError(f"{found.path} is no Wan text-to-video checkpoint: {listed}", "use a T2V checkpoint")


def _wrong_in_vae(vae: Mapping[str, Any], channels: int) -> list[str]:
    """What does not go together in an autoencoder's configuration."""
    wrong = []
    levels, strides = vae.get("dim_mult") or [1, 2, 4, 4], vae.get("temperal_downsample") or [False, True, True]
    if not isinstance(levels, list) or not all(type(n) is int and 0 < n <= 64 for n in levels) or len(levels) > 8:
        return [f"dim_mult is {levels!r}"]
    if not isinstance(strides, list) or len(strides) != len(levels) - 1 or not all(type(b) is bool for b in strides):
        return [f"temperal_downsample is {strides!r} for {len(levels)} levels"]
    spatial, temporal = 2 ** len(strides) * (vae.get("patch_size") or 1), 2 ** sum(strides)
    said = vae.get("scale_factor_spatial") or 8, vae.get("scale_factor_temporal") or 4
    if said != (spatial, temporal):
        wrong.append(f"its strides are {spatial} and {temporal}, it says {said[0]} and {said[1]}")
    for name, low in (("latents_mean", -1000.0), ("latents_std", 1e-6)):
        values = vae.get(name)
        if values is None:
            if channels != 16:
                wrong.append(f"no {name}")
        elif (
            not isinstance(values, list)
            or len(values) != channels
            or not all(_is_number(value, low, 1000) for value in values)
        ):
            wrong.append(f"{name} is not {channels} numbers")
    return wrong


def _is_number(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _there(path: Path, needed: list[str]) -> None:
    missing = [n for n in needed if not (path / n).is_file()]
    if missing:
        raise UsageError(
            f"{path} is only part of a checkpoint: {', '.join(missing)} missing", "get the checkpoint again"
        )


def _weight_files(path: Path, components: Mapping[str, Any]) -> dict[str, tuple[Path, ...]]:
    """Each component's safetensors in diffusers' layout. Raises UsageError when some are missing, or are pickles."""
    return {component: _shards(path / component, _WEIGHTS[component]) for component in components}


def _shards(where: Path, stem: str) -> tuple[Path, ...]:
    """The safetensors of one module. Raises UsageError when some are missing, or are pickles."""
    index = where / f"{stem}.safetensors.index.json"
    names = [f"{stem}.safetensors"]
    if index.is_file():
        listed = _json(index).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(n, str) for n in listed.values()):
            raise UsageError(f"cannot read {index}: it has no weight_map", "get the checkpoint again")
        names = sorted(set(listed.values()))
    if any("/" in n or "\\" in n or not n.endswith(".safetensors") for n in names):
        raise UsageError(f"{index} names files elsewhere", "get the checkpoint again")
    absent = [n for n in names if not (where / n).is_file()]
    pickles = sorted(f.name for f in where.iterdir() if f.suffix in _PICKLES and f.name not in _ORIGINAL)
    if absent and pickles:
        raise UsageError(
            f"{where / pickles[0]} is a pickle, which can run code when it is loaded",
            f"convert it to {names[0]}, or get the checkpoint's safetensors",
        )
    _there(where, names)
    return tuple(where / n for n in names)


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
