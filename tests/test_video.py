"""Films with the real ffmpeg: whole, as stored, at any path."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from wanlab.errors import WanlabError
from wanlab.video import check_encoder, read_mp4, write_gif, write_mp4

FRAMES = np.repeat(np.arange(17, dtype=np.uint8)[:, None, None, None] * 14, 32 * 48 * 3).reshape(17, 32, 48, 3)


def frames_of(path: Path) -> list[np.ndarray]:
    with read_mp4(path) as (meta, frames):
        assert meta["size"] == (48, 32)
        return list(frames)


@pytest.mark.parametrize("name", ["r.mp4", "run:1.mp4", "http:x.mp4", "12:30:05.mp4", "%03d.mp4", "-y.mp4"])
def test_any_path_is_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_mp4(Path(name), FRAMES, 16)
    read = frames_of(Path(name))
    assert len(read) == 17
    assert [round(float(f.mean())) for f in read] == pytest.approx([14 * k for k in range(17)], abs=4)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_gif_whose_last_frame_is_held_has_its_17_frames(tmp_path: Path) -> None:
    images = [Image.fromarray(f) for f in FRAMES]
    path = tmp_path / "held.gif"
    images[0].save(path, save_all=True, append_images=images[1:], duration=[60] * 16 + [2000])
    assert len(frames_of(path)) == 17


def test_a_film_cut_short_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 32, 48, 3), dtype=np.uint8)
    write_mp4(tmp_path / "a.mp4", noise, 16)
    fast = tmp_path / "fast.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(tmp_path / "a.mp4"), "-c", "copy", "-movflags", "+faststart"]
    subprocess.run([*command, str(fast)], check=True, capture_output=True)
    assert len(frames_of(fast)) == 40
    data = fast.read_bytes()
    for share in (0.6, 0.8, 0.95):
        fast.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(WanlabError, match="damaged"):
            frames_of(fast)


@pytest.mark.parametrize(("write", "name"), [(write_mp4, "r.mp4"), (write_gif, "r.gif")])
def test_a_link_in_the_place_of_the_part_is_not_followed(tmp_path: Path, write: object, name: str) -> None:
    kept = tmp_path / "kept"
    kept.write_text("mine")
    (tmp_path / f".r.part{Path(name).suffix}").symlink_to(kept)
    write(tmp_path / name, FRAMES, 16)  # type: ignore[operator]
    assert kept.read_text() == "mine"
    assert not (tmp_path / name).is_symlink()


def test_a_missing_ffmpeg_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_encoder()
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    imageio_ffmpeg.get_ffmpeg_exe.cache_clear() if hasattr(imageio_ffmpeg.get_ffmpeg_exe, "cache_clear") else None
    with pytest.raises(WanlabError, match="no ffmpeg"):
        check_encoder()
