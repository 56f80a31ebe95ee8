"""Metrics against values derived by hand, and against ffmpeg's own filters on the same frames."""

import math
import re
import subprocess
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from wanlab.analysis import metrics
from wanlab.analysis.fidelity import compare
from wanlab.analysis.figures.compare import side_by_side
from wanlab.analysis.metrics import pixels
from wanlab.analysis.metrics.clip import Clip, frames_of
from wanlab.errors import UsageError, WanlabError
from wanlab.runfile import Field, Run, RunWriter
from wanlab.video import FPS, ffmpeg, ffmpeg_compare, has_filter, read_mp4, write_mp4, write_mp4_from


def run_of(path, frames):
    """A run file that holds these frames: float32 as they are and 8-bit, or 8-bit only."""
    dims = ("frame", "height", "width", "rgb")
    final = {Field("video", dims, "uint8", "1", "frames"): frames}
    if frames.dtype != np.uint8:
        final = {
            Field("video", dims, "uint8", "1", "frames"): (frames * 255).round().astype(np.uint8),
            Field("video_float", dims, "float32", "1", "frames"): frames.astype(np.float32),
        }
    with RunWriter(path, spec_json="{}", digest="0", attrs={}, fields=[Field("sigma", (), "float64", "1", "s")]) as w:
        w.step(0, {"sigma": np.asarray(1.0)})
        w.finish(final, {})
    return Clip.of(path)


@pytest.fixture
def clips(tmp_path):
    def make(a, b):
        return run_of(tmp_path / "a.h5", a), run_of(tmp_path / "b.h5", b)

    return make


def test_constant_offset(clips):
    """.25 + .125 against .25: every error is .125; MSE 1/64, PSNR 10 log10(64) = 18.061800 dB; relative .125/.25."""
    b = np.full((3, 16, 24, 3), 0.25)
    found = compare(*clips(b + 0.125, b))
    assert (found["abs_mean"], found["abs_max"], found["mse"]) == pytest.approx((0.125, 0.125, 1 / 64), abs=1e-12)
    assert found["abs_std"] == pytest.approx(0, abs=1e-7)
    assert found["psnr"] == pytest.approx(18.061800, abs=1e-6)
    assert (found["rel_mean"], found["rel_max"]) == pytest.approx((0.5, 0.5), abs=1e-6)
    # SSIM of two constants: (2ab + C1)/(a² + b² + C1) with C1 = 1e-4; the contrast term is 1.
    assert found["ssim"] == pytest.approx((2 * 0.375 * 0.25 + 1e-4) / (0.375**2 + 0.25**2 + 1e-4), abs=1e-6)
    assert found.by_frame["psnr"] == pytest.approx([18.061800] * 3, abs=1e-6)


def test_one_white_pixel(clips):
    """One pixel of 16x24, white in the second of 4 frames, on black: 3 of 4608 values differ by 1."""
    b = np.zeros((4, 16, 24, 3))
    a = b.copy()
    a[1, 5, 7] = 1
    found = compare(*clips(a, b))
    share = 3 / 4608
    assert (found["mse"], found["abs_mean"], found["abs_max"]) == pytest.approx((share, share, 1), abs=1e-12)
    assert found["abs_std"] == pytest.approx(math.sqrt(share - share**2), abs=1e-9)
    assert found["psnr"] == pytest.approx(-10 * math.log10(share), abs=1e-9)
    assert found.worst_frame == 1 and found.by_frame["mse"][1] == pytest.approx(1 / 384)
    assert np.isposinf(found.by_frame["psnr"][[0, 2, 3]]).all()
    assert found["rel_max"] == pytest.approx(1e8) and found["rel_mean"] == pytest.approx(1e8 * share)
    assert found.by_frame["ssim"][[0, 2, 3]] == pytest.approx([1, 1, 1]) and found.by_frame["ssim"][1] < 1


def test_shifted_frame(clips):
    """A ramp of 1/32 a column against itself one column on: an error of 1/32 but at the wrap, where it is 31/32."""
    ramp = np.broadcast_to((np.arange(32) / 32)[None, None, :, None], (2, 16, 32, 3))
    found = compare(*clips(np.roll(ramp, 1, axis=2), ramp))
    assert found["abs_mean"] == pytest.approx((31 * 1 / 32 + 31 / 32) / 32, abs=1e-12)
    assert found["mse"] == pytest.approx((31 * (1 / 32) ** 2 + (31 / 32) ** 2) / 32, abs=1e-12)
    assert found["abs_max"] == pytest.approx(31 / 32)


