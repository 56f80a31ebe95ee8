"""The verifier on rendered clips: right on what is there, wrong on what is not, sensible on nonsense."""

from __future__ import annotations

import time
from itertools import islice

import numpy as np
import pytest
import torch

from training import render, verify_rate
from wanlab.embedded import world
from wanlab.embedded.verify import ATTRIBUTES, Observation, SeenThing, Verdict, judge, observe, shape_distance
from wanlab.embedded.world import Scene, Thing

OPEN = world.WORLDS["2"]


def draw(scene: Scene, seed: int = 0) -> np.ndarray:
    return verify_rate.draw(scene, seed)


def shares(count: int, seed: int, worse: bool, version: world.World) -> tuple[dict[str, float], dict[str, float]]:
    """Share of right verdicts per attribute: on what is there, and on what is not."""
    out = verify_rate.rates(count, seed, worse, version)
    return {a: float(np.mean(v)) for a, v in out.right.items()}, {a: float(np.mean(v)) for a, v in out.caught.items()}


@pytest.mark.parametrize("version", world.WORLDS.values(), ids=lambda w: w.version)
@pytest.mark.parametrize(("worse", "bar"), [(False, 0.99), (True, 0.97)], ids=["clean", "degraded"])
def test_right_on_what_is_there_and_wrong_on_what_is_not(worse: bool, bar: float, version: world.World) -> None:
    right, wrong = shares(60 if version == world.FIRST else 32, 41, worse, version)
    assert min(right.values()) >= bar, right
    assert min(wrong.values()) >= 0.99, wrong


@pytest.mark.slow
@pytest.mark.parametrize("version", world.WORLDS.values(), ids=lambda w: w.version)
@pytest.mark.parametrize(("worse", "bar"), [(False, 0.99), (True, 0.97)], ids=["clean", "degraded"])
def test_right_on_many(worse: bool, bar: float, version: world.World) -> None:
    right, wrong = shares(480, 43, worse, version)
    assert min(right.values()) >= bar, right
    assert min(wrong.values()) >= 0.99, wrong


def test_an_open_world_s_shadow_and_details_are_no_things() -> None:
    """Each background alone, with all that no caption names: nothing is seen in it."""
    for k, name in enumerate(world.BACKGROUNDS):
        video = verify_rate.draw(Scene(background=name), 900 + k, version=OPEN)
        assert video.std(axis=(1, 2)).mean() > 0.005  # there is something to overlook
        assert observe(video, OPEN) == Observation(background=name, things=())


@pytest.mark.slow
def test_speed() -> None:
    videos = [verify_rate.draw(s, k, version=OPEN) for k, s in enumerate(islice(world.scenes(3, drawn=0), 12))]
    observe(videos[0], OPEN)
    start = time.process_time()
    for video in videos:
        observe(video, OPEN)
    assert (time.process_time() - start) / len(videos) < 0.3


def test_measures_a_square_over_the_edge() -> None:
    """Drawn by hand: a white 14 px square on black that moves right by 2 px a frame over the right edge."""
    video = np.full((21, 80, 144, 3), 0.03, np.float32)
    for t in range(21):
        columns = (120 + 2 * t + np.arange(14)) % 144
        video[t, 33:47, columns] = 0.97
    (seen,) = observe(video).things
    assert (seen.colour, seen.shape, seen.size, seen.motion) == ("white", "square", "small", "right")
    assert seen.radius == pytest.approx(14 / np.sqrt(np.pi), abs=0.01)
    assert seen.speed == pytest.approx(2, abs=1e-3)
    assert np.diff(seen.track[:, 0]) == pytest.approx(np.full(20, 2), abs=1e-3)
    assert seen.track[0] % (144, 80) == pytest.approx((127, 40), abs=1e-3)


@pytest.mark.parametrize("shape", world.SHAPES)
def test_shapes_are_those_of_the_renderer(shape: str) -> None:
    y, x = np.meshgrid(np.linspace(-30, 30, 61), np.linspace(-30, 30, 61), indexing="ij")
    index, radius = torch.tensor(list(world.SHAPES).index(shape)), torch.tensor(13.0, dtype=torch.float64)
    theirs = render.shape_distance(index, torch.from_numpy(x), torch.from_numpy(y), radius)
    assert shape_distance(shape, x / 13, y / 13) * 13 == pytest.approx(theirs.numpy(), abs=1e-5)


def test_shapes_have_one_area() -> None:
    y, x = np.meshgrid(*[np.arange(-2, 2, 0.005)] * 2, indexing="ij")
    for shape in world.SHAPES:
        assert (shape_distance(shape, x, y) < 0).sum() * 0.005**2 == pytest.approx(np.pi, rel=0.005), shape


# --- judging --------------------------------------------------------------------------------------


def seen_thing(colour: str, shape: str, size: str, motion: str) -> SeenThing:
    measured = {"rgb": (0, 0, 0), "radius": 8, "speed": 0, "shape_fit": 1, "track": None, "radii": None}
    return SeenThing(colour=colour, shape=shape, size=size, motion=motion, **measured)  # type: ignore[arg-type]


