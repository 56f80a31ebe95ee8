"""From a RunSpec to a run file: check, load, encode, sample, decode, write, and go on where a run was interrupted."""

from __future__ import annotations

import dataclasses
import functools
import gc
import hashlib
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wanlab.embedded import world_version
from wanlab.engine import observers, policies
from wanlab.engine.loop import Prober, denoise
from wanlab.engine.model import loading, vae
from wanlab.engine.model.fingerprint import fingerprint
from wanlab.engine.model.loading import Checkpoint, Model, fetched
from wanlab.engine.model.transformer import Denoiser
from wanlab.engine.ranks import JobError, Ranks, choice, here
from wanlab.engine.ranks.branches import Branches
from wanlab.engine.ranks.columns import Columns
from wanlab.engine.run.forecast import Forecast, forecast, make_env
from wanlab.engine.run.resolve import resolve
from wanlab.engine.run.resume import is_done, own_threads, pack, restore, save, size, unpack
from wanlab.engine.run.warm_up import warm_up
from wanlab.engine.solvers import Solver
from wanlab.engine.types import BOTH, COND, UNCOND, Env, StepRecord
from wanlab.errors import UsageError, WanlabError
from wanlab.registry import build
from wanlab.runfile import Field, Run, RunWriter, remove_leftovers
from wanlab.spec import MEMORY_PLANS, RunSpec
from wanlab.spec.parallel import NONE, Layout
from wanlab.video import check_encoder, write_gif, write_mp4

