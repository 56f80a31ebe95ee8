"""LPIPS and its shift-tolerant variant, frame by frame."""

from __future__ import annotations

import hashlib
import math
import warnings
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from wanlab.analysis.metrics import metric
from wanlab.analysis.metrics.clip import Floats
from wanlab.analysis.metrics.learned import device, needs, quiet
from wanlab.errors import UsageError, WanlabError

SOURCE = "https://download.pytorch.org/models/"
# The ImageNet weights of LPIPS's networks, as torchvision publishes them: file and sha256.
WEIGHTS = {
    "alex": ("alexnet-owt-7be5be79.pth", "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02"),
    "squeeze": ("squeezenet1_1-b8a52dc0.pth", "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b"),
}
DISTANCE: dict[str, Any] = {"better": "lower", "bounds": (0.0, math.inf), "format": ".4f", "asked": True}


def check_weights(net: str) -> None:
    """Raises WanlabError unless lpips and the weights of its network are here, whole."""
    needs("lpips", "torchvision")()
    from torch import hub

    name, digest = WEIGHTS[net]
    path = Path(hub.get_dir()) / "checkpoints" / name
    hint = f"put {SOURCE}{name} there (sha256 {digest}), or take --metric stlpips, which brings its weights along"
    if not path.is_file():
        raise WanlabError(f"lpips.{net} needs {path}, which is not there", hint)
    if (own := _sha256(path, path.stat().st_mtime_ns)) != digest:
        raise WanlabError(f"{path} is not the file that lpips.{net} needs: its sha256 is {own}", hint)


@cache
def _sha256(path: Path, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _network(package: str, net: str) -> Any:
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips asks torchvision in an older way
        if package == "lpips":
            from lpips import LPIPS

            made = LPIPS(net=net, verbose=False)
        else:
            from stlpips_pytorch.stlpips import LPIPS as ShiftTolerant

            made = ShiftTolerant(net=net, variant="shift_tolerant", verbose=False)
    return made.to(device()).eval()


def _distance(package: str, net: str, x: Floats, y: Floats) -> float:
    import torch

    network = _network(package, net)
    # -1 to 1, [1,3,H,W], float32: what these networks were calibrated on
    frames = [np.asarray(f[..., :3] * 2 - 1, np.float32).transpose(2, 0, 1)[None].copy() for f in (x, y)]
    try:
        with torch.inference_mode():
            return float(network(*(torch.from_numpy(f).to(device()) for f in frames)).item())
    except RuntimeError as error:  # a frame smaller than the network's layers, or the memory
        said = " ".join(str(error).split())[:120]
        raise UsageError(
            f"{package} cannot measure frames of {x.shape[1]}x{x.shape[0]}: {said}", "leave this --metric out"
        ) from error


@metric("lpips.alex", needs="frame pair", title="LPIPS, AlexNet", check=partial(check_weights, "alex"), **DISTANCE)
def lpips_alex(x: Floats, y: Floats) -> float:
    """LPIPS 0.1 with AlexNet, averaged over each layer's map, mean over frames (Zhang et al., 2018)."""
    return _distance("lpips", "alex", x, y)


@metric(
    "lpips.squeeze", needs="frame pair", title="LPIPS, SqueezeNet", check=partial(check_weights, "squeeze"), **DISTANCE
)
def lpips_squeeze(x: Floats, y: Floats) -> float:
    """LPIPS 0.1 with SqueezeNet, averaged over each layer's map, mean over frames (Zhang et al., 2018)."""
    return _distance("lpips", "squeeze", x, y)


@metric(
    "stlpips",
    needs="frame pair",
    title="ST-LPIPS",
    check=needs("stlpips_pytorch", "torchvision", "torchsummary", "IPython"),
    **DISTANCE,
)
def stlpips(x: Floats, y: Floats) -> float:
    """Shift-tolerant LPIPS with AlexNet, mean over frames (Ghildyal and Liu, 2022); its package brings the weights."""
    return _distance("stlpips", "alex", x, y)
