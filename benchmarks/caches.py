"""Step caches and their controls at equal cost on `tiny`, in one table: docs/caches.md.

    python -m benchmarks.caches                                  # 16 prompts x 4 seeds: hours on a CPU
    python -m benchmarks.caches --prompts 2 --seeds 1 --costs 0.6   # does it run?

The methods are those of builtin:caches, with what was published for 50 steps scaled to 20: EasyCache's first 10 steps
to 4, DBCache's warm-up of 8 to 2 of each expert; of `tiny`'s eight blocks it computes two in front. The prompts are
others than its calibration was made with. The runs lie under --out, in float32 on a GPU too: what bfloat16 rounds would
be among the differences.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import wanlab
from wanlab.analysis.table import rows
from wanlab.spec import MethodSpec
from wanlab.study import design
from wanlab.study.text import markdown


def some(suite: str, count: int) -> list[str]:
    """So many prompts of a suite, spread evenly over it."""
    prompts = design.suite_prompts(suite)
    return prompts[:: max(len(prompts) // count, 1)][:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--costs", default="0.75,0.6,0.45")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--out", type=Path, default=Path("cache_outputs"))
    args = parser.parse_args()
    methods = design.builtin_methods("caches")
    methods["easycache"] = replace(MethodSpec.parse("easycache:first=4"), label="easycache")
    methods["dbcache"] = replace(MethodSpec.parse("firstblock:front=2,warmup=2"), label="dbcache")
    result = wanlab.compare(
        list(methods.values()),
        at_cost=[float(cost) for cost in args.costs.split(",")],
        prompts=some("held-out", args.prompts),
        seeds=range(args.seeds),
        model=args.model,
        out=args.out,
        dtype="float32",
    )
    print(result.description, markdown(rows(result.comparison)), *result.remarks, sep="\n\n")


if __name__ == "__main__":
    main()
