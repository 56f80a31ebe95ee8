"""Write tests/archives/official/reference.npz: what the official implementation computes for the cases in official.py.

    WANLAB_OFFICIAL=DIRECTORY python -m tests.engine.make_official_reference

DIRECTORY holds clones of github.com/Wan-Video/Wan2.1 and github.com/Wan-Video/Wan2.2, named so. Beside the
requirements here they want einops and easydict. They are used as they are, on the CPU in float32, but for three things
that need a GPU there: flash attention, which computes in bfloat16, is torch's scaled_dot_product_attention;
`torch.cuda.current_device`, asked for while wan/modules/t5.py is imported, says "cpu"; and the pipelines are put
together from parts instead of from a checkpoint's directory, so that every part can be small.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import tempfile
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.engine import official

ARCHIVE = Path(__file__).parents[1] / "archives" / "official" / "reference.npz"

_IMAGES = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")


def _attention(q: Any, k: Any, v: Any, **_: Any) -> torch.Tensor:
    """flash_attention of [B,L,heads,D] tensors. The lengths it is given are those of the whole tensors here."""
    mixed = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    return mixed.transpose(1, 2)


def _package(name: str, path: Path) -> None:
    """A package of which submodules can be imported without running its __init__, which imports everything."""
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(path)]  # type: ignore[attr-defined]


class Official:
    """The official modules, with the weights of official.py."""

    def __init__(self, root: Path) -> None:
        for version in ("2.1", "2.2"):
            package, where = f"official_{version.replace('.', '_')}", root / f"Wan{version}" / "wan"
            if not where.is_dir():
                raise SystemExit(f"there is no {where}: clone github.com/Wan-Video/Wan{version} there")
            _package(package, where)
            for part in ("modules", "utils", "distributed", "configs"):
                _package(f"{package}.{part}", where / part)
        device, torch.cuda.current_device = torch.cuda.current_device, lambda: "cpu"
        try:
            _, self.t5 = (self._import(version, "modules.t5") for version in ("2.1", "2.2"))  # the same file
        finally:
            torch.cuda.current_device = device
        self.dit = {v: self._import(v, "modules.model") for v in ("2.1", "2.2")}
        for module in self.dit.values():
            module.flash_attention = _attention
        absent = () if importlib.util.find_spec("torchvision") else _IMAGES
        for name in absent:  # imported there, and used for images alone
            _package(name, root)
        self._import("2.2", "textimage2video")
        for name in absent:
            del sys.modules[name]

    @staticmethod
    def _import(version: str, name: str) -> Any:
        return importlib.import_module(f"official_{version.replace('.', '_')}.{name}")

    def transformer(self, version: str, channels: int, seed: int) -> Any:
        made = self.dit[version].WanModel(model_type="t2v", in_dim=channels, out_dim=channels, **official.DIT)
        made.load_state_dict(official.weights(official.transformer(channels), seed))
        return made.eval().requires_grad_(False)

    def text_encoder(self, tokenizer: Path) -> Any:
        """T5EncoderModel: prompts and device -> embeddings of each, as long as the prompt is."""
        network = self.t5.T5Encoder(shared_pos=False, **official.TEXT)
        network.load_state_dict(official.weights(official.text_encoder(), 8))
        made = self.t5.T5EncoderModel.__new__(self.t5.T5EncoderModel)
        made.model, made.text_len = network.eval().requires_grad_(False), 512
        made.tokenizer = self.t5.HuggingfaceTokenizer(name=str(tokenizer), seq_len=512, clean="whitespace")
        return made

    def vae(self, version: str) -> Any:
        """Wan2_1_VAE or Wan2_2_VAE, with its own mean and standard deviation: lists of videos <-> of latents."""
        name = "vae2_1" if version == "2.1" else "vae2_2"
        module = self._import("2.2", f"modules.{name}")
        network = module.WanVAE_(
            dim_mult=list(official.MULT),
            num_res_blocks=official.BLOCKS,
            temperal_downsample=list(official.DOWN),
            **official.VAE[version],
        )
        network.load_state_dict(official.weights(official.vae(version), 7))
        given: dict[str, Any] = {}
        kept = module._video_vae
        try:
            module._video_vae = lambda *args, **settings: given.update(settings) or network
            kind = module.Wan2_1_VAE if version == "2.1" else module.Wan2_2_VAE
            made = kind(vae_pth="", device="cpu")
        finally:
            module._video_vae = kept
        made.model.requires_grad_(False)
        return made

    def generate(
        self, kind: str, tokenizer: Path, solver: str, steps: int, shift: float, guidance: Any, size: Any
    ) -> Any:
        """Final latents and video of the official pipeline of `kind`."""
        channels, version = official.KINDS[kind], "2.1" if kind in ("t2v-1.3B", "t2v-14B") else "2.2"
        module = self._import(version, "textimage2video" if kind == "ti2v-5B" else "text2video")
        name = "WanTI2V" if kind == "ti2v-5B" else "WanT2V"
        pipeline = getattr(module, name).__new__(getattr(module, name))
        config = self._import(version, "configs.shared_config").wan_shared_cfg
        seen: list[torch.Tensor] = []
        autoencoder = self.vae("2.2" if channels == 48 else "2.1")
        decode = autoencoder.decode
        autoencoder.decode = lambda latents: seen.extend(latents) or decode(latents)
        vars(pipeline).update(
            device=torch.device("cpu"),
            rank=0,
            t5_cpu=False,
            init_on_cpu=False,
            sp_size=1,
            param_dtype=torch.float32,
            num_train_timesteps=config.num_train_timesteps,
            sample_neg_prompt=config.sample_neg_prompt,
            text_encoder=self.text_encoder(tokenizer),
            vae=autoencoder,
            patch_size=(1, 2, 2),
            vae_stride=(4, 16, 16) if channels == 48 else (4, 8, 8),
        )
        if kind == "t2v-A14B":
            boundary = self._import("2.2", "configs.wan_t2v_A14B").t2v_A14B.boundary
            vars(pipeline).update(
                boundary=boundary,
                high_noise_model=self.transformer(version, channels, 0),
                low_noise_model=self.transformer(version, channels, 1),
            )
        else:
            pipeline.model = self.transformer(version, channels, 0)
            guidance = guidance[0]
        video = pipeline.generate(
            official.PROMPT,
            size=size[::-1],
            frame_num=official.FRAMES,
            shift=shift,
            sample_solver=solver,
            sampling_steps=steps,
            guide_scale=guidance,
            n_prompt=official.NEGATIVE,
            seed=official.SEED,
            offload_model=False,
        )
        return seen[0], video


@torch.no_grad()
def reference(root: Path) -> dict[str, np.ndarray]:
    """Every number that is kept, by name."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    code = Official(root)
    kept: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        official.write_tokenizer(Path(folder) / "tokenizer")
        text = code.text_encoder(Path(folder) / "tokenizer")
        kept["prompts/cleaned"] = np.array([text.tokenizer._clean(p) for p in official.PROMPTS])
        ids, mask = text.tokenizer(official.PROMPTS, return_mask=True, add_special_tokens=True)
        kept["prompts/ids"], kept["prompts/tokens"] = ids[:, :16].to(torch.int16), mask.sum(1).to(torch.int16)
        for k, prompt in enumerate(official.TEXTS):
            kept[f"text/{k}"] = official.some(text([prompt], "cpu")[0])
        for kind, solver, *settings in official.LOOPS:
            latents, video = code.generate(kind, Path(folder) / "tokenizer", solver, *settings)
            kept[f"loop/{kind}/{solver}/latents"] = official.some(latents)
            kept[f"loop/{kind}/{solver}/video"] = official.some(video)
    for version, channels, seed in (("2.2", 16, 0), ("2.2", 16, 1), ("2.1", 16, 0), ("2.2", 48, 0)):
        x = official.inputs(f"latents {channels}", channels, 3, 4, 6)
        context = [official.inputs("context", 9, official.DIT["text_dim"])]
        model, tokens = code.transformer(version, channels, seed), 3 * 2 * 3
        velocity = model([x], t=torch.tensor([877]), context=context, seq_len=tokens)[0]
        kept[f"transformer/{version}/{channels}/{seed}"] = official.some(velocity)
        if version == "2.2":  # a timestep for each token, the first frame's being 0, as for a given image
            t = torch.full((1, tokens), 640.0)
            t[:, :6] = 0
            velocity = model([x], t=t, context=context, seq_len=tokens)[0]
            kept[f"transformer/{version}/{channels}/{seed}/tokens"] = official.some(velocity)
    for version, settings in official.VAE.items():
        autoencoder, size = code.vae(version), 32 if version == "2.2" else 16
        z = official.inputs(f"latents {version}", settings["z_dim"], 3, 2, 2)
        kept[f"vae/{version}/decoded"] = official.some(autoencoder.decode([z])[0])
        video = official.inputs(f"video {version}", 3, 9, size, size)
        kept[f"vae/{version}/encoded"] = official.some(autoencoder.encode([video])[0])
    for solver, steps, shift in official.SCHEDULES:
        kept |= {f"steps/{solver}/{steps}/{k}": v for k, v in _schedule(code, solver, steps, shift).items()}
    return {name: np.asarray(value) for name, value in kept.items()}


