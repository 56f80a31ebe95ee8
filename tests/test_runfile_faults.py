"""The run file when things go wrong: kill -9, full disks, flipped bits, files cut short, files made to do harm."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from wanlab import files
from wanlab.errors import WanlabError
from wanlab.runfile import Field, Run, RunWriter, completed, fields, fold, part_directory, verify
from wanlab.runfile import writer as room

FIELDS = [
    Field("sigma", (), "float64"),
    Field("x_t", ("channel", "latent_frame", "line", "row"), "float32", "latent", "x"),
]
LATENT = Field("latent", ("channel", "latent_frame", "line", "row"), "float32", "latent", "the final latent")
STEPS = 12

# A sampler whose every step depends on the one before: it can only go on from a state that is right.
CHILD = """
import sys
import numpy as np
from wanlab.runfile import Field, RunWriter
from test_runfile_faults import FIELDS, LATENT, STEPS, advance, first

def sample(path, wait=0.0):
    import time
    point = RunWriter.resume_point(path, "d", FIELDS)
    start, x, history = (0, *first()) if point is None else (point[0], point[1]["x"], point[1]["history"])
    with RunWriter(path, spec_json="{}", digest="d", fields=FIELDS, start=start) as writer:
        print("ready", start, flush=True)
        for k in range(start, STEPS):
            values = {"sigma": 1 - k / STEPS, "x_t": x}
            x, history = advance(x, history)
            time.sleep(wait)
            writer.step(k, values, {"x": x, "history": history, "step": k})
            print("durable", writer.durable, flush=True)
        print("finishing", flush=True)
        writer.finish({LATENT: x})
    print("done", flush=True)
"""


def first() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).standard_normal((4, 8, 1, 512)).astype("f4")
    return x, np.zeros_like(x)


def advance(x: np.ndarray, history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    velocity = np.sin(3 * x)
    return x - velocity + 0.5 * history, velocity


def start_child(code: str, *arguments: object) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def sample_here(path: Path) -> None:
    names: dict[str, Any] = {"__name__": "child"}
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        exec(CHILD, names)
        names["sample"](path)
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    path = tmp_path_factory.mktemp("whole") / "r.h5"
    sample_here(path)
    return contents(path)


def contents(path: Path) -> dict[str, np.ndarray]:
    with Run(path) as run:
        return {name: data[...] for name, data in run.data.items()}


# --- kill -9 ---------------------------------------------------------------------------------------------------------


def kill_and_go_on(path: Path, after: float, expected: dict[str, np.ndarray]) -> str:
    """Kill a run `after` seconds past its opening, go on, compare. Returns the last thing the killed run said."""
    with start_child("sample(sys.argv[1], 0.004)", path) as child:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("ready"), child.communicate()[1]
        time.sleep(after)
        child.send_signal(signal.SIGKILL)
        said = child.communicate()[0].split("\n")[:-1] or ["ready 0"]
    durable = max([int(line.split()[1]) for line in said if line.startswith("durable")], default=0)
    if not completed(path, "d"):  # True only for a whole file; a broken one would raise
        assert said[-1] != "done"
        point = RunWriter.resume_point(path, "d", FIELDS)
        assert (point[0] if point else 0) >= durable, "a finished step is lost"
        sample_here(path)
    assert verify(path) == []
    found = contents(path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    return said[-1]


def kills(count: int, folder: Path, expected: dict[str, np.ndarray]) -> None:
    chance = random.Random(count)
    said = [kill_and_go_on(folder / f"{i}" / "r.h5", chance.uniform(0, 0.12), expected) for i in range(count)]
    assert {line.split()[0] for line in said} & {"durable", "finishing"}, said  # the moments did hit the writing


def test_killed_at_any_moment_a_run_goes_on(tmp_path: Path, uninterrupted: dict[str, np.ndarray]) -> None:
    kills(8, tmp_path, uninterrupted)


@pytest.mark.slow
def test_killed_200_times_nothing_is_lost(tmp_path: Path, uninterrupted: dict[str, np.ndarray]) -> None:
    kills(200, tmp_path, uninterrupted)


# Every call that changes the directory: killed just before and just after each of them.
CALLS = [
    "os.replace",
    "os.fsync",
    "os.unlink",
    "os.open",
    "Path.unlink",
    "shutil.rmtree",
    "h5py.File",
    "room.append_seal",
]


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_killed_around_every_call(tmp_path: Path, call: str, uninterrupted: dict[str, np.ndarray]) -> None:
    """Not by chance: the n-th use of `call` kills the process, for every n until the run survives."""
    code = """
        import os, shutil, signal, h5py
        from pathlib import Path
        from wanlab.runfile import writer as room
        owner, name = sys.argv[2].split(".")
        owner = globals()[owner]
        real, left, after = getattr(owner, name), int(sys.argv[3]), sys.argv[4] == "after"
        def call(*args, **kwargs):
            global left
            left -= 1
            if left == 0 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return real(*args, **kwargs)
            finally:  # one that fails too, as removing what is not there does
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        setattr(owner, name, call)
        sample(sys.argv[1])
    """
    for nth in range(1, 200, 3):
        survived = False
        for when in ("before", "after"):
            path = tmp_path / f"{nth}{when}" / "r.h5"
            with start_child(code, path, call, nth, when) as child:
                _, complaint = child.communicate()
            survived = child.returncode == 0
            assert survived or child.returncode == -signal.SIGKILL, complaint
            if not (path.exists() and completed(path, "d")):
                sample_here(path)
            assert verify(path) == []
            for name, value in uninterrupted.items():
                np.testing.assert_array_equal(contents(path)[name], value)
        if survived:
            assert nth > 1, "nothing was killed"
            return


def test_a_kill_between_the_file_and_its_tidying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.shutil, "rmtree", lambda *a, **k: None)
    sample_here(tmp_path / "r.h5")
    assert part_directory(tmp_path / "r.h5").is_dir()
    assert completed(tmp_path / "r.h5", "d")
    assert verify(tmp_path / "r.h5") == []


def test_a_signal_in_a_write_of_hdf5s_waits_until_the_library_has_returned(tmp_path: Path) -> None:
    """An exception that comes out of a function that HDF5 calls crashes the process."""
    code = f"""
import signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from tests.test_runfile_faults import sample_here
from wanlab.runfile import fold, verify

class Stopped(BaseException): pass
def stop(number, frame): raise Stopped
signal.signal(signal.SIGTERM, stop)
real, writes = fold._Sink.write, 0
def write(self, data):
    global writes
    writes += 1
    if writes == at: signal.raise_signal(signal.SIGTERM)
    return real(self, data)
fold._Sink.write = write
at, stopped = 1, 0
while True:
    path, writes, before = Path({str(tmp_path)!r}) / f"{{at}}.h5", 0, stopped
    try: sample_here(path)
    except Stopped: stopped += 1
    if stopped == before: break
    sample_here(path)
    assert verify(path) == [] and signal.getsignal(signal.SIGTERM) is stop
    at += 9
print(stopped)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and int(done.stdout.split()[-1]) > 5, (
        done.returncode,
        done.stderr[-2000:],
    )


# --- errors while writing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["write_part", "sync"])
def test_a_full_disk_fails_the_run_and_keeps_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, uninterrupted: dict[str, np.ndarray]
) -> None:
    owner: Any = files if call == "sync" else room
    path, real, full = tmp_path / "r.h5", getattr(owner, call), False

    def maybe(*args: Any) -> Any:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    monkeypatch.setattr(owner, call, maybe)
    x, history = first()
    writer = RunWriter(path, spec_json="{}", digest="d", fields=FIELDS)
    with pytest.raises(WanlabError, match="No space left on device") as caught, writer:
        for k in range(STEPS):
            values = {"sigma": 1 - k / STEPS, "x_t": x}
            x, history = advance(x, history)
            if k == 3:
                writer.flush()
                full = True
            writer.step(k, values, {"x": x, "history": history})
            if k == 3:
                writer._thread.join(0.2)  # let it fail: the next call must say so
        pytest.fail("every step was taken")
    assert "free some space" in caught.value.hint
    assert writer._next < STEPS
    full = False
    point = RunWriter.resume_point(path, "d")
    assert point is not None
    assert point[0] >= 3
    sample_here(path)
    for name, value in uninterrupted.items():
        np.testing.assert_array_equal(contents(path)[name], value)


