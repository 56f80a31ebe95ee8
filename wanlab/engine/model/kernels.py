"""The experts made faster without another sampler: what `--precision exact` and `--precision fp8` do to a transformer.

exact  the same function in the same dtype by other kernels: query, key and value in one product; on a GPU the blocks
       compiled, so that what lies between two products is one kernel, and on Hopper FlashAttention-3 where it is
       installed; on the CPU the text's padding as one key. Results differ in the last bits
fp8    besides, the blocks' large products of 8-bit floats (e4m3): a scale for each token and for each output. Text
       keys and values, embeddings, norms and attention keep their dtype

`--precision reference` leaves a transformer as diffusers has it, and is equal to WanPipeline bit by bit.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import Tensor, nn

from wanlab.engine.ranks.sequence import TokenSplit

E4M3_MAX = 448.0
# By whether they are 8-bit floats, what is kept of a block's keys and values.
KEPT = {False: ("key", "value"), True: ("key", "key scale", "value", "value scale")}


def optimize(
    expert: Any,
    precision: str,
    *,
    compiled: bool,
    text: ShortText | None,
    at: torch.device,
    home: torch.device,
) -> None:
    """Change `expert`, a WanTransformer3DModel, in place to compute by `precision`, "exact" or "fp8"; its weights are
    needed for nothing else.

    compiled  for a GPU
    text      on the CPU, what the cross-attention becomes
    at, home  where a block is changed, and where it is to be afterwards, as all of the expert is: a device that it is
              changed on never holds more than a block as it was
    """
    for block in expert.blocks:
        block.to(at)
        block.attn1.fuse_projections()
        for name in ("to_q", "to_k", "to_v"):
            delattr(block.attn1, name)  # their weights are in to_qkv now
        block.attn1.set_processor(SelfAttention())
        if precision == "fp8":
            for owner, name in products(block):
                setattr(owner, name, Float8Linear(getattr(owner, name)))
        block.to(home)
    expert.to(home)
    if text is not None:
        text.install(expert)
    if compiled:
        # One compilation serves every block, and every number of frames; one more each kind of batch, of kept keys, and
        # each precision that a process loads. Beyond its limit torch would go on uncompiled without a word.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        expert.compile_repeated_blocks(dynamic=True)


def products(block: Any) -> list[tuple[nn.Module, str]]:
    """Owner and name of a fused block's linear layers that every token goes through."""
    attn1, attn2, ffn = block.attn1, block.attn2, block.ffn
    return [
        (attn1, "to_qkv"),
        (attn1.to_out, "0"),
        (attn2, "to_q"),
        (attn2.to_out, "0"),
        (ffn.net[0], "proj"),
        (ffn.net, "2"),
    ]


@functools.cache
def flash3_problem() -> str:
    """Why FlashAttention-3 (J. Shah et al., 2024) cannot be had from the package fa3-fwd; "" when it can."""
    try:
        importlib.import_module("fa3_fwd_interface")
        _ = torch.ops.fa3_fwd._flash_attn_forward
    except Exception as error:  # a build for another torch or CUDA fails in its own ways
        return f"the package fa3-fwd cannot be used: {type(error).__name__}: {str(error)[:120]}"
    return ""


@functools.cache  # every specification of a batch asks
def fp8_problem(device: str) -> str:
    """Why a GPU cannot multiply 8-bit floats scaled by row as `Float8Linear` does; "" when it can."""
    try:
        x, scale = to_float8(torch.ones(32, 32, device=device, dtype=torch.bfloat16))
        torch._scaled_mm(
            x, x.t(), scale_a=scale, scale_b=scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
        ).sum().item()
    except torch.OutOfMemoryError:
        return ""  # the run will say so
    except RuntimeError as error:
        return f"this GPU and torch {torch.__version__} have no 8-bit products scaled by row: {str(error)[:120]}"
    return ""


def set_self_attention(expert: Any, kernel: str, *, ours: bool = False) -> None:
    """Let the self-attention of an expert that `optimize` changed be FlashAttention-3 if `kernel` is "flash3", that of
    8-bit floats if it is "flash3-fp8", else torch's. One that keeps keys, or whose tokens are on several ranks, is
    `ours` in any case, and equal to diffusers' bit for bit where all tokens are active and here."""
    if kernel.startswith("flash3"):
        flash3_problem()  # imports the operator: a rank that is told what to run has not asked for it
    for block in expert.blocks:
        fused = hasattr(block.attn1, "to_qkv")
        if fused or ours:
            block.attn1.set_processor(SelfAttention(kernel if fused else ""))
        elif isinstance(block.attn1.processor, SelfAttention):
            block.attn1.set_processor(WanAttnProcessor())


