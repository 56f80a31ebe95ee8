"""`wanlab methods`, and the page of the docs that is made from the same place."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from wanlab.cli import methods
from wanlab.cli.app import main

PAGE = Path(__file__).parents[2] / "docs" / "methods-reference.md"


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*args: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["methods", *args])
        said = capsys.readouterr()
        assert stop.value.code == code, said.err
        return said.out if not code else said.err

    return run


def test_the_page_of_the_docs_is_current() -> None:
    """In a process of its own: other tests register methods and metrics in this one."""
    said = subprocess.run(
        [sys.executable, "-m", "wanlab", "methods", "--format", "md"], capture_output=True, check=True
    )
    assert PAGE.read_bytes() == said.stdout, "wanlab methods --format md > docs/methods-reference.md"


def test_every_policy_and_solver_is_listed_with_its_knobs_and_defaults(shown: Callable[..., str]) -> None:
    entries = {(e["kind"], e["name"]): e for e in json.loads(shown("--json"))}
    cfg = {k["name"]: (k["default"], k["type"]) for k in entries["policy", "cfg"]["knobs"]}
    assert cfg == {"last": ("0", "int"), "high": ("0", "int"), "keep": ("uncond", "uncond or cond or reuse")}
    assert entries["solver", "unipc"]["sources"] == ['Zhao et al., "UniPC", 2023']
    assert {("policy", "half"), ("policy", "paired"), ("solver", "dpm++"), ("solver", "euler")} <= set(entries)
    rows = list(csv.DictReader(io.StringIO(shown("--format", "csv"))))
    assert {(r["kind"], r["name"]) for r in rows} == set(entries)


def test_one_of_them_in_full(shown: Callable[..., str]) -> None:
    said = shown("half", "--format", "human")
    assert "strided" in said and "duplicate" in said and "UniPC" not in said
    assert shown("half", "--format", "md").startswith("### `half`")
    assert "did you mean half" in shown("halff", code=2)
    assert shown("cgf", code=2).count("cfg?") == 1  # a policy and a guider have that name
    assert "`wanlab methods` lists them" in shown("zzz", code=2)


def test_metrics_are_listed_with_what_they_need(shown: Callable[..., str]) -> None:
    entries = {e["name"]: e for e in json.loads(shown("--json")) if e["kind"] == "metric"}
    assert {"psnr", "ssim", "pass_equivalents", "vmaf"} <= set(entries)
    assert entries["ssim"]["cost"] == "needs frame pair"
    assert "| `ssim` |" in methods.markdown()


def test_what_a_docstring_says() -> None:
    @dataclass
    class Skip:
        """Leave out every n-th step (Doe & Roe, "Skipping", 2024a), see https://example.org/skip.

        every  how often;
               a second line
        way    what is done

        Cost: one pass less
        in n steps.

        More.
        """

        every: int
        way: Literal["a", "b"] = "a"
        hard: bool = False

    @dataclass
    class Told(Skip):
        """One line (Doe, 2020).

        Cost: none.
        Source: the guide,
        and Roe.
        """

    told = methods.describe("policy", "told", Told)
    assert (told.cost, told.sources) == ("none.", ("the guide, and Roe",))
    entry = methods.describe("policy", "skip", Skip)
    assert entry.cost == "one pass less in n steps."
    assert entry.sources == ('Doe & Roe, "Skipping", 2024a', "https://example.org/skip")
    assert [(k.name, k.type, k.default, k.says) for k in entry.knobs] == [
        ("every", "int", "required", "how often; a second line"),
        ("way", "a or b", "a", "what is done"),
        ("hard", "bool", "false", ""),
    ]
