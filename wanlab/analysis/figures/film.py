"""Films of clips beside each other, each below its name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wanlab.analysis.figures.style import legible, shorten
from wanlab.analysis.metrics.clip import Clip
from wanlab.video import write_mp4_from

PANEL, BAND = 256, 24  # pixels: the least width of a panel, the height of the names above


def write_film(path: Path, clip: Clip, names: Sequence[str], pictures: Iterable[Sequence[NDArray[np.uint8]]]) -> Path:
    """A film of panels as large as `clip`, next to each other, their names above them.

    pictures  for each frame its panels [H,W,3] in 8 bits, as many as names

    Panels narrower than `PANEL` pixels are enlarged by a whole number, pixel by pixel, so that a name can be read.
    Raises WanlabError when it cannot be written.
    """
    larger = max(1, -(-PANEL // clip.width))
    above = np.concatenate([_band(name, larger * clip.width) for name in names], axis=1)

    def frames() -> Iterator[NDArray[np.uint8]]:
        for panels in pictures:
            joined = np.concatenate(panels, axis=1)
            yield np.concatenate([above, joined.repeat(larger, axis=0).repeat(larger, axis=1)])

    write_mp4_from(path, frames(), (above.shape[1], BAND + larger * clip.height), clip.fps)
    return path


def _band(text: str, width: int) -> NDArray[np.uint8]:
    """A line of text [BAND,width,3] in white on black, cut at the end where it is too long."""
    line, families = legible(shorten(text))
    font = ImageFont.truetype(font_manager.findfont(families[-1]), BAND * 5 // 9)
    while len(line) > 1 and font.getlength(line) > width - 12:
        line = line.removesuffix("…")[:-1] + "…"
    image = Image.new("RGB", (width, BAND))
    ImageDraw.Draw(image).text((6, BAND // 2), line, fill="white", font=font, anchor="lm")
    return np.asarray(image)
