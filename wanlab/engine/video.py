"""Frames to mp4 and gif. A file appears under its name only when it is whole."""

from __future__ import annotations

import os
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image

from wanlab.errors import WanlabError


def write_mp4(path: Path, frames: np.ndarray, fps: int) -> None:
    """H.264 of frames [T,H,W,3] uint8. Raises WanlabError when the encoder or the disk fails."""
    part = path.with_name(f".{path.stem}.part.mp4")
    height, width = frames.shape[1:3]
    try:
        writer = imageio_ffmpeg.write_frames(
            str(part),
            (width, height),
            fps=fps,
            codec="libx264",
            quality=8,
            macro_block_size=2,
            ffmpeg_log_level="error",
        )
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        raise WanlabError(f"cannot write {path}: {' '.join(str(error).split())[:160]}", "check the disk") from error
    finally:
        part.unlink(missing_ok=True)


def write_gif(path: Path, frames: np.ndarray, fps: int) -> None:
    """An endless gif of frames [T,H,W,3] uint8; gif's clock ticks at 100 Hz. Raises WanlabError."""
    part = path.with_name(f".{path.stem}.part.gif")
    images = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    try:
        images[0].save(part, save_all=True, append_images=images[1:], duration=round(1000 / fps, -1), loop=0)
        os.replace(part, path)
    except OSError as error:
        raise WanlabError(f"cannot write {path}: {error.strerror or error}", "check the disk") from error
    finally:
        part.unlink(missing_ok=True)
