"""Wan2.2-T2V-A14B, or another model, at full size with random weights on one GPU: wanlab beside diffusers' WanPipeline,
in one run.

    python -m benchmarks.a14b                       # 832x480, 49 frames, 20 steps; ten minutes on an H200
    python -m benchmarks.a14b --layers 2 --steps 4  # does it run?
    python -m benchmarks.a14b --start               # in a second process: from loaded to the first step
    python -m benchmarks.a14b --fp8                 # only WanPipeline, exact mode and 8-bit products; five minutes
    python -m benchmarks.a14b --fp8 --brief --size 1280x720 --frames 81 --steps 4   # less of it; eight minutes
    python -m benchmarks.a14b --fp8 --brief --model Wan2.2-TI2V-5B --size 1280x704 --frames 121 --steps 4
    python -m benchmarks.a14b --plans --steps 4     # where the weights are: loading, passes, memory of device and host
    python -m benchmarks.a14b --policy examples/first_block_cache.py:first_block_cache:threshold=0.3
                                                    # only exact mode without and with it: the meter beside the clock
    python -m benchmarks.a14b --policy cfg:last=5 --memory swap --size 1280x720 --frames 81 --attention flash3-fp8
    torchrun --standalone --local-addr 127.0.0.1 --nproc-per-node 2 -m benchmarks.a14b --ranks
                                                    # one GPU, a branch on each, tokens on each; 4 steps

The checkpoint has the published configurations; its files are holes, and every tensor is drawn on the GPU from its
name, so that all that loads it has the same weights. Times are of the sampling loop, from wanlab's run files and, for
the pipeline, of its call for latents with prompts encoded before. The table is Markdown, each line printed when it is
measured; benchmarks/a14b.md keeps one, docs/scaling.md that of --ranks. The folder's name is the model's:
`--policy magcache` has its published ratios; `--policy teacache:threshold=1.2,calibration=benchmarks/random_a14b.json`
uses seven of 20 steps again.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import math
import resource
import shutil
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline
from torch import Tensor

from benchmarks import tiny_clip
from wanlab.embedded import tiny_path
from wanlab.engine import ranks, run
from wanlab.engine.model import config as configs
from wanlab.engine.model import fingerprint, modules, weights
from wanlab.engine.model import loading as models
from wanlab.engine.model.transformer import attention
from wanlab.engine.run.follow import follow
from wanlab.errors import WanlabError
from wanlab.runfile import Run
from wanlab.spec import PolicySpec, RecordSpec, RunSpec, parse_size

TRANSFORMER = dict(
    _class_name="WanTransformer3DModel",
    num_attention_heads=40,
    attention_head_dim=128,
    ffn_dim=13824,
    num_layers=40,
    text_dim=4096,
    in_channels=16,
    out_channels=16,
    freq_dim=256,
    patch_size=[1, 2, 2],
    cross_attn_norm=True,
    qk_norm="rms_norm_across_heads",
    eps=1e-6,
    rope_max_seq_len=1024,
)
VAE = dict(
    _class_name="AutoencoderKLWan",
    base_dim=96,
    z_dim=16,
    dim_mult=[1, 2, 4, 4],
    num_res_blocks=2,
    temperal_downsample=[False, True, True],
    latents_mean=[0.0] * 16,
    latents_std=[1.0] * 16,
)
TEXT = dict(
    architectures=["UMT5EncoderModel"],
    vocab_size=256384,
    d_model=4096,
    d_kv=64,
    num_heads=64,
    d_ff=10240,
    num_layers=24,
    feed_forward_proj="gated-gelu",
    relative_attention_num_buckets=32,
    pad_token_id=0,
    eos_token_id=1,
    tie_word_embeddings=False,
)
# The other models, by what differs: of the expert, the VAE, the pipeline.
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "Wan2.2-T2V-A14B": ({}, {}, {"boundary_ratio": 0.875}),
    "Wan2.2-TI2V-5B": (
        dict(num_attention_heads=24, ffn_dim=14336, num_layers=30, in_channels=48, out_channels=48),
        dict(
            base_dim=160,
            decoder_base_dim=256,
            z_dim=48,
            in_channels=12,
            out_channels=12,
            is_residual=True,
            patch_size=2,
            scale_factor_spatial=16,
            latents_mean=[0.0] * 48,
            latents_std=[1.0] * 48,
        ),
        {"expand_timesteps": True},
    ),
    "Wan2.1-T2V-14B": ({}, {}, {}),
    "Wan2.1-T2V-1.3B": (dict(num_attention_heads=12, ffn_dim=8960, num_layers=30), {}, {}),
}
METHODS = {
    "cfg, last 5 + 3 before the switch": "cfg:last=5,high=3",
    "half-frame": "half",
    "combined": "half+cfg:last=5,high=3",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "batched branches": {"batch_cfg": True},
    "cuDNN's attention": {"attention": "cudnn"},
}
GIB = 2**30
OVER_ONE = {2: "1.8 x", 4: "3.5 x", 8: "6.4 x"}  # the bar for so many GPUs over one
FILES = weights.stream, weights.read  # what reads files
SHARD = 10**9  # parameters a file


def write_checkpoint(folder: Path, name: str, layers: int | None) -> int:
    """The published configurations of a model in diffusers' layout, and files of weights that are holes. Returns how
    many blocks an expert has: `layers`, or as many as published."""
    shutil.copytree(tiny_path() / "tokenizer", folder / "tokenizer")
    UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=12.0, num_train_timesteps=1000
    ).save_pretrained(folder / "scheduler")
    of_expert, of_vae, of_pipeline = MODELS[name]
    expert: dict[str, Any] = TRANSFORMER | of_expert
    layers = layers or int(expert["num_layers"])
    expert["num_layers"] = layers
    experts = ["transformer"] + (["transformer_2"] if "boundary_ratio" in of_pipeline else [])
    parts = dict.fromkeys(experts, expert) | {"vae": VAE | of_vae, "text_encoder": TEXT}
    index: dict[str, Any] = {part: ["diffusers", config.get("_class_name", "")] for part, config in parts.items()}
    index |= of_pipeline | {
        "_class_name": "WanPipeline",
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    for part, config in parts.items():
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config))
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        shards: list[dict[str, tuple[int, ...]]] = [{}]
        for tensor, shape in modules.expected("benchmark", part, configs.read(part, config)).items():
            if sum(map(math.prod, shards[-1].values())) > SHARD:
                shards.append({})
            shards[-1][tensor] = shape
        for k, shapes in enumerate(shards):
            write_holes(folder / part / f"{stem}-{k}.safetensors", shapes)
        places = {tensor: f"{stem}-{k}.safetensors" for k, shapes in enumerate(shards) for tensor in shapes}
        (folder / part / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return layers


def write_holes(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file whose tensors take no space on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def drawn(component: str, name: str, shape: Sequence[int]) -> Tensor:
    """A tensor of a component, the same whoever asks: norms 1, biases 0, products of unit gain."""
    if len(shape) == 1 or name.endswith(("norm.weight", "gamma")):
        return torch.full(tuple(shape), 0.0 if name.endswith("bias") else 1.0, device="cuda", dtype=torch.bfloat16)
    generator = torch.Generator("cuda").manual_seed(zlib.crc32(f"{component} {name}".encode()))
    value = torch.randn(tuple(shape), device="cuda", dtype=torch.bfloat16, generator=generator)
    return value.div_(math.sqrt(math.prod(shape[1:])))


def random_weights(files: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """What `weights.stream` gives."""
    for name, head in weights.heads(files).items():
        yield name, drawn(files[0].parent.name, name, head.shape)


@functools.lru_cache(16)
def random_tensor(file: Path, name: str) -> Tensor:
    """What `weights.read` gives."""
    return drawn(file.parent.name, name, weights.heads([file])[name].shape).cpu()


class Bench:
    """Rows of the table as they are measured."""

    def __init__(self, spec: RunSpec, folder: Path, seconds: float) -> None:
        self.spec, self.folder, self.loaded = spec, folder, run.Models()
        self.end, self.count = time.monotonic() + seconds, 0

    def room(self, seconds: float) -> bool:
        """Whether so much time is left; says so when not."""
        there = self.end - time.monotonic()
        if there < seconds:
            print(f"left out for lack of time: {there:.0f} s of {seconds:.0f} s", flush=True)
        return there >= seconds

    def wanlab(self, watch: Callable[[run.Progress], None] = lambda _: None, **changes: Any) -> dict[str, Any]:
        """Sample `spec` with changes: seconds of the loop, of recording, of warm-up and decoding, peak bytes,
        latent."""
        self.count += 1
        spec = replace(self.spec, **changes)
        out = self.folder / f"{self.count}.h5"
        torch.cuda.empty_cache()
        path, plan = run.execute(spec, out, loaded=self.loaded, progress=watch), run.plan(spec)
        with Run(path) as made:
            timing = made.attrs["timing_seconds"]
            steps = np.asarray(made["seconds"]).tolist()
            operations = np.asarray(made["operations"]).tolist()
            result = {
                "seconds": sum(steps) + timing["recording"],
                "steps": steps,
                "operations": operations,
                "peak": made.attrs["peak_memory_bytes"],
                "latent": torch.from_numpy(np.asarray(made["latent"])),
                "predicted": made.attrs["predicted"],
                "attention": made.spec.attention,
                "planned": plan.memory_plans[made.spec.memory],
                "host": plan.host_plans[made.spec.memory],
            }
        path.unlink()
        print("   ", {k: round(v, 2) for k, v in timing.items()}, f"peak {result['peak'] / GIB:.2f} GiB", flush=True)
        return {**result, **timing}


def pipeline_of(model: models.Model) -> WanPipeline:
    pipe = WanPipeline(
        tokenizer=model.tokenizer,
        text_encoder=model.text_encoder,
        vae=model.vae,
        scheduler=UniPCMultistepScheduler.from_config(dict(model.checkpoint.scheduler)),
        transformer=next(iter(model.experts.values())),
        transformer_2=model.experts.get("low"),
        boundary_ratio=model.checkpoint.boundary,
        expand_timesteps=model.checkpoint.expand_timesteps,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pipeline(pipe: WanPipeline, spec: RunSpec, embeds: dict[str, Tensor], kernel: str = "auto") -> tuple[float, Tensor]:
    """Seconds of WanPipeline's call for latents, and these."""
    with attention(kernel):
        torch.cuda.synchronize()
        began = time.perf_counter()
        latents = pipe(
            prompt_embeds=embeds["cond"],
            negative_prompt_embeds=embeds["uncond"],
            width=spec.width,
            height=spec.height,
            num_frames=spec.frames,
            num_inference_steps=spec.steps,
            guidance_scale=spec.guidance[1],
            guidance_scale_2=spec.guidance[0] if pipe.config.boundary_ratio else None,
            generator=torch.Generator().manual_seed(spec.seed),
            output_type="latent",
        ).frames
        torch.cuda.synchronize()
        return time.perf_counter() - began, latents[0].float().cpu()


