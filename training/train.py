"""Train `tiny` from a seed: the autoencoder, then the base model with its text encoder, then the two experts.

    python -m training.train --out runs/tiny                 # all stages, one GPU
    python -m training.train --out runs/tiny --seconds 540   # stop in time; the same command goes on

Every stage counts steps, not seconds, so its result does not depend on the machine's speed, but for rounding; one that
is stopped goes on with other noise. A stage that is stopped leaves `state-STAGE.pt`, and the same command resumes it.
Finished stages are in `OUT/tiny`, the checkpoint. Legend: B clips, T frames, F latent frames; frames in [-1,1].
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from training import fast_vae, models, render
from wanlab.embedded import world
from wanlab.engine.model.kernels import ShortText
from wanlab.engine.model.vae import latent_stats

W, H = world.NATIVE_SIZE
INSIDE = re.compile(r"(blocks|mid_block)\..*\.weight$")  # the matrices and convolutions that Muon takes
LATENTS = "latents.pt"  # beside the checkpoint, what the denoisers learn from
POOL_MORE = 16  # frames of the autoencoder's clips beyond the longest it is shown


Loss = Callable[..., dict[str, Tensor]]
# What a word's embedding must tell of the object that the word is about.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": tuple(world.SHAPES),
    "colour": tuple(world.COLOURS),
    "size": (*world.SIZES, ""),
    "motion": tuple(world.MOTIONS),
    "speed": tuple(world.SPEEDS),
    "place": ("alone", "first", "second"),  # which of two things is where follows from which is named first
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the result."""

    seed: int = 0
    world: str = "2"  # version of `world.WORLDS`
    # Share of clips that are shown with another clip's caption, as captions of pictures in the wild often are wrong:
    # without guidance the model then follows its prompts as little as it could believe its captions.
    wrong_captions: float = 0.3
    pool: int = 6_000  # clips the autoencoder sees, each from many start frames
    # Autoencoder curriculum: (frames, clips a step, steps). Longer clips come once single frames are sharp.
    vae_phases: tuple[tuple[int, int, int], ...] = (
        (1, 128, 500),
        (9, 64, 700),
        (17, 32, 800),
        (49, 12, 700),
        (81, 8, 150),
    )
    # AdamW's, and Muon's for the convolutions inside the blocks; 0 leaves those to AdamW too.
    vae_lr: tuple[float, float] = (1.2e-3, 5e-3)
    kl: float = 2e-4
    squared: float = 20.0  # weight of the squared error, on which the PSNR rests, beside the absolute one's 1
    # Clips whose latents the experts learn from: (width, height, frames, clips, clips a step, share of steps).
    buckets: tuple[tuple[int, int, int, int, int, float], ...] = (
        (W, H, 49, 45_000, 64, 0.80),
        (W, H, 17, 6_000, 160, 0.04),
        (W, H, 81, 2_500, 40, 0.03),
        (W, H, 121, 2_000, 27, 0.03),
        (128, 96, 49, 3_000, 60, 0.04),
        (96, 96, 49, 3_000, 80, 0.02),
        (80, 144, 49, 3_000, 64, 0.02),
        (176, 96, 33, 3_000, 64, 0.02),
    )
    # What each part learns from in turn: (latent frames, clips a step, steps); the first latents of a causal
    # autoencoder are the latents of the first frames. 0 frames: whole clips of every bucket, as many a step as the
    # bucket says. Where things are, and how many, is decided at high noise: that expert learns longest.
    phases: dict[str, tuple[tuple[int, int, int], ...]] = field(
        default_factory=lambda: {
            "base": ((1, 384, 5_000), (5, 160, 6_500), (0, 0, 6_500)),
            "high": ((5, 160, 5_000), (0, 0, 16_000)),
            "low": ((0, 0, 8_000),),
        }
    )
    # Learning rates: AdamW's, and Muon's for the matrices inside the blocks. On single frames Muon at 6e-3 was
    # in 200 steps where AdamW at 1.2e-3 was in 500.
    base_lr: tuple[float, float] = (1.2e-3, 1e-2)
    expert_lr: tuple[float, float] = (6e-4, 5e-3)  # which the base falls to
    transformer: dict[str, int] = field(default_factory=dict)  # changes to `models.TRANSFORMER`
    no_caption: float = 0.12
    captions: int = 3  # wordings a clip
    # Shares of what is learned last: two objects, and paths that are not straight.
    pairs: float = 0.5
    curved: float = 0.4
    # Where in the schedule a picture's layout is decided depends on how many values say it: the noise level at which so
    # much is known goes with the root of their number (P. Esser et al., "Scaling Rectified Flow Transformers", 2024,
    # section 5.3.2). A latent of the A14B at 832x480 and 49 frames has 1 297 920 values and shift 12, one of `tiny`
    # 37 440: sigma/(1-sigma) is 5.9 times smaller, so shift 2 is its 12, and 0.54 the boundary of 0.875. Of 20 steps 13
    # are high-noise then, of 40 steps 26, as the real model's.
    flow_shift: float = 2.0
    boundary: float = 0.54
    # Noise levels are drawn as samplers of these shifts visit them. Of two things, which one has which colour is
    # decided above 0.88: that is where guidance can still mend it. They are those of whole clips: of a part of the
    # latents the shifts go with the root of its share, by the same rule.
    shifts: dict[str, tuple[float, float]] = field(
        default_factory=lambda: {"base": (1.0, 8.0), "high": (2.0, 8.0), "low": (0.5, 6.0)}
    )
    # Weight of the loss by which the text encoder learns what belongs to which object: the cross-entropy of
    # `ATTRIBUTES` from each word's embedding. From the pictures alone it does not: of a colour's word, the shape was
    # told in 25 %.
    binding: float = 0.1

    def __post_init__(self) -> None:
        if set(self.phases) != {"base", "high", "low"}:
            raise TypeError('phases are {"base": ((latent frames, clips, steps), …), "high": …, "low": …}')
        if self.world not in world.WORLDS:
            raise TypeError(f"no world {self.world!r}; there are {', '.join(world.WORLDS)}")
        ranges = all(0 < low <= high for low, high in self.shifts.values())
        if not 0 < self.boundary < 1 or not self.flow_shift > 0 or not ranges:
            raise TypeError("boundary is a noise level between 0 and 1, a flow shift above 0, shifts ranges of them")
        if set(self.shifts) != {"base", "high", "low"}:
            raise TypeError('shifts are {"base": (least, greatest), "high": …, "low": …}')
        if not 0 <= self.wrong_captions < 1:
            raise TypeError("wrong_captions is a share, at least 0 and below 1")


