"""One way to write a file: whole under its name, or what stood there before."""

import errno
import os

import pytest

from wanlab import files
from wanlab.errors import WanlabError


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
