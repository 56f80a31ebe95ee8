"""What an open world adds to a clip and no caption names: texture, light, shadow, pans, patterns, small details.

All of it but clouds and specks changes brightness only, between `DARKEST` and `BRIGHTEST` of the named background's
own colour: the background stays recognisable, and a thing, which has another hue, stands out from it.
Legend: B clips, T frames, H rows, W columns; lengths in pixels; fields broadcast as [B,T,H,W].
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from wanlab.embedded.world import BRIGHTEST, DARKEST

SPECKS = 3
CLIP = (
    "open",
    "pan",
    "sway",
    "texture",
    "scale",
    "angle",
    "depth",
    "roll",
    "waves",
    "wavelength",
    "far_kind",
    "far_size",
    "far_top",
    "far_tone",
    "parallax",
    "light_angle",
    "light",
    "shadow",
    "reach",
    "cloud",
    "cloud_size",
    "phase",
)
PATTERN = ("pattern", "width", "turn", "tone")  # of each of two things
SPECK = ("x", "y", "vx", "vy", "radius", "tone")
COLUMNS = len(CLIP) + 2 * len(PATTERN) + SPECKS * len(SPECK)
TEXTURES = ("noise", "bricks", "stripes", "waves")  # large dots or checks would be things
PATTERNS = ("plain", "stripes", "dots", "checks")


def closed() -> np.ndarray:
    """The row [COLUMNS] of a clip without scenery."""
    return np.zeros(COLUMNS)


def place(rng: np.random.Generator, background: str) -> np.ndarray:
    """Draw the scenery of one clip, [COLUMNS]."""
    sky = background in ("sky", "meadow", "night", "sunset")
    pans = rng.random() < 0.5
    clip = {
        "open": 1.0,
        "pan": rng.uniform(-1.0, 1.0) if pans else 0.0,
        "sway": rng.uniform(-0.15, 0.15) if pans else 0.0,
        "texture": rng.choice([0, 2, 3] if background == "meadow" else [0, 3]) if sky else rng.integers(len(TEXTURES)),
        # Half of the clips have one, of two latents and more: finer, deeper or more frequent textures take most of what
        # a model of this size learns, and things suffer.
        "scale": rng.uniform(32, 80),
        "angle": rng.uniform(0, math.pi),
        "depth": rng.uniform(0.02, 0.09) if rng.random() < 0.5 else 0.0,
        "roll": rng.uniform(-0.4, 0.4),
        "waves": rng.uniform(0, 4),
        "wavelength": rng.uniform(30, 110),
        "far_kind": max(0, rng.integers(-2, 4)),  # 0 none, 1 hills, 2 columns, 3 a wall of blocks
        "far_size": rng.uniform(36, 90),
        "far_top": rng.uniform(0.25, 0.7),
        "far_tone": rng.uniform(0.06, 0.15),
        "parallax": rng.uniform(0.3, 1.6),
        "light_angle": rng.uniform(0, 2 * math.pi),
        "light": rng.uniform(0, 0.12),
        "shadow": rng.uniform(0.1, 0.22),
        "reach": rng.uniform(2, 5),
        "cloud": rng.uniform(0.1, 0.2) * (0.4 if background == "night" else 1) if sky and rng.random() < 0.5 else 0.0,
        "cloud_size": rng.uniform(36, 70),
        "phase": rng.uniform(0, 1000),
    }
    patterns = [
        # Every other thing is plain: a pattern is smaller than a latent, and frays a thing's edge in a small model.
        [max(0, rng.integers(-2, len(PATTERNS))), rng.uniform(8, 13), rng.uniform(0, math.pi), rng.uniform(0.8, 0.92)]
        for _ in range(2)
    ]
    specks = np.stack(
        [
            rng.random(SPECKS),
            rng.random(SPECKS),
            rng.normal(0, 0.5, SPECKS),
            rng.normal(0, 0.25, SPECKS),
            rng.uniform(1.0, 1.6, SPECKS),
            rng.choice([0.0, 1.0], SPECKS),
        ],
        axis=1,
    )
    specks[rng.integers(SPECKS + 1) :, 4] = 0  # any number of them
    return np.concatenate([list(clip.values()), np.ravel(patterns), specks.ravel()])


def columns(rows: Tensor) -> dict[str, Tensor]:
    """The clip's own values, each [B,1,1,1], of rows [B,COLUMNS]."""
    return {n: rows[:, i].view(-1, 1, 1, 1) for i, n in enumerate(CLIP)}


