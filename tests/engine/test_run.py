"""Run files: what is in them, and that recording, devices and dtypes are what they say."""

import dataclasses
import json
import sys

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from wanlab.engine import run
from wanlab.engine.model import vae
from wanlab.engine.run.resolve import fast_dtype
from wanlab.errors import UsageError, WanlabError
from wanlab.runfile import Run, verify
from wanlab.spec import RecordSpec, RunSpec

from .helpers import make_spec, sample


def execute(tmp_path, loaded, spec, name="r", **options):
    path = run.execute(spec, tmp_path / f"{name}.h5", loaded=loaded, **options)
    assert verify(path) == []
    return Run(path)


def test_result_and_files(tmp_path, model, loaded, checkpoint):
    spec = make_spec(checkpoint, steps=3, vae_dtype="float32", record=RecordSpec(video="float32"))
    opened = execute(tmp_path, loaded, spec, gif=True)
    latents = sample(model, spec)[-1].x_next
    assert np.array_equal(opened["latent"][...], latents[0].numpy())
    frames = (vae.decode(model.vae, latents)[0] / 2 + 0.5).permute(1, 2, 3, 0).numpy()
    assert np.allclose(opened["video_float"][...], frames, atol=1e-6)
    video = opened["video"][...]
    assert video.shape == (17, 32, 32, 3) and video.dtype == np.uint8
    assert np.abs(video / 255.0 - frames).max() <= 0.5 / 255 + 1e-6
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "r.mp4"))
    meta = next(reader)
    shown = [np.frombuffer(f, np.uint8).reshape(32, 32, 3) for f in reader]
    assert meta["size"] == (32, 32) and meta["fps"] == 16 and len(shown) == 17
    assert np.abs(np.stack(shown).astype(float) - video).mean() < 12
    assert Image.open(tmp_path / "r.gif").n_frames > 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.gif", "r.h5", "r.mp4"]
    assert RunSpec.from_json(opened.spec_json) == run.resolve(spec, model.checkpoint)
    assert "steps" not in opened.attrs["defaulted"] and {"seed", "solver", "dtype"} <= set(opened.attrs["defaulted"])
    assert opened.attrs["asked"] == {
        "dtype": "auto",
        "memory": "auto",
        "parallel": "auto",
        "precision": "auto",
        "shift": None,
    }
    for name in ("versions", "device_name", "timing_seconds", "prompt_embeds_sha256", "predicted", "scheduler"):
        assert name in opened.attrs
    assert opened.attrs["prompt_tokens"] == {"cond": 6, "uncond": 1}
    json.dumps(opened.attrs["timing_seconds"])


@pytest.mark.parametrize(
    ("level", "names"),
    [
        ("metrics", set()),
        ("latents", {"x_t"}),
        ("all", {"x_t", "x0_pred", "eps_pred", "velocity", "velocity_cond", "velocity_uncond"}),
    ],
)
def test_record_levels(tmp_path, model, loaded, checkpoint, level, names):
    spec = make_spec(checkpoint, steps=5, policies=["cfg:last=1"], record=RecordSpec(level=level, every=3))
    opened = execute(tmp_path, loaded, spec)
    latent = {n for n in opened.data if "latent_frame" in opened.data[n].dims} - {"latent"}
    assert latent == names
    records = sample(model, spec)
    for k in (0, 3, 4):
        if "x_t" in names:
            assert np.array_equal(opened["x_t"][k], records[k].x_t[0].numpy())
    if level != "metrics":
        assert list(opened.data["x_t"].recorded) == [0, 3, 4]
    if level == "all":
        sigma = opened["sigma"][...][3]
        x, v = opened["x_t"][3], opened["velocity"][3]
        assert np.allclose(opened["x0_pred"][3], x - sigma * v, atol=1e-6)
        assert np.allclose(opened["eps_pred"][3], x + (1 - sigma) * v, atol=1e-6)
        assert list(opened.data["velocity_cond"].recorded) == [0, 3]  # the last step keeps the other branch
        assert list(opened.data["velocity_uncond"].recorded) == [0, 3, 4]
    assert opened["mse"][...].shape == (5,)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_video_that_is_no_numbers_is_refused(tmp_path, loaded, checkpoint, monkeypatch, value):
    """Infinity too, which clamping to 0 and 1 would hide."""
    decode = vae.decode

    def spoiled(*given):
        video = decode(*given).clone()
        video[0, 0, 0, 3, 4] = value
        return video

    monkeypatch.setattr(vae, "decode", spoiled)
    with pytest.raises(WanlabError, match="no numbers"):
        run.execute(make_spec(checkpoint, steps=1), tmp_path / "r.h5", loaded=loaded)
    assert not (tmp_path / "r.h5").exists()


