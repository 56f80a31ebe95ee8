"""Checkpoints in the original layout: found, judged, loaded, and computing what the official implementation computes.

The official numbers are in tests/archives/official/reference.npz (see make_official_reference.py); the weights that
gave them are made anew from their seeds (official.py).
"""

import io
import json
import math
import os
import pickle
import shutil
import socket
import weakref
import zipfile
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import UMT5EncoderModel

from wanlab.engine.model import loading as models
from wanlab.engine.model import modules, vae, weights
from wanlab.engine.model import original as convert
from wanlab.engine.model.cost import Cost
from wanlab.engine.model.transformer import Denoiser
from wanlab.engine.run import decode, resolve
from wanlab.engine.run.forecast import forecast as full_plan
from wanlab.engine.solvers import Solver, step_contexts
from wanlab.engine.types import Call
from wanlab.errors import UsageError, WanlabError

from . import official
from .helpers import make_spec, relative, sample

ARCHIVE = Path(__file__).parents[1] / "archives" / "official" / "reference.npz"
TEXT, HIGH = "models_t5_umt5-xxl-enc-bf16.pth", "high_noise_model/diffusion_pytorch_model.safetensors"
CLOSE = 1e-5  # float32: measured 1e-7 to 3e-6, of the largest value


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    return {kind: official.write(folder / kind, kind, shards=3 if kind == "t2v-A14B" else 1) for kind in official.KINDS}


@pytest.fixture(scope="module")
def loaded_originals(originals):
    return {kind: models.load(str(folder)) for kind, folder in originals.items()}


@pytest.fixture(scope="module")
def reference():
    with np.load(ARCHIVE, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


@pytest.fixture
def copy(tmp_path, originals):
    folder = shutil.copytree(originals["t2v-A14B"], tmp_path / "model")
    for seed, name in enumerate(("high_noise_model", "low_noise_model")):  # one file each: easier to spoil
        for file in (folder / name).glob("diffusion_*"):
            file.unlink()
        save_file(official.weights(official.transformer(16), seed), folder / name / Path(HIGH).name)
    return folder


def off(computed, expected):
    """The largest difference, of the largest value."""
    return float(np.abs(np.asarray(computed) - expected).max() / np.abs(expected).max())


def near(computed, reference, name, within=CLOSE):
    """Compare with the reference of that name; `pytest -rP` shows how near it was."""
    error = off(official.some(computed), reference[name])
    print(f"{name}: {error:.1e}")
    assert error < within


# --- what is there ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "experts", "boundary", "shift", "fps", "latents"),
    [
        ("t2v-A14B", {"high": "transformer", "low": "transformer_2"}, 0.875, 12.0, 16, (16, 3, 8, 16)),
        ("ti2v-5B", {"single": "transformer"}, None, 5.0, 24, (48, 3, 4, 8)),
        ("t2v-1.3B", {"single": "transformer"}, None, 5.0, 16, (16, 3, 8, 16)),
        ("t2v-14B", {"single": "transformer"}, None, 5.0, 16, (16, 3, 8, 16)),
    ],
)
def test_each_model_is_recognised(originals, kind, experts, boundary, shift, fps, latents):
    found = models.describe(str(originals[kind]))
    assert (found.layout, found.experts, found.boundary, found.fps) == ("original", experts, boundary, fps)
    assert found.scheduler["flow_shift"] == shift and found.expand_timesteps == (kind == "ti2v-5B")
    assert found.latent_shape(9, 128, 64) == latents
    config = found.configs["transformer"].raw
    assert (config["num_attention_heads"], config["attention_head_dim"], config["text_dim"]) == (3, 12, 16)
    text = found.configs["text_encoder"].raw
    assert (text["num_layers"], text["num_heads"], text["d_kv"], text["d_ff"]) == (2, 2, 12, 40)
    autoencoder = found.configs["vae"].raw
    assert (autoencoder["base_dim"], autoencoder["decoder_base_dim"]) == ((4, 6) if kind == "ti2v-5B" else (4, 4))


