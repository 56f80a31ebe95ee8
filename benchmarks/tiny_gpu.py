"""`tiny` on a GPU: clips of the built-in suite, one after another in diffusers' WanPipeline and by wanlab, in one
process.

    python -m benchmarks.tiny_gpu [PROMPTS] [SEEDS]      # 32 prompts, 4 seeds

Both sample and decode 20 steps at guidance 4 in bfloat16; a clip's time is the mean over all. wanlab writes its run
file besides, and no film. Then some policies, with recorded passes (engine/model/graphs.py) and without: whether the
latents are equal, and what the steps take.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanPipeline
from torch import Tensor

from wanlab.embedded import tiny_path
from wanlab.embedded.suite import SUITE
from wanlab.engine import run
from wanlab.runfile import Run
from wanlab.spec import PolicySpec, RunSpec

WIDTH, HEIGHT, FRAMES, STEPS, GUIDANCE = 144, 80, 49, 20, 4.0
POLICIES = ("", "half", "cfg:last=5", "magcache", "firstblock:threshold=0.2", "random_tokens", "tome", "steps:keep=12")


def pipeline(prompts: list[str], seeds: int) -> float:
    """Seconds a clip."""
    pipe = WanPipeline.from_pretrained(tiny_path(), torch_dtype=torch.bfloat16).to("cuda")
    pipe.set_progress_bar_config(disable=True)

    def clip(prompt: str, seed: int) -> None:
        pipe(
            prompt,
            width=WIDTH,
            height=HEIGHT,
            num_frames=FRAMES,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        )

    clip(prompts[0], 0)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for prompt in prompts:
        for seed in range(seeds):
            clip(prompt, seed)
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / len(prompts) / seeds


class Bench:
    """Runs of one loaded model."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.loaded = folder, run.Models()

    def __call__(self, prompt: str, seed: int, policy: str = "") -> tuple[Tensor, dict[str, float], float]:
        """Final latents, seconds by part, and those of the steps."""
        spec = RunSpec(
            prompt=prompt,
            seed=seed,
            width=WIDTH,
            height=HEIGHT,
            frames=FRAMES,
            steps=STEPS,
            guidance=(GUIDANCE, GUIDANCE),
            dtype="bfloat16",
            vae_dtype="bfloat16",
            device="cuda",
            precision="exact",
            policies=(PolicySpec.parse(policy),) if policy else (),
        )
        path = run.execute(spec, self.folder / "run.h5", loaded=self.loaded, force=True)
        with Run(path) as made:
            latent = torch.from_numpy(np.asarray(made["latent"]))
            return latent, dict(made.attrs["timing_seconds"]), float(np.sum(made["seconds"]))


def main() -> None:
    count, seeds = (int(v) for v in (*sys.argv[1:3], *("32", "4")[len(sys.argv[1:3]) :]))
    prompts = [*SUITE.values()][:count]
    execute: Any = sys.modules["wanlab.engine.run.execute"]
    loading: Any = sys.modules["wanlab.engine.model.loading"]
    execute.write_mp4, execute.check_encoder = lambda *_: None, lambda: None
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {len(prompts)} prompts x {seeds} seeds")
    theirs = pipeline(prompts, seeds)
    print(f"WanPipeline: {theirs * 1e3:.0f} ms a clip", flush=True)
    loading.SMALL = 100_000_000
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name))
        bench(prompts[0], 0)
        parts: dict[str, float] = {}
        began = time.perf_counter()
        for prompt in prompts:
            for seed in range(seeds):
                for part, seconds in bench(prompt, seed)[1].items():
                    parts[part] = parts.get(part, 0.0) + seconds
        ours = (time.perf_counter() - began) / len(prompts) / seeds
        print(f"wanlab: {ours * 1e3:.0f} ms a clip, {theirs / ours:.2f} x (bar 5 x)")
        print({part: f"{seconds / len(prompts) / seeds * 1e3:.1f} ms" for part, seconds in parts.items()}, flush=True)
        recorded = {policy: bench(prompts[0], 0, policy) for policy in POLICIES}
        recorded = {policy: bench(prompts[1], 1, policy) for policy in POLICIES}
        loading.SMALL, bench.loaded = 0, run.Models()
        plain = {policy: bench(prompts[0], 0, policy) for policy in POLICIES}
        plain = {policy: bench(prompts[1], 1, policy) for policy in POLICIES}
        for policy, (latent, _, seconds) in recorded.items():
            same = "equal" if torch.equal(latent, plain[policy][0]) else "NOT equal"
            print(f"{policy or 'no policy'}: {same}; steps {seconds * 1e3:.0f} ms, {plain[policy][2] * 1e3:.0f} as is")


if __name__ == "__main__":
    main()