def _noise(x: Tensor, y: Tensor, size: Tensor, phase: Tensor) -> Tensor:
    """Smooth irregular field in about [-1,1]: plane waves of several directions, bent by one another."""
    k = 2 * math.pi / size
    a = torch.sin(0.43 * k * x + 0.31 * k * y + phase)
    b = torch.sin(-0.29 * k * x + 0.52 * k * y + 1.7 * phase + 1.3 * a)
    c = torch.sin(0.97 * k * x + 0.21 * k * y + 2.3 * phase + 1.1 * b)
    return (a + b + 0.7 * c) / 2.4


def _soft(v: Tensor) -> Tensor:
    """A step about a pixel wide at 0: 0 below, 1 above."""
    return (v + 0.5).clamp(0, 1)


def _texture(c: dict[str, Tensor], x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """The texture of the ground, about [-1,1]."""
    s, kind = c["scale"], c["texture"]
    cos, sin = torch.cos(c["angle"]), torch.sin(c["angle"])
    u = x * cos + y * sin + c["roll"] * t

    def bump(w: Tensor, size: Tensor) -> Tensor:  # distance from the nearest line of a grid
        return (torch.remainder(w, size) - size / 2).abs()

    row = torch.floor(y / (s / 2))
    brick = torch.minimum(
        s / 2 - bump(x + torch.remainder(row, 2) * s / 2, s), s / 4 - bump(y, s / 2)
    )  # distance to a joint
    forms = (
        _noise(x + c["roll"] * t, y, s * 0.8, c["phase"]),
        2 * _soft(brick - 1.5) - 1,
        2 * _soft(bump(u, s) - s / 4) - 1,
        torch.sin(2 * math.pi * (y / (s * 0.7) + 0.25 * torch.sin(x / s) + c["roll"] * t / 16)),
    )
    out = forms[0]
    for k, form in enumerate(forms[1:], 1):
        out = torch.where(kind == k, form, out)
    return out


def _far(c: dict[str, Tensor], x: Tensor, y: Tensor, height: int) -> Tensor:
    """Cover of what stands far behind, a silhouette: hills, columns or a skyline of blocks."""
    s, top = c["far_size"], c["far_top"] * height
    hills = top + 7 * torch.sin(2 * math.pi * x / s) + 4 * torch.sin(2 * math.pi * x / (1.7 * s) + c["phase"])
    columns = (torch.remainder(x, s) - s / 2).abs() - s * 0.16
    block = torch.floor(x / (s * 0.5))
    skyline = top + 16 * (torch.remainder(block * 0.618 + c["phase"], 1) - 0.5)
    return (
        (c["far_kind"] == 1) * _soft(y - hills)
        + (c["far_kind"] == 2) * _soft(-columns)
        + (c["far_kind"] == 3) * _soft(y - skyline)
    )


def ground(profile: Tensor, rows: Tensor, x: Tensor, y: Tensor, t: Tensor, shadows: Tensor) -> Tensor:
    """The background [B,3,T,H,W] from each clip's row colours `profile` [B,H,3], under shadows [B,T,H,W]."""
    c, height = columns(rows), profile.shape[1]
    bx, by = x + c["pan"] * t + c["phase"], y + c["sway"] * t
    wave = c["waves"] * torch.sin(2 * math.pi * bx / c["wavelength"].clamp(min=1))
    at = (y + wave - 0.5).expand(len(rows), t.shape[1], height, x.shape[3]).clamp(0, height - 1)
    low = at.floor().long().clamp(max=height - 2)
    part = (at - low).unsqueeze(1)
    colours = profile.permute(0, 2, 1)  # [B,3,H]
    index = low.flatten(1).unsqueeze(1).expand(-1, 3, -1)
    first = colours.gather(2, index).view(len(rows), 3, *at.shape[1:])
    second = colours.gather(2, index + 1).view(len(rows), 3, *at.shape[1:])
    picture = first + part * (second - first)

    cloud = _noise(x + 0.5 * c["pan"] * t + 0.15 * t + c["phase"], 2 * y, c["cloud_size"].clamp(min=1), 2 * c["phase"])
    cloud = (cloud * 2 - 0.2).clamp(0, 1) * c["cloud"] * _soft(0.62 * height - y)
    picture = picture + cloud.unsqueeze(1) * (1 - picture)

    slope = (x / x.shape[3] - 0.5) * torch.cos(c["light_angle"]) + (y / height - 0.5) * torch.sin(c["light_angle"])
    bright = 1 + c["depth"] * _texture(c, bx, by, t) + c["light"] * slope
    bright = bright - c["far_tone"] * _far(c, x + c["pan"] * c["parallax"] * t + c["phase"], by, height)
    bright = (bright - c["shadow"] * shadows).clamp(DARKEST, BRIGHTEST)
    lift = (profile.amax((1, 2)) < 0.1).view(-1, 1, 1, 1) * (bright - DARKEST) * 0.22  # black takes no shade
    picture = picture * bright.unsqueeze(1) + lift.unsqueeze(1)

    specks = rows[:, len(CLIP) + 2 * len(PATTERN) :].view(-1, SPECKS, len(SPECK))
    for k in range(SPECKS):
        sx, sy, vx, vy, radius, tone = (specks[:, k, i].view(-1, 1, 1, 1) for i in range(len(SPECK)))
        width = x.shape[3]
        px = torch.remainder(x - sx * width - (vx - c["pan"]) * t + width / 2, width) - width / 2
        py = torch.remainder(y - sy * height - vy * t + height / 2, height) - height / 2
        alpha = (_soft(radius - torch.hypot(px, py)) * (radius > 0) * 0.45).unsqueeze(1)
        picture = picture + alpha * (tone.unsqueeze(1) - picture)
    return picture


def surface(rows: Tensor, k: int, px: Tensor, py: Tensor, radius: Tensor) -> Tensor:
    """Brightness of the `k`-th thing's surface about its centre: its pattern, and the light on it."""
    c, first = columns(rows), len(CLIP) + k * len(PATTERN)
    pattern, width, turn, tone = (rows[:, first + i].view(-1, 1, 1, 1) for i in range(len(PATTERN)))
    width = width.clamp(min=1)
    u, v = px * torch.cos(turn) + py * torch.sin(turn), py * torch.cos(turn) - px * torch.sin(turn)
    a, b = ((torch.remainder(w, 2 * width) - width).abs() - width / 2 for w in (u, v))
    dots = width * 0.45 - torch.hypot(a - width / 2, b - width / 2)
    mark = (pattern == 1) * _soft(a) + (pattern == 2) * _soft(dots) + (pattern == 3) * _soft(a * b)
    lit = (px * torch.cos(c["light_angle"]) + py * torch.sin(c["light_angle"])) / radius
    return (1 - (1 - tone) * mark) * (1 + 0.5 * c["light"] * lit.clamp(-1.3, 1.3))


def shadow(rows: Tensor, px: Tensor, py: Tensor) -> tuple[Tensor, Tensor]:
    """Where to look for a thing to find its shadow at (px, py): away from the light."""
    c = columns(rows)
    return px + c["reach"] * torch.cos(c["light_angle"]), py + c["reach"] * torch.sin(c["light_angle"])