LARGE = 2**26  # bytes of a state to resume from; without caches that of the A14B is 26 MB
PROCESS = uuid.uuid4().hex  # runs of one process can be timed against each other
LATENT = Field(
    "latent", ("channel", "latent_frame", "latent_height", "latent_width"), "float32", "1", "final latents, normalised"
)
VIDEO = Field("video", ("frame", "height", "width", "rgb"), "uint8", "1", "the frames, 0 to 255")
VIDEO_FLOAT = Field("video_float", VIDEO.dims, "float32", "1", "the frames before rounding, 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is. `phase`: kept (a finished run is taken as it is), load, encode, warm-up, resume (at `step`),
    sample, decode, write."""

    phase: str
    step: int = 0
    """Finished steps, in phases "resume" and "sample"."""
    total: int = 0
    seconds: float = 0.0
    """Time of the last step, in phase "sample"."""
    memory: int = 0
    """Peak bytes on the GPU so far, 0 on the CPU."""
    durable: int = 0
    """Steps that are safely on the disk: an interrupted run goes on after these."""
    notice: str = ""
    """Something that the user should know, in a sentence."""


Watcher = Callable[[Progress], None]


class Models:
    """The model loaded last, kept for the runs that follow with the same one."""

    def __init__(self) -> None:
        self._key: tuple[str, ...] = ()
        self._model: Model | None = None
        self._attention: tuple[str, bool] = ("", False)
        self.warm: set[tuple[Any, ...]] = set()
        """Expert, batch and shape of the forwards that have run once."""

    def load(self, spec: RunSpec, checkpoint: Checkpoint, *, keeps_keys: bool = False) -> Model:
        """The model of a resolved spec, loaded unless it was the last one."""
        checkpoint = fetched(checkpoint)
        key = (
            str(checkpoint.path),
            fingerprint(checkpoint),
            spec.device,
            spec.dtype,
            spec.vae_dtype,
            spec.precision,
            spec.memory,
        )
        if (spec.attention, keeps_keys) != self._attention:
            loading.recompile(self._model)  # compiled blocks keep the kernel that they were first called with
            self._attention, self.warm = (spec.attention, keeps_keys), set()
        if key != self._key:
            self._model = None  # let go of the old one first, two may not fit; its modules refer to each other
            gc.collect()
        elif self._model is not None and self._model.graphs is not None and self._model.graphs.full:
            self._model.graphs.forget()
            self.warm = set()  # they are recorded again before a step is timed
        if spec.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(spec.device)  # of this run, without the model before
        if self._model is None:
            dtype, vae_dtype = loading.DTYPES[spec.dtype], loading.DTYPES[spec.vae_dtype]
            self._model = loading.load(
                checkpoint, spec.device, dtype, vae_dtype, precision=spec.precision, memory=spec.memory
            )
            self._key, self.warm = key, set()
        return self._model


def execute(
    spec: RunSpec,
    out: str | os.PathLike[str],
    *,
    progress: Watcher = lambda _: None,
    loaded: Models | None = None,
    force: bool = False,
    gif: bool = False,
) -> Path:
    """Run `spec` into the run file `out` (and `out`'s .mp4, and .gif), going on with what an earlier run left there.

    loaded keeps the model for the next run
    force  compute again what is already complete, and discard another unfinished run in its place

    A run that is complete, of the same weights and with all that is to be recorded, is left as it is. Raises
    UsageError for what cannot be done (a finished run of another spec is in its place, say), before anything is
    loaded, and WanlabError. The run file is there before films are tried.
    """
    out = Path(out)
    check_output(out)
    checkpoint = loading.describe(spec.model, spec.revision)
    asked, spec = spec, resolve(spec, checkpoint)
    expected = forecast(spec, checkpoint)
    pixels = None
    if not force and out.exists() and is_done(out, spec, fingerprint(fetched(checkpoint))):
        remove_leftovers(out)
        progress(Progress(phase="kept", step=spec.steps, total=spec.steps))
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        run = Running(spec=spec, asked=asked, out=out, forecast=expected, progress=progress, force=force)
        with _out_of_memory(spec), own_threads(), run.ordered():
            with run.in_step():
                run.load(checkpoint, loaded or Models())
            run.begin()
            with run.in_step():
                run.encode()
            pixels = run.sample()
    _write_videos(out, gif, checkpoint.fps, pixels)
    return out


@dataclass
class Running:
    """A run from loading to the published file."""

    spec: RunSpec
    asked: RunSpec
    out: Path
    forecast: Forecast
    progress: Watcher
    force: bool
    timing: dict[str, float] = field(default_factory=dict)
    ranks: Ranks = field(default_factory=here)
    saved: float = 0.0
    """When the state to resume from was taken last, and the seconds that a byte of it took."""
    saving: float = 1e-9

    @property
    def together(self) -> bool:
        """Whether the other ranks share this run."""
        return self.spec.parallel != NONE

    def in_step(self) -> AbstractContextManager[None]:
        """What is inside, all ranks of the run do together."""
        return self.ranks.in_step() if self.together else nullcontext()

    @contextmanager
    def ordered(self) -> Iterator[None]:
        """The other ranks take part in this run while inside."""
        if not self.together:
            yield
            return
        self.ranks.tell("run", self.spec.to_json())
        try:
            yield
        except Exception:
            if not self.ranks.out_of_step:
                self.ranks.tell("done")
            raise
        self.ranks.tell("done")

    def load(self, checkpoint: Checkpoint, models: Models) -> None:
        """The model, and the parts that make a run."""
        spec = self.spec
        self.progress(Progress(phase="load", total=spec.steps))
        with _timed(self.timing, "load"):
            self.model = models.load(spec, checkpoint, keeps_keys="keys" in self.forecast.memory_bytes)
        self.device = self.model.device
        self.solver = Solver(
            spec.solver, spec.schedule, spec.steps, float(spec.shift or 0), checkpoint.scheduler, self.device
        )
        self.env = make_env(spec, self.model.checkpoint, self.solver)
        self.sessions = policies.begin(spec.policies, self.env)
        self.layout = Layout.parse(spec.parallel)
        self.shared = Branches(self.ranks, self.layout, wide=choice.wide(spec, self.sessions))
        self.observers = observers.begin(spec, self.env.total, self.sessions)
        self.fields = [f for o in self.observers for f in o.fields]
        self.warm = models.warm

    def begin(self) -> None:
        """Find what an earlier run left to go on from: with as many threads as it had, since sums on the CPU differ in
        their last bits with their number."""
        fingerprinted = fingerprint(self.model.checkpoint)
        self.identity = {"record": dataclasses.asdict(self.spec.record), "weights": fingerprinted}
        left = None if self.force else RunWriter.resume_point(self.out, self.spec.digest(), self.fields)
        start, state = left if left is not None and left[1].get("identity") == self.identity else (0, {})
        self.start, self.left = start, state or None
        self.layouts = [*state.get("layouts", []), [start, self.spec.parallel]]
        torch.set_num_threads(state.get("threads", torch.get_num_threads()))

    def encode(self) -> None:
        """The prompt's embeddings."""
        spec = self.spec
        self.progress(Progress(phase="encode", total=spec.steps))
        with _timed(self.timing, "encode"):
            needed = {b for row in self.forecast.rows for b in row.branches} | set(BOTH if spec.record.probe else ())
            texts = {COND: spec.prompt, UNCOND: spec.negative_prompt}
            self.embeds = {b: self.model.encode(texts[b]) for b in BOTH if b in needed}
            self.prompt_tokens = {b: self.model.tokens_in(texts[b]) for b in self.embeds}
        for branch, count in self.prompt_tokens.items():
            if count > loading.TEXT_TOKENS:
                what = "the prompt" if branch == COND else "the negative prompt"
                cut = f"{what} has {count} tokens, and the model reads the first {loading.TEXT_TOKENS}"
                self.progress(Progress(phase="encode", total=spec.steps, notice=cut))
        self.ranks.form(self.layout)
        splits = self.ranks.splits(self.layout)
        keeps_keys = "keys" in self.forecast.memory_bytes
        self.network = Denoiser(self.model, self.embeds, spec.attention, keeps_keys=keeps_keys, splits=splits)

    def sample(self) -> np.ndarray:
        """Every step that is still to do, then the video, then the file. Returns the frames [T,H,W,3] uint8."""
        spec, env, start = self.spec, self.env, self.start
        with RunWriter(
            self.out,
            spec_json=spec.to_json(),
            digest=spec.digest(),
            attrs=self._attrs(),
            fields=self.fields,
            start=start,
            force=self.force,
        ) as writer:
            self.progress(Progress(phase="warm-up", total=env.total))
            if self.together:
                self.ranks.tell("sample", (start, self.left, self.warm))
            x, steps = self.steps(start, self.left)
            if start:
                self._tell("resume", start)
            self._tell("sample", start)
            self.saved = began = time.perf_counter()
            for record in steps:
                self._record(writer, record)
                x = record.x_next
            sampled = sum(v for k, v in self.timing.items() if k == "switch" or k.startswith("sample "))
            self.timing["recording"] = time.perf_counter() - began - sampled
            return self._conclude(writer, x, start)

    def steps(self, start: int, left: dict[str, Any] | None) -> tuple[Tensor, Iterator[StepRecord]]:
        """(the latents that step `start` begins with, its record and those of the steps after it): what every rank of
        a run does, with the same result."""
        spec, env, x0_pred = self.spec, self.env, None
        x = initial_noise(spec.seed, env, self.device)
        for session in self.sessions:
            x = session.initial(x)
        if left is not None:
            saved = unpack(left, self.device)
            x, x0_pred = saved.pop("x"), saved.pop("x0_pred")
            restore(saved, self.solver, self.sessions, self.observers)
        prober = Prober(
            self.network, env, branches=spec.record.probe, experts=spec.record.other_expert, shared=self.shared
        )
        with _timed(self.timing, "warm-up"), self.in_step():
            warm_up(self.network, self.forecast, env, start, self.device, self.warm, self.shared, self.sessions)
            if self.together:  # the first step's time holds nobody's warm-up
                self.ranks.meet()
        records = denoise(
            x,
            env,
            self.solver,
            self.network,
            self.sessions,
            build("guider", spec.guider),
            start=start,
            x0_pred=x0_pred,
            batched=spec.batch_cfg,
            shared=self.shared,
        )
        return x, self.ranks.in_lockstep(map(prober, records)) if self.together else map(prober, records)

    def _record(self, writer: RunWriter, record: StepRecord) -> None:
        """Hand a finished step over, with what the next one needs. Raises WanlabError, the step not being kept, where
        the latents are no numbers."""
        step = record.ctx.index
        if not bool(torch.isfinite(record.x_next).all()):
            raise WanlabError(
                f"step {step + 1}: the latents are no numbers any more (NaN or infinite)",
                "use --dtype float32 or --precision reference, or other knobs of the policy",
            )
        values: dict[str, Any] = {}
        for observer in self.observers:
            values |= observer.observe(record)
        began = time.perf_counter()
        state = self._resume_state(record, began)
        writer.step(step, values, state)
        ran, name = record.ran, f"sample {record.ctx.expert}"
        self.timing[name] = self.timing.get(name, 0.0) + ran.seconds - ran.switching
        if step == self.env.switch or record.plan.jump is not None:
            self.timing["switch"] = self.timing.get("switch", 0.0) + ran.switching
        self._tell("sample", step + 1, seconds=ran.seconds, durable=writer.durable)

    def _resume_state(self, record: StepRecord, now: float) -> dict[str, Any] | None:
        """What the next step needs, after every step; after some of them where caches inside the blocks make it so
        large that it would slow the run down: then it takes a twentieth of the time, and an interrupted run does the
        steps since the last one again."""
        state = save(self.solver, self.sessions, self.observers)
        state |= {"x": record.x_next, "x0_pred": record.x0_pred, "identity": self.identity}
        state |= {"layouts": self.layouts, "threads": torch.get_num_threads()}
        amount = size(state)
        if amount > LARGE and now - self.saved < 20 * amount * self.saving:
            return None
        packed = pack(state)
        self.saved = time.perf_counter()
        self.saving = max(1e-9, (self.saved - now) / amount)
        return packed

    def _conclude(self, writer: RunWriter, x: Tensor, start: int) -> np.ndarray:
        """Decode the latents and publish the file. Returns the frames."""
        for session in self.sessions:
            session.restore({})  # what is remembered may take as much room as decoding needs
        self._tell("decode", self.env.total)
        if choice.rounds(self.spec):
            self.ranks.tell("decode")
        with _timed(self.timing, "decode"):
            frames = self.decode(x)
        self._tell("write", self.env.total)
        pixels = (frames * 255).round().astype(np.uint8)
        final: dict[Field, Any] = {LATENT: x[0].float().cpu().numpy(), VIDEO: pixels}
        if self.spec.record.video == "float32":
            final[VIDEO_FLOAT] = frames
        writer.finish(
            final,
            {
                "timing_seconds": {k: round(v, 6) for k, v in self.timing.items()},
                "resumed_from_step": start,
                "peak_memory_bytes": self._peak(),
                "predicted": self.forecast.totals(),
            },
        )
        return pixels

    def decode(self, x: Tensor) -> np.ndarray:
        """The frames of final latents. Where ranks may share the work, all call this, and each decodes some columns."""
        at_once = self.forecast.decoded_at_once if self.device.type == "cuda" else None
        columns = Columns() if choice.rounds(self.spec) and x.shape[-1] >= self.layout.ranks else None
        with self.in_step():
            return decode(self.model, x, at_once, columns)

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0

    def _tell(self, phase: str, step: int, seconds: float = 0.0, durable: int = 0) -> None:
        total, memory = self.env.total, self._peak()
        self.progress(Progress(phase=phase, step=step, total=total, seconds=seconds, memory=memory, durable=durable))

    def _attrs(self) -> dict[str, Any]:
        """What the file says of how the run was made."""
        asked, spec, checkpoint = self.asked, self.spec, self.model.checkpoint
        device = platform.processor() or platform.machine()
        if self.device.type == "cuda":
            device = torch.cuda.get_device_name(self.device)
        defaults = {f.name: f.default for f in dataclasses.fields(RunSpec)}
        named = {n: v for n, v in asked.to_dict().items() if n in defaults and getattr(asked, n) != getattr(spec, n)}
        return {
            "versions": _versions(),
            "defaulted": [n for n, default in defaults.items() if getattr(asked, n) == default],
            "asked": named,  # what was left to be found out, as it was asked: device, dtypes, shift
            "python": platform.python_version(),
            "device_name": device,
            "process": PROCESS,
            "threads": torch.get_num_threads(),
            "ranks": self.layout.ranks,
            "layouts": self.layouts,  # from which step on (counted from 0) ranks shared the run, and how
            "weights_fingerprint": self.identity["weights"],
            "prompt_embeds_sha256": {
                branch: hashlib.sha256(e.float().cpu().numpy().tobytes()).hexdigest()
                for branch, e in self.embeds.items()
            },
            "prompt_tokens": self.prompt_tokens,
            "scheduler": {k: v for k, v in checkpoint.scheduler.items() if isinstance(v, str | int | float | bool)},
            "boundary": checkpoint.boundary if checkpoint.boundary is not None else "none",
            "fps": checkpoint.fps,
            "layout": checkpoint.layout,
            "world": world_version(checkpoint.path),
            "shift": float(spec.shift or 0),
        }


def initial_noise(seed: int, env: Env, device: torch.device) -> Tensor:
    """Full-length noise [1,C,F,H,W] float32: the first draw of one CPU generator, so the same on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((1, *env.shape), generator=generator, dtype=torch.float32).to(device)


def decode(model: Model, latents: Tensor, at_once: int | None = None, columns: Columns | None = None) -> np.ndarray:
    """Frames [T,H,W,3] float32 in [0,1] of latents [1,C,F,H,W], at most `at_once` latent frames at a time, shared by
    `columns`.

    Raises WanlabError where the VAE gives what is no number.
    """
    video = vae.decode(model.ready("vae"), latents, at_once, columns)[0]
    if not bool(torch.isfinite(video).all()):  # before clamping, which makes 1 of infinity
        raise WanlabError("the video has values that are no numbers", "use --vae-dtype float32")
    frames: np.ndarray = (video.float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0).contiguous().cpu().numpy()
    return frames


def check_output(out: Path) -> None:
    """Raise UsageError unless the run file can be written there, WanlabError unless its film can be encoded."""
    if out.suffix != ".h5":
        raise UsageError(f"the run file {out} does not end in .h5", f"use {out.name}.h5")
    if out.is_dir():
        raise UsageError(f"{out} is a directory", "name a file in it")
    there = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    if there != out.absolute() and not there.is_dir():
        raise UsageError(f"cannot write to {out.parent}: {there} is a file", "choose another --out")
    if not os.access(there, os.W_OK if there.is_file() else os.W_OK | os.X_OK):
        raise UsageError(f"cannot write to {there}", "choose another --out")
    check_encoder()


@functools.cache  # files that do not change are read for it
def _versions() -> dict[str, str]:
    """Of the packages that decide a result, those that are installed."""
    versions = {}
    for name in ("wanlab", "torch", "diffusers", "transformers", "fa3-fwd", "ftfy", "numpy", "h5py"):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _write_videos(out: Path, gif: bool, fps: int, pixels: np.ndarray | None) -> None:
    """The .mp4 (and .gif) beside the run file: all, of the frames [T,H,W,3] uint8 that were just made, or those that
    are not there, of the file's."""
    wanted = [(out.with_suffix(".mp4"), write_mp4)] + ([(out.with_suffix(".gif"), write_gif)] if gif else [])
    if pixels is None:
        wanted = [(path, write) for path, write in wanted if not path.exists()]
        if not wanted:
            return
        with Run(out) as run:
            pixels = np.asarray(run["video"][...])
    for path, write in wanted:
        write(path, pixels, fps)


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
        raise (JobError if here().out_of_step else WanlabError)(
            f"out of memory on the device, with the weights under plan {spec.memory}",
            f"use {try_next}fewer frames, a smaller size, or --dtype bfloat16",
        ) from error
