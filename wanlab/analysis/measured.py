"""What hypotheses need of a run file. No scipy: a process that is begun to read one file imports this."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanlab.analysis import guidance
from wanlab.analysis.bands import Bands, bands
from wanlab.analysis.columns import numbers
from wanlab.analysis.key import Key
from wanlab.errors import WanlabError
from wanlab.runfile import Run
from wanlab.spec import METHOD_SETTINGS, PolicySpec


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is needed of a run file; NaN where it was not recorded."""

    path: Path
    prompt: str
    seed: int
    key: Key
    policies: tuple[PolicySpec, ...]
    settings: tuple[Any, ...]
    """What a method can set beside its policies (spec.METHOD_SETTINGS)."""
    passes: int
    seconds: float
    sigma: tuple[float, ...]
    switch: int | None
    """Index of the first low-noise step; None without an expert switch."""
    bands: Bands
    mse: tuple[float, ...]
    change: tuple[float, ...]
    high_over_low: float

    @property
    def method(self) -> str:
        return " ".join(map(str, self.policies)) or "baseline"


def read_run(path: Path) -> Measured:
    """What is needed of one run file. Raises WanlabError."""
    with Run(path) as run:
        if run.status != "complete":
            raise WanlabError(f"{path} is not complete")
        spec = run.spec
        g = guidance.analyse(run)
        means = g.by_expert()
        high, low = (means.get(e, {}).get("mse", math.nan) for e in ("high", "low"))
        return Measured(
            path=path,
            prompt=spec.prompt,
            seed=spec.seed,
            key=Key.of(run),
            policies=spec.policies,
            settings=tuple(getattr(spec, name) for name in METHOD_SETTINGS),
            passes=int(g.passes.sum()),
            seconds=float(numbers(run, "seconds").sum()),
            sigma=tuple(g.sigma.tolist()),
            switch=g.switch,
            bands=Bands() if g.switch is None else bands(run, g.switch, float(g.sigma[g.switch])),
            mse=tuple(g.mse.tolist()),
            change=tuple(g.change.tolist()),
            high_over_low=high / low if low > 0 else math.nan,
        )


def small_film(path: Path) -> tuple[NDArray[np.uint8], int] | None:
    """A run's frames, at most 256 pixels wide and of even sizes, and how many are shown a second; None without any.

    Raises WanlabError.
    """
    from wanlab.video import FPS

    with Run(path) as run:
        if "video" not in run:
            return None
        video = run["video"]
        small = max(1, math.ceil(video.shape[2] / 256))
        frames = np.stack([video[k][::small, ::small] for k in range(len(video))])
        even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
        return even, int(run.attrs.get("fps", FPS))
