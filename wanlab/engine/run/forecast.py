"""What a run is going to do and cost, from configurations only: `--dry-run`, and the checks before anything loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from wanlab.engine import observers, policies
from wanlab.engine.loop import make_plan, tokens
from wanlab.engine.model import loading as models
from wanlab.engine.model import vae as wan_vae
from wanlab.engine.model.loading import TEXT_TOKENS, Checkpoint
from wanlab.engine.observers.latents import OTHER_EXPERT
from wanlab.engine.solvers import Solver, step_contexts
from wanlab.engine.types import BOTH, Env, StepContext, StepPlan
from wanlab.spec import RunSpec

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
DECODING = 2**29


@dataclass(frozen=True, kw_only=True)
class Row:
    """One step of the plan."""

    step: int
    """From 0."""
    timestep: float
    sigma: float
    expert: str
    branches: tuple[str, ...]
    guidance: float
    frames: int
    """Latent frames."""
    tokens: int
    """Transformer tokens of one pass."""
    passes: int
    flops: float
    """Floating-point operations of the step."""
    lift: bool
    """Whether frames are completed before the step."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run's schedule and what it is predicted to cost."""

    spec: RunSpec
    """With device, dtypes and shift named."""
    model_path: str
    boundary: float | None
    shape: tuple[int, int, int, int]
    """C, F, H, W of the latents."""
    rows: tuple[Row, ...]
    passes: int
    plain_passes: int
    """Without policies."""
    flops: float
    plain_flops: float
    parameters: Mapping[str, int]
    """By component."""
    memory_bytes: Mapping[str, int]
    """By component, weights in their dtypes; and estimates of the transformers' "activations" and of "decoding" one
    latent frame."""
    memory_plans: Mapping[str, int]
    """The predicted peak on the device under each plan of placement.py."""
    disk_bytes: int
    """The run file's arrays before compression."""

    @property
    def speedup(self) -> float:
        """Predicted speed-up of the sampling loop over the same run without policies: the ratio of operations."""
        return self.plain_flops / self.flops

    @property
    def decoded_at_once(self) -> int:
        """How many latent frames a GPU decodes together."""
        return decoded_at_once(self.memory_bytes)

    def totals(self) -> dict[str, Any]:
        """The figures that the run is compared with afterwards."""
        return {
            "passes": self.passes, "plain_passes": self.plain_passes, "flops": self.flops,
            "plain_flops": self.plain_flops, "speedup": self.speedup,
            "tokens": sum(r.passes * r.tokens for r in self.rows), "flops_by_step": [r.flops for r in self.rows],
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = {k: v for k, v in asdict(self).items() if k != "spec"}
        return plain | {"spec": self.spec.to_dict(), "speedup": self.speedup, "parameters": dict(self.parameters)}


def make_env(spec: RunSpec, found: Checkpoint, solver: Solver) -> Env:
    """The run's schedule, guidance by expert and full-length latent shape. Raises UsageError for a size that the
    model cannot make."""
    low, high = spec.guidance
    return Env(
        steps=step_contexts(solver, found.boundary, models.TRAIN_TIMESTEPS),
        guidance={"low": low, "high": high, "single": low},
        shape=found.latent_shape(spec.frames, spec.width, spec.height),
    )


def plan(spec: RunSpec, found: Checkpoint) -> Plan:
    """The plan of a resolved spec. Raises UsageError where the run would: policies that do not fit, sizes, schedule."""
    solver = Solver(
        spec.solver, spec.schedule, spec.steps, float(spec.shift or 0), found.scheduler, torch.device("cpu")
    )
    env = make_env(spec, found, solver)
    sessions = policies.begin(spec.policies, env)
    rows, plain_rows = [], []
    for ctx in env.steps:
        rows.append(_row(make_plan(env, sessions, ctx), ctx, env, found))
        plain_rows.append(_row(make_plan(env, (), ctx), ctx, env, found))
    counted = models.parameters(found)
    held = _memory(spec, found, env, counted)
    return Plan(
        spec=spec, model_path=str(found.path), boundary=found.boundary, shape=env.shape, rows=tuple(rows),
        passes=sum(r.passes for r in rows), plain_passes=sum(r.passes for r in plain_rows),
        flops=sum(r.flops for r in rows), plain_flops=sum(r.flops for r in plain_rows), parameters=counted,
        memory_bytes=held, memory_plans=_peaks(held, found, env.shape[1]), disk_bytes=_disk(spec, env),
    )  # fmt: skip


def _row(made: StepPlan, ctx: StepContext, env: Env, found: Checkpoint) -> Row:
    n = tokens((made.frames, *env.shape[2:]))
    config = found.configs[found.experts[ctx.expert]]
    passes = len(made.branches)
    return Row(
        step=ctx.index, timestep=ctx.timestep, sigma=ctx.sigma, expert=ctx.expert, branches=made.branches,
        guidance=made.guidance, frames=made.frames, tokens=n, passes=passes,
        flops=passes * flops(config, n, per_token=found.expand_timesteps),
        lift=made.lift is not None,
    )  # fmt: skip


def flops(config: Mapping[str, Any], n: int, text: int = TEXT_TOKENS, *, per_token: bool = False) -> float:
    """Floating-point operations of one pass of n tokens (a multiply-add is two), matrix products only.

    With width D, feed-forward width M and L text tokens, a block costs 8nD² for self-attention's four projections,
    4n²D for its two products, 4nD² and 4LD² for cross-attention's projections, 4nLD for its products and 4nDM for
    the feed-forward; around the blocks 2nDP in and out (P = patch values) and 2LD(T + D) for the text. A timestep
    for each token (TI2V) costs 2nD(E + 7D), E being the width of its sinusoids; one for the sample costs nothing.
    """
    width = int(config.get("num_attention_heads") or 40) * int(config.get("attention_head_dim") or 128)
    inner, layers = int(config.get("ffn_dim") or 13824), int(config.get("num_layers") or 40)
    text_width = int(config.get("text_dim") or 4096)
    channels = int(config.get("in_channels") or 16), int(config.get("out_channels") or 16)
    block = 12 * n * width**2 + 4 * n**2 * width + 4 * text * width**2 + 4 * n * text * width + 4 * n * width * inner
    around = 2 * n * width * 4 * sum(channels) + 2 * text * width * (text_width + width)
    if per_token:
        around += 2 * n * width * (int(config.get("freq_dim") or 256) + 7 * width)
    return float(layers * block + around)


def _memory(spec: RunSpec, found: Checkpoint, env: Env, counted: Mapping[str, int]) -> dict[str, int]:
    main, vae = BYTES[spec.dtype], BYTES[spec.vae_dtype]
    held = {name: n * (vae if name == "vae" else main) for name, n in counted.items()}
    config = found.configs["transformer"]
    width = int(config.get("num_attention_heads") or 40) * int(config.get("attention_head_dim") or 128)
    inner = int(config.get("ffn_dim") or 13824)
    if spec.precision == "fp8":  # the products of fast.products
        eighths = int(config.get("num_layers") or 40) * (6 * width**2 + 2 * width * inner)
        for component in found.experts.values():
            held[component] -= (main - 1) * eighths
    batch = len(BOTH) if spec.batch_cfg else 1
    # Alive at once in a block: the residual stream, two float32 copies of it (norm and modulation), and either
    # query, key, value and output, or the feed-forward's inner values.
    per_token = width * main + 2 * width * 4 + max(4 * width, inner + width) * main
    if found.expand_timesteps:  # six modulations of every token, as they are and in float32
        per_token += 6 * width * (main + 4)
    *_, height, columns = env.shape
    return held | {
        "activations": batch * tokens(env.shape[1:]) * per_token,
        # Where the decoder is widest: a block's input, its norm, a convolution's result, the cache, and three times as
        # much for cuDNN's workspaces (measured: benchmarks/a14b.md).
        "decoding": 16 * vae * wan_vae.widest(found.configs["vae"], height, columns),
    }


def decoded_at_once(held: Mapping[str, int]) -> int:
    """The more latent frames are decoded together, the faster; so many that it takes no more memory than sampling did,
    or DECODING more than one frame does."""
    decoding = held["decoding"]
    return max(1, max(held["activations"], decoding + DECODING) // decoding)


def _peaks(held: Mapping[str, int], found: Checkpoint, frames: int) -> dict[str, int]:
    """Bytes on the device at most, by plan."""
    experts = {component: held[component] for component in found.experts.values()}
    working, decoding = held["activations"], min(decoded_at_once(held), frames) * held["decoding"]
    blocks = max(size / int(found.configs[c].get("num_layers") or 40) for c, size in experts.items())
    weights = held["text_encoder"] + held["vae"] + sum(experts.values())
    alone = max(held["text_encoder"], held["vae"] + decoding)
    return {
        "resident": weights + max(working, decoding),
        "swap": max(alone, max(experts.values()) + working),
        "offload": max(alone, int(3 * blocks) + working),
    }


def _disk(spec: RunSpec, env: Env) -> int:
    channels, frames, height, width = env.shape
    values = channels * frames * height * width
    total = 4 * values + 3 * spec.frames * spec.height * spec.width
    if spec.record.video == "float32":
        total += 12 * spec.frames * spec.height * spec.width
    for observer in observers.begin(spec.record, env.total):
        for f in observer.fields:
            steps = env.total if not f.dims else len({*range(0, env.total, spec.record.every), env.total - 1})
            if f.name == OTHER_EXPERT:
                steps = 2 if env.switch is not None else 0
            total += steps * f.stored.itemsize * (values if f.dims else 1)
    return total
