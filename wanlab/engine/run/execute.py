"""From a RunSpec to a run file: check, load, encode, sample, decode, write, and go on where a run was interrupted."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wanlab.engine import observers, policies
from wanlab.engine.loop import denoise
from wanlab.engine.model import kernels as fast
from wanlab.engine.model import loading as models
from wanlab.engine.model import placement, vae
from wanlab.engine.model.loading import Checkpoint, Denoiser, Model
from wanlab.engine.run.forecast import Plan, make_env
from wanlab.engine.run.forecast import plan as make_full_plan
from wanlab.engine.solvers import Solver, default_shift
from wanlab.engine.types import BOTH, COND, UNCOND, Call, Env, Observer, Session, State
from wanlab.errors import UsageError, WanlabError
from wanlab.runfile import Field, Run, RunWriter
from wanlab.spec import MEMORY_PLANS, RunSpec
from wanlab.video import write_gif, write_mp4

PROCESS = uuid.uuid4().hex  # runs of one process can be timed against each other
LATENT = Field(
    "latent", ("channel", "latent_frame", "latent_height", "latent_width"), "float32", "1", "final latents, normalised"
)
VIDEO = Field("video", ("frame", "height", "width", "rgb"), "uint8", "1", "the frames, 0 to 255")
VIDEO_FLOAT = Field("video_float", VIDEO.dims, "float32", "1", "the frames before rounding, 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is. `phase`: load, encode, warm-up, sample, decode, write."""

    phase: str
    step: int = 0
    """Finished steps, in phase "sample"."""
    total: int = 0
    seconds: float = 0.0
    """Time of the last step, in phase "sample"."""
    memory: int = 0
    """Peak bytes on the GPU so far, 0 on the CPU."""
    durable: int = 0
    """Steps that are safely on the disk: an interrupted run goes on after these."""


def resolve(spec: RunSpec, found: Checkpoint) -> RunSpec:
    """The spec with everything named that was left to be chosen: device, dtypes, shift, precision, memory plan and
    attention. Raises UsageError for what this machine has not."""
    device = spec.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and (
        not torch.cuda.is_available() or int(device.partition(":")[2] or 0) >= torch.cuda.device_count()
    ):
        raise UsageError(f"there is no device {device}", "use --device cpu or auto")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UsageError("there is no device mps", "use --device cpu or auto")
    cpu = device == "cpu"
    if not device.startswith("cuda") and spec.attention not in ("auto", "math", "flash"):
        raise UsageError(f"--attention {spec.attention} needs a GPU of NVIDIA's", "use auto, math or flash")
    spec = dataclasses.replace(
        spec,
        device=device,
        dtype=spec.dtype if spec.dtype != "auto" else "float32" if cpu else "bfloat16",
        vae_dtype=spec.vae_dtype if spec.vae_dtype != "auto" else "bfloat16" if cpu else "float32",
        shift=spec.shift if spec.shift is not None else default_shift(found.scheduler),
    )
    asked = spec.precision
    if not device.startswith("cuda"):
        precision = "reference" if asked == "auto" else asked
        return dataclasses.replace(
            spec, precision=precision, memory="resident" if spec.memory == "auto" else spec.memory
        )
    if asked == "auto":
        large = models.parameters(found)["transformer"] >= 1e9
        spec = dataclasses.replace(spec, precision="exact" if large else "reference")
    if asked == "fp8":
        problem = "--precision fp8 needs --dtype bfloat16" if spec.dtype != "bfloat16" else fast.fp8_problem(device)
        if problem:
            raise UsageError(problem, "use --precision exact")
    if spec.memory == "auto":
        # What this process holds already is its own to let go of.
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        spec = dataclasses.replace(spec, memory=placement.choose(make_full_plan(spec, found).memory_plans, free))
    if spec.memory == "offload" and spec.precision != "reference":
        if asked != "auto":
            raise UsageError(
                f"--precision {asked} needs a whole expert on the device, plan offload never has one there",
                "use --precision reference, or a smaller --dtype",
            )
        spec = dataclasses.replace(spec, precision="reference")
    if spec.attention == "flash3" and (lacking := _without_flash3(spec, found)):
        raise UsageError(f"--attention flash3: {lacking[0]}", lacking[1])
    if (
        spec.attention == "auto"
        and spec.precision != "reference"
        and torch.cuda.get_device_capability(device) >= (9, 0)
    ):
        # The fastest there (benchmarks/a14b.md); both are for 16 bits.
        if not _without_flash3(spec, found):
            spec = dataclasses.replace(spec, attention="flash3")
        elif spec.dtype != "float32":
            spec = dataclasses.replace(spec, attention="cudnn")
    return spec


