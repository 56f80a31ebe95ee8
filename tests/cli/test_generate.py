"""`wanlab generate` and `wanlab inspect` as their users run them, on a small checkpoint with random weights."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from wanlab.runfile import Run
from wanlab.study.requests import parse_seeds

SMALL = ("--size", "32x16", "--frames", "9", "--steps", "4")


def wanlab(*args: str, stdin: str | None = None, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wanlab", *args],
        capture_output=True,
        text=True,
        input=stdin,
        env={**os.environ, **(env or {})},
    )


@pytest.fixture(scope="module")
def made(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("made")
    prompts = '{"prompt": "a red [bold]ball[/bold] $\\\\frac{", "seed": [3, 4]}\na blue ball\n'
    done = wanlab(
        "generate",
        "--model",
        str(checkpoint),
        *SMALL,
        "--prompts",
        "-",
        "--seed",
        "7",
        "--out",
        str(folder),
        "--gif",
        "--record",
        "all",
        stdin=prompts,
    )
    return folder, done


def test_a_pipe_gets_the_files_paths_and_nothing_else(made: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = made
    assert done.returncode == 0, done.stderr
    paths = [Path(p) for p in done.stdout.splitlines()]
    assert len(paths) == 3 and all(p.parent == folder for p in paths)
    with Run(paths[0]) as run:
        assert (run.spec.prompt, run.spec.seed, run.spec.frames) == ("a red [bold]ball[/bold] $\\frac{", 3, 9)
    assert [Run(p).spec.seed for p in paths] == [3, 4, 7]


def test_every_run_has_its_video_pictures_and_error_analysis(
    made: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = made
    for line in done.stdout.splitlines():
        path = Path(line)
        frames = list(imageio_ffmpeg.read_frames(str(path.with_suffix(".mp4"))))
        assert frames[0]["size"] == (32, 16) and len(frames) - 1 == 9
        assert path.with_suffix(".gif").read_bytes()[:4] == b"GIF8"
        assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
        analysis = folder / "error_analysis" / path.stem
        assert (analysis / "cfg_error_visualization.png").stat().st_size > 10_000
        assert "d_k = v_cond - v_uncond" in (analysis / "error_analysis_report.txt").read_text()


def test_a_complete_run_is_not_computed_again(
    made: tuple[Path, subprocess.CompletedProcess[str]], checkpoint: Path
) -> None:
    folder, done = made
    path = Path(done.stdout.splitlines()[2])
    before = path.stat().st_mtime_ns
    asked = ("--prompt", "a blue ball", "--seed", "7", "--out", str(folder), "--record", "all")
    again = wanlab("generate", "--model", str(checkpoint), *SMALL, *asked)
    assert again.stdout == f"{path}\n" and path.stat().st_mtime_ns == before
    forced = wanlab("generate", "--model", str(checkpoint), *SMALL, *asked, "--force")
    assert forced.returncode == 0 and path.stat().st_mtime_ns > before


def test_json_of_a_truncated_run_has_null_where_there_is_no_value(checkpoint: Path, tmp_path: Path) -> None:
    done = wanlab(
        "generate",
        "--model",
        str(checkpoint),
        *SMALL,
        "--prompt",
        "a ball",
        "--cfg_truncate_steps",
        "2",
        "--cfg-keep",
        "cond",
        "--out",
        str(tmp_path),
        "--json",
    )
    (run,) = json.loads(done.stdout)
    assert run["passes"] == 2 + 2 + 1 + 1 and run["plain_passes"] == 8
    assert [s["mse"] is None for s in run["by_step"]] == [False, False, True, True]
    assert [s["branches"] for s in run["by_step"]] == ["cond,uncond"] * 2 + ["cond"] * 2
    assert (tmp_path / "error_analysis" / "cfg_error_visualization.png").exists()
    # Another run beside it leaves the analysis of this one, and the same one again renews it.
    (first,) = tmp_path.glob("*.h5")
    args = ("generate", "--model", str(checkpoint), *SMALL, "--prompt", "a ball", "--out", str(tmp_path))
    for _ in range(2):
        wanlab(*args, "--seed", "1")
        (other,) = set(tmp_path.glob("*.h5")) - {first}
        reports = {p.parent.name: p.read_text() for p in tmp_path.glob("error_analysis/**/*.txt")}
        assert set(reports) == {"error_analysis", other.stem}
        assert first.name in reports["error_analysis"] and other.name in reports[other.stem]


def test_probe_fills_the_gaps_and_is_not_counted(checkpoint: Path, tmp_path: Path) -> None:
    args = ("generate", "--model", str(checkpoint), *SMALL, "--prompt", "a ball", "--cfg-truncate-steps", "2", "--json")
    plain = json.loads(wanlab(*args, "--out", str(tmp_path / "a")).stdout)[0]
    probed = json.loads(wanlab(*args, "--probe", "--out", str(tmp_path / "b")).stdout)[0]
    assert plain["passes"] == probed["passes"] == 6
    assert all(s["mse"] is not None for s in probed["by_step"])
    a, b = (Run(Path(r["files"]["run"])) for r in (plain, probed))
    assert np.array_equal(a["latent"][...], b["latent"][...])


def test_dry_run_counts_by_hand_and_loads_nothing(checkpoint: Path, tmp_path: Path) -> None:
    done = wanlab(
        "generate",
        "--model",
        str(checkpoint),
        "--size",
        "32x16",
        "--frames",
        "49",
        "--steps",
        "20",
        "--shift",
        "12",
        "--prompt",
        "a ball",
        "--cfg-truncate-steps",
        "5",
        "--cfg-truncate-high-noise-steps",
        "3",
        "--dry-run",
        "--json",
        "--out",
        str(tmp_path / "o"),
    )
    (plan,) = json.loads(done.stdout)
    assert plan["passes"] == 40 - 8 and plan["plain_passes"] == 40
    assert [r["expert"] for r in plan["rows"]].count("high") == 13  # sigma = 12u/(1+11u) stays above .875 for 13 of 20
    assert plan["shape"] == [16, 13, 2, 4]
    assert not list((tmp_path / "o").glob("*"))


def test_a_place_for_the_analysis_that_cannot_be_is_found_first(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "error_analysis").symlink_to(tmp_path / "gone")
    given = ("generate", "--model", str(checkpoint), *SMALL, "--prompt", "a ball", "--out", str(tmp_path))
    done = wanlab(*given)
    assert done.returncode == 2 and "link to nothing" in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*.h5*"))


def test_a_report_that_cannot_be_written_leaves_the_one_before(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wanlab.analysis import guidance
    from wanlab.cli.app import main

    report = tmp_path / "error_analysis" / "error_analysis_report.txt"
    report.parent.mkdir()
    report.write_text("before")
    monkeypatch.setattr(guidance, "report", lambda *_, **__: "\ud800")  # fails while it is written
    given = ["generate", "--model", str(checkpoint), *SMALL, "--prompt", "a ball", "--out", str(tmp_path)]
    with pytest.raises(BaseException):  # noqa: B017 - what it is does not matter here
        raise SystemExit(main(given))
    assert report.read_text() == "before"


def test_places_with_colons(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run file and its films in a folder named by the time, and one of the films compared with the other."""
    from wanlab.analysis.compare import measure
    from wanlab.cli.app import main

    monkeypatch.chdir(tmp_path)
    out = Path("12:30:05") / "run:1.h5"
    with pytest.raises(SystemExit) as stop:
        main(["generate", "--model", str(checkpoint), *SMALL, "--prompt", "a ball", "--out", str(out)])
    assert stop.value.code == 0 and out.is_file() and out.with_suffix(".mp4").is_file()
    shutil.copy(out.with_suffix(".mp4"), "http:b.mp4")
    assert measure(out.with_suffix(".mp4"), Path("http:b.mp4")).fidelity.identical
    assert math.isfinite(measure(out, Path("http:b.mp4")).figures["psnr"])


