"""Which tokens were computed, over the clip."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wanlab.analysis.columns import numbers
from wanlab.analysis.figures.film import write_film
from wanlab.analysis.metrics.clip import Clip
from wanlab.analysis.metrics.pixels import eight_bits
from wanlab.errors import WanlabError
from wanlab.runfile import Run

DIMS = ("step", "latent_frame", "token_height", "token_width_bytes")
PATCH = 16  # pixels along a token's side
DARKEST = 0.15  # of a pixel's brightness is left where its token was never computed


def masks(run: Run) -> NDArray[np.bool_] | None:
    """The tokens computed in each step, [steps, F, H/16, W/16] on full-length latents; None where no policy recorded
    them. Raises WanlabError where the file has something else."""
    data = next((d for d in run.data.values() if d.dims == DIMS), None)
    if data is None:
        return None
    rows, columns = run.spec.height // PATCH, run.spec.width // PATCH
    steps, frames = run.steps, (run.spec.frames - 1) // 4 + 1
    if data.dtype != np.uint8 or data.shape != (steps, frames, rows, math.ceil(columns / 8)):
        raise WanlabError(f"{run.path}: '{data.name}' is {data.shape} of {data.dtype}", "make it again")
    bits = np.unpackbits(np.asarray(data[...]), axis=-1, count=columns).astype(bool)
    for k, stride in enumerate(numbers(run, "frame_stride").astype(int)):
        if stride > 1:  # the step had every stride-th frame
            bits[k] = bits[k, np.arange(frames) // stride]
    return bits


def computed(masks: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Of the steps that left tokens out, the share in which each token was computed [F, H/16, W/16]; None where none
    did."""
    partial = masks[~masks.all(axis=(1, 2, 3))]
    return np.asarray(partial.mean(axis=0), np.float64) if len(partial) else None


def token_film(run: Run, path: Path) -> Path | None:
    """A film of the result, and beside it the same, the darker the more often a token was left out; None where no token
    was, or no mask is recorded."""
    recorded = masks(run)
    share = None if recorded is None else computed(recorded)
    if share is None:
        return None
    clip = Clip.of(run.path)

    def pictures() -> Iterator[list[NDArray[np.uint8]]]:
        with clip.read() as films:
            for t, picture in enumerate(films):
                own = share[min(-(-t // 4), len(share) - 1)]  # the first latent frame is one frame, others are four
                light = DARKEST + (1 - DARKEST) * own.repeat(PATCH, axis=0).repeat(PATCH, axis=1)[..., None]
                yield [eight_bits(picture), eight_bits(picture * light)]

    return write_film(path, clip, ("result", "darker: left out more often"), pictures())