def _schedule(code: Official, solver: str, steps: int, shift: float) -> dict[str, Any]:
    """Sigmas, timesteps and the states x after each step of the made-up model, set up as wan/text2video.py does."""
    if solver == "unipc":
        kind = code._import("2.2", "utils.fm_solvers_unipc").FlowUniPCMultistepScheduler
        scheduler = kind(num_train_timesteps=1000, shift=1, use_dynamic_shifting=False)
        scheduler.set_timesteps(steps, device="cpu", shift=shift)
    else:
        module = code._import("2.2", "utils.fm_solvers")
        scheduler = module.FlowDPMSolverMultistepScheduler(
            num_train_timesteps=1000, shift=1, use_dynamic_shifting=False
        )
        module.retrieve_timesteps(scheduler, device="cpu", sigmas=module.get_sampling_sigmas(steps, shift))
    x, states = official.inputs("start", 1, 2, 2, 2, 2), []
    for k, t in enumerate(scheduler.timesteps):
        x = scheduler.step(official.velocity(x, k), t, x, return_dict=False)[0]
        states.append(x.flatten())
    return {"sigmas": scheduler.sigmas, "timesteps": scheduler.timesteps, "x": torch.stack(states)}


if __name__ == "__main__":
    if not os.environ.get("WANLAB_OFFICIAL"):
        raise SystemExit("set WANLAB_OFFICIAL to the directory that holds Wan2.1 and Wan2.2")
    numbers = reference(Path(os.environ["WANLAB_OFFICIAL"]))
    ARCHIVE.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(ARCHIVE, **numbers)
    print(f"{ARCHIVE}: {len(numbers)} arrays, {ARCHIVE.stat().st_size} bytes")
