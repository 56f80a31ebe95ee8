"""What a run file's attributes and arrays must be where they have a name that this program reads.

A name that is not listed may be anything; a name that is listed may be absent, but never of another kind. Checked once,
when a file is opened, so that no reader of a `Run` has to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Test = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    return _number(value) and abs(value) < 2**63 and math.isfinite(value)


def _rate(value: Any) -> bool:
    return _finite(value) and 0 < value <= 1000


def _mapping(of: Test) -> Test:
    return lambda value: isinstance(value, Mapping) and all(of(v) for v in value.values())


def _list(of: Test) -> Test:
    return lambda value: isinstance(value, (list, tuple)) and all(of(v) for v in value)


def _any(value: Any) -> bool:
    return True


def _forecast(value: Any) -> bool:
    """Numbers, but lists of numbers where a name ends in `by_step` or `bounds`."""
    return isinstance(value, Mapping) and all(
        _list(_number)(v) if name.endswith(("by_step", "bounds")) else _number(v) for name, v in value.items()
    )


ATTRIBUTES: dict[str, tuple[Test, str]] = {
    "status": (_text, "text"),
    "spec_digest": (_text, "text"),
    "spec": (_mapping(_any), "a JSON object"),
    "versions": (_mapping(_text), "a mapping of texts"),
    "python": (_text, "text"),
    "device_name": (_text, "text"),
    "process": (_text, "text"),
    "layout": (_text, "text"),
    "weights_fingerprint": (_text, "text"),
    "threads": (_finite, "a number"),
    "fps": (_rate, "a number from 0 to 1000"),
    "shift": (_finite, "a number"),
    "boundary": (lambda v: _text(v) or _finite(v), "a number or text"),
    "defaulted": (_list(_text), "a list of texts"),
    "asked": (_mapping(_any), "a mapping"),
    "scheduler": (_mapping(_any), "a mapping"),
    "prompt_embeds_sha256": (_mapping(_text), "a mapping of texts"),
    "timing_seconds": (_mapping(_number), "a mapping of numbers"),
    "peak_memory_bytes": (_finite, "a number"),
    "resumed_from_step": (_finite, "a number"),
    "resumed_at": (_list(_finite), "a list of steps"),
    "predicted": (_forecast, "a mapping of numbers"),
}
_TEXTS = ("expert", "branches", "status_cond", "status_uncond", "guider")
_NUMBERS = (
    "timestep", "sigma", "sigma_next", "guidance_scale", "frames", "frame_stride", "passes", "tokens", "block_tokens",
    "attention_pairs", "operations", "seconds", "mse", "change", "cosine", "norm_ratio", "projection", "probed",
    "reuse_error_cond", "reuse_error_uncond",
)  # fmt: skip
# (group, name): (rank, numpy kinds, words)
ARRAYS: dict[tuple[str, str], tuple[int, str, str]] = {
    **{("steps", name): (1, "S", "one text a step") for name in _TEXTS},
    **{("steps", name): (1, "iufb", "one number a step") for name in _NUMBERS},
    ("final", "latent"): (4, "f", "floats of four dimensions"),
    ("final", "video"): (4, "u", "bytes of four dimensions, the last of 3"),
    ("final", "video_float"): (4, "f", "floats of four dimensions, the last of 3"),
}


def attribute_problem(name: str, value: Any) -> str:
    """What is wrong with a root attribute (decoded); empty when nothing is."""
    test, words = ATTRIBUTES.get(name, (_any, ""))
    return "" if test(value) else f"attribute '{name}' is not {words}"


def array_problem(group: str, name: str, shape: tuple[int, ...], dtype: Any) -> str:
    """What is wrong with an array's group, rank or kind; empty when nothing is."""
    other = {"steps": "final", "final": "steps"}[group]
    if (group, name) not in ARRAYS:
        return f"'{name}' stands in '{group}', not in '{other}'" if (other, name) in ARRAYS else ""
    rank, kinds, words = ARRAYS[group, name]
    film = name in ("video", "video_float")
    fits = len(shape) == rank and dtype.kind in kinds and (not film or shape[-1] == 3)
    if name == "video":
        fits = fits and dtype.itemsize == 1
    return "" if fits else f"'{name}' is {dtype} of shape {shape}, not {words}"