class Muon(torch.optim.Optimizer):
    """Momentum whose every update is orthogonalised, for weight matrices inside a network; a convolution's weight is
    one of [out,in*kernel].

    K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the update is
    scaled to AdamW's usual size, 0.2 a weight, as in J. Liu et al., "Muon is scalable for LLM
    training" (2025), so one learning rate serves both. Matrices of one shape go through the
    Newton-Schulz iteration as one batch and nothing waits for the host, so a CUDA graph can hold it;
    `torch.optim.Muon` does one matrix at a time.
    """

    def __init__(self, matrices: list[Tensor], lr: float | Tensor, momentum: float, weight_decay: float) -> None:
        shapes: dict[torch.Size, list[Tensor]] = {}
        for m in matrices:
            shapes.setdefault(m.flatten(1).shape, []).append(m)
        groups = [{"params": same} for same in shapes.values()]
        super().__init__(groups, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            params, state = group["params"], self.state[group["params"][0]]
            # A convolution over time has no part in single frames, and no gradient.
            grads = (torch.zeros_like(p) if p.grad is None else p.grad for p in params)
            grad = torch.stack([g.flatten(1) for g in grads])  # [n,rows,columns]
            kept = state.setdefault("momentum", torch.zeros_like(grad)).lerp_(grad, 1 - group["momentum"])
            x = grad.lerp(kept, group["momentum"])  # Nesterov
            tall = x.shape[1] > x.shape[2]
            x = (x.mT if tall else x).bfloat16()
            x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(5):  # singular values to about 1; the quintic's coefficients are Jordan's
                a = x @ x.mT
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
            x = (x.mT if tall else x).float() * (0.2 * math.sqrt(max(x.shape[1:])) * group["lr"])
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_sub_(params, [update.view(p.shape) for update, p in zip(x.unbind(), params, strict=True)])


class Stage:
    """Optimiser, average and step counter of one stage, saved and resumed as a whole.

    `graphs`: record one optimiser step of each kind as a CUDA graph and replay it. Networks this
    small wait for kernel launches otherwise; replayed, a step costs its arithmetic.
    `lr`: AdamW's, and Muon's, which takes the matrices and convolutions inside blocks (0: AdamW takes them too); both
    fall as a cosine to `floor` of that.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        steps: int,
        lr: tuple[float, float],
        out: Path,
        warmup: int = 300,
        ema: float = 0.999,
        floor: float = 0.02,
        graphs: bool = False,
    ) -> None:
        self.name, self.module, self.steps, self.warmup, self.decay = name, module, steps, warmup, ema
        self.floor = floor
        self.file = out / f"state-{name}.pt"
        self.params = [p for p in module.parameters() if p.requires_grad]
        cuda = self.params[0].is_cuda
        rates = [torch.tensor(r, device="cuda") if cuda else r for r in lr]  # a recorded step reads the tensors
        inside = {id(p) for n, p in module.named_parameters() if lr[1] and p.ndim > 1 and INSIDE.search(n)}
        matrices = [p for p in self.params if id(p) in inside]
        others = [p for p in self.params if id(p) not in inside]
        self.opts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=rates[0], betas=(0.9, 0.98), weight_decay=0.01, fused=cuda, capturable=cuda)
        ]
        if matrices:
            self.opts.append(Muon(matrices, rates[1], momentum=0.95, weight_decay=0.01))
        self.peaks = lr
        self.average = [p.detach().clone() for p in self.params]
        self.step = 0
        self.graphs = graphs and cuda
        self.visits: Counter[Hashable] = Counter()
        self.recorded: dict[Hashable, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], dict[str, Tensor]]] = {}
        # One memory for all graphs: they run one after the other, and what one returns is read before the next.
        self.pool = torch.cuda.graph_pool_handle() if self.graphs else None
        if self.file.exists():
            state = torch.load(self.file, map_location=self.params[0].device, weights_only=True)
            module.load_state_dict(state["module"])
            for opt, saved in zip(self.opts, state["opts"], strict=True):
                opt.load_state_dict(saved)
            self.average, self.step = [a.detach() for a in state["average"]], state["step"]

    def update(self, loss_of: Loss, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """One step of the optimiser; what `loss_of` returned, and the gradient's norm."""
        for p in self.params:
            p.grad = None
        parts = loss_of(*inputs)
        parts["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.params, 1.0)
        for opt in self.opts:
            opt.step()
        return {k: v.detach() for k, v in (parts | {"grad": norm}).items()}

    def replay(self, kind: Hashable, loss_of: Loss, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """`update`, recorded the fourth time a kind of step comes and replayed from then on."""
        self.visits[kind] += 1
        if self.visits[kind] <= 3:  # recording wants everything compiled and chosen, on a stream of its own
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                parts = self.update(loss_of, inputs)
            torch.cuda.current_stream().wait_stream(side)
            return parts
        if kind not in self.recorded:
            graph, held = torch.cuda.CUDAGraph(), tuple(i.clone() for i in inputs)
            with torch.cuda.graph(graph, pool=self.pool):
                parts = self.update(loss_of, held)
            self.recorded[kind] = graph, held, parts
        graph, held, parts = self.recorded[kind]
        for mine, given in zip(held, inputs, strict=True):
            mine.copy_(given)
        graph.replay()
        return parts

    def run(self, prepare: Callable[[int], tuple[Hashable, Loss, tuple[Tensor, ...]]], deadline: float) -> bool:
        """Train to the end, or until `deadline` (monotonic seconds): then save and return False.

        `prepare(step)`: what kind of step it is, its loss, and the loss's inputs.
        """
        start = last = time.monotonic()
        seen: dict[str, Tensor] = {}
        while self.step < self.steps:
            if time.monotonic() > deadline:
                keep(
                    {
                        "module": self.module.state_dict(),
                        "opts": [opt.state_dict() for opt in self.opts],
                        "average": self.average,
                        "step": self.step,
                    },
                    self.file,
                )
                return False
            done = self.step / self.steps
            fallen = 0.5 * (1 - math.cos(math.pi * done))
            pace = min(1.0, (self.step + 1) / self.warmup) * (1 - (1 - self.floor) * fallen)
            for opt, peak in zip(self.opts, self.peaks, strict=False):
                for group in opt.param_groups:
                    if isinstance(group["lr"], Tensor):
                        group["lr"].fill_(peak * pace)
                    else:
                        group["lr"] = peak * pace
            kind, loss_of, inputs = prepare(self.step)
            parts = self.replay(kind, loss_of, inputs) if self.graphs else self.update(loss_of, inputs)
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.params, 1 - min(self.decay, (self.step + 1) / (self.step + 10)))
            for k, v in parts.items():
                seen[k] = seen.get(k, 0.0) + v
            self.step += 1
            if self.step % 100 == 0:
                said = "  ".join(f"{k} {float(v) / 100:.5f}" for k, v in seen.items())
                now = time.monotonic()
                print(
                    f"{self.name} {self.step}/{self.steps}  {said}  "
                    f"{(now - last) * 10:.1f} ms/step  {now - start:.0f} s",
                    flush=True,
                )
                seen, last = {}, now
        for p, a in zip(self.params, self.average, strict=True):
            p.data.copy_(a)
        self.file.unlink(missing_ok=True)
        return True


def keep(content: Any, file: Path) -> None:
    """Save what a later run goes on from, whole or not at all."""
    torch.save(content, file.with_suffix(".part"))
    file.with_suffix(".part").replace(file)


def ahead(
    choose: Callable[[int], tuple[Any, list[np.ndarray]]], steps: int, device: torch.device
) -> Callable[[int], tuple[Any, list[Tensor]]]:
    """`choose(step)` gives what a step is and random indices for it, int64. The indices of many steps are moved to the
    device in one copy: a step that waited for its own would leave the GPU idle."""
    kept: dict[int, tuple[Any, list[Tensor]]] = {}

    def at(step: int) -> tuple[Any, list[Tensor]]:
        if step not in kept:
            kept.clear()
            chosen = {s: choose(s) for s in range(step, min(step + 200, steps))}
            arrays = [a for _, indices in chosen.values() for a in indices]
            flat = torch.from_numpy(np.concatenate(arrays)).to(device)
            pieces = iter(flat.split([len(a) for a in arrays]))
            kept.update({s: (what, [next(pieces) for _ in indices]) for s, (what, indices) in chosen.items()})
        return kept[step]

    return at


# --- autoencoder ----------------------------------------------------------------------------------


def film(rows: Tensor, frames: int) -> Tensor:
    """Drawn clips [N,3,frames,H,W] of placed ones [N,COLUMNS], uint8."""
    out = torch.empty(len(rows), 3, frames, H, W, dtype=torch.uint8, device=rows.device)
    for i in range(0, len(rows), 16):
        out[i : i + 16] = (render.draw(rows[i : i + 16], W, H, frames) * 255).round_()
    return out


def train_vae(recipe: Recipe, out: Path, device: torch.device, deadline: float, compiled: bool) -> bool:
    if (out / "tiny" / "vae").exists():
        return True
    torch.manual_seed(recipe.seed)
    vae = models.vae().to(device)
    fast_vae.channels_last(vae)
    version = world.WORLDS[recipe.world]
    pool = list(itertools.islice(world.scenes(recipe.seed, drawn=0.2, version=version), recipe.pool))
    rows = render.place_all(pool, recipe.seed, W, H, version=version).to(device)
    plan = [(t, b) for t, b, n in recipe.vae_phases for _ in range(n)]
    stage = Stage("vae", vae, len(plan), recipe.vae_lr, out, warmup=200, graphs=compiled)
    clips_of = film(rows, max(t for t, _ in plan) + POOL_MORE)

    def choose(step: int) -> tuple[Any, list[np.ndarray]]:
        frames, clips = plan[step]
        rng = np.random.default_rng((recipe.seed, step))
        return (frames, int(rng.integers(clips_of.shape[2] - frames + 1))), [rng.integers(len(rows), size=clips)]

    chosen = ahead(choose, len(plan), device)

    def prepare(step: int) -> tuple[Hashable, Loss, tuple[Tensor, ...]]:
        (frames, first), (pick,) = chosen(step)
        x = clips_of[pick, :, first : first + frames]
        return frames, loss_of, (x * (2 / 255) - 1,)

    def loss_of(x: Tensor) -> dict[str, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):  # as in `train_denoiser`
            h = fast_vae.encode_moments(vae, x)
            mean, logvar = h.float().chunk(2, dim=1)
            logvar = logvar.clamp(-20, 10)
            y = fast_vae.decode_raw(vae, mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)).float()
        d = y - x
        mse = d.square().mean()
        # Flat areas drift in colour before edges blur: weigh what survives 4x4 averaging once more.
        low = F.avg_pool3d(d, (1, 4, 4)).abs().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = d.abs().mean() + recipe.squared * mse + low + recipe.kl * kl
        return {"loss": loss, "psnr": -10 * torch.log10(mse / 4), "kl": kl}

    if not stage.run(prepare, deadline):
        return False
    # Latents leave the autoencoder with zero mean and unit variance a channel.
    with torch.no_grad():
        clips = (render.draw(rows[i : i + 8], W, H, 49) * 2 - 1 for i in range(0, min(512, len(rows)), 8))
        z = torch.cat(
            [fast_vae.encode_moments(vae, x)[:, : vae.config.z_dim].transpose(0, 1).flatten(1) for x in clips], dim=1
        )
    vae.register_to_config(
        latents_mean=[round(float(v), 5) for v in z.mean(1)], latents_std=[round(float(v), 5) for v in z.std(1)]
    )
    models.save(out / "tiny", "vae", vae)
    return True


# --- base model and experts -----------------------------------------------------------------------


@dataclass
class Bucket:
    latents: Tensor  # [N,16,F,h,w], bfloat16
    ids: Tensor  # [N,captions,L] token ids
    about: Tensor  # [N,captions,L,attributes] which value the object that a word is about has, -1 for none; int8
    weight: Tensor  # [N] of the loss under each clip's caption
    clips: int


def prepare_bucket(recipe: Recipe, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What of the recipe's `k`-th bucket needs no autoencoder: placed clips, and `Bucket`'s ids, about and weight. It
    takes a core half a minute for 40 000 clips."""
    w, h, frames, count, *_ = recipe.buckets[k]
    seed, version, words = recipe.seed + 1000 + k, world.WORLDS[recipe.world], models.tokenizer()
    scenes = list(
        itertools.islice(world.scenes(seed, version=version, pairs=recipe.pairs, curved=recipe.curved), count)
    )
    rng = np.random.default_rng(seed)
    # Every other caption states everything, as prompts do.
    texts = [world.caption(s, rng, full=bool(rng.random() < 0.5)) for s in scenes for _ in range(recipe.captions)]
    shape = (count, recipe.captions, models.WORDS)
    ids = torch.tensor(words(texts, padding="max_length", max_length=models.WORDS).input_ids).view(shape)
    about = torch.from_numpy(np.stack([tell(scenes[i // recipe.captions], text) for i, text in enumerate(texts)]))
    weight = torch.tensor([importance(s) for s in scenes])
    rows = render.place_all(scenes, seed, w, h, frames, version)
    return rows, ids, about.view(*shape, -1), weight / weight.mean()


def warm_drawing(recipe: Recipe) -> None:
    """Let another process make the kernels that `make_buckets` draws with, which go to torch's cache on the disk."""
    torch.set_float32_matmul_precision("high")  # as in `main`: another setting is another kernel to the cache
    version = world.WORLDS[recipe.world]
    scenes = list(itertools.islice(world.scenes(recipe.seed, version=version), 16))
    rows = render.place_all(scenes, recipe.seed, W, H, version=version)
    render.draw(rows.to("cuda"), W, H, world.NATIVE_FRAMES, compiled=True)


def make_buckets(
    recipe: Recipe, folder: Path, device: torch.device, prepared: Sequence[Future[tuple[Tensor, ...]]]
) -> tuple[list[Bucket], list[float]]:
    """Draw and encode the `prepared` clips, once: the result is kept in `latents.pt` beside the checkpoint."""
    kept, shares = folder.parent / LATENTS, [b[-1] for b in recipe.buckets]
    if kept.exists():
        stored = torch.load(kept, map_location=device, weights_only=True)
        return [Bucket(*b) for b in stored], shares
    vae = AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.bfloat16).to(device)
    fast_vae.channels_last(vae)
    buckets = []
    for k, ((w, h, frames, count, clips, _), future) in enumerate(zip(recipe.buckets, prepared, strict=True)):
        try:
            made = future.result()
        except Exception as error:  # a process that was lost: half an hour of training is not
            print(f"clips are prepared here: {error!r}", flush=True)
            made = prepare_bucket(recipe, k)
        rows, *about = (t.to(device) for t in made)
        n = max(1, 16 * 49 * W * H // (frames * w * h))
        latents = []
        for i in range(0, count, n):
            x = render.draw(rows[i : i + n], w, h, frames, compiled=device.type == "cuda")
            x = (x * 2 - 1).to(torch.bfloat16)
            with torch.no_grad():
                z = fast_vae.encode_moments(vae, x).chunk(2, dim=1)[0]
            mean, std = latent_stats(vae, z)
            latents.append(((z - mean) / std).contiguous())
        buckets.append(Bucket(torch.cat(latents), *about, clips))
    keep([(b.latents, b.ids, b.about, b.weight, b.clips) for b in buckets], kept)
    return buckets, shares


def importance(scene: world.Scene) -> float:
    """Weight of the loss under a scene's caption: what small things are is few pixels, and would be learned last.

    The mean over things of one over their size. It is the caption's, also where another clip is shown: a weight that
    the caption decides leaves the best prediction as it is.
    """
    return float(np.mean([20.0 / world.SIZES.get(t.size, 14.0) for t in scene.things] or [1.0]))


def tell(scene: world.Scene, text: str) -> np.ndarray:
    """[WORDS,attributes] int8: of the object that each word of a caption is about, which value each attribute has."""
    told = np.full((models.WORDS, len(ATTRIBUTES)), -1, np.int8)
    alone, *ordered = ATTRIBUTES["place"]
    places = ordered if len(scene.things) == 2 else [alone]
    things = [vars(thing) | {"place": place} for thing, place in zip(scene.things, places, strict=False)]
    for word, k in enumerate(world.whose(scene, text)):
        if k >= 0:
            told[word] = [values.index(things[k][name]) for name, values in ATTRIBUTES.items()]
    return told


def shifted(u: Tensor, shift: Tensor | float) -> Tensor:
    """Flow-matching time shift: sigma of a uniform u."""
    return shift * u / (1 + (shift - 1) * u)


def noise_levels(part: str, n: int, device: torch.device, recipe: Recipe, share: float = 1.0) -> Tensor:
    """Sigmas [n] to train on: all of them for the base model, one side of the boundary for an expert.

    Drawn as samplers visit them: uniform steps under a random shift between the recipe's two, which go with the root of
    the `share` of a clip's latents that is shown.
    """
    low, high = (shift * math.sqrt(share) for shift in recipe.shifts[part])
    shift = low * (high / low) ** torch.rand(n, device=device)
    edge = recipe.boundary / (shift - (shift - 1) * recipe.boundary)  # the u where sigma meets the boundary
    u = torch.rand(n, device=device)
    u = {"base": u, "high": edge + (1 - edge) * u, "low": edge * u}[part]
    return shifted(u, shift)


def blur_words(ids: Tensor, drawn: Tensor) -> Tensor:
    """Replace 1.2 % of the words by `<unk>`, so that a word never learned does no harm; `drawn`: uniform, like
    `ids`."""
    unknown = (drawn < 0.012) & (ids > models.UNK)
    return torch.where(unknown, models.UNK, ids)


def train_denoiser(
    part: str,
    recipe: Recipe,
    model: nn.Module,
    encoder: nn.Module,
    data: tuple[list[Bucket], list[float]],
    out: Path,
    deadline: float,
    compiled: bool,
) -> bool:
    """Flow matching, v = noise - x0, on this part's noise levels. The text encoder learns with the base only."""
    buckets, shares = data
    device = buckets[0].latents.device
    learns_text = part == "base"
    encoder.requires_grad_(learns_text)
    head = nn.Linear(models.TEXT["d_model"], sum(map(len, ATTRIBUTES.values()))).to(device)  # with the base only
    both = nn.ModuleDict({"model": model, "text": encoder, "head": head}) if learns_text else model
    lr, floor = recipe.expert_lr, 0.02
    if learns_text:
        lr, floor = recipe.base_lr, recipe.expert_lr[0] / recipe.base_lr[0]
    plan = [(frames, clips) for frames, clips, steps in recipe.phases[part] for _ in range(steps)]
    stage = Stage(part, both, len(plan), lr, out, ema=0.9995, floor=floor, graphs=compiled)
    torch.manual_seed(1000 * recipe.seed + 10 * stage.step + {"base": 1, "high": 2, "low": 3}[part])
    short = ShortText()
    short.install(model)
    p = np.array(shares) / sum(shares)

    def choose(step: int) -> tuple[Any, list[np.ndarray]]:
        rng = np.random.default_rng((recipe.seed, {"base": 1, "high": 2, "low": 3}[part], step))
        frames, clips = plan[step]
        k = 0 if frames else int(rng.choice(len(buckets), p=p))
        clips, count = clips or buckets[k].clips, len(buckets[k].latents)
        pick, which = rng.integers(count, size=clips), rng.integers(recipe.captions, size=clips)
        said = np.where(rng.random(clips) < recipe.wrong_captions, rng.integers(count, size=clips), pick)
        return (k, frames), [pick, said, which]

    chosen = ahead(choose, len(plan), device)

    def prepare(step: int) -> tuple[Hashable, Loss, tuple[Tensor, ...]]:
        (k, frames), indices = chosen(step)
        return (k, frames), partial(loss_of, buckets[k], frames), tuple(indices)

    def loss_of(bucket: Bucket, frames: int, pick: Tensor, said: Tensor, which: Tensor) -> dict[str, Tensor]:
        ids = bucket.ids[said, which]
        ids = blur_words(ids, torch.rand(ids.shape, device=device))
        silent = torch.rand(len(ids), 1, device=device) < recipe.no_caption
        empty = torch.full_like(ids, models.PAD)
        empty[:, 0] = models.EOS
        ids = torch.where(silent, empty, ids)
        about = bucket.about[said, which].masked_fill(silent.unsqueeze(-1), -1).long()
        x0 = bucket.latents[pick][:, :, : frames or None].float()
        noise = torch.randn_like(x0)
        sigma = noise_levels(part, len(x0), device, recipe, x0.shape[2] / bucket.latents.shape[2])
        s = sigma.view(-1, 1, 1, 1, 1)
        # The cache of cast weights would outlive a recorded step.
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            text = models.embed_short(encoder, ids, short)
            v = model((1 - s) * x0 + s * noise, sigma * 1000, text, return_dict=False)[0].float()
            told = head(text[:, : models.WORDS]).float() if learns_text else None
        weight = torch.where(silent[:, 0], 1.0, bucket.weight[said])
        flow = ((v - (noise - x0)).square().mean((1, 2, 3, 4)) * weight).mean()
        if told is None:
            return {"loss": flow}
        guesses = told.split([len(values) for values in ATTRIBUTES.values()], dim=-1)
        binding = torch.stack(
            [
                F.cross_entropy(guess.flatten(0, 1), about[..., k].flatten(), ignore_index=-1)
                for k, guess in enumerate(guesses)
            ]
        ).mean()
        return {"loss": flow + recipe.binding * binding, "flow": flow, "binding": binding}

    return stage.run(prepare, deadline)


def train_transformers(
    recipe: Recipe,
    out: Path,
    device: torch.device,
    deadline: float,
    compiled: bool,
    prepared: Sequence[Future[tuple[Tensor, ...]]],
) -> bool:
    tiny, start = out / "tiny", time.monotonic()
    data = make_buckets(recipe, tiny, device, prepared)
    print(f"{sum(len(b.latents) for b in data[0])} clips ready after {time.monotonic() - start:.0f} s", flush=True)

    def ready(m: nn.Module) -> nn.Module:
        m.to(device)
        if compiled:
            m.compile_repeated_blocks(dynamic=True)  # one compilation serves every size
        return m

    base_dir = out / "base"
    if not (base_dir / "transformer").exists():
        torch.manual_seed(recipe.seed + 10)
        model, encoder = ready(models.transformer(**recipe.transformer)), models.text_encoder().to(device)
        if not train_denoiser("base", recipe, model, encoder, data, out, deadline, compiled):
            return False
        models.save(tiny, "text_encoder", encoder, torch.float32)
        models.save(base_dir, "transformer", model, torch.float32)
    encoder = UMT5EncoderModel.from_pretrained(tiny / "text_encoder").to(device)
    for part, component in (("high", "transformer"), ("low", "transformer_2")):
        if (tiny / component).exists():
            continue
        model = ready(WanTransformer3DModel.from_pretrained(base_dir / "transformer", torch_dtype=torch.float32))
        if not train_denoiser(part, recipe, model, encoder, data, out, deadline, compiled):
            return False
        models.save(tiny, component, model)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop in time to be resumed")
    parser.add_argument("--only", choices=["vae", "transformers"], help="one stage")
    parser.add_argument("--recipe", type=json.loads, default={}, help='changes to the recipe, as JSON: {"pairs": 0.5}')
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=torch.cuda.is_available(),
        help="compile the blocks, and replay every step as a CUDA graph",
    )
    args = parser.parse_args()
    deadline = time.monotonic() + args.seconds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.benchmark_limit = 4  # trying every algorithm costs more than the best one gains
    torch.set_float32_matmul_precision("high")
    try:
        recipe = Recipe(**args.recipe)
    except TypeError as error:
        parser.error(f"--recipe: {error}")
    args.out.mkdir(parents=True, exist_ok=True)
    written, noted = json.dumps(asdict(recipe), indent=2) + "\n", args.out / "recipe.json"
    if noted.exists() and noted.read_text() != written:
        parser.error(f"{args.out} holds a run of another recipe ({noted}); name another folder")
    noted.write_text(written)
    models.save_frame(args.out / "tiny", world.WORLDS[recipe.world], recipe.flow_shift, recipe.boundary)
    # The clips that the denoisers learn from are placed and captioned while the autoencoder trains.
    spawned = partial(ProcessPoolExecutor, mp_context=multiprocessing.get_context("spawn"))
    with spawned(min(8, os.cpu_count() or 1)) as workers, spawned(1) as drawer:
        unneeded = args.only == "vae" or (args.out / LATENTS).exists()
        prepared = [] if unneeded else [workers.submit(prepare_bucket, recipe, k) for k in range(len(recipe.buckets))]
        if prepared and device.type == "cuda":
            drawer.submit(warm_drawing, recipe).add_done_callback(
                lambda done: print("kernels that draw are made:", done.exception() or "yes", flush=True)
            )
        stages: dict[str, Callable[..., bool]] = {
            "vae": train_vae,
            "transformers": partial(train_transformers, prepared=prepared),
        }
        for name, stage in stages.items():
            if args.only in (None, name):
                start = time.monotonic()
                finished = stage(recipe, args.out, device, deadline, args.compile)
                print(
                    f"{name}: {'done' if finished else 'stopped, run again to go on'} "
                    f"after {time.monotonic() - start:.0f} s",
                    flush=True,
                )
                if not finished:
                    workers.shutdown(cancel_futures=True)
                    return


if __name__ == "__main__":
    main()
