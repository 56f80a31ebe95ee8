"""Files from strangers: a result or one WanlabError, in bounded time and memory."""

import importlib.util
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wanlab.errors import WanlabError
from wanlab.runfile import Field, Run, RunWriter, completed, part_directory, read_in_child, remove_leftovers
from wanlab.runfile.shards import load_shard, read_manifest
from wanlab.video import read_mp4, write_mp4

HERE = Path(__file__).parent
ARCHIVE = HERE / "archives" / "run-v2.h5"
spec = importlib.util.spec_from_file_location("fuzz", HERE / "fuzz.py")
assert spec is not None and spec.loader is not None
fuzz = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz)

ANY = settings(max_examples=60, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])


def begin(path: Path) -> Path:
    with RunWriter(path, spec_json="{}", digest="d", fields=[Field("sigma")]) as writer:
        writer.step(0, {"sigma": 1.0}, {"x": np.zeros(3)})
    return part_directory(path)


def mutants(kind: str, tmp_path: Path, count: int) -> int:
    part = begin(tmp_path / "r.h5")
    write_mp4(tmp_path / "a.mp4", np.zeros((5, 16, 16, 3), "u1"), 16)
    path = {
        "run": tmp_path / "m.h5",
        "shard": part / "step-000000.wls",
        "manifest": part / "manifest.json",
        "video": tmp_path / "a.mp4",
    }[kind]
    return fuzz.fuzz(kind, ARCHIVE.read_bytes() if kind == "run" else path.read_bytes(), path, count)


@pytest.mark.parametrize(("kind", "count"), [("run", 200), ("shard", 100), ("manifest", 100), ("video", 10)])
def test_some_mutants(kind: str, count: int, tmp_path: Path) -> None:
    assert mutants(kind, tmp_path, count) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("run", 100_000), ("shard", 9_000), ("manifest", 9_000), ("video", 2_000)])
def test_many_mutants(kind: str, count: int, tmp_path: Path) -> None:
    assert mutants(kind, tmp_path, int(os.environ.get("WANLAB_FUZZ", count))) > 0


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