def test_parameters_are_those_in_the_files(originals):
    counted = models.parameters(models.describe(str(originals["ti2v-5B"])))
    for component, shapes in {
        "transformer": official.transformer(48),
        "vae": official.vae("2.2"),
        "text_encoder": official.text_encoder(),
    }.items():
        assert counted[component] == sum(math.prod(s) for s in shapes.values())


def test_the_full_sizes_are_the_published_ones():
    """Parameters from the official configurations alone: 14.3, 5.0 and 1.4 billion, 5.7 billion for the text
    encoder."""
    counted = {}
    for name, channels, dim, ffn, heads, layers in (
        ("14B", 16, 5120, 13824, 40, 40),
        ("5B", 48, 3072, 14336, 24, 30),
        ("1.3B", 16, 1536, 8960, 12, 30),
    ):
        plain = official.config("t2v-14B") | {
            "dim": dim,
            "ffn_dim": ffn,
            "num_heads": heads,
            "num_layers": layers,
            "freq_dim": 256,
            "in_dim": channels,
            "out_dim": channels,
        }
        held = {
            "patch_embedding.weight": weights.Head(Path(), (dim, channels, 1, 2, 2), "float32"),
            "text_embedding.0.weight": weights.Head(Path(), (dim, 4096), "float32"),
        }
        config = convert.transformer_config(plain, held, Path())
        counted[name] = sum(math.prod(s) for s in modules.shapes("transformer", json.dumps(config)).values())
    # By hand: a block has 8D² of attention, 2DF of feed-forward, 8D + D + F biases, 4D + 2D norms, 6D modulation.
    d, f = 5120, 13824
    block = 8 * d * d + 2 * d * f + 9 * d + f + 6 * d + 6 * d
    around = (64 * d + d) + (4096 * d + d + d * d + d) + (256 * d + d + d * d + d) + (6 * d * d + 6 * d)
    assert counted["14B"] == 40 * block + around + (64 * d + 64) + 2 * d
    assert [round(counted[k] / 1e9, 1) for k in ("14B", "5B", "1.3B")] == [14.3, 5.0, 1.4]


@pytest.mark.parametrize("kind", official.KINDS)
def test_shards_and_single_files_are_the_same_model(tmp_path, loaded_originals, kind):
    other = models.load(str(official.write(tmp_path / "m", kind, shards=1 if kind == "t2v-A14B" else 4)))
    for name, expert in loaded_originals[kind].experts.items():
        state = other.experts[name].state_dict()
        assert state and all(torch.equal(value, state[key]) for key, value in expert.state_dict().items())


@pytest.mark.parametrize("version", ["2.1", "2.2"])
def test_autoencoder_names(version):
    """Every name of diffusers' module is reached once; for 2.1 by the names that diffusers' converter gives."""
    names = convert.names("vae", official.vae(version))
    assert len(set(names.values())) == len(names) == len(official.vae(version))
    if version == "2.1":
        expected = convert_wan_vae_to_diffusers({name: name for name in names})
        assert {new: old for old, new in names.items()} == expected


# --- the numbers of the official implementation ----------------------------------------------------------------------


def test_prompts_are_cleaned_and_cut_as_officially(loaded_originals, reference):
    model = loaded_originals["t2v-A14B"]
    assert [prompt_clean(p) for p in official.PROMPTS] == reference["prompts/cleaned"].tolist()
    assert [min(512, model.tokens_in(p)) for p in official.PROMPTS] == reference["prompts/tokens"].tolist()
    ids = model.tokenizer(
        [prompt_clean(p) for p in official.PROMPTS], padding="max_length", max_length=16, truncation=False
    )
    assert [row[:16] for row in ids.input_ids[:-1]] == reference["prompts/ids"].tolist()[:-1]