def test_against_itself(clips):
    a = np.random.default_rng(0).random((3, 16, 16, 3))
    found = compare(*clips(a, a))
    assert (
        found["mse"] == 0
        and found["psnr"] == math.inf
        and found["ssim"] == pytest.approx(1, abs=1e-12)
        and found.identical
    )


def test_float_frames_are_compared_before_rounding(clips):
    """A difference of 1/1000 vanishes in 8 bits and is seen before."""
    b = np.full((1, 16, 16, 3), 0.5)
    found = compare(*clips(b + 1e-3, b))
    assert found["abs_mean"] == pytest.approx(1e-3, rel=1e-4) and not found.rounded
    rounded = [(x * 255).round().astype(np.uint8) for x in (b + 1e-3, b)]
    found = compare(*clips(*rounded))
    assert found["mse"] == 0 and found.rounded


@pytest.fixture
def noisy():
    """Two 8-bit clips: a moving square, and the same with noise."""
    rng = np.random.default_rng(3)
    b = np.full((5, 64, 96, 3), 90, np.uint8)
    for t in range(5):
        b[t, 20:40, 10 + 6 * t : 30 + 6 * t] = (220, 40, 60)
    a = np.clip(b + rng.normal(0, 9, b.shape), 0, 255).round().astype(np.uint8)
    return a, b


def raw(tmp_path, frames, name):
    path = tmp_path / f"{name}.rgb"
    path.write_bytes(frames.tobytes())
    return path


def test_psnr_is_ffmpegs(clips, noisy, tmp_path):
    a, b = noisy
    said = ffmpeg_compare(raw(tmp_path, a, "a"), raw(tmp_path, b, "b"), "[a][b]psnr", (96, 64))
    average = float(re.search(r"average:([\d.]+)", said)[1])
    assert compare(*clips(a, b))["psnr"] == pytest.approx(average, abs=1e-6)  # ffmpeg prints six digits


def ffmpeg_ssim(x, y):
    """ffmpeg's definition of one plane (libavfilter/vf_ssim.c): uniform 8x8 windows every 4 pixels; its constants are
    the usual ones of sums over 64 pixels, the first a 64th of what it would be for means."""
    c1, c2 = int(0.01**2 * 255**2 * 64 + 0.5) / 4096, int(0.03**2 * 255**2 * 64 * 63 + 0.5) / 4096
    found = []
    for i in range(0, x.shape[0] - 7, 4):
        for j in range(0, x.shape[1] - 7, 4):
            p, q = (z[i : i + 8, j : j + 8].astype(float) for z in (x, y))
            covariance = ((p - p.mean()) * (q - q.mean())).mean()
            found.append(
                (2 * p.mean() * q.mean() + c1)
                * (2 * covariance + c2)
                / ((p.mean() ** 2 + q.mean() ** 2 + c1) * (p.var() + q.var() + c2))
            )
    return np.mean(found)


def test_ssim_beside_ffmpegs(clips, noisy, tmp_path):
    """ffmpeg's windows are uniform and every fourth, ours Gaussian and at every pixel: near, and never equal. That its
    figure is read right is shown by its own definition, computed here."""
    a, b = noisy
    said = ffmpeg_compare(
        raw(tmp_path, a, "a"), raw(tmp_path, b, "b"), "[a]format=gbrp[x];[b]format=gbrp[y];[x][y]ssim", (96, 64)
    )
    printed = float(re.search(r"All:([\d.]+)", said)[1])
    theirs = np.mean([ffmpeg_ssim(a[t, ..., c], b[t, ..., c]) for t in range(5) for c in range(3)])
    assert theirs == pytest.approx(printed, abs=1e-6)  # ffmpeg prints six digits
    assert compare(*clips(a, b))["ssim"] == pytest.approx(printed, abs=0.05)


@pytest.mark.skipif(not has_filter("libvmaf"), reason="this ffmpeg has no libvmaf")
def test_vmaf_where_there_is_one(clips, noisy):
    a, b = noisy
    same, other = (
        compare(*clips(b, b), metrics=metrics.chosen(["vmaf"]))["vmaf"],
        compare(*clips(a, b), metrics=metrics.chosen(["vmaf"]))["vmaf"],
    )
    assert same > 95 > other


