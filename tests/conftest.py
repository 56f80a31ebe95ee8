"""Fixtures that every room's tests share."""

from tests.engine.conftest import checkpoint

__all__ = ["checkpoint"]
