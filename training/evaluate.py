"""Measure `tiny` on held-out prompts and seeds, and print the figures into its model card.

    python -m training.evaluate                      # the shipped weights; an hour on two cores, a minute on a GPU
    python -m training.evaluate --model runs/tiny/tiny --prompts 64

The card (README.md beside the weights) is rewritten between its two markers. Pixels are in [0,1].
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import WanPipeline
from torch import Tensor

from training import models, render
from wanlab.embedded import tiny_path, world, world_of
from wanlab.embedded.verify import judge, observe
from wanlab.embedded.world import World
from wanlab.engine.model import vae as wan_vae

W, H = world.NATIVE_SIZE
SEED = 20_000  # nothing in training draws from this seed; the scenes are held-out combinations besides
ATTRIBUTES = {"colour": 97, "direction": 97, "size": 95, "shape": 90, "background": 97}
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass
class Row:
    """One line of the card: what was measured, the bar, the figure, and whether it holds."""

    what: str
    bar: str
    figure: str
    holds: bool | None

    def __str__(self) -> str:
        holds = "" if self.holds is None else "yes" if self.holds else "**no**"
        return f"| {self.what} | {self.bar} | {self.figure} | {holds} |"


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error, peak 1."""
    return float(-10 * np.log10(mse))


def held_out_scenes(n: int, version: World, seed: int = SEED, **shares: float) -> list[world.Scene]:
    return list(itertools.islice(world.scenes(seed, held=True, version=version, **shares), n))


def reconstruction(pipe: WanPipeline, clips: int) -> Iterator[Row]:
    """Held-out clips through the autoencoder: PSNR from the mean squared error over all clips."""
    vae, device = pipe.vae, pipe.device
    half = type(vae).from_pretrained(pipe.config._name_or_path, subfolder="vae", torch_dtype=torch.bfloat16).to(device)
    version = world_of(Path(pipe.config._name_or_path))
    scenes = [
        s for pair in zip(held_out_scenes(clips, version), world.scenes(SEED, drawn=1.0), strict=False) for s in pair
    ][: 2 * clips]
    # As the training world mixes them: seven clips of shapes, then a drawn scene.
    scenes = [scenes[2 * i + (i % 8 == 7)] for i in range(clips)]
    for frames, bar in ((49, 34.0), (121, 32.0)):
        rows = render.place_all(scenes, SEED, W, H, frames, version).to(device)
        by_frame, gap = np.zeros(frames), []
        for i in range(clips):
            x = render.draw(rows[i : i + 1], W, H, frames)
            z = wan_vae.encode(vae, x * 2 - 1)
            y = (wan_vae.decode(vae, z).float() + 1) / 2
            by_frame += (y - x).square().mean((0, 1, 3, 4)).double().cpu().numpy() / clips
            if frames == 49:
                low = (wan_vae.decode(half, z).float() + 1) / 2
                gap.append([float((v - x).square().mean()) for v in (y, low)])
        total, drop = psnr(by_frame.mean()), psnr(by_frame[0]) - psnr(by_frame[-1])
        yield Row(
            f"VAE reconstruction, {clips} held-out clips of {frames} frames",
            f"{bar:.0f} dB",
            f"{total:.2f} dB",
            total >= bar,
        )
        yield Row(f"last frame against the first, {frames} frames", "at most 1 dB less", f"{-drop:+.2f} dB", drop <= 1)
        if gap:
            a, b = (psnr(m) for m in np.mean(gap, axis=0))
            yield Row(
                "bfloat16 against float32 VAE decode, each against the truth",
                "0.2 dB",
                f"{b:.2f} against {a:.2f} dB",
                abs(a - b) <= 0.2,
            )


@torch.no_grad()
def sample(
    pipe: WanPipeline,
    prompts: list[str],
    seeds: list[int],
    *,
    guidance: float,
    steps: int = 20,
    shift: float | None = None,
    frames: int = 49,
    width: int = W,
    height: int = H,
) -> tuple[Tensor, np.ndarray]:
    """Final latents [B,16,F,h,w] of a batch, and the mean square of v_cond - v_uncond at each step (NaN unguided)."""
    device = pipe.device
    scheduler = type(pipe.scheduler).from_config(
        pipe.scheduler.config, **({} if shift is None else {"flow_shift": shift})
    )
    scheduler.set_timesteps(steps, device=device)
    text, silence = pipe.encode_prompt(prompts, "", device=device, max_sequence_length=models.TEXT_LENGTH)
    shape = (1, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
    x = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]).to(device)
    differences = np.full(steps, np.nan)
    for i, t in enumerate(scheduler.timesteps):
        model = pipe.transformer if t >= models.BOUNDARY * 1000 else pipe.transformer_2
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            v = model(x, t.expand(len(x)), text, return_dict=False)[0].float()
            if guidance > 1:
                u = model(x, t.expand(len(x)), silence, return_dict=False)[0].float()
                differences[i] = float((v - u).square().mean())
                v = u + guidance * (v - u)
        x = scheduler.step(v, t, x, return_dict=False)[0]
    return x, differences


