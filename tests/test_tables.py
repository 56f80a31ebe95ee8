"""The commands that make the tables of docs; what they sample is tried where methods are."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import tables
from wanlab.cli.app import app


@pytest.mark.parametrize("name", tables.TABLES)
def test_the_command_of_a_table_is_one(name: str, tmp_path: Path) -> None:
    words = tables.command(tables.TABLES[name], tmp_path, prompts=1, seeds=1)
    result = CliRunner().invoke(app, [*words, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "1 prompt" in result.output and "runs" in result.output


def test_prompts_are_spread_over_a_suite() -> None:
    every = tables.some("held-out", 32)
    assert tables.some("held-out", 16) == every[::2] and tables.some("held-out", 3) == every[::10][:3]
