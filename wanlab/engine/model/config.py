"""A checkpoint's configurations: frozen, with the libraries' defaults written once, and judged before anything is made
of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from wanlab.engine.model import weights

TEXT_TOKENS = 512  # the prompt's embeddings are cut or zero-padded to this length
TRAIN_TIMESTEPS = 1000
# The least and most that a configuration may say: generous, and small enough that no memory is lost to a false one.
LIMITS = {
    "transformer": {
        "num_attention_heads": (1, 256),
        "attention_head_dim": (2, 512),
        "in_channels": (1, 512),
        "out_channels": (1, 512),
        "text_dim": (1, 2**16),
        "freq_dim": (2, 2**16),
        "ffn_dim": (1, 2**18),
        "num_layers": (1, 256),
        "rope_max_seq_len": (1, 2**16),
    },
    "vae": {
        "base_dim": (1, 4096),
        "decoder_base_dim": (1, 4096),
        "z_dim": (1, 512),
        "num_res_blocks": (1, 16),
        "in_channels": (1, 512),
        "out_channels": (1, 512),
        "patch_size": (1, 16),
        "scale_factor_spatial": (1, 256),
        "scale_factor_temporal": (1, 64),
    },
    "text_encoder": {
        "vocab_size": (1, 2**21),
        "d_model": (1, 2**16),
        "d_kv": (1, 1024),
        "num_heads": (1, 256),
        "d_ff": (1, 2**18),
        "num_layers": (1, 256),
        "relative_attention_num_buckets": (2, 4096),
        "relative_attention_max_distance": (2, 2**16),
    },
}
# What a scheduler's configuration may say, where the libraries would fail late or go on with something else.
_SWITCHES = (
    "thresholding",
    "predict_x0",
    "lower_order_final",
    "euler_at_final",
    "rescale_betas_zero_snr",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
)
_CHOICES: dict[str, tuple[object, ...]] = {
    "solver_order": (1, 2, 3),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "time_shift_type": ("exponential", "linear"),
    "trained_betas": (None,),
    "solver_p": (None,),
    "use_dynamic_shifting": (False, None),
}
_RANGES = {
    "beta_start": (0.0, 1.0),
    "beta_end": (0.0, 1.0),
    "dynamic_thresholding_ratio": (0.0, 1.0),
    "sample_max_value": (0.0, 1e6),
    "steps_offset": (0, 1000),
}
_RANGES_OR_NONE = {"shift_terminal": (0.0, 0.999), "sigma_min": (0.0, 1.0), "sigma_max": (0.0, 1.0)}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a config.json says; what it leaves out, or leaves empty, is the default."""

    raw: Mapping[str, Any] = field(repr=False)
    """The file's own words, of which the library's module is made."""

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """The known settings of a JSON object, as they are: `problems` judges them."""
        known = {f.name for f in fields(cls)} - {"raw"}
        return cls(raw=plain, **{name: plain[name] for name in known if plain.get(name) is not None})


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(Config):
    """WanTransformer3DModel's."""

    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    rope_max_seq_len: int = 1024
    patch_size: tuple[int, int, int] = (1, 2, 2)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Channels out that are left empty, not left out, are those in."""
        config = super().from_json(plain)
        if plain.get("out_channels", 0) is None:
            return replace(config, out_channels=config.in_channels)
        return config

    @property
    def width(self) -> int:
        """Values of a token."""
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True, kw_only=True)
class VaeConfig(Config):
    """AutoencoderKLWan's."""

    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    is_residual: bool = False
    patch_size: int | None = None
    scale_factor_spatial: int = 8
    scale_factor_temporal: int = 4
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class TextConfig(Config):
    """UMT5Config's."""

    d_model: int = 512


KINDS: dict[str, type[Config]] = {"transformer": TransformerConfig, "vae": VaeConfig, "text_encoder": TextConfig}


def read(component: str, plain: Mapping[str, Any]) -> Config:
    """The configuration of a component: transformer, transformer_2, vae or text_encoder."""
    return KINDS[component.removesuffix("_2")].from_json(plain)


def problems(
    configs: Mapping[str, Config], scheduler: Mapping[str, Any], boundary: float | None, per_token: bool
) -> list[str]:
    """What no text-to-video model has, and what does not go together, in words: before modules are made of them, and
    before the sizes in them are trusted."""
    wrong = [
        f"{component}/{key} is {value!r}, not {low} to {high}"
        for component, config in configs.items()
        for key, (low, high) in LIMITS[component.removesuffix("_2")].items()
        if (value := config.raw.get(key)) is not None and (type(value) is not int or not low <= value <= high)
    ]
    text, vae = configs["text_encoder"], configs["vae"]
    assert isinstance(text, TextConfig) and isinstance(vae, VaeConfig)
    if not wrong:
        for component, config in configs.items():
            if isinstance(config, TransformerConfig):
                wrong += [f"{component}: {said}" for said in _transformer_problems(config, text.d_model, vae.z_dim)]
        wrong += [f"vae: {said}" for said in _vae_problems(vae)]
    for component, config in configs.items():
        epsilon = config.raw.get("layer_norm_epsilon" if component == "text_encoder" else "eps")
        if epsilon is not None and not _is_number(epsilon, 0, 0.1):
            wrong.append(f"{component}: epsilon {epsilon!r}, not 0 to .1")
    wrong += [f"scheduler: {said}" for said in _scheduler_problems(scheduler)]
    if boundary is not None and not _is_number(boundary, 0, 1):
        wrong.append(f"boundary_ratio {boundary!r}, not 0 to 1")
    if type(per_token) is not bool:
        wrong.append(f"expand_timesteps is {per_token!r}")
    return wrong


