"""`wanlab continuity` as its users run it, on a small checkpoint with random weights."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wanlab.cli.app import main
from wanlab.errors import UsageError
from wanlab.runfile import Run
from wanlab.spec import RunSpec
from wanlab.study.design import split_counts, split_methods

SMALL = ("--size", "32x16", "--frames", "17", "--steps", "20", "--device", "cpu")
FIGURES = ("continuity_analysis", "continuity_theory", "continuity_heatmap", "continuity_spaces")
Told = tuple[int, str, str]
Wanlab = Callable[..., Told]


@pytest.fixture
def wanlab(capsys: pytest.CaptureFixture[str]) -> Wanlab:
    """Run `wanlab continuity ARGS`: (exit code, stdout, stderr)."""

    def run(*args: object) -> Told:
        with pytest.raises(SystemExit) as stop:
            main(["continuity", *map(str, args)])
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    return run


@pytest.fixture(scope="module")
def made(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods of one prompt and seed, sampled once."""
    out = tmp_path_factory.mktemp("made") / "out"
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "continuity",
                "--model",
                str(checkpoint),
                *SMALL,
                "--prompt",
                "a red [bold]ball[/bold] $\\frac{",
                "--out",
                str(out),
                "--methods",
                "baseline,half,paired",
                "--probe",
                "--format",
                "json",
            ]
        )
    assert stop.value.code == 0
    return out


def statistics(out: Path) -> dict[str, Any]:
    def no(name: str) -> None:
        raise AssertionError(f"{name} in JSON")

    return dict(json.loads((out / "continuity_statistics.json").read_text(), parse_constant=no))


def test_the_documents_command(
    wanlab: Wanlab, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = wanlab(
        "--model_path",
        checkpoint,
        "--prompt",
        "a red ball",
        "--output_dir",
        "./continuity_analysis",
        "--num_frames",
        "17",
        "--num_inference_steps",
        "20",
        "--size",
        "32x16",
        "--debug-latents",
    )
    assert code == 0, err
    folder = Path("continuity_analysis")
    names = [
        "continuity_statistics.json",
        *(f"{n}.png" for n in FIGURES),
        *(f"debug_latents/latent_step_{k:02d}.pt" for k in range(1, 21)),
    ]
    (run,) = (folder / "runs").glob("*.h5")
    assert out.splitlines() == [str(folder / n) for n in names] + [str(run)]  # a pipe gets the files
    assert all(Path(line).stat().st_size for line in out.splitlines())
    (one,) = statistics(folder)["runs"]
    assert (one["prompt"], one["frames"], one["step"][-1], one["method"]) == ("a red ball", 17, 20, "baseline")
    assert set(one["spaces"]) == {"x_t", "x0_pred", "eps_pred", "velocity"}
    with Run(run) as file:
        x = file["x_t"][12].astype(float)
        latent = file["latent"][...].astype(float)
        video = file["video"][...] / 255
    apart = [np.mean((x[:, f + 1] - x[:, f]) ** 2) for f in range(4)]
    assert one["spaces"]["x_t"]["mse"]["pairs"][12] == pytest.approx(apart, rel=1e-6)
    assert one["spaces"]["x_t"]["mse"]["std"][12] == pytest.approx(np.std(apart), rel=1e-5)
    assert one["final"]["mse"]["mean"] == pytest.approx(np.mean(np.diff(latent, axis=1) ** 2), rel=1e-6)
    assert one["video"]["mse"]["mean"] == pytest.approx(np.mean(np.diff(video, axis=0) ** 2), rel=1e-6)
    expected = (1 - one["sigma"][12]) ** 2 * one["final"]["mse"]["mean"] + 2 * one["sigma"][12] ** 2
    assert one["theory"]["expected"][12] == pytest.approx(expected, rel=1e-6)


def test_methods_side_by_side(made: Path) -> None:
    whole = statistics(made)
    assert [g["method"] for g in whole["groups"]] == ["baseline", "half", "paired"]
    baseline, half, paired = whole["runs"]
    assert half["frame_stride"] == [2] * 13 + [1] * 7 and half["latent_frames"] == [3] * 13 + [5] * 7
    pairs = half["spaces"]["x_t"]["mse"]["pairs"]
    assert len(pairs[12]) == 2 and pairs[13][0] == pairs[13][2] == 0 != pairs[13][1]  # frames 2 and 4 are copies
    assert paired["spaces"]["x_t"]["mse"]["pairs"][13][1] == 0
    assert half["theory"]["noise_correlation"]["mean"][13] > baseline["theory"]["noise_correlation"]["mean"][13] + 0.3
    assert baseline["recovery"] is None
    for run in (half, paired):
        assert (run["recovery"]["from_step"], run["recovery"]["spread"]) == (14, "pairs")
        assert [o["step"] for o in run["switch"]["other_expert"]] == [13, 14]
    assert [o["used"] for o in baseline["switch"]["other_expert"]] == ["high", "low"]


def test_run_files_are_analysed_without_torch(made: Path, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom wanlab.cli.app import main\n"
        f"try: main(['continuity', {str(made / 'runs')!r}, '--out', {str(tmp_path / 'o')!r}, '--format', 'human'])\n"
        "except SystemExit as e: assert e.code == 0, e.code\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "noise ρ" in done.stdout and "steps to recover" in done.stdout and "\x1b" not in done.stdout
    sampled, read = statistics(made), statistics(tmp_path / "o")
    by_method = {r["method"]: r for r in read["runs"]}
    for run in sampled["runs"]:
        again = by_method[run["method"]]
        assert (
            again["spaces"] == run["spaces"]
            and again["theory"] == run["theory"]
            and again["recovery"] == run["recovery"]
        )


def test_one_run_step_by_step_for_a_person(wanlab: Wanlab, made: Path, tmp_path: Path) -> None:
    path = next(p for p in (made / "runs").glob("*.h5") if not Run(p).spec.policies)
    code, out, err = wanlab(path, "--out", tmp_path / "o", "--format", "human")
    assert code == 0, err
    assert "a red [bold]ball[/bold] $\\frac{" in out and "Across the expert switch, step 13 to 14" in out
    assert "Of the velocity that was used, at step 13 the low-noise expert's is" in out
    assert (
        3
        <= sum(line.startswith(("reading ", "          ")) and line.rstrip().endswith(".") for line in out.splitlines())
        <= 6
    )


@pytest.mark.parametrize("form", ["csv", "md", "json"])
def test_for_other_programs(wanlab: Wanlab, made: Path, tmp_path: Path, form: str) -> None:
    code, out, err = wanlab(made / "runs", "--out", tmp_path / "o", "--format", form)
    assert code == 0, err
    if form == "json":
        assert json.loads(out) == statistics(tmp_path / "o")
        return
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(out)))
        assert len(rows) == 3 * 20 and "nan" not in out
        assert float(rows[0]["x_t_mse"]) > 0 and rows[0]["step"] == "1"
    else:
        assert out.startswith("| method | frames |") and out.count("\n") == 62 and "nan" not in out


