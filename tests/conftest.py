"""Fixtures that every room's tests share."""

import os
import signal
from importlib.util import find_spec

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning starves others on a busy machine

# A shell starts its background jobs deaf to ctrl-c, and what they start inherits it; tests send it to what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

if find_spec("torch"):
    from tests.engine.conftest import checkpoint, single_checkpoint
else:

    @pytest.fixture(scope="session")
    def checkpoint() -> None:
        """Tests that sample are skipped where torch cannot be had."""
        pytest.skip("needs torch")

    single_checkpoint = checkpoint

__all__ = ["checkpoint", "single_checkpoint"]