class SelfAttention:
    """Self-attention of all tokens or of some, written so that a compiler can fuse what follows the projections.

    keeps   whether keys and values of all tokens are kept from call to call, for active ones to attend to; else these
            attend to each other only
    active  positions [n] of the tokens it is given, None for all N of them
    kept    before a call with active tokens what was kept, after every call what is to be (`KEPT`). Tensors only, and
            none by the block's name: one compilation serves every block
    float8  whether they are kept as 8-bit floats
    kernel  "flash3", or "flash3-fp8"; any other: torch's own
    split   the ranks whose tokens these are a part of (engine/ranks/sequence.py); None: they are all there are
    """

    def __init__(self, kernel: str = "") -> None:
        self.kernel = kernel
        self.keeps, self.float8 = False, False
        self.active: Tensor | None = None
        self.kept: tuple[Tensor, ...] = ()
        self.split: TokenSplit | None = None

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """[B,n,D] to [B,n,D]; rotary_emb  cosines and sines, each [1,n,1,D/heads], of these tokens' positions"""
        assert rotary_emb is not None
        query, key, value = self.project(attn, hidden_states, rotary_emb)
        if self.split is not None:
            query, key, value = self.split.to_heads(query, key, value)
        if self.keeps:
            key, value = self.whole(key, value)
        if self.split is not None and self.split.ring > 1:
            out = self.split.around(functools.partial(weighed, flash3=self.kernel == "flash3"), query, key, value)
        elif self.kernel == "flash3-fp8":
            out = float8_attention(query, key, value, (bound(attn.norm_q), bound(attn.norm_k)))
        elif self.kernel == "flash3":
            # The package's public function is an autograd one around this operator, which a compiler cannot see
            # through.
            out = torch.ops.fa3_fwd._flash_attn_forward(query, key, value, softmax_scale=query.shape[-1] ** -0.5)[0]
        else:
            out = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
            out = out.transpose(1, 2)
        if self.split is not None:
            out = self.split.to_tokens(out, attn.heads)
        joined: Tensor = attn.to_out[0](out.flatten(2).type_as(query))
        return joined

    def project(
        self, attn: WanAttention, hidden: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of [B,n,D], each [B,n,heads,D/heads], the first two normed and rotated."""
        by_head = (*hidden.shape[:2], attn.heads, -1)
        fused = hasattr(attn, "to_qkv")
        if fused:
            query, key, value = attn.to_qkv(hidden).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden), attn.to_k(hidden), attn.to_v(hidden)
        if fused and hidden.device.type == "cpu":
            query, key = norm_and_rotate(attn, torch.stack((query, key), dim=2), *rotary).unbind(2)
        else:
            query = rotate(attn.norm_q(query).reshape(by_head), *rotary)
            key = rotate(attn.norm_k(key).reshape(by_head), *rotary)
        return query, key, value.reshape(by_head)

    def whole(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """All tokens' keys and values [B,N,heads,D/heads], those of the active ones being these fresh ones [B,n,…]; and
        what is kept of them, anew."""
        active, fresh = self.active, (key, value)
        parts = [part for whole in fresh for part in tokens_to_float8(whole)] if self.float8 else fresh
        if active is None:
            # Copies: these are parts of larger tensors, which would be kept with them.
            self.kept = tuple(part.clone(memory_format=torch.contiguous_format) for part in parts)
            return fresh
        self.kept = tuple(replaced(k, active, part) for k, part in zip(self.kept, parts, strict=True))
        if not self.float8:
            return self.kept[0], self.kept[1]
        # The fresh ones as they are: only what is remembered is rounded.
        large = (self.kept[k].to(key.dtype) * self.kept[k + 1].to(key.dtype) for k in (0, 2))
        whole_key, whole_value = (replaced(k, active, f) for k, f in zip(large, fresh, strict=True))
        return whole_key, whole_value


def replaced(whole: Tensor, active: Tensor, fresh: Tensor) -> Tensor:
    """Values [B,N,…] of all tokens with the active ones' [B,n,…] at their positions [n]."""
    if whole.dtype == torch.float8_e4m3fn:  # not every device can copy these
        return replaced(whole.view(torch.uint8), active, fresh.view(torch.uint8)).view(whole.dtype)
    return whole.index_copy(1, active, fresh)


def tokens_to_float8(x: Tensor) -> tuple[Tensor, Tensor]:
    """[B,N,heads,D/heads] as e4m3 values of that shape and a scale [B,N,1,1] for each token."""
    values, scale = to_float8(x.flatten(2).flatten(0, 1))
    return values.reshape(x.shape), scale.reshape(*x.shape[:2], 1, 1)


def weighed(query: Tensor, key: Tensor, value: Tensor, *, flash3: bool) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp: [B,n,heads,D] each to [B,n,heads,D] and [B,heads,n] in float32."""
    if flash3:
        out, lse = torch.ops.fa3_fwd._flash_attn_forward(query, key, value, softmax_scale=query.shape[-1] ** -0.5)[:2]
        return out, lse
    q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    if not query.is_cuda:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    elif query.dtype == torch.float32:
        out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[:2]
        lse = lse[..., : q.shape[2]]  # it is padded
    elif torch.backends.cuda.cudnn_sdp_enabled():  # type: ignore[no-untyped-call]
        out, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)[:2]
        lse = lse.reshape(q.shape[:-1])
    else:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[:2]
    return out.transpose(1, 2), lse.float()


class ShortText:
    """Cross-attention over the prompt alone, exactly as over its 512 padded positions.

    Every position past a prompt's end holds the same zero embedding, hence the same key and value; softmax over n
    copies of one key equals softmax over k copies with log(n/k) added to their score. So a few positions and a bias
    stand for 512.
    """

    def __init__(self) -> None:
        self.bias: Tensor | None = None

    def install(self, expert: Any) -> None:
        """Make it the cross-attention of every block."""
        for block in expert.blocks:
            block.attn2.set_processor(self)

    def cut(self, text: Tensor, own: Tensor, length: int) -> Tensor:
        """The first `length` positions of embeddings [B,N,D], and the bias for what is left out.

        own  positions [B] of each prompt, less than `length` (or N, when nothing is cut)
        """
        own, whole = own.unsqueeze(1), text.shape[1]
        past = torch.arange(length, device=text.device) >= own
        more = torch.log((whole - own).float()) - torch.log((length - own).float())
        self.bias = torch.where(past, more, 0.0)[:, None, None, :]
        return text[:, :length]

    def __call__(self, attn: WanAttention, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: object) -> Tensor:
        """[B,N,D] and the text as cut, [B,L,D], to [B,N,D]."""
        assert self.bias is not None

        def by_head(x: Tensor) -> Tensor:
            return x.reshape(*x.shape[:2], attn.heads, -1).transpose(1, 2)

        query = by_head(attn.norm_q(attn.to_q(hidden_states)))
        key = by_head(attn.norm_k(attn.to_k(encoder_hidden_states)))
        value = by_head(attn.to_v(encoder_hidden_states))
        out = F.scaled_dot_product_attention(
            query.to(value.dtype), key.to(value.dtype), value, attn_mask=self.bias.to(value.dtype)
        )
        joined: Tensor = attn.to_out[0](out.transpose(1, 2).flatten(2))
        return joined


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (J. Su et al., "RoFormer", 2021) of x [B,N,heads,D], neighbours making a pair."""
    even, odd = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    c, s = cos[..., 0::2], sin[..., 1::2]
    return torch.stack((even * c - odd * s, even * s + odd * c), dim=-1).flatten(-2).type_as(x)


def norm_and_rotate(attn: WanAttention, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Norm and rotation of query and key together, [B,N,2,D] to [B,N,2,heads,D/heads]: what a compiler makes of
    `rotate` on a GPU, in few operations for a CPU that runs one after the other. In float32 until the end."""
    y = x.float()
    weight = torch.stack((attn.norm_q.weight, attn.norm_k.weight)).float()
    y = y * (y.square().mean(-1, keepdim=True) + attn.norm_q.eps).rsqrt_() * weight
    pairs = torch.view_as_complex(y.reshape(*x.shape[:3], attn.heads, -1, 2))
    turn = torch.complex(cos[..., 0::2].float(), sin[..., 1::2].float()).unsqueeze(2)  # [1,N,1,1,D/heads/2]
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


class Float8Linear(nn.Module):
    """A linear layer whose product is of 8-bit floats, scaled by row: each token and each output by its own maximum.

    On a GPU that has such products (compute capability 8.9 and up) the result is accumulated by them; elsewhere the
    rounded values are multiplied in the input's dtype, which shows what the rounding does and saves no time.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = to_float8(linear.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)  # [out,in]
        self.scale = nn.Parameter(scale, requires_grad=False)  # [out,1]
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """[...,in] to [...,out] in x's dtype."""
        rows, scale = to_float8(x.flatten(0, -2))
        if x.is_cuda:
            y = torch._scaled_mm(
                rows,
                self.weight.t(),
                scale_a=scale,
                scale_b=self.scale.t(),
                bias=self.bias,
                out_dtype=x.dtype,
                use_fast_accum=True,
            )
        else:
            y = F.linear(
                rows.to(x.dtype) * scale.to(x.dtype), self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias
            )
        return y.reshape(*x.shape[:-1], -1)


def bound(norm: Any) -> Tensor:
    """What no value is larger than, a scalar, that an RMS norm over D channels gives, rotated or not: of D numbers the
    largest is at most sqrt(D) of their root mean square, and so is each pair's length."""
    largest: Tensor = norm.weight.abs().amax().float() * norm.weight.numel() ** 0.5
    return largest


def float8_attention(query: Tensor, key: Tensor, value: Tensor, bounds: tuple[Tensor, Tensor]) -> Tensor:
    """Attention of 8-bit floats (e4m3), [B,n,heads,D/heads] with keys and values [B,N,heads,D/heads]: FlashAttention's
    on a GPU (J. Shah et al., 2024); elsewhere the same roundings in float32, which save no time.

    bounds  what queries and keys, each normed, cannot exceed (`bound`): their scales, so that nothing waits for a
            maximum over tokens. Floats keep their digits below it: what is 2^-14 of it still has all of them

    Values have a scale for each head, and go in less their mean over tokens, added to the result: a row of the softmax
    sums to 1, so this is exact, and what is common to all values is not rounded.
    """
    v8, v_scale, mean = values_to_float8(value)
    q_scale, k_scale = ((b.clamp(min=1e-12) * (1 / E4M3_MAX)).expand(v_scale.shape) for b in bounds)
    q8, k8 = (scaled(x.float(), s) for x, s in ((query, q_scale), (key, k_scale)))
    scale = query.shape[-1] ** -0.5
    if query.is_cuda:
        out: Tensor = torch.ops.fa3_fwd._flash_attn_forward(
            q8,
            k8,
            v8,
            q_descale=q_scale.contiguous(),
            k_descale=k_scale.contiguous(),
            v_descale=v_scale,
            softmax_scale=scale,
        )[0]
    else:
        every = ((q8, q_scale), (k8, k_scale), (v8, v_scale))
        q, k, v = ((x.float() * s[:, None, :, None]).transpose(1, 2) for x, s in every)
        scores = q @ k.mT * scale
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        # The kernel multiplies the weights by 2^8 before it rounds them, so that small ones keep their digits.
        rounded = (weights * 256).to(torch.float8_e4m3fn).float() / 256
        out = ((rounded @ v) / weights.sum(-1, keepdim=True)).transpose(1, 2)
    whole: Tensor = (out.float() + mean).to(query.dtype)
    return whole


def values_to_float8(value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B,N,heads,D] less its mean over tokens as e4m3 values of that shape, a float32 scale [B,heads] for each head,
    whose maximum becomes 448, and that mean [B,1,heads,D] in float32. A compiler reads the tokens once for all."""
    mean = value.float().mean(dim=1, keepdim=True)
    most, least = value.amax(dim=1, keepdim=True).float(), value.amin(dim=1, keepdim=True).float()
    largest = torch.maximum(most - mean, mean - least).amax(dim=(1, 3))
    scale = largest.clamp(min=1e-12) * (1 / E4M3_MAX)
    return scaled(value.float() - mean, scale), scale, mean


def scaled(x: Tensor, scale: Tensor) -> Tensor:
    """[B,N,heads,D] over scales [B,heads], as e4m3."""
    return (x / scale[:, None, :, None]).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def to_float8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [n,k] as e4m3 values and float32 scales [n,1] with x ≈ values * scales: each row's maximum becomes 448."""
    # Not a division: a GPU multiplies by the reciprocal and a CPU does not, and both should round alike.
    scale = x.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) * (1 / E4M3_MAX)
    return (x.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scale
