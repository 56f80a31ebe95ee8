"""The four networks of `tiny`, untrained, and how they are saved as one diffusers-layout checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from wanlab.embedded import WORLD_FILE, world
from wanlab.engine.model.kernels import ShortText

PAD, EOS, UNK = 0, 1, 2
TEXT_LENGTH = 512  # WanPipeline pads every prompt's embeddings with zeros to this length
WORDS = 28  # tokens of the longest caption, and two to spare
SHORT = 32  # text positions while training, of which the last ones stand for all 512's padding
VAE = dict(
    base_dim=32,
    decoder_base_dim=56,
    z_dim=16,
    dim_mult=[1, 2, 2],
    num_res_blocks=1,
    temperal_downsample=[True, True],
    is_residual=True,
    in_channels=12,
    out_channels=12,
    patch_size=2,
    scale_factor_temporal=4,
    scale_factor_spatial=8,
)
TRANSFORMER = dict(
    num_attention_heads=4,
    attention_head_dim=64,
    ffn_dim=768,
    num_layers=8,
    text_dim=128,
    in_channels=16,
    out_channels=16,
)
TEXT = dict(d_model=128, d_kv=32, num_heads=4, d_ff=256, num_layers=2, dropout_rate=0.0)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a known word; case and punctuation do not matter, an unknown word is one `<unk>`."""
    vocab = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *world.vocabulary()])}
    t = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    t.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\p{L}\p{N}-]+"), "removed")
    t.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=t, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=TEXT_LENGTH
    )


def text_encoder() -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=3 + len(world.vocabulary()),
            pad_token_id=PAD,
            eos_token_id=EOS,
            decoder_start_token_id=PAD,
            **TEXT,
        )
    )


def vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(**VAE)


def transformer(**changes: int) -> WanTransformer3DModel:
    """A freshly initialised expert whose output and cross-attention start at zero."""
    m = WanTransformer3DModel(**TRANSFORMER | changes)
    torch.nn.init.zeros_(m.proj_out.weight)
    torch.nn.init.zeros_(m.proj_out.bias)
    for block in m.blocks:
        torch.nn.init.zeros_(block.attn2.to_out[0].weight)
        torch.nn.init.zeros_(block.attn2.to_out[0].bias)
    return m


def embed(encoder: UMT5EncoderModel, ids: torch.Tensor) -> torch.Tensor:
    """Prompt embeddings [B,512,D] of token ids [B,L], zero after each prompt's end, as WanPipeline makes them."""
    mask = ids != PAD
    hidden = encoder(ids, mask.long()).last_hidden_state * mask.unsqueeze(-1)
    return torch.nn.functional.pad(hidden, (0, 0, 0, TEXT_LENGTH - ids.shape[1]))


def embed_short(encoder: UMT5EncoderModel, ids: torch.Tensor, short: ShortText) -> torch.Tensor:
    """`embed` cut to [B,SHORT,D] for `short`, which skips a fifth of a step's work."""
    return short.cut(embed(encoder, ids), (ids != PAD).sum(1), SHORT)


def save(folder: Path, component: str, module: torch.nn.Module, dtype: torch.dtype = torch.float16) -> None:
    """Write one component's config.json and weights (16 bits unless said otherwise) under `folder`/`component`."""
    where = folder / component
    where.mkdir(parents=True, exist_ok=True)
    name = "model.safetensors" if component == "text_encoder" else "diffusion_pytorch_model.safetensors"
    weights = {k: v.detach().to("cpu", dtype).contiguous() for k, v in module.state_dict().items()}
    weights.pop("encoder.embed_tokens.weight", None)  # the same tensor as `shared.weight`
    save_file(weights, where / name, metadata={"format": "pt"})
    config = (
        module.config.to_dict()
        if component == "text_encoder"
        else {"_class_name": type(module).__name__, **dict(module.config)}
    )
    if component == "text_encoder":
        config |= {"architectures": ["UMT5EncoderModel"], "torch_dtype": str(dtype).removeprefix("torch.")}
    kept = {k: v for k, v in config.items() if not k.startswith("_") or k == "_class_name"}
    (where / "config.json").write_text(json.dumps(kept, indent=2, sort_keys=True, default=list) + "\n")


def save_frame(folder: Path, version: world.World, flow_shift: float, boundary: float) -> None:
    """Write what is not weights: tokenizer, scheduler, model_index.json and the world's version; `boundary`: the noise
    level in [0,1] from which on the high-noise expert works."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WORLD_FILE).write_text(json.dumps({"version": version.version}) + "\n")
    tokenizer().save_pretrained(folder / "tokenizer")
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=flow_shift,
        num_train_timesteps=1000,
        solver_order=2,
    )
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "WanPipeline",
        "_diffusers_version": "0.40.0",
        "boundary_ratio": boundary,
        "expand_timesteps": False,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
