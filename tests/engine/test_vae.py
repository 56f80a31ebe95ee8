"""The 16-bit autoencoder's faster parts: the formula by hand, diffusers' modules, and whole clips."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm, WanUpsample
from hypothesis import given, settings
from hypothesis import strategies as st

from wanlab.engine.model import loading as models
from wanlab.engine.model import vae


def norm_of(channels: int, images: bool = False, bias: bool = False) -> WanRMS_norm:
    theirs = WanRMS_norm(channels, images=images, bias=bias).bfloat16().requires_grad_(False)
    theirs.gamma.data += 0.25 * torch.arange(channels).view(theirs.gamma.shape)
    return theirs


def test_norm_by_hand():
    """(3, 4) has length 5: 3/5 √2 · 1 and 4/5 √2 · 1.25; zeros stay zero."""
    x = torch.tensor([[3.0, 0.0], [4.0, 0.0]], dtype=torch.bfloat16).view(1, 2, 2, 1, 1)
    y = vae.Norm(norm_of(2))(x).float().flatten()
    assert y.tolist() == pytest.approx([0.6 * 2**0.5, 0.0, 0.8 * 2**0.5 * 1.25, 0.0], rel=2**-8)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.booleans(), st.booleans())
def test_norm_is_nearer_than_diffusers(seed, frames, images, bias):
    """In parts or whole, with and without bias, of clips and of pictures: the exact value to half a step of
    bfloat16."""
    torch.manual_seed(seed)
    theirs = norm_of(12, images, bias)
    if bias:
        theirs.bias.data += 0.5
    x = (torch.randn(2, 12, frames, 6, 5) * 10 ** float(torch.randn(()))).bfloat16()
    x = x[:, :, 0] if images else x
    exact = torch.nn.functional.normalize(x.double(), dim=1) * theirs.scale * theirs.gamma.double() + (
        0.5 if bias else 0
    )
    ours = vae.Norm(theirs)
    for part in (vae.Norm.PART, 100):
        ours.PART = part
        y = ours(x).double()
        assert y.shape == x.shape and ((y - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()
    assert (ours(x).double() - exact).norm() <= (theirs(x).double() - exact).norm() * 1.01


def test_upsampling_is_diffusers():
    x = torch.randn(3, 4, 5, 7).bfloat16()
    assert torch.equal(vae.Upsample()(x), WanUpsample(scale_factor=(2.0, 2.0), mode="nearest-exact")(x))


def test_a_clip_decodes_as_well_as_with_diffusers_parts():
    """Of float32 latents: the faster 16-bit decoder is no further from float32 than the plain one."""
    exact = models.load("tiny", vae_dtype=torch.float32).vae
    plain = copy.deepcopy(exact).bfloat16()
    fast = models.load("tiny", vae_dtype=torch.bfloat16).vae
    assert any(isinstance(m, vae.Norm) for m in fast.modules()) and any(
        isinstance(m, vae.Upsample) for m in fast.modules()
    )
    assert not any(isinstance(m, vae.Norm) for m in exact.modules())  # float32 stays bit for bit
    z = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 16, 2, 5, 9), np.float32))
    truth = vae.decode(exact, z)
    far = [float((vae.decode(v, z).float() - truth).square().mean()) for v in (fast, plain)]
    assert 0 < far[0] <= 1.1 * far[1]
