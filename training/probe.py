"""Adherence by guidance of one checkpoint, and a sheet of clips to look at: a short look at a recipe.

python -m training.probe --model runs/probe/tiny --prompts 96 --guidance 1 4 --sheet sheet.png
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from diffusers import WanPipeline

from training import evaluate


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
        for text in evaluate.sheet(pipe, 20, 4.0, args.sheet):
            print(f"sheet: {text}")
    for g in args.guidance:
        right, _ = evaluate.prompts_followed(pipe, args.prompts, g, batch=48)
        say(f"guidance {g:g}: " + "  ".join(f"{a} {v:.1f}" for a, v in right.items()))
    if args.clips:
        for row in evaluate.reconstruction(pipe, args.clips):
            say(str(row))


if __name__ == "__main__":
    main()
