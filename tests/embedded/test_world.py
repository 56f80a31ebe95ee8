"""The world: what scenes there are, how they are said, and that a prompt is read back as it was meant."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from wanlab.embedded import world
from wanlab.embedded.world import Scene, Thing

SCENES = list(islice(world.scenes(7, drawn=0), 400))


def key(thing: Thing) -> tuple[str, ...]:
    return (thing.shape, thing.colour, thing.size, thing.motion, thing.speed)


def test_full_captions_are_read_back() -> None:
    rng = np.random.default_rng(0)
    for scene in SCENES:
        text = world.caption(scene, rng, full=True)
        read = world.parse(text)
        assert sorted(map(key, read.things)) == sorted(map(key, scene.things)), text
        assert read.background == scene.background, text


def test_short_captions_say_nothing_false() -> None:
    rng = np.random.default_rng(1)
    left_out = 0
    for scene in SCENES:
        text = world.caption(scene, rng)
        read = world.parse(text)
        assert read.background in ("", scene.background), text
        assert len(read.things) == len(scene.things), text
        truths = list(scene.things)
        for said in read.things:
            fits = [t for t in truths if all(a in ("", b) for a, b in zip(key(said), key(t), strict=True))]
            assert fits, text
            left_out += key(said) != key(fits[0])
    assert left_out > 20  # some captions leave something out


def test_drawn_scenes_are_known_by_their_kind() -> None:
    rng = np.random.default_rng(2)
    for scene in islice(world.scenes(3, drawn=1.0), 60):
        assert world.parse(world.caption(scene, rng)).kind == scene.kind


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        ("A woman walking in a park", "walk"),
        ("A beautiful sunset over the ocean", "sunset"),
        ("A young woman walking in a city at night", "walk"),
    ],
)
def test_the_usual_prompts_are_known(prompt: str, kind: str) -> None:
    assert world.parse(prompt).kind == kind
    assert world.unknown_words(prompt) == []


def test_reading_by_hand() -> None:
    read = world.parse("At sunset, a HUGE green ball that bounces and the little blue plus gliding slowly to the left.")
    assert read == Scene(
        things=(
            Thing(shape="circle", colour="green", size="large", motion="bouncing"),
            Thing(shape="cross", colour="blue", size="small", motion="left", speed="slow"),
        ),
        background="sunset",
    )
    assert world.parse("a square not moving").things == (Thing(shape="square", colour="", size="", motion="still"),)
    assert world.parse("") == Scene()


def test_unknown_words_are_named_once() -> None:
    assert world.unknown_words("A red Zeppelin moving left, a zeppelin über 2 squares") == [
        "zeppelin",
        "über",
        "2",
        "squares",
    ]


def test_captions_use_known_words_only() -> None:
    rng = np.random.default_rng(5)
    known = set(world.vocabulary())
    for scene in islice(world.scenes(11, drawn=0.3), 300):
        text = world.caption(scene, rng)
        assert set(world.words(text)) <= known and world.unknown_words(text) == [], text


def test_captions_vary_in_wording_order_and_case() -> None:
    rng = np.random.default_rng(0)
    scene = next(s for s in SCENES if len(s.things) == 2)
    texts = {world.caption(scene, rng) for _ in range(50)}
    assert len(texts) > 40
    assert any(t.isupper() for t in (world.caption(scene, rng) for _ in range(200)))
    assert len({tuple(t.colour for t in world.parse(text).things) for text in texts}) > 1  # either thing first


def test_scenes_are_fixed_by_their_seed_and_split_in_two() -> None:
    assert SCENES[:50] == list(islice(world.scenes(7, drawn=0), 50)) != list(islice(world.scenes(8, drawn=0), 50))
    held = list(islice(world.scenes(7, held=True, drawn=0), 50))
    assert all(map(world.held_out, held)) and not any(map(world.held_out, SCENES))


def test_one_combination_in_eight_is_held_out() -> None:
    rng = np.random.default_rng(0)
    one = [world.random_scene(rng, drawn=0, pairs=0) for _ in range(2000)]
    assert np.mean([world.held_out(s) for s in one]) == pytest.approx(1 / 8, abs=0.03)
    assert not world.held_out(Scene(kind="sunset", water="sea"))


def test_things_stand_out() -> None:
    for scene in SCENES:
        colours = [t.colour for t in scene.things]
        assert len(set(colours)) == len(colours)
        assert not set(colours) & set(world.CLASHES[scene.background])
        assert all((t.size == "") == (t.motion == "growing") for t in scene.things)


def test_background_profile() -> None:
    night = world.background_profile("night", 81)
    assert night[40] == pytest.approx((0.075, 0.08, 0.26))  # half way between its two stops
    meadow = world.background_profile("meadow", 100, horizon=0.6)
    assert meadow[59, 2] > 0.9 and meadow[61, 2] < 0.4  # sky above the horizon at row 60, grass below
    assert np.all(world.background_profile("gray", 16) == 0.5)
