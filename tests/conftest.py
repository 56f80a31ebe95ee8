"""Fixtures that every room's tests share."""

import os

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # before torch: spinning threads starve each other on a busy machine

from tests.engine.conftest import checkpoint, single_checkpoint

__all__ = ["checkpoint", "single_checkpoint"]
