"""`wanlab compare` as its users run it, on a small checkpoint with random weights."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from wanlab import __version__
from wanlab.cli import comparison, render
from wanlab.cli.app import main
from wanlab.spec import MethodSpec
from wanlab.study.design import swept

SMALL = ("--size", "32x32", "--frames", "9", "--steps", "6", "--prompt", "a red ball", "--prompt", "a blue ball")


@pytest.fixture
def wanlab(checkpoint, capsys, tmp_path):
    """Run a comparison into `tmp_path`; returns (exit code, stdout, stderr)."""

    def run(*args, small=True, out=tmp_path / "out"):
        given = ["compare", *args, "--out", str(out)]
        if small:
            given += ["--model", str(checkpoint), *SMALL]
        with pytest.raises(SystemExit) as stop:
            main(given)
        printed = capsys.readouterr()
        return stop.value.code, printed.out, printed.err

    return run


def test_a_mode_with_nothing_else(wanlab, tmp_path):
    """5 of 6 steps at the end and 3 before the switch are all but one: 12 passes become 7."""
    code, out, err = wanlab("--mode", "cfg_vs_baseline")
    assert code == 0, err
    assert "cfg_truncated against baseline" in out and re.search(r"cfg_truncated +\d+/12 ", out)
    assert "\x1b" not in out  # a pipe gets no colour
    folder = tmp_path / "out"
    for name in ("comparison.json", "comparison.csv", "comparison.md", "error_comparison.txt"):
        assert (folder / name).stat().st_size > 100, name
    for name in ("per_frame.png", "divergence.png", "worst_frame.png", "side_by_side.mp4"):
        assert (folder / "cfg_truncated" / name).stat().st_size > 500, name
    assert len(list((folder / "baseline").glob("*.h5"))) == 2
    title = (folder / "comparison.md").read_text().partition("\n")[0]
    assert "6 steps" in title and title.endswith(f"against baseline; wanlab {__version__}")
    assert json.loads((folder / "comparison.json").read_text())["wanlab"] == __version__
    text = (folder / "error_comparison.txt").read_text()
    for name in ("absolute error, mean", "relative error, max", "MSE", "PSNR, dB", "SSIM", "warping error", "verdict"):
        assert name in text
    rows = list(csv.DictReader(io.StringIO((folder / "comparison.csv").read_text())))
    assert [r["prompt"] for r in rows] == ["a red ball", "a blue ball"] and float(rows[0]["psnr"]) > 0


def test_a_table_that_does_not_fit_goes_without_some_columns(monkeypatch):
    """By what it needs itself, not by what the widest table would."""
    rows = [{"method": "m" * 10, "end to end": "1.25x", "PSNR": "p" * 10, "verdict": "v" * 17}]
    needs = Console(width=200).measure(render.table(rows)).maximum
    for width, gone in ((needs, []), (needs - 1, ["end to end", "verdict"])):
        monkeypatch.setattr(render, "output", lambda width=width: Console(width=width))
        shown, left_out = comparison._fitting(rows)
        assert left_out == gone and len(shown.columns) == 4 - len(gone)
    # What is still too wide goes from the right.
    rows = [{"method": "half", "passes": "20/40", "end to end": "1.25x", "PSNR": "p" * 10, "SSIM": "s" * 10}]
    monkeypatch.setattr(render, "output", lambda: Console(width=28))
    shown, left_out = comparison._fitting(rows)
    assert left_out == ["end to end", "SSIM"] and render.output().measure(shown).minimum <= 28


def test_json_follows_its_schema(wanlab, tmp_path):
    import jsonschema

    code, out, _ = wanlab("--a", "cfg:last=2,keep=cond", "--noise-floor", "--json")
    assert code == 0
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    schema = json.loads((Path(__file__).parents[2] / "docs" / "comparison.schema.json").read_text())
    jsonschema.validate(found, schema)
    (method,) = found["methods"]
    assert method["summary"]["passes"]["mean"] == 10 and method["summary"]["passes_baseline"]["mean"] == 12
    assert method["pairs"][0]["divergence"]["truncated"] == [4, 5]
    assert method["pairs"][0]["divergence"]["parted"] == 5
    assert [f["label"] for f in found["noise_floor"]] == [
        "floor: batch_cfg=true",
        "floor: attention=math",
        "floor: dtype=bfloat16",
    ]
    assert found["noise_floor"][0]["summary"]["mse"]["mean"] < method["summary"]["mse"]["mean"]
    stored = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert stored["methods"] == found["methods"]


def test_baseline_against_itself(wanlab, tmp_path):
    """Sampled twice, bit for bit the same, and said so everywhere."""
    code, out, _ = wanlab("--a", "baseline", "--format", "csv")
    assert code == 0
    (row,) = csv.DictReader(io.StringIO(out))
    assert (float(row["mse"]), row["psnr"], float(row["ssim"]), row["verdict"]) == (0, "identical", 1, "identical")
    folder = tmp_path / "out"
    assert len(list((folder / "baseline-again").glob("*.h5"))) == 2  # it really ran
    stored = json.loads((folder / "comparison.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert stored["methods"][0]["summary"]["psnr"]["mean"] == "identical"
    assert (
        "identical" in (folder / "comparison.md").read_text()
        and "identical" in (folder / "error_comparison.txt").read_text()
    )
    assert {r["psnr"] for r in csv.DictReader((folder / "comparison.csv").open())} == {"identical"}


def test_runs_are_reused(wanlab, tmp_path):
    wanlab("--a", "cfg:last=1")
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "baseline").glob("*.h5")}
    code, out, _ = wanlab("--a", "cfg:last=2")
    assert code == 0 and {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "baseline").glob("*.h5")} == kept
    assert re.search(r"cfg:last=2 +10/12 ", out)


def test_a_sweep_and_its_answer(wanlab, tmp_path):
    code, out, err = wanlab(
        "--sweep", "cfg.last=0:3", "--sweep", "cfg.keep=uncond,cond", "--max-loss", "psnr=1", "--format", "json"
    )
    assert code == 0, err
    found = json.loads(out)
    # No step truncated is the baseline whatever is kept: 1 + 2 x 2 methods.
    assert [m["label"] for m in found["methods"]] == [
        "baseline",
        "cfg:keep=uncond,last=1",
        "cfg:keep=cond,last=1",
        "cfg:keep=uncond,last=2",
        "cfg:keep=cond,last=2",
    ]
    assert found["methods"][0]["identical"] and found["methods"][1]["setting"] == {"cfg.last": 1, "cfg.keep": "uncond"}
    # Two prompts are too few for an interval.
    assert found["answer"][0].startswith("by its mean alone cfg:keep=") and "too few" in found["answer"][0]
    assert (tmp_path / "out" / "pareto.png").stat().st_size > 5000


def test_what_a_sweep_chose_is_measured_again(wanlab, tmp_path):
    """cfg:last=2 is chosen on seed 0 and measured on seeds 1 and 2: four pairs, none of them of the choice."""
    code, out, err = wanlab("--sweep", "cfg.last=1:3", "--max-loss", "psnr=1", "--confirm", "1:3", "--format", "json")
    assert code == 0, err
    found = json.loads(out)
    (again,) = found["confirmed"]
    assert again["label"] == "cfg:last=2, confirmed" and [p["seed"] for p in again["pairs"]] == [1, 1, 2, 2]
    assert [len(m["pairs"]) for m in found["methods"]] == [2, 2]
    assert found["answer"][0].startswith("measured again on 2 fresh seeds: cfg:last=2, confirmed, PSNR ")
    assert found["answer"][1].startswith("in the sweep, by its mean alone cfg:last=2")
    assert "cfg:last=2, confirmed" in (tmp_path / "out" / "comparison.md").read_text()
    code, _, err = wanlab("--sweep", "cfg.last=1:3", "--confirm", "0:2")
    assert code == 2 and "seed 0 has a part in the choice" in err and "--confirm 2:4" in err
    code, _, err = wanlab("--a", "cfg:last=1", "--confirm", "1")
    assert code == 2 and "--confirm is for what a sweep chose" in err


def test_a_condition_on_a_measure_of_a_file(tmp_path, capsys):
    """Known as soon as the file is, in whichever order they are given. The name is this test's own."""
    (tmp_path / "own.py").write_text(
        "from wanlab.analysis.metrics import metric\n\n\n"
        '@metric("own_distance", needs="frame pair", better="lower")\n'
        'def own_distance(x, y):\n    "Mean distance."\n    return float(abs(x - y).mean())\n'
    )
    for name, value in (("a", 0.25), ("b", 0.75)):
        (tmp_path / name).mkdir()
        for k in range(2):
            Image.fromarray(np.full((16, 16, 3), round(255 * value), np.uint8)).save(tmp_path / name / f"{k}.png")
    files = ("--a", str(tmp_path / "a"), "--b", str(tmp_path / "b"), "--out", str(tmp_path / "out"))
    for condition, code in (("own_distance>0.4", 4), ("own_distance>0.6", 0)):
        with pytest.raises(SystemExit) as stop:
            main(["compare", *files, "--fail-if", condition, "--metric", str(tmp_path / "own.py")])
        assert stop.value.code == code, capsys.readouterr().err