@pytest.mark.skipif(not has_filter("libvmaf"), reason="this ffmpeg has no libvmaf")
def test_vmaf_of_two_videos_is_ffmpegs(tmp_path, noisy):
    """As they are stored: no way through RGB, which costs some tenths."""
    for name, frames in zip("ab", noisy, strict=True):
        write_mp4(tmp_path / f"{name}.mp4", frames, FPS)
    command = [ffmpeg(), "-hide_banner", "-i", tmp_path / "a.mp4", "-i", tmp_path / "b.mp4"]
    done = subprocess.run([*command, "-lavfi", "libvmaf", "-f", "null", "-"], capture_output=True, check=True)
    printed = float(re.search(rb"VMAF score: ([\d.]+)", done.stderr)[1])
    clips = (Clip.of(tmp_path / f"{name}.mp4") for name in "ab")
    assert compare(*clips, metrics=metrics.chosen(["vmaf"]))["vmaf"] == pytest.approx(printed, abs=1e-6)


@pytest.mark.skipif(not has_filter("libvmaf"), reason="this ffmpeg has no libvmaf")
def test_vmaf_of_runs_is_that_of_their_films_before_compression(tmp_path, clips, noisy):
    """Both become 4:2:0 as wanlab's films do: what ffmpeg prints of films made like those, and lossless."""
    made = []
    for name, frames in zip("ab", noisy, strict=True):
        tags = "scale=out_color_matrix=bt709:out_range=tv,format=yuv420p"
        made.append(encode(tmp_path / f"{name}.mkv", frames, "-vf", tags, "-c:v", "ffv1").path)
    printed = {n: ffmpeg_compare(*made, f"[a][b]{n}") for n in ("libvmaf", "ssim")}
    found = compare(*clips(*noisy), metrics=metrics.chosen(["vmaf", "ssim.ffmpeg"]))
    assert found["vmaf"] == pytest.approx(float(re.search(r"VMAF score: ([\d.]+)", printed["libvmaf"])[1]), abs=1e-6)
    assert found["ssim.ffmpeg"] == pytest.approx(float(re.search(r"All:([\d.]+)", printed["ssim"])[1]), abs=1e-6)


def encode(path, frames, *options, pixels="rgb24"):
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    command = [ffmpeg(), "-v", "error", "-f", "rawvideo", "-pix_fmt", pixels, "-s", size, "-r", "16", "-i", "-"]
    subprocess.run([*command, *options, path], input=frames.tobytes(), check=True)
    return Clip.of(path)


def test_colour_tags_that_differ_or_are_missing_are_said(tmp_path, noisy):
    frames = noisy[1]

    def tagged(name, matrix):
        tags = f",setparams=range=tv:colorspace={matrix}:color_primaries={matrix}:color_trc={matrix}" * bool(matrix)
        return encode(tmp_path / name, frames, "-vf", f"format=yuv444p{tags}", "-c:v", "libx264", "-qp", "0")

    new, old, none = tagged("new.mp4", "bt709"), tagged("old.mp4", "smpte170m"), tagged("none.mp4", "")
    assert compare(new, new).notes == ()
    assert "new.mp4 has tv, bt709 and old.mp4 has tv, smpte170m" in compare(new, old).notes[0]
    assert "none.mp4 has no colour tags" in compare(new, none).notes[0]
    assert "ffmpeg's default" in compare(none, none).notes[0]
    run = run_of(tmp_path / "r.h5", frames)
    assert compare(new, run).notes == () and "ffmpeg's default" in compare(none, run).notes[0]
    for name in "xy":
        write_mp4(tmp_path / f"{name}.mp4", frames, FPS)
    assert compare(Clip.of(tmp_path / "x.mp4"), new).notes == ()


