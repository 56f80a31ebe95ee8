"""How easily `tiny`'s trajectories part, beside what is published of the real models.

    python -m training.sensitivity                                      # the shipped weights
    python -m training.sensitivity --model runs/tiny/tiny --published ../shared/data/magnitude-ratios.json

Measured: PSNR of half the steps against all of them; the ratio of magnitudes of the block stack's residual from one
step to the next, by branch (mean over tokens of |r_k| / |r_(k-1)|, as MagCache calibrates it); cosine between the two
branches' predictions. Published ratios are compared by Pearson's and Spearman's correlation within each expert, and at
the switch. Legend: B clips, N tokens, D channels; K steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from scipy import stats
from torch import Tensor, nn

from training import evaluate, models
from wanlab.embedded import tiny_path, world, world_of
from wanlab.engine.model import vae as wan_vae


@contextmanager
def residuals(experts: list[WanTransformer3DModel]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """While open, gathers of every pass what the blocks added to the hidden state [B,N,D], and the prediction."""
    into: list[Tensor] = []
    added: list[Tensor] = []
    out: list[Tensor] = []

    def begin(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        into[:] = [args[0]]

    def end(_: nn.Module, __: object, hidden: Tensor) -> None:
        added.append((hidden.float() - into[0].float()).cpu())

    def predict(_: nn.Module, __: object, value: tuple[Tensor]) -> None:
        out.append(value[0].float().cpu())

    hooks = [
        h
        for m in experts
        for h in (
            m.blocks[0].register_forward_pre_hook(begin),
            m.blocks[-1].register_forward_hook(end),
            m.register_forward_hook(predict),
        )
    ]
    try:
        yield added, out
    finally:
        for h in hooks:
            h.remove()


def magnitude_ratios(added: list[Tensor]) -> np.ndarray:
    """[K-1]: mean over clips and tokens of the residual's length over the one before."""
    lengths = torch.stack([a.norm(dim=-1) for a in added])  # [K,B,N]
    return (lengths[1:] / lengths[:-1]).mean((1, 2)).numpy()  # type: ignore[no-any-return]


def correlations(mine: np.ndarray, theirs: np.ndarray) -> str:
    """Pearson's and Spearman's, and each one's last ratio."""
    r, rho = stats.pearsonr(mine, theirs).statistic, stats.spearmanr(mine, theirs).statistic
    return f"Pearson {r:+.3f}, Spearman {rho:+.3f}, last {mine[-1]:.3f} against {theirs[-1]:.3f}"


@torch.no_grad()
def measure(pipe: WanPipeline, prompts: int, steps: int, guidance: float, published: Path | None) -> dict[str, object]:
    """Print and return all measures; every clip at its own seed."""
    version = world_of(Path(pipe.config._name_or_path))
    scenes = list(itertools.islice(world.scenes(evaluate.SEED, held=True, version=version, drawn=0.0), prompts))
    rng = np.random.default_rng(evaluate.SEED)
    texts, seeds = [world.caption(s, rng, full=True) for s in scenes], list(range(prompts))
    latents = {}
    with residuals([pipe.transformer, pipe.transformer_2]) as (added, out):
        for n in (steps // 2, steps):
            added.clear(), out.clear()
            latents[n] = evaluate.sample(pipe, texts, seeds, guidance=guidance, steps=n)[0]
    clips = {
        n: torch.cat([((wan_vae.decode(pipe.vae, v[None]).float() + 1) / 2).clamp(0, 1) for v in z])
        for n, z in latents.items()
    }
    psnr = [evaluate.psnr(float(m)) for m in (clips[steps // 2] - clips[steps]).square().mean((1, 2, 3, 4))]
    branches = {"cond": added[0::2], "uncond": added[1::2]}
    ratios = {name: magnitude_ratios(r) for name, r in branches.items()}
    cosine = [
        float(torch.cosine_similarity(a.flatten(1), b.flatten(1)).mean())
        for a, b in zip(out[0::2], out[1::2], strict=True)
    ]
    pipe.scheduler.set_timesteps(steps)
    low = int(
        (pipe.scheduler.timesteps < models.BOUNDARY * 1000).nonzero()[0]
    )  # the first step of the low-noise expert
    spread = 1.96 * np.std(psnr, ddof=1) / len(psnr) ** 0.5
    print(f"PSNR of {steps // 2} steps against {steps}: {np.mean(psnr):.1f} dB (95 % {spread:.1f}, {prompts} prompts)")
    for name, r in ratios.items():
        print(f"ratios, {name}: first {r[0]:.4f}, at the switch {r[low - 1]:.3f}, last {r[-1]:.3f}")
    print("cosine between branches by step: " + " ".join(f"{c:.4f}" for c in cosine))
    if published:
        real = json.loads(published.read_text())["models"]["Wan2.2-T2V-A14B"]
        if real["steps"] == steps and real["first_low_noise_step"] == low:
            for name, r in ratios.items():
                theirs = np.array(real[name])
                print(f"A14B, high noise, {name}: {correlations(r[: low - 1], theirs[: low - 1])}")
                print(f"A14B, switch, {name}: {r[low - 1]:.3f} against {theirs[low - 1]:.3f}")
                print(f"A14B, low noise, {name}: {correlations(r[low:], theirs[low:])}")
        else:
            print(
                f"the published ratios are of {real['steps']} steps, low noise from step {real['first_low_noise_step']}"
            )
    return {
        "steps": steps, "guidance": guidance, "psnr": psnr, "cosine": cosine, "first_low_noise_step": low,
        "ratios": {name: r.tolist() for name, r in ratios.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=tiny_path())
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--published", type=Path, help="magnitude-ratios.json")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipe = WanPipeline.from_pretrained(args.model, torch_dtype=torch.float32).to(device)
    pipe.set_progress_bar_config(disable=True)
    figures = measure(pipe, args.prompts, args.steps, args.guidance, args.published)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
