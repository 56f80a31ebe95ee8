"""Draw the clips of `wanlab.embedded.world` on any device, many at a time.

A clip is first *placed* (`place`: where things start, how a motion goes, drawn at random) into one
flat row of numbers, and then *drawn* (`draw`) from signed distance functions with edges about a
pixel and a half wide. Legend: B clips, T frames, H rows, W columns; lengths in pixels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from training import scenery
from wanlab.embedded import world
from wanlab.embedded.world import EDGE, Scene, Thing, World, background_profile

STARS = 12
# Height of a bounce and radius of a circle, and frames of one of each: every clip's, for a small model to learn well.
# A circle begins at the top.
BOUNCE = (20.0, 30.0)
CIRCLE = (15.5, 44.0)
# Places are drawn as Beta(c, c) over where there is room, towards the middle, as pictures are framed; in an open world
# less so.
CENTRED, CENTRED_OPEN = 4.0, 2.0
LANES = (0.27, 0.73)  # where two things are, in the frame's width or height: the middle of their way in an open world
REACH = (1.0, 1.25, 1.4, 1.45, 1.25)  # how far a shape reaches, in its radius
KINDS = ("shapes", "walk", "sunset")
_SHAPES, _BACKGROUNDS = list(world.SHAPES), list(world.BACKGROUNDS)

# Columns of a placed clip: the clip's own, then two things, then the stars of a night sky.
CLIP = (
    "kind",
    "background",
    "horizon",
    "place",
    "night",
    "dress",
    "x",
    "sign",
    "speed",
    "phase",
    "skin",
    "hair",
    "r",
    "g",
    "b",
    "water",
)
THING = (
    "there",
    "shape",
    "r",
    "g",
    "b",
    "x",
    "y",
    "vx",
    "vy",
    "bounce",
    "circle",
    "period",
    "phase",
    "radius",
    "growth",
)
STARRY = len(CLIP) + 2 * len(THING)  # where the columns of the stars begin
SCENERY = STARRY + 3 * STARS  # where the columns of `scenery` begin
COLUMNS = SCENERY + scenery.COLUMNS
ROOM = 8.0  # pixels between two things that are enough: a latent
JITTER = 6.0  # pixels that a thing of an open world may be from its lane, and more where it needs room


def place(
    scene: Scene,
    rng: np.random.Generator,
    width: int,
    height: int,
    frames: int = world.NATIVE_FRAMES,
    version: World = world.FIRST,
) -> np.ndarray:
    """One row [COLUMNS] for `draw`: start positions, phases and whatever else the caption leaves open."""
    clip = dict.fromkeys(CLIP, 0.0)
    clip["kind"] = KINDS.index(scene.kind)
    clip["phase"] = rng.random()
    clip["horizon"] = rng.uniform(0.48, 0.62)
    if version.open:
        rows = _free(scene.things, rng, width, height, frames)
    else:
        rows = [_row(t, rng, width, height, frames, lane) for t, lane in zip(scene.things, _lanes(scene), strict=True)]
    rows += [[0.0] * len(THING)] * (2 - len(rows))
    if scene.kind == "shapes":
        clip["background"] = _BACKGROUNDS.index(scene.background)
    else:
        colour = scene.clothes or rng.choice(["red", "blue", "white", "purple", "yellow"])
        clip["r"], clip["g"], clip["b"] = world.COLOURS[str(colour)]
        clip["x"] = rng.uniform(0.4, 0.6) if scene.kind == "walk" else rng.uniform(0.25, 0.75)
        clip["sign"] = -1.0 if scene.direction == "left" else 1.0
        clip["speed"] = rng.uniform(0.5, 0.8)
        clip["skin"], clip["hair"] = rng.random(), rng.random()
        clip["dress"] = float(scene.walker == "woman")
        clip["night"] = float(scene.time == "night")
        clip["place"] = world.PLACES.index(scene.place) if scene.place else 0
        clip["water"] = world.WATERS.index(scene.water) if scene.water else 0
    stars = rng.random((STARS, 3)) if scene.background == "night" else np.zeros((STARS, 3))
    unnamed = scenery.place(rng, scene.background) if version.open and scene.kind == "shapes" else scenery.closed()
    return np.concatenate([list(clip.values()), *rows, stars.ravel(), unnamed]).astype(np.float32)


def place_all(
    scenes: Sequence[Scene],
    seed: int,
    width: int,
    height: int,
    frames: int = world.NATIVE_FRAMES,
    version: World = world.FIRST,
) -> Tensor:
    """Placed rows [B,COLUMNS] of many scenes."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([place(s, rng, width, height, frames, version) for s in scenes]))


