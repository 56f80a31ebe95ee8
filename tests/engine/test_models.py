"""Checkpoints that are not whole, not safe or not there: refused from their small files, with the remedy."""

import json
import pickle
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from wanlab.engine.model import loading as models
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
        ("../no-such-checkpoint", "there is no directory"),
    ],
)
def test_unknown_models(name, says):
    with pytest.raises(UsageError, match=says):
        models.describe(name)


def test_no_checkpoint_in_the_directory(tmp_path):
    with pytest.raises(UsageError, match="no model_index"):
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
    index = {
        "weight_map": {
            "a": "diffusion_pytorch_model-00001-of-00002.safetensors",
            "b": "diffusion_pytorch_model-00002-of-00002.safetensors",
        }
    }
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
        "cut": whole[:-1000],
        "header": b"\xff" * 16 + whole[16:],
        "empty": b"",
        "pickle": pickle.dumps({"a": 1}),
    }
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
        models.describe(str(copy))  # from the headers, before weights are read


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_other_pipelines(copy):
    change(copy / "model_index.json", _class_name="WanImageToVideoPipeline")
    with pytest.raises(UsageError, match="T2V"):
        models.describe(str(copy))


@pytest.mark.parametrize(
    ("file", "values", "says"),
    [
        ("model_index.json", {"boundary_ratio": 875}, "boundary_ratio 875"),
        ("model_index.json", {"boundary_ratio": "x"}, "boundary_ratio 'x'"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 500}, "500 timesteps, not 1000"),
        ("scheduler/scheduler_config.json", {"flow_shift": "much"}, "flow shift 'much'"),
        ("scheduler/scheduler_config.json", {"flow_shift": float("nan")}, "scheduler_config.json: NaN is no JSON"),
        ("scheduler/scheduler_config.json", {"solver_order": 4}, "solver_order is 4, not one of (1, 2, 3)"),
        ("scheduler/scheduler_config.json", {"solver_order": True}, "solver_order is True"),
        ("scheduler/scheduler_config.json", {"solver_p": "UniPC"}, "solver_p is 'UniPC'"),
        ("scheduler/scheduler_config.json", {"timestep_spacing": "a\nb"}, "timestep_spacing is 'a\\nb'"),
        ("scheduler/scheduler_config.json", {"beta_end": None}, "beta_end is None, not 0.0 to 1.0"),
        ("scheduler/scheduler_config.json", {"beta_end": 10**400}, "a number has 401 digits"),
        ("scheduler/scheduler_config.json", {"predict_x0": "no"}, "predict_x0 is 'no', not true or false"),
        ("scheduler/scheduler_config.json", {"use_dynamic_shifting": True}, "use_dynamic_shifting is True"),
        ("scheduler/scheduler_config.json", {"disable_corrector": [[]]}, "disable_corrector is [[]]"),
        ("model_index.json", {"expand_timesteps": "abc"}, "expand_timesteps is 'abc'"),
        ("model_index.json", {"_class_name": "a\nb"}, "a\\nb, not a Wan"),
        ("transformer/config.json", {"qk_norm": []}, "qk_norm is []"),
        ("transformer/config.json", {"cross_attn_norm": "x"}, "cross_attn_norm is 'x'"),
        ("vae/config.json", {"is_residual": []}, "is_residual is []"),
        ("transformer/config.json", {"num_layers": 10**9}, "num_layers is 1000000000, not 1 to 256"),
        ("transformer_2/config.json", {"ffn_dim": True}, "transformer_2/ffn_dim is True"),
        ("transformer/config.json", {"attention_head_dim": 13}, "heads of 13 are not even"),
        ("transformer/config.json", {"patch_size": [1, 4, 4]}, "not 1x2x2"),
        ("transformer/config.json", {"patch_size": 2}, "not 1x2x2"),
        ("transformer/config.json", {"in_channels": 36}, "36 channels in, 16 out, 16 in the VAE"),
        ("transformer/config.json", {"image_dim": 1280}, "takes images too"),
        ("transformer/config.json", {"text_dim": 4096}, "texts of width 4096, the text encoder writes 16"),
        ("vae/config.json", {"z_dim": 48}, "latents_mean is not 48 numbers"),
        ("vae/config.json", {"latents_std": [0.0] * 16}, "latents_std is not 16 numbers"),
        ("vae/config.json", {"scale_factor_spatial": 16}, "strides are 8 and 4, it says 16 and 4"),
        ("vae/config.json", {"dim_mult": [1] * 30}, "dim_mult"),
        ("vae/config.json", {"temperal_downsample": [True]}, "for 4 levels"),
        ("text_encoder/config.json", {"vocab_size": -1}, "vocab_size is -1"),
        ("text_encoder/config.json", {"layer_norm_epsilon": "x"}, "text_encoder: epsilon 'x'"),
        ("transformer_2/config.json", {"eps": 5}, "transformer_2: epsilon 5"),
        ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["a.B", None]}}, "code of its own"),
    ],
)
def test_configurations_that_no_model_has(copy, file, values, says):
    """Refused before a module is made of them."""
    change(copy / file, **values)
    with pytest.raises(UsageError, match=re.escape(says)) as caught:
        models.describe(str(copy))
    assert "\n" not in str(caught.value)


def test_a_tied_weight_may_be_there_once_under_either_name_or_twice(copy):
    file = copy / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    weights.pop("encoder.embed_tokens.weight", None)
    words = weights.pop("shared.weight")
    for given in (
        {"shared.weight": words},
        {"encoder.embed_tokens.weight": words},
        {"shared.weight": words, "encoder.embed_tokens.weight": words.clone()},
    ):
        save_file(weights | given, file)
        encoder = models.load(str(copy)).text_encoder
        assert torch.equal(encoder.encoder.embed_tokens.weight, words) and torch.equal(encoder.shared.weight, words)
    save_file(weights, file)
    with pytest.raises(WanlabError, match=r"1 missing \(text_encoder: shared\.weight\)"):
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
