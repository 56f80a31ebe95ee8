"""What analysing a 2 GB run file costs against reading it with h5py: time, and the most memory the analysis takes.

python benchmarks/continuity_io.py [GIGABYTES [ROUNDS]]

One process for each measurement, so that its peak is its own (Linux lets a child begin with its parent's). The file
is written just before, so it is in the page
cache for both. Reading is every dataset of the file, a step (of final data: all) at a time.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
from rich.console import Console
from rich.table import Table

from wanlab.analysis.continuity import analyse
from wanlab.runfile import Field, Run, RunWriter
from wanlab.spec import RunSpec

DIMS = ("channel", "latent_frame", "latent_height", "latent_width")
# What a run of that level holds of each step, and the latent of one: 81 frames at 832x480 and at 1280x720.
FILES = {
    "all": (("x_t", "x0_pred", "eps_pred", "velocity", "velocity_cond", "velocity_uncond"), (16, 21, 60, 104)),
    "latents": (("x_t",), (16, 21, 90, 160)),
}


def write(path: Path, level: str, gigabytes: float) -> None:
    names, shape = FILES[level]
    steps = max(2, round(gigabytes * 1e9 / (4 * np.prod(shape) * len(names))))
    scalars = [
        Field("timestep", (), "float64"),
        Field("sigma", (), "float64"),
        Field("expert", (), "S6"),
        Field("frame_stride", (), "int32"),
    ]
    fields = [*scalars, *(Field(n, DIMS) for n in names)]
    spec = RunSpec(prompt="noise", steps=steps, width=8 * shape[3], height=8 * shape[2], frames=4 * shape[1] - 3)
    rng = np.random.default_rng(0)
    with RunWriter(path, spec_json=spec.to_json(), digest="-", fields=fields) as run:
        for k in range(steps):
            sigma = 1 - k / steps
            values = {
                "timestep": 1000 * sigma,
                "sigma": sigma,
                "expert": "high" if sigma > 0.875 else "low",
                "frame_stride": 1,
            }
            run.step(k, values | {n: rng.standard_normal(shape, dtype=np.float32) for n in names})
        video = rng.integers(0, 256, (spec.frames, spec.height, spec.width, 3), dtype=np.uint8)
        latent = rng.standard_normal(shape, dtype=np.float32)
        run.finish({Field("latent", DIMS): latent, Field("video", ("frame", "height", "width", "rgb"), "uint8"): video})


def read(path: Path) -> None:
    with h5py.File(path) as file:
        for dataset in (*file["steps"].values(), *file["final"].values()):
            if dataset.name.startswith("/steps") and dataset.ndim > 1:
                for k in range(len(dataset)):
                    dataset[k]
            else:
                dataset[...]


def look(path: Path) -> None:
    with Run(path) as run:
        analyse(run)


def child(doing: str, path: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, doing, str(path)], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "write":
        write(Path(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
        return
    if len(sys.argv) > 1 and sys.argv[1] in ("read", "look"):
        began = time.perf_counter()
        (read if sys.argv[1] == "read" else look)(Path(sys.argv[2]))
        seconds = time.perf_counter() - began
        print(json.dumps({"s": seconds, "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    table = Table(title="Analysing a run file against reading it with h5py (medians)")
    for column in ("recorded", "GB", "reading s", "analysing s", "ratio", "peak MiB"):
        table.add_column(column, justify="left" if column == "recorded" else "right")
    for level in FILES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.h5"
            subprocess.run([sys.executable, __file__, "write", str(path), level, str(gigabytes)], check=True)
            child("read", path)
            pairs = [(child("read", path), child("look", path)) for _ in range(rounds)]
            a, b = (statistics.median(p[i]["s"] for p in pairs) for i in (0, 1))
            peak = max(p[1]["MiB"] for p in pairs)
            table.add_row(
                level, f"{path.stat().st_size / 1e9:.2f}", f"{a:.2f}", f"{b:.2f}", f"{b / a:.2f}", f"{peak:.0f}"
            )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
