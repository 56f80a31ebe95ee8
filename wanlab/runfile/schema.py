"""What a run file of each version holds under the names that readers know: kind, rank, and the kinds of attributes.

Other names are free. Nothing has to be there: a reader asks for what it needs and is told when it is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TEXT, FLOAT, WHOLE, BYTE = "S", "f", "iu", "u"
_JSON: dict[str, tuple[type, ...]] = {"text": (str,), "number": (int, float), "object": (dict,), "list": (list,)}


@dataclass(frozen=True)
class Schema:
    """steps and final: name -> (kinds of numpy dtype, rank of one value); attrs: name -> text, number, object, list."""

    steps: Mapping[str, tuple[str, int]]
    final: Mapping[str, tuple[str, int]]
    attrs: Mapping[str, str]

    def problems(self, data: Mapping[str, Any], attrs: Mapping[str, Any]) -> list[str]:
        """One line for every dataset or root attribute of another kind or rank than its name stands for."""
        lines = []
        for name, item in data.items():
            expected = (self.steps if item.group == "steps" else self.final).get(name)
            if expected is None:
                continue
            kinds, rank = expected
            rank += item.group == "steps"
            if item.stored_kind not in kinds:
                lines.append(f"{item.group}/{name} has dtype {item.dtype}, where kind {' or '.join(kinds)} is due")
            elif len(item.shape) != rank:
                lines.append(f"{item.group}/{name} has shape {item.shape}, where rank {rank} is due")
            elif name in ("video", "video_float") and item.shape[-1] != 3:
                lines.append(f"final/{name} has shape {item.shape}, where the last dimension is 3 (RGB)")
            elif name == "video" and item.dtype.itemsize != 1:
                lines.append(f"final/video has dtype {item.dtype}, where uint8 is due")
        for name, kind in self.attrs.items():
            if name in attrs and (not isinstance(attrs[name], _JSON[kind]) or isinstance(attrs[name], bool)):
                lines.append(f"attribute '{name}' is {type(attrs[name]).__name__}, where {kind} is due")
        lines += _attribute_values(attrs)
        predicted = attrs.get("predicted")
        if isinstance(predicted, dict):
            lines += [
                f"attribute 'predicted' has a '{name}' that is neither a number nor a list of numbers"
                for name, value in predicted.items()
                if not all(_number(v) for v in (value if isinstance(value, list) else [value]))
            ]
        return lines


def _attribute_values(attrs: Mapping[str, Any]) -> list[str]:
    """Of attributes of the right kind, those whose values are not."""
    lines = []
    fps, timing, resumed = attrs.get("fps"), attrs.get("timing_seconds"), attrs.get("resumed_at")
    if isinstance(fps, int | float) and not 0 < fps <= 1000:  # also not a number
        lines.append(f"attribute 'fps' is {fps}, where a number above 0 and up to 1000 is due")
    if isinstance(timing, dict) and not all(_number(v) for v in timing.values()):
        lines.append("attribute 'timing_seconds' has values that are no numbers")
    if isinstance(resumed, list) and not all(isinstance(v, int) for v in resumed):
        lines.append("attribute 'resumed_at' has values that are no steps")
    return lines


def _number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


_LATENTS = ("x_t", "x0_pred", "eps_pred", "velocity", "velocity_cond", "velocity_uncond", "velocity_other_expert")
_STEPS_1 = {
    **dict.fromkeys(("timestep", "sigma", "sigma_next", "guidance_scale", "seconds"), (FLOAT, 0)),
    **dict.fromkeys(("mse", "change", "cosine", "norm_ratio", "projection"), (FLOAT, 0)),
    **dict.fromkeys(("frames", "frame_stride", "passes", "tokens"), (WHOLE, 0)),
    **dict.fromkeys(("expert", "branches"), (TEXT, 0)),
    **dict.fromkeys(_LATENTS, (FLOAT, 4)),
    "probed": (BYTE, 0),
}
_FINAL = {"latent": (FLOAT, 4), "video": (BYTE, 4), "video_float": (FLOAT, 4)}
_ATTRS = {
    **dict.fromkeys(
        ("spec_digest", "status", "device_name", "process", "python", "weights_fingerprint", "layout", "world"), "text"
    ),
    **dict.fromkeys(("fps", "shift", "threads", "peak_memory_bytes", "resumed_from_step"), "number"),
    **dict.fromkeys(("spec", "versions", "scheduler", "predicted", "timing_seconds"), "object"),
    **dict.fromkeys(("resumed_at", "defaulted"), "list"),
}
_STEPS_2 = {
    **_STEPS_1,
    **dict.fromkeys(("status_cond", "status_uncond", "guider"), (TEXT, 0)),
    **dict.fromkeys(("block_tokens", "attention_pairs"), (WHOLE, 0)),
    **dict.fromkeys(("operations", "reuse_error_cond", "reuse_error_uncond"), (FLOAT, 0)),
}

SCHEMAS = {"1": Schema(_STEPS_1, _FINAL, _ATTRS), "2": Schema(_STEPS_2, _FINAL, _ATTRS)}
