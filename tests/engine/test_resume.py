"""An interrupted run goes on as if it had not been: bit for bit, for every solver and every policy with state."""

import os
import random
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import torch

from wanlab.engine import run
from wanlab.errors import UsageError
from wanlab.runfile import Run, RunWriter, part_directory, verify
from wanlab.spec import RecordSpec

from .helpers import make_spec

STEPS = 16
TIMED = {"seconds"}


def spec_for(checkpoint, solver="unipc", policies=(), **changes):
    given = {"steps": STEPS, "frames": 9, "record": RecordSpec(level="all"), "vae_dtype": "float32"}
    return make_spec(checkpoint, solver=solver, policies=policies, **(given | changes))


def contents(path):
    with Run(path) as opened:
        return {name: opened[name][...] for name in opened.data if name not in TIMED}


def assert_same(a, b):
    a, b = contents(a), contents(b)
    assert a.keys() == b.keys()
    for name in a:
        assert np.array_equal(a[name], b[name], equal_nan=a[name].dtype.kind == "f"), name


class Stop(Exception):
    pass


def stop_at(step):
    def progress(now):
        if now.phase == "sample" and now.step == step:
            raise Stop

    return progress


@pytest.mark.parametrize(
    ("solver", "policies"),
    [
        ("unipc", []),
        ("dpm++", []),
        ("euler", []),
        ("unipc", ["cfg:last=3,high=3,keep=reuse"]),
        ("dpm++", ["half:complete=renoise,rope=strided", "cfg:last=2,keep=reuse"]),
        ("unipc", ["paired"]),
        ("unipc", ["adaptive:threshold=0.9999895"]),
        ("dpm++", ["cfgcache:every=3"]),
        ("unipc", ["prune:threshold=50,baseline_steps=2,start_step=3,corrector=false"]),
        ("dpm++", ["half", "topk:start=2,scope=all,keep=x0,keys_dtype=float8"]),
        ("euler", ["ras:start=1,keep=hold,reset=3"]),
    ],
)
def test_interrupted_and_resumed_is_bit_identical(tmp_path, model, loaded, checkpoint, solver, policies):
    spec = spec_for(checkpoint, solver, policies)
    whole = run.execute(spec, tmp_path / "whole.h5", loaded=loaded)
    again = tmp_path / "again.h5"
    switch = next(k for k, row in enumerate(run.plan(spec).rows) if row.expert == "low")
    for step in (1, 2, switch - 1, switch, switch + 1, STEPS - 1, STEPS):  # one after another, in one run
        with pytest.raises(Stop):
            run.execute(spec, again, loaded=loaded, progress=stop_at(step))
        assert not again.exists()
        seen = []
        assert RunWriter.resume_point(again, run.resolve(spec, model.checkpoint).digest())[0] == step
    run.execute(spec, again, loaded=loaded, progress=seen.append)
    assert [p.step for p in seen if p.phase == "sample"] == [STEPS]
    assert_same(whole, again)
    assert verify(again) == [] and not part_directory(again).exists()


def test_a_run_goes_on_with_as_many_threads_as_it_began_with(tmp_path, loaded, checkpoint):
    """Sums on the CPU differ in their last bits with the number of threads, and another machine has another number."""
    spec = spec_for(checkpoint, steps=4, height=16, prompt="ball")
    torch.set_num_threads(2)
    try:
        whole = run.execute(spec, tmp_path / "whole.h5", loaded=loaded)
        with pytest.raises(Stop):
            run.execute(spec, tmp_path / "again.h5", loaded=loaded, progress=stop_at(2))
        torch.set_num_threads(1)
        again = run.execute(spec, tmp_path / "again.h5", loaded=loaded)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)
    assert_same(whole, again)
    with Run(again) as opened:
        assert opened.attrs["threads"] == 2


