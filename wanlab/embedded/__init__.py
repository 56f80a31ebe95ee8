"""The embedded model `tiny`: a trained checkpoint of Wan2.2's architecture, its world and its verifier."""

from __future__ import annotations

from pathlib import Path


def tiny_path() -> Path:
    """Directory of the embedded diffusers-layout checkpoint."""
    return Path(__file__).with_name("tiny")