def test_text_encoder(loaded_originals, reference):
    for kind in ("t2v-A14B", "ti2v-5B"):
        for k, prompt in enumerate(official.TEXTS):
            embeds, tokens = loaded_originals[kind].encode(prompt)[0], (6, 4, 512)[k]
            near(embeds[:tokens], reference, f"text/{k}")
            assert not embeds[tokens:].any()


@pytest.mark.parametrize(
    ("name", "kind", "expert"),
    [
        ("2.2/16/0", "t2v-A14B", "high"),
        ("2.2/16/0/tokens", "t2v-A14B", "high"),
        ("2.2/16/1", "t2v-A14B", "low"),
        ("2.2/16/1/tokens", "t2v-A14B", "low"),
        ("2.2/48/0", "ti2v-5B", "single"),
        ("2.2/48/0/tokens", "ti2v-5B", "single"),
        ("2.1/16/0", "t2v-14B", "single"),
    ],
)
def test_transformer(loaded_originals, reference, name, kind, expert):
    """With one timestep for the sample and with one for each token, the first frame's being 0."""
    channels = official.KINDS[kind]
    x = official.inputs(f"latents {channels}", channels, 3, 4, 6)[None]
    text = torch.zeros(1, 512, 16)
    text[0, :9] = official.inputs("context", 9, 16)
    t = torch.tensor([877])
    if name.endswith("tokens"):
        t = torch.full((1, 18), 640.0)
        t[:, :6] = 0
    velocity = loaded_originals[kind].experts[expert](x, t, text).sample
    near(velocity, reference, f"transformer/{name}")


def test_the_comparison_can_fail(loaded_originals, reference):
    """The other expert, and a text encoder with its gate and its input swapped, are far off."""
    x, text = official.inputs("latents 16", 16, 3, 4, 6)[None], torch.zeros(1, 512, 16)
    text[0, :9] = official.inputs("context", 9, 16)
    low = loaded_originals["t2v-A14B"].experts["low"](x, torch.tensor([877]), text).sample
    assert off(official.some(low), reference["transformer/2.2/16/0"]) > 0.1
    model = models.load(models.describe(str(loaded_originals["t2v-1.3B"].checkpoint.path)))
    feed = model.text_encoder.encoder.block[0].layer[1].DenseReluDense
    feed.wi_0, feed.wi_1 = feed.wi_1, feed.wi_0
    assert off(official.some(model.encode(official.PROMPT)[0, :6]), reference["text/0"]) > 0.01


@pytest.mark.parametrize(("version", "kind", "size"), [("2.1", "t2v-1.3B", 16), ("2.2", "ti2v-5B", 32)])
def test_autoencoder(loaded_originals, reference, version, kind, size):
    module = loaded_originals[kind].vae
    z = official.inputs(f"latents {version}", official.VAE[version]["z_dim"], 3, 2, 2)[None]
    near(vae.decode(module, z)[0], reference, f"vae/{version}/decoded")
    video = official.inputs(f"video {version}", 3, 9, size, size)[None]
    near(vae.encode(module, video)[0], reference, f"vae/{version}/encoded")


@pytest.mark.parametrize(("solver", "steps", "shift"), official.SCHEDULES)
def test_schedules_and_steps_are_the_official_ones_to_the_last_bit(originals, reference, solver, steps, shift):
    found = models.describe(str(originals["t2v-A14B"]))
    run = Solver(solver, "wan", steps, shift, found.scheduler, torch.device("cpu"))
    expected = {k: reference[f"steps/{solver}/{steps}/{k}"] for k in ("sigmas", "timesteps", "x")}
    assert run.sigmas.tolist() == expected["sigmas"].tolist()
    assert run.timesteps.tolist() == expected["timesteps"].tolist()
    x = official.inputs("start", 1, 2, 2, 2, 2)
    for ctx in step_contexts(run, None):
        x = run.step(official.velocity(x, ctx.index), ctx, x)
        # Equal where the reference was made; elsewhere tanh may differ in its last bit.
        assert off(x.flatten(), expected["x"][ctx.index]) < 1e-6


