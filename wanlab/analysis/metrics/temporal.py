"""How one video changes from frame to frame."""

from __future__ import annotations

import math
from weakref import ReferenceType, ref

import numpy as np
import skimage  # its parts are imported when they are used

from wanlab.analysis.metrics import metric
from wanlab.analysis.metrics.clip import Floats

FLOW_WIDTH = 320  # pixels; optical flow is computed on frames no wider, by area averages
_last: tuple[ReferenceType[Floats], ReferenceType[Floats], tuple[Floats, Floats, Floats]] | None = None


@metric("difference", needs="clip", title="frame difference", bounds=(0.0, math.inf), format=".6f")
def difference(before: Floats, frame: Floats) -> float:
    """Mean |f(t+1) - f(t)| of one video."""
    d = frame - before
    return float(np.abs(d, out=d).mean())


@metric("warping_error", needs="clip", title="warping error", better="lower", bounds=(0.0, math.inf), format=".6f")
def warping_error(before: Floats, frame: Floats) -> float:
    """The frame difference after moving f(t+1) back along the optical flow: what changes and is no motion.

    Flow: iterative Lucas-Kanade (Le Besnerais & Champagnat, 2005) of scikit-image on grey frames at most 320 pixels
    wide; pixels that come from outside the frame are left out.
    """
    if not (np.isfinite(before).all() and np.isfinite(frame).all()):
        return math.nan
    first, second, flow = _seen(before, frame)
    height, width = flow.shape[1:]
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    at = np.array([rows + flow[0], columns + flow[1]])
    inside = (at[0] >= 0) & (at[0] <= height - 1) & (at[1] >= 0) & (at[1] <= width - 1)
    moved = np.stack(
        [skimage.transform.warp(second[..., c], at, mode="edge") for c in range(second.shape[-1])], axis=-1
    )
    error = np.abs(moved - first).mean(axis=-1)
    return float(error[inside].mean()) if inside.any() else math.nan


def flow_of(before: Floats, frame: Floats) -> Floats:
    """The optical flow from one frame to the next [2,h,w], down and right, in pixels of frames at most FLOW_WIDTH wide.
    Iterative Lucas-Kanade of scikit-image."""
    return _seen(before, frame)[2]


def _seen(before: Floats, frame: Floats) -> tuple[Floats, Floats, Floats]:
    """Two frames as optical flow sees them, and the flow; remembered, since more than one measure asks for them."""
    global _last
    last = _last
    if last is not None and last[0]() is before and last[1]() is frame:
        return last[2]
    small = _small(before), _small(frame)
    first, second = (f.mean(axis=-1) for f in small)
    if np.array_equal(first, second):
        flow = np.zeros((2, *first.shape))
    else:
        flow = np.asarray(skimage.registration.optical_flow_ilk(first, second, radius=5, num_warp=3), np.float64)
    _last = ref(before), ref(frame), (*small, flow)
    return _last[2]


def _small(frame: Floats) -> Floats:
    scale = FLOW_WIDTH / frame.shape[1]
    if scale >= 1:
        return frame
    size = (round(frame.shape[0] * scale), FLOW_WIDTH)
    # One colour after the other: that bounds the memory.
    colours = [skimage.transform.resize(frame[..., c], size, anti_aliasing=True) for c in range(frame.shape[-1])]
    return np.stack(colours, axis=-1).astype(np.float64, copy=False)
