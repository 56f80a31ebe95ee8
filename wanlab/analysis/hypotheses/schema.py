"""What a comparison and a continuity analysis are, as far as they are read here; checked where a file is opened."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wanlab.errors import WanlabError
from wanlab.files import parse_json, read_bytes

COMPARISON, CONTINUITY = "wanlab-comparison/1", "wanlab-continuity/1"
MAX_BYTES = 256 * 2**20  # of a JSON file; a continuity analysis of a thousand runs has 170 MiB

# Shapes: the name of a kind (see `_KINDS`), a list of one shape, or names with their shapes. A name may be missing or
# null unless it ends with "!"; "*" stands for whatever names there are; names that are not here are not read.
_INTERVAL = {"mean": "figure", "low": "figure", "high": "figure", "n": "number"}
_KEY = {"model": "text", "steps": "count", "frames": "count", "shift": "number"} | dict.fromkeys(
    ("size", "schedule", "solver", "guidance", "guider", "dtype"), "text"
)
_PAIR = {
    "key": _KEY,
    "prompt": "text",
    "seed": "number",
    "a": "path",
    "b": "path",
    "psnr": "figure",
    "mse": "figure",
    "ssim": "figure",
    **{name + side: "number" for name in ("adherence", "warping_error", "difference") for side in ("", "_baseline")},
    "seconds": "number",
    "seconds_baseline": "number",
    "passes": "number",
    "passes_baseline": "number",
    "pass_equivalents": "number",
}
_METHOD = {
    "label": "text",
    "method": "text",
    "pairs": [_PAIR],
    "n": "number",
    "verdict": "text",
    "summary": {"*": _INTERVAL},
}
_CURVE = {
    "key": _KEY,
    "method": "text",
    "policies": "text",
    "model": "text",
    "prompt": "text",
    "seed": "number",
    "frames": "number",
    "source": "path",
    "sigma": ["number"],
    "recovery": {"after": "number", "pairs": "text"},
    "spaces": {"x_t": {"mse": {"mean": ["number"]}}},
}
_BOUNDS = {"psnr": "number", "ssim": "number"}
_SHAPES: dict[str, dict[str, Any]] = {
    COMPARISON: {"methods!": [_METHOD], "baseline": "text", "compared": "text", "thresholds": _BOUNDS},
    CONTINUITY: {"groups!": [{"method": "text", "frames": "number", "reading": ["text"]}], "runs!": [_CURVE]},
}


def read_json(path: Path) -> Mapping[str, Any]:
    """A comparison or a continuity analysis, checked. Raises WanlabError."""
    try:
        content = parse_json(read_bytes(path, MAX_BYTES).decode("utf-8"))
    except ValueError as error:
        raise WanlabError(f"cannot read {path}: {' '.join(str(error).split())[:120]}", "make it again") from error
    form = content.get("format") if isinstance(content, dict) else None
    if not isinstance(form, str) or form not in _SHAPES:
        raise WanlabError(f"{path} is in none of the formats {', '.join(_SHAPES)}", "make it again")
    if wrong := _mismatch(content, _SHAPES[form], ""):
        raise WanlabError(f"{path}: {wrong}", "make it again")
    whole: Mapping[str, Any] = content
    return whole


def _text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


_KINDS: dict[str, Callable[[Any], bool]] = {
    "text": _text,
    "path": lambda value: _text(value) and "\0" not in value,
    "number": _number,
    "count": lambda value: _number(value) and value == int(value),
    "figure": lambda value: value in ("inf", "identical") if isinstance(value, str) else _number(value),
}


def _mismatch(value: Any, shape: Any, where: str) -> str:
    """What is wrong with the value, "" when nothing is."""
    if isinstance(shape, str):
        return "" if _KINDS[shape](value) else f"{where} is no {shape}"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} is no list"
        # A curve has null where a step has no value.
        items = ((k, v) for k, v in enumerate(value) if not (v is None and shape[0] == "number"))
        return next((w for k, v in items if (w := _mismatch(v, shape[0], f"{where}[{k}]"))), "")
    if not isinstance(value, dict):
        return f"{where or 'it'} is no object"
    if "*" in shape:
        shape = dict.fromkeys(value, shape["*"])
    for key, inner in shape.items():
        name = key.removesuffix("!")
        at = f"{where}.{name}" if where else name
        if value.get(name) is None:
            if key != name:
                return f"{at} is missing"
        elif wrong := _mismatch(value[name], inner, at):
            return wrong
    return ""
