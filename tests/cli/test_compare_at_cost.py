"""`wanlab compare --at-cost` and lists of methods, as users run them, on a small checkpoint with random weights."""

from __future__ import annotations

import json

import pytest

from wanlab.cli.app import main

SMALL = ("--size", "32x32", "--frames", "9", "--steps", "6", "--prompt", "a red ball")


@pytest.fixture
def wanlab(checkpoint, capsys, tmp_path):
    """Run a comparison into `tmp_path`; returns (exit code, stdout, stderr)."""

    def run(*args):
        with pytest.raises(SystemExit) as stop:
            main(["compare", *args, "--out", str(tmp_path / "out"), "--model", str(checkpoint), *SMALL])
        printed = capsys.readouterr()
        return stop.value.code, printed.out, printed.err

    return run


def test_methods_and_controls_at_one_cost(wanlab, tmp_path, monkeypatch):
    """6 steps of two passes: two thirds are 4 steps evaluated, or 2 of 6 steps with both branches. adaptive decides
    while it runs; its runs are kept and are those that are compared."""
    monkeypatch.setattr("wanlab.study.compare._figures", lambda *_: {})  # drawn by other tests
    code, out, err = wanlab("--a", "cfg:last=1,keep=cond", "--a", "adaptive", "--at-cost", "0.667", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [m["label"] for m in found["methods"][:3]] == [
        "evenly spaced, keep=4",
        "random, keep=4",
        "cfg:keep=cond,last=4",
    ]
    adaptive = found["methods"][3]
    assert adaptive["setting"] == {"at_cost": 0.667, "rule": "adaptive"}
    for method in found["methods"]:
        assert method["summary"]["operations"]["mean"] == pytest.approx(
            method["summary"]["operations_baseline"]["mean"] * 2 / 3, rel=1e-3
        )
    assert "adaptive:threshold=0.991: 0.667 of the operations in 1 runs" in err
    line = found["answer"][0]
    assert line.startswith("at 0.667 of the operations (by the means of 1 prompt alone) ") and "keep=4 (0.667)" in line
    assert "2 of 5 runs were complete already" in err
    assert len(list(tmp_path.rglob("*.h5"))) == 5  # the baseline and four methods


def test_several_methods_are_compared(wanlab):
    code, out, err = wanlab("--a", "cfg:last=1", "--a", "cfg:last=2", "--a", "cfg:last=1", "--dry-run", "--json")
    assert code == 0, err
    assert [r["method"] for r in json.loads(out)] == ["baseline", "cfg:last=1", "cfg:last=2"]


def test_a_list_is_compared_whole_or_in_part(wanlab, tmp_path):
    code, out, err = wanlab("--methods", "builtin:guidance", "--dry-run", "--json")
    assert code == 0, err
    labels = [r["method"] for r in json.loads(out)]
    # Of 6 steps 2 are low-noise: with the last five truncated no difference of the same expert is there to use again.
    assert labels == ["baseline", "uncond at the end", "cond at the end", "interval", "adaptive", "cfgcache"]
    assert "note: left out, difference again: reuse at step 5" in err
    code, out, err = wanlab("--methods", "builtin:guidance", "--a", "adaptive", "--a", "half", "--dry-run", "--json")
    assert code == 0 and [r["method"] for r in json.loads(out)] == ["baseline", "adaptive", "half"]
    (tmp_path / "mine.toml").write_text('[methods.x]\npolicies = ["cfg:last=1"]\n[methods.y]\npolicies = ["half"]\n')
    code, out, _ = wanlab("--methods", str(tmp_path / "mine.toml"), "--b", "y", "--dry-run", "--json")
    assert code == 0 and [r["method"] for r in json.loads(out)] == ["y", "x"]


def test_a_dry_run_finds_what_is_known_beforehand(wanlab, tmp_path):
    code, out, err = wanlab("--a", "interval", "--a", "adaptive", "--at-cost", "0.75,0.667", "--dry-run")
    assert code == 0 and not (tmp_path / "out").exists()
    assert "interval:stop=0.5" in out and "evenly spaced, keep=4" in out
    assert "note: not known before sampling at 0.75, 0.667 of the operations, adaptive: it decides while it runs" in err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--a", "cfg:last=1", "--at-cost", "2"), "write --at-cost 0.6, or 0.75,0.6 for several"),
        (("--at-cost", "0.5"), "give --a METHOD, or --methods builtin:caches"),
        (("--mode", "cfg_vs_baseline", "--at-cost", "0.5"), "--at-cost and --mode both name methods"),
        (("--a", "half", "--sweep", "cfg.last=1:3", "--at-cost", "0.5"), "give one --a, and no --at-cost"),
        (("--a", "half", "--a", "paired", "--sweep", "cfg.last=1:3"), "a sweep is laid over one method"),
        (("--a", "half", "--at-cost", "0.5"), "half has no knob that trades cost for quality"),
        (("--a", "cfg:last=1", "--at-cost", "0.2"), "cfg:last=1: last=6 costs 0.500 of the operations, the least"),
        (("--methods", "builtin:cache"), "there is no list of methods 'builtin:cache' (did you mean caches?)"),
        (("--a", "x.h5", "--b", "y.h5", "--at-cost", "0.5"), "two videos are given (leave them out)"),
        (("--a", "cfg:last=1", "--at-cost", "0.6,0.7", "--seed", "0:200"), "1400 runs or more (add --yes"),
    ],
)
def test_bad_requests(wanlab, args, said):
    code, out, err = wanlab(*args)
    assert code == 2 and said in err and out == "" and len(err.strip().splitlines()) == 1
