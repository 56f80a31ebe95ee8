"""The suite and its twin: what they hold, and that the open world can say it and the verifier judge it."""

from __future__ import annotations

from collections import Counter

import pytest

from wanlab.embedded import world
from wanlab.embedded.suite import HELD_OUT, SUITE, SUITES
from wanlab.embedded.world import DIRECTIONS, MOTIONS, PAIR_MOTIONS, Scene, Thing

HORIZONTAL, VERTICAL = {"left", "right"}, {"up", "down"}


def scenes(suite: str) -> list[Scene]:
    return [world.parse(p) for p in SUITES[suite].values()]


@pytest.mark.parametrize("suite", SUITES)
def test_every_prompt_is_one_of_the_open_world(suite: str) -> None:
    assert len(SUITES[suite]) == len(set(SUITES[suite].values())) == 32
    for prompt, scene in zip(SUITES[suite].values(), scenes(suite), strict=True):
        assert not world.unknown_words(prompt)
        for t in scene.things:
            assert t.shape and t.colour and t.motion and scene.background, prompt
            assert bool(t.size) == (t.motion != "growing"), prompt
            assert t.colour not in world.CLASHES[scene.background], prompt
            assert t.motion in (MOTIONS if len(scene.things) == 1 else PAIR_MOTIONS)
        if len(scene.things) == 2:
            assert scene.things[0].colour != scene.things[1].colour
            assert [t.size for t in scene.things].count("large") <= 1


@pytest.mark.parametrize("suite", SUITES)
def test_it_is_balanced(suite: str) -> None:
    every = scenes(suite)
    things = [t for s in every for t in s.things]
    assert Counter(len(s.things) for s in every) == {1: 16, 2: 13, 0: 3}
    assert {s.kind for s in every} == {"shapes", "walk", "sunset"}
    shares = {
        "shape": (7, 9, world.SHAPES),
        "colour": (4, 6, world.COLOURS),
        "size": (11, 16, world.SIZES),
    }
    for name, (least, most, values) in shares.items():
        counts = Counter(getattr(t, name) for t in things)
        assert all(least <= counts[v] <= most for v in values), (name, counts)
    assert set(Counter(s.background for s in every if s.things).values()) <= {4, 5}
    assert Counter(s.things[0].motion for s in every if len(s.things) == 1) == dict.fromkeys(MOTIONS, 2)
    speeds = Counter(t.speed for t in things if t.motion in DIRECTIONS)
    assert all(7 <= speeds[v] <= 12 for v in world.SPEEDS), speeds
    pairs = [s.things for s in every if len(s.things) == 2]
    assert sum(bool({t.motion for t in p} & HORIZONTAL and {t.motion for t in p} & VERTICAL) for p in pairs) >= 5
    assert sum("large" in (a.size, b.size) for a, b in pairs) >= 5
    assert sum(a.shape == b.shape for a, b in pairs) >= 3


def test_the_twin_shares_no_combination_and_is_held_out_of_training() -> None:
    def keys(t: Thing) -> tuple[str, ...]:
        return (t.shape, t.colour, t.size, t.motion)

    own, twin = ({keys(t) for s in scenes(suite) for t in s.things} for suite in SUITES)
    assert not own & twin and not set(SUITE) & set(HELD_OUT)
    seen = {n for suite in SUITES.values() for n, p in suite.items() if world.parse(p).things and not held_out(p)}
    assert seen == {"red circle right", "yellow star left"}


def held_out(prompt: str) -> bool:
    return world.held_out(world.parse(prompt))
