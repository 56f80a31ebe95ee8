"""The analysis of a run file, and what runs are called."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanlab.analysis.columns import numbers, words
from wanlab.analysis.continuity.measure import Step, measure
from wanlab.analysis.continuity.result import BASELINE, Continuity, OtherExpert
from wanlab.analysis.continuity.spaces import SPACES, Frames, adjacent, dot, space
from wanlab.analysis.key import Key
from wanlab.analysis.metrics.clip import frames_of
from wanlab.errors import WanlabError
from wanlab.runfile import Data, Run
from wanlab.spec import METHOD_SETTINGS, RunSpec


def analyse(run: Run, *, method: str = "", settings: str = "") -> Continuity:
    """The analysis of a finished run file, read frame by frame.

    method, settings  where the file's specification does not say them: see `Continuity`

    Raises WanlabError when the run was recorded without latents or has one latent frame.
    """
    spec = run.spec
    recorded = [n for n in SPACES if n in run and run[n].recorded]
    if not recorded:
        raise WanlabError(
            f"{run.path} holds no latents", "make it again with --record latents, or all for the predictions too"
        )
    timestep, sigma, expert = numbers(run, "timestep"), numbers(run, "sigma"), words(run, "expert")
    stride = numbers(run, "frame_stride")

    def steps() -> Iterator[Step]:
        for k in range(run.steps):
            here = {n: run[n] for n in recorded if k in run[n].recorded}
            shapes = [d.shape_at(k) for d in here.values()]
            yield Step(
                timestep=float(timestep[k]),
                sigma=float(sigma[k]),
                expert=str(expert[k]),
                stride=max(1, int(stride[k])),
                values=math.prod(shapes[0]) // shapes[0][1] if shapes else 0,
                spaces={n: frames_at(d, k) for n, d in here.items()},
            )

    switched = next((v for p in spec.policies if isinstance(v := p.options.get("switch"), int) and v), None)
    about = dict(
        source=str(run.path),
        prompt=spec.prompt,
        seed=spec.seed,
        model=spec.model,
        frames=spec.frames,
        method=method or label(spec),
        settings=settings or settings_of(spec),
        policies=label(spec),
        key=Key.of(run),
        duplicated=duplicated(spec),
        lifted=switched,
    )
    made = measure(steps(), _final(run), about, _video(run))
    return dataclasses.replace(made, experts=tuple(_other_experts(run, made)))


def frames_at(data: Data, step: int) -> Iterator[NDArray[Any]]:
    """The latent frames [C,H,W] of one step of a run file, read one at a time: a chunk each."""
    channels, count, height, width = data.shape_at(step)
    for f in range(count):
        yield data[step, :channels, f, :height, :width]


def _final(run: Run) -> Frames | None:
    if "latent" not in run:
        return None
    latent = run["latent"]
    return (latent[:, f] for f in range(latent.shape[1]))


def _video(run: Run) -> Frames | None:
    return frames_of(run) if "video_float" in run or "video" in run else None


def _other_experts(run: Run, made: Continuity) -> Iterator[OtherExpert]:
    if "velocity_other_expert" not in run or made.switch is None:
        return
    others, velocity, x_t = run["velocity_other_expert"], run["velocity"], run["x_t"]
    for k in others.recorded:
        vv = ww = vw = dd = 0.0
        for mine, theirs in zip(frames_at(velocity, k), frames_at(others, k), strict=True):
            v, w = mine.reshape(-1).astype(np.float64), theirs.reshape(-1).astype(np.float64)
            vv, ww, vw, dd = vv + dot(v, v), ww + dot(w, w), vw + dot(v, w), dd + dot(v - w, v - w)
        clean = (
            x.astype(np.float64) - made.sigma[k] * w
            for x, w in zip(frames_at(x_t, k), frames_at(others, k), strict=True)
        )
        used = str(made.expert[k])
        yield OtherExpert(
            step=k,
            used=used,
            other={"high": "low", "low": "high"}.get(used, used),
            cosine=vw / math.sqrt(vv * ww) if vv * ww else math.nan,
            difference=math.sqrt(dd / vv) if vv else math.nan,
            spaces={"x0_pred": space([adjacent(clean)]), "velocity": space([adjacent(frames_at(others, k))])},
        )


def duplicated(spec: RunSpec) -> int | None:
    """The first pair of frames that a method makes equal, see `Continuity`: `half` copies the frame before, `paired`
    puts frames 1, 3, … in the place of 2, 4, …."""
    for policy in spec.policies:
        if policy.name == "paired" and not policy.file:
            return 1
        if policy.name == "half" and not policy.file and policy.options.get("complete", "duplicate") == "duplicate":
            return 0
    return None


def label(spec: RunSpec) -> str:
    """How a run was sampled, from its policies."""
    return "+".join(map(str, spec.policies)) or BASELINE


def labels(specs: Sequence[RunSpec]) -> list[str]:
    """A label for each of several runs; settings that are not the same in all of them are part of it."""

    def said(spec: RunSpec) -> dict[str, str]:
        plain = {n: getattr(spec, n) for n in METHOD_SETTINGS} | {"size": f"{spec.width}x{spec.height}"}
        plain |= {"model": spec.model, "guidance": ",".join(f"{g:g}" for g in dict.fromkeys(spec.guidance))}
        return {n: f"{v:g}" if isinstance(v, float) else str(v) for n, v in plain.items()}

    told = [said(s) for s in specs]
    vary = [n for n in (told[0] if told else ()) if len({t[n] for t in told}) > 1]
    return ["+".join([label(s), *(f"{n}={t[n]}" for n in vary)]) for s, t in zip(specs, told, strict=True)]


def settings_of(spec: RunSpec) -> str:
    """Equal for runs that differ in prompt, seed and policies alone."""
    same = {k: v for k, v in spec.to_dict().items() if k not in ("prompt", "seed", "policies", "record", "device")}
    return repr(sorted(same.items()))
