"""Adherence by guidance of one checkpoint, and a sheet of clips to look at: a short look at a recipe.

python -m training.probe --model runs/probe/tiny --prompts 96 --guidance 1 4 --sheet sheet.png
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import WanPipeline
from PIL import Image

from training import evaluate
from wanlab.embedded import world, world_of
from wanlab.engine.model import vae as wan_vae


@torch.no_grad()
def sheet(pipe: WanPipeline, count: int, guidance: float, file: Path) -> None:
    """Two columns of clips, four frames each, of held-out prompts; the prompts are printed in order."""
    version = world_of(Path(pipe.config._name_or_path))
    scenes = evaluate.held_out_scenes(count, version, drawn=0.0)
    rng = np.random.default_rng(evaluate.SEED)
    texts = [world.caption(s, rng, full=True) for s in scenes]
    z, _ = evaluate.sample(pipe, texts, list(range(count)), guidance=guidance)
    strips = []
    for text, latent in zip(texts, z, strict=True):
        video = ((wan_vae.decode(pipe.vae, latent[None]).float()[0] + 1) / 2).clamp(0, 1)
        strips.append(torch.cat([video[:, k] for k in (0, 16, 32, 48)], dim=2))
        print(f"sheet: {text}")
    picture = torch.cat([torch.cat(strips[k : k + 2], dim=2) for k in range(0, count, 2)], dim=1)
    Image.fromarray((picture.permute(1, 2, 0) * 255).round().byte().cpu().numpy()).save(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 4.0])
    parser.add_argument("--clips", type=int, default=16, help="clips through the autoencoder; 0: none")
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipe = WanPipeline.from_pretrained(args.model, torch_dtype=torch.float32).to(device)
    pipe.set_progress_bar_config(disable=True)
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"{text}  {time.monotonic() - start:.0f} s", flush=True)

    if args.sheet:
        sheet(pipe, 16, 4.0, args.sheet)
    for g in args.guidance:
        right, _ = evaluate.prompts_followed(pipe, args.prompts, g, batch=48)
        say(f"guidance {g:g}: " + "  ".join(f"{a} {v:.1f}" for a, v in right.items()))
    if args.clips:
        for row in evaluate.reconstruction(pipe, args.clips):
            say(str(row))


if __name__ == "__main__":
    main()
