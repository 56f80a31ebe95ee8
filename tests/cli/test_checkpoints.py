"""Checkpoints in the original layout, and the official settings, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.engine import official
from wanlab.cli.app import main
from wanlab.cli.sampling import Sampling
from wanlab.runfile import Run
from wanlab.spec.presets import NEGATIVE

SMALL = ("--frames", "5", "--steps", "2", "--prompt", "x")


@dataclass
class Ended:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def wanlab(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    def run(*args: str) -> Ended:
        with pytest.raises(SystemExit) as stop:
            main(list(args))
        said = capsys.readouterr()
        return Ended(int(stop.value.code or 0), said.out, said.err)

    return run


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    for kind in ("t2v-A14B", "ti2v-5B"):
        official.write(folder / kind, kind)
    return folder


@pytest.mark.parametrize(
    ("kind", "size", "fps", "experts"), [("t2v-A14B", "32x32", 16, {"high"}), ("ti2v-5B", "64x32", 24, {"single"})]
)
def test_generate_in_the_original_layout(
    wanlab: Callable[..., Ended], originals: Path, tmp_path: Path, kind: str, size: str, fps: int, experts: set[str]
) -> None:
    """At shift 12 both of two steps are high-noise: t is 999 and 923."""
    given = ("generate", "--model", str(originals / kind), "--size", size, *SMALL)
    plan = wanlab(*given, "--dry-run", "--json")
    assert plan.returncode == 0, plan.stderr
    (planned,) = json.loads(plan.stdout)
    assert planned["passes"] == 4 and {row["expert"] for row in planned["rows"]} == experts
    done = wanlab(*given, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    with Run(Path(done.stdout.strip())) as run:
        assert (run.attrs["layout"], run.attrs["fps"]) == ("original", fps)
        assert run["video"].shape == (5, 32, int(size[:2]), 3)
    shown = wanlab("inspect", "--verify", "--json", done.stdout.strip())
    assert shown.returncode == 0 and json.loads(shown.stdout)[0]["attributes"]["layout"] == "original"
    again = wanlab(*given, "--out", str(tmp_path))  # finished: the weights are recognised, nothing is computed
    assert again.returncode == 0 and again.stdout == done.stdout


def test_what_is_refused_is_one_line(wanlab: Callable[..., Ended], originals: Path, tmp_path: Path) -> None:
    given = ("generate", "--model", str(originals / "ti2v-5B"), *SMALL)
    size = wanlab(*given, "--size", "48x64")
    assert (size.returncode, size.stdout) == (2, "") and "use 32 or 64" in size.stderr
    folder = official.write(tmp_path / "m", "t2v-1.3B")
    torch.save({"a": torch.nn.Linear(1, 1)}, folder / "Wan2.1_VAE.pth")
    code = wanlab("generate", "--model", str(folder), "--size", "32x32", *SMALL)
    assert code.returncode == 2 and "could run code" in code.stderr
    for refused in (size, code):
        assert len(refused.stderr.strip().splitlines()) == 1 and "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("task", "size", "frames", "steps", "shift", "guidance"),
    [
        ("t2v-A14B", (832, 480), 81, 40, 12.0, (3.0, 4.0)),
        ("ti2v-5B", (1280, 704), 121, 50, 5.0, (5.0, 5.0)),
        ("t2v-1.3B", (832, 480), 81, 50, 8.0, (6.0, 6.0)),
        ("t2v-14B", (832, 480), 81, 50, 5.0, (5.0, 5.0)),
    ],
)
def test_the_official_settings(
    tmp_path: Path,
    task: str,
    size: tuple[int, int],
    frames: int,
    steps: int,
    shift: float,
    guidance: tuple[float, float],
) -> None:
    (spec,) = Sampling(task=task, model=str(tmp_path), prompt=["x"]).specs()
    assert ((spec.width, spec.height), spec.frames, spec.steps) == (size, frames, steps)
    assert (spec.shift, spec.guidance, spec.negative_prompt) == (shift, guidance, NEGATIVE)
    (own,) = Sampling(
        task=task, model=str(tmp_path), prompt=["x"], negative_prompt="", steps=3, shift=1.0, guidance="2"
    ).specs()
    assert (own.negative_prompt, own.steps, own.shift, own.guidance) == ("", 3, 1.0, (2.0, 2.0))


def test_the_negative_prompt_is_the_official_one() -> None:
    """137 characters, 27 commas of the Chinese kind: counted in wan/configs/shared_config.py."""
    assert (len(NEGATIVE), NEGATIVE.count("，"), NEGATIVE[:4], NEGATIVE[-3:]) == (137, 27, "色调艳丽", "倒着走")
    (spec,) = Sampling(prompt=["x"]).specs()
    assert spec.negative_prompt == ""