def _lanes(scene: Scene) -> list[tuple[str, float]]:
    """Where each thing may be: anywhere, or two things in lanes apart, so that neither hides the other.

    The first is at the left, or at the top: captions name things in the order in which one reads.
    """
    if len(scene.things) < 2:
        return [("", 0.0)] * len(scene.things)
    axis = "x" if any(t.motion in ("up", "down") for t in scene.things) else "y"
    return [(axis, lane) for lane in LANES]


def _free(things: Sequence[Thing], rng: np.random.Generator, width: int, height: int, frames: int) -> list[list[float]]:
    """Rows of things: one nearly anywhere; two in the frame and apart from one another throughout the clip, in the
    order in which one reads, side by side where there is room for that and else one above the other.

    Which one a thing is must follow from where it is: a small model decides on colours when nothing else can be seen.
    """
    put = functools.partial(_row, rng=rng, width=width, height=height, frames=frames, free=True)
    if len(things) < 2:
        return [put(t, lane=("", 0.0)) for t in things]
    extents = (width, height)
    ways = [_abreast(things, k, extents[k], frames) for k in range(2)]
    room = [high - low - between for low, high, between in ways]
    k = 0 if room[0] >= 0 or room[0] > room[1] else 1
    (low, high, between), lack = ways[k], max(0.0, -room[k])
    between -= min(lack, ROOM)  # without room they come nearer, and then leave the frame, one as far as the other
    beyond = max(0.0, lack - ROOM) / 2
    low, high = low - beyond, high + beyond
    first, second = (lane * extents[k] + rng.uniform(-JITTER, JITTER) for lane in LANES)
    first = min(max(first, low), high - between)
    second = min(max(second, first + between), high)
    return [put(t, lane=("xy"[k], at / extents[k])) for t, at in zip(things, (first, second), strict=True)]


def _abreast(things: Sequence[Thing], k: int, extent: int, frames: int) -> tuple[float, float, float]:
    """Of two things one after the other along an axis: the least place for the middle of the first one's way, the
    greatest for the second's, and the least distance of the two, for both to be in the frame and `ROOM` apart."""
    first, second = (_velocity(t)[k] * (min(frames, world.NATIVE_FRAMES) - 1) for t in things)
    a, b = (world.SIZES[t.size] * REACH[_SHAPES.index(t.shape)] for t in things)
    return a + abs(first) / 2, extent - b - abs(second) / 2, a + b + abs(first - second) / 2 + ROOM


def _velocity(t: Thing) -> np.ndarray:
    """Pixels a frame, [x,y]."""
    return np.array(world.DIRECTIONS.get(t.motion, (0, 0))) * world.SPEEDS[t.speed] * (1, world.VERTICAL_SPEED)


