"""Measuring a run's steps, each read once and frame by frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wanlab.analysis.continuity.result import Continuity
from wanlab.analysis.continuity.spaces import SPACES, Frames, adjacent, space
from wanlab.analysis.continuity.theory import explain
from wanlab.errors import WanlabError


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step as it is read: what it is, and its latent frames [C,H,W] by space, each read once and in order."""

    timestep: float
    sigma: float
    expert: str = "single"
    stride: int | None = 1
    """None where it is not known: told from the number of frames."""
    values: int = 0
    """Values in one frame."""
    spaces: Mapping[str, Frames] = field(default_factory=dict)


def measure(
    steps: Iterable[Step], final: Frames | None, about: Mapping[str, Any], video: Frames | None = None
) -> Continuity:
    """Read `steps` once, frame by frame. `about` holds the fields of `Continuity` that say which run it is.

    final  the final latent's frames [C,H,W]; asked for after the last step
    video  its frames [H,W,3] in [0,1], or bytes

    Raises WanlabError when there is nothing to compare.
    """
    seen: list[Step] = []
    rows: dict[str, list[tuple[list[float], ...]]] = {}
    empty: tuple[list[float], ...] = ([], [], [], [])
    for k, step in enumerate(steps):
        seen.append(dataclasses.replace(step, spaces={}))
        for name in SPACES:
            here = rows.setdefault(name, [])
            frames = step.spaces.get(name)
            here.append(empty if frames is None else adjacent(frames, f"{name} of step {k + 1}"))
    spaces = {n: space(r) for n, r in rows.items() if any(row[3] for row in r)}
    if not spaces:
        raise WanlabError(f"{about['source']} holds no latents", "record them with --record latents or --record all")
    if all(np.isnan(s.mse).all() for s in spaces.values()):
        raise WanlabError(f"{about['source']} has one latent frame, which has no neighbour", "use --frames 5 or more")
    last = list(final) or None if final is not None else None
    counts = np.max([np.isfinite(s.power).sum(1) for s in spaces.values()], axis=0)
    full = len(last) if last is not None else int(counts.max())
    stride = np.array([_stride(s.stride, int(n), full) for s, n in zip(seen, counts, strict=True)], np.int64)
    sigma = np.array([s.sigma for s in seen])
    return Continuity(
        **{**about, "frames": about.get("frames") or 4 * (full - 1) + 1},
        timestep=np.array([s.timestep for s in seen]),
        sigma=sigma,
        expert=np.array([s.expert for s in seen]),
        evaluated=counts.astype(np.int64),
        stride=stride,
        spaces=spaces,
        final=None if last is None else space([adjacent(last, "the final latent")]),
        video=None if video is None else space([adjacent(video, "the video")]),
        theory=None if last is None else explain(sigma, stride, spaces, last, max((s.values for s in seen), default=0)),
    )


def _stride(said: int | None, count: int, full: int) -> int:
    """Told from the number of frames where it is not said, and 1 where it does not fit them."""
    if said is None:
        said = 2 if count == (full + 1) // 2 else 1
    return said if not count or count == -(-full // max(1, said)) else 1
