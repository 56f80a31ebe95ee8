"""Encode and decode with `AutoencoderKLWan` in two causal chunks instead of one every four frames.

Shapes: video [B,3,T,H,W] in [-1,1]; latents [B,C,F,h,w] with T = 4(F-1)+1, H = 8h, W = 8w.

The Wan autoencoder is causal in time and treats the first frame apart; every later chunk of four
frames continues through a cache of the last two feature frames of each convolution. A causal
convolution over one long chunk sees exactly what it would see over many short ones, so the first
frame and then *all* the rest give the same result with F/2 times fewer kernel launches. The rest is
cut only where a feature would have more elements than 32 bits can count (`LARGEST`). Wan 2.2's own
autoencoder, which gathers pixels into patches (H = 16h), works through the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm, WanUpsample, patchify, unpatchify

from wanlab.engine.model.config import VaeConfig
from wanlab.engine.ranks.columns import Columns

LARGEST = 2**31 - 1  # elements of one tensor


class Norm(torch.nn.Module):
    """diffusers' `WanRMS_norm` of 16-bit features, in float32 from the first operation to the last.

    x / |x| √C gamma + bias over the channels C. diffusers rounds to 16 bits three times on the way; this is nearer to
    the exact value, and on a CPU several times faster: `linalg.vector_norm` over a strided dimension is slow there, and
    parts that stay in its cache need no large temporary values.
    """

    PART = 2**19  # elements

    def __init__(self, theirs: WanRMS_norm) -> None:
        super().__init__()
        self.gamma, self.bias, self.scale = theirs.gamma, theirs.bias, theirs.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B,C,T,H,W] or [B,C,H,W] to the same, in x's dtype."""
        out, gamma = torch.empty_like(x), self.gamma.float() * self.scale
        rows = max(1, self.PART * x.shape[2] // x.numel())
        for part, result in zip(torch.split(x, rows, 2), torch.split(out, rows, 2), strict=True):
            y = part.float()
            length = y.square().sum(1, keepdim=True).sqrt_().clamp_min_(1e-12)
            y.div_(length).mul_(gamma)
            result.copy_(y.add_(self.bias) if isinstance(self.bias, torch.Tensor) else y)
        return out


class Upsample(torch.nn.Module):
    """diffusers' `WanUpsample` in the features' own dtype: it repeats values, so float32 on the way changes nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B,C,H,W] to [B,C,2H,2W]."""
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


def optimize(vae: AutoencoderKLWan) -> None:
    """Let a 16-bit autoencoder's norms be `Norm` and its upsampling `Upsample`, in place."""
    for module in list(vae.modules()):
        for name, child in module.named_children():
            if isinstance(child, WanRMS_norm) and child.channel_first:
                setattr(module, name, Norm(child))
            elif isinstance(child, WanUpsample) and child.scale_factor == (2.0, 2.0) and "nearest" in child.mode:
                setattr(module, name, Upsample())


def latent_stats(vae: AutoencoderKLWan, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-channel mean and standard deviation of the latents, each [1,C,1,1,1], as `like`'s dtype and device."""
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, dtype=like.dtype, device=like.device).view(shape)
    std = torch.tensor(vae.config.latents_std, dtype=like.dtype, device=like.device).view(shape)
    return mean, std


def encode_moments(vae: AutoencoderKLWan, video: torch.Tensor) -> torch.Tensor:
    """Posterior mean and log-variance [B,2C,F,h,w] of a video [B,3,T,H,W], T = 4n+1."""
    x = video if vae.config.patch_size is None else patchify(video, vae.config.patch_size)
    cache: list[torch.Tensor | None] = [None] * vae._cached_conv_counts["encoder"]
    out = [vae.encoder(x[:, :, :1], feat_cache=cache, feat_idx=[0])]
    if x.shape[2] > 1:
        out.append(vae.encoder(x[:, :, 1:], feat_cache=cache, feat_idx=[0]))
    moments: torch.Tensor = vae.quant_conv(torch.cat(out, dim=2))
    return moments


def decode_raw(
    vae: AutoencoderKLWan, z: torch.Tensor, at_once: int | None = None, columns: Columns | None = None
) -> torch.Tensor:
    """Video [B,3,T,H,W] of unnormalised latents, before clamping to [-1,1]. At most `at_once` latent frames go through
    the decoder together, which bounds the memory; None: as many as may. `columns`: shared by ranks."""
    x = vae.post_quant_conv(z)

    def run(x: torch.Tensor) -> torch.Tensor:
        return _through_decoder(vae, x, at_once)

    y = run(x) if columns is None else columns.decode(vae.decoder, x, run)
    return y if vae.config.patch_size is None else unpatchify(y, vae.config.patch_size)


def _through_decoder(vae: AutoencoderKLWan, x: torch.Tensor, at_once: int | None) -> torch.Tensor:
    cache: list[torch.Tensor | None] = [None] * vae._cached_conv_counts["decoder"]
    out = [vae.decoder(x[:, :, :1], feat_cache=cache, feat_idx=[0], first_chunk=True)]
    if x.shape[2] > 1:
        most = min(frames_at_once(VaeConfig.from_json(vae.config), x.shape), at_once or x.shape[2])
        for part in torch.split(x[:, :, 1:], most, 2):
            out.append(vae.decoder(part, feat_cache=cache, feat_idx=[0]))
    return torch.cat(out, dim=2)


def widest(config: VaeConfig, height: int, width: int) -> int:
    """Elements of the decoder's widest feature, which enters its last level at full size, for one latent frame of
    height x width latents."""
    base, levels = config.decoder_base_dim or config.base_dim, config.dim_mult
    entering = levels[min(1, len(levels) - 1)] // (1 if config.is_residual else 2)
    return base * max(levels[0], entering) * config.scale_factor_temporal * height * width * int(4 ** (len(levels) - 1))


def frames_at_once(config: VaeConfig, shape: Sequence[int]) -> int:
    """How many frames of latents [B,C,F,h,w] may be decoded together: the decoder's widest feature has at most
    `LARGEST` elements."""
    return max(1, LARGEST // (shape[0] * widest(config, shape[3], shape[4])))


@torch.no_grad()
def encode(vae: AutoencoderKLWan, video: torch.Tensor) -> torch.Tensor:
    """Normalised latents (posterior mean, zero mean and unit variance per channel) of a video in [-1,1]."""
    mean, std = latent_stats(vae, video)
    return (encode_moments(vae, video).chunk(2, dim=1)[0] - mean) / std


@torch.no_grad()
def decode(
    vae: AutoencoderKLWan, latents: torch.Tensor, at_once: int | None = None, columns: Columns | None = None
) -> torch.Tensor:
    """Video in [-1,1], [B,3,T,H,W], of normalised latents [B,C,F,h,w]; computed in the VAE's own dtype. `at_once` and
    `columns` as in `decode_raw`."""
    z = latents.to(dtype=vae.dtype)
    mean, std = latent_stats(vae, z)
    # Divide by the reciprocal as WanPipeline does, so that both round alike.
    return decode_raw(vae, z / (1.0 / std) + mean, at_once, columns).clamp(-1.0, 1.0)
