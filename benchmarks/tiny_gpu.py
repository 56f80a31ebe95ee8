"""`tiny` on a GPU: clips of the built-in suite, one after another in diffusers' WanPipeline and by wanlab, in one
process.

    python -m benchmarks.tiny_gpu [PROMPTS] [SEEDS]      # 32 prompts, 4 seeds

Both sample and decode 20 steps at guidance 4 in bfloat16; a clip's time is the mean over all. wanlab writes its run
file besides, and no film. Then some policies, with recorded passes (engine/model/graphs.py) and without: whether the
latents are equal, which they must also be without, twice, and what the steps take; then the clips once more, in one
process and in several that share the GPU, through NVIDIA's MPS where it is installed.
"""

from __future__ import annotations

import itertools
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import tiny_clip
from benchmarks.tables import shared
from wanlab.embedded.suite import SUITE
from wanlab.engine import run
from wanlab.engine.model.graphs import SMALL
from wanlab.runfile import Run
from wanlab.spec import PolicySpec

POLICIES = (
    *("", "half", "half:rope=strided", "cfg:last=5", "magcache", "firstblock:threshold=0.2", "tome", "steps:keep=12"),
    "random_tokens",  # last: it keeps keys, and what was compiled without is forgotten
)
Jobs = list[tuple[str, int]]  # prompt and seed


def pipeline(jobs: Jobs) -> float:
    """Seconds a clip."""
    pipe = tiny_clip.load(torch.bfloat16).to("cuda")
    tiny_clip.sample(pipe, *jobs[0])
    torch.cuda.synchronize()
    began = time.perf_counter()
    for job in jobs:
        tiny_clip.sample(pipe, *job)
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / len(jobs)


class Bench:
    """Runs of one loaded model."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.loaded = folder, run.Models()

    def make(self, prompt: str, seed: int, policy: str = "", batched: bool = False) -> Path:
        spec = tiny_clip.specification(
            prompt,
            seed,
            dtype="bfloat16",
            vae_dtype="bfloat16",
            device="cuda",
            precision="exact",
            policies=(PolicySpec.parse(policy),) if policy else (),
            batch_cfg=batched,
        )
        return run.execute(spec, self.folder / "run.h5", loaded=self.loaded, force=True)

    def __call__(
        self, prompt: str, seed: int, policy: str = "", batched: bool = False
    ) -> tuple[Tensor, dict[str, float], float]:
        """Final latents, seconds by part, and those of the steps."""
        with Run(self.make(prompt, seed, policy, batched)) as made:
            latent = torch.from_numpy(np.asarray(made["latent"]))
            return latent, dict(made.attrs["timing_seconds"]), float(np.sum(made["seconds"]))

    def recorded(self) -> int:
        """Forwards that are recorded now."""
        model: Any = self.loaded._model
        return len(model.graphs._forwards)

    def methods(self, first: tuple[str, int], then: tuple[str, int]) -> dict[str, tuple[Tensor, float]]:
        """Of each method the latents and the seconds of the steps of `then`, the least of three times, once `first` has
        compiled everything."""
        made = {}
        for policy, batched in (("", True), *((policy, False) for policy in POLICIES)):
            self(*first, policy, batched)
            latent, _, seconds = min((self(*then, policy, batched) for _ in range(3)), key=lambda clip: clip[2])
            made["both branches at once" if batched else policy or "no policy"] = latent, seconds
        return made


def record_passes(recorded: bool) -> None:
    """Whether models that are loaded from here on replay their passes."""
    loading: Any = sys.modules["wanlab.engine.model.loading"]
    loading.SMALL = SMALL if recorded else 0


def together(jobs: Jobs, processes: int) -> float:
    """Seconds a clip of processes that share the GPU, each with the model loaded and compiled."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(processes + 1, timeout=300)  # seconds: a worker that died would never come
    workers = [context.Process(target=share, args=(jobs[i::processes], ready)) for i in range(processes)]
    for worker in workers:
        worker.start()
    ready.wait()
    began = time.perf_counter()
    ready.wait()
    seconds = time.perf_counter() - began
    for worker in workers:
        worker.join()
    return seconds / len(jobs)


def share(jobs: Jobs, ready: Any) -> None:
    """One of these processes: it meets the others before and after its clips."""
    tiny_clip.no_films()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name))
        bench.make(*jobs[0])
        ready.wait()
        for job in jobs:
            bench.make(*job)
        ready.wait()


def main() -> None:
    count, seeds = (int(v) for v in (*sys.argv[1:3], *("32", "4")[len(sys.argv[1:3]) :]))
    jobs = list(itertools.product([*SUITE.values()][:count], range(seeds)))
    tiny_clip.no_films()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {len(jobs)} clips")
    theirs = pipeline(jobs)
    print(f"WanPipeline: {theirs * 1e3:.0f} ms a clip", flush=True)
    with tempfile.TemporaryDirectory() as name:
        record_passes(False)
        bench = Bench(Path(name))
        plain = bench.methods(jobs[0], jobs[-1])
        bench.loaded = run.Models()
        again = bench.methods(jobs[0], jobs[-1])
        record_passes(True)
        bench.loaded = run.Models()
        for method, (latent, seconds) in bench.methods(jobs[0], jobs[-1]).items():
            expected, without = plain[method]
            same = ["equal" if torch.equal(made, expected) else "NOT equal" for made in (latent, again[method][0])]
            print(f"{method}: {same[0]} ({same[1]} without); steps {seconds * 1e3:.0f} ms, {without * 1e3:.0f} as is")
        print(f"{bench.recorded()} forwards recorded", flush=True)
        bench.make(*jobs[0])  # the last method had everything compiled anew
        began = time.perf_counter()
        for job in jobs:
            bench.make(*job)
        ours = (time.perf_counter() - began) / len(jobs)
        print(f"wanlab, a process: {ours * 1e3:.0f} ms a clip, {theirs / ours:.2f} x (bar 5 x)")
        print({part: f"{seconds * 1e3:.1f} ms" for part, seconds in bench(*jobs[0])[1].items()}, flush=True)
    for processes in (4, 8, 16) if len(jobs) >= 16 else ():
        with shared(processes) as way:
            ours = together(jobs, processes)
        said = f"wanlab, {processes} processes {way}: {ours * 1e3:.0f} ms a clip, {theirs / ours:.2f} x (bar 5 x)"
        print(said, flush=True)


if __name__ == "__main__":
    main()
