"""The run file: round trips, properties, resuming, and files of released format versions.

`python tests/test_runfile.py NEW.h5` writes the archive of the current format version; put it in tests/archives/ as
run-v<version>.h5 when a version is released, and never change one that is there.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wanlab import runfile
from wanlab.errors import WanlabError
from wanlab.runfile import Field, Run, RunWriter, completed, fields, part_directory, verify
from wanlab.runfile import writer as room

ARCHIVES = Path(__file__).parent / "archives"
LATENT = ("channel", "latent_frame", "latent_height", "latent_width")
FIELDS = [
    Field("sigma", (), "float64", "1", "noise level"),
    Field("mse", (), "float32", "latent^2", "mean squared guidance difference"),
    Field("passes", (), "int32", "1", "transformer forwards"),
    Field("expert", (), "S4", "1", "the expert that ran"),
    Field("lifted", (), "bool", "1", "whether the latent changed length"),
    Field("x_t", LATENT, "float32", "latent", "the latent before the step"),
    Field("kept", ("token",), "uint8", "1", "tokens that were computed"),
]
LATENT_FIELD = Field("latent", LATENT, "float32", "latent", "the final latent")
VIDEO_FIELD = Field("video", ("frame", "height", "width", "rgb"), "uint8", "1", "the frames")
TEXT_FIELD = Field("prompt_sha256", (), "S64", "1", "digest of the prompt embeddings")
STEPS = 4


def x_t(step: int) -> np.ndarray:
    """Two frames in the first half, three after: a run whose latent changes length."""
    frames = 2 if step < 2 else 3
    return np.arange(2 * frames * 2 * 2, dtype="f4").reshape(2, frames, 2, 2) + 100 * step


def values(step: int) -> dict[str, Any]:
    known = {"sigma": 1 - step / STEPS, "passes": 2 - step % 2, "lifted": step == 2, "x_t": x_t(step)}
    known["expert"] = "high" if step < 2 else "low"
    if step % 2:
        known["mse"] = np.float32(step / 8)
        known["kept"] = np.array([step, 0, 255], "u1")
    return known


def final() -> dict[Field, Any]:
    video = np.arange(5 * 2 * 4 * 3, dtype="u1").reshape(5, 2, 4, 3)
    return {LATENT_FIELD: x_t(STEPS), VIDEO_FIELD: video, TEXT_FIELD: "0123456789abcdef" * 4}


def write(path: Path, start: int = 0) -> Path:
    attrs = {"packages": {"numpy": "2"}, "commit": "abc", "seed": 7, "given": ["steps"], "note": "é"}
    made = RunWriter(path, spec_json='{"seed": 7}', digest="d1", attrs=attrs, fields=FIELDS, start=start)
    with made as writer:
        for step in range(start, STEPS):
            writer.step(step, values(step), {"x": x_t(step), "t": step})
        return writer.finish(final(), {"seconds": 1.5})


def check(path: Path) -> None:
    """That `path` holds what `write` wrote: numbers from the formulas above."""
    assert verify(path) == []
    with Run(path) as run:
        assert run.spec_json == '{"seed": 7}'
        assert (run.digest, run.status, run.steps) == ("d1", "complete", 4)
        assert run.attrs["packages"] == {"numpy": "2"}
        assert run.attrs["given"] == ["steps"]
        assert (run.attrs["seed"], run.attrs["note"], run.attrs["seconds"]) == (7, "é", 1.5)
        assert run.attrs["spec"] == {"seed": 7}
        np.testing.assert_array_equal(run["sigma"], [1.0, 0.75, 0.5, 0.25])
        np.testing.assert_array_equal(run["mse"], np.array([np.nan, 0.125, np.nan, 0.375], "f4"))
        np.testing.assert_array_equal(run["passes"], [2, 1, 2, 1])
        np.testing.assert_array_equal(run["expert"], ["high", "high", "low", "low"])
        np.testing.assert_array_equal(run["lifted"], [False, False, True, False])
        assert run["lifted"].dtype == np.dtype(bool)
        assert run["mse"].recorded == run["kept"].recorded == (1, 3)
        for step in range(STEPS):
            np.testing.assert_array_equal(run["x_t"][step], x_t(step))
        assert [v.shape for v in run["x_t"]] == [(2, 2, 2, 2)] * 2 + [(2, 3, 2, 2)] * 2
        assert np.isnan(np.asarray(run["x_t"])[0, :, 2]).all()
        np.testing.assert_array_equal(run["kept"][3], [3, 0, 255])
        np.testing.assert_array_equal(run["latent"], x_t(4))
        np.testing.assert_array_equal(run.video[4], np.arange(96, 120).reshape(2, 4, 3))
        assert str(run["prompt_sha256"][()]) == "0123456789abcdef" * 4
        assert (run["mse"].unit, run["mse"].doc) == ("latent^2", "mean squared guidance difference")
        assert run["x_t"].dims == ("step", *LATENT)
        assert run.dims["frame"] == 5


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.h5"
    assert write(path) == path
    check(path)
    assert [p.name for p in path.parent.iterdir()] == ["run.h5"]
    assert completed(path, "d1")
    assert not completed(path, "d2")
    assert not completed(tmp_path / "absent.h5", "d1")


@pytest.mark.parametrize("archive", sorted(ARCHIVES.glob("run-v*.h5")), ids=lambda p: p.name)
def test_released_formats_stay_readable(archive: Path) -> None:
    check(archive)


def test_the_current_format_has_an_archive() -> None:
    assert (ARCHIVES / f"run-v{runfile.FORMAT_VERSION}.h5").is_file()


def test_two_equal_runs_are_equal_files(tmp_path: Path) -> None:
    first = write(tmp_path / "a.h5").read_bytes()
    time.sleep(1.1)  # a time kept anywhere would differ
    assert write(tmp_path / "b.h5").read_bytes() == first


# --- any fields ------------------------------------------------------------------------------------------------------

SIZES = {"a": 1, "b": 2, "frame": 3, "d": 5}
NUMERIC = [*fields.NUMBERS, "bool"]


@st.composite
def recordings(draw: Any) -> tuple[list[Field], list[dict[str, np.ndarray]], dict[Field, np.ndarray]]:
    """Declared fields, each step's values (some left out, some shorter than the dimension), and final values."""

    def field(name: str) -> Field:
        dims = draw(st.lists(st.sampled_from(sorted(SIZES)), unique=True, max_size=3))
        return Field(name, tuple(dims), draw(st.sampled_from([*NUMERIC, "S5"])), draw(st.text("é m²/", max_size=3)))

    def value(field: Field, full: bool) -> np.ndarray:
        shape = [SIZES[d] if full else draw(st.integers(1, SIZES[d])) for d in field.dims]
        random = np.random.default_rng(draw(st.integers(0, 2**32)))
        if field.dtype == "S5":
            return random.choice(np.array(["", "high", "é€"]), shape)
        raw = random.integers(0, 256, (*shape, 8), "u1")
        if field.dtype == "bool":
            return raw[..., 0] > 127
        size = np.dtype(field.dtype).itemsize
        return raw[..., :size].copy().view(field.dtype)[..., 0]

    fields = [field(f"f{i}") for i in range(draw(st.integers(0, 4)))]
    ended = [field(f"g{i}") for i in range(draw(st.integers(0, 2)))]
    everything = Field("all", tuple(SIZES), "float32")  # so that every dimension has its full size
    steps = [
        {f.name: value(f, draw(st.booleans())) for f in fields if draw(st.booleans())}
        for _ in range(draw(st.integers(0, 4)))
    ]
    return fields, steps, {everything: value(everything, True), **{f: value(f, True) for f in ended}}


