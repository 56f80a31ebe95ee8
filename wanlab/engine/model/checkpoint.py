"""Checkpoints: found, and judged from their small files; no weights are read.

Two layouts are read. diffusers': `model_index.json`, and a directory each for tokenizer, text_encoder, vae, scheduler,
transformer and, with two experts, transformer_2. And the original one (original.py), whose tensors are given their
names in diffusers while they load.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wanlab.engine.model import config as configs_of
from wanlab.engine.model import names, original, weights
from wanlab.engine.model.config import Config, TransformerConfig, VaeConfig
from wanlab.engine.model.modules import KINDS, TIED, expected
from wanlab.errors import UsageError, WanlabError
from wanlab.files import parse_json, read_bytes

_WEIGHTS = {
    "text_encoder": "model",
    "vae": "diffusion_pytorch_model",
    "transformer": "diffusion_pytorch_model",
    "transformer_2": "diffusion_pytorch_model",
}
_MAX_JSON = 2**24  # bytes of a configuration, or of an index of weights
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_ORIGINAL = (original.TEXT_ENCODER, *original.VAES)  # the pickles that belong to a checkpoint


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint's small files say; no weights are read."""

    name: str
    path: Path
    """Where its configurations lie, and its weights unless it is on the hub."""
    local: bool
    revision: str
    configs: Mapping[str, Config] = field(repr=False)
    """By component."""
    scheduler: Mapping[str, Any] = field(repr=False)
    """The scheduler's configuration."""
    boundary: float | None
    """Noise level from which upwards the high-noise expert works: .875 in the A14B, None with one expert."""
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

    @property
    def transformer(self) -> TransformerConfig:
        """The first expert's configuration; the other's has the same sizes of latents and text."""
        return self.expert_config("high" if self.boundary is not None else "single")

    def expert_config(self, expert: str) -> TransformerConfig:
        """The configuration of the expert "high", "low" or "single"."""
        config = self.configs[self.experts[expert]]
        assert isinstance(config, TransformerConfig)
        return config

    @property
    def vae(self) -> VaeConfig:
        """The autoencoder's configuration."""
        config = self.configs["vae"]
        assert isinstance(config, VaeConfig)
        return config

    def latent_shape(self, frames: int, width: int, height: int) -> tuple[int, int, int, int]:
        """C, F, H, W of a clip. Raises UsageError when the model cannot make that size."""
        vae, transformer = self.vae, self.transformer
        temporal, spatial, patch = vae.scale_factor_temporal, vae.scale_factor_spatial, transformer.patch_size
        for name, pixels, cells in (("width", width, patch[2]), ("height", height, patch[1])):
            step = spatial * cells
            if pixels % step:
                low = max(step, pixels // step * step)
                raise UsageError(
                    f"{name} {pixels} is not a multiple of {step}, as this model needs", f"use {low} or {low + step}"
                )
        positions = transformer.rope_max_seq_len
        shape = (transformer.in_channels, (frames - 1) // temporal + 1, height // spatial, width // spatial)
        if shape[1] > positions or max(shape[2] // patch[1], shape[3] // patch[2]) > positions:
            raise UsageError(
                f"{frames} frames of {width}x{height} exceed the model's {positions} positions", "use less"
            )
        return shape


def describe(name: str, revision: str = "") -> Checkpoint:
    """What the checkpoint `name` ("tiny", a directory, or a hub id) is, from its small files.

    Raises UsageError when there is no such checkpoint and WanlabError when it is not whole or not one that can be
    loaded, saying what to do.
    """
    path = names.directory(name)
    if path is not None:
        return _read(name, path, True, "")
    return _read(name, Path(snapshot(name, revision, ["*.json", "*/*.json"])), False, revision)


def parameters(found: Checkpoint) -> dict[str, int]:
    """Parameters by component. Raises WanlabError for a configuration that makes no model."""
    return {
        name: sum(math.prod(shape) for shape in expected(found.name, name, config).values())
        for name, config in found.configs.items()
    }


def around_blocks(found: Checkpoint) -> int:
    """Parameters of all experts that are in none of their blocks."""
    return sum(
        math.prod(shape)
        for component in found.experts.values()
        for name, shape in expected(found.name, component, found.configs[component]).items()
        if not name.startswith("blocks.")
    )


def places(found: Checkpoint, component: str, held: Mapping[str, weights.Head]) -> dict[str, str]:
    """Where each tensor of the files goes: the parameter's name by the tensor's, without those that have no place."""
    known = original.names(component, held) if found.layout == "original" else {name: name for name in held}
    known = {old: new if TIED.get(new) in held else TIED.get(new, new) for old, new in known.items()}
    shapes = expected(found.name, component, found.configs[component])
    return {old: new for old, new in known.items() if new in shapes}


def fit(found: Checkpoint, held: Mapping[str, Mapping[str, weights.Head]]) -> None:
    """Raise WanlabError unless the files hold every parameter, in its shape, and nothing else. It names all that is
    wrong in every component: a missing tensor as the module calls it, others as their file does."""
    wrong: dict[str, list[str]] = {"missing": [], "unexpected": [], "of another shape": [], "not in floating point": []}
    for component, heads in held.items():
        shapes = expected(found.name, component, found.configs[component])
        to = places(found, component, heads)
        times = Counter(to.values())
        wrong["missing"] += [f"{component}: {name}" for name in shapes if name not in times]
        for name, head in heads.items():
            said = f"{component}: {weights.shown(name)}"
            if name not in to:
                if not _is_surplus(component, name):
                    wrong["unexpected"].append(said)
            elif times[to[name]] > 1:
                wrong["unexpected"].append(f"{said}, twice")
            elif head.shape != shapes[to[name]]:
                wrong["of another shape"].append(f"{said} {_by(head.shape)}, not {_by(shapes[to[name]])}")
            elif not head.is_float:
                wrong["not in floating point"].append(f"{said} {head.dtype}")
    listed = [f"{len(them)} {what} ({_first(them)})" for what, them in wrong.items() if them]
    if listed:
        raise WanlabError(
            f"the weights in {found.path} do not fit its configuration: {'; '.join(listed)}", "get the checkpoint again"
        )


def _is_surplus(component: str, name: str) -> bool:
    """Whether the libraries leave this tensor of their own checkpoints aside: a second name, or another model's."""
    kind = KINDS[component.removesuffix("_2")]
    ignored = getattr(kind, "_keys_to_ignore_on_load_unexpected", None) or ()
    return (component == "text_encoder" and name in TIED) or any(re.search(pattern, name) for pattern in ignored)


def _first(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "one number"


def _read(name: str, path: Path, local: bool, revision: str) -> Checkpoint:
    if (path / "model_index.json").is_file():
        found = _read_diffusers(name, path, local, revision)
    elif name == "tiny":
        raise UsageError("the embedded checkpoint is not installed", "install wanlab again")
    elif original.is_original(path):
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
    if wrong := configs_of.problems(found.configs, found.scheduler, found.boundary, found.expand_timesteps):
        listed = configs_of.shown_problems(wrong)
        raise UsageError(f"{found.path} is no Wan text-to-video checkpoint: {listed}", "use a T2V checkpoint")
    if "auto_map" in _json(path / found.tokenizer / "tokenizer_config.json"):
        raise UsageError(f"{path}: the tokenizer is code of its own, which is not run", "get Wan's own checkpoint")
    if local:
        fit(found, {component: weights.heads(files) for component, files in found.files.items()})
    return found


def _read_diffusers(name: str, path: Path, local: bool, revision: str) -> Checkpoint:
    index = _json(path / "model_index.json")
    kind = index.get("_class_name")
    if kind != "WanPipeline":
        raise UsageError(
            f"{path} is a {weights.shown(str(kind))}, not a Wan text-to-video checkpoint", "use a T2V checkpoint"
        )
    boundary = index.get("boundary_ratio")
    components = ["text_encoder", "vae", "transformer"] + (["transformer_2"] if boundary is not None else [])
    needed = [
        "tokenizer/tokenizer_config.json",
        "scheduler/scheduler_config.json",
        *(f"{n}/config.json" for n in components),
    ]
    _there(path, needed)
    configs = {n: configs_of.read(n, _json(path / n / "config.json")) for n in components}
    return Checkpoint(
        name=name,
        path=path,
        local=local,
        revision=revision,
        configs=configs,
        scheduler=_json(path / "scheduler" / "scheduler_config.json"),
        boundary=boundary,
        expand_timesteps=index.get("expand_timesteps") or False,
        files=weight_files(path, configs) if local else {},
    )


def _read_original(name: str, path: Path) -> Checkpoint:
    parts = original.find(path)
    plain = {component: _json(folder / "config.json") for component, folder in parts.transformers.items()}
    files = {"text_encoder": (parts.text_encoder,), "vae": (parts.vae,)} | {
        component: _shards(folder, "diffusion_pytorch_model") for component, folder in parts.transformers.items()
    }
    held = {component: weights.heads(of_it) for component, of_it in files.items()}
    configs = {
        "text_encoder": original.text_encoder_config(held["text_encoder"], parts.text_encoder),
        "vae": original.vae_config(held["vae"], parts.vae),
    } | {
        component: original.transformer_config(plain[component], held[component], folder)
        for component, folder in parts.transformers.items()
    }
    kinds = {str(p["model_type"]) for p in plain.values()}
    return Checkpoint(
        name=name,
        path=path,
        local=True,
        revision="",
        layout="original",
        files=files,
        configs={n: configs_of.read(n, plainly) for n, plainly in configs.items()},
        scheduler=original.scheduler_config(kinds, len(plain)),
        boundary=original.BOUNDARY if len(plain) == 2 else None,
        expand_timesteps="ti2v" in kinds,
        tokenizer=parts.tokenizer.relative_to(path),
    )


def _there(path: Path, needed: list[str]) -> None:
    missing = [n for n in needed if not (path / n).is_file()]
    if missing:
        raise UsageError(
            f"{path} is only part of a checkpoint: {', '.join(missing)} missing", "get the checkpoint again"
        )


def weight_files(path: Path, components: Mapping[str, Any]) -> dict[str, tuple[Path, ...]]:
    """Each component's safetensors in diffusers' layout. Raises UsageError when some are missing, or are pickles."""
    return {component: _shards(path / component, _WEIGHTS[component]) for component in components}


def _shards(where: Path, stem: str) -> tuple[Path, ...]:
    """The safetensors of one module. Raises UsageError when some are missing, or are pickles."""
    index = where / f"{stem}.safetensors.index.json"
    files = [f"{stem}.safetensors"]
    if index.is_file():
        listed = _json(index).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(n, str) for n in listed.values()):
            raise UsageError(f"cannot read {index}: it has no weight_map", "get the checkpoint again")
        files = sorted(set(listed.values()))
    if any("/" in n or "\\" in n or not n.endswith(".safetensors") for n in files):
        raise UsageError(f"{index} names files elsewhere", "get the checkpoint again")
    absent = [n for n in files if not (where / n).is_file()]
    if not where.is_dir():
        raise UsageError(f"{where} is no directory", "get the checkpoint again")
    pickles = sorted(f.name for f in where.iterdir() if f.suffix in _PICKLES and f.name not in _ORIGINAL)
    if absent and pickles:
        raise UsageError(
            f"{where / pickles[0]} is a pickle, which can run code when it is loaded",
            f"convert it to {files[0]}, or get the checkpoint's safetensors",
        )
    _there(where, files)
    return tuple(where / n for n in files)


def _json(path: Path) -> dict[str, Any]:
    try:
        plain = parse_json(read_bytes(path, _MAX_JSON).decode("utf-8"))
        if not isinstance(plain, dict):
            raise ValueError("no JSON object")
        return plain
    except WanlabError as error:
        raise UsageError(error.message, "get the checkpoint again") from error
    except ValueError as error:
        raise UsageError(f"cannot read {path}: {error}", "get the checkpoint again") from error


def snapshot(name: str, revision: str, patterns: list[str]) -> str:
    """The hub's files, downloaded unless they are in its cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return str(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UsageError(f"the hub has no model {name} {revision}".rstrip(), "check its name, or log in") from error
    except Exception as error:  # of the hub's library, of the one below it, of a proxy's scheme, of the disk
        said = " ".join(str(error).split())[:160]
        raise WanlabError(
            f"cannot get {name} from the hub: {said}", "check the network and proxy, or name a directory"
        ) from error