def test_a_removal_that_fails_hides_no_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def stuck(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with RunWriter(tmp_path / "r.h5", spec_json="{}", digest="d") as writer:
        monkeypatch.setattr("wanlab.runfile.writer.fold", full)
        monkeypatch.setattr(Path, "unlink", stuck)
        with pytest.raises(WanlabError, match="No space left"):
            writer.finish()


def test_an_error_after_the_last_step_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("broken")

    writer = RunWriter(tmp_path / "r.h5", spec_json="{}", digest="d", fields=FIELDS)
    monkeypatch.setattr(room, "pack", broken)
    with pytest.raises(WanlabError, match="RuntimeError: broken"), writer:
        writer.step(0, {"sigma": 1})


LIMITS = [(60_000, "r.h5.part"), (400_000, "r.h5")]
MORE_LIMITS = [(n, "r.h5") for n in range(132_000, 866_000, 61_000)]


@pytest.mark.parametrize(
    ("limit", "where"), LIMITS + [pytest.param(*more, marks=pytest.mark.slow) for more in MORE_LIMITS]
)
def test_the_system_refuses_to_write_more(
    tmp_path: Path, limit: int, where: str, uninterrupted: dict[str, np.ndarray]
) -> None:
    """A real failure, in the shards (64 KiB each) or in HDF5 (12 of them): files may not grow beyond `limit`."""
    code = """
        import resource
        from wanlab.errors import WanlabError
        limit = int(sys.argv[2])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            sample(sys.argv[1])
        except WanlabError as error:
            print("refused", error)
            sys.exit(1)
    """
    path = tmp_path / "r.h5"
    with start_child(code, path, limit) as child:
        said, complaint = child.communicate()
    assert (child.returncode, complaint) == (1, ""), (said, complaint)
    assert f"cannot write {tmp_path / where}" in said.splitlines()[-1]
    assert not path.exists()
    assert not list(part_directory(path).glob("fold*"))
    sample_here(path)
    for name, value in uninterrupted.items():
        np.testing.assert_array_equal(contents(path)[name], value)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != limit


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A finished file with every kind of element, about 20 kB."""
    path = tmp_path_factory.mktemp("small") / "r.h5"
    fields = [*FIELDS, Field("passes", (), "int32"), Field("expert", (), "S4"), Field("zeros", ("row",))]
    with RunWriter(path, spec_json="{}", digest="d", attrs={"device": "cpu"}, fields=fields) as writer:
        noise = np.random.default_rng(1).standard_normal((2, 3, 1, 16))
        for k in range(4):
            values: dict[str, Any] = {"sigma": k, "x_t": noise + k, "zeros": np.zeros(16)}
            writer.step(k, values | ({"passes": 2, "expert": "low"} if k else {}))
        writer.finish({LATENT: noise, Field("digest", (), "S64"): "0" * 64})
    return path.read_bytes()


def flips(count: int, raw: bytes, path: Path) -> None:
    chance = random.Random(count)
    for _ in range(count):
        at, bit = chance.randrange(len(raw)), chance.randrange(8)
        damaged = bytearray(raw)
        damaged[at] ^= 1 << bit
        path.write_bytes(damaged)
        assert verify(path), f"bit {bit} of byte {at} flipped unnoticed"
        try:  # reading may or may not notice, but says so in our words
            with Run(path) as run:
                for data in run.data.values():
                    data[...]
        except WanlabError:
            pass


def test_a_flipped_bit_is_noticed(tmp_path: Path, small: bytes) -> None:
    flips(100, small, tmp_path / "r.h5")


@pytest.mark.slow
def test_500_flipped_bits_are_noticed(tmp_path: Path, small: bytes) -> None:
    flips(500, small, tmp_path / "r.h5")


def test_a_flipped_bit_in_data_is_noticed_on_reading_it(tmp_path: Path, small: bytes) -> None:
    """By the chunk's own checksum: the seal is not looked at."""
    path = tmp_path / "r.h5"
    path.write_bytes(small)
    with h5py.File(path) as file:
        place = file["steps/x_t"].id.get_chunk_info(3)
    damaged = bytearray(small)
    damaged[place.byte_offset + 5] ^= 1
    path.write_bytes(damaged)
    with Run(path) as run:
        with pytest.raises(WanlabError, match="damaged"):
            run["x_t"][place.chunk_offset[0]]
        assert run["x_t"][3].shape == (2, 3, 1, 16)
    assert any("/steps/x_t: " in line for line in verify(path))


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, 5000, -5000, -200, -1])
def test_a_file_cut_short(tmp_path: Path, small: bytes, keep: int) -> None:
    path = tmp_path / "r.h5"
    path.write_bytes(small[:keep])
    assert verify(path)
    if keep != -1:  # all of the HDF5 part is there, only the seal is not whole
        with pytest.raises(WanlabError):
            Run(path)


