"""Names, networks and checkpoints as they should not be: one line each, at once, and no traceback."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest

from wanlab.engine import run
from wanlab.engine.model import loading as models
from wanlab.engine.model import names
from wanlab.errors import UsageError, WanlabError

from .helpers import make_spec


@pytest.fixture
def copy(tmp_path, checkpoint):
    return shutil.copytree(checkpoint, tmp_path / "model")


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    "error", [ImportError("Using SOCKS proxy,\nbut the package is missing"), RuntimeError("no URL")]
)
def test_whatever_the_hubs_library_raises_is_one_line(monkeypatch, error):
    import huggingface_hub

    def download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(WanlabError, match="check the network and proxy") as said:
        models.describe("owner/name")
    assert "\n" not in str(said.value)


def test_a_proxy_without_its_package(monkeypatch):
    """httpx needs socksio for it, which is not among what wanlab asks for."""
    if importlib.util.find_spec("socksio"):
        pytest.skip("it is installed")
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(WanlabError, match=r"cannot get owner/name from the hub: .*SOCKS"):
        models.describe("owner/name")


@pytest.mark.parametrize("endpoint", ["http://[bad", "nonsense", "ftp://x", "http://h:999999", " ", "https://"])
@pytest.mark.parametrize("name", ["tiny", "owner/name"])
def test_an_endpoint_that_is_no_url(monkeypatch, name, endpoint):
    """Some stop huggingface_hub from being imported, and with it all that needs it."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(UsageError, match=r"HF_ENDPOINT is .*, no URL"):
        names.directory(name)


@pytest.mark.parametrize("endpoint", ["", "https://mirror.example", "http://localhost:8080/hub"])
def test_an_endpoint_that_is_one(monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert names.directory("tiny").is_dir() and names.directory("owner/name") is None


def test_names_are_told_without_the_libraries():
    code = (
        "import sys; from wanlab.engine.model import names; names.directory('tiny')\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'diffusers', 'transformers', 'huggingface_hub')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


KINDS = ["gone", "dangling", "loop", "fifo", "directory", "device", "empty", "noise"]


def replace(path, kind):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if kind in ("dangling", "loop", "device"):
        path.symlink_to({"dangling": "/nowhere/x", "loop": path, "device": "/dev/zero"}[kind])
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind != "gone":
        path.write_bytes(bytes(range(256)) if kind == "noise" else b"")


@pytest.mark.parametrize("kind", KINDS)
def test_each_file_and_directory_replaced(checkpoint, tmp_path, kind):
    """Refused in one line, and at once: nothing waits for a pipe or reads a device to its end."""
    within = sorted(p.relative_to(checkpoint) for p in checkpoint.rglob("*"))
    for k, path in enumerate(p for p in within if p.name != "generation_config.json"):
        folder = shutil.copytree(checkpoint, tmp_path / str(k))
        replace(folder / path, kind)
        with pytest.raises(WanlabError) as said:
            models.load(str(folder))
        assert "\n" not in str(said.value) and said.value.hint, path
        shutil.rmtree(folder)


JUNK = [None, True, 0, -1, 1.5, 10**400, float("nan"), "", "a\nb", [], [1, "a"], {}, {"a": 1}]


def test_each_setting_replaced(checkpoint, tmp_path):
    """By values of every kind of JSON: planned with every solver, or refused in one line."""
    folder, refusals = shutil.copytree(checkpoint, tmp_path / "model"), 0
    for file in ("model_index.json", "scheduler/scheduler_config.json", "transformer/config.json", "vae/config.json"):
        whole = (folder / file).read_text()
        for key in json.loads(whole):
            for value in JUNK:
                change(folder / file, **{key: value})
                try:
                    for solver in ("unipc", "dpm++", "euler"):
                        run.plan(make_spec(folder, steps=3, solver=solver))
                except WanlabError as error:
                    assert "\n" not in str(error)
                    refusals += 1
                (folder / file).write_text(whole)
    assert refusals > 300


@pytest.mark.parametrize("spacing", ["use_exponential_sigmas", "use_beta_sigmas"])
def test_noise_levels_of_no_flow_are_refused(copy, spacing):
    """diffusers spaces these from the noise levels of its betas, which begin at 157."""
    change(copy / "scheduler" / "scheduler_config.json", **{spacing: True})
    with pytest.raises(WanlabError, match="noise levels that do not fall from 1 to 0"):
        run.plan(make_spec(copy, steps=3))