def test_frame_counts_in_one_call(wanlab: Wanlab, checkpoint: Path, tmp_path: Path) -> None:
    args = (
        "--model",
        checkpoint,
        "--size",
        "32x16",
        "--frames",
        "9,17",
        "--steps",
        "4",
        "--prompt",
        "a ball",
        "--seed",
        "0:2",
        "--out",
        tmp_path,
    )
    code, out, err = wanlab(*args, "--json")
    assert code == 0, err
    groups = json.loads(out)["groups"]
    assert [(g["frames"], g["runs"]) for g in groups] == [(9, 2), (17, 2)]
    for g in groups:
        values = g["final"]["mse"]["values"]
        assert (
            g["final"]["mse"]["std"] == pytest.approx(np.std(values, ddof=1), rel=1e-6) and g["video"]["mse"]["n"] == 2
        )
    assert (tmp_path / "continuity_frames.png").stat().st_size > 10_000
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").glob("*.h5")}
    assert wanlab(*args)[0] == 0 and {p: p.stat().st_mtime_ns for p in before} == before  # nothing is sampled again


def test_a_folder_of_latent_steps(wanlab: Wanlab, tmp_path: Path) -> None:
    """x0 of ones, ε of alternating ±1 from frame to frame: neighbours are 2σ apart; the guide's names for what it
    saved."""
    folder = tmp_path / "latents"
    folder.mkdir()
    x0 = torch.ones(2, 3, 2, 2)
    eps = torch.tensor([1.0, -1.0, 1.0])[None, :, None, None].expand(2, 3, 2, 2)
    sigmas = [1.0, 0.9, 0.5, 0.0]
    for k in range(3):
        x, after = (((1 - s) * x0 + s * eps).clone() for s in sigmas[k : k + 2])
        saved = {
            "step": k,
            "timestep": 1000 * sigmas[k],
            "sigma": sigmas[k],
            "x_t": x,
            "x0_pred": after,
            "eps_pred": (eps - x0).clone(),
        }
        torch.save(saved, folder / f"latent_step_{k:02d}.pt")
    code, _, err = wanlab(folder, "--out", tmp_path / "o")
    assert code == 0 and "solver's next latent" in err
    (run,) = statistics(tmp_path / "o")["runs"]
    assert run["spaces"]["x_t"]["mse"]["mean"] == pytest.approx([4, 3.24, 1.0], rel=1e-6)
    assert run["spaces"]["eps_pred"]["mse"]["mean"] == pytest.approx([4] * 3, rel=1e-6)
    assert run["spaces"]["x0_pred"]["mse"]["mean"] == pytest.approx([0] * 3, abs=1e-12)
    assert run["final"]["mse"]["mean"] == pytest.approx(0, abs=1e-12) and run["expert"] == ["high", "high", "low"]
    assert run["theory"]["noise_correlation"]["mean"] == pytest.approx([-1] * 3, abs=1e-6)
    assert any("solver's next latent" in note for note in run["notes"]) and run["seed"] is None


