"""Measure `tiny` on held-out prompts and seeds, and print the figures into its model card.

    python -m training.evaluate                      # the shipped weights; hours on two cores, two minutes on a GPU
    python -m training.evaluate --model runs/tiny/tiny --prompts 64 --sheet sheet.png

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
from PIL import Image
from torch import Tensor

from training import fast_vae, models, render
from wanlab.embedded import tiny_path, world, world_of
from wanlab.embedded.suite import SUITES
from wanlab.embedded.verify import judge, observe
from wanlab.embedded.world import World
from wanlab.engine.model import vae as wan_vae

W, H = world.NATIVE_SIZE
SEED = 20_000  # nothing in training draws from this seed; the scenes are held-out combinations besides
ATTRIBUTES = {"colour": 97, "direction": 97, "size": 95, "shape": 95, "background": 97}  # least, at guidance 4, in %
LOWER = 10  # points that each of them is lower at guidance 1, at least
PLAIN = 70  # % of prompts of which all is right at guidance 1, at most
SUITE_RIGHT = 95  # % of the suite's clips of which all is right, at least
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
        model = pipe.transformer if t >= pipe.config.boundary_ratio * 1000 else pipe.transformer_2
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


@torch.no_grad()
def followed(
    pipe: WanPipeline,
    texts: list[str],
    scenes: list[world.Scene],
    seeds: list[int],
    guidance: float,
    *,
    shift: float | None = None,
    batch: int = 8,
) -> tuple[dict[str, float], np.ndarray]:
    """Percentage of clips, one of each text and seed, that show each attribute as asked, and all at once ("all"); and
    the CFG differences by step."""
    version = world_of(Path(pipe.config._name_or_path))
    vae = type(pipe.vae).from_pretrained(pipe.config._name_or_path, subfolder="vae", torch_dtype=torch.bfloat16)
    vae = vae.to(pipe.device)
    if pipe.device.type == "cuda":
        fast_vae.channels_last(vae)
    differences, jobs = [], []
    with ProcessPoolExecutor() as pool:
        for i in range(0, len(texts), batch):
            z, d = sample(pipe, texts[i : i + batch], seeds[i : i + batch], guidance=guidance, shift=shift)
            differences.append(d)
            for k in range(0, len(z), 8):
                video = wan_vae.decode(vae, z[k : k + 8]).float().add(1).mul(127.5).round().byte()
                frames = video.permute(0, 2, 3, 4, 1).cpu().numpy()
                asked = scenes[i + k : i + k + 8]
                jobs += [pool.submit(_judged, (v, s, version)) for v, s in zip(frames, asked, strict=True)]
        verdicts = [j.result() for j in jobs]
    right = {a: [v[a] for v in verdicts if v[a] is not None] for a in (*ATTRIBUTES, "all")}
    return {a: 100 * float(np.mean(v)) for a, v in right.items()}, np.mean(differences, axis=0)


def prompts_followed(
    pipe: WanPipeline, n: int, guidance: float, *, shift: float | None = None, seed: int = SEED, batch: int = 8
) -> tuple[dict[str, float], np.ndarray]:
    """The same of n held-out prompts, each at a seed of its own."""
    scenes = held_out_scenes(n, world_of(Path(pipe.config._name_or_path)), seed, drawn=0.0)
    rng = np.random.default_rng(seed)
    texts = [world.caption(s, rng, full=True) for s in scenes]
    return followed(pipe, texts, scenes, list(range(seed, seed + n)), guidance, shift=shift, batch=batch)


def guided(pipe: WanPipeline, prompts: int, batch: int) -> Iterator[Row]:
    """Held-out prompts over guidance: followed at 4, much less without, rising up to 4 and not falling far beyond."""
    right, differences = {}, {}
    for g in (1.0, 2.0, 3.0, 4.0, 7.0):
        right[g], differences[g] = prompts_followed(pipe, prompts, g, batch=batch)
    what = f"{prompts} held-out prompts, 20 steps, guidance"
    for a, bar in ATTRIBUTES.items():
        yield Row(f"{what} 4: {a}", f"{bar} %", f"{right[4][a]:.1f} %", right[4][a] >= bar)
    for a in ATTRIBUTES:
        lower = right[4][a] - right[1][a]
        yield Row(f"{what} 1: {a}", f"{LOWER} points lower", f"{right[1][a]:.1f} %, {lower:.1f} lower", lower >= LOWER)
    yield Row(f"{what} 1: all five at once", f"at most {PLAIN} %", f"{right[1]['all']:.1f} %", right[1]["all"] <= PLAIN)
    rising = [right[g]["all"] for g in (1.0, 2.0, 3.0, 4.0)]
    shown = ", ".join(f"{v:.1f}" for v in rising)
    yield Row(f"{what} 1, 2, 3, 4: all five at once", "rises", f"{shown} %", sorted(set(rising)) == rising)
    high = right[7]["all"]
    yield Row(f"{what} 7: all five at once", "within 3 points of 4", f"{high:.1f} %", abs(high - rising[-1]) <= 3)
    ratio = differences[4][0] / differences[4][-1]
    yield Row("CFG-difference MSE, step 1 over step 20", "5", f"{ratio:.1f}", ratio >= 5)


def suite(pipe: WanPipeline, seeds: int, batch: int) -> Iterator[Row]:
    """The built-in suites at guidance 4. Their drawn scenes are left out: the verifier judges none."""
    for name, prompts in SUITES.items():
        asked = [(p, world.parse(p)) for p in prompts.values()]
        pairs = [(p, s, seed) for p, s in asked if s.kind == "shapes" for seed in range(seeds)]
        texts, scenes, own = (list(column) for column in zip(*pairs, strict=True))
        right = followed(pipe, texts, scenes, own, 4.0, batch=batch)[0]["all"]
        what = f"suite {name}, {len(texts) // seeds} prompts x {seeds} seeds, guidance 4: all right"
        yield Row(what, f"{SUITE_RIGHT} %", f"{right:.1f} %", right >= SUITE_RIGHT)


def weights(model: Path) -> Iterator[Row]:
    """What the checkpoint takes on disk."""
    sizes = [f.stat().st_size / 2**20 for f in model.rglob("*") if f.is_file()]
    said = f"{sum(sizes):.1f} MiB, {max(sizes):.1f}"
    yield Row("weights, and the largest file", "48 MiB, 24", said, sum(sizes) <= 48 and max(sizes) <= 24)


@torch.no_grad()
def sheet(pipe: WanPipeline, count: int, guidance: float, file: Path) -> list[str]:
    """A picture, a row a clip: four frames as generated, and beside them four of a rendered clip of the same scene.
    Returns the prompts in order."""
    version = world_of(Path(pipe.config._name_or_path))
    scenes = held_out_scenes(count, version, SEED + 70_000, drawn=0.12)
    rng = np.random.default_rng(SEED)
    texts = [world.caption(s, rng, full=True) for s in scenes]
    z, _ = sample(pipe, texts, list(range(count)), guidance=guidance)
    drawn = render.place_all(scenes, SEED, W, H, 49, version)
    rows = []
    for k, latent in enumerate(z):
        clips = [
            (wan_vae.decode(pipe.vae, latent[None]).float()[0].cpu() + 1) / 2,
            render.draw(drawn[k : k + 1], W, H, 49)[0],
        ]
        gap = torch.ones(3, H, 8)
        strips = [torch.cat([clip.clamp(0, 1)[:, t] for t in (0, 16, 32, 48)], dim=2) for clip in clips]
        rows.append(torch.cat([strips[0], gap, strips[1]], dim=2))
    picture = torch.cat(rows, dim=1).permute(1, 2, 0)
    Image.fromarray((picture * 255).round().byte().numpy()).save(file)
    return texts


def write_card(card: Path, lines: list[str]) -> None:
    """Put lines between the two markers of a card."""
    text = card.read_text() if card.exists() else f"# tiny\n\n{BEGIN}\n{END}\n"
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    card.write_text(f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{tail}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=tiny_path())
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=4, help="of each prompt of the suites")
    parser.add_argument("--sheet", type=Path, help="a picture of 20 clips beside 20 rendered ones")
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
    if args.sheet:
        for text in sheet(pipe, 20, 4.0, args.sheet):
            print(f"sheet: {text}")
    rows, start = [], time.monotonic()
    stages = (
        reconstruction(pipe, args.clips),
        guided(pipe, args.prompts, batch),
        suite(pipe, args.seeds, batch),
        weights(args.model),
    )
    for row in itertools.chain(*stages):
        rows.append(row)
        print(f"{row}  {time.monotonic() - start:.0f} s", flush=True)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    note = f"`python -m training.evaluate`, torch {torch.__version__}, {machine}, {time.strftime('%Y-%m-%d')}, "
    note += f"{(time.monotonic() - start) / 60:.1f} minutes."
    table = ["| what | bar | measured | holds |", "| --- | --- | --- | --- |", *map(str, rows)]
    write_card(args.model / "README.md", [*table, "", note])


if __name__ == "__main__":
    main()
