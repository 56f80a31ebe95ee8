"""The field's conventions against each project's own formula, written out here, on the same clips."""

import math
import re
import subprocess

import imageio
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from tests.analysis.test_fidelity import run_of
from wanlab.analysis import metrics
from wanlab.analysis.compare import Result, measure
from wanlab.analysis.fidelity import compare
from wanlab.analysis.metrics.clip import Clip
from wanlab.analysis.metrics.conventions import PUBLISHED
from wanlab.errors import UsageError
from wanlab.video import ffmpeg, write_mp4

ASKED = list(PUBLISHED)


@pytest.fixture(scope="module")
def frames():
    """(a, b): five smooth frames of 34x48 and the same with noise that grows; the third is equal in both."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:34, 0:48] / 48
    b = np.stack([np.stack([0.5 + 0.4 * np.sin(6 * (x + c * y) + t) for c in range(3)], -1) for t in range(5)])
    scale = np.array([0.01, 0.02, 0.0, 0.04, 0.08])[:, None, None, None]
    return (b + scale * rng.standard_normal(b.shape)).clip(0, 1), b


@pytest.fixture(scope="module")
def runs(frames, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return run_of(folder / "a.h5", frames[0]), run_of(folder / "b.h5", frames[1])


@pytest.fixture(scope="module")
def films(frames, tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    for name, own in zip("ab", frames, strict=True):
        write_mp4(folder / f"{name}.mp4", (own * 255).round().astype(np.uint8), 16)
    return Clip.of(folder / "a.mp4"), Clip.of(folder / "b.mp4")


@pytest.fixture(scope="module")
def of_runs(runs):
    return compare(*runs, metrics=metrics.chosen(ASKED))


@pytest.fixture(scope="module")
def of_films(films):
    return compare(*films, metrics=metrics.chosen(ASKED))


def float32(frames):
    """As a run file keeps them."""
    return [f.astype(np.float32).astype(np.float64) for f in frames]


def decoded(films):
    """The frames as the evaluation scripts read them: imageio's ffmpeg reader, 8 bits over 255."""
    return [np.stack([f for f in imageio.get_reader(c.path, "ffmpeg")]) / 255.0 for c in films]  # noqa: C416


def magcache_psnr(a, b):
    """common_metrics_on_video_quality, as MagCache and TeaCache carry it: 100 below an MSE of 1e-10, mean of frames."""
    values = []
    for x, y in zip(a, b, strict=True):
        mse = np.mean((x - y) ** 2)
        values.append(100.0 if mse < 1e-10 else 20 * math.log10(1 / math.sqrt(mse)))
    return sum(values) / len(values)


def cache_dit_psnr(a, b):
    """cache-dit: infinite frames are dropped from the mean."""
    values = []
    for x, y in zip(a, b, strict=True):
        mse = np.mean((x * 255 - y * 255) ** 2)
        if mse != 0:
            values.append(20 * math.log10(255 / math.sqrt(mse)))
    return sum(values) / len(values)


def test_psnr_by_averaging(of_runs, frames):
    a, b = float32(frames)
    assert of_runs["psnr"] == pytest.approx(-10 * math.log10(np.mean((a - b) ** 2)), abs=1e-6)
    assert of_runs["psnr.frames"] == pytest.approx(cache_dit_psnr(a, b), abs=1e-6)
    assert of_runs["psnr.frames100"] == pytest.approx(magcache_psnr(a, b), abs=1e-6)
    unequal = [peak_signal_noise_ratio(y, x, data_range=1) for x, y in zip(a, b, strict=True) if (x != y).any()]
    assert of_runs["psnr.frames"] == pytest.approx(np.mean(unequal), abs=1e-6)


def test_psnr_of_8_bits(of_runs, frames):
    a, b = ((f * 255).round() / 255 for f in float32(frames))
    assert of_runs["psnr.8bit"] == pytest.approx(-10 * math.log10(np.mean((a - b) ** 2)), abs=1e-6)
    assert abs(of_runs["psnr.8bit"] - of_runs["psnr"]) > 1e-4  # it is another number


