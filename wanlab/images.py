"""Folders of numbered images as videos, read as video files are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanlab.errors import UsageError, WanlabError
from wanlab.files import check_regular
from wanlab.video import FPS, read_mp4

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def frames_in(folder: Path) -> list[Path]:
    """What is an image by its name in a folder, in the order of the numbers in their names."""
    named = (p for p in folder.iterdir() if p.suffix.lower() in IMAGES and not p.name.startswith("."))
    images = (p for p in named if not p.is_dir())  # what is no file is no frame to leave out: reading it says so

    def by_number(path: Path) -> list[Any]:
        return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", path.name)]

    return sorted(images, key=by_number)


def read_video(path: Path) -> AbstractContextManager[tuple[dict[str, Any], Iterator[NDArray[Any]]]]:
    """(size (W, H), fps, …; frames [H,W,3] uint8 one at a time) of a video file or a folder of images.

    Raises WanlabError when it is none, or damaged.
    """
    return _read_images(path) if path.is_dir() else read_mp4(path)


@contextmanager
def _read_images(folder: Path) -> Iterator[tuple[dict[str, Any], Iterator[NDArray[Any]]]]:
    files = frames_in(folder)
    if not files:
        raise UsageError(f"{folder} holds no images", f"name a folder of {', '.join(IMAGES)}")
    height, width = _image(files[0]).shape[:2]

    def frames() -> Iterator[NDArray[Any]]:
        for file in files:
            frame = _image(file)
            if frame.shape != (height, width, 3):
                raise UsageError(
                    f"{file} is {frame.shape[1]}x{frame.shape[0]}, {files[0].name} {width}x{height}",
                    "give all frames of a video the same size",
                )
            yield frame

    yield {"size": (width, height), "fps": FPS}, frames()


def _image(path: Path) -> NDArray[np.uint8]:
    from PIL import Image

    check_regular(path)
    try:
        with Image.open(path) as image:
            if problem := _problem(image):
                raise UsageError(f"{path} has {problem}", "save it as RGB with 8 bits a colour")
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise WanlabError(f"cannot read the image {path}: {' '.join(str(error).split())[:120]}") from error


def _problem(image: Any) -> str:
    """What of an open image would be lost as RGB of 8 bits, in words; "" for nothing."""
    if image.mode not in ("RGB", "L", "P", "1"):
        return f"pixels of mode {image.mode}"
    if "transparency" in image.info:
        return "transparent pixels"
    if getattr(image, "n_frames", 1) > 1:
        return f"{image.n_frames} frames"
    raw = [args if isinstance(args, str) else next(iter(args or ()), "") for _, _, _, args in image.tile]
    return "16 bits a colour" if any(";16" in str(mode) for mode in raw) else ""
