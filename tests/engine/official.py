"""Small checkpoints in the original layout: tensors under the official names, made from a seed.

What the official implementation computes with these very weights is in tests/archives/official/, written by
make_official_reference.py. Its modules load the tensors below with `strict=True`, which is how the names and shapes
here are known to be the official ones.
"""

from __future__ import annotations

import json
import math
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

Shapes = dict[str, tuple[int, ...]]

WORDS = ["a", "red", "blue", "ball", "moves", "left", "right", "blurry", "and", "dull", "&"]
VOCABULARY = 3 + len(WORDS)
TEXT = {
    "vocab": VOCABULARY,
    "dim": 16,
    "dim_attn": 24,
    "dim_ffn": 40,
    "num_heads": 2,
    "num_layers": 2,
    "num_buckets": 32,
}
"""The text encoder, as wan/modules/t5.py calls its sizes."""
DIT = {"dim": 36, "ffn_dim": 48, "freq_dim": 32, "num_heads": 3, "num_layers": 2, "text_dim": 16, "eps": 1e-6}
"""The transformer, as wan/modules/model.py calls its sizes: three heads of 12."""
VAE = {"2.1": {"dim": 4, "z_dim": 16}, "2.2": {"dim": 4, "dec_dim": 6, "z_dim": 48}}
MULT, BLOCKS, DOWN = (1, 2, 4, 4), 2, (False, True, True)  # the official ones, written out in wan/modules/vae2_*.py

KINDS = {"t2v-A14B": 16, "ti2v-5B": 48, "t2v-1.3B": 16, "t2v-14B": 16}
"""Latent channels of every model."""


def text_encoder() -> Shapes:
    dim, inner, ffn = TEXT["dim"], TEXT["dim_attn"], TEXT["dim_ffn"]
    shapes: Shapes = {"token_embedding.weight": (TEXT["vocab"], dim), "norm.weight": (dim,)}
    for i in range(TEXT["num_layers"]):
        block = {
            "norm1.weight": (dim,),
            "norm2.weight": (dim,),
            "attn.q.weight": (inner, dim),
            "attn.k.weight": (inner, dim),
            "attn.v.weight": (inner, dim),
            "attn.o.weight": (dim, inner),
            "ffn.gate.0.weight": (ffn, dim),
            "ffn.fc1.weight": (ffn, dim),
            "ffn.fc2.weight": (dim, ffn),
            "pos_embedding.embedding.weight": (TEXT["num_buckets"], TEXT["num_heads"]),
        }
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return shapes


def transformer(channels: int) -> Shapes:
    dim, ffn = DIT["dim"], DIT["ffn_dim"]

    def linear(name: str, out: int, into: int) -> Shapes:
        return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}

    shapes: Shapes = {"patch_embedding.weight": (dim, channels, 1, 2, 2), "patch_embedding.bias": (dim,)}
    shapes |= linear("text_embedding.0", dim, DIT["text_dim"]) | linear("text_embedding.2", dim, dim)
    shapes |= linear("time_embedding.0", dim, DIT["freq_dim"]) | linear("time_embedding.2", dim, dim)
    shapes |= linear("time_projection.1", 6 * dim, dim)
    for i in range(DIT["num_layers"]):
        for attention in ("self_attn", "cross_attn"):
            name = f"blocks.{i}.{attention}"
            for part in "qkvo":
                shapes |= linear(f"{name}.{part}", dim, dim)
            shapes |= {f"{name}.norm_q.weight": (dim,), f"{name}.norm_k.weight": (dim,)}
        shapes |= linear(f"blocks.{i}.ffn.0", ffn, dim) | linear(f"blocks.{i}.ffn.2", dim, ffn)
        shapes |= {f"blocks.{i}.norm3.weight": (dim,), f"blocks.{i}.norm3.bias": (dim,)}
        shapes |= {f"blocks.{i}.modulation": (1, 6, dim)}
    return shapes | linear("head.head", 4 * channels, dim) | {"head.modulation": (1, 2, dim)}