def test_half_frames_are_recorded_at_their_length(tmp_path, loaded, checkpoint):
    opened = execute(tmp_path, loaded, make_spec(checkpoint, policies=["half"], record=RecordSpec(level="latents")))
    assert [opened["x_t"][k].shape[1] for k in range(20)] == [3] * 13 + [5] * 7
    assert opened["frames"][...].tolist() == [3] * 13 + [5] * 7
    assert opened["frame_stride"][...].tolist() == [2] * 13 + [1] * 7


def test_float16_recording(tmp_path, model, loaded, checkpoint):
    spec = make_spec(checkpoint, steps=2, record=RecordSpec(level="latents", dtype="float16"))
    opened = execute(tmp_path, loaded, spec)
    assert opened["x_t"][1].dtype == np.float16
    assert np.allclose(opened["x_t"][1], sample(model, spec)[1].x_t[0].numpy(), rtol=1e-3, atol=1e-3)


def test_recording_changes_no_result(tmp_path, loaded, checkpoint):
    specs = [
        make_spec(checkpoint, steps=4, policies=["cfg:last=2"], record=r)
        for r in (RecordSpec(), RecordSpec(level="all", probe=True, video="float32"))
    ]
    a, b = (execute(tmp_path, loaded, s, str(i)) for i, s in enumerate(specs))
    assert np.array_equal(a["latent"][...], b["latent"][...]) and np.array_equal(a["video"][...], b["video"][...])
    assert a.digest == b.digest
    assert a["passes"][...].tolist() == b["passes"][...].tolist() == [2, 2, 1, 1]


def test_skipped_branches_are_gaps_unless_probed(tmp_path, loaded, checkpoint):
    policies = ["cfg:last=2,high=1"]  # at 20 steps: step 12, and 18 and 19
    gaps = execute(tmp_path, loaded, make_spec(checkpoint, policies=policies), "gaps")
    for name in ("mse", "cosine", "norm_ratio", "projection"):
        assert np.flatnonzero(np.isnan(gaps[name][...])).tolist() == [12, 18, 19]
    assert np.flatnonzero(np.isnan(gaps["change"][...])).tolist() == [0, 12, 13, 18, 19]
    assert gaps["branches"][...].tolist()[11:14] == ["cond,uncond", "uncond", "cond,uncond"]
    probed = execute(
        tmp_path, loaded, make_spec(checkpoint, policies=policies, record=RecordSpec(probe=True)), "probed"
    )
    assert not np.isnan(probed["mse"][...]).any()
    assert np.flatnonzero(np.isnan(probed["change"][...])).tolist() == [0]
    assert np.flatnonzero(probed["probed"][...]).tolist() == [12, 18, 19]
    assert np.array_equal(probed["passes"][...], gaps["passes"][...])
    assert np.array_equal(probed["mse"][...][:12], gaps["mse"][...][:12])


def test_one_seed_is_one_noise(model, checkpoint):
    first = sample(model, make_spec(checkpoint, steps=1, seed=7))[0].x_t
    generator = torch.Generator("cpu").manual_seed(7)
    assert torch.equal(first, torch.randn((1, 16, 5, 4, 4), generator=generator))


def test_shift_comes_from_the_checkpoint_unless_given(model, checkpoint):
    assert run.resolve(make_spec(checkpoint), model.checkpoint).shift == 12.0
    assert run.resolve(make_spec(checkpoint, shift=3.0), model.checkpoint).shift == 3.0