def _row(
    t: Thing,
    rng: np.random.Generator,
    width: int,
    height: int,
    frames: int,
    lane: tuple[str, float],
    free: bool = False,
) -> list[float]:
    """A thing's columns; `free`: less towards the middle, and bounces and circles of many kinds."""
    radius, growth = (world.SIZES[t.size], 0.0) if t.size else (6.0, rng.uniform(0.28, 0.36))
    v = _velocity(t)
    bounce = BOUNCE[0] if t.motion == "bouncing" else 0.0
    circle = CIRCLE[0] if t.motion == "circling" else 0.0
    period = BOUNCE[1] if bounce else CIRCLE[1]
    if free:
        bounce, circle = bounce * rng.uniform(0.85, 1.15), circle * rng.uniform(0.85, 1.15)
        period *= rng.uniform(0.96, 1.04)
    far = REACH[_SHAPES.index(t.shape)] if free else 1.25
    reach = max(radius, 22.0 if growth else 0.0) * far + circle + 1
    centred = CENTRED_OPEN if free else CENTRED
    at, travels = [], []
    for extent, speed, room in ((width, v[0], reach), (height, v[1], reach + bounce / 2)):
        # Stay inside the frame for the whole clip where there is room; else be in the middle of it halfway (it wraps
        # round).
        travel = speed * (min(frames, world.NATIVE_FRAMES) - 1)
        low, high = room - min(travel, 0), extent - room - max(travel, 0)
        at.append(
            low + (high - low) * rng.beta(centred, centred) if low < high else (low + high) / 2 + rng.uniform(-3, 3)
        )
        travels.append(travel)
    at[1] += bounce / 2  # the lowest point
    if lane[0]:
        k = "xy".index(lane[0])
        at[k] = lane[1] * (width, height)[k] + (-travels[k] / 2 if free else rng.uniform(-2, 2))
    return [
        1.0,
        _SHAPES.index(t.shape),
        *world.COLOURS[t.colour],
        *at,
        *v,
        bounce,
        circle,
        period,
        -0.25 if circle and not free else rng.random(),
        radius,
        growth,
    ]


# --- drawing --------------------------------------------------------------------------------------


@torch.no_grad()
def draw(rows: Tensor, width: int, height: int, frames: int, start: int = 0, *, compiled: bool = False) -> Tensor:
    """Frames `start` .. `start+frames` of placed clips [B,COLUMNS] as float32 RGB [B,3,T,H,W] in [0,1].

    compiled  some six hundred small operations as one kernel: a tenth of the time on a GPU, once a minute and a half
              is spent on making it
    """
    d = rows.device
    y = torch.arange(height, device=d, dtype=torch.float32).view(1, 1, height, 1) + 0.5
    x = torch.arange(width, device=d, dtype=torch.float32).view(1, 1, 1, width) + 0.5
    t = torch.arange(start, start + frames, device=d, dtype=torch.float32).view(1, frames, 1, 1)
    out = torch.empty(len(rows), 3, frames, height, width, device=d)
    for k, paint in enumerate((functools.partial(_shapes, compiled=compiled), _walk, _sunset)):
        chosen = (rows[:, 0] == k).nonzero()[:, 0]
        if len(chosen):
            out[chosen] = paint(rows[chosen], x, y, t)
    return out.clamp_(0, 1)


def _columns(rows: Tensor, names: tuple[str, ...], first: int) -> dict[str, Tensor]:
    return {n: rows[:, first + i].view(-1, 1, 1, 1) for i, n in enumerate(names)}


def _cover(distance: Tensor) -> Tensor:
    """How much of a pixel lies inside: 1 well inside, 0 well outside, soft in between."""
    return (0.5 - distance / EDGE).clamp_(0, 1)


def _over(picture: Tensor, alpha: Tensor, colour: Tensor) -> Tensor:
    """`colour` ([B,3,1,1,1] or [B,3,T,H,W]) laid over `picture` [B,3,T,H,W] with `alpha` [B,T,H,W]."""
    return picture + alpha.unsqueeze(1) * (colour - picture)


def _rgb(*colour: float, like: Tensor) -> Tensor:
    return torch.tensor(colour, device=like.device).view(1, 3, 1, 1, 1)