def _scheduler_problems(scheduler: Mapping[str, Any]) -> list[str]:
    """What no scheduler of a flow with a thousand timesteps says."""
    wrong = []
    trained = scheduler.get("num_train_timesteps", TRAIN_TIMESTEPS)
    if trained != TRAIN_TIMESTEPS:
        wrong.append(f"{trained!r} timesteps, not {TRAIN_TIMESTEPS}")
    shift = scheduler.get("flow_shift", scheduler.get("shift"))
    if shift is not None and not _is_number(shift, 0.01, 1000):
        wrong.append(f"flow shift {shift!r}, not .01 to 1000")
    for key, value in scheduler.items():
        low, high = _RANGES.get(key) or _RANGES_OR_NONE.get(key) or (-math.inf, math.inf)
        if key in _SWITCHES and type(value) is not bool:
            wrong.append(f"{key} is {value!r}, not true or false")
        elif key in _CHOICES and not any(type(value) is type(one) and value == one for one in _CHOICES[key]):
            wrong.append(f"{key} is {value!r}, not one of {_CHOICES[key]}")
        elif (key in _RANGES or (key in _RANGES_OR_NONE and value is not None)) and not _is_number(value, low, high):
            wrong.append(f"{key} is {value!r}, not {low} to {high}")
    if sum(scheduler.get(key) is True for key in _SWITCHES if key.endswith("_sigmas")) > 1:
        wrong.append("more than one spacing of sigmas")
    corrected = scheduler.get("disable_corrector", [])
    if not isinstance(corrected, list) or not all(type(n) is int and n >= 0 for n in corrected):
        wrong.append(f"disable_corrector is {corrected!r}, not a list of steps")
    return wrong


def _transformer_problems(config: TransformerConfig, text: int, latents: int) -> list[str]:
    """text  width of the text encoder; latents  channels of the VAE's"""
    patch, ins, outs = config.patch_size, config.in_channels, config.out_channels
    images = ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len")
    spoken = {key: config.raw.get(key) for key in ("cross_attn_norm", "qk_norm")}
    checks = {
        f"cross_attn_norm is {spoken['cross_attn_norm']!r}": spoken["cross_attn_norm"] not in (True, False, None),
        f"qk_norm is {spoken['qk_norm']!r}": spoken["qk_norm"] not in ("rms_norm_across_heads", None),
        f"patches are {patch!r}, not 1x2x2": not isinstance(patch, list | tuple) or tuple(patch) != (1, 2, 2),
        f"heads of {config.attention_head_dim} are not even": config.attention_head_dim % 2,
        "it takes images too": any(config.raw.get(k) for k in images),
        f"{ins} channels in, {outs} out, {latents} in the VAE": not ins == outs == latents,
        f"it reads texts of width {config.text_dim}, the text encoder writes {text}": config.text_dim != text,
    }
    return [said for said, holds in checks.items() if holds]


def _vae_problems(vae: VaeConfig) -> list[str]:
    """What does not go together in an autoencoder's configuration."""
    levels, strides = list_of(vae.dim_mult), list_of(vae.temperal_downsample)
    if levels is None or not all(type(n) is int and 0 < n <= 64 for n in levels) or not 0 < len(levels) <= 8:
        return [f"dim_mult is {vae.dim_mult!r}"]
    if strides is None or len(strides) != len(levels) - 1 or not all(type(b) is bool for b in strides):
        return [f"temperal_downsample is {vae.temperal_downsample!r} for {len(levels)} levels"]
    wrong = []
    if type(vae.is_residual) is not bool:
        wrong.append(f"is_residual is {vae.is_residual!r}")
    spatial, temporal = 2 ** len(strides) * (vae.patch_size or 1), 2 ** sum(strides)
    said = vae.scale_factor_spatial, vae.scale_factor_temporal
    if said != (spatial, temporal):
        wrong.append(f"its strides are {spatial} and {temporal}, it says {said[0]} and {said[1]}")
    for name, low in (("latents_mean", -1000.0), ("latents_std", 1e-6)):
        values = getattr(vae, name)
        if values is None:
            if vae.z_dim != 16:
                wrong.append(f"no {name}")
        elif (
            not isinstance(values, list | tuple)
            or len(values) != vae.z_dim
            or not all(_is_number(value, low, 1000) for value in values)
        ):
            wrong.append(f"{name} is not {vae.z_dim} numbers")
    return wrong


def list_of(value: object) -> list[Any] | None:
    """A list of JSON, None for anything else."""
    return list(value) if isinstance(value, list | tuple) else None


def _is_number(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def shown_problems(wrong: list[str]) -> str:
    """The first of them, fit for one line."""
    more = f", and {len(wrong) - 8} more" if len(wrong) > 8 else ""
    return weights.shown(", ".join(weights.shown(said) for said in wrong[:8]) + more, 800)
