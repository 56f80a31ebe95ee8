"""What the name of a model stands for. Imports no torch, so that a typing error is told at once."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from wanlab.embedded import tiny_path
from wanlab.errors import UsageError
from wanlab.registry import suggest
from wanlab.spec.run import short

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z", re.ASCII)


def directory(name: str) -> Path | None:
    """The directory that a model's name stands for; None for a hub id.

    Raises UsageError for a name that is neither, and for an HF_ENDPOINT with which the libraries cannot even be
    imported.
    """
    _check_endpoint()
    if name == "tiny":
        return tiny_path()
    path = Path(os.path.expanduser(name))  # as it is where there is no such home
    if os.path.isdir(path):
        return path
    if os.path.exists(path):
        raise UsageError(f"model {short(name)} is a file", "name the checkpoint's directory")
    if os.path.islink(path):
        raise UsageError(f"model {short(name)} is a link to nothing", "name the checkpoint's directory")
    if _HUB_ID.match(name):
        return None
    if "/" in name or "\\" in name:
        raise UsageError(f"there is no directory {short(name, 200)}", "check --model, or use --model tiny")
    raise UsageError(
        f"unknown model '{short(name)}'", suggest(name, ["tiny"]) + ", a directory, or a hub id OWNER/NAME"
    )


def _check_endpoint() -> None:
    endpoint = os.environ.get("HF_ENDPOINT", "")
    try:
        parts = urlsplit(endpoint)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that do not match, a port of six digits
        is_url = False
    if endpoint and not is_url:
        raise UsageError(f"HF_ENDPOINT is {short(endpoint)!r}, no URL", "unset it, or use https://HOST")