@pytest.mark.parametrize("case", official.LOOPS, ids=lambda case: "-".join(case[:2]))
def test_the_whole_loop(originals, loaded_originals, reference, case):
    """From the prompt to the video: the official program's generate() with the same seed."""
    kind, solver, steps, shift, guidance, (height, width) = case
    spec = make_spec(
        originals[kind],
        prompt=official.PROMPT,
        negative_prompt=official.NEGATIVE,
        solver=solver,
        schedule="wan",
        steps=steps,
        shift=shift,
        guidance=guidance,
        width=width,
        height=height,
        frames=official.FRAMES,
        seed=official.SEED,
    )
    records = sample(loaded_originals[kind], spec)
    if kind == "t2v-A14B":  # t >= 875: 1000 * 12u / (1 + 11u) with u = 1/3 is 857
        assert [r.ctx.expert for r in records] == ["high"] * 4 + ["low"] * 2
    latents = records[-1].x_next
    near(latents[0], reference, f"loop/{kind}/{solver}/latents")
    video = vae.decode(loaded_originals[kind].vae, latents)[0]
    assert video.shape == (3, 9, height, width)
    near(video, reference, f"loop/{kind}/{solver}/video", within=5 * CLOSE)
    assert decode(loaded_originals[kind], latents).shape == (9, height, width, 3)


@pytest.mark.skipif("WANLAB_OFFICIAL" not in os.environ, reason="WANLAB_OFFICIAL names no official implementation")
def test_the_reference_is_what_the_official_implementation_computes(reference):
    from .make_official_reference import reference as compute

    again = compute(Path(os.environ["WANLAB_OFFICIAL"]))
    assert set(again) == set(reference)
    for name, value in again.items():
        same = (value == reference[name]).all() if value.dtype.kind in "Ui" else off(value, reference[name]) < CLOSE
        assert same, name


# --- loading ---------------------------------------------------------------------------------------------------------


