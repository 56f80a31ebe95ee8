"""Policies that compute some of the tokens, and their controls, on `tiny` in one table: docs/pruning.md.

    python -m benchmarks.tokens                                  # 16 prompts x 4 seeds, 49 frames: hours on a CPU
    python -m benchmarks.tokens --prompts 2 --seeds 1 --frames 9 --size 48x32   # does it run?

All but `prune`, whose cost is decided while it runs and which has its own control, compute half of the tokens from the
expert's fifth step on; merged tokens attend to fewer keys, so that `tome` has more of them for the same operations. The
runs lie under --out, in float32 on a GPU too: what bfloat16 rounds would be among the differences. `wanlab report OUT`
decides H5 from them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import wanlab
from benchmarks.caches import some
from wanlab.analysis.table import rows
from wanlab.study.text import markdown

METHODS = (
    "prune",
    "prune:choice=lot",
    "prune:update=step",
    "prune:update=step,choice=lot",
    "prune:keep=x0",
    "prune:keep=hold",
    "prune:keys=absent",
    "prune:corrector=false",
    "random_tokens",
    "random_tokens:corrector=false",
    "topk",
    "ras:reset=0",
    "ras:reset=0,high=0",
    "tome:start=4,ratio=0.565",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", default="144x80")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--out", type=Path, default=Path("token_outputs"))
    args = parser.parse_args()
    result = wanlab.compare(
        METHODS,
        prompts=some("builtin", args.prompts),
        seeds=range(args.seeds),
        model=args.model,
        size=args.size,
        frames=args.frames,
        steps=args.steps,
        out=args.out,
        dtype="float32",
    )
    print(result.description, markdown(rows(result.comparison)), *result.remarks, sep="\n\n")


if __name__ == "__main__":
    main()
