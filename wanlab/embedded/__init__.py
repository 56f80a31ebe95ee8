"""The embedded model `tiny`: a trained checkpoint of Wan2.2's architecture, its world and its verifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # numpy takes a tenth of a second, and where the checkpoint lies is asked by every command
    from wanlab.embedded.world import World

WORLD_FILE = "world.json"  # beside the weights: the version of the world that they were trained on


def tiny_path() -> Path:
    """Directory of the embedded diffusers-layout checkpoint."""
    return Path(__file__).with_name("tiny")


def world_of(checkpoint: Path) -> World:
    """The world that a checkpoint of `tiny` was trained on; the first one where it does not say.

    Raises ValueError for a version that this wanlab does not have.
    """
    from wanlab.embedded.world import FIRST, WORLDS

    said = checkpoint / WORLD_FILE
    version = json.loads(said.read_text())["version"] if said.exists() else FIRST.version
    if version not in WORLDS:
        raise ValueError(f"{said}: world {version!r} is not among {', '.join(WORLDS)}; a newer wanlab knows it")
    return WORLDS[version]


def world_version(checkpoint: Path) -> str:
    """The version of the world that a checkpoint says it was trained on, for the run file; "" of another model."""
    try:
        return str(json.loads((checkpoint / WORLD_FILE).read_text("utf-8"))["version"])[:16]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
