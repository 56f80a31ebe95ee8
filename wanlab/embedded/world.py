"""The world that `tiny` was trained on: what can be in a clip, how a caption says it, how to read a prompt.

A clip shows one or two coloured shapes that move on a background, or a simple drawn scene. Lengths
are pixels, speeds pixels a frame; the plane wraps round (what leaves at the right comes in at the
left), so a motion can go on for any number of frames.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

NATIVE_SIZE = (144, 80)  # width, height
NATIVE_FRAMES = 49
EDGE = 1.6  # width of a drawn edge, in pixels


@dataclass(frozen=True, kw_only=True)
class World:
    """A version of the world: one vocabulary and one set of attributes, but more or less that captions leave open.

    `open`: backgrounds have texture, move and are lit; things have patterns and shadows; small unnamed details drift
    about; things lie anywhere; of two things one may be large, and they may move along different axes.
    A motion is always the one seen in the frame: the camera pans over the background, the things go with it.
    """

    version: str
    open: bool


WORLDS = {w.version: w for w in (World(version="1", open=False), World(version="2", open=True))}
# Shades of a background's own colour that texture, light and shadow make in an open world.
DARKEST, BRIGHTEST = 0.7, 1.12
FIRST = WORLDS["1"]  # that of checkpoints that do not say which

# Object colours in RGB, [0,1].
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.12, 0.12),
    "orange": (1.00, 0.55, 0.05),
    "yellow": (0.98, 0.90, 0.15),
    "green": (0.10, 0.70, 0.20),
    "blue": (0.12, 0.25, 0.92),
    "purple": (0.58, 0.15, 0.80),
    "pink": (1.00, 0.50, 0.75),
    "white": (0.97, 0.97, 0.97),
}
# The words a caption may use; the first one is the attribute's name.
SHAPES: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "ball", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus"),
}
# Radius of the circle of the same area; every shape of one size has one area.
SIZES: dict[str, float] = {"small": 8.0, "medium": 13.0, "large": 20.0}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium-sized"),
    "large": ("large", "big", "huge"),
}
SPEEDS: dict[str, float] = {"slow": 0.5, "": 0.9, "fast": 1.4}
SPEED_WORDS: dict[str, tuple[str, ...]] = {"slow": ("slowly",), "": ("",), "fast": ("quickly", "fast")}
VERTICAL_SPEED = 0.6  # the frame is lower than wide: vertical motion is this much slower
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
# Every motion a single object can have.
MOTIONS = (*DIRECTIONS, "still", "bouncing", "circling", "growing")
PAIR_MOTIONS = (*DIRECTIONS, "still")  # and those of each of two, in an open world
# Background stops (height fraction, RGB), linear between stops. Two stops at one height make an edge.
BACKGROUNDS: dict[str, tuple[tuple[float, tuple[float, float, float]], ...]] = {
    "black": ((0.0, (0.03, 0.03, 0.03)), (1.0, (0.03, 0.03, 0.03))),
    "white": ((0.0, (0.96, 0.96, 0.96)), (1.0, (0.96, 0.96, 0.96))),
    "gray": ((0.0, (0.50, 0.50, 0.50)), (1.0, (0.50, 0.50, 0.50))),
    "sky": ((0.0, (0.32, 0.60, 0.95)), (1.0, (0.72, 0.88, 1.00))),
    "meadow": (
        (0.0, (0.62, 0.82, 0.98)),
        (0.5, (0.70, 0.88, 0.98)),
        (0.5, (0.50, 0.78, 0.34)),
        (1.0, (0.30, 0.60, 0.22)),
    ),
    "night": ((0.0, (0.03, 0.04, 0.16)), (1.0, (0.12, 0.12, 0.36))),
    "sunset": ((0.0, (0.32, 0.18, 0.46)), (0.5, (0.90, 0.42, 0.28)), (1.0, (1.00, 0.74, 0.36))),
}
BACKGROUND_PHRASES: dict[str, tuple[str, ...]] = {
    "black": ("on a black background", "in front of a black wall"),
    "white": ("on a white background", "in front of a white wall"),
    "gray": ("on a gray background", "on a grey background", "in front of a gray wall"),
    "sky": ("in a blue sky", "in the blue sky", "against the sky"),
    "meadow": ("over a green meadow", "over a meadow", "above the grass of a meadow"),
    "night": ("in a starry night", "at night under the stars", "on a night sky"),
    "sunset": ("at sunset", "in front of a sunset", "against an orange sunset"),
}
CLASHES: dict[str, tuple[str, ...]] = {  # object colours that would not stand out
    "black": (),
    "white": ("white", "yellow"),
    "gray": (),
    "sky": ("white", "blue"),
    "meadow": ("green", "white", "yellow"),
    "night": ("blue", "purple"),
    "sunset": ("red", "orange", "yellow", "purple", "pink"),
}
PLACES = ("park", "city", "beach")
WALKERS: dict[str, tuple[str, ...]] = {"woman": ("woman", "girl", "lady"), "man": ("man", "boy")}
WATERS = ("ocean", "sea", "lake")


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object. `size` is "" for a growing one; `speed` is "" for an ordinary pace."""

    shape: str
    colour: str
    size: str
    motion: str
    speed: str = ""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a clip shows: one or two things on a background, or (`kind` not "shapes") a drawn scene."""

    things: tuple[Thing, ...] = ()
    background: str = ""
    kind: str = "shapes"  # shapes | walk | sunset
    walker: str = ""  # walk: woman | man
    place: str = ""  # walk: park | city | beach
    time: str = "day"  # walk: day | night
    direction: str = "right"  # walk
    clothes: str = ""  # walk: a colour, "" for any
    water: str = ""  # sunset: ocean | sea | lake


def background_profile(name: str, height: int, horizon: float = 0.5) -> np.ndarray:
    """Colour of each row, [H,3]: the named stops, the middle one moved to `horizon` (soft over an edge)."""
    stops = BACKGROUNDS[name]
    at = [horizon if 0 < p < 1 else p for p, _ in stops]
    at = [p + (0.5 * EDGE / height if i and at[i - 1] == p else 0.0) for i, p in enumerate(at)]
    rows = (np.arange(height) + 0.5) / height
    return np.stack([np.interp(rows, at, [c[k] for _, c in stops]) for k in range(3)], axis=1)


def held_out(scene: Scene) -> bool:
    """Whether this combination is kept from training: about one in eight, fixed by its attributes."""
    keys = [(t.shape, t.colour, t.size, t.motion, scene.background) for t in scene.things]
    return any(hashlib.sha256(repr(k).encode()).digest()[0] < 32 for k in keys)


def random_scene(
    rng: np.random.Generator, *, drawn: float = 0.12, pairs: float = 0.22, curved: float = 0.2, version: World = FIRST
) -> Scene:
    """Draw a scene of a world version; `drawn` and `pairs` are the shares of drawn scenes and of two-object scenes,
    `curved` that of bouncing and circling among the other ones."""
    u = rng.random()
    if u < drawn:
        if rng.random() < 0.4:
            return Scene(kind="sunset", water=_pick(rng, WATERS))
        place = _pick(rng, PLACES)
        return Scene(
            kind="walk",
            walker=_pick(rng, list(WALKERS)),
            place=place,
            time="night" if place == "city" and rng.random() < 0.7 else "day",
            direction=_pick(rng, ["left", "right"]),
            clothes=_pick(rng, ["", "red", "blue", "white", "purple", "yellow"]),
        )
    background = _pick(rng, list(BACKGROUNDS))
    colours = [c for c in COLOURS if c not in CLASHES[background]]
    if u < drawn + pairs:
        a, b = (str(c) for c in rng.choice(colours, 2, replace=False))
        if version.open:
            sizes = [["small", "medium"], list(SIZES)][int(rng.random() < 0.5)]  # at most one of two is large
            pair = [
                _thing(rng, a, _pick(rng, PAIR_MOTIONS), sizes),
                _thing(rng, b, _pick(rng, PAIR_MOTIONS), sizes[:2]),
            ]
            rng.shuffle(pair)  # type: ignore[arg-type]
            return Scene(things=tuple(pair), background=background)
        axis = [["left", "right", "still"], ["up", "down", "still"]][int(rng.random() < 0.35)]
        moves = [_pick(rng, axis), _pick(rng, axis[:2])]
        rng.shuffle(moves)
        things = tuple(
            _thing(rng, colour, motion, ["small", "medium"]) for colour, motion in zip((a, b), moves, strict=True)
        )
        return Scene(things=things, background=background)
    others = (1 - curved) / 8
    likely = [1.5 * others] * 4 + [others, curved / 2, curved / 2, others]
    motion = str(rng.choice(MOTIONS, p=likely))
    return Scene(things=(_thing(rng, _pick(rng, colours), motion, list(SIZES)),), background=background)


def scenes(seed: int, *, held: bool = False, version: World = FIRST, **shares: float) -> Iterator[Scene]:
    """Endless random scenes: those for training, or (`held`) only the held-out combinations."""
    rng = np.random.default_rng(seed)
    while True:
        scene = random_scene(rng, version=version, **shares)
        if held_out(scene) == held:
            yield scene


def caption(scene: Scene, rng: np.random.Generator, *, full: bool = False) -> str:
    """A caption of the scene; wording, order and case vary. `full` states every attribute."""
    text: str
    if scene.kind == "sunset":
        text = _pick(
            rng,
            [
                "a beautiful sunset over the {w}",
                "sunset over the {w}",
                "the sun going down over the {w}",
                "a {w} at sunset",
                "a beautiful {w} with the setting sun",
            ],
        ).format(w=scene.water)
    elif scene.kind == "walk":
        who = _pick(rng, WALKERS[scene.walker])
        adjective = _pick(rng, ["", "", "young "])
        clothes = f" in {scene.clothes}" if scene.clothes and (full or rng.random() < 0.8) else ""
        place = {
            "park": ["in a park", "in the park", "through a park"],
            "city": ["in a city", "in the city", "through a city"],
            "beach": ["on a beach", "on the beach", "along a beach"],
        }[scene.place]
        when = " at night" if scene.time == "night" else ("" if scene.place != "city" else _pick(rng, ["", " by day"]))
        going = f" to the {scene.direction}" if rng.random() < 0.4 else ""
        text = f"a {adjective}{who}{clothes} {_pick(rng, ['walking', 'walking', 'walks', 'going for a walk'])} "
        text += f"{_pick(rng, place)}{when}{going}"
    else:
        text = _shapes_caption(scene, rng, full)
    u = rng.random()
    if u < 0.45:
        text = text[0].upper() + text[1:]
    elif u < 0.5:
        text = text.upper()
    elif u < 0.55:
        text = text.title()
    return text + str(_pick(rng, ["", "", "."]))


def _shapes_caption(scene: Scene, rng: np.random.Generator, full: bool) -> str:
    body = " and ".join(_thing_phrase(t, rng, full) for t in scene.things)
    if not full and rng.random() < 0.06:
        return body
    where = _pick(rng, BACKGROUND_PHRASES[scene.background])
    return f"{where}, {body}" if rng.random() < 0.3 else _pick(rng, ["{b} {w}", "{b}, {w}"]).format(b=body, w=where)


def _thing_phrase(t: Thing, rng: np.random.Generator, full: bool) -> str:
    size = _pick(rng, SIZE_WORDS[t.size]) + " " if t.size and (full or rng.random() < 0.85) else ""
    colour = t.colour + " " if full or rng.random() < 0.97 else ""
    noun = _pick(rng, SHAPES[t.shape])
    if t.motion in DIRECTIONS:
        where = {
            "left": ["left", "to the left"],
            "right": ["right", "to the right"],
            "up": ["up", "upwards"],
            "down": ["down", "downwards"],
        }[t.motion]
        speed = _pick(rng, SPEED_WORDS[t.speed])
        verb, goes = _pick(
            rng, [("moving", "moves"), ("sliding", "slides"), ("gliding", "glides"), ("flying", "flies")]
        )
        move = " ".join(w for w in ([verb, goes][int(rng.random() < 0.2)], speed, _pick(rng, where)) if w)
    else:
        move = _pick(
            rng,
            {
                "still": ["standing still", "not moving"],
                "bouncing": ["bouncing", "bouncing up and down", "that bounces"],
                "circling": ["circling", "moving in a circle", "going round"],
                "growing": ["growing", "getting bigger", "that grows"],
            }[t.motion],
        )
    if not full and rng.random() < 0.04:
        move = ""
    article = _pick(rng, ["a ", "a ", "a ", "the ", ""])
    return f"{article}{size}{colour}{noun} {move}".rstrip()


def _thing(rng: np.random.Generator, colour: str, motion: str, sizes: list[str]) -> Thing:
    return Thing(
        shape=_pick(rng, list(SHAPES)),
        colour=colour,
        size="" if motion == "growing" else _pick(rng, sizes),
        motion=motion,
        speed=_pick(rng, list(SPEEDS)) if motion in DIRECTIONS else "",
    )


def _pick(rng: np.random.Generator, options):  # type: ignore[no-untyped-def]
    return options[int(rng.integers(len(options)))]


# --- reading a prompt ---------------------------------------------------------------------------

WORD = re.compile(r"[a-z]+(?:-[a-z]+)*")


def words(text: str) -> list[str]:
    """Lower-case words of a text, in order: what the tokenizer sees."""
    return WORD.findall(text.lower())


@cache
def known_words() -> dict[str, tuple[str, ...]]:
    """Every word that the model learned, by category."""
    groups: dict[str, tuple[str, ...]] = {
        "shapes": tuple(w for ws in SHAPES.values() for w in ws),
        "colours": tuple(COLOURS),
        "sizes": tuple(w for ws in SIZE_WORDS.values() for w in ws),
        "motions": (
            "moving",
            "sliding",
            "gliding",
            "flying",
            "left",
            "right",
            "up",
            "down",
            "still",
            "bouncing",
            "circling",
            "growing",
            "slowly",
            "quickly",
            "fast",
            "walking",
        ),
        "backgrounds": tuple(BACKGROUNDS),
        "scenes": (
            *WATERS,
            *PLACES,
            *(w for ws in WALKERS.values() for w in ws),
            "young",
            "beautiful",
            "sunset",
            "night",
            "day",
        ),
    }
    named = {w for ws in groups.values() for w in ws}
    return {**groups, "others": tuple(w for w in _caption_words() if w not in named)}


@cache
def _caption_words() -> tuple[str, ...]:
    """The vocabulary of the caption grammar, found by drawing from it until nothing new can come."""
    rng = np.random.default_rng(0)
    return tuple(sorted({w for _ in range(6000) for w in words(caption(random_scene(rng, drawn=0.4), rng))}))


def vocabulary() -> tuple[str, ...]:
    """All known words, sorted."""
    return tuple(sorted({w for ws in known_words().values() for w in ws}))


def whose(scene: Scene, text: str) -> list[int]:
    """For each word of a scene's caption, the index of the thing that it is about; -1 for none.

    A caption names two things in the scene's order, joined by "and".
    """
    said = words(text)
    if len(scene.things) < 2:
        return [len(scene.things) - 1] * len(said)
    middle = said.index("and")
    return [0] * middle + [1] * (len(said) - middle)


def unknown_words(prompt: str) -> list[str]:
    """The words of a prompt that the model never learned, in order, each once."""
    known = set(vocabulary())
    found = re.findall(r"[^\W_]+(?:-[^\W_]+)*", prompt.lower())
    return list(dict.fromkeys(w for w in found if w not in known))


def parse(prompt: str) -> Scene:
    """The scene a prompt asks for; an attribute that is not said is "". Only shapes are read in detail."""
    text = " " + " ".join(words(prompt)) + " "
    if any(f" {w} " in text for w in WATERS):
        return Scene(kind="sunset", water=next(w for w in WATERS if f" {w} " in text))
    if any(f" {w} " in text for ws in WALKERS.values() for w in ws):
        return Scene(kind="walk")
    background = ""
    for name, phrases in BACKGROUND_PHRASES.items():
        for phrase in sorted(phrases, key=len, reverse=True):
            said = " " + " ".join(words(phrase)) + " "
            if said in text:
                background, text = name, text.replace(said, " ")
    nouns = {w: name for name, ws in SHAPES.items() for w in ws}
    sizes = {w: name for name, ws in SIZE_WORDS.items() for w in ws}
    speeds = {w: name for name, ws in SPEED_WORDS.items() for w in ws if w}
    motions = {
        "left": "left",
        "right": "right",
        "up": "up",
        "upwards": "up",
        "down": "down",
        "downwards": "down",
        "still": "still",
        "bouncing": "bouncing",
        "bounces": "bouncing",
        "circling": "circling",
        "round": "circling",
        "growing": "growing",
        "grows": "growing",
        "bigger": "growing",
    }
    text = (
        text.replace(" bouncing up and down ", " bouncing ")
        .replace(" not moving ", " still ")
        .replace(" in a circle ", " circling ")
    )
    things: list[Thing] = []
    size = colour = ""
    for word in words(text):
        if word in nouns:
            things.append(Thing(shape=nouns[word], colour=colour, size=size, motion=""))
            size = colour = ""
        elif word in sizes:
            size = sizes[word]
        elif word in COLOURS:
            colour = word
        elif word in motions and things:
            things[-1] = replace(things[-1], motion=motions[word])
        elif word in speeds and things:
            things[-1] = replace(things[-1], speed=speeds[word])
    return Scene(things=tuple(things), background=background)