def vae(version: str) -> Shapes:
    residual = version == "2.2"
    base, latents = VAE[version]["dim"], VAE[version]["z_dim"]
    pixels = 12 if residual else 3

    def conv(name: str, out: int, into: int, *kernel: int) -> Shapes:
        return {f"{name}.weight": (out, into, *kernel), f"{name}.bias": (out,)}

    def block(name: str, into: int, out: int) -> Shapes:
        shapes: Shapes = {f"{name}.residual.0.gamma": (into, 1, 1, 1), f"{name}.residual.3.gamma": (out, 1, 1, 1)}
        shapes |= conv(f"{name}.residual.2", out, into, 3, 3, 3) | conv(f"{name}.residual.6", out, out, 3, 3, 3)
        return shapes | (conv(f"{name}.shortcut", out, into, 1, 1, 1) if into != out else {})

    def middle(name: str, dim: int) -> Shapes:
        shapes: Shapes = {f"{name}.1.norm.gamma": (dim, 1, 1)}
        shapes |= conv(f"{name}.1.to_qkv", 3 * dim, dim, 1, 1) | conv(f"{name}.1.proj", dim, dim, 1, 1)
        return block(f"{name}.0", dim, dim) | shapes | block(f"{name}.2", dim, dim)

    def level(
        coder: str, way: str, number: int, blocks: list[tuple[int, int]], mode: tuple[int, bool] | None
    ) -> Shapes:
        """mode: channels after the change of size, and whether time changes too."""
        nonlocal at
        shapes: Shapes = {}

        def next_name() -> str:
            nonlocal at
            at += 1
            inside = f"{number}.{way}samples.{len(names)}" if residual else str(at)
            names.append(inside)
            return f"{coder}.{way}samples.{inside}"

        names: list[str] = []
        for into, out in blocks:
            shapes |= block(next_name(), into, out)
        if mode is not None:
            name, width = next_name(), blocks[-1][1]
            shapes |= conv(f"{name}.resample.1", mode[0], width, 3, 3)
            if mode[1]:
                shapes |= conv(f"{name}.time_conv", width * (2 if way == "up" else 1), width, 3, 1, 1)
        return shapes

    dims = [base * m for m in (1, *MULT)]
    shapes = conv("encoder.conv1", dims[0], pixels, 3, 3, 3)
    at = -1
    for i, (into, out) in enumerate(pairwise(dims)):
        blocks = [(into, out)] + [(out, out)] * (BLOCKS - 1)
        shapes |= level("encoder", "down", i, blocks, (out, DOWN[i]) if i < 3 else None)
    shapes |= middle("encoder.middle", dims[-1]) | {"encoder.head.0.gamma": (dims[-1], 1, 1, 1)}
    shapes |= conv("encoder.head.2", 2 * latents, dims[-1], 3, 3, 3)
    shapes |= conv("conv1", 2 * latents, 2 * latents, 1, 1, 1) | conv("conv2", latents, latents, 1, 1, 1)

    dims = [VAE[version].get("dec_dim", base) * m for m in (MULT[-1], *MULT[::-1])]
    shapes |= conv("decoder.conv1", dims[0], latents, 3, 3, 3) | middle("decoder.middle", dims[0])
    at = -1
    for i, (into, out) in enumerate(pairwise(dims)):
        into = into // 2 if i and not residual else into  # 2.1 halves the channels where it doubles the size
        blocks = [(into, out)] + [(out, out)] * BLOCKS
        shapes |= level("decoder", "up", i, blocks, (out if residual else out // 2, DOWN[::-1][i]) if i < 3 else None)
    return shapes | {"decoder.head.0.gamma": (dims[-1], 1, 1, 1)} | conv("decoder.head.2", pixels, dims[-1], 3, 3, 3)


def weights(shapes: Shapes, seed: int) -> dict[str, torch.Tensor]:
    """Random weights that keep what passes through them near one; each tensor's depend on its name and the seed."""
    made = {}
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed))
        if name.endswith("bias"):
            made[name] = drawn / 10
        elif name.endswith("gamma") or (len(shape) == 1):
            made[name] = 1 + drawn / 10
        elif "embedding.weight" in name and "patch" not in name:
            made[name] = drawn
        else:
            made[name] = drawn / math.sqrt(math.prod(shape[1:]))
    return made