def in_diffusers_layout(model, folder):
    """What WanPipeline.save_pretrained writes for it."""
    found = model.checkpoint
    WanPipeline(
        tokenizer=model.tokenizer,
        text_encoder=model.text_encoder,
        vae=model.vae,
        scheduler=UniPCMultistepScheduler.from_config(found.scheduler),
        transformer=model.experts.get("high", model.experts.get("single")),
        transformer_2=model.experts.get("low"),
        boundary_ratio=found.boundary,
        expand_timesteps=found.expand_timesteps,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def converted(loaded_originals, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    return {
        kind: in_diffusers_layout(loaded_originals[kind], folder / kind) for kind in ("t2v-A14B", "ti2v-5B", "t2v-1.3B")
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["t2v-A14B", "ti2v-5B"])
def test_both_layouts_load_as_the_libraries_load_them(originals, converted, kind, dtype):
    """The same values in the same dtypes, of every parameter and buffer; nothing takes part in training."""
    original, theirs = (models.load(str(f[kind]), dtype=dtype) for f in (originals, converted))
    pipeline = WanPipeline.from_pretrained(converted[kind], torch_dtype=dtype)
    names = {"high": "transformer", "low": "transformer_2", "single": "transformer"}
    for part, expected in [("text_encoder", pipeline.text_encoder), ("vae", pipeline.vae)] + [
        (expert, getattr(pipeline, names[expert])) for expert in original.experts
    ]:
        wanted = dict(expected.named_parameters()) | dict(expected.named_buffers())
        for model in (original, theirs):
            module = model.experts[part] if part in names else getattr(model, part)
            got = dict(module.named_parameters()) | dict(module.named_buffers())
            assert set(got) == set(wanted) and not module.training
            for name, value in got.items():
                assert value.dtype == wanted[name].dtype and torch.equal(value, wanted[name]), name
                assert not value.requires_grad
            assert module.dtype == expected.dtype


@pytest.mark.parametrize("kind", ["ti2v-5B", "t2v-A14B", "t2v-1.3B"])
def test_the_pipeline_of_diffusers_computes_the_same(converted, kind):
    """TI2V's timesteps for tokens included: bit for bit in diffusers' layout."""
    model = models.load(str(converted[kind]))
    pipeline = WanPipeline.from_pretrained(converted[kind], torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        prompt=official.PROMPT,
        negative_prompt=official.NEGATIVE,
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=4,
        guidance_scale=5.0,
        output_type="latent",
        generator=torch.Generator().manual_seed(3),
    ).frames
    spec = make_spec(
        converted[kind],
        prompt=official.PROMPT,
        negative_prompt=official.NEGATIVE,
        steps=4,
        width=64,
        height=64,
        frames=9,
        guidance=(5.0, 5.0),
        seed=3,
    )
    assert torch.equal(sample(model, spec)[-1].x_next, expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_every_token_has_its_timestep(loaded_originals, stride):
    model = loaded_originals["ti2v-5B"]
    seen = []
    hook = model.experts["single"].register_forward_pre_hook(
        lambda _, args, given: seen.append(given), with_kwargs=True
    )
    try:
        denoiser = Denoiser(model, {"cond": torch.zeros(1, 512, 16), "uncond": torch.zeros(1, 512, 16)})
        ctx = step_contexts(Solver("unipc", "wan", 4, 5.0, model.checkpoint.scheduler, torch.device("cpu")), None)[1]
        call = Call(ctx=ctx, branches=("cond", "uncond"), x=torch.zeros(1, 48, 3, 4, 6), positions=stride)
        assert denoiser(call).shape == (2, 48, 3, 4, 6)
    finally:
        hook.remove()
    assert seen[0]["timestep"].tolist() == [[float(ctx.t)] * 18] * 2


def test_the_cost_of_timesteps_for_tokens(originals):
    """By hand for width 36, sinusoids of 32, 4 tokens: 2 * 4 * 36 * (32 + 7 * 36) operations more a pass."""
    found = models.describe(str(originals["ti2v-5B"]))
    spec = resolve(make_spec(originals["ti2v-5B"], width=64, height=64, frames=1), found)
    row = full_plan(spec, found).rows[0]
    assert row.tokens == 4
    plain = Cost.of(found.transformer).whole(4)
    assert row.flops == 2 * (plain + 2 * 4 * 36 * (32 + 7 * 36))


def test_sizes_that_the_model_cannot_make_are_refused_before_it_loads(originals, monkeypatch):
    monkeypatch.setattr(models, "load_component", lambda *_: pytest.fail("weights were loaded"))
    found = models.describe(str(originals["ti2v-5B"]))
    for size, near in (((48, 64), "use 32 or 64"), ((64, 720), "use 704 or 736"), ((16, 32), "use 32")):
        with pytest.raises(UsageError, match="not a multiple of 32") as caught:
            full_plan(resolve(make_spec(originals["ti2v-5B"], width=size[0], height=size[1]), found), found)
        assert near in caught.value.hint
    assert found.latent_shape(121, 1280, 704) == (48, 31, 44, 80)


@pytest.mark.parametrize("kind", ["ti2v-5B", "t2v-1.3B"])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_decoding_is_that_of_diffusers(loaded_originals, monkeypatch, kind, frames):
    """In two chunks, in chunks of two frames, and frame by frame, which is what diffusers does: in float64, where
    rounding is not mistaken for a difference."""
    module = deepcopy(loaded_originals[kind].vae).to(torch.float64)
    z = official.inputs(f"z {kind}", module.config.z_dim, frames, 4, 2)[None].double()
    mean, std = vae.latent_stats(module, z)
    expected = module.decode(z / (1 / std) + mean, return_dict=False)[0].clamp(-1, 1)
    assert torch.allclose(vae.decode(module, z), expected, rtol=0, atol=1e-13)
    assert torch.equal(vae.decode(module, z, at_once=1), expected)
    channels = 2 * 6 if kind == "ti2v-5B" else 4  # entering the last level: twice the decoder's base, or the base
    each = channels * 4 * (4 * 8) * (2 * 8)  # by 4 frames and, as the last level sees them, 8 x 8 pixels a latent
    monkeypatch.setattr(vae, "LARGEST", 3 * each - 1)
    assert vae.frames_at_once(module.config, z.shape) == 2
    assert torch.allclose(vae.decode(module, z), expected, rtol=0, atol=1e-13)
    monkeypatch.setattr(vae, "LARGEST", 1)
    assert vae.frames_at_once(module.config, z.shape) == 1
    assert torch.equal(vae.decode(module, z), expected)
    encoded = module.encode(expected).latent_dist.mean
    assert torch.allclose(vae.encode_moments(module, expected).chunk(2, dim=1)[0], encoded, rtol=0, atol=1e-13)


def test_nothing_is_asked_of_the_network(originals, monkeypatch):
    def refuse(*_args, **_more):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert models.load(str(originals["ti2v-5B"])).encode("a red ball").shape == (1, 512, 16)


def test_tensors_are_read_one_at_a_time(originals, monkeypatch):
    """None is held when the one after the next is read; and the pickles are mapped and hold tensors alone."""
    plain, asked, held = weights.stream, [], []

    def stream(files):
        for name, tensor in plain(files):
            assert sum(there() is not None for there in held) <= 1
            if files[0].suffix == ".safetensors" and "attn" in name and "norm" not in name:  # converted, not kept
                held.append(weakref.ref(tensor))
            yield name, tensor

    load = torch.load
    monkeypatch.setattr(weights, "stream", stream)
    monkeypatch.setattr(torch, "load", lambda *a, **given: asked.append(given) or load(*a, **given))
    models.load(str(originals["t2v-A14B"]), dtype=torch.bfloat16)
    assert len(held) == 2 * 2 * 2 * 8  # experts, blocks, attentions, weights and biases of q, k, v and o
    assert asked and all(given["weights_only"] is True and given["mmap"] is True for given in asked)


def test_single_parts_are_loaded_alone(originals):
    found = models.describe(str(originals["t2v-A14B"]))
    assert isinstance(models.load_component(found, "transformer_2", "cpu", torch.float32), WanTransformer3DModel)
    assert isinstance(models.load_component(found, "vae", "cpu", torch.float32), AutoencoderKLWan)
    assert isinstance(models.load_component(found, "text_encoder", "cpu", torch.float32), UMT5EncoderModel)


# --- what is refused -------------------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


def refused(folder, kind=WanlabError):
    with pytest.raises(kind) as caught:
        models.describe(str(folder))
    said = str(caught.value)
    assert "\n" not in said and len(said) < 2500
    return said


@pytest.mark.parametrize("name", [TEXT, "Wan2.1_VAE.pth"])
def test_a_pickle_with_code_in_it(copy, name):
    held = torch.load(copy / name, weights_only=True)
    torch.save(held | {"surplus": Bomb()}, copy / name)
    said = refused(copy, UsageError)
    assert name in said and "pytest" in said and "could run code" in said and "weights_only" not in said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda: [torch.zeros(1)], "a list, not tensors by name"),
        (lambda: {"state": {"a": torch.zeros(1)}}, "state, a dict and not a tensor"),
        (lambda: {"a\nb": 1}, r"a\nb, a int"),
        (lambda: {0: torch.zeros(1)}, "0, a Tensor"),
        (lambda: {"a": torch.zeros(1).expand(10**13)}, "claims tensors that it does not hold"),
        (lambda: {"a": torch.eye(2).to_sparse()}, "claims tensors that it does not hold"),
        (lambda: {"a": torch.nn.Linear(1, 1)}, "torch.nn.modules.linear.Linear beside tensors"),
        (dict, "no tensor token_embedding.weight"),
    ],
)
def test_pickles_that_are_no_state_dict(copy, content, says):
    torch.save(content(), copy / TEXT)
    assert says in refused(copy, UsageError)