@settings(max_examples=60, deadline=None)
@given(recordings())
def test_any_fields_come_back(recording: Any) -> None:
    fields, steps, ended = recording
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.h5"
        with RunWriter(path, spec_json="{}", digest="d", fields=fields) as writer:
            for k, step in enumerate(steps):
                writer.step(k, step)
            writer.finish(ended)
        assert verify(path) == []
        with Run(path) as run:
            assert run.steps == len(steps)
            for field in fields:
                having = tuple(k for k, step in enumerate(steps) if field.name in step)
                if field.name not in run:
                    assert not having
                    continue
                data = run[field.name]
                assert data.recorded == having
                assert data.unit == field.unit
                assert data.shape == (len(steps), *(SIZES[d] for d in field.dims))
                for k in having:
                    expected = steps[k][field.name]
                    if data.dtype == np.uint8 and field.dtype == "bool":
                        expected = expected.astype("u1")
                    np.testing.assert_array_equal(data[k], expected)
            for field, value in ended.items():
                np.testing.assert_array_equal(run[field.name][...], value)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    [
        {"name": "with space"},
        {"name": "step"},
        {"name": "a", "dims": ("step",)},
        {"name": "a", "dims": ("b", "b")},
        {"name": "a", "dims": ("steps",)},
        {"name": "a", "dims": tuple("bcdefghi")},
        {"name": "a", "dtype": "object"},
        {"name": "a", "dtype": "complex64"},
        {"name": "a", "unit": "\0"},
        {"name": "a", "doc": "\ud800"},
    ],
    ids=str,
)
def test_bad_declarations(field: dict[str, Any]) -> None:
    with pytest.raises(WanlabError):
        Field(**field)