def _without_flash3(spec: RunSpec, found: Checkpoint) -> tuple[str, str] | None:
    """What keeps a resolved spec from FlashAttention-3, and what to do; None when nothing does."""
    heads = int(found.configs["transformer"].get("attention_head_dim") or 128)
    if torch.cuda.get_device_capability(spec.device) != (9, 0):
        return "it is for Hopper GPUs", "use --attention auto"
    if spec.memory == "offload":
        return (
            "it needs a whole expert on the device, and plan offload never has one there",
            "use --attention auto, or what lets plan swap fit: fewer frames, a smaller size",
        )
    if spec.precision == "reference":
        return "it is no kernel of torch's, and --precision reference has only these", "add --precision exact"
    if spec.dtype != "bfloat16":
        return f"it is for bfloat16, not {spec.dtype}", "use --dtype bfloat16"
    if heads % 8 or heads > 256:
        return f"it has no heads of {heads}", "use --attention auto"
    if problem := fast.flash3_problem():
        return problem, "pip install fa3-fwd, or use --attention cudnn"
    return None


def resolved(spec: RunSpec) -> RunSpec:
    """The spec as a run of it would name it (`resolve`). Raises UsageError as the run would."""
    return resolve(spec, models.describe(spec.model, spec.revision))


def operations_per_second(spec: RunSpec) -> float:
    """This machine's rate at one large matrix product in a resolved spec's dtype: no transformer runs faster."""
    device, dtype = torch.device(spec.device), models.DTYPES[spec.dtype]
    n = 8192 if device.type == "cuda" else 1024
    x = torch.randn(n, n, device=device, dtype=dtype)
    for _ in range(2):  # the first includes one-off work
        began = time.perf_counter()
        (x @ x).sum().item()
        seconds = time.perf_counter() - began
    return 2 * n**3 / seconds


def plan(spec: RunSpec) -> Plan:
    """What a run of `spec` would do and cost, from configurations only. Raises as the run itself would."""
    found = models.describe(spec.model, spec.revision)
    return make_full_plan(resolve(spec, found), found)


class Models:
    """The model loaded last, kept for the runs that follow with the same one."""

    def __init__(self) -> None:
        self._key: tuple[str, ...] = ()
        self._model: Model | None = None
        self._attention = ""
        self.warm: set[tuple[Any, ...]] = set()
        """Expert, batch and shape of the forwards that have run once."""

    def load(self, spec: RunSpec, found: Checkpoint) -> Model:
        """The model of a resolved spec, loaded unless it was the last one."""
        key = (
            str(found.path), fingerprint(found), spec.device, spec.dtype, spec.vae_dtype, spec.precision, spec.memory,
        )  # fmt: skip
        if spec.attention != self._attention:
            torch.compiler.reset()  # compiled blocks keep the kernel that they were first called with
            self._attention, self.warm = spec.attention, set()
        if key != self._key:
            self._model = None  # let go of the old one first, two may not fit; its modules refer to each other
            gc.collect()
        if spec.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(spec.device)  # of this run, without the model before
        if self._model is None:
            self._model = models.load(
                found,
                spec.device,
                models.DTYPES[spec.dtype],
                models.DTYPES[spec.vae_dtype],
                precision=spec.precision,
                memory=spec.memory,
            )
            self._key, self.warm = key, set()
        return self._model


def execute(
    spec: RunSpec,
    out: str | os.PathLike[str],
    *,
    progress: Callable[[Progress], None] = lambda _: None,
    loaded: Models | None = None,
    force: bool = False,
    gif: bool = False,
) -> Path:
    """Run `spec` into the run file `out` (and `out`'s .mp4, and .gif), going on with what an earlier run left there.

    loaded keeps the model for the next run
    force  compute again what is already complete, and discard another unfinished run in its place

    A run that is complete, of the same weights and with all that is to be recorded, is left as it is. Raises
    UsageError for what cannot be done (a finished run of another spec is in its place, say), before anything is
    loaded, and WanlabError.
    """
    out = Path(out)
    check_output(out)
    found = models.describe(spec.model, spec.revision)
    asked, spec = spec, resolve(spec, found)
    full_plan = make_full_plan(spec, found)
    if not force and out.exists() and _is_done(out, spec, fingerprint(found)):
        _write_videos(out, None, gif, found.fps)
        return out
    timing: dict[str, float] = {}
    with _out_of_memory(spec):
        progress(Progress(phase="load", total=spec.steps))
        loaded = loaded or Models()
        with _timed(timing, "load"):
            model = loaded.load(spec, found)
        out.parent.mkdir(parents=True, exist_ok=True)
        return _run(spec, asked, out, model, loaded.warm, full_plan, timing, progress, force, gif)


