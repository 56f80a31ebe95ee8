"""Files from strangers: a result or one WanlabError, in bounded time and memory."""

import os
import resource
import shutil
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import fuzz, samples
from wanlab.analysis.hypotheses import evidence
from wanlab.errors import WanlabError
from wanlab.runfile import (
    Field,
    Reader,
    Run,
    RunWriter,
    completed,
    part_directory,
    read_in_child,
    remove_leftovers,
    summary,
    verify,
)
from wanlab.runfile.shards import load_shard, read_manifest
from wanlab.video import read_mp4

ARCHIVE = Path(__file__).parent / "archives" / "run-v2.h5"

ANY = settings(max_examples=60, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])


def begin(path: Path) -> Path:
    with RunWriter(path, spec_json="{}", digest="d", fields=[Field("sigma")]) as writer:
        writer.step(0, {"sigma": 1.0}, {"x": np.zeros(3)})
    return part_directory(path)


# Of every kind of file that the program reads (fuzz.READERS): how many mutants of it here, and in `make slow`.
COUNTS = {
    **dict.fromkeys(("shard", "manifest", "calibration", "scores", "prompts", "thresholds", "design"), (100, 20_000)),
    **dict.fromkeys(("spec", "latents", "tensors", "checkpoint", "result"), (50, 20_000)),
    "run": (100, 100_000),
    "here": (60, 20_000),
    "video": (20, 20_000),
}
QUICK = [("run", "here"), ("result", "video"), fuzz.WITH_TORCH]
QUICK.append(tuple(k for k in COUNTS if not any(k in kinds for kinds in QUICK)))


def mutants(kind: str, folder: Path, count: int) -> None:
    if kind in fuzz.WITH_TORCH:
        pytest.importorskip("torch")
    ended = fuzz.fuzz(kind, folder, count)
    print(f"{kind}: {ended}")  # `pytest -s` shows what was measured
    assert ended.faults == ""
    assert 0 < ended.refused < max(count, 1000), "some have to be read: mutants that are all refused reach little"


def test_every_reader_has_its_mutants() -> None:
    assert set(COUNTS) == set(fuzz.READERS)