def _judged(job: tuple[np.ndarray, world.Scene, World]) -> dict[str, bool | None]:
    frames, scene, version = job
    verdict = judge(observe(frames.astype(np.float32) / 255, version), scene)
    return {a: getattr(verdict, a) for a in ATTRIBUTES} | {"all": verdict.right}


def prompts_followed(
    pipe: WanPipeline, n: int, guidance: float, *, shift: float | None = None, seed: int = SEED, batch: int = 8
) -> tuple[dict[str, float], np.ndarray]:
    """Percentage of held-out prompts whose clip shows each attribute as asked, and the CFG differences by step."""
    version = world_of(Path(pipe.config._name_or_path))
    scenes = held_out_scenes(n, version, seed, drawn=0.0)
    rng = np.random.default_rng(seed)
    texts = [world.caption(s, rng, full=True) for s in scenes]
    vae = (
        type(pipe.vae)
        .from_pretrained(pipe.config._name_or_path, subfolder="vae", torch_dtype=torch.bfloat16)
        .to(pipe.device)
    )
    differences, jobs = [], []
    with ProcessPoolExecutor() as pool:
        for i in range(0, n, batch):
            z, d = sample(
                pipe,
                texts[i : i + batch],
                list(range(seed + i, seed + min(i + batch, n))),
                guidance=guidance,
                shift=shift,
            )
            differences.append(d)
            for k in range(0, len(z), 8):
                video = (
                    wan_vae.decode(vae, z[k : k + 8])
                    .float()
                    .add(1)
                    .mul(127.5)
                    .round()
                    .byte()
                    .permute(0, 2, 3, 4, 1)
                    .cpu()
                    .numpy()
                )
                jobs += [
                    pool.submit(_judged, (v, s, version)) for v, s in zip(video, scenes[i + k : i + k + 8], strict=True)
                ]
        verdicts = [j.result() for j in jobs]
    right = {a: [v[a] for v in verdicts if v[a] is not None] for a in (*ATTRIBUTES, "all")}
    return {a: 100 * float(np.mean(v)) for a, v in right.items()}, np.mean(differences, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=tiny_path())
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument(
        "--shifts", type=float, nargs="*", help="compare flow shifts on other prompts instead of writing the card"
    )
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipe = WanPipeline.from_pretrained(args.model, torch_dtype=torch.float32).to(device)
    pipe.set_progress_bar_config(disable=True)
    batch = 64 if device.type == "cuda" else 8
    if args.shifts:
        for shift in args.shifts:
            for guidance in (4.0, 1.0):
                right, d = prompts_followed(pipe, args.prompts, guidance, shift=shift, seed=SEED + 50_000, batch=batch)
                print(
                    f"shift {shift:g} guidance {guidance:g}: "
                    + "  ".join(f"{a} {v:.1f}" for a, v in right.items())
                    + f"  step 1/20 {d[0] / d[-1]:.1f}",
                    flush=True,
                )
        return
    rows, start = [], time.monotonic()

    def say(row: Row) -> None:
        rows.append(row)
        print(row, flush=True)

    for row in reconstruction(pipe, args.clips):
        say(row)
    guided, difference = prompts_followed(pipe, args.prompts, 4.0, batch=batch)
    plain, _ = prompts_followed(pipe, args.prompts, 1.0, batch=batch)
    for a, bar in ATTRIBUTES.items():
        say(
            Row(
                f"{args.prompts} held-out prompts, 20 steps, guidance 4: {a}",
                f"{bar} %",
                f"{guided[a]:.1f} %",
                guided[a] >= bar,
            )
        )
    for a in ATTRIBUTES:
        say(Row(f"the same without guidance: {a}", "lower", f"{plain[a]:.1f} %", plain[a] < guided[a]))
    ratio = difference[0] / difference[-1]
    say(Row("CFG-difference MSE, step 1 over step 20", "5", f"{ratio:.1f}", ratio >= 5))
    table = ["| what | bar | measured | holds |", "| --- | --- | --- | --- |", *map(str, rows)]
    machine = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    note = f"`python -m training.evaluate`, torch {torch.__version__}, {machine}, {time.strftime('%Y-%m-%d')}, "
    note += f"{(time.monotonic() - start) / 60:.0f} minutes."
    card = args.model / "README.md"
    text = card.read_text() if card.exists() else f"# tiny\n\n{BEGIN}\n{END}\n"
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    card.write_text(f"{head}{BEGIN}\n" + "\n".join([*table, "", note]) + f"\n{END}{tail}")


if __name__ == "__main__":
    main()
