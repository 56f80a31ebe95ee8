"""VBench's names and scores: what it would find in the folder, and its JSON read back."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from wanlab.errors import UsageError, WanlabError
from wanlab.images import read_video
from wanlab.runfile import Field, RunWriter
from wanlab.spec import PolicySpec, RunSpec
from wanlab.study import vbench

LONG = "a very long prompt / with a slash, " * 8


def write(path, prompt, seed, *policies, value=100):
    spec = RunSpec(model="tiny", prompt=prompt, seed=seed, policies=tuple(PolicySpec.parse(p) for p in policies))
    path.parent.mkdir(exist_ok=True)
    dims = ("frame", "height", "width", "rgb")
    with RunWriter(
        path, spec_json=spec.to_json(), digest="0", attrs={"fps": 16}, fields=[Field("sigma", (), "float64", "1", "s")]
    ) as w:
        w.step(0, {"sigma": np.asarray(1.0)})
        frames = np.full((3, 16, 32, 3), value, np.uint8)
        w.finish({Field("video", dims, "uint8", "1", "frames"): frames}, {})


@pytest.fixture(scope="module")
def handed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vbench")
    for seed in (7, 3):
        write(folder / "runs" / f"b{seed}.h5", "a red ball-2", seed)
    write(folder / "runs" / "copy.h5", "a red ball-2", 7)
    write(folder / "runs" / "long.h5", LONG, 3)
    write(folder / "runs" / "c7.h5", "a red ball-2", 7, "cfg:last=5", value=200)
    return folder / "out", vbench.export([folder / "runs"], folder / "out")


def prompt_of(name):
    """VBench's get_prompt_from_filename: the stem without -NUMBER."""
    return re.sub(r"-\d+$", "", Path(name).stem)


def test_films_have_vbenchs_names(handed):
    out, rows = handed
    assert sorted(p.name for p in out.iterdir()) == sorted(
        ["baseline", "baseline.prompts.json", "cfg-last=5", "cfg-last=5.prompts.json", "manifest.json"]
    )
    assert {p.name for p in (out / "cfg-last=5").iterdir()} == {"a red ball-2-1.mp4"}  # the seed's place, as below
    names = {r["film"]: (r["prompt"], r["seed"]) for r in rows}
    assert names["baseline/a red ball-2-0.mp4"] == ("a red ball-2", 3)
    assert names["baseline/a red ball-2-1.mp4"] == ("a red ball-2", 7)
    assert len(rows) == 4  # the copy counts once
    assert {prompt_of(r["film"]) for r in rows if r["prompt"] != LONG} == {"a red ball-2"}
    assert json.loads((out / "manifest.json").read_text())["films"] == rows
    with read_video(out / "cfg-last=5" / "a red ball-2-1.mp4") as (meta, frames):
        found = list(frames)
    assert len(found) == 3 and meta["size"] == (32, 16) and abs(float(found[0].mean()) - 200) < 4


def test_a_prompt_that_is_no_files_name_is_in_the_prompt_file(handed):
    out, _ = handed
    prompts = json.loads((out / "baseline.prompts.json").read_text())
    assert set(prompts) == {p.name for p in (out / "baseline").iterdir()}  # VBench asks for one of each film
    assert LONG in prompts.values()


def results(folder, method, values, dimension="subject_consistency", overall=0.9):
    films = [{"video_path": f"/far/{method}/p{k}-{s}.mp4", "video_results": v} for (k, s), v in values.items()]
    path = folder / f"{method}_eval_results.json"
    path.write_text(json.dumps({dimension: [overall, films]}))
    return path


def test_scores_come_back_over_prompts_with_intervals(tmp_path):
    """Five prompts of two seeds: n is 5. The means of prompts are .91 to .95, Student's half-width for a difference of
    exactly .01 in every film is 0."""
    base = {(k, s): 0.9 + 0.01 * k + (0.002 if s else -0.002) for k in range(1, 6) for s in (0, 1)}
    results(tmp_path, "baseline", base)
    results(tmp_path, "half", {k: v - 0.01 for k, v in base.items()})
    rows = {r["method"]: r for r in vbench.scores(tmp_path)}
    assert rows["baseline"]["figure"] == "vbench.subject_consistency"
    assert (rows["baseline"]["n"], rows["baseline"]["units"], rows["baseline"]["films"]) == (5, "prompts", 10)
    assert rows["baseline"]["mean"] == pytest.approx(0.93)
    assert rows["baseline"]["low"] < 0.93 < rows["baseline"]["high"] < 1
    assert math.isnan(rows["baseline"]["difference"])
    own = rows["half"]
    assert (own["difference"], own["difference_low"], own["difference_high"]) == pytest.approx((-0.01,) * 3)
    assert vbench.table([own])[0]["against the baseline"].startswith("-0.0100")


def test_scales_and_truths(tmp_path):
    """imaging_quality is of 100 for a film and of 1 over all; dynamic_degree is true or false."""
    path = results(tmp_path, "a", {(k, 0): 60.0 + k for k in range(4)}, "imaging_quality", 0.615)
    assert vbench.scores(path)[0]["mean"] == pytest.approx(vbench.scores(path)[0]["VBench says"])
    path = results(tmp_path, "a", {(k, 0): k > 0 for k in range(4)}, "dynamic_degree", 0.75)
    assert vbench.scores(path)[0]["mean"] == 0.75


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"a": 1}',
        '{"a": [1, [{"video_path": "x"}]]}',
        '{"a": [1, [{"video_path": "x", "video_results": 7}]]}',
    ],
)
def test_what_vbench_does_not_write_is_refused(text, tmp_path):
    path = tmp_path / "x_eval_results.json"
    path.write_text(text)
    with pytest.raises(WanlabError, match="is not what VBench writes"):
        vbench.scores(path)


def test_nothing_to_hand_over(tmp_path):
    with pytest.raises(UsageError, match="there is no run"):
        vbench.export([tmp_path], tmp_path / "out")
    with pytest.raises(UsageError, match="ends in _eval_results"):
        vbench.scores(tmp_path)