def test_a_file_with_bytes_added(tmp_path: Path, small: bytes) -> None:
    (tmp_path / "r.h5").write_bytes(small + b"\0")
    assert verify(tmp_path / "r.h5")


@pytest.mark.parametrize("what", ["absent", "text", "empty", "directory", "pipe", "hdf5", "later"])
def test_what_is_no_run_file(tmp_path: Path, small: bytes, what: str) -> None:
    path = tmp_path / "r.h5"
    if what == "text":
        path.write_text("sampling steps\n" * 100)
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "directory":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "hdf5":
        h5py.File(path, "w").close()
    elif what == "later":
        path.write_bytes(small)
        with h5py.File(path, "r+") as file:
            file.attrs["encoding-version"] = np.bytes_("3")
    with pytest.raises(WanlabError) as caught:
        Run(path)
    assert caught.value.hint
    try:
        assert verify(path)
    except WanlabError:
        assert what in ("absent", "directory", "pipe")


# --- harm ------------------------------------------------------------------------------------------------------------


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    file.create_virtual_dataset("steps/evil", layout)


def _external(file: h5py.File) -> None:
    file["final"].create_dataset("evil", (8,), "u1", external=[("/etc/passwd", 0, 8)])


def _absurd_chunked(file: h5py.File) -> None:
    file["final"].create_dataset("evil", (2**20, 2**20, 2**20), "f8", chunks=(1, 1, 1024))


def _absurd_step(file: h5py.File) -> None:
    evil = file["final"].create_dataset("evil", (4, 2**30), "f4", chunks=(1, 2**10))
    evil[0, 0] = 1


def _absurd_contiguous(file: h5py.File) -> None:
    file["final"].create_dataset("evil", (2**33,), "f4")  # never written: it takes no place


def _absurd_chunk(file: h5py.File) -> None:
    file["final"].create_dataset("evil", (2**26,), "f8", chunks=(2**26,))


def _absurd_dimension(file: h5py.File) -> None:
    evil = file.create_dataset("evil", (2**36,), "i4", chunks=(1024,))
    evil.attrs["encoding-type"] = np.bytes_("dimension")


def _absurd_steps(file: h5py.File) -> None:
    evil = file["steps"].create_dataset("evil", (2**36,), "i1", chunks=(1024,))
    evil.attrs["encoding-type"] = np.bytes_("array")


def _absurd_attribute(file: h5py.File) -> None:
    file.attrs["evil"] = np.zeros(2**22 + 1)


def _many_attributes(file: h5py.File) -> None:
    for i in range(300):
        file["steps"].attrs[f"a{i}"] = i


def _put(where: str, attribute: str, value: Any) -> Callable[[h5py.File], None]:
    def put(file: h5py.File) -> None:
        file[where].attrs[attribute] = value

    put.__name__ = f"_{where}_{attribute}"
    return put


def _set(name: str, value: Any) -> Callable[[h5py.File], None]:
    def put(file: h5py.File) -> None:
        file[name] = value

    put.__name__ = "_" + repr(name)
    return put


def _dataset(name: str, *args: Any, **kwargs: Any) -> Callable[[h5py.File], None]:
    def put(file: h5py.File) -> None:
        file["final"].create_dataset("evil", *args, **kwargs)

    put.__name__ = "_" + name
    return put


def _hard_link_up(file: h5py.File) -> None:
    file["final/evil"] = file["/"]


def _same_twice(file: h5py.File) -> None:
    file["final/evil"] = file["steps/x_t"]


def _deep(file: h5py.File) -> None:
    file.create_group("/".join(["deep"] * 30))