@pytest.mark.parametrize("kills", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path, model, loaded, checkpoint, kills):
    """SIGKILL at any moment: nothing unreadable, no finished step lost, the same result in the end."""
    spec = spec_for(checkpoint, "unipc", ["cfg:last=2,keep=reuse"])
    run.execute(spec, tmp_path / "first.h5", loaded=loaded)  # what is slow only once
    began = time.perf_counter()
    whole = run.execute(spec, tmp_path / "whole.h5", loaded=loaded)
    usual = time.perf_counter() - began
    digest = run.resolve(spec, model.checkpoint).digest()
    dice = random.Random(0)
    killed = trial = 0
    went_on_from = set()
    while killed < kills:
        trial += 1
        path = tmp_path / f"{trial}.h5"
        for attempt in range(4):
            child = os.fork()
            if not child:
                try:
                    run.execute(spec, path, loaded=loaded)
                finally:
                    os._exit(0)
            if attempt < 3 and killed < kills:
                time.sleep(dice.random() * usual)
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if not os.WIFSIGNALED(status):
                break
            killed += 1
            if not path.exists():
                shards = len(list(part_directory(path).glob("step-*.wls")))
                left = RunWriter.resume_point(path, digest)
                # The state follows the shards of its batch of at most five: killed between, those are sampled again.
                assert shards - (0 if left is None else left[0]) in range(6)
                went_on_from.add(0 if left is None else left[0])
        assert verify(path) == []
        assert_same(whole, path)
        path.unlink()
    print(f"killed {killed} times in {trial} runs, went on from steps {sorted(went_on_from)}")
    assert len(went_on_from) > 1


def test_complete_runs_are_left_alone(tmp_path, loaded, checkpoint):
    spec = spec_for(checkpoint, steps=2, record=RecordSpec())
    path = run.execute(spec, tmp_path / "a.h5", loaded=loaded)
    stamp = path.stat().st_mtime_ns
    path.with_suffix(".mp4").unlink()
    seen = []
    run.execute(spec, path, loaded=loaded, progress=seen.append)
    assert path.stat().st_mtime_ns == stamp and [p.phase for p in seen] == ["kept"]
    assert path.with_suffix(".mp4").exists()  # made again from the frames in the run file
    run.execute(spec, path, loaded=loaded, force=True)
    assert path.stat().st_mtime_ns != stamp
    more = spec_for(checkpoint, steps=2, record=RecordSpec(level="latents"))
    run.execute(more, path, loaded=loaded)  # more to record: it must be computed again
    with Run(path) as opened:
        assert "x_t" in opened.data
    stamp = path.stat().st_mtime_ns
    run.execute(spec, path, loaded=loaded)  # less to record is there already
    assert path.stat().st_mtime_ns == stamp
    with pytest.raises(UsageError, match="another specification"):
        run.execute(spec_for(checkpoint, steps=2, seed=1), path, loaded=loaded)
    assert path.stat().st_mtime_ns == stamp
    run.execute(spec_for(checkpoint, steps=2, seed=1), path, loaded=loaded, force=True)
    assert path.stat().st_mtime_ns != stamp


def test_fingerprint_is_of_the_weights(tmp_path, checkpoint):
    from wanlab.engine.model import loading as models

    copied = shutil.copytree(checkpoint, tmp_path / "copy", copy_function=shutil.copyfile)  # new times
    before = run.fingerprint(models.describe(str(checkpoint)))
    assert run.fingerprint(models.describe(str(copied))) == before
    weights = copied / "transformer_2" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert run.fingerprint(models.describe(str(copied))) != before


def test_other_record_settings_or_weights_start_again(tmp_path, loaded, checkpoint, monkeypatch):
    path = tmp_path / "a.h5"
    spec = spec_for(checkpoint, steps=4, policies=["cfg:last=2"], record=RecordSpec())
    with pytest.raises(Stop):
        run.execute(spec, path, loaded=loaded, progress=stop_at(3))
    probing = spec_for(checkpoint, steps=4, policies=["cfg:last=2"], record=RecordSpec(probe=True))
    seen = []
    run.execute(probing, path, loaded=loaded, progress=seen.append)
    assert [p.step for p in seen if p.phase == "sample"] == [0, 1, 2, 3, 4]
    with pytest.raises(Stop):
        run.execute(spec, tmp_path / "b.h5", loaded=loaded, progress=stop_at(3))
    monkeypatch.setattr(sys.modules["wanlab.engine.run.execute"], "fingerprint", lambda found: "other weights")
    seen.clear()
    run.execute(spec, tmp_path / "b.h5", loaded=loaded, progress=seen.append)
    assert next(p.step for p in seen if p.phase == "sample") == 0
