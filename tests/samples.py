"""Small files of every kind that the program reads, made to be mutated (tests/fuzz.py)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wanlab.runfile import Field, RunWriter, part_directory
from wanlab.spec import PolicySpec, RunSpec

EMBEDDED = Path(__file__).parent.parent / "wanlab"
STEPS = 4
LATENT = ("channel", "latent_frame", "latent_height", "latent_width")


def write_run(path: Path) -> Path:
    """A run file with all that a report reads: two experts, latents, guidance's figures, frames."""
    spec = RunSpec(model="tiny", prompt="a red ball", steps=STEPS, width=32, height=16, frames=5)
    numbers = ("timestep", "sigma", "sigma_next", "guidance_scale", "seconds", "mse", "change", "cosine")
    words = {"expert": "S6", "branches": "S16", "status_cond": "S7", "status_uncond": "S7", "guider": "S16"}
    fields = [Field(name, (), "float64") for name in (*numbers, "norm_ratio", "projection")]
    fields += [Field(name, (), kind) for name, kind in words.items()]
    fields += [Field(name, (), "int32") for name in ("frames", "frame_stride", "passes", "tokens")]
    fields += [Field("probed", (), "bool"), Field("kept", ("token",), "bool")]
    fields += [Field(name, LATENT) for name in ("x_t", "x0_pred")]
    chance = np.random.default_rng(0)
    x = chance.standard_normal((4, 2, 2, 4))
    attrs = {"fps": 16, "shift": 3.0, "versions": {"torch": "2"}, "predicted": {"passes": 8}, "resumed_at": [1]}
    with RunWriter(path, spec_json=spec.to_json(), digest=spec.digest(), fields=fields, attrs=attrs) as writer:
        for k in range(STEPS):
            step: dict[str, Any] = dict.fromkeys((*numbers, "norm_ratio", "projection"), 1 - k / STEPS)
            step |= {"expert": "high" if k < 2 else "low", "branches": "cond,uncond", "guider": "cfg"}
            step |= {"status_cond": "fresh", "status_uncond": "fresh", "probed": False, "passes": 2, "tokens": 16}
            step |= {"frames": 2, "frame_stride": 1, "x_t": x, "x0_pred": x} | ({"kept": np.ones(3, bool)} if k else {})
            writer.step(k, step)
        film = chance.integers(0, 256, (5, 16, 32, 3), np.uint8)
        writer.finish(
            {Field("video", ("frame", "height", "width", "rgb"), "uint8"): film, Field("latent", LATENT): x}, {}
        )
    return path


def write_small(path: Path) -> Path:
    """The least that a report reads: most mutants are of this one."""
    spec = RunSpec(model="tiny", prompt="a red ball", steps=2, width=32, height=16, frames=5)
    numbers = ("timestep", "sigma", "mse", "change", "cosine", "norm_ratio", "projection", "seconds")
    fields = [Field(name, (), "float64") for name in numbers] + [Field(n, (), "S4") for n in ("expert", "branches")]
    fields += [Field("passes", (), "int32"), Field("probed", (), "bool"), Field("x_t", LATENT)]
    with RunWriter(path, spec_json=spec.to_json(), digest=spec.digest(), fields=fields, attrs={"fps": 16}) as writer:
        for k in range(2):
            step: dict[str, Any] = dict.fromkeys(numbers, 0.5)
            step |= {"expert": "low", "branches": "cond", "passes": 1, "probed": False} | (
                {"x_t": np.ones((1, 1, 1, 3))} if k else {}
            )
            writer.step(k, step)
        writer.finish({Field("video", ("frame", "height", "width", "rgb"), "uint8"): np.zeros((2, 4, 4, 3), "u1")}, {})
    return path


def here(folder: Path) -> None:
    write_small(folder / "a.hdf5")
    write_run(folder / "b.hdf5")


def run(folder: Path) -> None:
    """One as it is written; and the same without checksums in its metadata, in the library's oldest format."""
    write_run(folder / "b.h5")
    new = write_small(folder / "a.h5")
    with h5py.File(new) as a, h5py.File(folder / "c.h5", "w", libver="earliest") as b:

        def put(name: str, element: Any) -> None:
            if isinstance(element, h5py.Dataset):
                whole = element.shape == ()
                b.create_dataset(name, data=element[()], chunks=None if whole else element.chunks, fletcher32=not whole)
            else:
                b.create_group(name)
            for key, value in element.attrs.items():
                if key not in ("DIMENSION_LIST", "REFERENCE_LIST"):
                    b[name].attrs[key] = value

        a.visititems(put)
        for key, value in a.attrs.items():
            b.attrs[key] = value


def _part(folder: Path) -> Path:
    with RunWriter(folder / "_r.h5", spec_json="{}", digest="d", fields=[Field("sigma"), Field("x", ("n",))]) as writer:
        writer.step(0, {"sigma": 1.0, "x": np.zeros(3)}, {"x": np.zeros((2, 3)), "state": {"k": [1, 2]}})
    return part_directory(folder / "_r.h5")


