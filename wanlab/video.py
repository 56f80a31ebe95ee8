"""Frames to mp4 and gif, and back. A file appears under its name only when it is whole."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from PIL import Image

from wanlab import files
from wanlab.errors import WanlabError

FPS = 16  # Wan's native rate
_WHICH = "install imageio-ffmpeg again, or set IMAGEIO_FFMPEG_EXE to an ffmpeg that has libx264"
# The tags are set on the frames: options of the encoder lose against what the frames say, which is "unknown".
BT709 = (
    "scale=out_color_matrix=bt709:out_range=tv,format=yuv420p,"
    "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
)
# Frames one millisecond after the other: times that the output's clock cannot tell apart would be refused there.
_BY_FRAME = "settb=1/1000,setpts=N"


def ffmpeg() -> str:
    """The ffmpeg in use: that of IMAGEIO_FFMPEG_EXE, or imageio-ffmpeg's own. Raises WanlabError when it cannot run."""
    return _encoders()[0]


def check_encoder() -> None:
    """Raise WanlabError unless films can be written, so that it is known before hours of sampling."""
    program, encoders = _encoders()
    if "libx264" not in encoders:
        raise WanlabError(f"{program} has no libx264, which films are written with", _WHICH)


@cache
def _encoders() -> tuple[str, frozenset[str]]:
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
        command = [program, "-nostdin", "-hide_banner", "-encoders"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except (OSError, RuntimeError) as error:  # RuntimeError: imageio-ffmpeg finds none
        raise WanlabError(f"ffmpeg cannot be run: {' '.join(str(error).split())[:160]}", _WHICH) from error
    if done.returncode:
        raise WanlabError(f"ffmpeg cannot be run: {program} ends with {done.returncode}", _WHICH)
    return program, frozenset(word for line in done.stdout.splitlines() for word in line.split()[1:2])


def write_mp4(path: Path, frames: np.ndarray, fps: int) -> None:
    """H.264 of frames [T,H,W,3] uint8. Raises WanlabError when the encoder or the disk fails."""
    write_mp4_from(path, frames, (frames.shape[2], frames.shape[1]), fps)


def write_mp4_from(path: Path, frames: Iterable[np.ndarray], size: tuple[int, int], fps: float) -> None:
    """H.264 of frames [H,W,3] uint8, one at a time; size is (W, H). Converted with bt709 and tagged so.

    Raises WanlabError.
    """
    command = [ffmpeg(), "-nostdin", "-hide_banner", "-loglevel", "error", "-y"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", str(fps), "-i", "pipe:0"]
    even = "pad=ceil(iw/2)*2:ceil(ih/2)*2,"  # 4:2:0 takes even sizes
    command += ["-an", "-vf", f"{even}{BT709}"]
    command += ["-c:v", "libx264", "-crf", "18", "-f", "mp4"]
    with files.replacing(path) as part, tempfile.TemporaryFile() as said:
        with subprocess.Popen([*command, _local(part)], stdin=subprocess.PIPE, stderr=said) as encoder:
            assert encoder.stdin is not None
            try:
                for frame in frames:
                    encoder.stdin.write(np.ascontiguousarray(frame, np.uint8).data)
                encoder.stdin.close()
            except BrokenPipeError:
                pass  # the encoder ended: its words and status say why
            except BaseException:
                encoder.kill()
                raise
        said.seek(0)
        if encoder.returncode:
            words = " ".join(said.read().decode(errors="replace").split())[-160:]
            raise WanlabError(f"cannot write {path}: {words}", "check the disk")


def write_gif(path: Path, frames: np.ndarray, fps: int) -> None:
    """An endless gif of frames [T,H,W,3] uint8; gif's clock ticks at 100 Hz. Raises WanlabError."""
    images = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    with files.replacing(path) as part:
        images[0].save(part, save_all=True, append_images=images[1:], duration=round(1000 / fps, -1), loop=0)


@contextmanager
def read_mp4(path: Path) -> Iterator[tuple[dict[str, Any], Iterator[np.ndarray]]]:
    """(what the file says of itself, its frames [H,W,C] one at a time, as they are stored) of a video file.

    No frame is made or dropped. Frames are uint8 of RGB; uint16 where the file has more than 8 bits; with a fourth
    channel where it has alpha. Of itself it says: size (W, H), fps, pix_fmt, depth (bits), alpha, color (range, matrix,
    primaries and transfer where the file names them); and, once all frames are read, times (seconds) and stored (of
    each frame its bytes and their digest, before they become RGB).

    Raises WanlabError when it is no video, or is damaged or cut short: ffmpeg's status and its messages count.
    """
    files.check_regular(path)
    meta = _probe(path)
    width, height = meta["size"]
    deep, channels = meta["depth"] > 8, 4 if meta["alpha"] else 3
    pixel = {(False, 3): "rgb24", (False, 4): "rgba", (True, 3): "rgb48le", (True, 4): "rgba64le"}[deep, channels]
    command = [ffmpeg(), "-nostdin", "-hide_banner", "-nostats", "-loglevel", "level+error"]
    command += ["-xerror", "-err_detect", "explode", "-noautorotate", "-i", _local(path), "-map", "0:v:0"]
    command += ["-fps_mode", "passthrough", "-enc_time_base", "1/1000", "-pix_fmt", pixel]
    decoded = ["-f", "rawvideo", "pipe:1", "-map", "0:v:0", "-fps_mode", "passthrough", "-vf", _BY_FRAME]
    decoded += ["-f", "framehash", "-hash", "sha256"]
    count = width * height * channels * (2 if deep else 1)

    def frames() -> Iterator[np.ndarray]:
        assert decoder.stdout is not None
        while len(data := decoder.stdout.read(count)) == count:
            yield np.frombuffer(data, "<u2" if deep else "u1").reshape(height, width, channels)
        decoder.wait()
        for written in (said, times, hashes):
            written.seek(0)
        lines = said.read().decode(errors="replace").splitlines()
        errors = [line for line in lines if re.search(r"\[(error|fatal|panic)\]", line)]  # the loader may speak too
        if decoder.returncode or errors or data:
            words = errors[0] if errors else "it ends in the middle of a frame"
            raise WanlabError(f"{path} is damaged: {words[-120:]}", "make it again")
        meta["times"] += [float(t) for t in re.findall(rb"(?m)^frame:.*pts_time:([-0-9.]+)$", times.read())]
        rows = (line.split(b",") for line in hashes.read().splitlines() if not line.startswith(b"#"))
        meta["stored"] += [(int(values[4]), values[5].strip()) for values in rows]

    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as times, tempfile.TemporaryFile() as hashes:
        # Times go to a file of their own: threads of ffmpeg write into each other's lines, and an error loses its mark.
        shown = f"metadata=delete,metadata=add:key=a:value=b,metadata=print:file=pipe\\\\:{times.fileno()},{_BY_FRAME}"
        command += ["-vf", shown, *decoded, f"pipe:{hashes.fileno()}"]
        given = [times.fileno(), hashes.fileno()]
        decoder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, pass_fds=given)
        try:
            yield meta, frames()
        finally:
            decoder.kill()
            decoder.wait()
            if decoder.stdout is not None:
                decoder.stdout.close()


def _local(path: Path) -> str:
    """A path as ffmpeg takes it: never a URL, whatever colons it has."""
    return "file:" + os.path.abspath(path)


def _probe(path: Path) -> dict[str, Any]:
    command = [ffmpeg(), "-nostdin", "-hide_banner", "-i", _local(path)]
    text = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stderr
    line = re.search(r"Video: (\w+).*?, (\w+)(?:\(([^)]*)\))?, (\d+)x(\d+)(.*)", text)
    if line is None or "Input #0" not in text:
        raise WanlabError(f"{path} is no video that ffmpeg can read", "name an mp4 file")
    codec, pixel, tags, width, height, rest = line.groups()
    if int(width) == 0 or int(height) == 0:  # of a codec that ffmpeg does not know
        raise WanlabError(f"{path} has pictures of {width}x{height} pixels", "make it again")
    fps = re.search(r"([\d.]+) fps", rest) or re.search(r"([\d.]+) tbr", rest)
    bits = re.search(r"(?:p|p[024]|gray|gbra?p)(9|10|12|14|16)(?:le|be)", pixel)
    bits = bits or re.search(r"(48|64|f16|f32)(?:le|be)", pixel)
    depth = 8 if bits is None else min(16, int(bits[1].removeprefix("f")))
    alpha = codec != "gif" and bool(re.match(r"yuva|gbrap|rgba|bgra|argb|abgr|ya8|ya16", pixel))
    colour = [tag.strip() for tag in (tags or "").split(",") if tag.strip() and tag.strip() != "progressive"]
    return {
        "size": (int(width), int(height)),
        "fps": float(fps[1]) if fps else 0.0,
        "codec": codec,
        "pix_fmt": pixel,
        "depth": depth,
        "alpha": alpha,
        "color": colour,
        "times": [],
        "stored": [],
    }


def stored_errors(a: Path, b: Path, meta: dict[str, Any]) -> list[float]:
    """Of each frame the mean squared difference of two videos' values as they are stored, luma and chroma alike, for
    peak 1; `meta` is what `read_mp4` said of one of them, the other has as many frames of the same format. It is what
    ffmpeg's filter psnr calls mse_avg. Raises WanlabError."""
    pixel = meta["pix_fmt"]
    order, shift = ">" if pixel.endswith("be") else "<", 16 - meta["depth"] if re.match(r"p[024]1", pixel) else 0
    dtype, peak = (f"{order}u2", ((1 << meta["depth"]) - 1) << shift) if meta["depth"] > 8 else ("u1", 255)
    if re.search(r"f(16|32)..$", pixel):
        dtype, peak = f"{order}f{int(pixel[-4:-2]) // 8}", 1

    def start(path: Path) -> subprocess.Popen[bytes]:
        command = [ffmpeg(), "-nostdin", "-v", "error", "-noautorotate", "-i", _local(path), "-map", "0:v:0"]
        command += ["-fps_mode", "passthrough", "-vf", _BY_FRAME, "-f", "rawvideo", "pipe:1"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    errors = []
    with start(a) as x, start(b) as y:
        assert x.stdout is not None and y.stdout is not None
        for size, _ in meta["stored"]:
            values = [np.frombuffer(s.read(size), dtype).astype(np.float64) for s in (x.stdout, y.stdout)]
            errors.append(float(np.square((values[0] - values[1]) / peak).mean()))
    return errors


def ffmpeg_compare(a: Path, b: Path, filters: str, size: tuple[int, int] | None = None) -> str:
    """What ffmpeg's full-reference filters, from [a][b], print of two videos, `a` against the reference `b`, frame by
    frame; of raw RGB ones where a size is given."""
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", str(FPS)] if size else []
    command = [ffmpeg(), "-nostdin", "-hide_banner", "-nostats", *raw, "-i", _local(a), *raw, "-i", _local(b)]
    filters = f"[0:v]{_BY_FRAME}[a];[1:v]{_BY_FRAME}[b];{filters}"
    done = subprocess.run(
        [*command, "-lavfi", filters, "-f", "null", "-"], capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        raise WanlabError(f"ffmpeg cannot compare: {' '.join(done.stderr.split())[-160:]}", "check the disk")
    return done.stderr


@cache
def has_filter(name: str) -> bool:
    """Whether the ffmpeg in use has this filter."""
    command = [ffmpeg(), "-hide_banner", "-filters"]
    listed = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stdout
    return any(line.split()[1:2] == [name] for line in listed.splitlines())
