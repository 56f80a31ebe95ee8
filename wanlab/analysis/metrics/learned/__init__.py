"""Perceptual measures that others trained, of the extra `wanlab[perceptual]`; asked for by name.

torch and these packages are imported when one is measured, not before; nothing is ever downloaded.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from wanlab.errors import WanlabError


def needs(*modules: str) -> Callable[[], None]:
    """A check that these modules are installed; it raises WanlabError."""

    def check() -> None:
        for module in modules:
            if find_spec(module) is None:
                raise WanlabError(f"{module} is not installed", "pip install 'wanlab[perceptual]'")

    return check


def device() -> Any:
    """The GPU where there is one, else the CPU: a torch.device."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What packages print goes to stderr: stdout is data."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
