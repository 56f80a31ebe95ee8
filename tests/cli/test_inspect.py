"""`wanlab inspect`: several files, hostile text, and reading in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wanlab import runfile
from wanlab.cli import inspect
from wanlab.cli.app import main
from wanlab.errors import WanlabError
from wanlab.spec import PolicySpec, RunSpec

Inspect = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_inspect(capsys: pytest.CaptureFixture[str]) -> Inspect:
    def run(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["inspect", *args])
        said = capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err

    return run


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run file whose every text is an attack."""
    from wanlab.runfile import Field, RunWriter

    path = tmp_path_factory.mktemp("inspect") / "r\x1b[31m.h5"
    spec = RunSpec(prompt="a ball", steps=1)
    attrs = {"versions": {"torch\x1b[2J": "2\x9b"}, "device_name": "=cmd()\x1b]0;x\x07"}
    field = Field("mse", (), "float64", "=1+1\x1b[5m", "<b>\x1b[1m")
    with RunWriter(path, spec_json=spec.to_json(), digest=spec.digest(), attrs=attrs, fields=[field]) as writer:
        writer.step(0, {"mse": 1.0})
        return writer.finish({}, {})


def test_hostile_text_is_shown_without_its_escapes(run_inspect: Inspect, sound: Path) -> None:
    code, out, err = run_inspect(str(sound), "--verify")
    assert code == 0 and err == "" and "sound" in out and "a ball" in out
    assert out.replace("\n", "").isprintable()


def test_a_policy_is_shown_as_it_is_typed() -> None:
    """Knobs, the file that registers it, and a guider with its own; what another version may have written besides."""
    spec = RunSpec(prompt="a", policies=(PolicySpec.parse("cfg:last=2,keep=cond"), PolicySpec.parse("paired")))
    assert inspect._described(json.loads(spec.to_json())).endswith("guidance 4.0,4.0, cfg:keep=cond,last=2 paired")
    file = {"name": "every", "knobs": {"every": 3}, "file": "/somewhere/skip.py"}
    said = inspect._described({"policies": [file], "guider": {"name": "cfgzero", "knobs": {"start": 1}}})
    assert said.endswith("skip.py:every:every=3 guider=cfgzero:start=1")
    assert inspect._described({"policies": [{"name": "x", "knobs": 3}]}).endswith("unknown, x")
    assert inspect._described({"policies": [{"name": "prune", "knobs": {"corrector": False}}]}).endswith(
        "prune:corrector=false"
    )


def test_a_cell_of_csv_is_no_formula_and_of_markdown_no_html(run_inspect: Inspect, sound: Path) -> None:
    _, out, _ = run_inspect(str(sound), "--format", "csv")
    assert "'=1+1" in out and "\x1b" not in out
    _, out, _ = run_inspect(str(sound), "--format", "md")
    assert "&lt;b&gt;" in out and "<b>" not in out and "\x1b" not in out


def test_the_good_ones_are_printed_when_one_is_bad(run_inspect: Inspect, sound: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.h5"
    bad.write_bytes(b"no run file")
    code, out, err = run_inspect(str(bad), str(sound), "--json")
    assert code == 3 and [c["path"] for c in json.loads(out)] == [str(sound)]
    assert err.count("\n") == 1 and str(bad) in err
    code, out, _ = run_inspect(str(bad), str(bad), "--json")
    assert code == 1 and json.loads(out) == []
    code, out, err = run_inspect(str(bad))
    assert code == 1 and out == "" and err.count("\n") == 1


def test_a_damaged_file_among_sound_ones_is_3(run_inspect: Inspect, sound: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.h5"
    cut.write_bytes(sound.read_bytes()[:-1])
    code, out, _ = run_inspect(str(sound), str(cut), "--verify", "--json")
    assert code == 3 and [bool(c["problems"]) for c in json.loads(out)][:1] == [False]


def test_untrusted_files_are_read_in_a_child(
    run_inspect: Inspect, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    bomb = tmp_path / "bomb.h5"
    bomb.touch()

    def child(path: Path, memory: int, seconds: float, check: bool = False) -> dict[str, Any]:
        asked.append((path, memory, seconds, check))
        if path.name == "bomb.h5":
            raise WanlabError(f"{path} takes more than {memory} bytes to read", "it is damaged, or made to harm")
        return runfile.summary(path, check)

    monkeypatch.setattr(runfile, "read_in_child", child)
    code, out, err = run_inspect("--untrusted", str(bomb), str(sound), "--json")
    assert code == 3 and len(json.loads(out)) == 1 and "made to harm" in err
    assert asked == [
        (bomb, inspect.MEMORY, inspect.SECONDS, False),
        (sound, inspect.MEMORY, inspect.SECONDS, False),
    ]
