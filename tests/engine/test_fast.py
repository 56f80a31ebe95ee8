"""Faster transformers: the same numbers by other kernels, and 8-bit products whose rounding is what it says."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.engine.helpers import collecting, make_spec, sample
from wanlab.engine import run
from wanlab.engine.model import kernels as fast
from wanlab.engine.model import loading as models
from wanlab.errors import UsageError
from wanlab.runfile import Run
from wanlab.spec import PolicySpec


def result(spec, path):
    with Run(run.execute(spec, path)) as made:
        return np.asarray(made["latent"]), made.spec.precision


def test_every_clip_is_computed_by_the_same_code(checkpoint):
    """One compilation serves every number of frames and every place of them, one more both branches at once: what ran
    before in a process changes no bit of a clip."""
    graphs, backend = collecting()
    torch._dynamo.reset()
    model = models.load(str(checkpoint))
    for expert in model.experts.values():
        expert.compile_repeated_blocks(dynamic=True, backend=backend)
    half = PolicySpec.parse("half:switch=1"), PolicySpec.parse("half:rope=strided,switch=1")
    for policies, batched in (((), True), ((), False), (half[:1], False), (half[1:], False)):
        sample(model, make_spec(checkpoint, steps=2, policies=policies), batched=batched)
    torch._dynamo.reset()
    assert len(graphs) == 2


@pytest.mark.parametrize("kind", ["checkpoint", "single_checkpoint"])
def test_exact_computes_the_same_to_rounding_and_fp8_does_not(kind, request, tmp_path):
    spec = make_spec(request.getfixturevalue(kind), steps=4)
    plain, said = result(spec, tmp_path / "auto.h5")
    assert said == "reference"  # on the CPU
    exact, said = result(dataclasses.replace(spec, precision="exact"), tmp_path / "exact.h5")
    assert said == "exact"
    eighths, _ = result(dataclasses.replace(spec, precision="fp8"), tmp_path / "fp8.h5")
    scale = np.abs(plain).max()
    assert np.abs(exact - plain).max() < 1e-4 * scale
    assert 1e-4 * scale < np.abs(eighths - plain).max() < 0.5 * scale


def test_precision_decides_the_result_and_so_the_digest(checkpoint):
    specs = [make_spec(checkpoint, precision=p) for p in ("reference", "exact", "fp8")]
    assert len({s.digest() for s in specs}) == 3
    with pytest.raises(UsageError, match="--precision 'fp4'"):
        make_spec(checkpoint, precision="fp4")


def test_every_large_product_is_of_eighths(checkpoint):
    """By hand: a block has q,k,v and o of self-attention, q and o of cross-attention, two of the feed-forward."""
    model = models.load(str(checkpoint), precision="fp8")
    for expert in model.experts.values():
        config = expert.config
        width = config.num_attention_heads * config.attention_head_dim
        eighths = [m for m in expert.modules() if isinstance(m, fast.Float8Linear)]
        assert sum(m.weight.numel() for m in eighths) == config.num_layers * (6 * width**2 + 2 * width * config.ffn_dim)
        assert all(m.weight.dtype == torch.float8_e4m3fn for m in eighths)
        assert not {"to_k", "to_v"} & {n for m in eighths for n, _ in m.named_parameters()}


def test_the_plan_counts_eighths_as_one_byte(checkpoint):
    full, eighths = (run.plan(make_spec(checkpoint, precision=p)).memory_bytes for p in ("reference", "fp8"))
    model = models.load(str(checkpoint), precision="fp8")
    held = sum(p.numel() * p.element_size() for p in model.experts["high"].parameters())
    scales = sum(m.scale.numel() * 4 for m in model.experts["high"].modules() if isinstance(m, fast.Float8Linear))
    assert eighths["transformer"] == held - scales < full["transformer"]


def test_eighths_by_hand():
    """The largest of a row becomes 448. 17 of 28 is 272 of 448, between the values 256 and 288, in the middle: even."""
    values, scale = fast.to_float8(torch.tensor([[28.0, 17.0, -7.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    assert scale[0].item() == pytest.approx(28 / 448)
    assert values[0].float().tolist() == [448.0, 256.0, -112.0, 0.0]
    assert values[1].float().tolist() == [0.0] * 4


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_rounding_to_eighths_is_within_half_a_step(seed, size):
    """e4m3 has three bits after the first: half a step is a sixteenth; below 2^-6, half of 2^-9."""
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(seed)) * size
    values, scale = fast.to_float8(x)
    error = (values.float() * scale - x).abs()
    assert (error <= torch.maximum(x.abs() / 16, scale * 2**-10) * 1.0001).all()


def test_an_eighths_layer_multiplies_what_was_rounded():
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 8), torch.randn(2, 3, 24)
    rows, scale = fast.to_float8(x.flatten(0, 1))
    weight, by_output = fast.to_float8(layer.weight.detach())
    expected = (rows.double() * scale) @ (weight.double() * by_output).T + layer.bias.double()
    with torch.no_grad():
        y = fast.Float8Linear(layer)(x)
    assert y.shape == (2, 3, 8)
    assert torch.allclose(y.double().flatten(0, 1), expected, atol=1e-5)


def test_rotation_by_hand():
    """Neighbours turn together: (1, 0) by 90 degrees is (0, 1), (3, 4) by 180 degrees is (-3, -4)."""
    x = torch.tensor([1.0, 0.0, 3.0, 4.0]).view(1, 1, 1, 4)
    cos, sin = torch.tensor([0.0, 0.0, -1.0, -1.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert fast.rotate(x, cos.view(1, 1, 1, 4), sin.view(1, 1, 1, 4)).flatten().tolist() == [0.0, 1.0, -3.0, -4.0]


REAL_FP8_PROBLEM = fast.fp8_problem


@pytest.fixture
def hopper(monkeypatch):
    """A machine that says it has a Hopper GPU and FlashAttention-3."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (9, 0))
    monkeypatch.setattr(fast, "flash3_problem", lambda: "")
    monkeypatch.setattr(fast, "fp8_problem", lambda _: "")