HARM = [
    _set("final/evil", h5py.SoftLink("/steps/x_t")),
    _set("final/evil", h5py.SoftLink("/nowhere")),
    _set("final/evil", h5py.ExternalLink("/etc/passwd", "/")),
    _set("evil", h5py.ExternalLink("r.h5", "/steps/x_t")),
    _set("final/evil", np.dtype("f4")),  # a type with a name
    _set("final/\x1b[31mevil", np.zeros(3)),
    _virtual,
    _external,
    _hard_link_up,
    _same_twice,
    _deep,
    _dataset("vlen_text", data="text"),
    _dataset("vlen", (3,), h5py.vlen_dtype("f4")),
    _dataset("reference", (3,), h5py.ref_dtype),
    _dataset("region", (3,), h5py.regionref_dtype),
    _dataset("compound", (3,), [("a", "f4"), ("b", "i4")]),
    _dataset("opaque", data=np.void(b"abc")),
    _dataset("filter", data=np.zeros(99), compression="lzf"),
    _dataset("null_space", data=h5py.Empty("f4")),
    _absurd_chunked,
    _absurd_step,
    _absurd_contiguous,
    _absurd_chunk,
    _absurd_dimension,
    _absurd_steps,
    _absurd_attribute,
    _many_attributes,
    _put("/", "evil", "text of a variable length"),
    _put("steps", "evil", np.array([h5py.Reference()], h5py.ref_dtype)),
    _put("/", "encoding-version", np.zeros((30, 3))),
    _put("/", "packages_json", np.bytes_("{")),
    _put("/", "packages_json", np.bytes_("[" * 100_000)),
    _put("steps/x_t", "recorded_steps", np.array([0, 1, 2, 99])),
    _put("steps/x_t", "recorded_steps", np.array([-1, 1, 2, 3])),
    _put("steps/x_t", "recorded_steps", np.array([1, 0, 2, 3])),
    _put("steps/x_t", "recorded_steps", np.bytes_("all")),
    _put("steps/x_t", "recorded_shapes", np.full((4, 4), 99)),
    _put("steps/x_t", "recorded_shapes", np.full((4, 4), -1)),
    _put("steps/x_t", "recorded_shapes", np.full((4, 2), 1)),
    _put("steps/x_t", "recorded_shapes", np.full((9, 4), 1)),
    _put("steps/x_t", "dims", np.array([b"step"])),
    _put("steps/x_t", "dims", np.bytes_("step")),
    _put("steps/x_t", "dims", np.array([b"step", b"channel", b"row", b"latent_frame"])),
    _put("steps/x_t", "dims", np.array([b"channel", b"channel", b"row", b"latent_frame"])),
]


@pytest.mark.parametrize("harm", HARM, ids=lambda h: h.__name__.strip("_"))
def test_harm_is_refused(tmp_path: Path, small: bytes, harm: Callable[[h5py.File], None]) -> None:
    """Refused on opening, before anything is read or allocated; `verify` reports it too, though its seal is right."""
    path = tmp_path / "r.h5"
    path.write_bytes(small[: -fold.SEAL_BYTES])
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        harm(file)
    fold.append_seal(path)
    before = resource.getrusage(resource.RUSAGE_SELF)
    with pytest.raises(WanlabError) as error:
        Run(path)
    assert "\n" not in str(error.value)
    assert len(verify(path)) == 1
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_maxrss - before.ru_maxrss < 300_000  # kB
    assert after.ru_utime - before.ru_utime < 2


def test_what_the_library_says_while_it_closes_a_file_is_one_line(
    tmp_path: Path, small: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of bad metadata it may first find out then, and says RuntimeError."""
    (tmp_path / "r.h5").write_bytes(small)
    run = Run(tmp_path / "r.h5")

    def close(_: h5py.File) -> None:
        raise RuntimeError("can't close\nthe file")

    monkeypatch.setattr(h5py.File, "close", close)
    with pytest.raises(WanlabError, match="can't close the file"):
        run.close()


def test_the_untouched_file_is_accepted(tmp_path: Path, small: bytes) -> None:
    """Else the tests above would prove nothing."""
    path = tmp_path / "r.h5"
    path.write_bytes(small[: -fold.SEAL_BYTES])
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        file["steps"].attrs["more"] = 1
        file.create_group("extension/of_another_lab")["data"] = np.zeros(3)
    fold.append_seal(path)
    assert verify(path) == []


def test_a_read_larger_than_memory_is_refused(tmp_path: Path, small: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.h5").write_bytes(small)
    with Run(tmp_path / "r.h5") as run:
        monkeypatch.setattr(fields, "MAX_READ_BYTES", 2 * 3 * 16 * 4)  # one step
        assert run["x_t"][0].shape == (2, 3, 1, 16)
        assert run["x_t"][1:2].shape == (1, 2, 3, 1, 16)
        with pytest.raises(WanlabError, match="too large"):
            np.asarray(run["x_t"])
        with pytest.raises(WanlabError, match="too large"):
            run["x_t"][0:2]
