"""What Ray costs over a plain run, with one worker: OMP_NUM_THREADS=1 python -m benchmarks.runner_overhead

The same comparison of `tiny` by both runners in turn. `job` is the whole, Ray's start included; `pace` is the time from
the first finished run to the last, for each run between. The bar is for the pace: 3 %.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from wanlab.spec import MethodSpec, RecordSpec, RunSpec
from wanlab.study import design as designs
from wanlab.study.runners import Workers


def job(runner: str, out: Path, groups: int, steps: int) -> tuple[float, float]:
    """(seconds of the whole job, seconds a run once the first is there)."""
    record = RecordSpec(level="latents", video="float32")
    specs = [RunSpec(prompt="a red ball moving right", seed=k, steps=steps, record=record) for k in range(groups)]
    method = designs.Variant(MethodSpec.parse("cfg:last=2"))
    design = designs.arrange(specs, MethodSpec("baseline"), [method], [], out)
    began = time.perf_counter()
    if runner == "ray":
        import ray

        ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        Workers(runner=runner).run(design.groups)
    finally:
        if runner == "ray":
            ray.shutdown()
    whole = time.perf_counter() - began
    times = sorted(place.stat().st_mtime for _, place in design.order)
    return whole, (times[-1] - times[0]) / (len(times) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    results: dict[str, list[tuple[float, float]]] = {"local": [], "ray": []}
    for k in range(asked.repeats):
        for runner in sorted(results, reverse=bool(k % 2)):  # in turn, so that drift falls on both
            with tempfile.TemporaryDirectory() as folder:
                results[runner].append(job(runner, Path(folder), asked.groups, asked.steps))
    print("| runner | job, s | pace, s a run |\n| --- | --- | --- |")
    for runner, values in results.items():
        whole, pace = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"| {runner} | {whole:.1f} | {pace:.3f} |")
    pairs = zip(results["ray"], results["local"], strict=True)
    ratios = [ray[1] / local[1] for ray, local in pairs]
    print(f"\npace by Ray over plain: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
