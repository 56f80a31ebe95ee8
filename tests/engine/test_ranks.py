"""One clip on several processes: real ones, joined by gloo on the CPU."""

import json
import os
import re
import shutil
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
PROMPT = "a large red circle moving right on a black background"  # of the world: rounding takes others further
EXAMPLES = ROOT / "examples"
TIMED = {"seconds", "peak"}
FIRST_BLOCK = f"{EXAMPLES / 'first_block_cache.py'}:first_block_cache:threshold=0.5"
SKIP = f"{EXAMPLES / 'skip_every_other.py'}:skip_every_other"
KEYS = f"{HERE / 'methods_for_ranks.py'}:kept_keys"
LED = f"{HERE / 'methods_for_ranks.py'}:led"
SAID = f"{HERE / 'methods_for_ranks.py'}:coupled"
TRUNCATED = "cfg:last=2,high=2,keep=reuse"
POLICIES = {
    "plain": [],
    "truncated": [TRUNCATED],
    "half": ["half", "cfg:last=2"],
    "cache": [FIRST_BLOCK],
    "skip": [SKIP],
}


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


def with_timesteps_of_tokens(checkpoint, folder):
    """A copy of a checkpoint whose transformer is given a timestep for each token, as that of the TI2V-5B."""
    shutil.copytree(checkpoint, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"expand_timesteps": True}))
    return folder


def specs_for(checkpoint, single, per_token):
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
    made["cfg=2 keys and one branch"] = make_spec(checkpoint, policies=[KEYS, TRUNCATED], **more), True
    made["cfg=2 led"] = make_spec(checkpoint, policies=[LED], **more), True
    made["cfg=2 firstblock"] = make_spec(checkpoint, policies=["firstblock:threshold=0.5"], **more), True
    made["cfg=2 fp8"] = make_spec(checkpoint, precision="fp8", **more), True
    made["cfg=2 wide"] = make_spec(checkpoint, precision="exact", policies=[TRUNCATED], **more), False
    made["ulysses=2 fp8"] = make_spec(checkpoint, precision="fp8", **everything | {"parallel": "ulysses=2"}), False
    made["auto batched"] = make_spec(checkpoint, batch_cfg=True, **everything), False
    made["auto single"] = make_spec(single, **everything), True
    made["ulysses=2 per token"] = make_spec(per_token, **everything | {"parallel": "ulysses=2"}), False
    made["refused keys"] = make_spec(checkpoint, policies=[KEYS], **everything | {"parallel": "ulysses=2"}), True
    made["refused coupled"] = make_spec(checkpoint, policies=[SAID], **more), True
    made["refused degree"] = make_spec(checkpoint, **everything | {"parallel": "ulysses=4"}), True
    made["caught coupled"] = make_spec(checkpoint, policies=[f"{SAID}:said=false"], **more), True
    return made


