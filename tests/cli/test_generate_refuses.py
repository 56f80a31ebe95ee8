"""Bad input to `wanlab generate`: exit 2 and one line that says the remedy, before any model is loaded."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from wanlab.cli.app import main
from wanlab.cli.spelling import spelled

Refused = Callable[..., str]
PROMPT = ("--prompt", "a red ball moving left")


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path
) -> Refused:
    """Run `wanlab generate ARGS` and return the one line that it refuses them with."""

    def loads(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    def run(*args: str) -> str:
        from wanlab.engine.model import loading as models

        monkeypatch.setattr(models, "load", loads)
        given = args if "--out" in args else (*args, "--out", str(tmp_path / "out"))
        given = given if "--model" in given else (*given, "--model", str(checkpoint))
        with pytest.raises(SystemExit) as stop:
            main(["generate", *given])
        said = capsys.readouterr()
        assert stop.value.code == 2, said.err
        assert said.out == ""
        assert said.err.startswith("wanlab: ") and said.err.count("\n") == 1, said.err
        assert said.err.isprintable() or said.err[:-1].isprintable()
        return said.err

    return run


def test_frames_not_4n_plus_1(refused: Refused) -> None:
    said = refused(*PROMPT, "--frames", "50")
    assert "49" in said and "53" in said


def test_the_documents_spelling_is_checked_alike(refused: Refused) -> None:
    assert "49" in refused(*PROMPT, "--frame_num", "50")


def test_size_not_a_multiple_of_16(refused: Refused) -> None:
    said = refused(*PROMPT, "--size", "150x80")
    assert "144" in said and "160" in said


def test_size_that_is_no_size(refused: Refused) -> None:
    assert "832x480" in refused(*PROMPT, "--size", "big")


def test_a_tasks_settings_are_not_tinys(refused: Refused) -> None:
    assert "--model" in refused(*PROMPT, "--task", "t2v-A14B", "--model", "tiny")


def test_unknown_model(refused: Refused) -> None:
    assert "tiny" in refused(*PROMPT, "--model", "tinny")


def test_folder_without_a_checkpoint(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refused(*PROMPT, "--model", str(tmp_path / "empty"))


def test_half_a_checkpoint(refused: Refused, tmp_path: Path, checkpoint: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(checkpoint, half)
    for file in (half / "transformer_2").glob("*.safetensors"):
        file.unlink()
    assert "transformer_2" in refused(*PROMPT, "--model", str(half))


def test_pickle_where_safetensors_belong(refused: Refused, tmp_path: Path, checkpoint: Path) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(checkpoint, pickled)
    for file in (pickled / "transformer").glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    said = refused(*PROMPT, "--model", str(pickled))
    assert "safetensors" in said


def test_output_that_cannot_be_written(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "file" in refused(*PROMPT, "--out", str(tmp_path / "file" / "run.h5"))
    assert "folder" in refused(*PROMPT, "--out", str(tmp_path / "file"))


def test_several_runs_into_one_file(refused: Refused, tmp_path: Path) -> None:
    assert "folder" in refused(*PROMPT, "--seed", "0:2", "--out", str(tmp_path / "run.h5"))


@pytest.mark.parametrize("steps", ["-3", "0"])
def test_steps_out_of_range(refused: Refused, steps: str) -> None:
    assert "1 to" in refused(*PROMPT, "--steps", steps)


def test_truncating_more_steps_than_there_are(refused: Refused) -> None:
    assert "0 to 20" in refused(*PROMPT, "--cfg-truncate-steps", "21")


def test_truncating_more_high_noise_steps_than_there_are(refused: Refused) -> None:
    # 20 steps under tiny's shift: 13 are high-noise
    assert "0 to 13" in refused(*PROMPT, "--cfg-truncate-high-noise-steps", "14")


def test_unknown_policy_and_knob(refused: Refused) -> None:
    assert "cfg" in refused(*PROMPT, "--policy", "cgf:last=5")
    assert "last" in refused(*PROMPT, "--policy", "cfg:lst=5")


def test_no_prompt(refused: Refused) -> None:
    assert "--prompts" in refused()


def test_empty_prompt_file(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("\n  \n")
    assert "one prompt a line" in refused("--prompts", str(tmp_path / "none.txt"))


def test_missing_prompt_file(refused: Refused, tmp_path: Path) -> None:
    assert "cannot read" in refused("--prompts", str(tmp_path / "gone.txt"))


def test_prompt_file_that_is_not_text(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"a ball \xff\xfe")
    assert "UTF-8" in refused("--prompts", str(tmp_path / "bytes"))


def test_broken_json_line(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a ball"}\n{"prompt": \n')
    assert "line 2" in refused("--prompts", str(tmp_path / "p.jsonl"))


def test_unknown_setting_in_a_json_line(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a ball", "stepps": 3}\n')
    assert "steps" in refused("--prompts", str(tmp_path / "p.jsonl"))


def test_prompt_of_100_kilobytes(refused: Refused) -> None:
    assert "shorten" in refused("--prompt", "ball " * 20_000)


@pytest.mark.parametrize("bad", ["a\x00ball", "a \x1b[31mball", "a \x9b31mball"])
def test_prompt_with_control_characters(refused: Refused, bad: str) -> None:
    said = refused("--prompt", bad)
    assert "control character" in said and "\x1b" not in said


@pytest.mark.parametrize("seed", ["x", "5:5", "8:2", "-1"])
def test_seeds_that_are_none(refused: Refused, seed: str) -> None:
    assert "seed" in refused(*PROMPT, f"--seed={seed}")


def test_unknown_option(refused: Refused) -> None:
    assert "--help" in refused(*PROMPT, "--framez", "49")


def test_unknown_device_and_format(refused: Refused) -> None:
    assert "cuda" in refused(*PROMPT, "--device", "gpu")
    assert "json" in refused(*PROMPT, "--format", "jsn")


def test_the_documents_commands_are_understood() -> None:
    line = (
        "generate --task t2v-A14B --ckpt_dir D --enable_debug --frame_num 49 --sampling_steps=20 --prompt a_b -- --x_y"
    )
    # --debug-outputs: with the guide's own spelling the error analysis lies where the guide says
    want = (
        "generate --task t2v-A14B --model D --enable-debug --frames 49 --steps=20 --prompt a_b --debug-outputs -- --x_y"
    )
    assert spelled(line.split()) == want.split()


def test_help_and_inspect_import_no_torch() -> None:
    program = (
        "import sys\nfrom wanlab.cli.app import main\n"
        "try: main(['generate', '--help'])\nexcept SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'diffusers', 'transformers', 'matplotlib'} & set(sys.modules), sorted(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--prompt" in done.stdout and "frame_num" not in done.stdout