def chosen(**changes):
    given = {"device": "cuda", "precision": "exact", "memory": "resident"} | changes
    return run.resolved(make_spec("tiny", width=144, height=80, **given)).attention


def test_auto_takes_the_fastest_attention_that_there_is(hopper, monkeypatch):
    assert chosen() == chosen(precision="fp8") == "flash3"
    assert chosen(precision="reference") == "auto"
    assert chosen(dtype="float16") == "cudnn"  # the package is for bfloat16
    assert chosen(dtype="float32") == "auto"  # neither is for 32 bits
    monkeypatch.setattr(fast, "flash3_problem", lambda: "it is not installed")
    assert chosen() == "cudnn"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (8, 0))
    assert chosen() == "auto"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"precision": "reference"}, "add --precision exact"),
        ({"precision": "auto", "memory": "offload"}, "plan swap"),
        ({"dtype": "float16"}, "--dtype bfloat16"),
    ],
)
def test_flash3_says_what_it_lacks(changes, says, hopper):
    with pytest.raises(UsageError) as refused:
        chosen(attention="flash3", **changes)
    assert says in refused.value.hint


def test_eighths_that_the_gpu_has_not_are_refused(hopper, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")

    monkeypatch.setattr(torch, "_scaled_mm", fails)
    REAL_FP8_PROBLEM.cache_clear()
    assert "CUBLAS_STATUS_NOT_SUPPORTED" in REAL_FP8_PROBLEM("cpu")
    monkeypatch.setattr(fast, "fp8_problem", lambda _: REAL_FP8_PROBLEM("cpu"))
    with pytest.raises(UsageError, match="no 8-bit products") as refused:
        chosen(precision="fp8")
    assert refused.value.hint == "use --precision exact"


def test_flash3_where_it_cannot_be():
    """On this machine: the package is not installed, or cannot be used without a GPU."""
    fast.flash3_problem.cache_clear()
    if "fa3_fwd_interface" not in sys.modules and importlib.util.find_spec("fa3_fwd_interface") is None:
        assert "fa3-fwd" in fast.flash3_problem()
    with pytest.raises(UsageError, match="needs a GPU"):
        run.resolved(make_spec("tiny", width=144, height=80, device="cpu", attention="flash3"))


def test_attention_in_8_bits_by_hand():
    """One head, two keys that score alike: the result is the values' mean, whatever is common to them. 100 and 101 less
    their mean 100.5 are -.5 and .5, which e4m3 holds exactly at a scale of .5/448; 100 alone would become 96 or 104."""
    query, key = torch.zeros(1, 1, 1, 2), torch.zeros(1, 2, 1, 2)
    value = torch.tensor([[100.0, -3.0], [101.0, -3.0]]).view(1, 2, 1, 2)
    one = torch.tensor(1.0)
    assert fast.float8_attention(query, key, value, (one, one)).flatten().tolist() == [100.5, -3.0]
    # Scores 0 and -ln 10: weights 1 and .1, before rounding; .1 * 256 = 25.6 becomes 26, the nearest of 24, 26 and 28.
    key = torch.tensor([[0.0, 0.0], [-math.log(10) * 2**0.5, 0.0]]).view(1, 2, 1, 2)
    bounds = one, key.abs().max()  # exact, then
    out = fast.float8_attention(torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), key, value, bounds).flatten()
    assert out[0] == pytest.approx(100.5 + (-0.5 * 1 + 0.5 * 26 / 256) / 1.1, abs=1e-5)