@pytest.fixture(scope="module")
def job(tmp_path_factory, checkpoint, single_checkpoint):
    """(folder, specs, files of one process, errors) of a job of two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    per_token = with_timesteps_of_tokens(single_checkpoint, tmp_path_factory.mktemp("per_token") / "model")
    made = specs_for(checkpoint, single_checkpoint, per_token)
    (folder / "specs.json").write_text(json.dumps({name: spec.to_json() for name, (spec, _) in made.items()}))
    both = start(2, str(HERE / "ranks_job.py"), str(folder))
    said = [p.communicate(timeout=300)[1] for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    return folder, made, *(json.loads((folder / f"{name}.json").read_text()) for name in ("alone", "errors"))


def contents(path):
    with Run(path) as opened:
        return {name: opened[name][...] for name in opened.data if name not in TIMED}


def test_a_branch_on_each_process_is_equal_to_one_process_bit_by_bit(job):
    folder, made, alone, errors = job
    exact = [n for n, (_, identical) in made.items() if identical and n not in errors]
    assert len(exact) == 12
    assert len({*contents(folder / "cfg=2 led.h5")["block_tokens"].tolist()}) > 1  # it did decide
    for name in exact:
        a, b = contents(folder / f"{name}.h5"), contents(alone[name])
        assert a.keys() == b.keys()
        for field, value in a.items():
            if field == "video" and "fp8" in name:
                continue  # which each decodes a half of, outside of reference mode
            assert np.array_equal(value, b[field], equal_nan=value.dtype.kind == "f"), (name, field)


def test_tokens_on_each_process_give_the_same_within_rounding(job):
    folder, made, alone, errors = job
    near = [n for n, (_, identical) in made.items() if not identical and n not in errors]
    assert len(near) == 11
    for name in near:
        a, b = contents(folder / f"{name}.h5"), contents(alone[name])
        assert np.abs(a["video"].astype(int) - b["video"]).max() <= (255 if "fp8" in name else 1), name
        error = np.linalg.norm(a["latent"] - b["latent"]) / np.linalg.norm(b["latent"])
        assert error < (2e-2 if "fp8" in name else 1e-5), name
        for field in ("passes", "tokens", "block_tokens", "attention_pairs", "operations", "status_cond"):
            assert np.array_equal(a[field], b[field]), (name, field)


def test_the_file_says_how_many_ranks_there_were(job):
    folder, _, files, _ = job
    with Run(folder / "cfg=2 plain.h5") as shared, Run(files["cfg=2 plain"]) as alone:
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
        (
            "refused degree",
            "UsageError",
            "--parallel ulysses=4 is for 4 processes, there are 2; start it with torchrun",
        ),
        ("caught coupled", "JobError", "remembers of both branches what one of them gave"),
    ],
)
def test_what_ranks_cannot_do_is_refused_by_name(job, name, kind, says):
    folder, _, _, errors = job
    assert errors[name][0] == kind
    assert says in errors[name][1]
    assert not (folder / f"{name}.h5").exists()


def torchrun(count, *arguments):
    """`torchrun -m wanlab` in a group of processes of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--standalone"]
    return subprocess.Popen(
        [*command, "-m", "wanlab", "generate", "-p", PROMPT, "--no-error-analysis", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ranks_of(parent):
    """The process of each rank that `parent` started."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    variables = {int(pid): Path(f"/proc/{pid}/environ").read_text() for pid in children}
    return {int(m[1]): pid for pid, text in variables.items() if (m := re.search(r"(?:^|\0)RANK=(\d+)", text))}


def said_by_wanlab(text):
    return [line for line in text.splitlines() if line.startswith("wanlab: ")]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0])
def test_a_rank_that_is_killed_ends_all_at_once_and_the_run_goes_on_by_another_number(tmp_path, checkpoint, victim):
    arguments = ["--model", str(checkpoint), "--size", "32x32", "--frames", "9", "--steps", "150"]
    out, part = tmp_path / "a.h5", tmp_path / "a.h5.part"
    job = torchrun(2, *arguments, "--out", str(out))
    while len(list(part.glob("step-*"))) < 3:
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)
    pids = ranks_of(job.pid)
    assert set(pids) == {0, 1}
    os.kill(pids[victim], signal.SIGKILL)
    killed = time.monotonic()
    _, errors = job.communicate(timeout=60)
    assert time.monotonic() - killed < 10
    assert job.returncode == 1
    (line,) = said_by_wanlab(errors)
    assert line.startswith(f"wanlab: rank {victim} died (start the same command again")
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())

    resumed = torchrun(3, *arguments, "--out", str(out))
    assert resumed.wait(timeout=300) == 0, resumed.communicate()
    alone = torchrun(1, *arguments, "--out", str(tmp_path / "b.h5"))
    assert alone.wait(timeout=300) == 0, alone.communicate()
    with Run(out) as opened:
        (first, layout), (step, other) = opened.attrs["layouts"]
        assert (first, layout, other) == (0, "cfg=2", "ring=3")  # there are two heads
        assert step >= 2 and opened.attrs["ranks"] == 3  # the third step may not have been whole
    a, b = contents(out)["latent"], contents(tmp_path / "b.h5")["latent"]
    assert np.linalg.norm(a - b) / np.linalg.norm(b) < 1e-4


@pytest.mark.slow
def test_an_error_of_one_rank_is_said_once_in_its_words_and_ends_all(tmp_path, checkpoint):
    spec = make_spec(
        checkpoint, steps=8, frames=9, parallel="cfg=2", policies=[f"{HERE / 'methods_for_ranks.py'}:faulty"]
    )
    (tmp_path / "specs.json").write_text(json.dumps({"faulty": spec.to_json()}))
    both = start(2, str(HERE / "ranks_job.py"), str(tmp_path))
    said = [p.communicate(timeout=120)[1] for p in both]
    assert [p.returncode for p in both] == [1, 1]
    lines = [line for text in said for line in said_by_wanlab(text)]
    assert len(lines) == 1
    assert lines[0].startswith("wanlab: rank 1: RuntimeError: no luck here (methods_for_ranks.py, line ")


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_the_help_and_an_error_end_every_rank(tmp_path):
    job = torchrun(2, "--steps", "1000", "--frames", "5", "--out", str(tmp_path / "a.h5"))
    while len(list((tmp_path / "a.h5.part").glob("step-*"))) < 3:
        assert job.poll() is None, job.communicate()
        time.sleep(0.05)
    os.killpg(job.pid, signal.SIGINT)  # as a terminal does
    _, errors = job.communicate(timeout=40)
    assert [line[:16] for line in said_by_wanlab(errors)] == ["wanlab: stopped "]
    for arguments, code, says in ((["--help"], 0, ""), (["--steps", "0"], 1, "wanlab: --steps 0 is out of range")):
        job = torchrun(2, *arguments)
        _, errors = job.communicate(timeout=60)
        assert job.returncode == code
        assert [line.partition(" (")[0] for line in said_by_wanlab(errors)] == ([says] if says else [])


@pytest.mark.slow
@pytest.mark.parametrize(("count", "layout"), [(4, "cfg=2,ring=2"), (3, "ulysses=3")])
def test_more_ranks_on_the_embedded_model_are_within_rounding(tmp_path, count, layout):
    files = []
    for processes, parallel in ((count, layout), (1, "none")):
        files.append(tmp_path / f"{processes}.h5")
        arguments = ["--steps", "6", "--policy", "cfg:last=2", "--parallel", parallel, "--out", str(files[-1])]
        job = torchrun(processes, *arguments)
        assert job.wait(timeout=300) == 0, job.communicate()
    with Run(files[0]) as opened:
        assert opened.spec.parallel == layout
    a, b = (contents(f) for f in files)
    assert np.linalg.norm(a["latent"] - b["latent"]) / np.linalg.norm(b["latent"]) < 1e-5
    assert np.array_equal(a["passes"], b["passes"]) and np.array_equal(a["operations"], b["operations"])


@pytest.mark.parametrize(
    ("total", "count", "unit", "expected"),
    [
        (585, 2, 1, [293, 292]),
        (585, 2, 64, [320, 265]),  # 10 units, the last of 9 tokens
        (585, 3, 64, [256, 192, 137]),
        (20280, 8, 1, [2535] * 8),
        (3, 2, 64, [2, 1]),
        (40, 3, 1, [14, 13, 13]),
        (1, 2, 1, [1, 0]),
        (1, 2, 64, [1, 0]),
    ],
)
def test_tokens_and_heads_are_split_into_whole_units(total, count, unit, expected):
    assert parts(total, count, unit) == expected