def test_resolved_for_the_cpu(model, checkpoint):
    spec = run.resolve(make_spec(checkpoint), model.checkpoint)
    assert (spec.device, spec.dtype, spec.vae_dtype) == ("cpu", "float32", fast_dtype())
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no device cuda"):
            run.resolve(make_spec(checkpoint, device="cuda"), model.checkpoint)


@pytest.mark.parametrize("name", ["here", "r.txt", "dir.h5", "locked/r.h5", "file/r.h5"])
def test_outputs_that_cannot_be_written_are_refused_first(tmp_path, checkpoint, name, monkeypatch):
    monkeypatch.setattr("wanlab.engine.model.loading.describe", lambda *a, **k: pytest.fail("read the model"))
    (tmp_path / "dir.h5").mkdir()
    (tmp_path / "file").write_text("")
    if name.startswith("locked"):
        monkeypatch.setattr("os.access", lambda *a: False)  # root may write anywhere
    with pytest.raises(UsageError):
        run.execute(make_spec(checkpoint), tmp_path / name)


def test_out_of_memory_names_a_remedy(tmp_path, loaded, checkpoint, monkeypatch):
    def explode(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(sys.modules["wanlab.engine.run.execute"], "decode", explode)
    with pytest.raises(WanlabError, match=r"out of memory.*fewer frames"):
        run.execute(make_spec(checkpoint, steps=1), tmp_path / "r.h5", loaded=loaded)


def test_plan_of_the_real_model(tmp_path):
    """The published configuration: 13 latent frames of 104x60 are 20280 tokens, one forward 832 TFLOP."""
    from wanlab.engine.model.config import TransformerConfig
    from wanlab.engine.model.cost import Cost

    config = {
        "num_attention_heads": 40,
        "attention_head_dim": 128,
        "ffn_dim": 13824,
        "num_layers": 40,
        "text_dim": 4096,
    }
    assert Cost.of(TransformerConfig.from_json(config)).whole(13 * 30 * 52) == pytest.approx(832e12, rel=0.005)


def test_flops_by_hand():
    """D=2, M=3, L=5 text tokens, n=7, one layer, text width 4, 1 channel in and out."""
    from wanlab.engine.model.config import TransformerConfig
    from wanlab.engine.model.cost import Cost

    config = {
        "num_attention_heads": 1,
        "attention_head_dim": 2,
        "ffn_dim": 3,
        "num_layers": 1,
        "text_dim": 4,
        "in_channels": 1,
        "out_channels": 1,
    }
    block = 12 * 7 * 4 + 4 * 49 * 2 + 4 * 5 * 4 + 4 * 7 * 5 * 2 + 4 * 7 * 2 * 3
    assert dataclasses.replace(Cost.of(TransformerConfig.from_json(config)), text=5).whole(
        7
    ) == block + 2 * 7 * 2 * 4 * 2 + 2 * 5 * 2 * (4 + 2)


def test_plan_reads_no_weights(checkpoint, monkeypatch):
    monkeypatch.setattr("safetensors.safe_open", lambda *a, **k: pytest.fail("weights were read"))
    planned = run.plan(make_spec(checkpoint))
    assert planned.parameters["transformer"] == planned.parameters["transformer_2"] > 0
    json.dumps(planned.to_dict())


def test_plan_counts_parameters_and_disk(model, checkpoint):
    record = RecordSpec(level="latents", every=3)
    planned = run.plan(make_spec(checkpoint, steps=4, record=record, vae_dtype="bfloat16"))
    assert planned.parameters["transformer"] == sum(p.numel() for p in model.experts["high"].parameters())
    assert planned.parameters["text_encoder"] == sum(p.numel() for p in model.text_encoder.parameters())
    assert planned.memory_bytes["vae"] == 2 * sum(p.numel() for p in model.vae.parameters())
    latent = 16 * 5 * 4 * 4 * 4
    arrays = latent + 17 * 32 * 32 * 3 + 2 * latent  # final, video, x_t at steps 0 and 3
    assert arrays < planned.disk_bytes < arrays + 4 * 300


def test_models_are_loaded_once_and_only_when_needed(tmp_path, checkpoint, single_checkpoint, monkeypatch):
    seen = []
    from wanlab.engine.model import loading

    real = loading.load
    monkeypatch.setattr(loading, "load", lambda found, *a, **k: seen.append(found.name) or real(found, *a, **k))
    kept = run.Models()
    for name, spec in [
        ("a", make_spec(checkpoint, steps=1)),
        ("b", make_spec(checkpoint, steps=1, seed=1)),
        ("a", make_spec(checkpoint, steps=1)),
        ("c", make_spec(single_checkpoint, steps=1)),
    ]:
        run.execute(spec, tmp_path / f"{name}.h5", loaded=kept)
    assert seen == [str(checkpoint), str(single_checkpoint)]


def test_warm_up_runs_each_kind_of_forward_once(model, checkpoint):
    """Of two experts, of which the first works at two lengths: a forward each, and one for the single branch at the
    end."""
    from wanlab.engine.ranks.branches import Branches
    from wanlab.engine.run.forecast import make_env
    from wanlab.engine.run.warm_up import warm_up
    from wanlab.engine.solvers import Solver

    planned = run.plan(make_spec(checkpoint, policies=["half:switch=5", "cfg:last=2"], batch_cfg=True))
    solver = Solver("unipc", "diffusers", 20, 12.0, model.checkpoint.scheduler, model.device)
    calls = []

    def denoiser(call):
        calls.append((call.ctx.expert, call.x.shape[2], call.branches))

    denoiser.model = model
    env = make_env(planned.spec, model.checkpoint, solver)
    warm = set()
    warm_up(denoiser, planned, env, 0, model.device, warm, Branches())
    both = ("cond", "uncond")
    assert calls == [("high", 3, both), ("high", 5, both), ("low", 5, both), ("low", 5, ("uncond",))]
    calls.clear()
    model.ready("text_encoder")
    warm_up(denoiser, planned, env, 0, model.device, warm, Branches())
    assert calls == []
    assert model.placement._here == "high"  # the first step waits for no weights
    warm_up(denoiser, planned, env, 19, model.device, set(), Branches())
    assert calls == [("low", 5, ("uncond",))]
    calls.clear()
    euler = Solver("euler", "diffusers", 20, 12.0, model.checkpoint.scheduler, model.device)  # of timesteps in floats
    warm_up(denoiser, planned, make_env(planned.spec, model.checkpoint, euler), 19, model.device, warm, Branches())
    assert calls == [("low", 5, ("uncond",))]


def test_attention_kernels_agree_and_the_absent_are_refused(checkpoint, tmp_path):
    """The plain kernel does the same sums in another order: a difference, but of rounding alone."""
    finals = {}
    for kernel in ("auto", "math"):
        path = run.execute(make_spec(checkpoint, attention=kernel), tmp_path / f"{kernel}.h5")
        with Run(path) as made:
            finals[kernel] = np.asarray(made["latent"])
    scale = np.abs(finals["auto"]).max()
    assert np.abs(finals["auto"] - finals["math"]).max() < 1e-4 * scale
    with pytest.raises(UsageError, match="needs a GPU of NVIDIA"):
        run.plan(make_spec(checkpoint, attention="cudnn"))


def test_timing_names_what_took_it(checkpoint, tmp_path):
    """Each phase once; the experts' shares, the switch between them and recording add up to the sampling loop."""
    path = run.execute(make_spec(checkpoint, policies=["half"], steps=6), tmp_path / "half.h5")
    with Run(path) as made:
        timing = made.attrs["timing_seconds"]
        seconds = float(np.asarray(made["seconds"]).sum())
    phases = {"load", "encode", "warm-up", "sample high", "switch", "sample low", "recording", "decode"}
    assert set(timing) == phases
    assert timing["sample high"] + timing["switch"] + timing["sample low"] == pytest.approx(seconds, abs=1e-5)
    assert min(timing.values()) >= 0 and timing["switch"] > 0