@pytest.mark.parametrize(
    ("pixels", "dtype", "black", "below"), [("yuv420p", "u1", 16, 14), ("yuv422p10le", "<u2", 64, 62)]
)
def test_films_that_differ_where_their_rgb_is_equal_are_not_identical(tmp_path, pixels, dtype, black, below):
    """Fifteen values of luma in one of four frames are two below black, which is black in RGB. PSNR is ffmpeg's own."""
    size = 32 * 16 * 3 // 2 if pixels == "yuv420p" else 32 * 16 * 2
    planes = np.full((4, size), 128 if dtype == "u1" else 512, dtype)
    planes[:, : 32 * 16] = black
    other = planes.copy()
    other[2, 5:20] = below
    tags = ("-vf", "setparams=range=tv:colorspace=bt709", "-c:v", "ffv1")
    for name, data in (("a", planes), ("b", other)):
        command = [ffmpeg(), "-v", "error", "-f", "rawvideo", "-pix_fmt", pixels, "-s", "32x16", "-r", "16", "-i", "-"]
        subprocess.run([*command, *tags, tmp_path / f"{name}.mkv"], input=data.tobytes(), check=True)
    a, b = (Clip.of(tmp_path / f"{name}.mkv") for name in "ab")
    found = compare(a, b)
    printed = float(re.search(r"average:([\d.]+)", ffmpeg_compare(a.path, b.path, "[a][b]psnr"))[1])
    assert found["psnr"] == pytest.approx(printed, abs=1e-6) and not found.identical and found.worst_frame == 2
    assert found["mse"] == pytest.approx(15 * (2 / (255 if dtype == "u1" else 1023)) ** 2 / (4 * size), rel=1e-9)
    assert "differ as they are stored" in found.notes[0]
    assert compare(b, b).identical and compare(b, b).notes == ()


def test_frames_at_other_times_are_compared_by_number_and_that_is_said(tmp_path, noisy):
    late = ("-vf", "setpts=(N+5*gt(N\\,2))/16/TB", "-fps_mode", "vfr", "-c:v", "libx264rgb", "-qp", "0")
    a, b = (encode(tmp_path / f"{n}.mp4", noisy[1], *o) for n, o in (("a", late), ("b", late[4:])))
    found = compare(a, b)
    assert found.identical and "frame 3 at 0.500 s and 0.188 s" in found.notes[0]
    assert compare(b, b).notes == ()


def test_alpha_counts(tmp_path, noisy):
    """Frames that differ in alpha alone, 255 and 204: an error of .2 in one of four channels, MSE .01."""
    opaque, thin = (np.concatenate([noisy[1], np.full_like(noisy[1][..., :1], v)], -1) for v in (255, 204))
    options = ("-c:v", "ffv1", "-pix_fmt", "gbrap")
    a, b = (encode(tmp_path / f"{n}.mkv", f, *options, pixels="rgba") for n, f in (("a", thin), ("b", opaque)))
    assert compare(a, b)["mse"] == pytest.approx(0.01, abs=1e-9)
    plain = encode(tmp_path / "c.mkv", noisy[1], "-c:v", "ffv1", "-pix_fmt", "gbrp")
    with pytest.raises(UsageError, match=r"a\.mkv has an alpha channel, c\.mkv has none"):
        compare(a, plain)


def test_vmaf_is_not_a_number_without_the_filter(clips, noisy, monkeypatch):
    monkeypatch.setattr(pixels, "has_filter", lambda name: False)
    assert math.isnan(compare(*clips(*noisy), metrics=metrics.chosen(["vmaf"]))["vmaf"])


def test_mp4_files(tmp_path, noisy):
    a, b = noisy
    for name, frames in (("a", a), ("b", b)):
        write_mp4(tmp_path / f"{name}.mp4", frames, FPS)
    found = compare(Clip.of(tmp_path / "a.mp4"), Clip.of(tmp_path / "b.mp4"))
    assert len(found.by_frame["mse"]) == 5 and found.rounded and 20 < found["psnr"] < 40
    same = compare(Clip.of(tmp_path / "b.mp4"), Clip.of(tmp_path / "b.mp4"))
    assert same.identical


def test_sizes_and_lengths_that_differ_are_refused(clips, tmp_path, noisy):
    with pytest.raises(UsageError, match=r"a\.h5 is 24x16, 3 frames; b\.h5 is 16x16, 3 frames"):
        compare(*clips(np.zeros((3, 16, 24, 3)), np.zeros((3, 16, 16, 3))))
    with pytest.raises(UsageError, match=r"3 frames.*5 frames"):
        compare(*clips(np.zeros((3, 16, 16, 3)), np.zeros((5, 16, 16, 3))))
    write_mp4(tmp_path / "a.mp4", noisy[0], FPS)
    write_mp4(tmp_path / "b.mp4", noisy[0][:3], FPS)
    with pytest.raises(UsageError, match=r"a\.mp4 has 5 frames, b.mp4 3"):
        compare(Clip.of(tmp_path / "a.mp4"), Clip.of(tmp_path / "b.mp4"))
    with pytest.raises(UsageError, match="smaller than SSIM"):
        compare(*clips(np.zeros((3, 8, 24, 3)), np.zeros((3, 8, 24, 3))))