def test_thresholds_for_pipelines(wanlab):
    code, _, err = wanlab("--a", "cfg:last=3", "--fail-if", "psnr<1000")
    assert code == 4 and "a stated threshold was missed: cfg:last=3: psnr is" in err
    code, _, err = wanlab("--a", "cfg:last=3", "--fail-if", "psnr<1", "--fail-if", "ssim<-1")
    # A run that is not sampled again says so: 2 prompts by 2 methods.
    assert code == 0 and err == "4 of 4 runs were complete already and kept; --force samples again\n"


def test_two_runs_and_two_videos(wanlab, tmp_path):
    wanlab("--a", "cfg:last=1")
    a, b = (sorted((tmp_path / "out" / n).glob("a-red*.h5"))[0] for n in ("cfg-last=1", "baseline"))
    code, out, _ = wanlab("--a", str(a), "--b", str(b), "--json", small=False, out=tmp_path / "files")
    assert code == 0
    by_run = json.loads(out)["methods"][0]
    assert by_run["pairs"][0]["prompt"] == "a red ball" and not by_run["pairs"][0]["rounded"]
    code, out, err = wanlab(
        "--a",
        str(a.with_suffix(".mp4")),
        "--b",
        str(b.with_suffix(".mp4")),
        "--json",
        small=False,
        out=tmp_path / "films",
    )
    assert code == 0, err
    by_film = json.loads(out)
    assert by_film["methods"][0]["pairs"][0]["rounded"] and any("rounding to integers" in r for r in by_film["remarks"])
    assert "passes" not in by_film["methods"][0]["summary"]