def test_a_picture_that_cannot_be_written_stops_no_other_run(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from wanlab.analysis import figures
    from wanlab.cli.app import main

    draw, calls = figures.contact_sheet, []

    def full(*args: object, **more: object) -> object:
        calls.append(args)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device", "sheet.png")
        return draw(*args, **more)

    monkeypatch.setattr(figures, "contact_sheet", full)
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "generate",
                "--model",
                str(checkpoint),
                *SMALL,
                "--prompt",
                "a ball",
                "--seed",
                "0:2",
                "--out",
                str(tmp_path),
            ]
        )
    said = capsys.readouterr()
    assert stop.value.code == 3 and len(said.out.splitlines()) == 1
    assert "sheet.png: No space left on device (free some space" in said.err and len(list(tmp_path.glob("*.h5"))) == 2


def test_one_failure_among_many_is_named_and_exits_3(checkpoint: Path, tmp_path: Path) -> None:
    first = wanlab(
        "generate", "--model", str(checkpoint), *SMALL, "--prompt", "a ball", "--seed", "0:2", "--out", str(tmp_path)
    )
    broken = Path(first.stdout.splitlines()[0])
    broken.write_bytes(b"no run file")
    again = wanlab(
        "generate", "--model", str(checkpoint), *SMALL, "--prompt", "a ball", "--seed", "0:2", "--out", str(tmp_path)
    )
    assert again.returncode == 3
    assert str(broken.name) in again.stderr and len(again.stdout.splitlines()) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal_and_gone_on_with(checkpoint: Path, tmp_path: Path, number: int, code: int) -> None:
    def start(out: Path) -> list[str]:
        return [
            sys.executable,
            "-m",
            "wanlab",
            "generate",
            "--model",
            str(checkpoint),
            "--size",
            "64x64",
            "--frames",
            "17",
            "--steps",
            "60",
            "--prompt",
            "a ball",
            "--out",
            str(out),
        ]

    out = tmp_path / "run.h5"
    process = subprocess.Popen(start(out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    part = tmp_path / "run.h5.part"
    limit = time.monotonic() + 120
    while not (part.is_dir() and len(list(part.iterdir())) > 3) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert "goes on" in said and not out.exists() and part.is_dir()
    done = subprocess.run(start(out), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole = subprocess.run(start(tmp_path / "whole.h5"), capture_output=True, text=True)
    assert whole.returncode == 0
    with Run(out) as a, Run(tmp_path / "whole.h5") as b:
        assert a.attrs["resumed_from_step"] > 0 and b.attrs["resumed_from_step"] == 0
        assert np.array_equal(a["latent"][...], b["latent"][...])
        assert np.array_equal(a["mse"][...], b["mse"][...], equal_nan=True)


def test_inspect_lists_and_verifies(made: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    path = Path(made[1].stdout.splitlines()[0])
    shown = wanlab("inspect", str(path), "--verify")
    assert shown.returncode == 0 and "sound" in shown.stdout and "x0_pred" in shown.stdout
    (whole,) = json.loads(wanlab("inspect", str(path), "--json").stdout)
    assert {d["name"] for d in whole["data"]} >= {
        "x_t",
        "x0_pred",
        "eps_pred",
        "velocity",
        "velocity_cond",
        "velocity_uncond",
        "latent",
        "video",
    }
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped.h5").write_bytes(data)
    damaged = wanlab("inspect", str(tmp_path / "flipped.h5"), "--verify")
    assert damaged.returncode == 1 and "Traceback" not in damaged.stderr + damaged.stdout


def test_a_word_never_learned_gets_one_warning() -> None:
    from wanlab.spec import RunSpec
    from wanlab.study.runners.local import unknown_words

    said = unknown_words([RunSpec(prompt="a red elephant moving left"), RunSpec(prompt="a blue elephant")])
    assert said.count("warning") == 1 and "elephant" in said and "circle" in said
    said = unknown_words(
        [
            RunSpec(prompt="A woman walking in a park"),
            RunSpec(prompt="a young woman walking in a city at night"),
            RunSpec(prompt="A beautiful sunset over the ocean"),
        ]
    )
    assert said == ""


def test_seeds() -> None:
    assert parse_seeds(["3", "0:4", "3"]) == [3, 0, 1, 2]


def test_numbers_that_are_none_are_null_in_json() -> None:
    from wanlab.cli.render import finite

    assert finite({"a": [math.nan, math.inf, 1.5], "b": -math.inf}) == {"a": [None, None, 1.5], "b": None}
