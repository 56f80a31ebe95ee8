"""Videos as they are stored: every frame once, at its depth, with its time; damage is never a shorter video."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from wanlab import video
from wanlab.engine.run import check_output
from wanlab.errors import UsageError, WanlabError
from wanlab.images import read_video
from wanlab.video import read_mp4, write_mp4

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
    assert meta["color"] == ["tv", "bt709"]  # ffmpeg's short form of matrix, primaries and transfer that are all bt709


def test_a_picture_of_no_pixels_is_no_frame_without_end(tmp_path):
    path = tmp_path / "a.mp4"
    write_mp4(path, FRAMES, 16)
    data = bytearray(path.read_bytes())
    entry = data.index(b"avc1", data.index(b"stsd"))  # ISO 14496-12: width and height stand 28 bytes after the name
    data[entry : entry + 4], data[entry + 30 : entry + 32] = b"none", b"\0\0"
    path.write_bytes(data)
    with pytest.raises(WanlabError, match="48x0 pixels"):
        read(path)


def test_a_gif_has_its_own_frames_and_times(tmp_path):
    images = [Image.fromarray(frame) for frame in FRAMES]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=[60] * 16 + [2000])
    frames, meta = read(tmp_path / "a.gif")
    assert len(frames) == 17
    assert meta["times"] == pytest.approx([0.06 * k for k in range(17)])


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.mkv"])
def test_frames_of_uneven_times_are_all_read(tmp_path, name):
    """Frame 5 is shown a millisecond after frame 4, and frame 9 a second late: none is dropped, none made."""
    codec = ["-c:v", "libvpx-vp9", "-lossless", "1"] if name == "a.webm" else ["-c:v", "libx264rgb", "-qp", "0"]
    command = [FFMPEG, "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "48x32", "-r", "16", "-i", "-"]
    clock = "settb=1/1000,setpts=N*60-59*eq(N\\,5)+1000*gt(N\\,8)"
    command += ["-vf", clock, "-fps_mode", "vfr", "-enc_time_base", "1/1000", "-pix_fmt", "rgb24", "-bf", "0"]
    command = [*command, *codec, tmp_path / name]
    if name == "a.webm":
        command[command.index("-pix_fmt", 12) + 1] = "gbrp"
    subprocess.run(command, input=FRAMES.tobytes(), check=True)
    frames, meta = read(tmp_path / name)
    np.testing.assert_array_equal(frames, FRAMES)
    times = [0.06 * k - 0.059 * (k == 5) + (k > 8) for k in range(17)]
    assert meta["times"] == pytest.approx(times, abs=1e-3)


def test_a_video_cut_short_is_damaged(tmp_path):
    write_mp4(tmp_path / "a.mp4", FRAMES, 16)
    front = tmp_path / "front.mp4"
    subprocess.run([FFMPEG, "-v", "error", "-i", tmp_path / "a.mp4", "-c", "copy", "-movflags", "faststart", front])
    data = front.read_bytes()
    front.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(WanlabError, match="damaged"):
        read(front)


@pytest.mark.parametrize("share", [0.6, 0.97])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mkv", ["-c:v", "ffv1"]),
        ("a.webm", ["-c:v", "libvpx", "-b:v", "2M"]),
        ("a.gif", []),
        ("a.avi", ["-c:v", "mjpeg"]),
        ("a.mov", ["-c:v", "libx264", "-movflags", "faststart"]),
    ],
)
def test_other_files_cut_short_are_damaged(tmp_path, name, options, share):
    command = [FFMPEG, "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=64x48:rate=16", "-frames:v", "30"]
    subprocess.run([*command, *options, tmp_path / name], check=True)
    assert len(read(tmp_path / name)[0]) == 30
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(WanlabError, match="damaged"):
        read(tmp_path / name)


@pytest.mark.slow
def test_a_file_cut_short_is_damaged_every_time(tmp_path):
    """On a busy machine threads of ffmpeg write into each other's lines: once in 400 times its error lost its mark."""
    command = [FFMPEG, "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=64x48:rate=16", "-frames:v", "30"]
    subprocess.run([*command, tmp_path / "whole.gif"], check=True)
    data = (tmp_path / "whole.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(data[: int(len(data) * 0.6)])

    def damaged(_):
        with pytest.raises(WanlabError, match="damaged"):
            read(tmp_path / "a.gif")
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(damaged, range(2000)))


def test_what_else_is_said_is_no_damage(tmp_path, monkeypatch):
    """The loader of programs speaks through the same pipe."""
    write_mp4(tmp_path / "a.mp4", FRAMES, 16)
    monkeypatch.setenv("LD_PRELOAD", "/nothing/there.so")
    assert len(read(tmp_path / "a.mp4")[0]) == len(FRAMES)


def test_text_in_a_picture_is_no_time(tmp_path):
    text = PngInfo()
    text.add_text("Comment", "pts_time:7")
    first, *others = (Image.fromarray(frame) for frame in FRAMES)
    first.save(tmp_path / "a.apng", save_all=True, append_images=others, duration=40, pnginfo=text)
    with read_mp4(tmp_path / "a.apng") as (meta, frames):
        assert len(list(frames)) == len(FRAMES)
    assert meta["times"] == pytest.approx([0.04 * k for k in range(len(FRAMES))])


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


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("f.png", ["-pix_fmt", "rgb48be"], "16 bits a colour"),
        ("f.tiff", ["-pix_fmt", "rgb48le"], "16 bits a colour"),
        ("f.png", ["-pix_fmt", "gray16be"], "pixels of mode I;16"),
        ("f.png", ["-pix_fmt", "rgba"], "pixels of mode RGBA"),
        ("f.png", ["-frames:v", "3", "-f", "apng"], "3 frames"),
    ],
)
def test_an_image_that_would_lose_something_as_rgb_of_8_bits_is_refused(tmp_path, name, options, says):
    frames = ["-frames:v", "1"] if "-frames:v" not in options else []
    command = [FFMPEG, "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=48x32", *frames, *options, tmp_path / name]
    subprocess.run(command, check=True)
    with pytest.raises(UsageError, match=f"has {says}; save it as RGB with 8 bits"), read_video(tmp_path) as (_, shown):
        list(shown)


@pytest.mark.parametrize("what", ["pipe", "device", "link to nothing"])
def test_an_image_that_is_no_file_is_no_frame_left_out(tmp_path, what):
    for k in (0, 2):
        Image.fromarray(FRAMES[k]).save(tmp_path / f"{k}.png")
    if what == "pipe":
        os.mkfifo(tmp_path / "1.png")
    else:
        (tmp_path / "1.png").symlink_to("/dev/zero" if what == "device" else tmp_path / "absent")
    with pytest.raises(WanlabError, match=r"1\.png"), read_video(tmp_path) as (_, shown):
        list(shown)


def test_transparent_images_are_refused(tmp_path):
    Image.fromarray(FRAMES[0]).quantize(8).save(tmp_path / "f.png", transparency=0)
    with pytest.raises(UsageError, match="transparent pixels"), read_video(tmp_path) as (_, shown):
        list(shown)


@pytest.mark.parametrize("program", ["/nonexistent", "/bin/false", "/bin/true"])
def test_an_ffmpeg_that_cannot_encode_is_known_before_sampling(tmp_path, monkeypatch, program):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", program)
    video._encoders.cache_clear()
    with pytest.raises(WanlabError, match="IMAGEIO_FFMPEG_EXE"):
        check_output(tmp_path / "r.h5")
    video._encoders.cache_clear()
