"""Frames to mp4 and gif, and back. A file appears under its name only when it is whole."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

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
    part = _part(path)
    try:
        writer = imageio_ffmpeg.write_frames(
            _url(part), size, fps=fps, codec="libx264", quality=8, macro_block_size=2, ffmpeg_log_level="error"
        )
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        raise WanlabError(f"cannot write {path}: {_said(str(error))}", "check the disk") from error
    finally:
        part.unlink(missing_ok=True)


def check_encoder() -> None:
    """Raise WanlabError unless there is an ffmpeg that runs: found out before a run, not after it."""
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
        subprocess.run([program, "-version"], capture_output=True, check=True)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        raise WanlabError(
            f"there is no ffmpeg to write films with: {_said(str(error))}",
            "install ffmpeg, or set IMAGEIO_FFMPEG_EXE to one",
        ) from error


def _part(path: Path) -> Path:
    """Where `path` is written until it is whole; a link or file that stands there is removed, not written through."""
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    part.unlink(missing_ok=True)
    return part


def _url(path: Path) -> str:
    """The path as ffmpeg takes it: `file:` keeps it from reading `run:1.mp4` as an address."""
    return f"file:{path}"


def _said(text: str) -> str:
    return " ".join(text.split())[-160:]


def write_gif(path: Path, frames: np.ndarray, fps: int) -> None:
    """An endless gif of frames [T,H,W,3] uint8; gif's clock ticks at 100 Hz. Raises WanlabError."""
    part = _part(path)
    images = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    try:
        images[0].save(part, "GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps, -1), loop=0)
        os.replace(part, path)
    except OSError as error:
        raise WanlabError(f"cannot write {path}: {error.strerror or error}", "check the disk") from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def read_mp4(path: Path) -> Iterator[tuple[dict[str, Any], Iterator[np.ndarray]]]:
    """(what ffmpeg says of a video: size (W, H), fps, …; its frames [H,W,3] uint8, one at a time, as they are stored:
    none is repeated or dropped to keep a clock). Raises WanlabError when it is no video, or is damaged or cut short.
    """
    if not path.is_file():
        raise WanlabError(f"there is no file {path}", "check the path")
    meta = _describe(path)
    width, height = meta["size"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-loglevel", "error", "-xerror"]
    command += ["-err_detect", "explode", "-i", _url(path), "-map", "0:v:0", "-fps_mode", "passthrough"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
    with (
        tempfile.TemporaryFile() as messages,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages) as decoder,
    ):
        try:
            yield meta, _frames(path, decoder, messages, width, height)
        finally:
            decoder.kill()


def _describe(path: Path) -> dict[str, Any]:
    reader = imageio_ffmpeg.read_frames(_url(path))
    try:
        meta: dict[str, Any] = next(reader)
        _ = meta["size"]
        return meta
    except (OSError, RuntimeError, StopIteration, KeyError, ValueError, IndexError) as error:
        raise WanlabError(f"{path} is no video that ffmpeg can read", "name an mp4 file") from error
    finally:
        reader.close()


def _frames(
    path: Path, decoder: subprocess.Popen[bytes], messages: BinaryIO, width: int, height: int
) -> Iterator[np.ndarray]:
    assert decoder.stdout is not None
    size = width * height * 3
    while len(data := decoder.stdout.read(size)) == size:
        yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
    status = decoder.wait()
    messages.seek(0)
    said = _said(messages.read().decode(errors="replace"))
    if status or said or data:  # a film cut short ends with status 0 and a message
        raise WanlabError(f"{path} is damaged: {said or f'ffmpeg ended with {status}'}", "make it again")


def ffmpeg_compare(a: Path, b: Path, filters: str, size: tuple[int, int]) -> str:
    """What ffmpeg's full-reference filters print of two raw RGB videos of this size, `a` against the reference `b`."""
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", str(FPS)]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostats", *raw, "-i", _url(a), *raw, "-i", _url(b)]
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