def asked_thing(colour: str, shape: str, size: str, motion: str) -> Thing:
    return Thing(colour=colour, shape=shape, size=size, motion=motion)


RED, BLUE = ("red", "circle", "small", "left"), ("blue", "star", "medium", "right")


def verdict(asked: list[tuple[str, ...]], seen: list[tuple[str, ...]], others: int = 0) -> list[bool | None]:
    scene = Scene(things=tuple(asked_thing(*a) for a in asked), background="sky")
    v = judge(Observation(background="sky", things=tuple(seen_thing(*s) for s in seen), others=others), scene)
    return [getattr(v, a) for a in ATTRIBUTES]


def test_two_things_in_any_order() -> None:
    assert verdict([RED, BLUE], [BLUE, RED]) == [True] * 5


def test_things_are_matched_by_colour_first() -> None:
    # By shape, size and motion the seen things fit the other way round.
    assert verdict([RED, BLUE], [("blue", *RED[1:]), ("red", *BLUE[1:])]) == [True, False, False, False, True]


def test_one_of_two_wrong_is_wrong() -> None:
    assert verdict([RED, BLUE], [RED, ("blue", "star", "medium", "left")]) == [True, True, True, False, True]


def test_a_missing_thing() -> None:
    assert verdict([RED, BLUE], [BLUE]) == [False, False, False, False, True]
    assert verdict([RED], []) == [False, False, False, False, True]


def test_an_extra_thing_spoils_colour_and_shape() -> None:
    assert verdict([RED], [RED, BLUE]) == [False, False, True, True, True]
    assert verdict([RED, BLUE], [RED, BLUE], others=1) == [False, False, True, True, True]


def test_what_is_not_asked_is_not_judged() -> None:
    assert verdict([("", "circle", "", "")], [RED]) == [None, True, None, None, True]
    assert verdict([("red", "circle", "large", "growing")], [("red", "circle", "", "growing")])[2] is None
    scene = Scene(things=(asked_thing(*RED),))
    assert judge(Observation(background="sky", things=(seen_thing(*RED),)), scene).background is None
    drawn = judge(Observation(background="sky", things=()), Scene(kind="sunset", water="sea"))
    assert drawn == Verdict(colour=None, shape=None, size=None, direction=None, background=None)
    assert drawn.right


# --- odd clips ------------------------------------------------------------------------------------


def one(shape: str = "star", colour: str = "red", motion: str = "left") -> Scene:
    return Scene(things=(Thing(shape=shape, colour=colour, size="medium", motion=motion),), background="sky")


def test_nothing_there() -> None:
    assert observe(np.full((9, 80, 144, 3), 0.5, np.float32)) == Observation(background="gray", things=())
    noise = observe(np.random.default_rng(0).random((9, 80, 144, 3)))
    assert noise.background == "" and all(t.shape == "" for t in noise.things)
    assert not judge(noise, one()).right
    assert not judge(observe(np.full((9, 80, 144, 3), np.nan, np.float32)), one()).right


def test_a_colour_between_two_is_none() -> None:
    red, green = draw(one(colour="red")), draw(one(colour="green"))
    (seen,) = observe((red + green) / 2).things
    assert (seen.colour, seen.shape, seen.motion) == ("", "star", "left")


def test_a_thing_that_changes_colour_is_two() -> None:
    red, green = draw(one(colour="red")), draw(one(colour="green"))
    answer = judge(observe(np.concatenate([red[:25], green[25:]])), one())
    assert answer.colour is False and answer.shape is False


def test_a_thing_that_turns_or_vanishes_has_no_direction() -> None:
    video = draw(one())
    empty = draw(Scene(background="sky"))
    for broken in (np.concatenate([video[:25], video[24::-1]]), np.concatenate([video[:25], empty[25:]])):
        answer = judge(observe(broken), one())
        assert answer.colour and answer.shape and answer.size and answer.direction is False


def test_things_that_touch_are_told_apart_by_colour() -> None:
    video = np.full((17, 80, 144, 3), 0.5, np.float32)
    video[:, 30:54, 40:64] = world.COLOURS["red"]
    video[:, 30:54, 64:88] = world.COLOURS["blue"]
    seen = observe(video)
    assert sorted(t.colour for t in seen.things) == ["blue", "red"]
    assert all((t.shape, t.size, t.motion) == ("square", "medium", "still") for t in seen.things)


def test_things_of_one_colour_are_told_apart_by_place() -> None:
    a, b = asked_thing("red", "circle", "small", "left"), asked_thing("red", "cross", "small", "right")
    scene = Scene(things=(a, b), background="night")
    assert judge(observe(draw(scene)), scene).right


@pytest.mark.parametrize("video", [np.zeros((9, 80, 144), np.float32), np.zeros((9, 80, 144, 3), np.uint8)])
def test_another_layout_is_refused(video: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\[T,H,W,3\]"):
        observe(video)
