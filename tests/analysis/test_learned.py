"""Perceptual measures against their packages called directly; what is missing is refused, never downloaded."""

import hashlib
import urllib.request

import numpy as np
import pytest

from tests.analysis.test_fidelity import run_of
from wanlab.analysis import metrics, stats
from wanlab.analysis.fidelity import compare
from wanlab.analysis.metrics.learned import distances
from wanlab.errors import WanlabError


@pytest.fixture(scope="module")
def frames():
    """(a, b): four frames of 64x80 that move, and the same with noise, as float32."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:64, 0:80] / 64
    b = np.stack([np.stack([0.5 + 0.4 * np.sin(9 * (x + c * y) + t / 2) for c in range(3)], -1) for t in range(4)])
    return tuple(f.clip(0, 1).astype(np.float32) for f in (b + 0.05 * rng.standard_normal(b.shape), b))


@pytest.fixture
def clips(frames, tmp_path):
    return [run_of(tmp_path / f"{name}.h5", f) for name, f in zip("ab", frames, strict=True)]


def tensors(frames):
    import torch

    return [torch.from_numpy(f).permute(0, 3, 1, 2) * 2 - 1 for f in frames]


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_lpips_is_its_packages(net, frames, tmp_path, monkeypatch):
    """With networks of random weights where torch hub keeps them: the true ones cannot be had without a download."""
    torch, vision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    lpips = pytest.importorskip("lpips")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(0)
    made = vision.models.alexnet() if net == "alex" else vision.models.squeezenet1_1()
    file, _ = distances.WEIGHTS[net]
    path = tmp_path / "hub" / "checkpoints" / file
    path.parent.mkdir(parents=True)
    torch.save(made.state_dict(), path)
    with pytest.raises(WanlabError, match="is not the file that lpips"):
        metrics.chosen([f"lpips.{net}"])
    monkeypatch.setitem(distances.WEIGHTS, net, (file, hashlib.sha256(path.read_bytes()).hexdigest()))
    assert f"lpips.{net}" in {m.name for m in metrics.chosen([f"lpips.{net}"])}
    distances._network.cache_clear()
    own = metrics.get(f"lpips.{net}")
    with torch.inference_mode():
        direct = lpips.LPIPS(net=net, verbose=False)
        for x, y, p, q in zip(*frames, *tensors(frames), strict=True):
            assert own(x.astype(np.float64), y.astype(np.float64)) == direct(p[None], q[None]).item() > 0
    assert own(frames[0][0], frames[0][0]) == 0
    distances._network.cache_clear()


def test_shift_tolerant_lpips_is_its_packages(frames, clips, capsys):
    torch, stlpips = pytest.importorskip("torch"), pytest.importorskip("stlpips_pytorch.stlpips")
    found = compare(*clips, metrics=metrics.chosen(["stlpips"]))
    assert capsys.readouterr().out == ""  # stdout is data
    with torch.inference_mode():
        direct = stlpips.LPIPS(net="alex", variant="shift_tolerant", verbose=False)
        values = [direct(p[None], q[None]).item() for p, q in zip(*tensors(frames), strict=True)]
    assert found.by_frame["stlpips"].tolist() == values
    assert found["stlpips"] == np.mean(values) > 0


def test_colorvideovdp_is_its_packages(frames, clips, capsys):
    pytest.importorskip("torch")
    pycvvdp = pytest.importorskip("pycvvdp")
    found = compare(*clips, metrics=metrics.chosen(["cvvdp"]))["cvvdp"]
    assert capsys.readouterr().out == ""
    direct, _ = pycvvdp.cvvdp(display_name="standard_4k", quiet=True).predict(
        *frames, dim_order="FHWC", frames_per_second=clips[0].fps
    )
    assert found == float(direct) < 9.9
    assert metrics.get("cvvdp")(clips[1], clips[1]) == 10


@pytest.mark.parametrize("name", ["cvvdp", "lpips.alex", "lpips.squeeze", "stlpips"])
def test_what_is_not_installed_is_refused(name, monkeypatch):
    """Before anything is sampled: the check is made where measures are chosen."""
    monkeypatch.setattr("wanlab.analysis.metrics.learned.find_spec", lambda name: None)
    with pytest.raises(WanlabError, match="is not installed"):
        metrics.chosen([name])


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_weights_that_are_not_there_are_refused_with_file_source_and_hash(net, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(distances, "needs", lambda *modules: lambda: None)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *given, **more: pytest.fail("something is downloaded"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WanlabError) as refused:
        metrics.chosen([f"lpips.{net}"])
    file, digest = distances.WEIGHTS[net]
    said = f"{refused.value} {refused.value.hint}"
    assert str(tmp_path / "hub" / "checkpoints" / file) in said
    assert f"https://download.pytorch.org/models/{file}" in said and digest in said
    assert file.rpartition("-")[2][:8] == digest[:8]  # torchvision's names carry the beginning


def test_an_upper_limit_is_a_lower_one_turned_round():
    """The interval of JODs, at most 10, is that of 10 - JOD, at least 0."""
    x = np.array([9.9, 9.8, 9.99, 9.2, 9.7, 10.0])
    own, turned = stats.interval(x, (-np.inf, 10.0)), stats.interval(10 - x, (0.0, np.inf))
    assert (own.low, own.high) == pytest.approx((10 - turned.high, 10 - turned.low), abs=1e-12)
    assert own.low < own.mean < own.high < 10
