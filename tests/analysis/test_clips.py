"""What clips show and look like: each measure by hand, what the verifier says of runs, and what is said of both."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from tests.analysis.test_compare import write
from training import verify_rate
from wanlab.analysis import clips, metrics, table
from wanlab.analysis.compare import Comparison, Result, failures, measure, parse_condition
from wanlab.analysis.metrics.adherence import ATTRIBUTES, scene_of
from wanlab.analysis.verdict import check_conditions
from wanlab.embedded import verify, world, world_version
from wanlab.errors import UsageError
from wanlab.study.text import comma_separated

SCHEMA = Path(__file__).parents[2] / "docs" / "comparison.schema.json"
PROMPTS = (
    "a large red circle moving right on a black background",
    "a medium blue square moving down on a white background",
    "a large yellow star moving left in a starry night",
    "a medium green triangle moving up on a gray background",
)


def grey(*values: float) -> list[np.ndarray]:
    return [np.full((8, 16, 3), v) for v in values]


def test_flicker_by_hand() -> None:
    flicker = metrics.get("flicker")
    assert flicker(*grey(0, 1, 0)) == 2  # undone
    assert flicker(*grey(0.2, 0.4, 0.6)) == pytest.approx(0, abs=1e-12)  # even
    assert flicker(*grey(0.3, 0.3, 0.3)) == 0
    assert flicker(*grey(0, 0, 1)) == 2  # |1| over the mean of 0 and 1: a cut counts as much
    random = np.random.default_rng(0)
    noise = [random.standard_normal((64, 64, 3)) for _ in range(3)]
    assert flicker(*noise) == pytest.approx(math.sqrt(3), rel=0.02)  # deviations √6 and √2 of one frame's


def test_colour_and_contrast_by_hand() -> None:
    saturation, contrast = metrics.get("saturation"), metrics.get("contrast")
    frame = np.zeros((8, 16, 3))
    assert (saturation(frame), contrast(frame)) == (0, 0)
    frame[:, :8] = (0.5, 0.25, 0.25)  # S = .5 in one half, 0 in the black one
    assert saturation(frame) == pytest.approx(0.25)
    frame[:, :8] = 1
    assert (saturation(frame), contrast(frame)) == pytest.approx((0, 0.5))


def test_sharpness_by_hand() -> None:
    """Stripes a pixel wide: the Laplacian is 2 or -2, and at the two edges 1 or -1: (14·4 + 2·1)/16."""
    stripes = np.broadcast_to((np.arange(16) % 2)[None, :, None], (8, 16, 3)).astype(float)
    assert metrics.get("sharpness")(stripes) == pytest.approx(58 / 16)
    assert metrics.get("sharpness")(np.full((8, 16, 3), 0.7)) == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("width", [128, 640])
def test_motion_by_hand(width: int) -> None:
    """Waves that move on by 1.5 pixels; a wide frame is halved, and its flow counts in its own pixels all the same."""
    scale = 640 / width
    x, y = np.meshgrid(np.arange(width), np.arange(width // 2))

    def frame(moved: float) -> np.ndarray:
        wave = np.sin((x - moved) * scale / 15) * np.sin(y * scale / 17) / 4 + np.sin((x - moved + y) * scale / 40) / 4
        return np.repeat(0.5 + wave[..., None], 3, axis=2)

    assert metrics.get("motion")(frame(0), frame(1.5)) == pytest.approx(1.5, rel=0.1)
    assert metrics.get("motion")(frame(0), frame(0)) == 0
    assert math.isnan(metrics.get("motion")(frame(0), frame(0) * math.nan))


# --- of pairs --------------------------------------------------------------------------------------------------------


def clip(prompt: str, seed: int = 0) -> np.ndarray:
    return verify_rate.draw(world.parse(prompt), seed, frames=9, width=96, height=64)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list:
    """A draws the second prompt in place of the fourth, B all as asked; the last prompt cannot be judged."""
    folder = tmp_path_factory.mktemp("pairs")
    out = []
    for k, prompt in enumerate((*PROMPTS, "A woman walking in a park")):
        asked = PROMPTS[min(k, 3)]
        b = write(folder / f"b{k}.h5", prompt=prompt, video=clip(asked), world="1")
        a = write(folder / f"a{k}.h5", prompt=prompt, video=clip(PROMPTS[1] if k == 3 else asked), world="1")
        out.append(measure(a, b))
    return out


def test_what_is_said_of_pairs(pairs: list) -> None:
    """A blue square that moves down on white for a green triangle that moves up on grey: medium is right, four of five
    attributes are wrong. Three of four are followed, of the baseline all: 1 broke, exact p 1."""
    broken = pairs[3].figures
    assert [broken["adherence_" + a] for a in verify.ATTRIBUTES] == [0, 0, 1, 0, 0]
    assert (broken["adherence"], broken["adherence_baseline"], broken["adherence_change"]) == (0, 1, -1)
    assert all(math.isnan(pairs[4].figures[n]) for n in ("adherence", "adherence_baseline", "adherence_change"))
    result = Result(label="A", pairs=tuple(pairs))
    s = result.summary
    assert (s["adherence"].mean, s["adherence"].n, s["adherence_baseline"].mean) == (0.75, 4, 1)
    assert s["adherence_change"].mean == -0.25 and s["adherence_change"].low < -0.25 < 0 < s["adherence_change"].high
    counts = clips.followed(result)
    assert (counts["judged"], counts["not_judged"]) == (4, 1)
    assert counts["all"] == {"broke": 1, "better": 0, "mcnemar": 1} and counts["size"]["broke"] == 0
    assert clips.changed(result) == [f"broke       colour, shape, direction, background: {PROMPTS[3]!r}, seed 0"]
    said = clips.reading(result)
    assert "followed in 3 of 4 pairs, by the baseline in 4; 1 broke, 0 got better" in said
    assert said.endswith("; worse in colour 1, shape 1, direction 1, background 1")


def test_what_breaks_where_neither_clip_follows_its_prompt_is_said(pairs: list) -> None:
    """The baseline had the direction wrong; A has the colour wrong too, and the direction right."""
    change = {"adherence": 0.0, "adherence_baseline": 0.0, "adherence_change": 0.0}
    change |= {"adherence_colour_change": -1.0, "adherence_direction_change": 1.0}
    pair = replace(pairs[0], figures=pairs[0].figures | change)
    result = Result(label="A", pairs=(pair,))
    assert "0 broke, 0 got better" in clips.reading(result)
    assert clips.reading(result).endswith("; worse in colour 1; better in direction 1")
    name = clips.NAMES.get(pair.prompt) or repr(pair.prompt)
    assert clips.changed(result) == [f"worse       colour: {name}, seed 0", f"better      direction: {name}, seed 0"]


def test_it_is_in_every_export(pairs: list) -> None:
    comparison = Comparison(baseline="baseline", results=(Result(label="A", pairs=tuple(pairs)),))
    (row,) = table.clip_rows(comparison)
    assert row["followed"].startswith("75%\n") and row["A - B"].startswith("-25%\n")
    assert row["broke, better"] == "1, 0" and row["motion"] != "–"
    (flat,) = table.flat(comparison)
    assert flat["adherence"] == 0.75 and "motion_ratio_low" in flat
    assert "adherence_change" in comma_separated(table.pairs(comparison))
    assert "1 broke" in table.report(comparison, "", []) and "speed-up motion" not in table.report(comparison, "", [])
    said = [line for line in comparison.remarks() if "have no share followed" in line]
    assert len(said) == 1 and "1 pairs of 1 prompt" in said[0] and "woman" in said[0]
    content = comparison.to_dict() | {"compared": "", "answer": [], "missed": []}
    text = json.dumps(content).replace("NaN", "null")
    jsonschema.validate(json.loads(text), json.loads(SCHEMA.read_text()))


def test_conditions(pairs: list) -> None:
    result = Result(label="A", pairs=tuple(pairs))
    condition = parse_condition("adherence<0.95")
    assert failures([result], [condition]) == ["A: adherence is 0.75, < 0.95"]
    assert not failures([result], [parse_condition("adherence_size<0.95")])
    check_conditions([condition], runs=True)
    with pytest.raises(UsageError, match="a figure of runs"):
        check_conditions([condition], runs=False)


def test_whose_world(tmp_path: Path) -> None:
    """Of a model of another world, or of one that is not known here, there is no value, and nothing is said of it."""
    for k, said in enumerate(("", "77")):
        path = write(tmp_path / f"{k}.h5", prompt=PROMPTS[0], video=clip(PROMPTS[0]), world=said)
        result = Result(label="A", pairs=(measure(path, path),))
        assert math.isnan(result.pairs[0].figures["adherence"])
        comparison = Comparison(baseline="b", results=(result,))
        assert "followed" not in table.clip_rows(comparison)[0] and not clips.remarks((result,))
    older = write(tmp_path / "older.h5", prompt=PROMPTS[0], video=clip(PROMPTS[0]))  # `tiny`, before files said it
    assert measure(older, older).figures["adherence"] == 1
    (tmp_path / "world.json").write_text('{"version": "2"}')
    assert world_version(tmp_path) == "2"
    (tmp_path / "world.json").write_text("[]")
    assert (world_version(tmp_path), world_version(tmp_path / "none")) == ("", "")


@pytest.mark.parametrize(
    ("prompt", "judged"),
    [
        (PROMPTS[0], True),
        ("a red ball", True),
        ("a red ball and a dog moving left", False),
        ("A beautiful sunset over the ocean", False),
        ("on a black background", False),
        ("", False),
    ],
)
def test_which_prompts_are_judged(prompt: str, judged: bool) -> None:
    assert (scene_of(prompt) is not None) == judged
    assert set(verify.ERRORS) == set(ATTRIBUTES)


# --- beyond what seeds change ----------------------------------------------------------------------------------------


def with_contrast(pairs: list, a: list[float], b: list[float], seeds: int = 2) -> Result:
    rows = []
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        p = pairs[0]
        figures = dict(p.figures) | {"contrast": x, "contrast_baseline": y, "contrast_ratio": x / y}
        rows.append(
            type(p)(prompt=f"p{k // seeds}", seed=k % seeds, a=p.a, b=p.b, fidelity=p.fidelity, figures=figures)
        )
    return Result(label="A", pairs=tuple(rows))


def test_a_change_beyond_the_spread_over_seeds_is_said(pairs: list) -> None:
    """Baseline .2 and .3 by turns, relative deviations from .25 of .05/.45 and .05/.55; with one degree of freedom a
    prompt the spread is √(1/81 + 1/121) = .144, a factor of 1.34. Half of the contrast is beyond it, .9 is not."""
    b = [0.2, 0.3] * 8
    far, near = (with_contrast(pairs, [f * v for v in b], b) for f in (0.5, 0.9))
    assert clips.spread(far, "contrast") == pytest.approx(math.sqrt(1 / 81 + 1 / 121))
    assert "contrast 0.50x (0.50–0.50; a seed to its prompt's mean 1.34x)" in clips.beyond_seeds(far)
    assert clips.beyond_seeds(near) == ""
    assert near.summary["contrast_ratio"].high < 1  # it is a change all the same, as the table shows
    alone = with_contrast(pairs, [0.5 * v for v in b], b, seeds=1)
    assert math.isnan(clips.spread(alone, "contrast")) and clips.beyond_seeds(alone) == ""