def test_damaged_files_are_refused(tmp_path, noisy):
    for name, data in (("text.mp4", b"no video at all"), ("empty.mp4", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(WanlabError, match="no video that ffmpeg can read"):
            Clip.of(tmp_path / name)
    write_mp4(tmp_path / "whole.mp4", noisy[0], FPS)
    data = bytearray((tmp_path / "whole.mp4").read_bytes())
    at = data.index(b"mdat") + 900
    data[at : at + 1500] = b"\xa5" * 1500
    (tmp_path / "hurt.mp4").write_bytes(data)
    with pytest.raises(WanlabError, match=r"damaged|differ in length|can read"):
        compare(Clip.of(tmp_path / "hurt.mp4"), Clip.of(tmp_path / "whole.mp4"))
    with pytest.raises(WanlabError, match="there is no file"):
        Clip.of(tmp_path / "absent.mp4")


def test_steadiness_by_hand(tmp_path):
    """A clip that brightens by .1 a frame differs by .1, of which no motion explains anything; B stands still."""
    frames = np.stack([np.full((24, 32, 3), 0.1 * t) for t in range(4)])
    still = run_of(tmp_path / "still.h5", frames[:1].repeat(4, axis=0))
    found = compare(run_of(tmp_path / "up.h5", frames), still)
    assert found["difference"] == pytest.approx(0.1, abs=1e-6) and found["difference_baseline"] == 0
    assert found["warping_error"] == pytest.approx(0.1, abs=1e-6) and found["warping_error_baseline"] == 0
    assert len(found.by_frame["difference"]) == 3
    one = run_of(tmp_path / "one.h5", frames[:1])
    found = compare(one, one)
    assert math.isnan(found["difference"]) and math.isnan(found["warping_error"])


def test_motion_is_no_unsteadiness(tmp_path):
    """A soft blob that moves two pixels a frame changes every pixel near it; moved back, it is almost itself."""
    yy, xx = np.mgrid[:48, :64]
    frames = np.stack([np.exp(-((xx - 20 - 2 * t) ** 2 + (yy - 24) ** 2) / 60) for t in range(4)])[..., None].repeat(
        3, -1
    )
    clip = run_of(tmp_path / "move.h5", frames)
    found = compare(clip, clip)
    assert found["warping_error"] < 0.1 * found["difference"]


def test_each_clip_is_read_once(clips, noisy, monkeypatch):
    """For all measures together, and a clip seen before only to be held against another."""
    opened = []
    read = Clip.read_kept
    monkeypatch.setattr(Clip, "read_kept", lambda self: opened.append(self.path.name) or read(self))
    known = {}
    a, b = clips(*noisy)
    first = compare(a, b, known=known)
    assert sorted(opened) == ["a.h5", "b.h5"]
    kept = {path: dict(values) for path, values in known.items()}
    assert compare(a, b, known=known).figures == first.figures and known == kept


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_a_number_is_never_identical(clips, bad, side):
    """One value of one frame, in A, in B, or in both alike: every figure of it is NaN, and the frame is the worst."""
    good = np.full((3, 16, 16, 3), 0.5)
    hurt = good.copy()
    hurt[1, 3, 3, 0] = bad
    for pair in ((hurt, good) if side == 0 else (good, hurt), (hurt, hurt)):
        found = compare(*clips(*pair))
        assert not found.identical and found.worst_frame == 1
        for name in ("mse", "psnr", "ssim", "abs_mean", "abs_max", "abs_std", "warping_error" + "_baseline" * side):
            assert math.isnan(found[name]), name


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0, 255), (0, 1.001), (0, 1e30)])
@pytest.mark.parametrize("side", [0, 1])
def test_frames_on_another_scale_are_refused(tmp_path, low, high, side):
    """The second of two frames is of [-1,1], of 8 bits as floats, or a little beyond white: no PSNR for peak 1."""
    good = np.full((2, 16, 16, 3), 0.5)
    hurt = good.copy()
    hurt[1, 3, 3, 0], hurt[1, 4, 4, 0] = low, high
    pair = [run_of(tmp_path / "good.h5", good), run_of(tmp_path / "hurt.h5", hurt)]
    with pytest.raises(WanlabError, match=r"hurt\.h5: frame 1 has values from .*, where a video has 0 to 1"):
        compare(*(pair if side else pair[::-1]))
    with Run(tmp_path / "hurt.h5") as run, pytest.raises(WanlabError, match="a video has 0 to 1"):  # continuity's way
        list(frames_of(run))