@pytest.mark.parametrize("kinds", QUICK, ids=" ".join)
def test_some_mutants(kinds: tuple[str, ...], tmp_path: Path) -> None:
    for kind in kinds:
        (tmp_path / kind).mkdir()
        mutants(kind, tmp_path / kind, COUNTS[kind][0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", COUNTS)
def test_many_mutants(kind: str, tmp_path: Path) -> None:
    mutants(kind, tmp_path, int(os.environ.get("WANLAB_FUZZ", COUNTS[kind][1])))


@pytest.mark.parametrize(
    ("kind", "says"),
    [("raises", "KeyError"), ("crashes", "ended with -11"), ("grows", "MiB"), ("spins", "took"), ("sleeps", "nothing")],
)
def test_the_fuzzer_notices(kind: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception, a crash, memory, time of the processor, time of the clock: each is a fault."""
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "a.json").write_text("[1]")
    for name, value in {"SECONDS": 3.0, "BYTES": 2**28, "SILENT": 90.0 if kind != "sleeps" else 8.0}.items():
        monkeypatch.setattr(fuzz, name, value)
    faults = fuzz.fuzz(kind, tmp_path, 1).faults
    assert says in faults and "\n" not in faults


@ANY
@given(data=st.binary(max_size=300))
def test_any_bytes(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(data)
    for reader in (Run, load_shard, lambda p: read_manifest(p.parent)):
        with pytest.raises(WanlabError):
            reader(path)


@ANY
@given(
    name=st.sampled_from(["fps", "versions_json", "spec_json", "status", "predicted_json", "resumed_at_json"]),
    value=st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(), st.binary(max_size=20), st.just(np.zeros((2, 3)))),
)
def test_any_attribute(name: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "r.h5"
    path.write_bytes(ARCHIVE.read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs[name] = np.bytes_(value) if isinstance(value, bytes) else value
    try:
        Run(path).close()
    except WanlabError:
        return


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("steps/mse", Field("mse", (), "S4")),
        ("final/video", Field("video", ("frame",), "uint8")),
    ],
)
def test_a_known_field_of_another_kind_or_rank(where: str, value: Field, tmp_path: Path) -> None:
    group, name = where.split("/")
    path = tmp_path / "r.h5"
    data = "abc" if value.dtype == "S4" else np.zeros(3, "u1")
    with RunWriter(path, spec_json="{}", digest="d", fields=[value] if group == "steps" else []) as writer:
        if group == "steps":
            writer.step(0, {name: data})
        writer.finish({value: data} if group == "final" else {})
    with pytest.raises(WanlabError, match=name):
        Run(path)


def test_many_chunks_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "r.h5"
    path.write_bytes(ARCHIVE.read_bytes())
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        file.create_dataset("final/wide", (2**17, 2**17), "u1", chunks=(1, 1))
    with pytest.raises(WanlabError, match="chunks"):
        Run(path)


def test_pipes_and_links(tmp_path: Path) -> None:
    part = begin(tmp_path / "r.h5")
    (part / "manifest.json").unlink()
    os.mkfifo(part / "manifest.json")
    os.mkfifo(tmp_path / "p.mp4")
    with pytest.raises(WanlabError):
        read_manifest(part)
    with pytest.raises(WanlabError), read_mp4(tmp_path / "p.mp4"):
        pass
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "s.h5.part").mkdir()
    (tmp_path / "s.h5.part" / "lock").symlink_to(victim)
    with pytest.raises(WanlabError):
        begin(tmp_path / "s.h5")
    (tmp_path / "t.h5.part").symlink_to(part)
    with pytest.raises(WanlabError, match="link"):
        begin(tmp_path / "t.h5")


def test_leftovers_of_a_finished_run_go(tmp_path: Path) -> None:
    part = begin(tmp_path / "r.h5")
    with RunWriter(tmp_path / "other.h5", spec_json="{}", digest="d") as writer:
        writer.finish()
    os.replace(tmp_path / "other.h5", tmp_path / "r.h5")
    assert completed(tmp_path / "r.h5", "d")
    remove_leftovers(tmp_path / "r.h5")
    assert not part.exists()


def test_a_stranger_is_read_in_a_child(tmp_path: Path) -> None:
    summary = read_in_child(ARCHIVE, check=True)
    shapes = {row["name"]: row["shape"] for row in summary["data"]}
    assert (summary["format"], summary["status"], shapes["sigma"], summary["problems"]) == ("2", "complete", "4", [])
    assert read_in_child(ARCHIVE)["problems"] is None
    (tmp_path / "r.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(WanlabError):
        read_in_child(tmp_path / "r.h5")


@pytest.mark.parametrize(
    ("does", "says"),
    [
        (fuzz.crashes, "SIGSEGV"),
        (fuzz.spins, "took over"),
        (fuzz.grows, "too much memory"),
        (fuzz.raises, "reading it failed: KeyError"),
    ],
)
def test_what_a_file_does_to_its_reader_is_said_and_the_next_one_is_read(
    does: Callable[[Path], object], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "r.h5"
    path.touch()
    with Reader(memory=2**29, seconds=2) as reader:
        with pytest.raises(WanlabError, match=says) as caught:
            reader(does, path)
        assert str(path) in caught.value.message
        assert reader(summary, ARCHIVE)["format"] == "2"


def test_the_reader_imports_nothing_from_the_folder_that_it_is_used_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "h5py", "numpy", "wanlab"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    assert read_in_child(ARCHIVE)["format"] == "2"
    assert not (tmp_path / "ran").exists()


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    """65 KB that become 4 GiB: what it expands to is never held."""
    bomb = samples.write_small(tmp_path / "b.h5")
    with h5py.File(bomb, "r+", libver=("v110", "v110")) as file:
        chunk = (1, 4096, 4096, 3)
        film = file["final"].create_dataset("film", (80, *chunk[1:]), "u1", chunks=chunk, compression=9)
        data = zlib.compress(bytes(4096 * 4096 * 3), 1)
        for k in range(80):
            film.id.write_direct_chunk((k, 0, 0, 0), data)
    assert bomb.stat().st_size < 20 * 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Reader(seconds=2) as reader, pytest.raises(WanlabError, match=r"took over 2 s|took over 6 s"):
        reader(verify, bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB


def test_a_report_leaves_out_what_harms_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = samples.write_run(tmp_path / "a.h5")
    for name in ("crashes", "grows", "raises", "spins"):
        shutil.copy(sound, tmp_path / f"{name}.h5")
    monkeypatch.setattr(evidence, "read_run", fuzz.read_or_harm)
    monkeypatch.setattr(evidence, "Reader", partial(Reader, memory=2**29, seconds=2))
    found = evidence.collect([tmp_path])
    said = {path.stem: message for path, message in found.problems}
    assert [r.path for r in found.runs] == [sound] and set(said) == {"crashes", "grows", "raises", "spins"}
    assert all("\n" not in m and f"{name}.h5 is refused" in m for name, m in said.items())
