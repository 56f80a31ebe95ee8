"""Folders of `latent_step_XX.pt`, one file a step, as the experiment guide's own scripts write them.

A file is a dictionary: step, timestep, sigma (may be missing), x_t, x0_pred, eps_pred, and in those that `write` makes
the expert; tensors [C,F,H,W] or [1,C,F,H,W]. In the guide's files `x0_pred` is the solver's next latent and `eps_pred`
the velocity. Files whose names mean what they say, such as those that `write` makes, are told by
x_t = (1-σ) x0_pred + σ eps_pred.
"""

from __future__ import annotations

import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from wanlab.engine.model.weights import shown
from wanlab.errors import UsageError, WanlabError
from wanlab.files import check_regular, io_error, make_folder, replacing
from wanlab.runfile import Run

_NAME = re.compile(r"latent_step_(\d{1,6})\.pt\Z")
_TENSORS = ("x_t", "x0_pred", "eps_pred", "velocity")
GUIDES = (
    "x0_pred in these files is the solver's next latent and eps_pred the velocity; read as what they are, with"
    " x0_pred = x_t - sigma velocity and eps_pred = x_t + (1 - sigma) velocity"
)
NO_SIGMA = "these files have no sigma: timestep / 1000 is taken for it"


@dataclass(frozen=True, kw_only=True)
class SavedStep:
    """One file, its arrays [C,F,H,W] float32 under names that mean what they say; `latent` is x_t of the next step."""

    timestep: float
    sigma: float
    expert: str | None
    """high, low or single; None where the file does not say."""
    arrays: dict[str, np.ndarray]
    notes: tuple[str, ...]


def files(folder: Path) -> list[Path]:
    """The folder's files in the order of their numbers; none when there are none. Raises UsageError for a number
    that is there twice, and WanlabError for a folder that cannot be read."""
    try:
        numbers = {p: int(m[1]) for p in folder.iterdir() if (m := _NAME.match(p.name))}
    except OSError as error:
        raise io_error("read", folder, error) from error
    ordered = sorted(numbers, key=lambda p: (numbers[p], p.name))
    for a, b in pairwise(ordered):
        if numbers[a] == numbers[b]:
            raise UsageError(f"{a} and {b.name} are the same step", "remove one of them")
    return ordered


def read(folder: Path) -> Iterator[SavedStep]:
    """The steps of a folder, one file in memory at a time. Raises WanlabError for a file that is not such a step."""
    guides = None
    shape: tuple[int, ...] = ()
    for path in files(folder):
        saved = _load(path)
        notes = []
        timestep = _number(path, saved, "timestep")
        if saved.get("sigma") is None:
            saved["sigma"] = timestep / 1000
            notes.append(NO_SIGMA)
        sigma = _number(path, saved, "sigma")
        if not 0 <= sigma <= 1:
            raise WanlabError(f"{path} has sigma {sigma:g}, not 0 to 1", "name the files of a flow-matching run")
        arrays = {name: _array(path, saved, name) for name in _TENSORS if saved.get(name) is not None}
        if "x_t" not in arrays:
            raise WanlabError(f"{path} has no x_t", "name a folder of latent_step_XX.pt files")
        here = arrays["x_t"].shape
        if any(a.shape != here for a in arrays.values()) or (shape and (here[0], *here[2:]) != (shape[0], *shape[2:])):
            raise WanlabError(f"{path} has tensors of different shapes", "name the files of one run")
        shape = here
        if {"x0_pred", "eps_pred"} <= set(arrays):
            if guides is None:  # told at the first step, where the two readings differ most
                guides = not _true_names(arrays, sigma)
            if guides:
                velocity = arrays["eps_pred"]
                notes.append(GUIDES)
                arrays |= {
                    "latent": arrays["x0_pred"],
                    "velocity": velocity,
                    "x0_pred": arrays["x_t"] - np.float32(sigma) * velocity,
                    "eps_pred": arrays["x_t"] + np.float32(1 - sigma) * velocity,
                }
            else:
                arrays["latent"] = arrays["x0_pred"]  # where σ goes to 0 next, every solver's last step ends there
        expert = saved.get("expert")
        yield SavedStep(
            timestep=timestep,
            sigma=sigma,
            expert=expert if isinstance(expert, str) and expert in ("high", "low", "single") else None,
            arrays=arrays,
            notes=tuple(notes),
        )


