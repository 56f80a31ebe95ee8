"""The tables in docs that are measured on `tiny`, each made by one command that is printed first.

    python -m benchmarks.tables caches truncation           # hours on a CPU
    python -m benchmarks.tables --processes 16              # all; on a GPU through NVIDIA's MPS where it is installed
    python -m benchmarks.tables --prompts 4 --seeds 1 kept  # does it run?

docs/methods.md has guidance, truncation, kept, half, paired and fp8; docs/caches.md has caches and spared;
docs/pruning.md has tokens, whose `wanlab report` decides H5. All are sampled in float32: what bfloat16 rounds would be
among the differences. The runs lie under --out, each once, whichever tables it serves; results under
--out/comparisons.

Step caches are taken as they were published, but what was set for 50 steps is scaled to 20: EasyCache's first 10 steps
to 4, DBCache's warm-up of 8 to 2 of each expert, and of `tiny`'s eight blocks two are in front. Their prompts are
others than the calibration was made with.

Policies that choose tokens compute half of them from the expert's fifth step on, but for `prune`, whose cost is decided
while it runs and which has its own control; merged tokens attend to fewer keys, so that `tome` has more of them for the
same operations.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from wanlab.study import design
from wanlab.study.measuring import cores

CACHES = (
    *("teacache", "magcache", "easycache:first=4", "sencache", "firstblock", "firstblock:front=2,warmup=2", "seacache"),
    *("taylorseer", "dpcache"),
)
TOKENS = (
    *("prune", "prune:choice=lot", "prune:update=step", "prune:update=step,choice=lot"),
    *("prune:keep=x0", "prune:keep=hold", "prune:keys=absent", "prune:corrector=false"),
    *("random_tokens", "random_tokens:corrector=false", "topk", "ras:reset=0", "ras:reset=0,high=0"),
    "tome:start=4,ratio=0.565",
)
SPARED = [f"steps:first=3,keep={keep}{reuse}" for reuse in ("", ",reuse=linear") for keep in (15, 12, 9)]


@dataclass(frozen=True)
class Table:
    """What `wanlab compare` is given, and how many prompts of which suite, and seeds."""

    arguments: tuple[str, ...]
    suite: str = "builtin"
    prompts: int = 32
    seeds: int = 2
    folder: str = ""
    """Of its own, where its baseline is another one."""


def methods(*names: str) -> tuple[str, ...]:
    return tuple(word for name in names for word in ("--a", name))


TABLES = {
    "guidance": Table(("--sweep", "guidance=1:9:1")),
    "truncation": Table(("--sweep", "cfg.last=1:20:2", "--sweep", "cfg.keep=uncond,cond")),
    "kept": Table(("--a", "cfg:last=5,high=3", "--sweep", "cfg.keep=uncond,cond,reuse")),
    "half": Table(
        ("--a", "half", "--sweep", "half.complete=duplicate,renoise", "--sweep", "half.rope=compact,strided")
    ),
    "paired": Table(("--mode", "improved_vs_baseline")),
    "fp8": Table(
        (*methods("precision=fp8", "precision=fp8+attention=flash3-fp8"), "--device", "cpu"), seeds=1, folder="cpu"
    ),
    "caches": Table((*methods(*CACHES), "--at-cost", "0.75,0.6,0.45"), "held-out", 16, 4),
    "spared": Table(methods(*SPARED), "held-out", 16, 1),
    "tokens": Table(methods(*TOKENS), "builtin", 16, 4),
}


def some(suite: str, count: int) -> list[str]:
    """So many prompts of a suite, spread evenly over it."""
    prompts = design.suite_prompts(suite)
    return prompts[:: max(len(prompts) // count, 1)][:count]


@contextlib.contextmanager
def shared(processes: int) -> Iterator[str]:
    """So many processes that are started inside share the cores (unless OMP_NUM_THREADS says what each has), and a GPU
    by MPS where it is installed; how they share the GPU."""
    if processes == 1:
        yield "alone"
        return
    control = shutil.which("nvidia-cuda-mps-control")
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // processes))
    with tempfile.TemporaryDirectory() as folder:
        places = dict.fromkeys(("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"), folder)
        with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": threads} | places):
            started = control is not None and not subprocess.run([control, "-d"], check=False).returncode
            try:
                yield "through MPS" if started else "taking turns"
            finally:
                if control is not None and started:
                    subprocess.run([control], input=b"quit -t 10", check=False)


def command(table: Table, out: Path, prompts: int | None, seeds: int | None) -> list[str]:
    """The command that makes a table, and the file of prompts that it reads."""
    chosen = some(table.suite, prompts or table.prompts)
    file = out / f"{table.suite}-{len(chosen)}.txt"
    file.write_text("\n".join(chosen) + "\n")
    settings = ["--prompts", str(file), "--seed", f"0:{seeds or table.seeds}", "--dtype", "float32"]
    return ["compare", *table.arguments, *settings, "--out", str(out / table.folder), "--yes"]


def run_all(name: str, commands: list[list[str]], out: Path, *, shown: bool = False) -> bool:
    """Run commands of `wanlab` side by side; whether all ended well. What each says is in a file NAME.NUMBER.log, but
    its table where that is to be shown."""
    started = []
    for number, words in enumerate(commands, 1):
        with open(out / f"{name}.{number}.log", "w") as log:
            full = [sys.executable, "-m", "wanlab", *words, "--format", "md"]
            started.append(subprocess.Popen(full, stdout=None if shown else log, stderr=log))
    failed = [process.wait() for process in started]
    if any(failed):
        print(f"{name}: processes ended with {failed}; see {out / name}.*.log", flush=True)
    return not any(failed)


def in_shards(words: list[str], processes: int) -> list[list[str]]:
    """A command by several processes that each do a slice; the last one prints the table."""
    return [[*words, "--shard", f"{number}/{processes}"] for number in range(1, processes + 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--prompts", type=int, help="fewer than the table has")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--out", type=Path, default=Path("tables"))
    args = parser.parse_args()
    if unknown := set(args.tables) - set(TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    args.out.mkdir(parents=True, exist_ok=True)
    well = True
    with shared(args.processes):
        for name in args.tables or TABLES:
            words = command(TABLES[name], args.out, args.prompts, args.seeds)
            print(f"\n## {name}\n\nwanlab {shlex.join(words)}\n", flush=True)
            well &= run_all(name, in_shards(words, args.processes), args.out, shown=True)
    sys.exit(not well)


if __name__ == "__main__":
    main()
