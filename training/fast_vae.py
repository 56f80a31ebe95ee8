"""The same autoencoder, one pass over the whole clip: what `AutoencoderKLWan` computes, three times faster to train.

The published forward pass walks through a clip in chunks and keeps a cache a convolution. In one
pass only the temporal resampling needs care (it treats the first frame apart); every other causal
convolution just sees two empty frames before the clip. Norm, SiLU and that padding are one kernel,
and all activations stay channels-last, which cuDNN's 3-D convolutions want.

Legend: activations [B,C,T,H,W] with channels-last-3d strides; `Norm` weights [C].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify
from torch import Tensor, nn

try:
    import triton
    import triton.language as tl
except ImportError:  # no GPU: `norm_silu` takes its plain form
    triton = None

EMPTY = 2  # empty frames before a clip, for kernels of three frames

if triton is not None:

    @triton.jit
    def _forward(
        x_ptr,
        gamma_ptr,
        out_ptr,
        rows,
        clip,
        C: tl.constexpr,
        P: tl.constexpr,
        ACT: tl.constexpr,
        PAD: tl.constexpr,
        N: tl.constexpr,
    ):
        r = tl.program_id(0) * N + tl.arange(0, N)
        c = tl.arange(0, P)
        live = (r < rows)[:, None] & (c < C)[None, :]
        x = tl.load(x_ptr + r.to(tl.int64)[:, None] * C + c[None, :], mask=live, other=0.0).to(tl.float32)
        gamma = tl.load(gamma_ptr + c, mask=c < C, other=0.0)
        length = tl.sqrt(tl.sum(x * x, axis=1))
        y = x / tl.maximum(length, 1e-12)[:, None] * (C**0.5) * gamma[None, :]
        if ACT:
            y = y * tl.sigmoid(y)
        to = r.to(tl.int64) + (r // clip + 1) * PAD
        tl.store(out_ptr + to[:, None] * C + c[None, :], y, mask=live)

    @triton.jit
    def _backward(
        x_ptr,
        gamma_ptr,
        g_ptr,
        dx_ptr,
        dgamma_ptr,
        rows,
        clip,
        C: tl.constexpr,
        P: tl.constexpr,
        ACT: tl.constexpr,
        PAD: tl.constexpr,
        N: tl.constexpr,
    ):
        c = tl.arange(0, P)
        gamma = tl.load(gamma_ptr + c, mask=c < C, other=0.0)
        total = tl.zeros([P], tl.float32)
        for first in range(tl.program_id(0) * N, rows, tl.num_programs(0) * N):
            r = first + tl.arange(0, N)
            live = (r < rows)[:, None] & (c < C)[None, :]
            at = r.to(tl.int64)[:, None] * C + c[None, :]
            x = tl.load(x_ptr + at, mask=live, other=0.0).to(tl.float32)
            to = r.to(tl.int64) + (r // clip + 1) * PAD
            g = tl.load(g_ptr + to[:, None] * C + c[None, :], mask=live, other=0.0).to(tl.float32)
            length = tl.maximum(tl.sqrt(tl.sum(x * x, axis=1)), 1e-12)[:, None]
            n = x / length * (C**0.5)
            y = n * gamma[None, :]
            if ACT:
                s = tl.sigmoid(y)
                g = g * s * (1 + y * (1 - s))
            total += tl.sum(g * n, axis=0)
            g = g * gamma[None, :]
            dx = (g - n * (tl.sum(g * n, axis=1) / C)[:, None]) * (C**0.5) / length
            tl.store(dx_ptr + at, dx, mask=live)
        tl.store(dgamma_ptr + tl.program_id(0) * C + c, total, mask=c < C)


class _NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, gamma: Tensor, act: bool, empty: int) -> Tensor:  # type: ignore[override]
        b, c, t, h, w = x.shape
        x = x.contiguous(memory_format=torch.channels_last_3d)
        out = torch.empty((b, c, t + empty, h, w), dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
        if empty:
            out[:, :, :empty].zero_()
        rows, clip = b * t * h * w, t * h * w
        meta = dict(C=c, P=triton.next_power_of_2(c), ACT=act, PAD=empty * h * w, N=16)
        _forward[(triton.cdiv(rows, 16),)](x, gamma, out, rows, clip, **meta)
        ctx.save_for_backward(x, gamma)
        ctx.meta, ctx.size = meta, (rows, clip)
        return out

    @staticmethod
    def backward(ctx, g: Tensor):  # type: ignore[override, no-untyped-def]
        x, gamma = ctx.saved_tensors
        g = g.contiguous(memory_format=torch.channels_last_3d)
        dx = torch.empty_like(x)
        programs = min(1056, triton.cdiv(ctx.size[0], 16))
        partial = torch.empty(programs, gamma.numel(), device=x.device)
        _backward[(programs,)](x, gamma, g, dx, partial, *ctx.size, **ctx.meta)
        return dx, partial.sum(0), None, None


def norm_silu(x: Tensor, gamma: Tensor, *, act: bool = True, empty: int = 0) -> Tensor:
    """RMS norm over channels times gamma [C], SiLU if `act`, after `empty` zero frames; [B,C,empty+T,H,W]."""
    if x.is_cuda:
        return _NormSilu.apply(x, gamma, act, empty)
    y = F.normalize(x.float(), dim=1) * x.shape[1] ** 0.5 * gamma.view(1, -1, 1, 1, 1)
    y = (F.silu(y) if act else y).to(x.dtype)
    return F.pad(y, (0, 0, 0, 0, empty, 0))


def _conv(m: nn.Conv3d, x: Tensor, empty: bool = False) -> Tensor:
    """A causal convolution; `empty` says that its empty frames have still to be put before the clip."""
    kt, kh, _ = m.kernel_size
    if empty and kt > 1:
        x = F.pad(x, (0, 0, 0, 0, kt - 1, 0))
    return F.conv3d(x, m.weight, m.bias, stride=m.stride, padding=(0, kh // 2, kh // 2))


def _block(m: nn.Module, x: Tensor) -> Tensor:
    h = x if isinstance(m.conv_shortcut, nn.Identity) else _conv(m.conv_shortcut, x)
    y = _conv(m.conv1, norm_silu(x, m.norm1.gamma.flatten(), empty=EMPTY))
    return _conv(m.conv2, norm_silu(y, m.norm2.gamma.flatten(), empty=EMPTY)) + h


def _frames(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(0, 1)


def _clips(x: Tensor, b: int) -> Tensor:
    return x.unflatten(0, (b, -1)).transpose(1, 2)


def _attention(m: nn.Module, x: Tensor) -> Tensor:
    b, c, t, h, w = x.shape
    y = _frames(norm_silu(x, m.norm.gamma.flatten(), act=False))
    q, k, v = m.to_qkv(y).permute(0, 2, 3, 1).reshape(b * t, 1, h * w, 3 * c).chunk(3, dim=-1)
    y = F.scaled_dot_product_attention(q, k, v).reshape(b * t, h, w, c).permute(0, 3, 1, 2)
    return _clips(m.proj(y), b) + x


def _middle(m: nn.Module, x: Tensor) -> Tensor:
    return _block(m.resnets[1], _attention(m.attentions[0], _block(m.resnets[0], x)))


def _space(m: nn.Module, x: Tensor) -> Tensor:
    y = _frames(x)
    if m.mode.startswith("upsample"):  # nearest: exact in any dtype, so without WanUpsample's detour through float32
        y = m.resample[1](F.interpolate(y, scale_factor=2.0, mode="nearest-exact"))
    else:
        y = m.resample(y)
    return _clips(y, x.shape[0])


def _down(m: nn.Module, x: Tensor) -> Tensor:
    short = m.avg_shortcut(x)
    for r in m.resnets:
        x = _block(r, x)
    if m.downsampler is not None:
        x = _space(m.downsampler, x)
        if m.downsampler.mode == "downsample3d" and x.shape[2] > 1:
            x = torch.cat([x[:, :, :1], _conv(m.downsampler.time_conv, x)], dim=2)
    return x + short


def _up(m: nn.Module, x: Tensor) -> Tensor:
    short = None if m.avg_shortcut is None else m.avg_shortcut(x, first_chunk=True)
    for r in m.resnets:
        x = _block(r, x)
    if m.upsampler is not None:
        if m.upsampler.mode == "upsample3d" and x.shape[2] > 1:
            y = _conv(m.upsampler.time_conv, x[:, :, 1:], empty=True)  # [B,2C,T-1,H,W]
            y = torch.stack(y.chunk(2, dim=1), dim=3).flatten(2, 3)
            x = torch.cat([x[:, :, :1], y], dim=2)
        x = _space(m.upsampler, x)
    return x if short is None else x + short


def encode_moments(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    """Posterior mean and log-variance [B,2C,F,h,w]; as `wanlab.engine.model.vae.encode_moments`."""
    m = vae.encoder
    x = patchify(video, vae.config.patch_size).contiguous(memory_format=torch.channels_last_3d)
    x = _conv(m.conv_in, x, empty=True)
    for block in m.down_blocks:
        x = _down(block, x)
    x = _conv(m.conv_out, norm_silu(_middle(m.mid_block, x), m.norm_out.gamma.flatten(), empty=EMPTY))
    return _conv(vae.quant_conv, x)


def decode_raw(vae: AutoencoderKLWan, z: Tensor) -> Tensor:
    """Video [B,3,T,H,W] before clamping; as `wanlab.engine.model.vae.decode_raw`."""
    m = vae.decoder
    x = _conv(m.conv_in, _conv(vae.post_quant_conv, z.contiguous(memory_format=torch.channels_last_3d)), empty=True)
    x = _middle(m.mid_block, x)
    for block in m.up_blocks:
        x = _up(block, x)
    x = _conv(m.conv_out, norm_silu(x, m.norm_out.gamma.flatten(), empty=EMPTY))
    return unpatchify(x, vae.config.patch_size)


def channels_last(module: nn.Module) -> None:
    """Lay each convolution's weights out channels-last."""
    for p in module.parameters():
        if p.dim() == 5:
            p.data = p.data.to(memory_format=torch.channels_last_3d)
        elif p.dim() == 4:
            p.data = p.data.to(memory_format=torch.channels_last)