def test_one_broken_file_among_many_is_named_and_exits_3(wanlab: Wanlab, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "runs", tmp_path / "runs")
    first, *others = sorted((tmp_path / "runs").glob("*.h5"))
    first.write_bytes(b"no run file")
    code, out, err = wanlab(tmp_path / "runs", "--out", tmp_path / "o")
    assert code == 3 and first.name in err and err.count("\n") == 1
    assert all(str(p) in out for p in others) and str(first) not in out
    code, out, err = wanlab(first, "--out", tmp_path / "p")
    assert code == 1 and out == "" and err.count("\n") == 1


def test_metrics_alone_are_not_enough(wanlab: Wanlab, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(
            [
                "generate",
                "--model",
                str(checkpoint),
                "--size",
                "32x16",
                "--frames",
                "9",
                "--steps",
                "2",
                "--prompt",
                "a ball",
                "--out",
                str(tmp_path / "r.h5"),
            ]
        )
    code, _, err = wanlab(tmp_path / "r.h5", "--out", tmp_path / "o")
    assert code == 1 and "--record latents" in err and err.count("wanlab: ") == 1


def test_what_cannot_be_is_refused_before_a_model_is_loaded(
    wanlab: Wanlab, checkpoint: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wanlab.engine.model import loading as models

    def loads(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(models, "load", loads)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    prompt = ("--model", checkpoint, "--prompt", "a ball", "--out", tmp_path / "o")
    for args, said in (
        (("--out", tmp_path / "o"), "--prompt"),
        ((tmp_path / "gone.h5",), "there is no"),
        ((tmp_path / "empty",), "neither run files nor"),
        ((made / "runs", "--prompt", "a ball"), "nothing is sampled"),
        ((made / "runs", "--frames", "49"), "nothing is sampled"),
        ((made / "runs", "--out", tmp_path / "file"), "cannot write"),
        ((*prompt, "--frames", "49;81"), "49,81,121"),
        ((*prompt, "--frames", "49,50"), "49 or 53"),
        ((*prompt, "--methods", "haf"), "half"),
        ((*prompt, "--methods", "half:complet=renoise"), "complete"),
        ((*prompt, "--methods", "frames=9"), "cannot set"),
        ((*prompt, "--format", "jsn"), "json"),
        (("--model", checkpoint, "--prompt", "a ball", "--out", tmp_path / "file"), "file"),
    ):
        code, out, err = wanlab(*args)
        assert code == 2 and out == "" and err.count("\n") == 1 and said in err, (args, err)


def test_methods_and_frame_counts_are_told_apart() -> None:
    assert [m.label for m in split_methods(["baseline,half,paired"])] == ["baseline", "half", "paired"]
    texts = ["cfg:last=5,keep=cond,half+cfg:last=2,high=1", "guidance=3,4", "half"]
    assert [m.label for m in split_methods(texts)] == [
        "cfg:last=5,keep=cond",
        "half+cfg:last=2,high=1",
        "guidance=3,4",
        "half",
    ]
    assert [m.label for m in split_methods(["half,guidance=3,half", ""])] == ["half", "guidance=3"]
    (guided,) = split_methods(["guidance=3,4"])
    assert guided.apply(RunSpec(prompt="a")).guidance == (3.0, 4.0)
    assert [m.label for m in split_methods([])] == ["baseline"]
    assert split_counts("49, 81,49") == [49, 81] and split_counts(None) == [None]
    with pytest.raises(UsageError):
        split_counts("49,")