def inputs(name: str, *shape: int) -> torch.Tensor:
    """Random numbers that depend on the name alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def write_tokenizer(folder: Path) -> None:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    ).save_pretrained(folder)


def config(kind: str) -> dict[str, Any]:
    """The transformer's config.json, as diffusers' ConfigMixin writes WanModel's."""
    channels = KINDS[kind]
    return {
        "_class_name": "WanModel",
        "_diffusers_version": "0.33.0",
        "model_type": kind.partition("-")[0],
        "in_dim": channels,
        "out_dim": channels,
        "text_len": 512,
    } | {key: value for key, value in DIT.items() if key != "text_dim"}


def write(folder: Path, kind: str, *, shards: int = 1, dtype: torch.dtype = torch.float32) -> Path:
    """A whole checkpoint of `kind`, a key of `KINDS`; its transformers in `shards` files each."""
    channels = KINDS[kind]
    folder.mkdir(parents=True)
    for seed, name in enumerate(("high_noise_model", "low_noise_model") if kind == "t2v-A14B" else ("",)):
        where = folder / name
        where.mkdir(exist_ok=True)
        (where / "config.json").write_text(json.dumps(config(kind)))
        write_shards(where, {n: t.to(dtype) for n, t in weights(transformer(channels), seed).items()}, shards)
    version = "2.2" if channels == 48 else "2.1"
    torch.save(weights(vae(version), 7), folder / f"Wan{version}_VAE.pth")
    torch.save(
        {n: t.to(dtype) for n, t in weights(text_encoder(), 8).items()}, folder / "models_t5_umt5-xxl-enc-bf16.pth"
    )
    write_tokenizer(folder / "google" / "umt5-xxl")
    return folder


def write_shards(where: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    stem = "diffusion_pytorch_model"
    if shards == 1:
        save_file(tensors, where / f"{stem}.safetensors")
        return
    names = sorted(tensors)
    index: dict[str, str] = {}
    for k in range(shards):
        file = f"{stem}-{k + 1:05}-of-{shards:05}.safetensors"
        part = {n: tensors[n] for n in names[k::shards]}
        save_file(part, where / file)
        index |= dict.fromkeys(part, file)
    (where / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


# What is compared with the official implementation; make_official_reference.py evaluates the same cases.
PROMPTS = [
    "a red ball moves left",
    "  A  red\n\tball &amp; a blue  ",
    "a &amp;amp; b &lt;ball&gt;",
    "na\u00c3\u00afve \u201csmart\u201d ball\u2026 \u3000 dull",
    "\u8272\u8c03\u8273\u4e3d\uff0c\u8fc7\u66dd\uff21",
    "",
    "a " * 600,
]
PROMPT, NEGATIVE = PROMPTS[0], "blurry and dull"
TEXTS = [PROMPT, NEGATIVE, " ".join(WORDS * 60)]
"""The last is cut to 512 tokens: relative positions of every distance."""
SCHEDULES = [("unipc", 10, 12.0), ("unipc", 6, 5.0), ("unipc", 1, 5.0), ("dpm++", 10, 12.0), ("dpm++", 6, 5.0)]
"""Solver, steps, flow shift."""
LOOPS = [
    ("t2v-A14B", "unipc", 6, 12.0, (3.0, 4.0), (32, 48)),
    ("t2v-A14B", "dpm++", 6, 12.0, (3.0, 4.0), (32, 48)),
    ("ti2v-5B", "unipc", 5, 5.0, (5.0, 5.0), (64, 96)),
    ("ti2v-5B", "dpm++", 5, 5.0, (5.0, 5.0), (64, 96)),
    ("t2v-1.3B", "unipc", 5, 8.0, (6.0, 6.0), (32, 48)),
    ("t2v-14B", "dpm++", 5, 5.0, (5.0, 5.0), (48, 32)),
]
"""Model, solver, steps, flow shift, guidance (low noise, high noise), height and width; 9 frames, seed 11."""
FRAMES, SEED = 9, 11


def velocity(x: torch.Tensor, step: int) -> torch.Tensor:
    """A made-up model for testing solvers alone."""
    return torch.tanh(x) - inputs(f"velocity {step}", *x.shape)


def some(values: torch.Tensor) -> torch.Tensor:
    """Some 400 of the values, at a distance that shares no divisor with their number: no stride hides between them."""
    step = max(1, values.numel() // 400)
    while math.gcd(step, values.numel()) > 1:
        step += 1
    return values.flatten()[::step]
