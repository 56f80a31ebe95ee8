"""A measure in one file: how far the edges of two videos are apart, `--metric examples/edge_error.py`."""

import math

import numpy as np
from skimage.filters import sobel

from wanlab.analysis.metrics import metric


@metric("edge_error", needs="frame pair", better="lower", bounds=(0, math.inf), format=".4f", column=".4f")
def edge_error(x: np.ndarray, y: np.ndarray) -> float:
    """Mean absolute difference of the Sobel edges, in grey."""
    return float(np.abs(sobel(x.mean(axis=-1)) - sobel(y.mean(axis=-1))).mean())
