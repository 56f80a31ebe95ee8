"""The experiment guide's own commands, with only the program's name replaced, on the model in the package."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from wanlab.cli.app import main
from wanlab.cli.spelling import spelled
from wanlab.errors import UsageError
from wanlab.runfile import Run

PROMPT = ("--prompt", "a large red circle moving right on a black background")
SIZE = ("--size", "32x16")
Wanlab = Callable[..., tuple[int, str, str]]


@pytest.fixture
def wanlab(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Wanlab:
    """Run a command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(list(args))
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A checkpoint's directory called `tiny`."""
    import wanlab.embedded

    (tmp_path / "tiny").symlink_to(Path(wanlab.embedded.__file__).parent / "tiny")
    return tmp_path / "tiny"


GENERATE = (
    "generate",
    "--task",
    "t2v-A14B",
    "--enable_debug",
    "--frame_num",
    "9",
    "--sampling_steps",
    "4",
    *PROMPT,
    *SIZE,
)


def test_generate_without_a_checkpoint_runs_on_tiny_and_says_so(wanlab: Wanlab) -> None:
    code, out, err = wanlab(*GENERATE)
    assert code == 0 and "sampling on tiny" in err and "--model DIRECTORY" in err and err.count("note:") == 1
    (path,) = map(Path, out.splitlines())
    assert path.parent == Path("outputs")
    with Run(path) as run:
        assert (run.spec.model, run.spec.frames, run.spec.steps, run.spec.guidance) == ("tiny", 9, 4, (4.0, 4.0))
        assert run.spec.negative_prompt == ""
    folder = Path("outputs/debug_outputs/error_analysis")
    assert {p.name for p in folder.iterdir()} == {"cfg_error_visualization.png", "error_analysis_report.txt"}


def test_our_spelling_keeps_our_places(wanlab: Wanlab) -> None:
    code, out, _ = wanlab("generate", "--enable-debug", "--frames", "5", "--steps", "2", *SIZE, *PROMPT)
    assert code == 0 and Path(out.strip()).parent == Path("runs") and Path("runs/error_analysis").is_dir()
    assert not Path("outputs").exists()


def test_generate_with_a_checkpoint_called_tiny(wanlab: Wanlab, tiny: Path) -> None:
    code, out, err = wanlab(*GENERATE, "--ckpt_dir", "tiny", "--dry-run", "--json", "--out", "o")
    assert code == 0 and "note:" not in err
    spec = json.loads(out)[0]["spec"]
    assert spec["model"] == "./tiny" and spec["guidance"] == [3.0, 4.0] and spec["shift"] == 12.0


@pytest.mark.parametrize(
    "given",
    [
        ("--comparison_mode", "cfg_vs_baseline", "--cfg_truncate_steps", "1", "--cfg_truncate_high_noise_steps", "1"),
        ("--comparison_mode", "half_vs_baseline", "--enable_half_frame_generation"),
        (
            "--comparison_mode",
            "combined_vs_baseline",
            "--cfg_truncate_steps",
            "1",
            "--enable_improved_frame_completion",
        ),
    ],
)
def test_the_three_comparisons(wanlab: Wanlab, tiny: Path, given: tuple[str, ...]) -> None:
    code, _, err = wanlab(
        "compare", "--ckpt_dir", "tiny", *given, "--frame_num", "9", "--sample_steps", "6", *PROMPT, *SIZE
    )
    assert code == 0, err
    assert Path("comparison_outputs/error_comparison.txt").read_text().startswith("Comparison against baseline")
    assert list(Path("comparison_outputs/baseline").glob("*.h5"))


def test_continuity_writes_the_latents_where_the_guide_has_them(wanlab: Wanlab, tiny: Path) -> None:
    code, _, err = wanlab(
        "continuity",
        "--model_path",
        "tiny",
        *PROMPT,
        "--output_dir",
        "./continuity_analysis",
        "--num_frames",
        "9",
        "--num_inference_steps",
        "3",
        *SIZE,
    )
    assert code == 0, err
    folder = Path("continuity_analysis")
    assert (folder / "continuity_statistics.json").exists() and (folder / "continuity_analysis.png").exists()
    latents = sorted(p.name for p in (folder / "debug_latents").glob("latent_step_*.pt"))
    assert latents == ["latent_step_01.pt", "latent_step_02.pt", "latent_step_03.pt"]


PRUNING = (
    "--enable_token_pruning",
    "--pruning_threshold",
    "20",
    "--pruning_baseline_steps=5",
    "--pruning_start_layer",
    "6",
    "--pruning_end_layer",
    "999",
)


def test_token_pruning_is_the_policy_prune() -> None:
    policy = "prune:threshold=20,baseline_steps=5,start_step=6,end_step=999"
    assert spelled(["generate", *PRUNING, "--seed", "3"]) == ["generate", "--seed", "3", "--policy", policy]
    assert spelled(["compare", "--enable_token_pruning"]) == ["compare", "--a", "prune"]
    assert spelled(["continuity", "--enable_token_pruning", "--", "x"]) == [
        "continuity",
        "--methods",
        "prune",
        "--",
        "x",
    ]


def test_the_documents_token_pruning_is_planned_with_its_layers_as_steps(wanlab: Wanlab) -> None:
    code, out, err = wanlab("generate", *PRUNING, *PROMPT, "--sampling_steps", "20", "--dry-run", "--json")
    assert code == 0, err
    (planned,) = [json.loads(out)] if isinstance(json.loads(out), dict) else json.loads(out)
    (policy,) = planned["spec"]["policies"]
    assert policy == {
        "name": "prune",
        "knobs": {"baseline_steps": 5, "end_step": 999, "start_step": 6, "threshold": 20},
    }
    assert planned["memory_bytes"]["keys"] == 2 * 8 * 256 * 4 * 585 * 2 and not planned["exact"]


def test_pruning_options_alone_would_have_no_effect() -> None:
    with pytest.raises(UsageError, match="no effect alone"):
        spelled(["generate", "--pruning_threshold", "20"])


def test_spellings_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert spelled(["generate", "--ckpt_dir", "tiny"]) == ["generate", "--model", "tiny"]
    (tmp_path / "tiny").mkdir()
    assert spelled(["generate", "--ckpt_dir", "tiny"]) == ["generate", "--model", "./tiny"]
    assert spelled(["generate", "--ckpt_dir=tiny"]) == ["generate", "--model=./tiny"]
    assert spelled(["generate", "--model", "tiny"]) == ["generate", "--model", "tiny"]
    assert spelled(["generate", "--prompt", "a_b", "--", "--frame_num"]) == [
        "generate",
        "--prompt",
        "a_b",
        "--",
        "--frame_num",
    ]
