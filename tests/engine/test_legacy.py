"""Folders of latent_step_XX.pt, as the experiment guide's scripts write them."""

import copy
import os
import random
import zipfile
from itertools import pairwise

import numpy as np
import pytest
import torch

from wanlab.engine import legacy
from wanlab.engine.run import execute
from wanlab.errors import UsageError, WanlabError
from wanlab.runfile import Run
from wanlab.spec import RecordSpec
from wanlab.study.continuity import Source, analyse

from .helpers import make_spec

SIGMAS = [1.0, 0.8, 0.5, 0.0]


def guides_files(folder, sigma=True, batch=False, dtype=torch.float32):
    """x0 and ε of ones and twos: velocity 1 everywhere, x_t = 1 + σ; one Euler step from file to file."""
    folder.mkdir(exist_ok=True)
    shape = (1, 2, 3, 2, 2) if batch else (2, 3, 2, 2)
    for k, (now, after) in enumerate(pairwise(SIGMAS)):
        saved = {
            "step": k,
            "timestep": torch.tensor(1000 * now),
            "x_t": torch.full(shape, 1 + now, dtype=dtype),
            "x0_pred": torch.full(shape, 1 + after, dtype=dtype),
            "eps_pred": torch.ones(shape, dtype=dtype),
        }
        torch.save(saved | ({"sigma": now} if sigma else {}), folder / f"latent_step_{k:02d}.pt")
    return folder


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("sigma", [False, True])
def test_the_guides_names_are_read_as_what_they_are(tmp_path, sigma, batch):
    steps = list(legacy.read(guides_files(tmp_path / "l", sigma=sigma, batch=batch)))
    assert [s.sigma for s in steps] == SIGMAS[:-1] and [s.timestep for s in steps] == [1000, 800, 500]
    for s, after in zip(steps, SIGMAS[1:], strict=True):
        assert {n: (a.shape, float(a.flat[0])) for n, a in s.arrays.items()} == {
            n: ((2, 3, 2, 2), pytest.approx(v))
            for n, v in {"x_t": 1 + s.sigma, "latent": 1 + after, "velocity": 1, "x0_pred": 1, "eps_pred": 2}.items()
        }
        assert (legacy.NO_SIGMA in s.notes) is not sigma and legacy.GUIDES in s.notes


def test_bfloat16_is_widened(tmp_path):
    (first, *_) = legacy.read(guides_files(tmp_path / "l", dtype=torch.bfloat16))
    assert first.arrays["x_t"].dtype == np.float32 and first.arrays["x0_pred"].flat[0] == 1


def test_what_is_written_is_read_again_under_the_same_names(tmp_path, loaded, checkpoint):
    spec = make_spec(checkpoint, steps=4, record=RecordSpec(level="all"))
    with Run(execute(spec, tmp_path / "run.h5", loaded=loaded)) as run:
        made = legacy.write(run, tmp_path / "debug_latents")
        assert [p.name for p in made] == [f"latent_step_0{k}.pt" for k in (1, 2, 3, 4)]
        for k, s in enumerate(legacy.read(tmp_path / "debug_latents")):
            assert not s.notes and s.sigma == run["sigma"][k] and s.expert == run["expert"][k]
            for name in ("x_t", "x0_pred", "eps_pred", "velocity"):
                assert np.array_equal(s.arrays[name], run[name][k])
        assert np.allclose(s.arrays["latent"], run["latent"][...], atol=1e-5)  # the last prediction is the result


def test_the_expert_is_the_one_that_a_file_names_and_else_told_by_the_timestep(tmp_path):
    """Timesteps 1000, 800, 500: from 875 on high-noise as in the A14B, or two high-noise steps as these files say."""
    folder = guides_files(tmp_path / "l")
    told = analyse(Source(folder))
    assert told.switch == 1 and any("told by the timestep" in n for n in told.notes)
    for path, expert in zip(legacy.files(folder), ("high", "high", "low"), strict=True):
        torch.save(torch.load(path) | {"expert": expert}, path)
    said = analyse(Source(folder))
    assert said.switch == 2 and not any("told by" in n for n in said.notes)


def test_files_are_in_the_order_of_their_numbers(tmp_path):
    for n in (10, 9, 2):
        (tmp_path / f"latent_step_{n}.pt").touch()
    (tmp_path / "latent_step_x.pt").touch()
    assert [p.name for p in legacy.files(tmp_path)] == [f"latent_step_{n}.pt" for n in (2, 9, 10)]
    (tmp_path / "latent_step_09.pt").touch()
    with pytest.raises(UsageError, match="same step"):
        legacy.files(tmp_path)


class Evil:
    def __reduce__(self):
        return (print, ("this code ran",))