def apart(a: Tensor, b: Tensor) -> float:
    """Relative error of a against b."""
    return float((a - b).norm() / b.norm())


Span = tuple[float, float]


def covered(spans: Sequence[Span]) -> float:
    """How much time lies in at least one of them."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def lasting(spans: Sequence[Span]) -> float:
    """From the first one's beginning to the last one's end."""
    return max(end for _, end in spans) - min(begin for begin, _ in spans)


class Trace:
    """A profiler over the sampling loop of one run."""

    def __init__(self) -> None:
        self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])

    def __call__(self, progress: run.Progress) -> None:
        if progress.phase == "sample" and progress.step == 0:
            self._profiler.start()
        elif progress.phase == "sample" and progress.step == progress.total:
            self._profiler.stop()

    def idle(self) -> float:
        """Share of the time from the first kernel to the last in which the GPU computes nothing."""
        every = [span for _, span in self._ran()]
        return 1 - covered(every) / lasting(every)

    def communicating(self) -> tuple[float, float]:
        """Shares of the time from the first kernel to the last in which NCCL's kernels run, which wait for other ranks
        too: all of it, and what no other kernel runs beside."""
        ran = self._ran()
        every = [span for _, span in ran]
        nccl, others = ([span for name, span in ran if ("nccl" in name) is its] for its in (True, False))
        return covered(nccl) / lasting(every), (covered(every) - covered(others)) / lasting(every)

    def _ran(self) -> list[tuple[str, Span]]:
        """The kernels by name, and when each ran, in microseconds."""
        events = [e for e in self._profiler.events() if e.device_type.name == "CUDA"]  # type: ignore[no-untyped-call]
        found = [(str(e.name), (float(e.time_range.start), float(e.time_range.end))) for e in events]
        return [(name, (begin, end)) for name, (begin, end) in found if end > begin]

    def kernels(self, most: int = 14) -> str:
        """The table of what took longest."""
        return str(
            self._profiler.key_averages().table(sort_by="cuda_time_total", row_limit=most, max_name_column_width=60)
        )


def setting(spec: RunSpec) -> str:
    return f"{spec.width}x{spec.height}, {spec.frames} frames, {spec.steps} steps"


def bars(spec: RunSpec) -> tuple[str, str]:
    """Of exact mode and of 8-bit products with 8-bit attention, over WanPipeline: at 49 frames, and at 81."""
    return ("1.28 x", "1.85 x") if spec.frames == 49 else ("1.25 x", "1.9 x")


def row(what: str, value: str, bar: str = "") -> None:
    print(f"| {what} | {value} | {bar} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="20, and 4 with --ranks")
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--model", choices=MODELS, default="Wan2.2-T2V-A14B")
    parser.add_argument("--layers", type=int, help="of an expert; as published")
    parser.add_argument("--seconds", type=float, default=math.inf, help="leave out what would take longer")
    parser.add_argument("--start", action="store_true", help="only the way from loaded to the first step")
    parser.add_argument("--fp8", action="store_true", help="only WanPipeline, exact mode and 8-bit products beside it")
    parser.add_argument("--brief", action="store_true", help="with --fp8, nothing compiled of WanPipeline, no variants")
    parser.add_argument("--plans", action="store_true", help="only the memory plans")
    parser.add_argument("--policy", action="append", help="only exact mode, without and with each of these policies")
    parser.add_argument("--ranks", action="store_true", help="under torchrun: one GPU beside all of them")
    parser.add_argument("--only", default="reference,exact,fp8", help="with --ranks, these precisions")
    parser.add_argument("--size", type=parse_size, default=(832, 480), help="WIDTHxHEIGHT")
    parser.add_argument("--precision", default="exact", help="of --policy")
    parser.add_argument("--memory", default="resident", help="of --policy: resident, swap or offload")
    parser.add_argument("--attention", default="auto", help="of --policy")
    args = parser.parse_args()
    args.steps = args.steps or (4 if args.ranks else 20)
    width, height = args.size
    stand_in()
    if args.ranks and ranks.join().rank:
        follow(ranks.here())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / args.model
        args.layers = write_checkpoint(model, args.model, args.layers)
        spec = RunSpec(
            prompt="a large red circle moving right on a black background",
            model=str(model),
            width=width,
            height=height,
            frames=args.frames,
            steps=args.steps,
            guidance=(3.0, 4.0) if "A14B" in args.model else (5.0, 5.0),
            precision="reference",
            memory="resident",
            parallel="none",
        )
        bench = Bench(spec, folder, args.seconds)
        if args.start:
            made = bench.wanlab(precision="exact", steps=2)
            row("second process: loaded to first step", f"{made['encode'] + made['warm-up']:.1f} s", "30 s")
            return
        if args.ranks:
            try:
                shared(bench, args.layers, args.only.split(","))
            except BaseException:  # the other ranks would be waited for
                traceback.print_exc()
                ranks.quit(1)
            ranks.quit(0)
        if args.policy:
            given = {"precision": args.precision, "memory": args.memory, "attention": args.attention}
            policies(bench, args.policy, given)
            return
        if args.plans:
            plans(bench)
            return
        measure(bench, args.layers, args.fp8, args.brief)


def stand_in() -> None:
    """Take random weights for those in the files, which are holes, and write no films."""
    weights.stream, weights.read = random_weights, random_tensor  # type: ignore[assignment]
    fingerprint.digests = lambda files: [""] * len(list(files))
    tiny_clip.no_films()


def plans(bench: Bench) -> None:
    """Each memory plan beside `resident`, in the mode that it is for; then what loading takes when files are read."""
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {setting(bench.spec)}\n\n"
        "| what | measured | bar |\n|---|---|---|"
    )
    for memory, precision, most in (("swap", "exact", "36 GiB"), ("offload", "reference", "22 GiB")):
        resident = bench.wanlab(precision=precision)
        torch._C._host_emptyCache()  # what the plan before had locked counts as in use until somebody asks for more
        torch.cuda.reset_peak_host_memory_stats()
        made, what = bench.wanlab(precision=precision, memory=memory), f"{precision}, {memory}"
        same = "equal" if torch.equal(made["latent"], resident["latent"]) else "NOT equal"
        row(f"{what}: latents beside resident's", same, "equal")
        each, usual = (sum(m["steps"]) / (2 * bench.spec.steps) for m in (made, resident))
        row(f"{what}: a pass", f"{each:.3f} s, resident {usual:.3f} s: {each / usual:.2f} x", "1.25 x")
        row(f"{what}: the switch", f"{made['switch']:.2f} s, resident {resident['switch']:.2f} s", "3 s")
        row(f"{what}: memory of the device", f"{made['peak'] / GIB:.2f} GiB, planned {made['planned'] / GIB:.2f}", most)
        pinned = torch.cuda.host_memory_stats()["active_bytes.peak"]
        whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        row(
            f"{what}: memory of the host, page-locked; all that the process ever had",
            f"{pinned / GIB:.2f} GiB, planned {made['host'] / GIB:.2f}; {whole / GIB:.2f} GiB",
            "75 GiB",
        )
    bench.loaded = run.Models()
    weights.stream, weights.read = FILES
    for memory in ("resident", "resident", "swap"):
        gc.collect()
        torch.cuda.empty_cache()
        began = time.perf_counter()
        model = models.load(bench.spec.model, "cuda", torch.bfloat16, precision="exact", memory=memory)
        torch.cuda.synchronize()
        row(f"exact, {memory}: loading from files", f"{time.perf_counter() - began:.1f} s", "2 x")
        del model


def policies(bench: Bench, texts: Sequence[str], given: dict[str, Any]) -> None:
    """What the plan and the meter say, beside the clock. One that fails leaves the others alone."""
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {setting(bench.spec)}, "
        f"{', '.join(given.values())}\n\n"
        "| policy | planned | meter | clock, of the steps | |\n|---|---|---|---|---|"
    )
    chosen: dict[str, PolicySpec] = {}
    for text in texts:
        try:
            chosen[text] = PolicySpec.parse(text)
            run.plan(replace(bench.spec, policies=(chosen[text],), **given))
        except WanlabError as error:
            print(f"    {text} is refused: {error}", flush=True)
            chosen.pop(text, None)
    plain = bench.wanlab(**given)
    print("    seconds by step:", " ".join(f"{s:.2f}" for s in plain["steps"]), flush=True)
    for text, policy in chosen.items():
        if not bench.room(1.3 * plain["seconds"] + 30):
            continue
        try:
            made = bench.wanlab(policies=(policy,), **given)
        except Exception as error:
            print(f"    {text} fails: {type(error).__name__}: {str(error)[:300]}", flush=True)
            gc.collect()
            continue
        meter, clock = sum(plain["operations"]) / sum(made["operations"]), sum(plain["steps"]) / sum(made["steps"])
        planned = made["predicted"]["speedup"]
        row(f"{text} | {planned:.3f}x | {meter:.3f}x", f"{clock:.3f}x ({100 * (clock / meter - 1):+.1f} %)")
        print("    seconds by step:", " ".join(f"{s:.2f}" for s in made["steps"]), flush=True)
        partial(made)
        print(
            f"    peak {made['peak'] / 1e9:.2f} GB, predicted {made['planned'] / 1e9:.2f} GB; "
            f"recording, and saving what a run goes on from, {made['recording']:.2f} s",
            flush=True,
        )


def partial(made: dict[str, Any]) -> None:
    """Of steps that ran a part of the operations, the time over that part of a whole step's in the same run; steps
    that ran next to nothing, as with a cache, are left out."""
    operations, seconds = np.array(made["operations"]), np.array(made["steps"])
    share = operations / operations.max()
    part = (share > 0.05) & (share < 1)
    if not part.any():
        return
    each = (seconds / np.median(seconds[share == 1]) / share)[part]
    line = ", ".join(f"{of:.3f}: {over:.3f}" for of, over in zip(share[part], each, strict=True))
    print(f"    share of the operations: time over that share of a whole step's: {line}")
    print(
        f"    {len(each)} steps of a part: time over the same part of a whole step's: mean {each.mean():.3f}, worst "
        f"{each.max():.3f} (bar 1.10)",
        flush=True,
    )


def shared(bench: Bench, layers: int, precisions: Sequence[str]) -> None:
    """One GPU, then every way to share a clip that the ranks have, in each precision. A step's seconds are those of
    rank 0, which waits for the others, and the mean over steps. What decoding takes, and NCCL's share, is of a second,
    shorter run."""
    size = ranks.here().size
    layouts = [f"ulysses={size}", f"ring={size}", f"cfg=2,ulysses={size // 2}" if size > 2 else "cfg=2"]
    spec, found = bench.spec, models.describe(bench.spec.model)
    print(
        f"{size} x {torch.cuda.get_device_name()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}, {layers} "
        f"layers, {setting(spec)}\n\n"
        "| what | measured | bar |\n|---|---|---|"
    )
    model = bench.loaded.load(run.resolve(spec, found), found)
    pipe = pipeline_of(model)
    embeds = {"cond": model.encode(spec.prompt), "uncond": model.encode("")}
    pipeline(pipe, replace(spec, steps=2), embeds)
    theirs = pipeline(pipe, spec, embeds)[0] / spec.steps
    row("WanPipeline, one GPU", f"{theirs:.3f} s a step, {theirs / 2:.3f} s a pass")
    del pipe, model, embeds
    over_pipeline = {"exact": "2.3 x", "fp8": "3.0 x"} if size == 2 else {}
    for precision in ("reference", "exact", "fp8"):
        if precision not in precisions:
            continue
        given: dict[str, Any] = {"precision": precision} | ({"attention": "cudnn"} if precision == "reference" else {})
        alone = bench.wanlab(**given)
        once = fmean(alone["steps"])
        row(f"{precision}, one GPU", f"{once:.3f} s a step, {once / 2:.3f} s a pass")
        batched = bench.wanlab(batch_cfg=True, **given)
        floor, decoding = apart(batched["latent"], alone["latent"]), batched["decode"]
        row(f"{precision}, one GPU, both branches in one forward: the noise floor", f"relative error {floor:.2e}")
        for layout in layouts:
            if not bench.room(10 * once * spec.steps):
                continue
            try:
                made, trace = bench.wanlab(parallel=layout, **given), Trace()
                traced = bench.wanlab(trace, parallel=layout, **given | {"steps": 2})
            except ranks.JobError:
                raise
            except WanlabError as problem:
                print(f"    {precision}, {layout} is refused: {problem}", flush=True)
                continue
            step, error = fmean(made["steps"]), apart(made["latent"], alone["latent"])
            same = "bit-identical" if torch.equal(made["latent"], alone["latent"]) else f"relative error {error:.2e}"
            row(
                f"{precision}, {layout}: over one GPU",
                f"{step:.3f} s a step, {once / step:.2f} x; {same}",
                "1.9 x" if layout == "cfg=2" else OVER_ONE.get(size, ""),
            )
            row(
                f"{precision}, {layout}: over WanPipeline on one GPU",
                f"{theirs / step:.2f} x",
                over_pipeline.get(precision, ""),
            )
            row(f"{precision}, {layout}: peak memory of rank 0", f"{made['peak'] / GIB:.2f} GiB")
            whole, alone_there = trace.communicating()
            row(
                f"{precision}, {layout}: NCCL's kernels, waiting included",
                f"{100 * whole:.1f} % of the time, {100 * alone_there:.1f} % with nothing beside them",
            )
            row(
                f"{precision}, {layout}: decoding",
                f"{traced['decode']:.2f} s, one GPU {decoding:.2f}: {decoding / traced['decode']:.2f} x",
            )
    if bench.room(12 * theirs):
        text = f"cfg:last={spec.steps // 2}"
        made = bench.wanlab(precision="exact", parallel=layouts[-1], policies=(PolicySpec.parse(text),))
        row(
            f"exact, {layouts[-1]}, {text}: steps of two branches, of one",
            f"{median(made['steps'][: -(spec.steps // 2)]):.3f} s, {median(made['steps'][-(spec.steps // 2) :]):.3f} s",
        )


def measure(bench: Bench, layers: int, fp8_alone: bool, brief: bool) -> None:
    spec, found = bench.spec, models.describe(bench.spec.model)
    plan = run.plan(spec)
    ceiling = run.operations_per_second(run.resolve(spec, found))
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}, {layers} layers, "
        f"{setting(spec)}\n\n"
        "| what | measured | bar |\n|---|---|---|"
    )
    row("matrix product 8192³, bfloat16", f"{ceiling / 1e12:.0f} TFLOP/s")

    def speed(seconds: float) -> str:
        rate = plan.flops / seconds
        return (
            f"{seconds:.2f} s, {seconds / plan.passes:.3f} s a pass, {100 * rate / ceiling:.0f} % of the product's rate"
        )

    model = bench.loaded.load(run.resolve(spec, found), found)
    pipe = pipeline_of(model)
    embeds = {"cond": model.encode(spec.prompt), "uncond": model.encode("")}
    pipeline(pipe, replace(spec, steps=1 if brief else 2), embeds)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    theirs, expected = pipeline(pipe, spec, embeds)
    sampled = torch.cuda.max_memory_allocated()
    row("WanPipeline", speed(theirs))
    if fp8_alone:
        compiled = 0.0 if brief else compiled_blocks(bench, pipe, embeds, theirs)
        del pipe, model, embeds
        over(theirs, compiled * plan.passes, bench.wanlab(precision="exact")["seconds"], bars(spec)[0])
        fp8(bench, theirs, expected, brief)
        return
    began = time.perf_counter()
    with torch.no_grad():
        pipe.vae.decode(expected[None].to("cuda", pipe.vae.dtype), return_dict=False)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    row("its decoding", f"{time.perf_counter() - began:.2f} s")
    row("its peak memory, sampling; decoding", f"{sampled / GIB:.2f}; {peak / GIB:.2f} GiB")

    ours = bench.wanlab(steps=4)
    short = [pipeline(pipe, replace(spec, steps=4), embeds)[1] for _ in range(2)]
    row("reference mode against WanPipeline, 4 steps", f"relative error {apart(ours['latent'], short[0]):.2e}")
    row("WanPipeline against itself, 4 steps", f"relative error {apart(short[1], short[0]):.2e}")
    cudnn, other = pipeline(pipe, replace(spec, steps=4), embeds, "cudnn")
    row(
        "WanPipeline with cuDNN attention, 4 steps",
        f"{cudnn / 8:.3f} s a pass; relative error {apart(other, short[0]):.2e}",
    )
    compiled = compiled_blocks(bench, pipe, embeds, theirs)
    del pipe, model, embeds

    exact = bench.wanlab(precision="exact")
    row("exact", f"{speed(exact['seconds'])}, attention {exact['attention']}")
    over(theirs, compiled * plan.passes, exact["seconds"], bars(spec)[0])
    row("exact, relative error", f"{apart(exact['latent'], expected):.2e}")
    row("exact, peak memory", f"{exact['peak'] / GIB:.2f} GiB, {(exact['peak'] - peak) / GIB:+.2f}", "+1 GiB")
    row("exact, compiling and warm-up; decoding", f"{exact['warm-up']:.1f} s; {exact['decode']:.2f} s")
    for name, text in METHODS.items():
        if bench.room(theirs * 0.7):
            made = bench.wanlab(precision="exact", policies=tuple(PolicySpec.parse(t) for t in text.split("+")))
            predicted, measured = made["predicted"]["speedup"], exact["seconds"] / made["seconds"]
            row(
                f"{name}: predicted, measured",
                f"{predicted:.3f}, {measured:.3f}: {100 * (measured / predicted - 1):+.1f} %",
                "5 %",
            )
    if bench.room(20):
        trace = Trace()
        bench.wanlab(trace, precision="exact", steps=3)
        row("exact, GPU idle in 3 steps", f"{100 * trace.idle():.2f} %", "1 %")
        print(trace.kernels(), flush=True)
    if bench.room(theirs * 0.7):
        made = bench.wanlab(precision="exact", steps=10, record=RecordSpec(level="all"))
        more = (made["seconds"] / 10) / (exact["seconds"] / spec.steps) - 1
        row("recording everything, 10 steps, over recording nothing, a step", f"{100 * more:+.2f} %", "2 %")
    for name, changes in VARIANTS.items():
        if bench.room(theirs * 0.5):
            made = bench.wanlab(precision="exact", steps=4, **changes)
            each, more = sum(made["steps"]) / 8, (made["peak"] - peak) / GIB
            row(f"exact, {name}, 4 steps", f"{each:.3f} s a pass, peak {more:+.2f} GiB")
    if bench.room(theirs * 1.5):
        fp8(bench, theirs, expected, brief)


def over(theirs: float, compiled: float, seconds: float, bar: str) -> None:
    """Rows of exact mode's seconds beside WanPipeline's, as it is and (unless 0) with its blocks compiled."""
    row("exact over WanPipeline", f"{theirs / seconds:.2f} x", bar)
    if compiled:
        row("exact over WanPipeline compiled", f"{compiled / seconds:.2f} x", "1 x")


def compiled_blocks(bench: Bench, pipe: WanPipeline, embeds: dict[str, Tensor], theirs: float) -> float:
    """Seconds of a pass of WanPipeline with its blocks compiled, which they stay; 0 where there is no time for it."""
    if not bench.room(theirs * 0.4 + 90):
        return 0.0
    for expert in filter(None, (pipe.transformer, pipe.transformer_2)):
        expert.compile_repeated_blocks()
    try:
        pipeline(pipe, replace(bench.spec, steps=3), embeds)  # the third is the low-noise expert's
        seconds = pipeline(pipe, replace(bench.spec, steps=4), embeds)[0] / 8
    except Exception as error:  # the rest is to be measured all the same
        print(f"    WanPipeline compiled fails: {type(error).__name__}: {str(error)[:300]}", flush=True)
        return 0.0
    row("WanPipeline, its blocks compiled by torch, 4 steps", f"{seconds:.3f} s a pass")
    return seconds


def fp8(bench: Bench, theirs: float, expected: Tensor, brief: bool) -> None:
    """Rows of 8-bit products; WanPipeline took `theirs` seconds to `expected`. `brief`: those of 8-bit attention."""
    if not brief:
        made = bench.wanlab(precision="fp8")
        row("fp8", f"{made['seconds']:.2f} s, attention {made['attention']}")
        row("fp8 over WanPipeline", f"{theirs / made['seconds']:.2f} x", "1.6 x")
        row("fp8, relative error; peak memory", f"{apart(made['latent'], expected):.2e}; {made['peak'] / GIB:.2f} GiB")
    made = bench.wanlab(precision="fp8", attention="flash3-fp8")
    row("fp8 with 8-bit attention", f"{made['seconds']:.2f} s")
    row("fp8 with 8-bit attention over WanPipeline", f"{theirs / made['seconds']:.2f} x", bars(bench.spec)[1])
    row(
        "fp8 with 8-bit attention, relative error; peak memory",
        f"{apart(made['latent'], expected):.2e}; {made['peak'] / GIB:.2f}, planned {made['planned'] / GIB:.2f} GiB",
    )
    for name, changes in () if brief else VARIANTS.items():
        if bench.room(theirs * 0.5):
            made = bench.wanlab(precision="fp8", steps=4, **changes)
            row(f"fp8, {name}, 4 steps", f"{sum(made['steps']) / 8:.3f} s a pass")


if __name__ == "__main__":
    main()