def test_psnr_of_films_is_what_magcache_prints(of_films, of_runs, films):
    """Of two films; and of the runs that these are the films of."""
    expected = magcache_psnr(*decoded(films))
    assert of_films["psnr.mp4"] == pytest.approx(expected, abs=1e-6)
    assert of_films["psnr.frames100"] == pytest.approx(expected, abs=1e-6)
    assert of_runs["psnr.mp4"] == pytest.approx(expected, abs=1e-6)


def test_psnr_of_films_by_the_whole_clip_is_what_easycache_prints(of_films, films):
    a, b = decoded(films)
    assert of_films["psnr"] == pytest.approx(-10 * math.log10(np.mean((a - b) ** 2)), abs=1e-6)


def test_no_mean_of_frames_is_below_the_whole_clip(of_runs):
    """Jensen: -log is convex."""
    assert of_runs["psnr.frames100"] > of_runs["psnr"]


def straight_ssim(x, y, window, cut, sample=1.0, clamp=-math.inf):
    """Wang et al. (2004), pixel by pixel: the mean over those whose window, of the frame continued by reflection, lies
    at least `cut` pixels from the edge."""
    r = len(window) // 2
    total, count = 0.0, 0
    for c in range(3):
        p, q = (np.pad(f[..., c], r, mode="reflect") for f in (x, y))
        for i in range(cut, x.shape[0] - cut):
            for j in range(cut, x.shape[1] - cut):
                u, v = p[i : i + 2 * r + 1, j : j + 2 * r + 1], q[i : i + 2 * r + 1, j : j + 2 * r + 1]
                mu, nu = (window * u).sum(), (window * v).sum()
                var = max(sample * ((window * u * u).sum() - mu * mu), clamp)
                war = max(sample * ((window * v * v).sum() - nu * nu), clamp)
                cov = sample * ((window * u * v).sum() - mu * nu)
                top = (2 * mu * nu + 1e-4) * (2 * cov + 9e-4)
                total += top / ((mu * mu + nu * nu + 1e-4) * (var + war + 9e-4))
                count += 1
    return total / count


def gaussian():
    g = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    return np.outer(g, g) / g.sum() ** 2


@pytest.mark.parametrize(
    ("name", "window", "cut", "sample", "clamp"),
    [
        ("ssim", gaussian(), 5, 1.0, -math.inf),  # MagCache, TeaCache: whole windows only
        ("ssim.torchmetrics", gaussian(), 0, 1.0, 0.0),
        ("ssim.skimage", np.full((7, 7), 1 / 49), 3, 49 / 48, -math.inf),
    ],
)
def test_ssim_is_the_published_formula(name, window, cut, sample, clamp, frames):
    a, b = (f[3, :20, :22] for f in frames)
    expected = straight_ssim(a, b, window, cut, sample, clamp)
    assert metrics.get(name)(a, b) == pytest.approx(expected, abs=1e-6)
    assert expected < 0.99


def test_ssim_is_torchmetrics_own(frames):
    torch, tm = pytest.importorskip("torch"), pytest.importorskip("torchmetrics.functional.image")
    own = [torch.from_numpy(f).permute(0, 3, 1, 2) for f in frames]
    expected = float(tm.structural_similarity_index_measure(own[0], own[1], data_range=1.0))
    found = np.mean([metrics.get("ssim.torchmetrics")(x, y) for x, y in zip(*frames, strict=True)])
    assert found == pytest.approx(expected, abs=1e-6)