def test_pickles_that_are_damaged_or_old(copy):
    whole = (copy / TEXT).read_bytes()
    for data in (whole[:-300], whole[300:], b"", pickle.dumps({"a": Bomb()}), pickle.dumps({"a": 1})):
        (copy / TEXT).write_bytes(data)
        assert "damaged" in refused(copy, UsageError)
    packed = io.BytesIO()  # torch stores, and never deflates: what is deflated can be larger than memory
    with zipfile.ZipFile(io.BytesIO(whole)) as before, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as after:
        for member in before.infolist():
            after.writestr(member.filename, before.read(member))
    (copy / TEXT).write_bytes(packed.getvalue())
    assert "not as torch saves" in refused(copy, UsageError)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    where=st.floats(0, 1, exclude_max=True),
    bits=st.integers(1, 255),
    keep=st.floats(0.2, 1),
    name=st.sampled_from([TEXT, HIGH]),
)
def test_whatever_is_damaged_is_said_in_one_line(originals, tmp_path, where, bits, keep, name):
    source = originals["t2v-A14B"] / name.replace("model.s", "model-00001-of-00003.s")
    data = bytearray(source.read_bytes())
    data[int(where * len(data))] ^= bits
    file = tmp_path / Path(name).name
    file.write_bytes(data[: int(keep * len(data))])
    try:
        for _, tensor in weights.stream([file]):
            tensor.float().sum()
        weights.heads([file])
    except WanlabError as error:
        assert "\n" not in str(error)


