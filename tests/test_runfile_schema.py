"""Hostile and old run files: refused in one line when opened, or read."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wanlab.errors import WanlabError
from wanlab.runfile import Run, RunWriter, part_directory, read_in_child, remove_leftovers, verify
from wanlab.runfile.schema import SCHEMAS

from .test_runfile import ARCHIVES, write

NAMES = [*sorted(SCHEMAS["2"].attrs), "resumed_from_step", "boundary", "defaulted", "asked", "layout"]
ARRAYS = [("steps", n) for n in SCHEMAS["2"].steps] + [("final", n) for n in SCHEMAS["2"].final]
TEXTS = st.sampled_from([b"", b"abc", b"{}", b"[]", b'{"a": 1}', b'{"a": "b"}', b"NaN", b"[", b"null", b"1e999"])
VALUES = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    TEXTS.map(np.bytes_),
    st.lists(st.integers(0, 9), max_size=3).map(lambda v: np.array(v, "i4")),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("whole") / "r.h5").read_bytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    attrs=st.dictionaries(st.sampled_from([n + s for n in NAMES for s in ("", "_json")]), VALUES, max_size=3),
    array=st.sampled_from(ARRAYS),
    rank=st.integers(0, 5),
    dtype=st.sampled_from(["u1", "i4", "f2", "f8", "S4"]),
)
def test_opens_with_what_it_promises_or_is_refused(
    tmp_path: Path, whole: bytes, attrs: dict[str, Any], array: tuple[str, str], rank: int, dtype: str
) -> None:
    path = tmp_path / "r.h5"
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        for name, value in attrs.items():
            file.attrs[name] = value
        where = "/".join(array)
        if where in file:
            del file[where]
        file.create_dataset(where, data=np.zeros((4,) * rank, dtype)).attrs["encoding-type"] = np.bytes_("array")
    try:
        run = Run(path)
    except WanlabError as error:
        assert str(path) in error.message
        assert "\n" not in str(error)
        return
    run.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fps", b"abc"),
        ("fps", 0),
        ("fps", float("nan")),
        ("resumed_from_step", b"x"),
        ("layout", 3),
        ("defaulted", b"x"),
        ("resumed_at_json", b"[null]"),
        ("timing_seconds_json", b'{"a": "b"}'),
        ("versions", b"x"),
        ("versions_json", b"[1]"),
        ("spec_json", b"{"),
        ("status", 3),
    ],
)
def test_an_attribute_of_another_kind_is_named(tmp_path: Path, whole: bytes, name: str, value: Any) -> None:
    path = tmp_path / "r.h5"
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        file.attrs[name] = np.bytes_(value) if isinstance(value, bytes) else value
    with pytest.raises(WanlabError, match=name.removesuffix("_json")):
        Run(path)


@pytest.mark.parametrize("spec", [b"{}", b'{"prompt": 5}', b'{"prompt": "p", "steps": 1000000}'])
def test_a_specification_that_cannot_be_is_blamed_on_its_file(tmp_path: Path, whole: bytes, spec: bytes) -> None:
    path = tmp_path / "r.h5"
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        file.attrs["spec_json"] = np.bytes_(spec)
    with Run(path) as run, pytest.raises(WanlabError, match=str(path)) as caught:
        _ = run.spec
    assert caught.value.exit_code == 1 and "copy" in caught.value.hint


def test_a_file_that_another_program_has_open_is_not_called_damaged(tmp_path: Path, whole: bytes) -> None:
    """By its lock; and by its own flag, where there are no locks or the other program was killed."""
    path = tmp_path / "r.h5"
    path.write_bytes(whole)
    code = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(WanlabError, match="is open in another program; close it there"):
            Run(path)
        other.kill()
    with pytest.raises(WanlabError, match="is open for writing in another program, or was when that ended"):
        Run(path)


def test_chunks_beyond_count_do_not_hang(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "r.h5"
    path.write_bytes(whole)
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        file.create_dataset("evil", (2**17, 2**17), "u1", chunks=(1, 1))[0, 0] = 1
    begun = time.monotonic()
    with pytest.raises(WanlabError, match="chunks"):
        Run(path)
    assert any("chunks" in problem for problem in verify(path))
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("kind", ["fifo", "zero"])
@pytest.mark.parametrize("name", ["r.h5", "r.h5.part/manifest.json", "r.h5.part/step-000000.wls"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str, name: str) -> None:
    path, bad = tmp_path / "r.h5", tmp_path / name
    if bad != path:
        with RunWriter(path, spec_json="{}", digest="d"):
            pass
        bad.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(bad)
    else:
        bad.symlink_to("/dev/zero")
    if name.endswith(".wls"):
        assert RunWriter.resume_point(path, "d") is None
        return
    with pytest.raises(WanlabError):
        Run(path)


@pytest.mark.parametrize("name", ["r.h5.part", "r.h5.part/lock"])
def test_links_are_not_written_through(tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = tmp_path / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(elsewhere if name.endswith("part") else elsewhere / "lock")
    with pytest.raises(WanlabError, match=r"link|regular"):
        RunWriter(tmp_path / "r.h5", spec_json="{}", digest="d")
    assert list(elsewhere.iterdir()) == []


def test_an_unfinished_run_of_version_1_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.h5"
    with RunWriter(path, spec_json="{}", digest="d"):
        pass
    manifest = part_directory(path) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": "2"', '"format": "1"'))
    with pytest.raises(WanlabError, match="format 1"):
        RunWriter.resume_point(path, "d")
    with pytest.raises(WanlabError, match="format 1"):
        RunWriter(path, spec_json="{}", digest="d")


def test_what_is_left_beside_a_finished_file_is_removed(tmp_path: Path) -> None:
    path = write(tmp_path / "r.h5")
    part_directory(path).mkdir()
    (part_directory(path) / "step-000000.wls").touch()
    remove_leftovers(path)
    assert not part_directory(path).exists()
    with RunWriter(path, spec_json="{}", digest="another"):
        remove_leftovers(path)
        assert part_directory(path).exists()


def test_a_child_reads_it(tmp_path: Path) -> None:
    content = read_in_child(ARCHIVES / "run-v1.h5", 2**30, 60.0, check=True)
    assert (content["format"], content["problems"], content["spec"]) == ("1", [], {"seed": 7})
    (tmp_path / "r.h5").write_bytes(b"no")
    with pytest.raises(WanlabError, match="not an HDF5 file"):
        read_in_child(tmp_path / "r.h5", 2**30, 60.0)
