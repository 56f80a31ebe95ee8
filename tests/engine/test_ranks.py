"""One clip on several processes: real ones, joined by gloo on the CPU."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from wanlab.engine.ranks.sequence import parts
from wanlab.runfile import Run
from wanlab.spec import RecordSpec

from .helpers import make_spec

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
EXAMPLES = ROOT / "examples"
TIMED = {"seconds", "peak"}
FIRST_BLOCK = f"{EXAMPLES / 'first_block_cache.py'}:first_block_cache:threshold=0.5"
SKIP = f"{EXAMPLES / 'skip_every_other.py'}:skip_every_other"
KEYS = f"{HERE / 'methods_for_ranks.py'}:kept_keys"
SAID = f"{HERE / 'methods_for_ranks.py'}:coupled"
TRUNCATED = "cfg:last=2,high=2,keep=reuse"
POLICIES = {"plain": [], "truncated": [TRUNCATED], "half": ["half", "cfg:last=2"], "cache": [FIRST_BLOCK], "skip": [SKIP]}


def start(count: int, *command: str, **env: str) -> list[subprocess.Popen[str]]:
    """The command in `count` processes with the variables that torchrun sets."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = os.environ | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | env
    common |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env=common | {"RANK": str(k), "LOCAL_RANK": str(k)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(count)
    ]


def specs_for(checkpoint, single):
    """By name: spec, and whether the result is to be that of one process bit by bit."""
    everything = {"steps": 16, "frames": 9, "vae_dtype": "float32", "record": RecordSpec(level="all")}
    probed = RecordSpec(level="all", probe=True)
    made = {}
    for layout in ("cfg=2", "ulysses=2", "ring=2"):
        for name, texts in POLICIES.items():
            if layout != "ring=2" or name in ("plain", "cache"):
                spec = make_spec(checkpoint, parallel=layout, policies=texts, **everything)
                made[f"{layout} {name}"] = (spec, layout == "cfg=2")
    more = everything | {"parallel": "cfg=2"}
    made["cfg=2 probed"] = make_spec(checkpoint, policies=[TRUNCATED], **more | {"record": probed}), True
    made["cfg=2 keys"] = make_spec(checkpoint, policies=[KEYS], **more), True
    made["cfg=2 fp8"] = make_spec(checkpoint, precision="fp8", **more), True
    made["cfg=2 wide"] = make_spec(checkpoint, precision="exact", policies=[TRUNCATED], **more), False
    made["ulysses=2 fp8"] = make_spec(checkpoint, precision="fp8", **everything | {"parallel": "ulysses=2"}), False
    made["auto batched"] = make_spec(checkpoint, batch_cfg=True, **everything), False
    made["auto single"] = make_spec(single, **everything), True
    made["refused keys"] = make_spec(checkpoint, policies=[KEYS], **everything | {"parallel": "ulysses=2"}), True
    made["refused coupled"] = make_spec(checkpoint, policies=[SAID], **more), True
    made["refused degree"] = make_spec(checkpoint, **everything | {"parallel": "ulysses=4"}), True
    made["caught coupled"] = make_spec(checkpoint, policies=[f"{SAID}:said=false"], **more), True
    return made


@pytest.fixture(scope="module")
def job(tmp_path_factory, checkpoint, single_checkpoint):
    """(folder, specs, errors) of a job of two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    made = specs_for(checkpoint, single_checkpoint)
    (folder / "specs.json").write_text(json.dumps({name: spec.to_json() for name, (spec, _) in made.items()}))
    both = start(2, str(HERE / "ranks_job.py"), str(folder))
    said = [p.communicate(timeout=300)[1] for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    return folder, made, json.loads((folder / "errors.json").read_text())


def contents(path):
    with Run(path) as opened:
        return {name: opened[name][...] for name in opened.data if name not in TIMED}


def same_latents(folder, name):
    return contents(folder / f"{name}.h5")["latent"], contents(folder / f"{name}.alone.h5")["latent"]


def test_a_branch_on_each_process_is_equal_to_one_process_bit_by_bit(job):
    folder, made, errors = job
    exact = [n for n, (_, identical) in made.items() if identical and n not in errors]
    assert len(exact) == 9
    for name in exact:
        a, b = contents(folder / f"{name}.h5"), contents(folder / f"{name}.alone.h5")
        assert a.keys() == b.keys()
        for field, value in a.items():
            assert np.array_equal(value, b[field], equal_nan=value.dtype.kind == "f"), (name, field)


def test_tokens_on_each_process_give_the_same_within_rounding(job):
    folder, made, errors = job
    near = [n for n, (_, identical) in made.items() if not identical and n not in errors]
    assert len(near) == 10
    for name in near:
        a, b = contents(folder / f"{name}.h5"), contents(folder / f"{name}.alone.h5")
        error = np.linalg.norm(a["latent"] - b["latent"]) / np.linalg.norm(b["latent"])
        assert error < (2e-2 if "fp8" in name else 1e-5), name
        for field in ("passes", "tokens", "block_tokens", "attention_pairs", "operations", "status_cond"):
            assert np.array_equal(a[field], b[field]), (name, field)


def test_the_file_says_how_many_ranks_there_were(job):
    folder, *_ = job
    with Run(folder / "cfg=2 plain.h5") as shared, Run(folder / "cfg=2 plain.alone.h5") as alone:
        assert (shared.attrs["ranks"], alone.attrs["ranks"]) == (2, 1)
        assert shared.attrs["layouts"] == [[0, "cfg=2"]]
        assert (shared.spec.parallel, alone.spec.parallel) == ("cfg=2", "none")
        assert shared.digest == alone.digest
    with Run(folder / "auto batched.h5") as batched:
        assert batched.spec.parallel == "ulysses=2"  # both branches are in one place


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("refused keys", "UsageError", "policy kept_keys keeps keys of all heads"),
        ("refused coupled", "UsageError", "policy coupled looks at one branch to evaluate the other"),
        ("refused degree", "UsageError", "--parallel ulysses=4 is for 4 processes, there are 2; start it with torchrun"),
        ("caught coupled", "JobError", "remembers of both branches what one of them gave"),
    ],
)
def test_what_ranks_cannot_do_is_refused_by_name(job, name, kind, says):
    folder, _, errors = job
    assert errors[name][0] == kind
    assert says in errors[name][1]
    assert not (folder / f"{name}.h5").exists()


@pytest.mark.parametrize(
    ("total", "count", "unit", "expected"),
    [
        (585, 2, 1, [293, 292]),
        (585, 2, 64, [320, 265]),  # 10 units, the last of 9 tokens
        (585, 3, 64, [256, 192, 137]),
        (20280, 8, 1, [2535] * 8),
        (3, 2, 64, [2, 1]),
        (40, 3, 1, [14, 13, 13]),
    ],
)
def test_tokens_and_heads_are_split_into_whole_units(total, count, unit, expected):
    assert parts(total, count, unit) == expected
