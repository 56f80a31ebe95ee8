"""`import wanlab` in Python: functions, results, and no torch before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import wanlab
from wanlab.study import results as kinds
from wanlab.study.runners import local
from wanlab.study.runners.local import Watcher

HOSTILE = "a red ball <script>alert(1)</script>"
QUICK: dict[str, Any] = {"steps": 4, "frames": 9, "size": "32x16"}


def test_importing_takes_nothing() -> None:
    program = (
        "import sys, time; began = time.process_time(); import wanlab; took = time.process_time() - began\n"
        "dir(wanlab); wanlab.RunSpec, wanlab.Method\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'pandas', 'rich', 'typer'} & set(sys.modules)\n"
        "assert not heavy, heavy\nassert took < .1, took\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def result(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> kinds.ComparisonResult:
    out = tmp_path_factory.mktemp("study") / "out"
    return wanlab.compare(
        a="cfg:last=2",
        b="cfg:last=1",
        prompts=[HOSTILE, "a blue ball"],
        seeds=range(1),
        out=out,
        model=str(checkpoint),
        noise_floor=True,
        progress=False,
        **QUICK,
    )


def test_a_comparison(result: kinds.ComparisonResult) -> None:
    """4 steps of two branches, with one branch in the last two: 6 passes against 7."""
    frame = result.to_pandas()
    assert list(frame["method"].unique()) == [
        "floor: batch_cfg=true",
        "floor: attention=math",
        "floor: dtype=bfloat16",
        "cfg:last=2",
    ]
    assert (frame.loc[frame["method"] == "cfg:last=2", "passes"] == 6).all() and (frame["passes_baseline"] == 7).all()
    floors = frame[frame["method"] != "cfg:last=2"]
    assert (floors["passes"] == 7).all()  # B's policies and all
    data = result.to_xarray()
    assert float(data["passes"].sel({"method": "cfg:last=2", "prompt": "a blue ball", "seed": 0})) == 6
    assert result.figure("per_frame").data[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(wanlab.UsageError, match="there is no figure 'per_fram'"):
        result.figure("per_fram")


def test_results_accumulate(result: kinds.ComparisonResult, checkpoint: Path) -> None:
    given: dict[str, Any] = dict(
        prompts=["a blue ball"], out=result.out, model=str(checkpoint), progress=False, **QUICK
    )
    wanlab.compare(a="cfg:last=3", **given)
    stored = sorted((result.out / "comparisons").glob("*.json"))
    assert len(stored) == 2
    assert {json.loads(p.read_text())["methods"][0]["label"] for p in stored} == {"cfg:last=2", "cfg:last=3"}
    assert json.loads((result.out / "comparison.json").read_text())["methods"][0]["label"] == "cfg:last=3"
    wanlab.compare(a="cfg:last=3", **given)
    assert len(list((result.out / "comparisons").glob("*.json"))) == 2
    assert not [p for p in result.out.rglob("*") if p.name.startswith(".")]  # nothing half-written stays


def test_notebooks_get_html_without_the_prompts_markup(result: kinds.ComparisonResult) -> None:
    page = result._repr_html_()
    assert "<table>" in page and "cfg:last=2" in page and "<script>" not in page
    assert 'src="data:video/mp4;base64,' in result.clip()._repr_html_()
    run = kinds.RunResult(path=next(p for p in sorted((result.out / "cfg-last=2").glob("*.h5")) if "script" in p.name))
    assert (
        "<script>" not in run._repr_html_() and "&lt;script&gt;" in run._repr_html_() and "<video" in run._repr_html_()
    )


def test_one_run(checkpoint: Path, tmp_path: Path) -> None:
    run = wanlab.generate(
        "a red ball", model=str(checkpoint), out=tmp_path / "r.h5", record="all", progress=False, **QUICK
    )
    assert run.path == tmp_path / "r.h5" and run.spec.steps == 4 and run.spec.frames == 9
    assert list(run.to_pandas()["step"]) == [1, 2, 3, 4] and list(run.to_pandas()["passes"]) == [2, 2, 2, 2]
    assert run.to_xarray().sizes == {"step": 4}
    assert run.figure("guidance").data[:4] == b"\x89PNG"
    with wanlab.open_run(run.path) as file:
        assert file.spec == run.spec
    analysis = wanlab.continuity(run.path, out=tmp_path / "c", progress=False)
    assert list(analysis.to_pandas()["step"]) == [1, 2, 3, 4] and analysis.figure("heatmap").data[:4] == b"\x89PNG"
    report = wanlab.report(tmp_path, out=tmp_path / "report")
    assert {x["name"] for x in report.content["hypotheses"]} == {
        "H1",
        "H2",
        "H3",
        "H4",
        "H5",
    } and "<table>" in report._repr_html_()


def test_runs_of_other_settings_are_no_baseline_seeds(checkpoint: Path, tmp_path: Path) -> None:
    """Two seeds of the baseline are too few for a spread over seeds; guidance 1 makes them no more."""
    analysis = wanlab.continuity(
        prompts=["a red ball"],
        seeds=range(2),
        methods=["guidance=1", "baseline", "half"],
        model=str(checkpoint),
        out=tmp_path,
        progress=False,
        size="32x32",
        frames=17,
        steps=8,
    )
    found = [r for g in analysis.groups if g.method == "half" for r in g.recoveries]
    assert [(r.spread, r.n) for r in found] == [("pairs", 2)] * 2


def test_pandas_may_be_absent(result: kinds.ComparisonResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(wanlab.WanlabError) as error:
        result.to_pandas()
    assert str(error.value) == "pandas is not installed; pip install 'wanlab[notebook]'"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: wanlab.compare(), "nothing to compare"),
        (lambda: wanlab.compare("halv"), "is no method"),
        (lambda: wanlab.compare("half", step=3), "there is no setting 'step'; did you mean"),
        (lambda: wanlab.compare(["half", "paired"], sweep=["cfg.last=1:3"]), "a sweep is laid over one method"),
        (lambda: wanlab.compare(["half", "paired"], at_cost=0.5), "half has no knob that trades cost for quality"),
        (lambda: wanlab.compare("magcache", at_cost=0.0), "is no share of the baseline's operations"),
        (lambda: wanlab.generate("x", frames=10), "use 9 or 13"),
        (lambda: wanlab.generate("x", model="tinny"), "did you mean tiny"),
        (lambda: wanlab.continuity(), "either runs or prompts"),
        (lambda: wanlab.report("/nowhere"), "there is no /nowhere"),
    ],
)
def test_requests_that_cannot_be(call: Any, says: str) -> None:
    with pytest.raises(wanlab.WanlabError) as error:
        call()
    assert says in str(error.value)


def test_a_watcher_is_told_everything(checkpoint: Path, tmp_path: Path) -> None:
    told: list[str] = []

    class Listener(Watcher):
        def start(self, runs: int, steps: int) -> None:
            told.append(f"start {runs} {steps}")

        def progress(self, progress: Any) -> None:
            told.append(progress.phase)

        def finish(self, place: Path) -> None:
            told.append("finish")

        def end(self) -> None:
            told.append("end")

    for _ in range(2):
        wanlab.generate("a ball", model=str(checkpoint), out=tmp_path / "r.h5", progress=Listener(), **QUICK)
    first, second = told[: told.index("end") + 1], told[told.index("end") + 1 :]
    assert first[0] == "start 1 4" and first.count("sample") >= 4 and first[-2:] == ["finish", "end"]
    assert second == ["start 1 4", "kept", "finish", "end"]


def test_a_run_that_another_process_writes_is_waited_for(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes sample the same two runs into one folder: both end well, with the same files."""
    program = (
        "import sys, wanlab\n"
        "result = wanlab.compare('cfg:last=1', prompts='a ball', steps=4, frames=9, size='32x16', progress=False,"
        "                        model=sys.argv[1], out=sys.argv[2])\n"
        "print(result.rows[0]['passes'])\n"
    )
    command = [sys.executable, "-c", program, str(checkpoint), str(tmp_path / "out")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert float(out) == 7


def test_who_writes_is_seen(tmp_path: Path) -> None:
    from wanlab.runfile import RunWriter

    place = tmp_path / "r.h5"
    assert not local.is_being_written(place)
    program = (
        "import sys, fcntl, os, pathlib\nfrom wanlab.runfile import part_directory\n"
        "d = part_directory(pathlib.Path(sys.argv[1])); d.mkdir(); f = open(d / 'lock', 'w')\n"
        "fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "held\n" and local.is_being_written(place)
        other.stdin.close()
    assert not local.is_being_written(place) and RunWriter is not None