def refused(tmp_path, saved, match):
    torch.save(saved, tmp_path / "latent_step_00.pt")
    with pytest.raises(WanlabError, match=match) as error:
        list(legacy.read(tmp_path))
    assert "\n" not in str(error.value) and error.value.hint


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, capsys):
    refused(tmp_path, {"x_t": torch.ones(1, 2, 2, 2), "timestep": Evil()}, "could run code")
    assert "this code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("saved", "match"),
    [
        ([1, 2], "no dictionary"),
        ({"timestep": 1.0}, "no x_t"),
        ({"x_t": torch.ones(1, 2, 2, 2)}, "timestep"),
        ({"x_t": torch.ones(1, 2, 2, 2), "timestep": float("nan")}, "timestep"),
        ({"x_t": torch.ones(3), "timestep": 1.0}, "no latent"),
        ({"x_t": torch.ones(1, 2, 2, 2, dtype=torch.int64), "timestep": 1.0}, "no latent"),
        ({"x_t": torch.ones(1, 2, 2, 2), "eps_pred": torch.ones(1, 3, 2, 2), "timestep": 1.0}, "different shapes"),
        ({"x_t": torch.ones(1, 2, 2, 2), "timestep": 10**400}, "timestep"),
        ({"x_t": torch.ones(1, 2, 2, 2), "timestep": torch.ones(1).to_sparse()}, "timestep"),
        ({"x_t": torch.ones(1, 2, 2, 2), "timestep": -1.0}, "sigma"),
        ({"x_t": torch.ones(1, 2, 2, 2), "timestep": 1.0, "sigma": 14.6}, "not 0 to 1"),
        ({"x_t": torch.ones(1, 2, 2, 2, device="meta"), "timestep": 1.0}, "no latent"),
        ({"x_t": torch.ones(1, 2, 2, 2).to_sparse(), "timestep": 1.0}, "no latent"),
        ({"x_t": torch.full((1, 2, 2, 2), torch.nan), "timestep": 1.0}, "not finite"),
        ({"x_t": torch.full((1, 2, 2, 2), 1e300, dtype=torch.float64), "timestep": 1.0}, "not finite"),
        ({"x_t": torch.ones(1).expand(2**14, 2**14, 2, 2), "timestep": 1.0}, "more values than it stores"),
    ],
)
def test_what_is_no_step_is_refused(tmp_path, saved, match):
    refused(tmp_path, saved, match)


def test_files_that_are_no_zip_or_compressed_or_cut_are_refused(tmp_path):
    path = guides_files(tmp_path / "l") / "latent_step_00.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WanlabError, match="zip format"):
        list(legacy.read(tmp_path / "l"))
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as a, zipfile.ZipFile(tmp_path / "packed", "w", zipfile.ZIP_DEFLATED) as b:
        for item in a.infolist():
            b.writestr(item.filename, a.read(item.filename))
    path.write_bytes((tmp_path / "packed").read_bytes())
    with pytest.raises(WanlabError, match="compressed"):
        list(legacy.read(tmp_path / "l"))


@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "dangling", "loop"])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "latent_step_00.pt"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "dangling": tmp_path / "nowhere", "loop": path}[kind])
    with pytest.raises(WanlabError):
        list(legacy.read(tmp_path))


def test_members_that_overlap_are_refused(tmp_path):
    """A zip whose directory names one megabyte 64 times asks for 64 MB of memory."""
    path = guides_files(tmp_path / "l") / "latent_step_00.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", bytes(2**20))
        first = archive.infolist()[0]
        for k in range(63):
            archive.filelist.append(again := copy.copy(first))
            again.filename = f"a/{k:08d}"
        archive._didModify = True
    with pytest.raises(WanlabError, match="more values than it stores"):
        list(legacy.read(tmp_path / "l"))


def test_any_mutant_of_a_file_is_read_or_refused(tmp_path):
    path = guides_files(tmp_path / "l") / "latent_step_00.pt"
    chance, whole, refusals = random.Random(0), path.read_bytes(), 0
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("latent_step_00/data.pkl")
    start = whole.index(pickled)
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            at = start + chance.randrange(len(pickled)) if chance.random() < 0.6 else chance.randrange(len(data))
            data[at] = chance.choice([0, 1, 127, 128, 255, *b".(}]QhRt", chance.randrange(256)])
        path.write_bytes(data)
        try:
            list(legacy.read(tmp_path / "l"))
        except WanlabError as error:
            refusals += 1
            assert "\n" not in str(error)
    assert refusals > 20


def test_no_file_is_written_through_a_link(tmp_path, loaded, checkpoint):
    spec = make_spec(checkpoint, steps=2, record=RecordSpec(level="all"))
    (tmp_path / "latent_step_01.pt").symlink_to(tmp_path / "mine")
    with Run(execute(spec, tmp_path / "run.h5", loaded=loaded)) as run:
        legacy.write(run, tmp_path)
    assert not (tmp_path / "mine").exists() and not (tmp_path / "latent_step_01.pt").is_symlink()
