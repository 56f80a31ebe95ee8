"""Videos as they are stored: every frame once, at its depth, with its time; damage is never a shorter video."""

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from wanlab.errors import WanlabError
from wanlab.images import read_video
from wanlab.video import check_encoder, read_mp4, write_mp4

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
FRAMES = np.random.default_rng(0).integers(0, 256, (17, 32, 48, 3), dtype="u1")


def read(path):
    with read_mp4(path) as (meta, frames):
        return list(frames), meta


def test_a_colon_is_no_url(tmp_path):
    path = tmp_path / "12:30:05.mp4"
    write_mp4(path, FRAMES, 16)
    frames, meta = read(path)
    assert len(frames) == 17
    assert meta["times"] == pytest.approx([k / 16 for k in range(17)], abs=1e-4)
    assert any("bt709" in tag for tag in meta["color"])


def test_a_gif_has_its_own_frames_and_times(tmp_path):
    images = [Image.fromarray(frame) for frame in FRAMES]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=[60] * 16 + [2000])
    frames, meta = read(tmp_path / "a.gif")
    assert len(frames) == 17
    assert meta["times"] == pytest.approx([0.06 * k for k in range(17)])


def test_a_video_cut_short_is_damaged(tmp_path):
    write_mp4(tmp_path / "a.mp4", FRAMES, 16)
    front = tmp_path / "front.mp4"
    subprocess.run([FFMPEG, "-v", "error", "-i", tmp_path / "a.mp4", "-c", "copy", "-movflags", "faststart", front])
    data = front.read_bytes()
    front.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(WanlabError, match="damaged"):
        read(front)


def test_16_bits_and_alpha_are_kept(tmp_path):
    deep = np.arange(4 * 6 * 4, dtype="<u2").reshape(4, 6, 4) * 601
    path = tmp_path / "a.mkv"
    command = [FFMPEG, "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgba64le", "-s", "6x4", "-i", "-"]
    subprocess.run([*command, "-c:v", "ffv1", "-pix_fmt", "gbrap16le", path], input=deep.tobytes(), check=True)
    (frame,), meta = read(path)
    assert (meta["depth"], meta["alpha"], frame.dtype.itemsize) == (16, True, 2)
    np.testing.assert_array_equal(frame, deep)


def test_images_in_the_order_of_their_names(tmp_path):
    for k in range(3):
        Image.fromarray(FRAMES[k]).save(tmp_path / f"{k:02d}.png")
    with read_video(tmp_path) as (meta, frames):
        assert meta["size"] == (48, 32)
        np.testing.assert_array_equal(list(frames), FRAMES[:3])


def test_a_missing_ffmpeg_is_named_before_a_run(monkeypatch):
    check_encoder()
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: "/nowhere/ffmpeg")
    with pytest.raises(WanlabError, match="no ffmpeg"):
        check_encoder()
