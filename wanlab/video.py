"""Frames to mp4 and gif, and back. A file appears under its name only when it is whole."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from PIL import Image

from wanlab.errors import WanlabError

FPS = 16  # Wan's native rate


def write_mp4(path: Path, frames: np.ndarray, fps: int) -> None:
    """H.264 of frames [T,H,W,3] uint8. Raises WanlabError when the encoder or the disk fails."""
    write_mp4_from(path, frames, (frames.shape[2], frames.shape[1]), fps)


def write_mp4_from(path: Path, frames: Iterable[np.ndarray], size: tuple[int, int], fps: float) -> None:
    """H.264 of frames [H,W,3] uint8, one at a time; size is (W, H). Raises WanlabError."""
    part = path.with_name(f".{path.stem}.part.mp4")
    try:
        writer = imageio_ffmpeg.write_frames(
            str(part), size, fps=fps, codec="libx264", quality=8, macro_block_size=2, ffmpeg_log_level="error"
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


@contextmanager
def read_mp4(path: Path) -> Iterator[tuple[dict[str, Any], Iterator[np.ndarray]]]:
    """(what imageio-ffmpeg says of it: size (W, H), fps, …; frames [H,W,3] uint8 one at a time) of a video file. Raises WanlabError when it is no video,
    or is damaged: ffmpeg stops there and says so."""
    if not path.is_file():
        raise WanlabError(f"there is no file {path}", "check the path")
    reader = imageio_ffmpeg.read_frames(str(path), output_params=["-xerror"], input_params=["-err_detect", "explode"])
    try:
        try:
            meta = next(reader)
            width, height = meta["size"]
        except (OSError, RuntimeError, StopIteration, KeyError, ValueError) as error:
            raise WanlabError(f"{path} is no video that ffmpeg can read", "name an mp4 file") from error

        def frames() -> Iterator[np.ndarray]:
            try:
                for data in reader:
                    yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
            except (OSError, RuntimeError, ValueError) as error:
                raise WanlabError(
                    f"{path} is damaged: {' '.join(str(error).split())[-120:]}", "make it again"
                ) from error

        yield meta, frames()
    finally:
        reader.close()


def ffmpeg_compare(a: Path, b: Path, filters: str, size: tuple[int, int]) -> str:
    """What ffmpeg's full-reference filters print of two raw RGB videos of this size, `a` against the reference `b`."""
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", str(FPS)]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostats", *raw, "-i", str(a), *raw, "-i", str(b)]
    done = subprocess.run(
        [*command, "-lavfi", filters, "-f", "null", "-"], capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        raise WanlabError(f"ffmpeg cannot compare: {' '.join(done.stderr.split())[-160:]}", "check the disk")
    return done.stderr


@cache
def has_filter(name: str) -> bool:
    """Whether the ffmpeg in use has this filter."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-filters"]
    listed = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stdout
    return any(line.split()[1:2] == [name] for line in listed.splitlines())