def test_attention_in_8_bits_is_near_attention():
    """What is common to all values costs nothing: the error is the same with a mean of 8 as without one."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 40, 3, 16) for _ in range(3))
    bounds = torch.tensor(2 * 48**0.5), torch.tensor(48**0.5)  # as of norms over 48 channels with weights 2 and 1

    def error(value):
        whole = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (2 * q, k, value)))
        return float((fast.float8_attention(2 * q, k, value, bounds) - whole.transpose(1, 2)).norm() / v.norm())

    assert 0.001 < error(v) < 0.06
    assert error(v + 8) == pytest.approx(error(v), rel=0.02)


def test_attention_in_8_bits_as_the_package_is_asked(monkeypatch):
    """On a GPU the package is given a scale for each sample and head, contiguous; of those, with torch's attention for
    its own, comes what a CPU makes of the same roundings but for the weights'."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 40, 3, 16) for _ in range(3))
    bounds = torch.tensor(48**0.5), torch.tensor(48**0.5)
    here = fast.float8_attention(q, k, v + 3, bounds)

    def forward(*given, softmax_scale, **scales):
        whole = []
        for x, name in zip(given, ("q_descale", "k_descale", "v_descale"), strict=True):
            assert x.dtype == torch.float8_e4m3fn and x.shape == (2, 40, 3, 16)
            assert scales[name].shape == (2, 3) and scales[name].is_contiguous()
            whole.append((x.float() * scales[name][:, None, :, None]).transpose(1, 2))
        return (torch.nn.functional.scaled_dot_product_attention(*whole, scale=softmax_scale).transpose(1, 2),)

    monkeypatch.setattr(torch.ops, "fa3_fwd", SimpleNamespace(_flash_attn_forward=forward), raising=False)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    there = fast.float8_attention(q, k, v + 3, bounds)
    assert (there - here).norm() / (here - 3).norm() < 0.02


def test_bound_of_a_norm():
    """[3,0,0,0] has a root mean square of 1.5 and becomes [2,0,0,0], times the weights; a pair that is turned stays as
    long. Nothing exceeds it, and one value of one channel reaches it."""
    norm = torch.nn.RMSNorm(4)
    norm.weight.data = torch.tensor([-3.0, 0.5, 1.0, 2.0])
    largest = fast.bound(norm).item()
    assert largest == 6 and norm(torch.tensor([3.0, 0, 0, 0]))[0].item() == pytest.approx(-6)
    torch.manual_seed(0)
    turn = (torch.rand(1, 500, 1, 2) * 6).repeat_interleave(2, -1)
    x = fast.rotate(norm(torch.randn(1, 500, 4) ** 5)[:, :, None], turn.cos(), turn.sin())
    assert 4 < x.abs().max().item() <= largest