@pytest.mark.parametrize(
    ("dtype", "dims", "value"),
    [
        ("float32", (), [1.0]),
        ("float32", ("n",), 1.0),
        ("float32", ("n",), []),
        ("float32", (), "text"),
        ("float32", (), None),
        ("float32", (), 1j),
        ("float16", (), 1e6),
        ("int32", (), 1.5),
        ("uint8", (), 256),
        ("uint8", (), -1),
        ("bool", (), 1),
        ("S2", (), "é€"),
        ("float32", ("n",), [[1.0], [1.0, 2.0]]),
    ],
)
def test_a_value_that_does_not_fit_its_field(dtype: str, dims: tuple[str, ...], value: Any) -> None:
    with pytest.raises(WanlabError):
        Field("a", dims, dtype).convert(value)


def test_values_are_copied(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "r.h5", spec_json="{}", digest="d", fields=[Field("a", ("n",))]) as writer:
        buffer, state = np.zeros(3, "f4"), np.zeros(3)
        for k in range(3):
            buffer += 1
            state += 1
            writer.step(k, {"a": buffer}, {"s": state})
        state += 1
        writer.flush()
        assert RunWriter.resume_point(tmp_path / "r.h5", "d")[1]["s"].tolist() == [3, 3, 3]  # type: ignore[index]
        writer.finish()
    with Run(tmp_path / "r.h5") as run:
        assert [v.tolist() for v in run["a"]] == [[1] * 3, [2] * 3, [3] * 3]


def test_misuse_of_the_writer(tmp_path: Path) -> None:
    def new(name: str = "r.h5", **options: Any) -> RunWriter:
        given = {"spec_json": "{}", "digest": "d", "fields": [Field("a"), Field("b", ("n",))], **options}
        return RunWriter(tmp_path / name, **given)

    with new() as writer:
        with pytest.raises(WanlabError, match="undeclared fields: zz"):
            writer.step(0, {"zz": 1})
        with pytest.raises(WanlabError, match="step 0 was due"):
            writer.step(1, {"a": 1})
        with pytest.raises(WanlabError, match="neither an array nor JSON"):
            writer.step(0, {"a": 1}, {"s": object()})
        with pytest.raises(WanlabError, match="another process"):
            new()
        with pytest.raises(WanlabError, match="'status' is no name"):
            writer.finish(attrs={"status": "x"})
        with pytest.raises(WanlabError, match="declared twice"):
            writer.finish({Field("a"): 1})
        writer.step(0, {"a": 1, "b": [1.0, 2.0]})
        with pytest.raises(WanlabError, match="dimension 'n' is 1 in 'c' and 2 elsewhere"):
            writer.finish({Field("c", ("n",)): [1]})
        writer.finish()
    with pytest.raises(WanlabError, match="closed"):
        writer.step(1, {})
    for attrs in (
        {"spec": 1},
        {"a b": 1},
        {"x": "\0"},
        {"x": "\ud800"},
        {"x": {1, 2}},
        {"x": 2**70},
        {"x": [np.nan]},
    ):
        with pytest.raises(WanlabError):
            new("other.h5", attrs=attrs)
    for declared in ([Field("a"), Field("a")], [Field("n"), Field("b", ("n",))]):
        with pytest.raises(WanlabError):
            new("other.h5", fields=declared)
    (tmp_path / "folder").mkdir()
    with pytest.raises(WanlabError, match="is a directory"):
        new("folder")
    (tmp_path / "plain").write_text("")
    with pytest.raises(WanlabError, match="cannot write"):
        new("plain/r.h5")
    assert not (tmp_path / "other.h5.part").exists()


