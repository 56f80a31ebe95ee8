"""Fixtures that every room's tests share."""

import os
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning starves others on a busy machine

# A shell starts its background jobs deaf to ctrl-c, and what they start inherits it; tests send it to what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

from tests.engine.conftest import checkpoint, single_checkpoint  # noqa: E402

__all__ = ["checkpoint", "single_checkpoint"]
