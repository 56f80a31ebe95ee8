"""continuity_statistics.json; docs/methods.md has its structure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from wanlab.analysis.continuity.groups import Group
from wanlab.analysis.continuity.recovery import Recovery
from wanlab.analysis.continuity.result import Continuity
from wanlab.analysis.continuity.spaces import METRICS, Floats, Space
from wanlab.analysis.continuity.switch import change_at_switch, noise_back_after
from wanlab.analysis.continuity.text import reading
from wanlab.analysis.continuity.theory import Theory

FORMAT = "wanlab-continuity/1"


def statistics(groups: Sequence[Group], version: str) -> dict[str, Any]:
    """Everything, as plain values for continuity_statistics.json; docs/methods.md has the structure. No NaN: None."""
    return {
        "format": FORMAT,
        "wanlab": version,
        "groups": [_group_plain(g) for g in groups],
        "runs": [_run_plain(r, found) for g in groups for r, found in zip(g.runs, g.recoveries, strict=True)],
    }


def _group_plain(g: Group) -> dict[str, Any]:
    after, never = g.recovered
    return {
        "method": g.method,
        "frames": g.frames,
        "runs": len(g.runs),
        "sources": [r.source for r in g.runs],
        "x_t_mse": {"mean": plain(g.curve("x_t")), "std": plain(g.curve("x_t", std=True))},
        "noise_correlation": plain(g.theory("rho")),
        "final": {m: _each(g, "final", m) for m in METRICS},
        "video": {m: _each(g, "video", m) for m in METRICS},
        "recovery": {"after": after, "never": never} if after or never else None,
        "reading": reading(g),
    }


def _each(g: Group, name: str, metric: str) -> dict[str, Any]:
    """A metric's mean over pairs in each run's final latent or video; mean and standard deviation (n - 1) over runs."""
    values = np.array([float(v.mean(metric)[0]) if (v := getattr(r, name)) is not None else math.nan for r in g.runs])
    known = values[np.isfinite(values)]
    return {
        "mean": plain(known.mean()) if len(known) else None,
        "std": plain(known.std(ddof=1)) if len(known) > 1 else None,
        "n": len(known),
        "values": plain(values),
    }


def _run_plain(c: Continuity, found: Recovery | None) -> dict[str, Any]:
    t, s = c.theory, c.switch
    return {
        "source": c.source,
        "prompt": c.prompt,
        "seed": c.seed,
        "model": c.model,
        "method": c.method,
        "policies": c.policies or c.method,
        "key": None if c.key is None else asdict(c.key),
        "frames": c.frames,
        "notes": list(c.notes),
        "step": list(range(1, c.steps + 1)),
        "timestep": plain(c.timestep),
        "sigma": plain(c.sigma),
        "expert": c.expert.tolist(),
        "latent_frames": c.evaluated.tolist(),
        "frame_stride": c.stride.tolist(),
        "spaces": {n: _space_plain(v) for n, v in c.spaces.items()},
        "final": None if c.final is None else _space_plain(c.final, single=True),
        "video": None if c.video is None else _space_plain(c.video, single=True),
        "theory": None if t is None else _theory_plain(c, t),
        "switch": None if s is None else _switch_plain(c, s),
        "recovery": None if found is None else _recovery_plain(c, found),
    }


def _theory_plain(c: Continuity, t: Theory) -> dict[str, Any]:
    return {
        "m0": plain(t.m0),
        "expected": plain(t.expected),
        "residual": plain(t.residual),
        "relative_residual": plain(t.residual / t.expected),
        "parts": {"signal": plain(t.signal), "noise": plain(t.noise), "cross": plain(t.cross)},
        "noise_share": plain(t.noise_share),
        "noise_correlation": {
            "mean": plain(t.rho),
            "pairs": _rows(t.correlation),
            "sd_if_independent": plain(t.correlation_sd),
        },
        "independent": [bool(i) if math.isfinite(r) else None for i, r in zip(t.independent, t.rho, strict=True)],
        "independent_again_after": noise_back_after(c),
    }


def _switch_plain(c: Continuity, s: int) -> dict[str, Any]:
    return {
        "last_high_noise_step": s,
        "first_low_noise_step": s + 1,
        "metrics": {
            n: {m: {k: plain(v) for k, v in w.items()} for m, w in by.items()} for n, by in change_at_switch(c).items()
        },
        "other_expert": [
            {
                "step": o.step + 1,
                "used": o.used,
                "other": o.other,
                "velocity_cosine": plain(o.cosine),
                "velocity_difference": plain(o.difference),
                "would_be": {n: _space_plain(v, single=True) for n, v in o.spaces.items()},
            }
            for o in c.experts
        ],
    }


def _recovery_plain(c: Continuity, found: Recovery) -> dict[str, Any]:
    return {
        "from_step": found.step + 1,
        "after": found.after,
        "pairs": found.pairs,
        "spread": found.spread,
        "n": found.n,
        "curve": plain(c.curve(None if found.pairs == "all" else c.duplicated)),
        "low": plain(found.low),
        "high": plain(found.high),
    }


def _space_plain(v: Space, single: bool = False) -> dict[str, Any]:
    """Of each metric mean, std and pairs: by step, or of the only row."""
    made = {}
    for metric in METRICS:
        mean, std, pairs = plain(v.mean(metric)), plain(v.std(metric)), _rows(getattr(v, metric))
        made[metric] = dict(
            zip(("mean", "std", "pairs"), (w[0] if single else w for w in (mean, std, pairs)), strict=True)
        )
    return made


def _rows(values: Floats) -> list[Any]:
    """[steps, pairs] as a list a step: None for a step without a value, without the padding for a short one."""
    made: list[Any] = []
    for row in values:
        finite = np.flatnonzero(np.isfinite(row))
        made.append(plain(row[: finite[-1] + 1]) if len(finite) else None)
    return made


def plain(values: Any) -> Any:
    """A number or an array as plain values of nine digits, None where there is no number."""
    if np.ndim(values):
        return [plain(v) for v in values]
    return float(f"{float(values):.9g}") if math.isfinite(values) else None