# --- unfinished runs -------------------------------------------------------------------------------------------------


def begin(path: Path, steps: int, **options: Any) -> None:
    """Leave an unfinished run: `steps` steps, then an error from elsewhere."""
    given = {"spec_json": '{"seed": 7}', "digest": "d1", "fields": FIELDS, **options}
    with pytest.raises(KeyboardInterrupt), RunWriter(path, **given) as writer:
        for step in range(steps):
            writer.step(step, values(step), {"x": x_t(step), "t": step, "order": [1, None]})
        raise KeyboardInterrupt


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "r.h5"
    assert RunWriter.resume_point(path, "d1") is None
    begin(path, 3)
    point = RunWriter.resume_point(path, "d1", FIELDS)
    assert point is not None
    assert point[0] == 3
    assert point[1]["t"] == 2
    assert point[1]["order"] == [1, None]
    np.testing.assert_array_equal(point[1]["x"], x_t(2))
    assert len(list(part_directory(path).glob("resume-*"))) == 1  # only the newest is kept
    with pytest.raises(WanlabError, match="3 steps so far"):
        Run(path)
    write(path, start=3)
    check(path)
    with Run(path) as run:
        assert run.attrs["resumed_at"] == [3]


def test_a_run_may_stop_before_its_first_state(tmp_path: Path) -> None:
    begin(tmp_path / "r.h5", 0)
    assert RunWriter.resume_point(tmp_path / "r.h5", "d1") is None
    check(write(tmp_path / "r.h5"))


def test_another_run_is_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "r.h5"
    begin(path, 2)
    with pytest.raises(WanlabError, match="another specification"):
        RunWriter.resume_point(path, "d2")
    with pytest.raises(WanlabError, match="another specification"):
        RunWriter(path, spec_json="{}", digest="d2")
    assert RunWriter.resume_point(path, "d1", FIELDS[:2]) is None  # other records wanted: from the beginning
    with pytest.raises(WanlabError, match="nothing to resume"):
        RunWriter(path, spec_json="{}", digest="d1", fields=FIELDS[:2], start=2)
    RunWriter(path, spec_json="{}", digest="d2", force=True).close()
    assert RunWriter.resume_point(path, "d2") is None


def test_starting_over_discards_what_was_left(tmp_path: Path) -> None:
    path = tmp_path / "r.h5"
    begin(path, 3)
    with RunWriter(path, spec_json="{}", digest="d1", fields=FIELDS) as writer:
        writer.step(0, values(0))
        writer.finish()
    with Run(path) as run:
        assert run.steps == 1


def test_a_run_of_a_newer_format_is_left_alone(tmp_path: Path) -> None:
    begin(tmp_path / "r.h5", 1)
    manifest = part_directory(tmp_path / "r.h5") / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": "99"}))
    with pytest.raises(WanlabError, match="format 99"):
        RunWriter.resume_point(tmp_path / "r.h5", "d1")
    manifest.write_text("{")
    with pytest.raises(WanlabError, match="damaged"):
        RunWriter.resume_point(tmp_path / "r.h5", "d1")