def shard(folder: Path) -> None:
    part = _part(folder)
    for name in ("step-000000", "resume-000001"):
        shutil.copy(part / f"{name}.wls", folder / f"{name}.wls")
    shutil.rmtree(part)


def manifest(folder: Path) -> None:
    _part(folder)


INTERVAL = {"mean": 30.0, "low": 25.0, "high": 35.0, "n": 5}
KEY = {"model": "tiny", "steps": 20, "frames": 17, "size": "32x16", "shift": 3.0, "solver": "unipc"}


def result(folder: Path) -> None:
    a, b = folder / "a", folder / "b"
    a.mkdir()
    b.mkdir()
    figures = {"psnr": 30.5, "mse": 0.01, "ssim": 0.9, "adherence": 1.0, "adherence_baseline": 0.5, "difference": 0.1}
    pairs = [
        {"key": KEY, "prompt": f"p{k}", "seed": k, "a": "a.h5", "b": "b.h5", "seconds": 1.0, "passes": 8} | figures
        for k in range(5)
    ]
    summary = dict.fromkeys(("speedup", "speedup_predicted", "psnr", "ssim", "adherence", "motion_ratio"), INTERVAL)
    methods = [
        {"label": m, "method": m, "pairs": pairs, "n": 5, "verdict": "close", "summary": summary}
        for m in ("cfg:last=5", "half", "prune:keep=.5")
    ]
    content: dict[str, Any] = {"format": "wanlab-comparison/1", "baseline": "baseline", "compared": "A against B"}
    (a / "comparison.json").write_text(json.dumps(content | {"methods": methods, "thresholds": {"psnr": 35.0}}))
    curve = {"key": KEY, "method": "half", "model": "tiny", "prompt": "p", "seed": 0, "frames": 17, "source": "r.h5"}
    curve |= {"policies": "half", "sigma": [1.0, 0.5, None], "recovery": {"after": 3, "pairs": "duplicated"}}
    curve |= {"spaces": {"x_t": {"mse": {"mean": [0.1, None, 0.2]}}}}
    groups = [{"method": "half", "frames": 17, "reading": ["it recovers"]}]
    content = {"format": "wanlab-continuity/1", "groups": groups, "runs": [curve] * 4}
    (b / "continuity_statistics.json").write_text(json.dumps(content))


def calibration(folder: Path) -> None:
    for path in (EMBEDDED / "engine" / "calibrations").glob("*.json"):
        shutil.copy(path, folder / f"my-{path.name}")


def scores(folder: Path) -> None:
    films = [{"video_path": f"/x/{m}/p-{k}.mp4", "video_results": 0.9} for m in ("baseline", "half") for k in range(5)]
    content = {
        "subject_consistency": [0.9, films],
        "dynamic_degree": [0.5, [f | {"video_results": True} for f in films]],
    }
    (folder / "a_eval_results.json").write_text(json.dumps(content))


def prompts(folder: Path) -> None:
    (folder / "a.json").write_text(json.dumps(["a ball", {"prompt": "a cat", "seed": 3, "guidance": "3,4"}]))
    (folder / "b.jsonl").write_text('a ball\n{"prompt": "a cat", "seed": 3}\n\nthird\n')


def thresholds(folder: Path) -> None:
    (folder / "t.toml").write_text("psnr = 35.0\nfirst_steps = 5\nslowing = 1.0\n")


def design(folder: Path) -> None:
    for path in (EMBEDDED / "study" / "methods").glob("*.toml"):
        shutil.copy(path, folder)


def spec(folder: Path) -> None:
    policies = tuple(PolicySpec.parse(p) for p in ("cfg:last=5", "half"))
    (folder / "spec.json").write_text(RunSpec(model="tiny", prompt="a ball", policies=policies).to_json())


def checkpoint(folder: Path) -> None:
    """The embedded model; its weights are not mutated here (`tensors`)."""
    shutil.copytree(EMBEDDED / "embedded" / "tiny", folder / "tiny", ignore=shutil.ignore_patterns("*.safetensors"))
    for path in (EMBEDDED / "embedded" / "tiny").glob("*/*.safetensors"):
        to = folder / "tiny" / path.parent.name
        (to / path.name).symlink_to(path)


def tensors(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    held = {"a.weight": torch.ones(3, 4), "a.bias": torch.ones(4, dtype=torch.bfloat16), "n": torch.tensor(1.0)}
    torch.save(held, folder / "a.pth")
    save_file(held, folder / "b.safetensors")


def latents(folder: Path) -> None:
    """One step as the guide's own scripts save them."""
    import torch

    x = torch.randn(1, 4, 2, 2, 4, generator=torch.Generator().manual_seed(0))
    saved = {"step": 1, "timestep": 500.0, "sigma": torch.tensor(0.5), "x_t": x, "x0_pred": x[0] + 1, "eps_pred": x - 1}
    torch.save(saved, folder / "latent_step_01.pt")


def video(folder: Path) -> None:
    from wanlab.video import write_mp4

    write_mp4(folder / "a.mp4", np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8), 16)
