"""The original layout of Wan's checkpoints: what is in such a directory, in diffusers' and transformers' terms.

One directory holds `models_t5_umt5-xxl-enc-bf16.pth`, `Wan2.1_VAE.pth` or `Wan2.2_VAE.pth`, the tokenizer in
`google/umt5-xxl/`, and the transformer: its config.json and safetensors lie at the top, or, for two experts, in
`high_noise_model/` and `low_noise_model/`. The autoencoder and the text encoder have no configuration of their own;
the official code (github.com/Wan-Video/Wan2.1 and Wan2.2: wan/configs, wan/modules) writes their sizes out. Here the
sizes are read off the tensors, so that any size loads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

from wanlab.engine.model.weights import Head
from wanlab.errors import UsageError

TEXT_ENCODER = "models_t5_umt5-xxl-enc-bf16.pth"
VAES = ("Wan2.1_VAE.pth", "Wan2.2_VAE.pth")
TOKENIZER = "google/umt5-xxl"
EXPERTS = {"transformer": "high_noise_model", "transformer_2": "low_noise_model"}
KINDS = ("t2v", "ti2v")  # `model_type` in the transformer's config.json

# wan/configs/wan_t2v_A14B.py: `boundary`. With two experts the files do not say it.
BOUNDARY = 0.875

# Mean and standard deviation of the 48 latent channels (wan/modules/vae2_2.py, class Wan2_2_VAE). Those of the 16
# channels of Wan 2.1 are AutoencoderKLWan's defaults.
LATENTS_48 = (
    (
        -0.2289,
        -0.0052,
        -0.1323,
        -0.2339,
        -0.2799,
        0.0174,
        0.1838,
        0.1557,
        -0.1382,
        0.0542,
        0.2813,
        0.0891,
        0.1570,
        -0.0098,
        0.0375,
        -0.1825,
        -0.2246,
        -0.1207,
        -0.0698,
        0.5109,
        0.2665,
        -0.2108,
        -0.2158,
        0.2502,
        -0.2055,
        -0.0322,
        0.1109,
        0.1567,
        -0.0729,
        0.0899,
        -0.2799,
        -0.1230,
        -0.0313,
        -0.1649,
        0.0117,
        0.0723,
        -0.2839,
        -0.2083,
        -0.0520,
        0.3748,
        0.0152,
        0.1957,
        0.1433,
        -0.2944,
        0.3573,
        -0.0548,
        -0.1681,
        -0.0667,
    ),
    (
        0.4765,
        1.0364,
        0.4514,
        1.1677,
        0.5313,
        0.4990,
        0.4818,
        0.5013,
        0.8158,
        1.0344,
        0.5894,
        1.0901,
        0.6885,
        0.6165,
        0.8454,
        0.4978,
        0.5759,
        0.3523,
        0.7135,
        0.6804,
        0.5833,
        1.4146,
        0.8986,
        0.5659,
        0.7069,
        0.5338,
        0.4889,
        0.4917,
        0.4069,
        0.4999,
        0.6866,
        0.4093,
        0.5709,
        0.6065,
        0.6415,
        0.4944,
        0.5726,
        1.2042,
        0.5458,
        1.6887,
        0.3971,
        1.0600,
        0.3943,
        0.5537,
        0.5444,
        0.4089,
        0.7468,
        0.7744,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the parts of a checkpoint in the original layout lie."""

    transformers: Mapping[str, Path]
    """The directory of each expert, by component."""
    text_encoder: Path
    vae: Path
    tokenizer: Path


def is_original(path: Path) -> bool:
    """Whether the directory looks like a checkpoint in the original layout, whole or not."""
    return any((path / name).exists() for name in (TEXT_ENCODER, *VAES, *EXPERTS.values()))


def find(path: Path) -> Layout:
    """The parts of the checkpoint. Raises UsageError that names every part that is missing."""
    experts = {component: path / folder for component, folder in EXPERTS.items()}
    two = any(folder.exists() for folder in experts.values())
    transformers = experts if two else {"transformer": path}
    vaes = [path / name for name in VAES if (path / name).is_file()]
    needed = [folder / "config.json" for folder in transformers.values()]
    needed += [path / TEXT_ENCODER, path / TOKENIZER / "tokenizer_config.json"]
    missing = [str(file.relative_to(path)) for file in needed if not file.is_file()]
    if not vaes:
        missing.append(" or ".join(VAES))
    if missing:
        raise UsageError(
            f"{path} is only part of a checkpoint in the original layout: {', '.join(missing)} missing",
            "get the checkpoint again",
        )
    if len(vaes) > 1:
        raise UsageError(f"{path} holds both {' and '.join(VAES)}", "leave the one that belongs to the transformer")
    return Layout(transformers=transformers, text_encoder=path / TEXT_ENCODER, vae=vaes[0], tokenizer=path / TOKENIZER)