def _blank(rows: Tensor, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    return torch.zeros(len(rows), 3, t.shape[1], y.shape[2], x.shape[3], device=rows.device)


def _shapes(rows: Tensor, x: Tensor, y: Tensor, t: Tensor, *, compiled: bool) -> Tensor:
    out = torch.empty(len(rows), 3, t.shape[1], y.shape[2], x.shape[3], device=rows.device)
    is_open = rows[:, SCENERY] > 0
    opened = _compiled_open() if compiled else _open
    for chosen, paint in ((~is_open, _closed), (is_open, opened)):
        if chosen.any():
            some = rows[chosen]
            profiles = _profiles(some, y.shape[2])
            # The kernel without stars would be compiled as well, which takes longer than it saves.
            stars = compiled or bool(some[:, STARRY:SCENERY].any())
            out[chosen] = paint(some, profiles, stars, x, y, t)
    return out


@functools.cache
def _compiled_open() -> Callable[..., Tensor]:
    return torch.compile(_open, dynamic=True)


@functools.cache
def _profile_table(height: int) -> Tensor:
    """The row colours [7*15,H,3] of every background at fifteen heights of its horizon."""
    profiles = [background_profile(n, height, h) for n in _BACKGROUNDS for h in np.linspace(0.48, 0.62, 15)]
    return torch.from_numpy(np.stack(profiles)).float()


def _profiles(rows: Tensor, height: int) -> Tensor:
    """Each clip's row colours [B,H,3]."""
    clip = _columns(rows, CLIP, 0)
    table = _profile_table(height).to(rows.device)
    pick = clip["background"] * 15 + ((clip["horizon"] - 0.48) / 0.01).round().clamp(0, 14)
    return table[pick.flatten().long()]


def _closed(rows: Tensor, profiles: Tensor, stars: bool, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    still = profiles.permute(0, 2, 1)[:, :, None, :, None].expand(-1, -1, 1, -1, x.shape[3])
    picture = (_starry(still, rows, x, y) if stars else still).expand(-1, -1, t.shape[1], -1, -1)
    for k in range(2):
        thing, px, py, radius = _at(rows, k, x, y, t)
        if thing["there"].any():
            distance = shape_distance(thing["shape"], px, py, radius)
            picture = _over(picture, _cover(distance) * thing["there"], _colour(thing))
    return picture


def _open(rows: Tensor, profiles: Tensor, stars: bool, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    around = rows[:, SCENERY:]
    things = [_at(rows, k, x, y, t) for k in range(2)]
    shadows = torch.zeros(len(rows), t.shape[1], y.shape[2], x.shape[3], device=rows.device)
    for thing, px, py, radius in things:
        distance = shape_distance(thing["shape"], *scenery.shadow(around, px, py), radius)
        shadows = torch.maximum(shadows, (0.5 - distance / (3 * EDGE)).clamp(0, 1) * thing["there"])
    picture = scenery.ground(profiles, around, x, y, t, shadows)
    if stars:
        drift = torch.remainder(x + around[:, 1].view(-1, 1, 1, 1) * t, x.shape[3])
        picture = _starry(picture, rows, drift, y)
    for k, (thing, px, py, radius) in enumerate(things):
        distance = shape_distance(thing["shape"], px, py, radius)
        colour = _colour(thing) * scenery.surface(around, k, px, py, radius).unsqueeze(1)
        picture = _over(picture, _cover(distance) * thing["there"], colour)
    return picture


def _starry(picture: Tensor, rows: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Stars laid over a night's picture [B,3,T,H,W] at the sky's coordinates x, y."""
    stars = rows[:, STARRY:SCENERY].view(-1, STARS, 3)
    glow = 0 * x
    for k in range(STARS):
        sx, sy, size = (stars[:, k, i].view(len(rows), 1, 1, 1) for i in range(3))
        near = (x - sx * x.shape[3]) ** 2 + (y - sy * y.shape[2]) ** 2
        glow = torch.maximum(glow, torch.exp(-near / (1.5 + size)) * (sx > 0))
    return picture + 0.6 * glow.unsqueeze(1) * (1 - picture)


def _colour(thing: dict[str, Tensor]) -> Tensor:
    return torch.cat([thing[c] for c in "rgb"], dim=1).unsqueeze(-1)


def _at(rows: Tensor, k: int, x: Tensor, y: Tensor, t: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """The `k`-th thing's columns, each pixel's place about its centre, and its radius; the plane wraps round."""
    height, width = y.shape[2], x.shape[3]
    thing = _columns(rows, THING, len(CLIP) + k * len(THING))
    turn = 2 * math.pi * (t / torch.where(thing["period"] != 0, thing["period"], 1.0) + thing["phase"])
    cx = thing["x"] + thing["vx"] * t + thing["circle"] * torch.cos(turn)
    cy = thing["y"] + thing["vy"] * t + thing["circle"] * torch.sin(turn) - thing["bounce"] * torch.sin(turn / 2).abs()
    radius = (thing["radius"] + thing["growth"] * t).clamp(max=22.0)
    radius = torch.where(thing["growth"] > 0, radius, thing["radius"])
    px = torch.remainder(x - cx + width / 2, width) - width / 2
    py = torch.remainder(y - cy + height / 2, height) - height / 2
    return thing, px, py, torch.where(radius > 0, radius, 1.0)


def shape_distance(shape: Tensor, px: Tensor, py: Tensor, radius: Tensor) -> Tensor:
    """Signed distance (negative inside) to each shape, all of area pi*radius^2, centred at the centroid."""
    ax, ay = px.abs(), py.abs()
    out = torch.hypot(px, py) - radius
    out = torch.where(shape == 1, torch.maximum(ax, ay) - radius * (math.sqrt(math.pi) / 2), out)
    # Equilateral triangle, apex up: inradius from area = 3*sqrt(3)*inradius^2.
    inradius = radius * math.sqrt(math.pi / (3 * math.sqrt(3)))
    out = torch.where(shape == 2, torch.maximum(ax * (math.sqrt(3) / 2) - py * 0.5, py) - inradius, out)
    # Five-pointed star: in its 36-degree sector an edge from the tip (R, 0) to the notch (R/2, 36 deg).
    tip = radius * math.sqrt(math.pi / (2.5 * math.sin(math.pi / 5)))
    sector = torch.remainder(torch.atan2(px, -py), 2 * math.pi / 5)
    sector = torch.minimum(sector, 2 * math.pi / 5 - sector)
    r = torch.hypot(px, py)
    ex, ey = 0.5 * math.cos(math.pi / 5) - 1, 0.5 * math.sin(math.pi / 5)
    norm = math.hypot(ex, ey)
    star = ((r * torch.cos(sector) - tip) * ey - r * torch.sin(sector) * ex) / norm
    out = torch.where(shape == 3, star, out)
    # Cross of five squares of side 2a.
    a = radius * math.sqrt(math.pi / 20)
    long, short = torch.maximum(ax, ay), torch.minimum(ax, ay)
    return torch.where(shape == 4, torch.maximum(long - 3 * a, torch.minimum(short - a, long - a)), out)


def _capsule(x: Tensor, y: Tensor, x0: Tensor, y0: Tensor, x1: Tensor, y1: Tensor, radius: float) -> Tensor:
    dx, dy = x1 - x0, y1 - y0
    h = (((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    return torch.hypot(x - x0 - h * dx, y - y0 - h * dy) - radius


def _mix(u: Tensor, a: tuple[float, float, float], b: tuple[float, float, float]) -> Tensor:
    """Colour between a and b at u, which broadcasts as [B,T,H,W]; [B,3,T,H,W]."""
    u = u.unsqueeze(1)
    return _rgb(*a, like=u) * (1 - u) + _rgb(*b, like=u) * u


def _walk(rows: Tensor, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    c = _columns(rows, CLIP, 0)
    height, width = y.shape[2], x.shape[3]
    night = c["night"]
    scroll = x + c["sign"] * c["speed"] * t + c["phase"] * 192  # world coordinate under each pixel
    ground = 0.66 * height
    v = (y / height).expand(len(rows), -1, -1, -1)
    picture = (
        _blank(rows, x, y, t)
        + _mix(v, (0.48, 0.74, 0.97), (0.85, 0.94, 1.0)) * (1 - night.unsqueeze(1))
        + _mix(v, (0.03, 0.04, 0.15), (0.15, 0.13, 0.35)) * night.unsqueeze(1)
    )
    moon = _cover(torch.hypot(x - 0.82 * width, y - 0.18 * height) - 7) * night
    picture = _over(picture, moon, _rgb(0.95, 0.93, 0.78, like=x))

    in_city = (c["place"] == 1).float()
    block = torch.floor(scroll / 32)
    rise = (10 + 26 * torch.remainder(block * 0.618 + 0.35, 1)) * height / 80
    within = torch.remainder(scroll, 32)
    wall = torch.maximum((within - 16).abs() - 14.5, ground - rise - y)
    shade = 0.35 + 0.25 * torch.remainder(block * 0.382, 1)
    day_wall = torch.stack([shade + 0.22, shade + 0.12, shade + 0.08], 1)
    dark_wall = torch.stack([shade * 0.25, shade * 0.25, shade * 0.45], 1)
    tone = day_wall * (1 - night.unsqueeze(1)) + dark_wall * night.unsqueeze(1)
    picture = _over(picture, _cover(wall) * in_city, tone)
    wx, wy = torch.remainder(within - 1, 10) - 5, torch.remainder(y - ground + rise, 11) - 6
    window = _cover(torch.maximum(wx.abs(), wy.abs()) - 2.3) * (wall < -2) * (y < ground - 2)
    pane = _rgb(1.0, 0.85, 0.4, like=x) * night.unsqueeze(1) + _rgb(0.55, 0.75, 0.9, like=x) * (1 - night.unsqueeze(1))
    picture = _over(picture, window * in_city, pane)

    at_sea = (c["place"] == 2).float()
    picture = _over(picture, _cover(0.46 * height - y + 0 * scroll) * at_sea, _rgb(0.15, 0.45, 0.75, like=x))

    soil = torch.cat(
        [
            torch.where(c["place"] == 0, g, torch.where(c["place"] == 1, r, s))
            for g, r, s in ((0.42, 0.38, 0.93), (0.70, 0.38, 0.82), (0.28, 0.42, 0.58))
        ],
        1,
    ).unsqueeze(-1)
    soil = soil * (1 - 0.55 * night.unsqueeze(1))
    picture = _over(picture, _cover(ground - y + 0 * scroll), soil)

    in_park = (c["place"] == 0).float()
    tree = torch.floor(scroll / 48)
    tx = torch.remainder(scroll, 48) - 24 + 8 * (torch.remainder(tree * 0.618, 1) - 0.5)
    trunk = torch.maximum(tx.abs() - 2.5, torch.maximum(y - ground - 3, ground - 22 - y))
    picture = _over(picture, _cover(trunk) * in_park, _rgb(0.42, 0.28, 0.16, like=x))
    crown = torch.hypot(tx, y - (ground - 27)) - 12
    picture = _over(picture, _cover(crown) * in_park, _rgb(0.13, 0.47, 0.2, like=x))

    return _person(picture, c, x, y, t, foot=0.93 * height, width=width)


def _person(picture: Tensor, c: dict[str, Tensor], x: Tensor, y: Tensor, t: Tensor, foot: float, width: int) -> Tensor:
    dim = 1 - 0.25 * c["night"].unsqueeze(1)
    skin = _mix(c["skin"], (0.98, 0.82, 0.70), (0.45, 0.30, 0.20)) * dim
    hair = _mix(c["hair"], (0.12, 0.08, 0.06), (0.80, 0.60, 0.25)) * dim
    cloth = torch.cat([c["r"], c["g"], c["b"]], 1).unsqueeze(-1) * dim
    trousers = _rgb(0.20, 0.22, 0.38, like=x) * dim
    step = torch.sin(2 * math.pi * (t / 18 + c["phase"]))
    px = c["x"] * width + 0 * t
    bob = foot - 0.7 * step**2
    hip, neck, head = bob - 15, bob - 31, bob - 36
    legs = skin * c["dress"].unsqueeze(1) + trousers * (1 - c["dress"].unsqueeze(1))
    for side in (1, -1):
        picture = _over(picture, _cover(_capsule(x, y, px, hip, px + side * 6 * step, bob, 2.0)), legs)
    arm = neck + 13
    picture = _over(picture, _cover(_capsule(x, y, px, neck + 2, px - 6 * step, arm, 1.6)), skin)
    long_hair = torch.minimum(
        torch.hypot(x - px + c["sign"] * 1.2, y - head + 0.8) - 5.8,
        _capsule(x, y, px - c["sign"] * 3, head, px - c["sign"] * 4, head + 9, 2.4),
    )
    picture = _over(picture, _cover(long_hair) * c["dress"], hair)
    down = ((y - neck) / (hip + 4 - neck)).clamp(0, 1)
    dress = torch.maximum((x - px).abs() - (2.6 + 5.4 * down), torch.maximum(neck - y, y - hip - 4))
    shirt = torch.maximum((x - px).abs() - 4.2, torch.maximum(neck - y, y - hip - 1))
    picture = _over(picture, _cover(torch.where(c["dress"] > 0, dress, shirt)), cloth)
    picture = _over(picture, _cover(_capsule(x, y, px, neck + 2, px + 6 * step, arm, 1.6)), skin)
    picture = _over(picture, _cover(torch.hypot(x - px, y - head) - 4.8), skin)
    cap = torch.maximum(torch.hypot(x - px, y - head) - 5.4, y - head + 1.5)
    return _over(picture, _cover(cap), hair)


def _sunset(rows: Tensor, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    c = _columns(rows, CLIP, 0)
    height, width = y.shape[2], x.shape[3]
    shore = 0.58 * height
    v = (y / shore).clamp(0, 1).expand(len(rows), -1, -1, -1)
    picture = _blank(rows, x, y, t) + _mix(v, (0.36, 0.20, 0.48), (1.0, 0.62, 0.30))
    sx = c["x"] * width
    sy = (0.22 + 0.12 * c["skin"]) * height + 0.22 * t
    far = torch.hypot(x - sx, y - sy)
    picture = _over(picture, 0.5 * torch.exp(-far / 16), _rgb(1.0, 0.85, 0.5, like=x))
    picture = _over(picture, _cover(far - 10), _rgb(1.0, 0.93, 0.62, like=x))
    down = ((y - shore) / (height - shore)).clamp(0, 1).expand(len(rows), -1, -1, -1)
    calm = c["water"].unsqueeze(1)  # 0 ocean, 1 sea, 2 lake
    sea = (
        _mix(down, (0.55, 0.32, 0.42), (0.10, 0.10, 0.30)) * (calm == 0)
        + _mix(down, (0.50, 0.38, 0.42), (0.06, 0.24, 0.36)) * (calm == 1)
        + _mix(down, (0.62, 0.40, 0.36), (0.20, 0.14, 0.24)) * (calm == 2)
    )
    swell = torch.where(c["water"] == 2, 0.35, 1.0)
    wave = torch.sin(2 * math.pi * (y / (5 + 7 * down) + 0.8 * torch.sin(x / 19 + c["phase"] * 6) + t / 24))
    sea = sea + 0.05 * (swell * wave).unsqueeze(1)
    glitter = torch.exp(-(((x - sx) / (6 + 16 * down)) ** 2)) * (0.55 + 0.3 * swell * wave)
    sea = _over(sea, glitter * 0.8, _rgb(1.0, 0.72, 0.38, like=x))
    return _over(picture, _cover(shore - y + 0 * glitter), sea)
