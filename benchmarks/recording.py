"""What recording costs: the sampling loop that records everything against the one that records the least, alternated.

    python -m benchmarks.recording [--model tiny] [--rounds 5]

Time is of the whole loop, observers and hand-over to the writer included; encoding, decoding and folding are not in it.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from wanlab.engine.run import Models, execute
from wanlab.runfile import Run
from wanlab.spec import RecordSpec, RunSpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    spec = RunSpec(prompt="a large red circle moving right on a black background", model=args.model)
    loaded = Models()
    times: dict[str, list[float]] = {"metrics": [], "all": []}
    with tempfile.TemporaryDirectory() as folder:
        for k in range(args.rounds + 1):
            for level in ("metrics", "all") if k % 2 else ("all", "metrics"):
                out = Path(folder) / f"{level}{k}.h5"
                execute(replace(spec, record=RecordSpec(level=level)), out, loaded=loaded)
                with Run(out) as run:
                    timing = run.attrs["timing_seconds"]
                    if k:  # the first round warms up
                        times[level].append(float(np.asarray(run["seconds"]).sum()) + timing["recording"])
                out.unlink()
    a, b = (np.array(times[n]) for n in ("all", "metrics"))
    print(
        f"nothing {np.median(b):.3f} s, everything {np.median(a):.3f} s: "
        f"{100 * (np.median(a) / np.median(b) - 1):+.1f} %"
        f" (rounds: {', '.join(f'{100 * r:+.1f}' for r in a / b - 1)})"
    )


if __name__ == "__main__":
    main()
