"""Checkpoints that are not whole, not safe or not there: refused from their small files, with the remedy."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from wanlab.engine import models
from wanlab.errors import UsageError, WanlabError


@pytest.fixture
def copy(tmp_path, checkpoint):
    return shutil.copytree(checkpoint, tmp_path / "model")


WEIGHTS = "transformer_2/diffusion_pytorch_model.safetensors"


def test_loaded_in_the_asked_dtype(checkpoint):
    model = models.load(str(checkpoint), "cpu", torch.bfloat16, torch.float32)
    assert set(model.experts) == {"high", "low"} and model.dtype == torch.bfloat16
    assert model.experts["low"].dtype == torch.bfloat16 and model.vae.dtype == torch.float32
    assert model.experts["low"].scale_shift_table.dtype == torch.float32  # as WanPipeline keeps it
    assert not any(p.requires_grad for p in model.experts["high"].parameters())


def test_single_expert(single_checkpoint):
    found = models.describe(str(single_checkpoint))
    assert found.experts == {"single": "transformer"} and found.boundary is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tinny", "did you mean tiny"),
        ("./nothing/here", "there is no directory"),
        ("/nothing", "there is no directory"),
        ("a/b/c", "there is no directory"),
        ("../x", "there is no directory"),
    ],
)
def test_unknown_models(name, says):
    with pytest.raises(UsageError, match=says):
        models.describe(name)


def test_no_checkpoint_in_the_directory(tmp_path):
    with pytest.raises(UsageError, match="no model_index"):
        models.describe(str(tmp_path))
    (tmp_path / "high_noise_model").mkdir()
    with pytest.raises(WanlabError, match="-Diffusers"):
        models.describe(str(tmp_path))
    (tmp_path / "a").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        models.describe(str(tmp_path / "a"))


@pytest.mark.parametrize("gone", [WEIGHTS, "vae/config.json", "tokenizer/tokenizer_config.json", "scheduler"])
def test_half_a_checkpoint(copy, gone):
    target = copy / gone
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(WanlabError, match="only part of a checkpoint") as caught:
        models.describe(str(copy))
    assert gone.split("/")[0] in str(caught.value)


def test_missing_shard(copy):
    where = copy / "transformer"
    (where / "diffusion_pytorch_model.safetensors").rename(where / "diffusion_pytorch_model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors", "b": "diffusion_pytorch_model-00002-of-00002.safetensors"}}  # fmt: skip
    (where / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WanlabError, match="00002-of-00002"):
        models.describe(str(copy))
    index["weight_map"]["b"] = "../../secret.safetensors"
    (where / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WanlabError, match="elsewhere"):
        models.describe(str(copy))


def test_pickles_are_refused_and_never_opened(copy):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    (copy / WEIGHTS).unlink()
    (copy / "transformer_2" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UsageError, match=r"pickle.*safetensors"):
        models.describe(str(copy))


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "pickle"])
def test_damaged_weights(copy, damage):
    path = copy / WEIGHTS
    whole = path.read_bytes()
    data = {
        "cut": whole[:-1000], "header": b"\xff" * 16 + whole[16:], "empty": b"", "pickle": pickle.dumps({"a": 1}),
    }  # fmt: skip
    path.write_bytes(data[damage])
    with pytest.raises(WanlabError, match="damaged"):
        models.describe(str(copy))


@pytest.mark.parametrize(
    ("change", "says"), [("missing", "1 missing"), ("extra", "1 unexpected"), ("shape", "proj_out")]
)
def test_weights_that_do_not_fit(copy, change, says):
    weights = load_file(copy / WEIGHTS)
    if change == "missing":
        weights.pop("proj_out.bias")
    elif change == "extra":
        weights["surplus"] = torch.zeros(1)
    else:
        weights["proj_out.bias"] = torch.zeros(3)
    save_file(weights, copy / WEIGHTS)
    with pytest.raises(WanlabError, match=says):
        models.load(str(copy))


@pytest.mark.parametrize(("key", "value"), [("_class_name", "WanImageToVideoPipeline"), ("expand_timesteps", True)])
def test_other_pipelines(copy, key, value):
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {key: value}))
    with pytest.raises(UsageError, match="T2V"):
        models.describe(str(copy))


def test_broken_json(copy):
    (copy / "vae" / "config.json").write_text("{")
    with pytest.raises(WanlabError, match="cannot read"):
        models.describe(str(copy))


def test_sizes_the_model_cannot_make(checkpoint):
    found = models.describe(str(checkpoint))
    assert found.latent_shape(49, 832, 480) == (16, 13, 60, 104)
    with pytest.raises(UsageError, match="64 positions"):
        found.latent_shape(4 * 64 + 1, 32, 32)
    with pytest.raises(UsageError, match="64 positions"):
        found.latent_shape(1, 16 * 65, 32)
    with pytest.raises(UsageError, match="use 32 or 48"):
        found.latent_shape(1, 40, 32)


def test_the_hub(monkeypatch, checkpoint):
    """What the hub says is said in one line; what it sends is read like a directory."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    def answers(with_what):
        def download(name, revision=None, allow_patterns=()):
            asked.append((name, revision, tuple(allow_patterns)))
            if isinstance(with_what, Exception):
                raise with_what
            return str(with_what)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    asked = []
    answers(checkpoint)
    found = models.describe("owner/name", "v1")
    assert asked == [("owner/name", "v1", ("*.json", "*/*.json"))] and found.boundary == 0.875 and not found.local
    assert set(models.load(found).experts) == {"high", "low"}
    assert any("safetensors" in pattern for pattern in asked[-1][2])
    answers(RepositoryNotFoundError.__new__(RepositoryNotFoundError))  # made without a response to show
    with pytest.raises(UsageError, match="no model owner/name"):
        models.describe("owner/name")
    answers(LocalEntryNotFoundError("offline"))
    with pytest.raises(WanlabError, match="check the network"):
        models.describe("owner/name")