def test_named_methods(wanlab, tmp_path):
    file = tmp_path / "methods.toml"
    file.write_text(
        '[methods.fast]\npolicies = ["cfg:last=2,keep=cond"]\nguidance = 3\n[methods.plain]\nguidance = "3"\n'
    )
    code, out, err = wanlab("--methods", str(file), "--a", "fast", "--b", "plain")
    assert code == 0, err
    assert "fast against plain" in out and (tmp_path / "out" / "fast").is_dir() and "10/12" in out


@pytest.mark.parametrize(
    ("mode", "passes", "folder"),
    [
        # 6 steps, shift 12: 4 high-noise and 2 low-noise. 5 last and 3 before the switch leave the first step alone.
        # In whole passes: of 8 tokens instead of 12, width 24, 512 text tokens, two blocks, one costs 4,349,952 of
        # 4,862,976 operations, .894; 4 steps of two such and 2 of two whole ones are 11.16.
        ("half_vs_baseline", "11.2/12", "half_frame"),
        ("improved_vs_baseline", "12/12", "improved"),
        ("combined_vs_baseline", "7/12", "combined"),
        ("cfg_vs_half", "7/11.2", "cfg_truncated"),
    ],
)
def test_modes(wanlab, tmp_path, mode, passes, folder):
    code, out, err = wanlab("--comparison_mode", mode)
    assert code == 0, err
    assert passes in out and (tmp_path / "out" / folder).is_dir()


def test_the_guides_commands(wanlab):
    for args in (
        ("--comparison_mode", "cfg_vs_baseline", "--cfg_truncate_steps", "2"),
        ("--comparison_mode", "half_vs_baseline", "--enable_half_frame_generation"),
        (
            "--comparison_mode",
            "combined_vs_baseline",
            "--cfg_truncate_steps",
            "2",
            "--enable_improved_frame_completion",
        ),
    ):
        code, _, err = wanlab(*args, "--dry-run")
        assert code == 0, err


