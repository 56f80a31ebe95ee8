"""Fixtures that every room's tests share."""

from tests.engine.conftest import checkpoint, single_checkpoint

__all__ = ["checkpoint", "single_checkpoint"]
