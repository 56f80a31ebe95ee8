"""A video that can be read more than once, in a run file or a video file, one frame at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanlab.errors import WanlabError
from wanlab.images import read_video
from wanlab.runfile import Run
from wanlab.spec.paths import is_run_file
from wanlab.video import FPS

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video that can be read more than once."""

    path: Path
    frames: int
    """0 when only reading it tells."""
    width: int
    height: int
    rounded: bool
    """Whether its values were rounded to integers (an mp4 was also compressed)."""
    fps: float
    alpha: bool = False
    color: str = ""
    """The colour tags of a video file of luma and chroma, or "no colour tags"; "" of what is RGB."""
    meta: dict[str, Any] = field(default_factory=dict, compare=False)
    """What a video file says of itself (video.read_mp4), once it was read."""

    @classmethod
    def of(cls, path: str | Path) -> Clip:
        """The clip in a run file or a video file. Raises WanlabError when there is none."""
        path = Path(path)
        if is_run_file(path):
            with Run(path) as run:
                kept = run[_best(run)]
                frames, height, width = kept.shape[:3]
                fps = float(run.attrs.get("fps", FPS))
                return cls(
                    path=path, frames=frames, width=width, height=height, rounded=kept.dtype.kind == "u", fps=fps
                )
        with read_video(path) as (meta, _):
            width, height = meta["size"]
            fps, color = float(meta.get("fps") or FPS), ""
            if re.match(r"yuv|nv\d|p[024]1|uyvy", meta.get("pix_fmt", "")):
                color = ", ".join(meta["color"]) or "no colour tags"
            alpha = bool(meta.get("alpha"))
            return cls(path=path, frames=0, width=width, height=height, rounded=True, fps=fps, alpha=alpha, color=color)

    @contextmanager
    def read(self) -> Iterator[Iterator[Floats]]:
        """Frames [H,W,3], [H,W,4] with alpha, in [0,1], float64. Raises WanlabError when the file is damaged."""
        with self.read_kept() as frames:
            yield map(unit, frames)

    @contextmanager
    def read_kept(self) -> Iterator[Iterator[NDArray[Any]]]:
        """The same as they are kept, which may take an eighth of the memory: `unit` makes them what `read` gives."""
        if is_run_file(self.path):
            with Run(self.path) as run:
                yield frames_of(run)
        else:
            with read_video(self.path) as (meta, frames):
                yield frames
                self.meta.update(meta)


def _best(run: Run) -> str:
    """The frames before rounding where they were recorded."""
    return "video_float" if "video_float" in run else "video"


def frames_of(run: Run) -> Iterator[NDArray[Any]]:
    """The frames [H,W,3] of a run file, as it holds them. Raises WanlabError for floats on another scale than [0,1]."""
    kept = run[_best(run)]
    for k in range(len(kept)):
        frame = kept[k]
        if frame.dtype.kind == "f" and (frame.min() < 0 or frame.max() > 1):
            finite = frame[np.isfinite(frame)]
            low, high = finite.min(initial=0), finite.max(initial=1)
            if low < 0 or high > 1:
                raise WanlabError(
                    f"{run.path}: frame {k} has values from {low:.6g} to {high:.6g}, where a video has 0 to 1",
                    "make it again",
                )
        yield frame


def unit(frame: NDArray[Any]) -> Floats:
    """A frame of any depth in [0,1]: integers over the largest one of their type."""
    return frame / float(np.iinfo(frame.dtype).max) if frame.dtype.kind == "u" else frame.astype(np.float64)