def test_all_that_does_not_fit_is_named_at_once(copy):
    """In every component: two are missing, ten left over, two of another shape, one of whole numbers."""
    held = load_file(copy / HIGH)
    del held["blocks.1.self_attn.q.weight"], held["head.modulation"]
    held |= {f"surplus.{k}": torch.zeros(1) for k in range(9)}
    held["blocks.0.ffn.0.bias"] = torch.zeros(5)
    held["text_embedding.2.weight"] = torch.zeros(36, 36, dtype=torch.int8)
    save_file(held, copy / HIGH)
    text = torch.load(copy / TEXT, weights_only=True)
    text["blocks.1.pos_embedding.embedding.weight"] = torch.zeros(31, 2)
    text["blocks.1.bad\x1b[31m"] = torch.zeros(1)
    torch.save(text, copy / TEXT)
    said = refused(copy)
    assert "2 missing (transformer: scale_shift_table, transformer: blocks.1.attn1.to_q.weight)" in said
    assert r"10 unexpected (text_encoder: blocks.1.bad\x1b[31m, transformer: surplus.0," in said
    assert "surplus.6, and 2 more)" in said and "surplus.7" not in said
    assert "text_encoder: blocks.1.pos_embedding.embedding.weight 31x2, not 32x2" in said
    assert "transformer: blocks.0.ffn.0.bias 5, not 48" in said
    assert "1 not in floating point (transformer: text_embedding.2.weight I8)" in said


def test_one_tensor_under_two_names(copy):
    held = load_file(copy / HIGH)
    held["model.diffusion_model.head.modulation"] = held["head.modulation"].clone()
    save_file(held, copy / HIGH)
    assert "unexpected" in refused(copy) or "twice" in refused(copy)


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        (TEXT, TEXT),
        ("Wan2.1_VAE.pth", "Wan2.1_VAE.pth or Wan2.2_VAE.pth"),
        ("google", "google/umt5-xxl/tokenizer_config.json"),
        ("low_noise_model", "low_noise_model/config.json"),
        ("high_noise_model/config.json", "high_noise_model/config.json"),
        (HIGH, "diffusion_pytorch_model.safetensors"),
    ],
)
def test_half_a_checkpoint(copy, gone, says):
    target = copy / gone
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    said = refused(copy, UsageError)
    assert "only part of a checkpoint" in said and says in said


