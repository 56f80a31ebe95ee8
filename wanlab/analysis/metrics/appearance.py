"""What a clip looks like by itself: how much moves, flickers, how sharp, colourful and contrasty it is.

Of A and of B, and as the ratio of both: caches and models of few steps slow motion down, guidance oversaturates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import scipy  # its parts are imported when they are used

from wanlab.analysis.metrics import BASELINE, metric
from wanlab.analysis.metrics.clip import Floats
from wanlab.analysis.metrics.temporal import flow_of
from wanlab.analysis.stats import Interval, paired_ratio

LUMA = np.array([0.2126, 0.7152, 0.0722])  # of linear RGB in BT.709; taken of the values as they are


@metric("motion", needs="clip", bounds=(0.0, math.inf), unit="px", format=".4f")
def motion(before: Floats, frame: Floats) -> float:
    """Mean length of the optical flow from frame to frame (as for the warping error), in pixels of the video."""
    if not (np.isfinite(before).all() and np.isfinite(frame).all()):
        return math.nan
    flow = flow_of(before, frame)
    return float(np.hypot(flow[0], flow[1]).mean()) * float(frame.shape[1] / flow.shape[2])


@metric("flicker", needs="clips", better="lower", bounds=(0.0, 2.0), format=".4f")
def flicker(first: Floats, second: Floats, third: Floats) -> float:
    """Mean |f(t+2) - 2 f(t+1) + f(t)| over that of the two frame differences it is made of: 2 where every change is
    undone in the next frame, 1.73 of noise, 0 of an even change or of none."""
    d = second - first
    changes = [np.abs(d, out=d).mean()]
    np.subtract(third, second, out=d)
    changes.append(np.abs(d, out=d).mean())
    np.multiply(second, 2, out=d)
    np.subtract(third, d, out=d)
    d += first
    return float(np.abs(d, out=d).mean() / np.mean(changes)) if any(changes) else 0.0


@metric("sharpness", needs="frame", bounds=(0.0, math.inf), format=".6f")
def sharpness(frame: Floats) -> float:
    """Variance of the Laplacian (four neighbours) of the luma (Pech-Pacheco et al., ICPR 2000), mean over frames."""
    return float(scipy.ndimage.laplace(_luma(frame), mode="nearest").var())


@metric("saturation", needs="frame", bounds=(0.0, 1.0), format=".4f")
def saturation(frame: Floats) -> float:
    """Mean saturation S of HSV, mean over frames."""
    high, low = frame[..., :3].max(axis=-1), frame[..., :3].min(axis=-1)
    return float(np.divide(high - low, high, out=np.zeros_like(high), where=high > 0).mean())


@metric("contrast", needs="frame", bounds=(0.0, 0.5), format=".4f")
def contrast(frame: Floats) -> float:
    """Standard deviation of the luma within a frame (Peli, JOSA A 7, 1990), mean over frames."""
    return float(_luma(frame).std())


def _luma(frame: Floats) -> Floats:
    return np.asarray(frame[..., :3] @ LUMA, np.float64)


MEASURES = (motion, flicker, sharpness, saturation, contrast)


def _ratio(
    of: str, name: str, values: Callable[[str], Sequence[float]], prompts: Sequence[str], factor: float | None
) -> Interval:
    return paired_ratio(values(of), values(of + BASELINE), prompts, factor=factor)


def _register(of: str) -> None:
    def ratio(figures: Mapping[str, float]) -> float:
        return figures[of] / figures[of + BASELINE]

    ratio.__doc__ = f"A's {of} over B's; over pairs, every pair weighs alike."
    metric(
        f"{of}_ratio",
        needs="figures",
        title=f"{of} A/B",
        unit="x",
        bounds=(0.0, math.inf),
        format=".3f",
        interval=partial(_ratio, of),
        column=".2f",
        table="clips",
    )(ratio)


for _measure in MEASURES:
    _register(_measure.name)
