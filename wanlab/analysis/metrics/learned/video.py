"""ColorVideoVDP: how visible the difference of two videos is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np

from wanlab.analysis.metrics import metric
from wanlab.analysis.metrics.clip import Clip, Floats
from wanlab.analysis.metrics.learned import device, needs, quiet

DISPLAY = "standard_4k"  # the package's default: 30 inches of 3840x2160, 200 cd/m², seen from .75 m


@metric(
    "cvvdp",
    needs="pair",
    title="ColorVideoVDP",
    unit="JOD",
    better="higher",
    bounds=(-math.inf, 10.0),
    format=".3f",
    asked=True,
    check=needs("pycvvdp", "torchvision", "ffmpeg", "pyexr", "einops"),
)
def cvvdp(a: Clip, b: Clip) -> float:
    """ColorVideoVDP on its display `standard_4k` (Mantiuk et al., 2024): 10 JOD are no visible difference, and of 100
    people 75 prefer what has one more."""
    with quiet(), ExitStack() as stack:
        import torch
        from pycvvdp import cvvdp as measure
        from pycvvdp.video_source import video_source_dm

        class Source(video_source_dm):  # type: ignore[misc]
            """Frames as they are asked for, which is in order."""

            def __init__(self) -> None:
                super().__init__(display_photometry=DISPLAY)
                self.sides = [_Frames(clip, stack) for clip in (a, b)]

            def get_video_size(self) -> tuple[int, int, int]:
                return a.height, a.width, a.frames or _count(a)

            def get_frames_per_second(self) -> float:
                return a.fps

            def get_test_frame(self, frame: int, device: Any, colorspace: str) -> Any:
                return self._frame(0, frame, device, colorspace)

            def get_reference_frame(self, frame: int, device: Any, colorspace: str) -> Any:
                return self._frame(1, frame, device, colorspace)

            def _frame(self, side: int, at: int, device: Any, colorspace: str) -> Any:
                values = np.asarray(self.sides[side][at][..., :3], np.float32).transpose(2, 0, 1)
                return self.apply_dm_and_color_transform(
                    torch.from_numpy(values.copy())[None, :, None].to(device), colorspace
                )

        with torch.inference_mode():
            value, _ = measure(display_name=DISPLAY, device=device(), quiet=True).predict_video_source(Source())
        return float(value)


class _Frames:
    """Frames by number: read once where they are asked for in order, from the beginning again where they are not."""

    def __init__(self, clip: Clip, stack: ExitStack) -> None:
        self.clip, self.stack = clip, stack
        self._open()

    def _open(self) -> None:
        self.at, self.frames = -1, self.stack.enter_context(self.clip.read())

    frames: Iterator[Floats]
    frame: Floats

    def __getitem__(self, at: int) -> Floats:
        if at < self.at:
            self._open()
        while self.at < at:
            self.frame, self.at = next(self.frames), self.at + 1
        return self.frame


def _count(clip: Clip) -> int:
    with clip.read() as frames:
        return sum(1 for _ in frames)