def transformer_config(plain: Mapping[str, Any], held: Mapping[str, Head], where: Path) -> dict[str, Any]:
    """WanTransformer3DModel's configuration of the original config.json and the tensors it lies beside.

    `text_dim` and `patch_size` are not in it (WanModel.ignore_for_config), so they are read off the tensors. Raises
    UsageError for another kind of model.
    """
    kind, name = plain.get("model_type"), plain.get("_class_name")
    if name != "WanModel" or kind not in KINDS:
        said = f"{name or 'a model'} of type {kind}" if kind else str(name or "something else")
        raise UsageError(f"{where} is {said[:80]!r}, not a Wan text-to-video transformer", "use a T2V checkpoint")
    if plain.get("text_len", 512) != 512:
        raise UsageError(f"{where} reads {plain['text_len']!r} text tokens, not 512", "use a T2V checkpoint")
    sizes = {key: plain.get(key) for key in ("dim", "num_heads", "num_layers", "ffn_dim", "freq_dim", "in_dim")}
    wrong = [key for key, value in sizes.items() if type(value) is not int or value < 1]
    if wrong or plain["dim"] % plain["num_heads"]:
        raise UsageError(f"{where} makes no model: {', '.join(wrong) or 'dim / num_heads'}", "get the checkpoint again")
    return {
        "patch_size": list(_shape(held, "patch_embedding.weight", 5, where)[2:]),
        "num_attention_heads": plain["num_heads"],
        "attention_head_dim": plain["dim"] // plain["num_heads"],
        "in_channels": plain["in_dim"],
        "out_channels": plain.get("out_dim", plain["in_dim"]),
        "text_dim": _shape(held, "text_embedding.0.weight", 2, where)[1],
        "freq_dim": plain["freq_dim"],
        "ffn_dim": plain["ffn_dim"],
        "num_layers": plain["num_layers"],
        "eps": plain.get("eps", 1e-6),
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
    }


def vae_config(held: Mapping[str, Head], where: Path) -> dict[str, Any]:
    """AutoencoderKLWan's configuration of the tensors of a Wan2.1_VAE.pth or Wan2.2_VAE.pth.

    Widths are read off the tensors; the number of levels and blocks and their strides are the official ones
    (`_video_vae` in wan/modules/vae2_1.py and vae2_2.py). Raises UsageError for anything else.
    """
    channels = _shape(held, "conv2.weight", 5, where)[0]
    if channels not in (16, 48):
        raise UsageError(f"{where} has {channels} latent channels, not 16 or 48", "use a Wan 2.1 or 2.2 VAE")
    config: dict[str, Any] = {
        "base_dim": _shape(held, "encoder.conv1.weight", 5, where)[0],
        "decoder_base_dim": _shape(held, "decoder.head.2.weight", 5, where)[1],
        "z_dim": channels,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attn_scales": [],
        "temperal_downsample": [False, True, True],
        "scale_factor_temporal": 4,
        "scale_factor_spatial": 8,
    }
    if channels == 48:
        mean, std = LATENTS_48
        config |= {
            "latents_mean": list(mean),
            "latents_std": list(std),
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "scale_factor_spatial": 16,
        }
    return config


def text_encoder_config(held: Mapping[str, Head], where: Path) -> dict[str, Any]:
    """UMT5Config's settings of the tensors of the text encoder (wan/modules/t5.py: `umt5_xxl`, `T5Encoder`).

    Raises UsageError when they are not a text encoder's.
    """
    vocabulary, width = _shape(held, "token_embedding.weight", 2, where)
    buckets, heads = _shape(held, "blocks.0.pos_embedding.embedding.weight", 2, where)
    inner = _shape(held, "blocks.0.attn.q.weight", 2, where)[0]
    if inner % heads:
        raise UsageError(f"{where} makes no text encoder: {inner} is not {heads} heads", "get the checkpoint again")
    layers = {int(found[1]) for name in held if (found := re.match(r"blocks\.(\d{1,4})\.", name))}
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": inner // heads,
        "num_heads": heads,
        "d_ff": _shape(held, "blocks.0.ffn.fc1.weight", 2, where)[0],
        "num_layers": max(layers) + 1,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "dropout_rate": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