def ffmpeg_ssim(planes_a, planes_b):
    """ffmpeg's vf_ssim: sums over 8x8 pixels every 4, in integers, constants rounded; planes weighed by their size."""
    c1, c2 = int(0.01**2 * 255**2 * 64 + 0.5), int(0.03**2 * 255**2 * 64 * 63 + 0.5)
    values, sizes = [], []
    for a, b in zip(planes_a, planes_b, strict=True):
        a, b = a.astype(np.int64), b.astype(np.int64)
        found = []
        for i in range(0, a.shape[0] // 4 * 4 - 4, 4):
            for j in range(0, a.shape[1] // 4 * 4 - 4, 4):
                u, v = a[i : i + 8, j : j + 8], b[i : i + 8, j : j + 8]
                s1, s2, ss, s12 = u.sum(), v.sum(), (u * u + v * v).sum(), (u * v).sum()
                var, cov = 64 * ss - s1 * s1 - s2 * s2, 64 * s12 - s1 * s2
                found.append((2 * s1 * s2 + c1) * (2 * cov + c2) / ((s1 * s1 + s2 * s2 + c1) * (var + c2)))
        values.append(np.mean(found))
        sizes.append(a.size)
    return np.dot(values, sizes) / sum(sizes)


def planes(film):
    """The decoded film as it is stored: a list of (Y, U, V) of every frame."""
    command = [ffmpeg(), "-v", "error", "-i", str(film.path), "-f", "rawvideo", "-pix_fmt", "yuv420p", "-"]
    data = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    w, h = film.width, film.height
    frames = data.reshape(-1, w * h * 3 // 2)
    return [(f[: w * h].reshape(h, w), *(p.reshape(h // 2, w // 2) for p in np.split(f[w * h :], 2))) for f in frames]


def test_ssim_of_ffmpeg(of_films, films):
    """Its printed digits, and its formula to the last one of them."""
    command = [ffmpeg(), "-hide_banner", "-i", str(films[0].path), "-i", str(films[1].path)]
    done = subprocess.run([*command, "-lavfi", "ssim", "-f", "null", "-"], capture_output=True, text=True, check=True)
    assert of_films["ssim.ffmpeg"] == float(re.search(r"All:([\d.]+)", done.stderr)[1])
    formula = np.mean([ffmpeg_ssim(x, y) for x, y in zip(planes(films[0]), planes(films[1]), strict=True)])
    assert of_films["ssim.ffmpeg"] == pytest.approx(formula, abs=1e-6)


def test_ssim_of_ffmpeg_of_runs_is_of_8_bits(of_runs, of_films):
    assert of_runs["ssim.ffmpeg"] == pytest.approx(of_films["ssim.ffmpeg"], abs=0.03)


def test_equal_clips(runs):
    found = compare(runs[1], runs[1], metrics=metrics.chosen(ASKED))
    for name in ("psnr", "psnr.frames", "psnr.8bit"):
        assert metrics.get(name).plain(found[name]) == "identical"
    assert found["psnr.frames100"] == found["psnr.mp4"] == 100
    for name in ASKED:
        if name.startswith("ssim"):
            assert found[name] == pytest.approx(1, abs=1e-12)


def test_equal_pairs_are_left_out_of_the_mean_of_frames(films):
    pairs = tuple(measure(a.path, films[1].path, metrics=ASKED, prompt="p") for a in films)
    result = Result(label="a", pairs=pairs)
    assert result.summary["psnr.frames"].mean == pairs[0].figures["psnr.frames"]
    assert result.summary["psnr.frames100"].mean == pytest.approx((pairs[0].figures["psnr.frames100"] + 100) / 2)
    mse = [p.figures["mse.8bit"] for p in pairs]
    assert result.summary["psnr.8bit"].mean == pytest.approx(-10 * math.log10(sum(mse) / 2))


def test_nan_is_no_equal_frame(frames):
    a = frames[0][1].copy()
    a[0, 0, 0] = math.nan
    for name in ("psnr.frames", "psnr.frames100"):
        assert math.isnan(metrics.get(name)(a, frames[1][1]))


def test_they_are_measured_where_they_are_asked_for():
    usual = {m.name for m in metrics.chosen()}
    assert usual & set(ASKED) == {"psnr", "ssim"}
    assert {"psnr.8bit", "mse.8bit"} <= {m.name for m in metrics.chosen(["psnr.8bit"])}
    with pytest.raises(UsageError, match=r"psnr\.frame' is no figure"):
        metrics.chosen(["psnr.frame"])