def _run(
    spec: RunSpec,
    asked: RunSpec,
    out: Path,
    model: Model,
    warm: set[tuple[Any, ...]],
    full_plan: Plan,
    timing: dict[str, float],
    progress: Callable[[Progress], None],
    force: bool,
    gif: bool,
) -> Path:
    device = model.device

    def peak() -> int:
        return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0

    solver = Solver(spec.solver, spec.schedule, spec.steps, float(spec.shift or 0), model.checkpoint.scheduler, device)
    env = make_env(spec, model.checkpoint, solver)
    sessions = policies.begin(spec.policies, env)
    watching = observers.begin(spec.record, env.total)
    fields = [f for o in watching for f in o.fields]

    progress(Progress(phase="encode", total=spec.steps))
    with _timed(timing, "encode"):
        needed = {b for row in full_plan.rows for b in row.branches} | (set(BOTH) if spec.record.probe else set())
        texts = {COND: spec.prompt, UNCOND: spec.negative_prompt}
        embeds = {b: model.encode(texts[b]) for b in BOTH if b in needed}
        given = {b: model.tokens_in(texts[b]) for b in embeds}
    denoiser = Denoiser(model, embeds, spec.attention)

    x = initial_noise(spec.seed, env, device)
    for session in sessions:
        x = session.initial(x)

    identity = {"record": dataclasses.asdict(spec.record), "weights": fingerprint(model.checkpoint)}
    start, x0_pred = 0, None
    if not force and (left := RunWriter.resume_point(out, spec.digest(), fields)) is not None:
        saved = unpack(left[1], device)
        if saved.pop("identity", None) == identity:
            start, x, x0_pred = left[0], saved.pop("x"), saved.pop("x0_pred")
            restore(saved, solver, sessions, watching)

    attrs = _attrs(spec, asked, model, embeds, given)
    with RunWriter(
        out, spec_json=spec.to_json(), digest=spec.digest(), attrs=attrs, fields=fields, start=start, force=force
    ) as writer:
        progress(Progress(phase="warm-up", total=env.total))
        with _timed(timing, "warm-up"):
            _warm_up(denoiser, full_plan, env, start, device, warm)
        progress(Progress(phase="sample", step=start, total=env.total, memory=peak()))
        began = time.perf_counter()
        steps = denoise(
            x, env, solver, denoiser, sessions, start=start, x0_pred=x0_pred, batched=spec.batch_cfg,
            probe=spec.record.probe, both_experts=spec.record.other_expert,
        )  # fmt: skip
        for record in steps:
            values: dict[str, Any] = {}
            for observer in watching:
                values |= observer.observe(record)
            x, x0_pred = record.x_next, record.x0_pred
            state = save(solver, sessions, watching) | {"x": x, "x0_pred": x0_pred, "identity": identity}
            writer.step(record.ctx.index, values, pack(state))
            name = f"sample {record.ctx.expert}"
            timing[name] = timing.get(name, 0.0) + record.seconds - record.switching
            if record.ctx.index == env.switch or record.plan.lift is not None:
                timing["switch"] = timing.get("switch", 0.0) + record.switching
            done = record.ctx.index + 1
            progress(
                Progress(
                    phase="sample",
                    step=done,
                    total=env.total,
                    seconds=record.seconds,
                    memory=peak(),
                    durable=writer.durable,
                )
            )
        sampling = time.perf_counter() - began
        steps_took = sum(v for k, v in timing.items() if k == "switch" or k.startswith("sample "))
        timing["recording"] = sampling - steps_took

        at_once = full_plan.decoded_at_once if device.type == "cuda" else None
        progress(Progress(phase="decode", step=env.total, total=env.total, memory=peak()))
        with _timed(timing, "decode"):
            frames = decode(model, x, at_once)
        if not np.isfinite(frames).all():
            raise WanlabError("the video has values that are no numbers", "use --dtype or --vae-dtype float32")
        progress(Progress(phase="write", step=env.total, total=env.total, memory=peak()))
        pixels = (frames * 255).round().astype(np.uint8)
        with _timed(timing, "write"):
            _write_videos(out, pixels, gif, model.checkpoint.fps)
        final: dict[Field, Any] = {LATENT: x[0].float().cpu().numpy(), VIDEO: pixels}
        if spec.record.video == "float32":
            final[VIDEO_FLOAT] = frames
        return writer.finish(
            final,
            {
                "timing_seconds": {k: round(v, 6) for k, v in timing.items()},
                "resumed_from_step": start,
                "peak_memory_bytes": peak(),
                "predicted": full_plan.totals(),
            },
        )