def test_attention_in_8_bits_is_a_setting(checkpoint, tmp_path):
    """On the CPU its roundings alone: the latents move a little, and not with precision reference."""
    latents = {}
    for kernel in ("auto", "flash3-fp8"):
        made = run.execute(
            make_spec(checkpoint, steps=3, precision="exact", attention=kernel), tmp_path / f"{kernel}.h5"
        )
        with Run(made) as finished:
            latents[kernel] = np.asarray(finished["latent"])
    apart = np.abs(latents["auto"] - latents["flash3-fp8"]).max()
    assert 0 < apart < 0.2
    with pytest.raises(UsageError, match="needs a GPU"):
        run.resolved(make_spec(checkpoint, attention="flash3-fp8", precision="reference"))


def test_another_attention_warms_up_again(checkpoint):
    """What was compiled for one kernel is gone with it, so what had run once has not."""
    loaded, found = run.Models(), models.describe(str(checkpoint))
    spec = run.resolve(make_spec(checkpoint), found)
    model = loaded.load(spec, found)
    loaded.warm.add(("high", 1, (1,), "auto"))
    assert loaded.load(spec, found) is model and loaded.warm
    assert loaded.load(dataclasses.replace(spec, attention="math"), found) is model and not loaded.warm


def test_flash3_is_asked_what_torch_is_asked(checkpoint, monkeypatch):
    """The package's operator, stood in for by torch's attention in its layout [B,N,heads,D]: the velocities agree."""
    library = torch.library.Library("fa3_fwd", "FRAGMENT")
    library.define(
        "_flash_attn_forward(Tensor q, Tensor k, Tensor v, *, float? softmax_scale=None) -> (Tensor, Tensor)"
    )
    calls = []

    def forward(q, k, v, *, softmax_scale=None):
        calls.append(q.shape)
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * softmax_scale
        return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v), scores.logsumexp(-1)

    library.impl("_flash_attn_forward", forward, "CompositeExplicitAutograd")
    expert = models.load(str(checkpoint), precision="exact").experts["high"]
    for block in expert.blocks:
        block.attn2.set_processor(WanAttnProcessor())  # not the CPU's, which wants the text cut first
    torch.manual_seed(0)
    inputs = dict(
        hidden_states=torch.randn(1, 16, 3, 4, 6),
        timestep=torch.tensor([900.0]),
        encoder_hidden_states=torch.randn(1, 8, expert.config.text_dim),
        return_dict=False,
    )
    plain = expert(**inputs)[0]
    fast.set_self_attention(expert, "flash3")
    assert torch.allclose(expert(**inputs)[0], plain, atol=1e-5)
    assert len(calls) == expert.config.num_layers
    assert calls[0] == (1, 3 * 2 * 3, expert.config.num_attention_heads, expert.config.attention_head_dim)
    fast.set_self_attention(expert, "auto")
    expert(**inputs)
    assert len(calls) == expert.config.num_layers


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_the_gpu(tmp_path):
    clip = {"prompt": "a large red circle moving right on a black background", "width": 144, "height": 80, "frames": 17}
    spec = make_spec("tiny", steps=4, device="cuda", dtype="bfloat16", **clip)
    plain, _ = result(dataclasses.replace(spec, precision="reference"), tmp_path / "reference.h5")
    for precision, most in (("exact", 0.05), ("fp8", 0.4)):
        made, _ = result(dataclasses.replace(spec, precision=precision), tmp_path / f"{precision}.h5")
        assert 0 < np.linalg.norm(made - plain) < most * np.linalg.norm(plain)