def test_16_bit_frames_at_their_depth():
    assert pixels.mse(metrics.clip.unit(np.array([65535], np.uint16)), metrics.clip.unit(np.array([0], np.uint8))) == 1


def test_memory_does_not_grow_with_length(tmp_path):
    """Eight times the frames at the same peak, within a frame's worth of values."""
    peaks = []
    for frames in (4, 32):
        x = np.random.default_rng(0).integers(0, 256, (frames, 96, 128, 3), np.uint8)
        clip = run_of(tmp_path / f"{frames}.h5", x)
        tracemalloc.start()
        compare(clip, clip)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 96 * 128 * 3 * 8


def test_films_take_the_memory_of_a_few_frames(tmp_path):
    """Of 1280x720, a frame in float64 is 22 MB, and what optical flow takes of frames 320 wide 50: a frame of A and one
    of B and what one measure makes of them, or three of one film and the like."""
    width, height = 1280, 720
    for name, seed in (("a", 0), ("b", 1)):
        frames = np.random.default_rng(seed).integers(0, 256, (3, height, width, 3), "u1")
        write_mp4(tmp_path / f"{name}.mp4", frames, FPS)
    told = []
    tracemalloc.start()
    try:
        compare(*(Clip.of(tmp_path / f"{name}.mp4") for name in "ab"), told=told.append)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * width * height * 3 * 8 + 60e6
    assert told == [1, 2, 3]


def test_ssim_of_bands_is_that_of_the_whole():
    """Rows at once bound the memory and change nothing beyond the last bits; scikit-image's own of the whole frame."""
    x, y = np.random.default_rng(0).random((2, 2 * pixels.SSIM_ROWS + 37, 24, 3))
    whole = structural_similarity(
        x, y, data_range=1.0, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert pixels.ssim(x, y) == pytest.approx(whole, abs=1e-14)
    small = x[:16], y[:16]
    assert pixels.ssim(*small) == structural_similarity(
        *small, data_range=1.0, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )


def test_a_film_side_by_side_says_what_is_what(tmp_path):
    """Clips of 32x16, white over black and grey over black, are enlarged eight times below names of 24 lines."""
    films = np.zeros((2, 3, 16, 32, 3), "u1")
    films[0, :, :8], films[1, :, :8] = 255, 245
    paths = [run_of(tmp_path / f"{name}.h5", film).path for name, film in zip("ab", films, strict=True)]
    pair, names = SimpleNamespace(a=paths[0], b=paths[1]), ("cfg:last=2", "a name too long for its panel " * 3)
    with read_mp4(side_by_side(pair, tmp_path / "film.mp4", names)) as (meta, shown):
        assert meta["size"] == (3 * 256, 24 + 8 * 16)
        first = np.split(next(iter(shown)).astype(float), 3, axis=1)
    for panel, above, value in zip(first, ("A", "B", "8"), (255, 245, 80), strict=True):
        assert abs(panel[24 + 4 : 24 + 60].mean() - value) < 3 and panel[24 + 68 :].mean() < 3, above
        assert panel[:24, :20].max() > 150, above  # it begins at the left …
        assert panel[:24, -4:].max() < 30, above  # … and ends before the next one's
    assert abs(first[0][:24] - first[1][:24]).max() > 150 and first[1][:24, 200:].max() > 150


def test_a_film_side_by_side_takes_the_memory_of_a_few_frames(tmp_path):
    """Of two films of 640x368: a frame in float64 is 5.7 MB; three joined and converted at once would be eleven."""
    size, frames = (640, 368), np.random.default_rng(0).integers(0, 256, (2, 3, 368, 640, 3), "u1")
    paths = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    for path, film in zip(paths, frames, strict=True):
        write_mp4_from(path, film, size, 16)
    pair = SimpleNamespace(a=paths[0], b=paths[1])
    tracemalloc.start()
    try:
        made = side_by_side(pair, tmp_path / "film.mp4", ("a", "b"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 9 * 640 * 368 * 3 * 8
    with read_mp4(made) as (meta, shown):
        assert meta["size"] == (3 * 640, 24 + 368) and sum(1 for _ in shown) == 3
