"""What makes the tables of docs and benchmarks; what they sample is tried where methods are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from benchmarks import a14b, tables
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


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 cores: 8 processes have 2 each, and what was there before is there again whatever happened."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with pytest.raises(KeyboardInterrupt), tables.shared(8) as way:
        assert way == "taking turns" and os.environ["OMP_NUM_THREADS"] == "2"
        raise KeyboardInterrupt
    assert not {"OMP_NUM_THREADS", "CUDA_MPS_PIPE_DIRECTORY"} & set(os.environ)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with tables.shared(8):
        assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_shares_of_a_trace_by_hand() -> None:
    """Ten microseconds: products to 4 and from 6 to 8, NCCL from 3 to 6 and from 9 to 10, so that 8 to 9 is idle; what
    the CPU does is not looked at."""
    kernels = [("gemm", 0, 4), ("ncclDevKernel_SendRecv", 3, 6), ("gemm", 6, 8), ("ncclDevKernel_AllGather", 9, 10)]
    events = [("CUDA", *kernel) for kernel in kernels] + [("CUDA", "empty", 8.5, 8.5), ("CPU", "nccl:recv", 0, 100)]
    trace = a14b.Trace()
    trace._profiler = SimpleNamespace(  # type: ignore[assignment]
        events=lambda: [
            SimpleNamespace(device_type=SimpleNamespace(name=on), name=name, time_range=SimpleNamespace(start=b, end=e))
            for on, name, b, e in events
        ]
    )
    assert trace.idle() == pytest.approx(0.1)
    assert trace.communicating() == pytest.approx((0.4, 0.3))
