"""One way to write a file: whole under its name, or what stood there before."""

import errno
import os
import tracemalloc

import pytest

from wanlab import files
from wanlab.errors import UsageError, WanlabError


def test_a_full_disk_leaves_the_old_table(tmp_path, monkeypatch):
    table = tmp_path / "comparison.json"
    table.write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(WanlabError, match="free some space"):
        files.write_text(table, "new")
    assert table.read_text() == "old"
    assert os.listdir(tmp_path) == ["comparison.json"]


def test_a_link_in_the_place_is_replaced_not_written_through(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "r.png").symlink_to(victim)
    files.write_bytes(tmp_path / "r.png", b"picture")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "r.png").is_symlink()
    assert (tmp_path / "r.png").read_bytes() == b"picture"


def test_a_removal_that_fails_hides_no_error(tmp_path, monkeypatch):
    def stuck(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files.Path, "unlink", stuck)
    with pytest.raises(WanlabError, match="No space left"), files.replacing(tmp_path / "table.csv"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert files.write_text(tmp_path / "page.html", "whole").read_text() == "whole"  # nothing is left to be removed


@pytest.mark.parametrize("code", [errno.EIO, errno.EINTR, errno.EFBIG, errno.ENOLCK, errno.EAGAIN, errno.EISDIR])
def test_every_foreseeable_error_has_a_remedy(code):
    assert files.io_error("write", "x", OSError(code, os.strerror(code))).hint != files.remedy(OSError())


def test_a_folder_is_tried_before_work(tmp_path):
    files.check_folder(tmp_path / "new" / "deep")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "file/under", "dangling", "dangling/under", "x" * 300):
        with pytest.raises(WanlabError):
            files.check_folder(tmp_path / name)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "big").write_bytes(b"12345")
    for name in ("fifo", "zero", "big", "absent", "."):
        with pytest.raises(WanlabError):
            files.read_bytes(tmp_path / name, 4)
    assert files.read_bytes(tmp_path / "big", 5) == b"12345"


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "[Infinity]",
        "1" + "0" * 400,
        "9" * 5000,
        "[" * 100_000,
        "{",
        '{"a":' * 100_000,
        "[" + "[]," * 20_000_000 + "1]",
    ],
)
def test_what_json_may_not_be_is_one_error(text):
    with pytest.raises(ValueError):
        files.parse_json(text)


@pytest.mark.parametrize(
    "unit", ["[]", "{}", '{"a":1}', "1.5", '"ab"', '"\u00e9\u4e00"', '{"a":{}}', "12345678901", "[[1]]"]
)
def test_the_memory_of_json_is_foretold(unit):
    """What the values take, measured, is no more than was foretold, and not a tenth of it."""
    text = "[" + ",".join([unit] * 100_000) + "]"
    tracemalloc.start()
    kept = files.parse_json(text)
    taken = tracemalloc.get_traced_memory()[1] + len(text)
    tracemalloc.stop()
    assert kept and taken < files.json_bytes(text) < 10 * taken


@pytest.mark.parametrize("text", ["a = " + "9" * 5000, "a = " + "[" * 50_000, "a", "a = \xff", "a = 1\na = 2"])
def test_what_is_no_toml_is_one_line(text, tmp_path):
    (tmp_path / "a.toml").write_text(text, "latin-1")
    with pytest.raises(UsageError, match=r"cannot read .*a.toml") as caught:
        files.read_toml(tmp_path / "a.toml", "what to do")
    assert "\n" not in str(caught.value)


def test_a_pipe_is_no_toml(tmp_path):
    os.mkfifo(tmp_path / "a.toml")
    with pytest.raises(UsageError, match="pipe"):
        files.read_toml(tmp_path / "a.toml", "")
