"""A small two-expert checkpoint in diffusers' layout, with random weights; made once a session."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

torch.set_num_threads(1)  # the model is too small to share

WORDS = ["a", "red", "blue", "ball", "moves", "left", "right", "blurry", "and"]
SIZE = {"width": 32, "height": 32, "frames": 17}  # latents [16,5,4,4], 20 tokens


def make_checkpoint(folder: Path, boundary: float | None = 0.875, shift: float = 12.0) -> Path:
    torch.manual_seed(0)
    vocab = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    text = UMT5Config(
        vocab_size=len(vocab),
        d_model=16,
        d_kv=8,
        num_heads=2,
        d_ff=32,
        num_layers=1,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )

    def expert() -> WanTransformer3DModel:
        made = WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=16,
            freq_dim=32,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=64,
        )
        for block in made.blocks:  # so that the prompt matters as much as the latents
            block.attn2.to_out[0].weight.data *= 100
        return made

    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, num_train_timesteps=1000
    )
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(text),
        vae=vae,
        scheduler=scheduler,
        transformer=expert(),
        transformer_2=expert() if boundary is not None else None,
        boundary_ratio=boundary,
    )
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("two") / "model")


@pytest.fixture(scope="session")
def single_checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("one") / "model", boundary=None, shift=3.0)


@pytest.fixture(scope="session")
def model(checkpoint):
    from wanlab.engine.model import loading as engine_models

    return engine_models.load(str(checkpoint))


@pytest.fixture(scope="session")
def pipeline(checkpoint):
    pipe = WanPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def loaded():
    """What keeps the model between runs."""
    from wanlab.engine.run import Models

    return Models()
