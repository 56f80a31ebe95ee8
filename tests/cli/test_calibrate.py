"""`wanlab calibrate` as its users run it, on a small checkpoint with random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import wanlab
from wanlab.cli.app import main
from wanlab.engine.calibration import load
from wanlab.errors import UsageError
from wanlab.runfile import Run
from wanlab.study.text import steps_in_short

SMALL = ("--size", "32x16", "--frames", "9", "--steps", "8", "--device", "cpu")
Told = tuple[int, str, str]
Wanlab = Callable[..., Told]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Wanlab:
    """Run `wanlab ARGS`: (exit code, stdout, stderr)."""

    def told(*args: object) -> Told:
        with pytest.raises(SystemExit) as stop:
            main([*map(str, args)])
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    return told


@pytest.fixture(scope="module")
def made(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prompts and one seed."""
    out = tmp_path_factory.mktemp("made") / "c.json"
    prompts = ["--prompt", "a red ball", "--prompt", "a blue ball"]
    with pytest.raises(SystemExit) as stop:
        main(["calibrate", "--model", str(checkpoint), *SMALL, *prompts, "--out", str(out)])
    assert not stop.value.code
    return out


def test_the_file_says_to_what_it_belongs(made: Path) -> None:
    content = json.loads(made.read_text())
    runs = sorted(made.with_suffix("").glob("*.h5"))
    assert len(runs) == content["prompts"] * content["seeds"] == 2
    with Run(runs[0]) as run:
        assert content["model"]["fingerprint"] == run.attrs["weights_fingerprint"]
        assert content["schedule"] == {
            "solver": "unipc",
            "steps": 8,
            "shift": 12.0,
            "switch": 6,
            "sigmas": run["sigma"][...].tolist(),
        }
    assert content["size"] == {"width": 32, "height": 16, "frames": 9, "latents": [3, 2, 4]}


def test_ratios_and_their_spread_are_those_of_the_runs(made: Path) -> None:
    content, runs = json.loads(made.read_text()), []
    for path in made.with_suffix("").glob("*.h5"):
        with Run(path) as run:
            runs.append(run["measure_magnitude"][...][1:, 1])
    ratios = content["magnitude"]["uncond"]
    assert ratios["mean"][0] == 1.0
    assert ratios["mean"][1:] == pytest.approx(np.mean(runs, axis=0).tolist())
    assert ratios["sd"][1:] == pytest.approx((np.abs(runs[0] - runs[1]) / 2**0.5).tolist())


def test_policies_take_it_and_refuse_it_elsewhere(made: Path, checkpoint: Path, run: Wanlab) -> None:
    plan = load(str(made)).plan(5)
    common = ("generate", "--model", checkpoint, *SMALL, "--prompt", "a red ball", "--dry-run", "--json")
    code, out, _ = run(*common, "--policy", f"dpcache:keep=5,calibration={made}")
    assert code == 0
    rows = json.loads(out)
    rows = (rows[0] if isinstance(rows, list) else rows)["rows"]
    assert [r["step"] for r in rows if r["passes"]] == list(plan)
    code, _, err = run(*common, "--policy", f"dpcache:keep=5,calibration={made}", "--steps", "9")
    assert code == 2
    assert "made with steps 8, and this run has 9" in err


def test_it_goes_on_with_runs_that_are_there(made: Path, checkpoint: Path, run: Wanlab) -> None:
    before = made.read_bytes()
    prompts = ("--prompt", "a red ball", "--prompt", "a blue ball")
    code, out, err = run("calibrate", "--model", checkpoint, *SMALL, *prompts, "--out", made, "--format", "human")
    assert code == 0
    assert "2 of 2 runs were complete already" in err
    assert made.read_bytes() == before
    assert "too few" in out or "no TeaCache fit of the high expert: 6 steps, 7 are needed" in out


def test_what_if_says_what_would_be_skipped(made: Path, run: Wanlab) -> None:
    code, out, err = run("calibrate", "--what-if", "steps:skip=2-3/7", "--what-if", "cfg:last=2", made.with_suffix(""))
    assert code == 0, err
    assert "an estimate" in out
    code, out, _ = run("calibrate", "--what-if", "steps:skip=2-3/7", made.with_suffix(""), "--json")
    content = json.loads(out)
    (method,) = content["methods"]
    for of_run in method["runs"]:
        assert [s["step"] for s in of_run["steps"] if s["reused"]] == [2, 3, 7]
    result = wanlab.what_if("steps:skip=2-3/7", made.with_suffix(""), progress=False)
    (row,) = result.rows
    assert (row["saved"], row["reused"], row["reused in some"]) == (0.375, "2-3/7", "none")
    assert [s["step"] for s in result.steps if s["share of runs"]] == [2, 3, 7]
    assert row["worst"] == max(s["worst"] for s in result.steps if s["share of runs"])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--what-if", "steps:skip=2"), "--what-if has no runs"),
        (("RUNS",), "runs are given, and no method"),
        (("--what-if", "steps:skip=2", "RUNS", "--steps", "9"), "--what-if samples nothing"),
        (("--what-if", "guidance=2", "RUNS"), "a recorded run keeps its settings"),
        (("--what-if", "stops:skip=2", "RUNS"), "did you mean steps"),
        (("--out", "c.txt"), "does not end in .json"),
        (("--guidance", "1", "--prompt", "a"), "one branch"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(made: Path, run: Wanlab, args: tuple[str, ...], said: str) -> None:
    given = [made.with_suffix("") if a == "RUNS" else a for a in args]
    code, out, err = run("calibrate", *given)
    assert (code, out) == (2, "")
    assert said in err


def test_prompts_that_set_their_own_are_refused(tmp_path: Path, run: Wanlab) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "a"}\n{"prompt": "b", "steps": 7}\n')
    code, _, err = run("calibrate", "--prompts", prompts, "--out", tmp_path / "c.json")
    assert code == 2
    assert "the prompts differ in steps: 20 and 7" in err
    with pytest.raises(UsageError, match="a calibration is of full runs"):
        wanlab.calibrate("a", policies="cfg:last=5", out=tmp_path / "c.json", progress=False)
    assert not (tmp_path / "c.json").exists()


def test_steps_in_short() -> None:
    assert steps_in_short([0, 1, 2, 5, 7, 8]) == "0-2/5/7-8"
    assert steps_in_short([]) == "none"