def test_a_dry_run_loads_and_writes_nothing(wanlab, tmp_path):
    code, out, _ = wanlab("--mode", "cfg_vs_baseline", "--dry-run")
    assert code == 0 and "2 prompts and seeds, 4 runs, 4 of them new" in out and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--mode", "cfg_vs_basline"), "did you mean cfg_vs_baseline"),
        (("--a", "halv"), "is no method, run, video or folder"),
        (("--sweep", "cfg.lst=0:4"), "no knob 'lst'"),
        (("--sweep", "cfg.keep=uncond,cnd"), "cfg:keep is 'cnd'"),
        (("--sweep", "cfg.keep=uncond,cond"), "changes nothing"),
        (("--a", "cfg:keep=cond"), "cfg truncates no step"),
        (("--sweep", "guidance=0:100000", "--sweep", "shift=1:100001"), "10,000,000,000 methods"),
        (("--a", "cfg:lst=5"), "lst"),
        (("--a", "prompt=x"), "a method cannot set 'prompt'"),
        (("--a", "cfg:last=9"), "cfg:last=9 of 6 steps"),
        (("--suite", "other"), "--suite builtin"),
        (("--sweep", "cfg.last"), "is no sweep"),
        (("--sweep", "cfg.last=5:5"), "is empty"),
        (("--sweep", "cfg.last=0:x"), "is no range"),
        (("--mode", "cfg_vs_half", "--sweep", "cfg.last=0:2"), "both name methods"),
        (("--mode", "half_vs_baseline", "--cfg-truncate-steps", "3"), "is no part of half_vs_baseline"),
        (("--fail-if", "psnr=35"), 'write --fail-if "psnr<35"'),
        (("--max-loss", "psnr=30"), "--max-loss is for a sweep"),
        (("--sweep", "cfg.last=0:2", "--max-loss", "vmaf=3"), "add --metric vmaf"),
        (("--sweep", "cfg.last=0:2", "--max-loss", "psnr=much"), "write --max-loss psnr=35"),
        (("--a", "half", "--fail-if", "vmaf<90"), "add --metric vmaf"),
        (("--methods", "/nowhere.toml"), "check --methods"),
        (("--a", "/nowhere.h5", "--b", "baseline"), "is compared with another one"),
        (("--sweep", "guidance=1:101:0.01"), "add --yes"),
    ],
)
def test_bad_requests(wanlab, args, said):
    code, out, err = wanlab(*args)
    assert code == 2 and said in err and out == "" and len(err.strip().splitlines()) == 1


def test_bad_files(wanlab, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"not a film")
    (tmp_path / "bad.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100)
    for name in ("bad.mp4", "bad.h5", "absent.h5"):
        code, _, err = wanlab("--a", str(tmp_path / name), "--b", str(tmp_path / name), small=False)
        assert code == 1 and name in err and len(err.strip().splitlines()) == 1


def test_videos_of_different_size(wanlab, tmp_path):
    from wanlab.video import write_mp4

    for name, frames in (("a", 9), ("b", 5)):
        write_mp4(tmp_path / f"{name}.mp4", np.zeros((frames, 32, 32, 3), np.uint8), 16)
    code, _, err = wanlab("--a", str(tmp_path / "a.mp4"), "--b", str(tmp_path / "b.mp4"), small=False)
    assert code == 2 and "a.mp4 has 9 frames, b.mp4 5" in err


def test_half_frames_on_a_model_of_one_expert(wanlab, single_checkpoint):
    code, _, err = wanlab("--mode", "half_vs_baseline", "--model", str(single_checkpoint), *SMALL, small=False)
    assert code == 2 and "have no expert switch" in err


def test_sweep_values():
    made = swept(MethodSpec.parse("half+cfg:keep=cond"), ["cfg.last=2:4", "guidance=1:2:0.5"])
    assert [t.setting for t in made] == [
        {"cfg.last": 2, "guidance": 1},
        {"cfg.last": 2, "guidance": 1.5},
        {"cfg.last": 3, "guidance": 1},
        {"cfg.last": 3, "guidance": 1.5},
    ]
    assert made[1].method.label == "half+cfg:keep=cond,last=2+guidance=1.5"
    assert dict(made[1].method.settings) == {"guidance": (1.5, 1.5)}


def test_a_measure_of_a_file_can_be_a_condition(wanlab):
    """A measure that a file registers is known to --fail-if of the same command."""
    file = Path(__file__).parents[2] / "examples" / "edge_error.py"
    code, out, err = wanlab("--a", "cfg:last=2", "--metric", str(file), "--fail-if", "edge_error>=0", "--json")
    assert code == 4, err
    assert "edge_error is" in err and json.loads(out)["methods"][0]["summary"]["edge_error"]["mean"] >= 0
