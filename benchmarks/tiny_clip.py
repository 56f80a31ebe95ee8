"""One clip of `tiny` from model load to mp4: wanlab beside diffusers' WanPipeline in float32, alternated in one
process.

python benchmarks/tiny_clip.py [ROUNDS]
"""

from __future__ import annotations

import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_video
from rich.console import Console
from rich.table import Table

from wanlab.embedded import tiny_path
from wanlab.engine.run import execute
from wanlab.spec import RunSpec

PROMPT = "a large red circle moving right on a black background"
WIDTH, HEIGHT, FRAMES, STEPS, GUIDANCE = 144, 80, 49, 20, 4.0


def load(dtype: torch.dtype) -> WanPipeline:
    pipe = WanPipeline.from_pretrained(tiny_path(), torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe: WanPipeline, prompt: str = PROMPT, seed: int = 0) -> np.ndarray:
    """The frames [T,H,W,3] of one clip."""
    video: np.ndarray = pipe(
        prompt,
        width=WIDTH,
        height=HEIGHT,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(seed),
    ).frames[0]
    return video


def no_films() -> None:
    """wanlab writes none from here on, so that none is timed and no encoder needed."""
    module: Any = sys.modules["wanlab.engine.run.execute"]
    module.write_mp4, module.check_encoder = lambda *_: None, lambda: None


def specification(prompt: str = PROMPT, seed: int = 0, **changes: Any) -> RunSpec:
    """The same clip as wanlab is asked for it."""
    return RunSpec(
        prompt=prompt,
        seed=seed,
        width=WIDTH,
        height=HEIGHT,
        frames=FRAMES,
        steps=STEPS,
        guidance=(GUIDANCE, GUIDANCE),
        **changes,
    )


def pipeline(folder: Path) -> None:
    export_to_video(list(sample(load(torch.float32))), str(folder / "pipeline.mp4"), fps=16)


def bench(dtype: str, precision: str = "auto") -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        spec = specification(dtype=dtype, precision=precision, device="cpu")
        execute(spec, folder / "wanlab.h5", force=True)

    return run


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    ways = {
        "WanPipeline, float32": pipeline,
        "wanlab, default": bench("auto"),
        "wanlab, exact": bench("auto", "exact"),
        "wanlab, exact, bfloat16": bench("bfloat16", "exact"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        for k in range(rounds + 1):
            for name, way in ways.items():
                began = time.perf_counter()
                way(Path(folder))
                if k:  # the first round warms imports and caches up
                    seconds[name].append(time.perf_counter() - began)
    peer = statistics.median(seconds["WanPipeline, float32"])
    table = Table(
        title=f"{FRAMES} frames {WIDTH}x{HEIGHT}, {STEPS} steps, load to mp4; "
        f"{torch.get_num_threads()} threads, "
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}"
    )
    for column in ("", "median s", "least", "most", "against WanPipeline"):
        table.add_column(column, justify="left" if not column else "right")
    for name, s in seconds.items():
        table.add_row(
            name, f"{statistics.median(s):.2f}", f"{min(s):.2f}", f"{max(s):.2f}", f"{statistics.median(s) / peer:.2f}"
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
