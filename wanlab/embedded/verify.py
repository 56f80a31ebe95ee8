"""Look at a clip of shapes and say what is in it; then say whether that is what was asked for.

`observe` sees the clip alone, `judge` compares what it saw with a scene. How each attribute is read:

- background: the row profile of `world.BACKGROUNDS` (at any horizon) nearest to most pixels;
- things: blobs that differ from the background, joined over time; a blob of two colours is two things;
- colour: the named colour nearest to the blob's core (its edge is mixed with the background);
- size: how far each pixel lies on the line from background to colour is its cover; the summed cover
  is the area and gives the radius, since all shapes of one size have one area, pi*radius^2;
- shape: the mean cover over time, centred and scaled to radius 1, against drawings of all shapes;
- motion: the track of the centre against a straight line, a bounce and a circle; growing if the
  radius rises.

In an open world the background's colours come in shades (`world.DARKEST` to `BRIGHTEST`) and so do a thing's: distance
from a colour is then distance from its shades, and a pixel's cover is its contrast, not its place on a line of colours.

An attribute that fits nothing is "". Lengths are pixels, time is frames, the plane wraps round: every
mean and every distance here is a circular one. Legend: T frames, H rows, W columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
import scipy  # its parts are imported when they are used
from numpy.typing import NDArray

from wanlab.embedded import world
from wanlab.embedded.world import BRIGHTEST, DARKEST, Scene, Thing, World

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]

ATTRIBUTES = ("colour", "shape", "size", "direction", "background")

CONTRAST = 0.25  # RGB distance from the background at which a pixel belongs to a thing
LEAST_AREA = 60.0  # pixels a frame; stars of the night are smaller, the smallest thing has 113
LEAST_LIFE = 0.2  # share of the frames that a thing must be in to be one
WHOLE_LIFE = 0.8  # and to have a motion: that which comes and goes has none
SECOND_COLOUR = 0.15  # share of a blob's core that makes it two things that touch
COLOUR_REACH = 0.3  # farther than this from every named colour is no named colour
BACKGROUND_REACH = 0.2  # likewise for a background, and at least half of the pixels must be as near
MARGIN = 5  # pixels round a blob in which its soft edge and its thin tips are looked for
OPEN_CONTRAST = (0.12, 0.34)  # contrast in an open world that covers a pixel not at all, and wholly; its middle divides
THING_SHADES = (0.6, 1.1)  # of a thing's colour in an open world: patterns darken it by up to 28 %, light a little more
BLACK_SHADES = (0.5, 4.6)  # of the black background, whose light is added and not multiplied
HORIZON = (-6, -3, 0, 3, 6)  # rows by which a horizon in an open world may undulate
GRID = np.linspace(-1.9, 1.9, 39)  # where a shape of radius 1 is compared
SHAPE_FIT = 0.75  # least correlation with a drawing
GROWTH = 1.3  # radius in the last fifth of the frames over that in the first
STILL = 0.15  # pixels a frame; the slowest motion has 0.3
CURVE = 0.7  # pixels r.m.s. from a straight line that a bounce or a circle has, a quarter of one too
STRAY = 3.0  # pixels r.m.s. that a track may stray from its motion
DISC = np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], bool)  # neighbours in a frame, none in time


@dataclass(frozen=True)
class Errors:
    """How often the verifier is wrong, as counted: clips that show what is asked and are called wrong, clips with one
    attribute wrong that are called right. Rates are the means of Beta(1 + right, 1 + wrong)."""

    called_wrong: int
    of_right: int
    called_right: int
    of_wrong: int

    @property
    def sensitivity(self) -> float:
        """Share of right clips that it calls right."""
        return (self.of_right - self.called_wrong + 1) / (self.of_right + 2)

    @property
    def specificity(self) -> float:
        """Share of wrong clips that it calls wrong."""
        return (self.of_wrong - self.called_right + 1) / (self.of_wrong + 2)

    @property
    def sensitivity_variance(self) -> float:
        return self.sensitivity * (1 - self.sensitivity) / (self.of_right + 3)

    @property
    def specificity_variance(self) -> float:
        return self.specificity * (1 - self.specificity) / (self.of_wrong + 3)


# Of rendered clips of the open world, blurred, noisy and shifted in colour: `python -m training.verify_rate --world 2
# --clips 1000 --degraded --seed 91000`. "all" is whole clips, and every clip with one attribute wrong.
ERRORS = {
    "all": Errors(9, 1000, 3, 4921),
    "colour": Errors(5, 1000, 0, 1000),
    "shape": Errors(5, 1000, 0, 1000),
    "size": Errors(6, 921, 2, 921),
    "direction": Errors(3, 1000, 0, 1000),
    "background": Errors(2, 1000, 1, 1000),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenThing:
    """One object as seen. `size` is "" for a growing one, as in `world.Thing`."""

    colour: str
    shape: str
    size: str
    motion: str
    rgb: tuple[float, float, float]
    radius: float  # pixels, of the circle of the same area; median over time
    speed: float  # pixels a frame along the straight line through the track
    shape_fit: float  # correlation with the drawing of `shape`, at most 1
    track: Array  # [T,2] centre x, y in pixels, unwrapped; NaN where the thing is not seen
    radii: Array  # [T] pixels


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What is in a clip: the two largest things, and how many `others` there are beside them."""

    background: str
    things: tuple[SeenThing, ...]
    others: int = 0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether each attribute is as asked; None where the scene does not state it."""

    colour: bool | None
    shape: bool | None
    size: bool | None
    direction: bool | None  # any motion
    background: bool | None

    @property
    def right(self) -> bool:
        """Whether everything that was asked for is there."""
        return False not in (self.colour, self.shape, self.size, self.direction, self.background)


def observe(video: Array, version: World = world.FIRST) -> Observation:
    """See what is in a clip of a world version, float RGB [T,H,W,3] in [0,1]. Raises ValueError for another layout."""
    if video.ndim != 4 or video.shape[-1] != 3 or not np.issubdtype(video.dtype, np.floating):
        raise ValueError(f"a clip is float [T,H,W,3], not {video.dtype} {list(video.shape)}")
    video = np.nan_to_num(video.astype(np.float32))  # a broken model makes NaN: judged as wrong, not an error
    background, rows = _open_background(video) if version.open else _background(video)
    contrast = _open_contrast(video, background, rows) if version.open else _square(video - rows[:, None])
    edge = sum(OPEN_CONTRAST) / 2 if version.open else CONTRAST
    blobs = [part for blob in _blobs(contrast > edge**2) for part in _split(blob, video, version)]
    looks = (_look(video, rows, blob, contrast, version) for blob in blobs)
    things = sorted((_thing(*look) for look in looks), key=lambda t: -t.radius)
    return Observation(background=background, things=tuple(things[:2]), others=max(len(things) - 2, 0))


# --- judging --------------------------------------------------------------------------------------


def judge(seen: Observation, asked: Scene) -> Verdict:
    """Compare what was seen with what was asked for.

    With two things they are matched so that most attributes agree, colour first. An attribute is right
    if it is right for every thing for which it is asked; a missing or an extra thing makes colour and
    shape wrong. A drawn scene (`kind` not "shapes") states nothing that is judged.
    """
    if asked.kind != "shapes":
        return Verdict(colour=None, shape=None, size=None, direction=None, background=None)
    wanted = range(len(asked.things) + len(seen.things))  # a seen thing matched beyond the asked ones is extra
    matchings = (dict(zip(m, seen.things, strict=True)) for m in permutations(wanted, len(seen.things)))
    answers = max(([_agree(t, m.get(k)) for k, t in enumerate(asked.things)] for m in matchings), key=_agreement)
    told = {name: _all([answer[name] for answer in answers]) for name in ATTRIBUTES[:-1]}
    if len(seen.things) + seen.others != len(asked.things):
        told |= {name: False for name in ("colour", "shape") if told[name] is not None}
    return Verdict(**told, background=seen.background == asked.background if asked.background else None)


def _agree(asked: Thing, seen: SeenThing | None) -> dict[str, bool | None]:
    """Each attribute of one thing: right, wrong, or None where it is not stated."""
    size = "" if asked.motion == "growing" else asked.size  # a growing thing has no one size
    wanted = {"colour": asked.colour, "shape": asked.shape, "size": size, "direction": asked.motion}
    found = {}
    if seen:
        found = {"colour": seen.colour, "shape": seen.shape, "size": seen.size, "direction": seen.motion}
    return {name: found.get(name) == value if value else None for name, value in wanted.items()}


def _agreement(answers: list[dict[str, bool | None]]) -> tuple[int, int]:
    """How well a matching agrees: right colours, then right attributes."""
    right = [name for answer in answers for name, value in answer.items() if value]
    return right.count("colour"), len(right)


def _all(answers: list[bool | None]) -> bool | None:
    stated = [a for a in answers if a is not None]
    return all(stated) if stated else None


def _square(difference: Array) -> Array:
    """Squared RGB distance of differences [...,3]."""
    return np.einsum("...c,...c->...", difference, difference)  # type: ignore[no-any-return]


# --- background -----------------------------------------------------------------------------------


@cache
def _profiles(height: int) -> tuple[list[str], Array]:
    """Every background at every horizon: names [K] and row colours [K,H,3]."""
    named = [
        (name, world.background_profile(name, height, horizon))
        for name, stops in world.BACKGROUNDS.items()
        for horizon in (np.arange(0.40, 0.705, 0.01) if len(stops) > 2 else [0.5])
    ]
    return [name for name, _ in named], np.stack([rows for _, rows in named]).astype(np.float32)


def _background(video: Array) -> tuple[str, Array]:
    """Name and row colours [H,3]: the profile nearest to most pixels, moved to the clip's own tone."""
    names, profiles = _profiles(video.shape[1])
    sample = video[:: max(len(video) // 6, 1), :, ::4].transpose(1, 0, 2, 3).reshape(video.shape[1], -1, 3)  # [H,N,3]
    far = np.stack([_square(sample - p[:, None]) for p in profiles])  # [K,H,N]
    best = int(np.minimum(far, BACKGROUND_REACH**2).mean((1, 2)).argmin())
    near = far[best] < BACKGROUND_REACH**2
    # A row's own tone where enough of the row is seen, so that a drift of colour is no contrast.
    seen = np.where(near[..., None], sample, np.nan)
    enough = near.mean(1) > 0.15
    rows = profiles[best].copy()
    rows[enough] = np.nanmedian(seen[enough], axis=1)
    return (names[best] if near.mean() > 0.5 else ""), rows


def _shade_distance(pixels: Array, colour: Array, shades: tuple[float, float]) -> Array:
    """Squared RGB distance of pixels [...,3] from the nearest of a colour's shades; `colour` broadcasts."""
    length = np.einsum("...c,...c->...", colour, colour)
    shade = (np.einsum("...c,...c->...", pixels, colour) / length).clip(*shades)
    return _square(pixels - shade[..., None] * colour)


def _shades(background: str) -> tuple[float, float]:
    return BLACK_SHADES if background == "black" else (DARKEST - 0.02, BRIGHTEST + 0.02)


def _open_background(video: Array) -> tuple[str, Array]:
    """Name and row colours [H,3]: the profile whose shades are nearest to most pixels."""
    names, profiles = _profiles(video.shape[1])
    sample = video[:: max(len(video) // 6, 1), :, ::6].transpose(1, 0, 2, 3).reshape(video.shape[1], -1, 3)  # [H,N,3]
    far = np.stack(
        [_shade_distance(sample, p[:, None], _shades(name)) for name, p in zip(names, profiles, strict=True)]
    )
    best = int(np.minimum(far, BACKGROUND_REACH**2).mean((1, 2)).argmin())
    return (names[best] if (far[best] < BACKGROUND_REACH**2).mean() > 0.5 else ""), profiles[best]


def _open_contrast(video: Array, background: str, rows: Array) -> Array:
    """Squared distance [T,H,W] of every pixel from the background's shades, an undulating horizon's as well."""
    edge = len(world.BACKGROUNDS.get(background, ())) > 3
    far = np.full(video.shape[:3], np.inf, np.float32)
    for shift in HORIZON if edge else (0,):
        moved = rows[(np.arange(len(rows)) + shift).clip(0, len(rows) - 1)]
        far = np.minimum(far, _shade_distance(video, moved[:, None], _shades(background)))
    return far


# --- things ---------------------------------------------------------------------------------------


def _wrapped(mask: Mask, change: str, steps: int) -> Mask:
    """Erode, dilate or open a mask [T,H,W] within its frames, on the plane that wraps round."""
    pad = ((0, 0), (2 * steps, 2 * steps), (2 * steps, 2 * steps))
    grown = getattr(scipy.ndimage, f"binary_{change}")(np.pad(mask, pad, mode="wrap"), DISC, iterations=steps)
    return grown[:, 2 * steps : -2 * steps, 2 * steps : -2 * steps]  # type: ignore[no-any-return]


def _blobs(contrast: Mask) -> list[Mask]:
    """Masks [T,H,W] of what differs from the background; opened, so that stars and thin lines are gone."""
    labels, count = scipy.ndimage.label(_wrapped(contrast, "opening", 2), np.ones((3, 3, 3)))
    name = np.arange(count + 1)
    for first, last in ((labels[:, 0], labels[:, -1]), (labels[:, :, 0], labels[:, :, -1])):
        for a, b in np.unique(np.stack([first, last])[:, (first > 0) & (last > 0)], axis=1).T:
            name[name == name[b]] = name[a]  # one blob across the edge
    labels = name[labels]
    return [labels == k for k in np.unique(labels[labels > 0]) if _lasts(labels == k)]


def _lasts(blob: Mask) -> bool:
    area = blob.sum((1, 2))
    return bool((area > 0).mean() >= LEAST_LIFE and area[area > 0].mean() >= LEAST_AREA)


def _core(blob: Mask) -> Mask:
    """The inside of a blob, where no pixel is mixed with the background (all of it if it is too thin)."""
    core = _wrapped(blob, "erosion", 2)
    return core if core.any() else blob


def _named(rgb: Array, version: World) -> tuple[NDArray[np.intp], Array]:
    """The nearest named colour of RGB [...,3], and the distance from it."""
    shades = THING_SHADES if version.open else (1.0, 1.0)
    palette = np.array(list(world.COLOURS.values()), np.float32)
    far = np.stack([_shade_distance(rgb, c, shades) for c in palette])
    return far.argmin(0), np.sqrt(far.min(0))


def _split(blob: Mask, video: Array, version: World) -> list[Mask]:
    """A blob whose core has two colours is two things that touch: each pixel goes with the nearer core."""
    core = _core(blob)
    votes = np.full(core.shape, -1)
    votes[core] = _named(video[core], version)[0]
    share = np.bincount(votes[core], minlength=len(world.COLOURS)) / core.sum()
    colours = np.argsort(-share)[:2]
    if share[colours[1]] < SECOND_COLOUR:
        return [blob]
    a, b = (scipy.ndimage.gaussian_filter((votes == c).astype(np.float32), (0, 4, 4), mode="wrap") for c in colours)
    parts = [blob & (a >= b), blob & (a < b)]
    return parts if all(_lasts(p) for p in parts) else [blob]


def _look(video: Array, rows: Array, blob: Mask, contrast: Array, version: World) -> tuple[Array, str, Array]:
    """A blob's RGB, the name of its colour ("" for none), and its cover [T,H,W]."""
    rgb = _colour(video, contrast, blob)
    if version.open:
        low, high = OPEN_CONTRAST
        reach = np.where(_wrapped(blob, "dilation", MARGIN), np.sqrt(contrast), 0)
        cover = ((reach - low) / (high - low)).clip(0, 1)
    else:
        cover = _cover(video, rows, rgb, blob)
    nearest, off = _named(rgb, version)
    return rgb, list(world.COLOURS)[int(nearest)] if off < COLOUR_REACH else "", cover


def _thing(rgb: Array, colour: str, cover: Array) -> SeenThing:
    area = cover.sum((1, 2))
    seen = area > 0.1 * np.median(area[area > 0])
    radii = np.where(seen, np.sqrt(area / math.pi), np.nan)
    track = np.stack([_centres(cover.sum(1), seen), _centres(cover.sum(2), seen)], axis=1)
    shape, fit = _shape(cover[seen], track[seen], radii[seen])
    motion, speed = _motion(np.flatnonzero(seen).astype(float), track[seen], radii[seen])
    radius = float(np.nanmedian(radii))
    return SeenThing(
        colour=colour,
        shape=shape,
        size="" if motion == "growing" else min(world.SIZES, key=lambda s: abs(math.log(radius / world.SIZES[s]))),
        motion=motion if seen.mean() >= WHOLE_LIFE else "",
        rgb=(float(rgb[0]), float(rgb[1]), float(rgb[2])),
        radius=radius,
        speed=speed,
        shape_fit=fit,
        track=track,
        radii=radii,
    )


def _colour(video: Array, contrast: Array, blob: Mask) -> Array:
    """Median RGB of the core's pixels that stand out most: in a blurred clip most of a core may be mixed."""
    core = _core(blob)
    clear = contrast[core]
    return np.median(video[core][clear >= np.quantile(clear, 0.6)], axis=0)


def _cover(video: Array, rows: Array, rgb: Array, blob: Mask) -> Array:
    """How much of each pixel [T,H,W] the thing covers: 0 at the background's colour, 1 at its own."""
    line = rgb - rows  # [H,3]
    line = line / _square(line)[:, None]
    along = np.einsum("thwc,hc->thw", video - rows[:, None], line)
    return np.where(_wrapped(blob, "dilation", MARGIN), along, 0).clip(0, 1)


def _centres(weight: Array, seen: Mask) -> Array:
    """Centre of mass along an axis that wraps round, [T,N] -> [T], unwrapped; NaN if not seen."""
    n = weight.shape[1]
    at = np.arange(n) + 0.5
    centre = np.angle(weight @ np.exp(2j * np.pi * at / n)) * n / (2 * np.pi)
    for _ in range(3):  # the circular mean is biased for a lopsided thing: centre of mass around it
        offset = (at - centre[:, None] + n / 2) % n - n / 2
        centre = centre + (weight * offset).sum(1) / np.maximum(weight.sum(1), 1e-6)
    out = np.full(len(weight), np.nan)
    out[seen] = np.unwrap(centre[seen], period=n)
    return out


# --- shape ----------------------------------------------------------------------------------------


def shape_distance(shape: str, x: Array, y: Array) -> Array:
    """Signed distance (negative inside) to a shape of area pi centred at 0; y points down."""
    ax, ay, r = np.abs(x), np.abs(y), np.hypot(x, y)
    if shape == "circle":
        return r - 1
    if shape == "square":
        return np.maximum(ax, ay) - math.sqrt(math.pi) / 2
    if shape == "triangle":  # equilateral, apex up: area = 3*sqrt(3)*inradius^2
        return np.maximum(ax * math.sqrt(0.75) - y / 2, y) - math.sqrt(math.pi / math.sqrt(27))
    if shape == "star":  # edge from a tip (R, 0) to a notch (R/2, 36 degrees): area = 2.5*sin(36)*R^2
        fifth = 2 * math.pi / 5
        tip = math.sqrt(math.pi / (2.5 * math.sin(fifth / 2)))
        angle = np.arctan2(x, -y) % fifth
        angle = np.minimum(angle, fifth - angle)
        ex, ey = 0.5 * math.cos(fifth / 2) - 1, 0.5 * math.sin(fifth / 2)
        return ((r * np.cos(angle) - tip) * ey - r * np.sin(angle) * ex) / math.hypot(ex, ey)
    if shape == "cross":  # five squares of side 2a
        a = math.sqrt(math.pi / 20)
        long, short = np.maximum(ax, ay), np.minimum(ax, ay)
        return np.maximum(long - 3 * a, np.minimum(short - a, long - a))
    raise ValueError(f"no shape {shape!r}")


@cache
def _drawings(radius: float, blur: float) -> Array:
    """All shapes on GRID at this radius and blur (pixels), [S,G*G], each of mean 0 and norm 1."""
    y, x = np.meshgrid(GRID, GRID, indexing="ij")
    sharp = [(0.5 - shape_distance(s, x, y) * radius / world.EDGE).clip(0, 1) for s in world.SHAPES]
    sigma = blur / radius / (GRID[1] - GRID[0])
    return np.stack([_standard(scipy.ndimage.gaussian_filter(picture, sigma)) for picture in sharp])


def _standard(picture: Array) -> Array:
    flat = picture.ravel() - picture.mean()
    return flat / max(float(np.linalg.norm(flat)), 1e-9)  # type: ignore[no-any-return]


def _shape(cover: Array, track: Array, radii: Array) -> tuple[str, float]:
    """The shape whose drawing, sharp or soft, correlates best with the mean cover; "" if none does."""
    frames, height, width = cover.shape
    at = np.broadcast_to
    size = (frames, len(GRID), len(GRID))
    t = at(np.arange(frames)[:, None, None], size)
    y = at((track[:, 1, None] + radii[:, None] * GRID)[:, :, None], size)
    x = at((track[:, 0, None] + radii[:, None] * GRID)[:, None, :], size)
    scaled = scipy.ndimage.map_coordinates(cover, [t, (y - 0.5) % height, (x - 0.5) % width], order=1, mode="grid-wrap")
    mean = _standard(scaled.mean(0))
    radius = max(round(float(np.median(radii)), 1), 1.0)
    fits = np.max([_drawings(radius, blur) @ mean for blur in (0.0, 1.0, 2.0)], axis=0)
    best = int(fits.argmax())
    return (list(world.SHAPES)[best] if fits[best] > SHAPE_FIT else ""), float(fits[best])


# --- motion ---------------------------------------------------------------------------------------


def _motion(t: Array, track: Array, radii: Array) -> tuple[str, float]:
    """Name of the motion, "" if it is none of them, and the speed along a straight line in pixels a frame."""
    if len(t) < 3:
        return "", 0.0
    fifth = max(len(t) // 5, 1)
    velocity, stray = _straight(t, track)
    speed = float(np.hypot(*velocity))
    if np.median(radii[-fifth:]) > GROWTH * np.median(radii[:fifth]):
        return "growing", speed
    bounce, circle = _bounce(t, track), _circle(t, track)
    if min(bounce, circle) < 0.5 * stray and stray > CURVE:
        return ("bouncing" if bounce < circle else "circling") if min(bounce, circle) < STRAY else "", speed
    if stray > STRAY:
        return "", speed
    if speed < STILL:
        return "still", speed
    (across, along) = np.abs(velocity)
    if min(across, along) > 0.5 * max(across, along):
        return "", speed  # askew
    if across > along:
        return ("right" if velocity[0] > 0 else "left"), speed
    return ("down" if velocity[1] > 0 else "up"), speed


def _straight(t: Array, track: Array) -> tuple[Array, float]:
    """Velocity [2] of the straight line nearest to the track, and the r.m.s. distance from it."""
    line = np.polynomial.polynomial.polyfit(t, track, 1)
    return line[1], _rms(track - line[0] - t[:, None] * line[1])


def _bounce(t: Array, track: Array) -> float:
    """R.m.s. distance from the nearest bounce: y = low - height*|sin(pi*(t/period + phase))|, x at rest."""
    period, phase = np.meshgrid(np.arange(22, 40), np.arange(0, 1, 1 / 32))
    up = np.abs(np.sin(np.pi * (t[:, None, None] / period + phase)))
    up = up - up.mean(0)
    y = (track[:, 1] - track[:, 1].mean())[:, None, None]
    height = -((up * y).sum(0) / np.maximum((up**2).sum(0), 1e-9)).clip(-32, -9)
    stray = ((y + height * up) ** 2).mean(0).min() + track[:, 0].var()
    return math.sqrt(float(stray))


def _circle(t: Array, track: Array) -> float:
    """R.m.s. distance from the nearest circle: z = centre + r*exp(2i*pi*t/period), either way round."""
    period = np.concatenate([np.arange(28, 60), -np.arange(28, 60)])
    turn = np.exp(2j * np.pi * t[:, None] / period)
    turn = turn - turn.mean(0)
    z = track[:, 0] + 1j * track[:, 1]
    z = (z - z.mean())[:, None]
    radius = (np.conj(turn) * z).sum(0) / np.maximum((np.abs(turn) ** 2).sum(0), 1e-9)
    radius *= np.abs(radius).clip(9, 26) / np.maximum(np.abs(radius), 1e-9)
    return math.sqrt(float((np.abs(z - radius * turn) ** 2).mean(0).min()))


def _rms(distance: Array) -> float:
    return math.sqrt(float((distance**2).sum(-1).mean()))