def initial_noise(seed: int, env: Env, device: torch.device) -> Tensor:
    """Full-length noise [1,C,F,H,W] float32: the first draw of one CPU generator, so the same on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((1, *env.shape), generator=generator, dtype=torch.float32).to(device)


def decode(model: Model, latents: Tensor, at_once: int | None = None) -> np.ndarray:
    """Frames [T,H,W,3] float32 in [0,1] of latents [1,C,F,H,W], at most `at_once` latent frames at a time."""
    video = vae.decode(model.ready("vae"), latents, at_once)[0]
    frames: np.ndarray = (video.float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0).contiguous().cpu().numpy()
    return frames


# --- interrupting and going on ---------------------------------------------------------------------------------------


def save(solver: Solver, sessions: Sequence[Session], watching: Sequence[Observer]) -> State:
    """The states of all that carries anything from step to step, under flat names."""
    parts = {"solver": solver, **_numbered("session", sessions), **_numbered("observer", watching)}
    return {f"{name}/{key}": value for name, part in parts.items() for key, value in part.state().items()}


def restore(saved: State, solver: Solver, sessions: Sequence[Session], watching: Sequence[Observer]) -> None:
    """Give back what `save` took."""
    parts = {"solver": solver, **_numbered("session", sessions), **_numbered("observer", watching)}
    for name, part in parts.items():
        own = {k.partition("/")[2]: v for k, v in saved.items() if k.partition("/")[0] == name}
        if own:
            part.restore(own)


def _numbered(kind: str, parts: Sequence[Any]) -> dict[str, Any]:
    return {f"{kind}{i}": part for i, part in enumerate(parts)}


def pack(state: State) -> dict[str, Any]:
    """Tensors as numpy arrays of their bytes (numpy knows no bfloat16), with dtypes and shapes beside them."""
    packed: dict[str, Any] = {}
    kinds: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            kinds[name] = [str(value.dtype).removeprefix("torch."), list(value.shape), value.device.type]
            packed[name] = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        else:
            packed[name] = value
    return {**packed, "tensors": kinds}


def unpack(packed: dict[str, Any], device: torch.device) -> State:
    """What `pack` was given, tensors where they were."""
    state = dict(packed)
    for name, (dtype, shape, place) in state.pop("tensors").items():
        flat = torch.from_numpy(np.array(state[name])).view(getattr(torch, dtype)).reshape(shape)
        state[name] = flat if place == "cpu" else flat.to(device)
    return state


def fingerprint(found: Checkpoint) -> str:
    """Changes when a checkpoint's weights are others: of each file its name, size, header and 16 blocks spread over it."""
    digest = hashlib.sha256(found.revision.encode())
    for path in sorted(p for p in found.path.rglob("*") if p.suffix in (".safetensors", ".pth")):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(found.path)} {size} ".encode())
        with open(path, "rb") as file:
            for place in (0, *(size * k // 16 for k in range(1, 16)), max(0, size - 4096)):
                file.seek(place)
                digest.update(file.read(4096 if place else 65536))
    return digest.hexdigest()


def _is_done(out: Path, spec: RunSpec, weights: str) -> bool:
    """Whether `out` is this run, finished, with at least what is to be recorded. Raises UsageError for another run."""
    with Run(out) as run:
        if run.digest != spec.digest():
            there, now = run.spec.to_dict(), spec.to_dict()
            differ = [
                f"{name} {there.get(name)!r} there, {now[name]!r} now"
                for name in now
                if name not in ("record", "memory") and there.get(name) != now[name]
            ]
            raise UsageError(
                f"{out} is a finished run of another specification ({'; '.join(differ)[:300]})",
                "name another --out, or use --force",
            )
        same = run.status == "complete" and run.attrs.get("weights_fingerprint") == weights
        return same and run.spec.record.covers(spec.record)


# --- files, timing, memory -------------------------------------------------------------------------------------------


def check_output(out: Path) -> None:
    """Raise UsageError unless the run file can be written there."""
    if out.suffix != ".h5":
        raise UsageError(f"the run file {out} does not end in .h5", f"use {out.name}.h5")
    if out.is_dir():
        raise UsageError(f"{out} is a directory", "name a file in it")
    there = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    if there != out.absolute() and not there.is_dir():
        raise UsageError(f"cannot write to {out.parent}: {there} is a file", "choose another --out")
    if not os.access(there, os.W_OK if there.is_file() else os.W_OK | os.X_OK):
        raise UsageError(f"cannot write to {there}", "choose another --out")


def _write_videos(out: Path, pixels: np.ndarray | None, gif: bool, fps: int) -> None:
    """The .mp4 (and .gif) beside the run file; without pixels, those of a finished run that are not there."""
    wanted = [(out.with_suffix(".mp4"), write_mp4)] + ([(out.with_suffix(".gif"), write_gif)] if gif else [])
    if pixels is None:
        wanted = [(path, write) for path, write in wanted if not path.exists()]
        if not wanted:
            return
        with Run(out) as run:
            pixels = np.asarray(run["video"][...])
    for path, write in wanted:
        write(path, pixels, fps)


def _attrs(
    spec: RunSpec, asked: RunSpec, model: Model, embeds: dict[str, Tensor], given: dict[str, int]
) -> dict[str, Any]:
    packages = ("wanlab", "torch", "diffusers", "transformers", "fa3-fwd", "ftfy", "numpy", "h5py")
    versions = {}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    device = platform.processor() or platform.machine()
    if model.device.type == "cuda":
        device = torch.cuda.get_device_name(model.device)
    defaults = {f.name: f.default for f in dataclasses.fields(RunSpec)}
    named = {n: v for n, v in asked.to_dict().items() if n in defaults and getattr(asked, n) != getattr(spec, n)}
    return {
        "versions": versions,
        "defaulted": [n for n, default in defaults.items() if getattr(asked, n) == default],
        "asked": named,  # what was left to be found out, as it was asked: device, dtypes, shift
        "python": platform.python_version(),
        "device_name": device,
        "process": PROCESS,
        "threads": torch.get_num_threads(),
        "weights_fingerprint": fingerprint(model.checkpoint),
        "prompt_embeds_sha256": {
            branch: hashlib.sha256(e.float().cpu().numpy().tobytes()).hexdigest() for branch, e in embeds.items()
        },
        "prompt_tokens": given,
        "scheduler": {k: v for k, v in model.checkpoint.scheduler.items() if isinstance(v, str | int | float | bool)},
        "boundary": model.checkpoint.boundary if model.checkpoint.boundary is not None else "none",
        "fps": model.checkpoint.fps,
        "layout": model.checkpoint.layout,
        "shift": float(spec.shift or 0),
    }


@torch.no_grad()
def _warm_up(
    denoiser: Denoiser, full_plan: Plan, env: Env, start: int, device: torch.device, warm: set[tuple[Any, ...]]
) -> None:
    """A forward of each expert, length and batch to come that has not run before, so that no step's time holds
    one-off work. Where experts take turns on the device the first one's serves for both, which are built alike."""
    turns = full_plan.spec.memory not in ("auto", "resident")
    for ctx, row in zip(env.steps[start:], full_plan.rows[start:], strict=True):
        group = row.branches if full_plan.spec.batch_cfg else row.branches[:1]
        shape = (1, env.shape[0], row.frames, *env.shape[2:])
        key = ("" if turns else ctx.expert, len(group), shape, full_plan.spec.attention)
        if key not in warm:
            warm.add(key)
            denoiser(Call(ctx=ctx, branches=group, x=torch.zeros(shape, device=device)))


@contextmanager
def _timed(timing: dict[str, float], phase: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    timing[phase] = time.perf_counter() - began


@contextmanager
def _out_of_memory(spec: RunSpec) -> Iterator[None]:
    """The plan to try next, when that of a resolved spec was too much for the device."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        smaller = MEMORY_PLANS[MEMORY_PLANS.index(spec.memory) + 1 :]
        try_next = f"--memory {smaller[0]}, or " if smaller else ""
        if smaller and smaller[0] == "offload" and spec.precision != "reference":
            try_next = "--memory offload --precision reference --attention auto, or "
        raise WanlabError(
            f"out of memory on the device, with the weights under plan {spec.memory}",
            f"use {try_next}fewer frames, a smaller size, or --dtype bfloat16",
        ) from error
