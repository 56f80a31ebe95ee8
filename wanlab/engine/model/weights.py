"""Files of tensors: what they hold without reading it, and their tensors one at a time.

safetensors, and torch's zip files (`.pth`) as far as they hold tensors and nothing else: they are opened with
`weights_only=True` and mapped into memory, so a tensor is read from the disk when it is used.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from wanlab.errors import UsageError

_FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}  # safetensors' names and torch's
_MAX_PICKLE = 64 << 20  # a state dict's pickle is some 200 bytes a tensor


@dataclass(frozen=True, slots=True)
class Head:
    """A tensor that a file holds."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    """float32 and so on; whatever the file calls it when it is not a number with a fraction."""

    @property
    def is_float(self) -> bool:
        """Whether it can be a weight as it is: neither quantized nor counted."""
        return self.dtype in _FLOATS.values()


def heads(files: Sequence[Path]) -> dict[str, Head]:
    """What the files of one component hold, by name; no weights are read.

    Raises UsageError for a file that is damaged, holds anything but tensors, or holds a name that another has.
    """
    found: dict[str, Head] = {}
    for file in files:
        for name, head in _heads(file):
            if name in found:
                raise UsageError(f"{found[name].file} and {file} both hold {shown(name)}", "get the checkpoint again")
            found[name] = head
    return found


def stream(files: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the files, one at a time and as they are stored: views of the mapped file.

    Raises UsageError as `heads` does.
    """
    for file in files:
        if file.suffix == ".pth":
            yield from _unpickled(file).items()
        else:
            with _opened(file) as safe:
                for name in safe.keys():  # noqa: SIM118 - not a mapping
                    yield name, safe.get_tensor(name)


def read(file: Path, name: str) -> Tensor:
    """One tensor of a file, as `stream` gives it. Raises UsageError when the file is damaged."""
    if file.suffix == ".pth":
        return _unpickled(file)[name]
    with _opened(file) as safe:
        tensor: Tensor = safe.get_tensor(name)
    return tensor


def shown(name: str, most: int = 120) -> str:
    """A tensor's name, which is whatever its file says, fit for one line."""
    plain = name if name.isprintable() else name.encode("unicode_escape", "backslashreplace").decode()
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def _heads(file: Path) -> Iterator[tuple[str, Head]]:
    if file.suffix == ".pth":
        for name, tensor in _unpickled(file).items():
            yield name, Head(file, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        return
    with _opened(file) as safe:
        for name in safe.keys():  # noqa: SIM118 - not a mapping
            part = safe.get_slice(name)
            dtype = str(part.get_dtype())
            yield name, Head(file, tuple(part.get_shape()), _FLOATS.get(dtype, dtype))


def _opened(file: Path) -> Any:
    """A safetensors file. The library checks that the header describes every byte of the file, once."""
    try:
        return safe_open(file, framework="pt", device="cpu")
    except Exception as error:  # its own error, or the system's
        raise _damaged(file, error) from error


def _unpickled(file: Path) -> dict[str, Tensor]:
    """A state dict that torch saved, mapped; never anything that could run code."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            archive_is_plain = all(m.compress_type == zipfile.ZIP_STORED for m in members)
        if not archive_is_plain or sum(m.file_size for m in members if m.filename.endswith(".pkl")) > _MAX_PICKLE:
            raise ValueError("it is not as torch saves a state dict")
        held = torch.load(str(file), map_location="cpu", weights_only=True, mmap=True)
    except zipfile.BadZipFile as error:
        raise UsageError(
            f"{file} is damaged, or older than torch's zip format", "get it again, or save it again with torch.save"
        ) from error
    except pickle.UnpicklingError as error:
        name = re.search(r"(?:GLOBAL|[Uu]nsupported class|global:?) ([\w.]+\.[\w.]+)", str(error))
        if name is None:
            raise _damaged(file, ValueError("it is not as torch saves tensors")) from error
        raise UsageError(
            f"{file} holds {shown(name[1])} beside tensors, which could run code: it is not loaded",
            "get the checkpoint from its publisher",
        ) from error
    except Exception as error:  # whatever a damaged or hostile file leads torch to
        raise _damaged(file, error) from error
    if not isinstance(held, dict):
        raise UsageError(f"{file} holds a {type(held).__name__}, not tensors by name", "get the checkpoint again")
    for name, value in held.items():
        if not isinstance(name, str) or type(value) not in (Tensor, torch.nn.Parameter):
            raise UsageError(
                f"{file} holds {shown(str(name))}, a {type(value).__name__} and not a tensor",
                "get the checkpoint again",
            )
    # A view may claim more than its storage has (a stride of 0), and a copy of it would need that much memory.
    claimed = sum(v.numel() * v.element_size() for v in held.values())
    if any(v.layout != torch.strided or v.device.type != "cpu" for v in held.values()) or (
        claimed > file.stat().st_size
    ):
        raise UsageError(f"{file} claims tensors that it does not hold", "get the file again")
    return held


def _damaged(file: Path, error: Exception) -> UsageError:
    said = shown(" ".join(str(error).split()) or type(error).__name__)
    return UsageError(f"{file} is damaged: {said}", "get the file again")