@pytest.mark.parametrize("what", ["step-000001.wls", "resume-000003.wls"])
def test_a_damaged_shard_is_not_resumed_from(tmp_path: Path, what: str) -> None:
    begin(tmp_path / "r.h5", 3)
    shard = part_directory(tmp_path / "r.h5") / what
    raw = bytearray(shard.read_bytes())
    raw[-9] ^= 4
    shard.write_bytes(raw)
    assert RunWriter.resume_point(tmp_path / "r.h5", "d1") is None


# --- how it is stored ------------------------------------------------------------------------------------------------


def test_chunks_filters_and_types(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype("f4")
    fields = [Field("noise", LATENT), Field("flat", LATENT), Field("number")]
    with RunWriter(tmp_path / "r.h5", spec_json="{}", digest="d", fields=fields) as writer:
        writer.step(0, {"noise": noise, "flat": np.zeros_like(noise), "number": 1})
        writer.step(1, {})
        writer.finish({VIDEO_FIELD: np.zeros((5, 8, 8, 3), "u1")})
    with h5py.File(tmp_path / "r.h5") as file:
        datasets: list[h5py.Dataset] = []
        file.visititems(lambda _, o: datasets.append(o) if isinstance(o, h5py.Dataset) else None)
        assert len(datasets) == 13  # 4 fields, 9 dimensions
        for dataset in datasets:
            assert dataset.fletcher32
            assert dataset.attrs["encoding-type"] in (b"array", b"dimension")
            assert dataset.attrs["encoding-version"] == b"1"
            assert [d.decode() for d in dataset.attrs["dims"]] == [
                s.keys()[0] if s.keys() else dataset.name[1:] for s in dataset.dims
            ]
        assert file["final/video"].chunks == (1, 8, 8, 3)  # a frame
        assert file["steps/noise"].chunks == (1, 4, 1, 16, 16)  # a step's latent frame
        assert file["steps/number"].chunks == (2,)
        # Noise deflates to .86 of itself: not worth the time. Zeros do, and are.
        assert file["steps/noise"].compression is None
        assert file["steps/flat"].compression == "gzip"
        # Step 1 recorded nothing: it takes no place and reads as NaN.
        assert file["steps/noise"].id.get_storage_size() == noise.nbytes + 4 * 3
        assert np.isnan(file["steps/noise"][1]).all()


def test_no_step_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are written by another thread; `step` waits only when `depth` steps are waiting already."""
    release, where = threading.Event(), set()
    real = room.write_part

    def slow(path: Path, parts: Any) -> Path:
        if path.name.startswith("step"):
            where.add(threading.current_thread().name)
            assert release.wait(10)
        return real(path, parts)

    monkeypatch.setattr(room, "write_part", slow)
    with RunWriter(tmp_path / "r.h5", spec_json="{}", digest="d", fields=[Field("a")], depth=2) as writer:
        for k in range(3):  # one in the thread's hands, two in the queue
            writer.step(k, {"a": k})
        assert writer.durable == 0
        release.set()
        writer.flush()
        assert writer.durable == 3
    assert where == {"wanlab-runfile"}


def test_reading_in_parts(tmp_path: Path) -> None:
    path = write(tmp_path / "r.h5")
    with Run(path) as run:
        np.testing.assert_array_equal(run["x_t"][-1], x_t(3))
        np.testing.assert_array_equal(run["sigma"][1:3], [0.75, 0.5])
        np.testing.assert_array_equal(run["x_t"][2, 1], x_t(2)[1])
        with pytest.raises(WanlabError, match="kept was not recorded at step 0") as caught:
            run["kept"][0]
        assert "1, 3" in caught.value.hint
        with pytest.raises(WanlabError, match="no step 4"):
            run["x_t"][4]
        with pytest.raises(WanlabError, match="holds no 'velocity'"):
            run["velocity"]
        with pytest.raises(WanlabError):
            run["x_t"][0, 99]
    with pytest.raises(WanlabError):
        run["x_t"][0]  # closed


def test_reading_needs_no_torch() -> None:
    import subprocess

    code = "import sys, wanlab.runfile; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=os.environ).returncode == 0


if __name__ == "__main__":
    write(Path(sys.argv[1]))
