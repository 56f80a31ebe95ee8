"""Videos paired by name, and folders of images as videos."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wanlab.analysis.fidelity import Clip
from wanlab.analysis.key import Key
from wanlab.errors import UsageError, WanlabError
from wanlab.images import frames_in, read_video
from wanlab.study.compare import by_key, compare_files
from wanlab.study.folders import is_folder_of_videos, match, prompt_and_seed, videos_in
from wanlab.study.runners.local import Watcher
from wanlab.video import ffmpeg, write_mp4

from ..analysis.test_compare import write as run_file


def images(folder: Path, values: list[int], name: str = "frame_{}.png") -> Path:
    folder.mkdir(parents=True)
    for k, value in enumerate(values):
        Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(folder / name.format(k))
    return folder


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("a red ball-3", ("a red ball", 3)),
        ("a red ball", ("a red ball", 0)),
        ("t-shirt", ("t-shirt", 0)),
        ("a-b-12", ("a-b", 12)),
        ("-3", ("-3", 0)),
        ("x-²", ("x-²", 0)),
    ],
)
def test_names_give_prompt_and_seed(name: str, meaning: tuple[str, int]) -> None:
    assert prompt_and_seed(name) == meaning


def test_images_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    folder = images(tmp_path / "clip", list(range(0, 120, 10)))
    assert [p.name for p in frames_in(folder)] == [f"frame_{k}.png" for k in range(12)]
    with read_video(folder) as (meta, frames):
        assert meta["size"] == (16, 16) and [int(f[0, 0, 0]) for f in frames] == list(range(0, 120, 10))


def test_two_folders_of_clips_with_an_interval(tmp_path: Path) -> None:
    """Grey values 10 apart: an error of 10/255, PSNR 20 log10(255/10) = 28.13 dB, in each of four prompts."""
    for k, prompt in enumerate(("a ball", "a cube", "a cone", "a ring")):
        images(tmp_path / "a" / f"{prompt}-1", [50 + k] * 5)
        images(tmp_path / "b" / f"{prompt}-1", [60 + k] * 5)
    images(tmp_path / "a" / "alone-1", [0] * 5)
    assert is_folder_of_videos(tmp_path / "a") and not is_folder_of_videos(tmp_path / "a" / "alone-1")
    result = compare_files(tmp_path / "a", tmp_path / "b", tmp_path / "out")
    (row,) = result.rows
    assert (
        row["psnr"] == pytest.approx(28.1308, abs=1e-4) and row["n"] == 4 and row["abs_mean"] == pytest.approx(10 / 255)
    )
    assert row["psnr_low"] <= row["psnr"] <= row["psnr_high"]
    assert [(p["prompt"], p["seed"]) for p in result.pairs] == [
        ("a ball", 1),
        ("a cone", 1),
        ("a cube", 1),
        ("a ring", 1),
    ]
    assert any("1 of 5 videos" in r and "alone-1" in r for r in result.remarks)
    assert (tmp_path / "out" / "comparison.json").exists() and len(
        list((tmp_path / "out" / "comparisons").glob("*.json"))
    ) == 1


def test_the_film_of_a_pair_is_no_clip_of_its_methods_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    run_file(tmp_path / "a" / "a_ball-s1.h5")
    for name in ("side_by_side.mp4", "another.mp4"):
        (tmp_path / "a" / name).touch()
        (tmp_path / "films" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "films" / name).touch()
    assert set(videos_in(tmp_path / "a")) == {"a_ball-s1", "another"}
    assert set(videos_in(tmp_path / "films")) == {"side_by_side", "another"}  # nobody's folder but the user's


def test_a_film_against_images(tmp_path: Path) -> None:
    images(tmp_path / "b" / "ball-0", [128] * 5)
    (tmp_path / "a").mkdir()
    write_mp4(tmp_path / "a" / "ball-0.mp4", np.full((5, 16, 16, 3), 128, np.uint8), 16)
    (row,) = compare_files(tmp_path / "a", tmp_path / "b", tmp_path / "out").rows
    assert row["abs_max"] <= 2 / 255  # what H.264 makes of one grey value


def test_a_pair_that_cannot_be_compared_is_left_out(tmp_path: Path) -> None:
    images(tmp_path / "a" / "x-0", [1] * 5)
    images(tmp_path / "b" / "x-0", [2] * 5)
    images(tmp_path / "a" / "y-0", [1] * 5)
    images(tmp_path / "b" / "y-0", [2] * 4)
    failures: list[Path] = []

    class Listener(Watcher):
        def fail(self, place: Path, error: WanlabError) -> None:
            failures.append(place)

    result = compare_files(tmp_path / "a", tmp_path / "b", tmp_path / "out", watcher=Listener())
    assert (
        result.failed == (tmp_path / "a" / "y-0",) and failures == [tmp_path / "a" / "y-0"] and len(result.pairs) == 1
    )


def test_a_damaged_run_file_leaves_the_other_pairs(tmp_path: Path) -> None:
    for name in ("x-0", "y-0"):
        images(tmp_path / "a" / name, [1] * 5)
    images(tmp_path / "b" / "x-0", [2] * 5)
    (tmp_path / "b" / "y-0.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(1000))
    result = compare_files(tmp_path / "a", tmp_path / "b", tmp_path / "out")
    assert result.failed == (tmp_path / "a" / "y-0",) and [p["prompt"] for p in result.pairs] == ["x"]


def test_progress_of_a_single_pair_is_told_by_frame_and_ended(tmp_path: Path) -> None:
    images(tmp_path / "a", [1] * 3)
    images(tmp_path / "b", [2] * 3)
    images(tmp_path / "short", [2] * 2)
    told: list[Any] = []

    class Listener(Watcher):
        def look(self, frames: int) -> None:
            told.append(frames)

        def measure(self, done: int, total: int) -> None:
            told.append((done, total))

        def end(self) -> None:
            told.append("end")

    compare_files(tmp_path / "a", tmp_path / "b", tmp_path / "out", watcher=Listener())
    assert told == [1, 2, 3, (1, 1), "end"]
    told.clear()
    with pytest.raises(UsageError, match="differ in length"):
        compare_files(tmp_path / "a", tmp_path / "short", tmp_path / "out", watcher=Listener())
    assert told[-1] == "end"


def test_clips_of_one_name_are_told_apart_and_a_remark_is_said_once(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for k in range(3):
            film = tmp_path / folder / f"ball-{k}.mp4"
            command = [ffmpeg(), "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=32x32:rate=16"]
            subprocess.run([*command, "-frames:v", "2", "-c:v", "libx264", "-pix_fmt", "yuv420p", film], check=True)
    result = compare_files(tmp_path / "a", tmp_path / "b", tmp_path / "out")
    (said,) = (r for r in result.remarks if "colour" in r)
    names = [str(Path(folder) / "ball-0.mp4") for folder in "ab"]
    assert said.startswith(f"{names[0]} has no colour tags and {names[1]} has no colour tags")
    assert said.endswith("(and 2 more pairs)")
    assert not any("speed-up" in r for r in result.remarks)  # nobody sampled anything
    write_mp4(tmp_path / "a" / "ball-0.mp4", np.zeros((3, 32, 32, 3), np.uint8), 16)
    with pytest.raises(UsageError, match=re.escape(f"{names[0]} has 3 frames, {names[1]} 2")):
        compare_files(tmp_path / "a" / "ball-0.mp4", tmp_path / "b" / "ball-0.mp4", tmp_path / "out")


def test_films_of_another_tool_against_runs_are_paired_by_prompt_and_seed(tmp_path: Path) -> None:
    """wanlab names run files by what made them, which no other tool, and no other method, does alike."""
    for folder in ("films", "runs", "others"):
        (tmp_path / folder).mkdir()
    for seed in (0, 1):
        for folder, name in (("runs", f"x-s{seed}"), ("others", f"y-s{seed}")):
            made = run_file(tmp_path / folder / f"{name}.h5", prompt="a ball", seed=seed, value=0.5)
        write_mp4(tmp_path / "films" / f"a ball-{seed}.mp4", np.full((13, 16, 16, 3), 138, np.uint8), 16)
    write_mp4(tmp_path / "films" / "a ball-2.mp4", np.zeros((13, 16, 16, 3), np.uint8), 16)
    result = compare_files(tmp_path / "films", tmp_path / "runs", tmp_path / "out")
    assert [(p["prompt"], p["seed"]) for p in result.pairs] == [("a ball", 0), ("a ball", 1)]
    found = [(m.a.name, m.b.name) for m in match(tmp_path / "films", tmp_path / "runs")[0]]
    assert found == [("a ball-0.mp4", "x-s0.h5"), ("a ball-1.mp4", "x-s1.h5")]
    # 138 of 255 against .5: 10.5/255, less what H.264 leaves of one grey value
    assert result.rows[0]["abs_mean"] == pytest.approx(10.5 / 255, abs=2 / 255)
    assert any("1 of 3 videos" in r and "a ball-2" in r for r in result.remarks)
    assert len(match(tmp_path / "others", tmp_path / "runs")[0]) == 2
    made.with_name("z.h5").write_bytes(made.read_bytes())  # two of one prompt and seed: no one is guessed
    assert [m.seed for m in match(tmp_path / "films", tmp_path / "others")[0]] == [0]


def test_requests_that_cannot_be(tmp_path: Path) -> None:
    images(tmp_path / "a" / "x-0", [1])
    images(tmp_path / "b" / "y-0", [1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no video has the same name"):
        match(tmp_path / "a", tmp_path / "b")
    with pytest.raises(UsageError, match="holds no videos"):
        match(tmp_path / "a", tmp_path / "empty")
    with pytest.raises(UsageError, match="is a folder of videos"):
        compare_files(tmp_path / "a", tmp_path / "b" / "y-0", tmp_path / "out")
    with pytest.raises(WanlabError, match="there is no"):
        compare_files(tmp_path / "a", tmp_path / "absent", tmp_path / "out")


def test_bad_images(tmp_path: Path) -> None:
    folder = images(tmp_path / "clip", [1, 2])
    (folder / "frame_9.png").write_bytes(b"no image")
    with pytest.raises(WanlabError, match=r"cannot read the image .*frame_9.png"), Clip.of(folder).read() as frames:
        list(frames)
    (folder / "frame_9.png").unlink()
    Image.fromarray(np.zeros((8, 16, 3), np.uint8)).save(folder / "frame_9.png")
    with pytest.raises(UsageError, match="is 16x8"), Clip.of(folder).read() as frames:
        list(frames)


def test_unlike_runs_of_a_folder_are_not_pooled() -> None:
    """Twice the same prompts, at 6 and at 3 steps; then of A alone, then of a baseline of another guidance."""

    def pairs(*keys: tuple[Key, Key] | None) -> list[Any]:
        return [SimpleNamespace(keys=k, prompt=f"p{n}") for k in keys for n in range(2)]

    six, three, free = Key("tiny", 6, 9), Key("tiny", 3, 9), Key("tiny", 6, 9, guidance="1")
    assert [r.label for r in by_key("a", pairs((six, six)))] == ["a"] == [r.label for r in by_key("a", pairs(None))]
    own = by_key("a", pairs((six, six), (three, three)))
    assert [(r.label, len(r.pairs)) for r in own] == [
        ("a, tiny, 6 steps, 9 frames", 2),
        ("a, tiny, 3 steps, 9 frames", 2),
    ]
    other = by_key("a", pairs((six, six), (six, free)))
    assert [r.label for r in other] == [
        "a, tiny, 6 steps, 9 frames, against tiny, 6 steps, 9 frames, guidance ",
        "a, tiny, 6 steps, 9 frames, against tiny, 6 steps, 9 frames, guidance 1",
    ]