def write(run: Run, folder: Path) -> list[Path]:
    """`latent_step_01.pt` and on: what a run file recorded of each step, under names that mean what they say. Raises
    WanlabError when they cannot be written."""
    make_folder(folder)
    made = []
    for k in range(run.steps):
        names = [n for n in _TENSORS if n in run and k in run[n].recorded]
        if not names:
            continue
        saved: dict[str, Any] = {n: torch.from_numpy(np.array(run[n][k])) for n in names}
        saved |= {"step": k + 1, "timestep": float(run["timestep"][k]), "sigma": float(run["sigma"][k])}
        saved["expert"] = str(run["expert"][k])
        path = folder / f"latent_step_{k + 1:02d}.pt"
        try:
            with replacing(path) as part:
                torch.save(saved, part)
        except RuntimeError as error:  # torch reports a full disk so
            raise WanlabError(
                f"cannot write {path}: {str(error)[:120]}", "free some space, or choose another --out"
            ) from error
        made.append(path)
    return made


def _true_names(arrays: dict[str, np.ndarray], sigma: float) -> bool:
    x = arrays["x_t"].astype(np.float64)
    mixed = (1 - sigma) * arrays["x0_pred"].astype(np.float64) + sigma * arrays["eps_pred"].astype(np.float64)
    return bool(np.linalg.norm(x - mixed) <= 0.02 * np.linalg.norm(x))  # bfloat16 keeps 1 in 256


def _load(path: Path) -> dict[str, Any]:
    remedy = "save it again with torch.save, tensors and numbers only"
    check_regular(path)
    try:
        size = path.stat().st_size
        if not zipfile.is_zipfile(path):
            raise WanlabError(f"{path} is no file of torch.save (its zip format)", remedy)
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED for m in members):
            raise WanlabError(f"{path} is compressed, which torch.save never does", remedy)
        if sum(m.file_size for m in members) > size:
            raise WanlabError(f"{path} declares more values than it stores", remedy)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's guesses at what a strange file may be
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except WanlabError:
        raise
    except pickle.UnpicklingError as error:
        raise WanlabError(f"{path} is refused: it holds objects that could run code when loaded", remedy) from error
    except OSError as error:
        raise io_error("read", path, error) from error
    except Exception as error:  # whatever a damaged or hostile file leads torch to
        said = shown(" ".join(str(error).split()) or type(error).__name__)
        raise WanlabError(f"cannot read {path}: {said}", "get the file again") from error
    if not isinstance(saved, dict):
        raise WanlabError(f"{path} holds no dictionary", remedy)
    for value in saved.values():
        # A view may repeat one stored number without end.
        if isinstance(value, Tensor) and value.numel() * value.element_size() > size:
            raise WanlabError(f"{path} declares more values than it stores", remedy)
    return saved


def _number(path: Path, saved: dict[str, Any], name: str) -> float:
    value = saved.get(name)
    if _is_plain(value) and value.numel() == 1:
        value = value.item()
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # a whole number of 400 digits
        number = math.nan
    if not math.isfinite(number):
        raise WanlabError(f"{path} has no number '{name}'", "name a folder of latent_step_XX.pt files")
    return number


def _array(path: Path, saved: dict[str, Any], name: str) -> np.ndarray:
    value = saved[name]
    if _is_plain(value) and value.ndim == 5 and value.shape[0] == 1:
        value = value[0]
    if not _is_plain(value) or not value.is_floating_point() or value.ndim != 4 or not value.numel():
        raise WanlabError(f"{path}: '{name}' is no latent [C,F,H,W]", "name a folder of latent_step_XX.pt files")
    array: np.ndarray = value.detach().float().contiguous().numpy()
    if not np.isfinite(array).all():
        raise WanlabError(f"{path}: '{name}' holds values that are not finite", "sample again, or leave the file out")
    return array


def _is_plain(value: object) -> TypeGuard[Tensor]:
    """Whether it is a tensor with its values in memory: not sparse, nested or without storage."""
    return (
        isinstance(value, Tensor)
        and not value.is_nested
        and value.layout == torch.strided
        and value.device.type == "cpu"
    )