def test_every_missing_part_is_named(copy):
    for name in (TEXT, "Wan2.1_VAE.pth", "high_noise_model/config.json"):
        (copy / name).unlink()
    said = refused(copy, UsageError)
    assert all(name in said for name in (TEXT, "Wan2.1_VAE.pth", "high_noise_model/config.json"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "i2v"}, "'WanModel of type i2v', not a Wan text-to-video transformer"),
        ({"_class_name": "VaceWanModel"}, "VaceWanModel"),
        ({"model_type": None}, "not a Wan text-to-video"),
        ({"text_len": 256}, "256 text tokens"),
        ({"num_layers": "2"}, "num_layers"),
        ({"num_layers": 10**9}, "num_layers is 1000000000, not 1 to 256"),
        ({"num_heads": 5}, "dim / num_heads"),
        ({"in_dim": 36}, "36 channels in, 16 out, 16 in the VAE"),
        ({"freq_dim": 64}, "time_embedding.0.weight 36x32, not 36x64"),
        ({"num_layers": 3}, "missing"),
    ],
)
def test_other_configurations(copy, change, says):
    file = copy / "high_noise_model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert says in refused(copy)


def test_the_autoencoder_of_another_model(copy, originals):
    (copy / "Wan2.1_VAE.pth").unlink()
    shutil.copy(originals["ti2v-5B"] / "Wan2.2_VAE.pth", copy)
    assert "16 channels in, 16 out, 48 in the VAE" in refused(copy, UsageError)
    shutil.copy(originals["t2v-14B"] / "Wan2.1_VAE.pth", copy)
    assert "holds both" in refused(copy, UsageError)
    (copy / "Wan2.2_VAE.pth").unlink()
    held = torch.load(copy / "Wan2.1_VAE.pth", weights_only=True)
    torch.save(held | {"conv2.weight": torch.zeros(4, 4, 1, 1, 1)}, copy / "Wan2.1_VAE.pth")
    assert "4 latent channels, not 16 or 48" in refused(copy, UsageError)


def test_a_tokenizer_of_more_words_than_the_text_encoder_knows(copy):
    held = torch.load(copy / TEXT, weights_only=True)
    torch.save(held | {"token_embedding.weight": torch.zeros(5, 16)}, copy / TEXT)
    with pytest.raises(WanlabError, match=f"has {official.VOCABULARY} words, the text encoder 5"):
        models.load(str(copy))


def test_a_tokenizer_that_is_code(copy):
    file = copy / "google" / "umt5-xxl" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": {"AutoTokenizer": [None, "own.Code"]}}))
    (copy / "google" / "umt5-xxl" / "own.py").write_text("raise SystemExit('code was run')")
    assert "the tokenizer is code of its own" in refused(copy, UsageError)


def test_the_original_layout_on_the_hub(monkeypatch, originals):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(originals["t2v-A14B"]))
    with pytest.raises(UsageError, match="original layout on the hub") as caught:
        models.describe("owner/name")
    assert "owner/name-Diffusers" in caught.value.hint


def test_batched_branches_and_bfloat16(originals):
    """The loop runs in the dtype of a GPU too, and near the float32 result."""
    plain, half = (models.load(str(originals["ti2v-5B"]), dtype=d) for d in (torch.float32, torch.bfloat16))
    spec = make_spec(originals["ti2v-5B"], steps=3, width=64, height=64, frames=5)
    exact = sample(plain, spec)[-1].x_next
    assert relative(sample(plain, spec, batched=True)[-1].x_next, exact) < 1e-5
    assert 0 < relative(sample(half, spec)[-1].x_next, exact) < 0.1
