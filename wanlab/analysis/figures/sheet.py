"""Pictures of a video on one sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from wanlab.analysis.figures.style import INK, save, shorten


def contact_sheet(video: NDArray[np.uint8], path: Path, *, pictures: int = 8, title: str = "") -> Path:
    """`pictures` frames of a video [T,H,W,3], evenly from the first to the last, four in a row, each numbered."""
    at = np.unique(np.linspace(0, len(video) - 1, min(pictures, len(video))).round().astype(int))
    columns = min(4, len(at))
    rows = -(-len(at) // columns)
    aspect = video.shape[1] / video.shape[2]
    figure = Figure(
        figsize=(2.9 * columns, (2.9 * aspect + 0.22) * rows + (0.35 if title else 0)), layout="constrained"
    )
    for k, ax in enumerate(np.atleast_1d(figure.subplots(rows, columns)).flat):
        ax.axis("off")
        if k < len(at):
            ax.imshow(video[at[k]], interpolation="nearest")
            ax.set_title(f"frame {at[k]}", fontsize=8, color=INK, pad=2)
    if title:
        figure.suptitle(shorten(title), fontsize=9, color=INK, parse_math=False)
    return save(figure, path)