def scheduler_config(kinds: Collection[str], experts: int) -> dict[str, Any]:
    """A scheduler's configuration: UniPC as diffusers' converted checkpoints have it, with the official flow shift.

    wan/configs/wan_t2v_A14B.py and wan_ti2v_5B.py say 12 and 5; Wan 2.1's generate.py says 5 for text-to-video.
    """
    return {
        "_class_name": "UniPCMultistepScheduler",
        "num_train_timesteps": 1000,
        "solver_order": 2,
        "solver_type": "bh2",
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 12.0 if experts == 2 and "ti2v" not in kinds else 5.0,
    }


def names(component: str, originals: Iterable[str]) -> dict[str, str]:
    """Original name -> name in the module, for each of `originals`. A name that no rule knows stays as it is."""
    if component == "text_encoder":
        return {name: _renamed(name, _TEXT_ENCODER) for name in originals}
    if component == "vae":
        return {name: _renamed(name, _VAE) for name in originals}
    # diffusers' own converter renames the keys of a state dict and looks at no value: names go through it as well.
    # (but for those of other Wan models, whose parts it would look at.)
    plain = {name: name for name in originals}
    given = {name: name for name in plain if "face_adapter" not in name and "motion_encoder" not in name}
    return plain | {old: new for new, old in convert_wan_transformer_to_diffusers(given).items()}


def _shape(held: Mapping[str, Head], name: str, rank: int, where: Path) -> tuple[int, ...]:
    if name not in held or len(held[name].shape) != rank or not all(held[name].shape):
        raise UsageError(f"{where} is not what its name says: no tensor {name}", "get the checkpoint again")
    return held[name].shape


Rule = tuple[str, str | Callable[[re.Match[str]], str]]


def _renamed(name: str, rules: Iterable[Rule]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


# Each layer of the official encoder has its own relative positions (`shared_pos=False`), as UMT5's has.
_TEXT_ENCODER: tuple[Rule, ...] = (
    (r"^token_embedding\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"^blocks\.(\d+)\.attn\.", r"encoder.block.\1.layer.0.SelfAttention."),
    (r"^blocks\.(\d+)\.pos_embedding\.embedding\.", r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"^blocks\.(\d+)\.ffn\.gate\.0\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"^blocks\.(\d+)\.ffn\.fc1\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"^blocks\.(\d+)\.ffn\.fc2\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
)


# diffusers' converter knows the 2.1 autoencoder only; these rules know both. In 2.2 the blocks of a level lie in a
# list of their own (downsamples.0.downsamples.1); in 2.1 they are numbered through, and diffusers keeps the encoder's
# list but gathers the decoder's: three residual blocks and what makes the next level larger.
def _gathered(found: re.Match[str]) -> str:
    level, at = divmod(int(found[1]), 4)
    return f"decoder.up_blocks.{level}." + ("upsamplers.0." if at == 3 else f"resnets.{at}.")


_VAE: tuple[Rule, ...] = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"^(encoder|decoder)\.head\.0\.", r"\1.norm_out."),
    (r"^(encoder|decoder)\.head\.2\.", r"\1.conv_out."),
    (r"^(encoder|decoder)\.middle\.0\.", r"\1.mid_block.resnets.0."),
    (r"^(encoder|decoder)\.middle\.1\.", r"\1.mid_block.attentions.0."),
    (r"^(encoder|decoder)\.middle\.2\.", r"\1.mid_block.resnets.1."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (
        r"^(encoder|decoder)\.(down|up)samples\.(\d+)\.\2samples\.\d+\.(resample|time_conv)\.",
        r"\1.\2_blocks.\3.\2sampler.\4.",
    ),
    (r"^(encoder|decoder)\.(down|up)samples\.(\d+)\.\2samples\.(\d+)\.", r"\1.\2_blocks.\3.resnets.\4."),
    (r"^encoder\.downsamples\.", "encoder.down_blocks."),
    (r"^decoder\.upsamples\.(\d{1,4})\.", _gathered),
)
