"""What a run is going to do and cost, from configurations only: `--dry-run`, and the checks before anything loads.

What policies decide beforehand is forecast exactly; of what they decide while they run there are bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from wanlab.engine import observers, policies
from wanlab.engine.guiders import Cfg, Guider
from wanlab.engine.loop import nest, plans
from wanlab.engine.model import loading, vae
from wanlab.engine.model.checkpoint import around_blocks
from wanlab.engine.model.cost import BYTES, Cost
from wanlab.engine.model.fingerprint import fingerprint
from wanlab.engine.model.loading import Checkpoint
from wanlab.engine.model.placement import HostMemory
from wanlab.engine.model.time import time_embeddings
from wanlab.engine.observers.latents import DIMS, OTHER_EXPERT
from wanlab.engine.ranks import choice
from wanlab.engine.solvers import Solver, step_contexts
from wanlab.engine.types import BOTH, Env, Session, StepContext, StepPlan
from wanlab.registry import build
from wanlab.spec import RunSpec
from wanlab.spec.parallel import AUTO, Layout

DECODING = 2**29


@dataclass(frozen=True, kw_only=True)
class Row:
    """One step."""

    step: int
    """From 0."""
    timestep: float
    sigma: float
    expert: str
    branches: tuple[str, ...]
    """What the guided velocity is made of."""
    reused: tuple[str, ...]
    """Those of them whose value is an earlier step's."""
    guider: str
    guidance: float
    frames: int
    """Latent frames."""
    positions: int
    """Distance of neighbouring ones in rotary positions."""
    tokens: int
    """Transformer tokens of one pass."""
    passes: int
    """At most."""
    passes_bounds: tuple[int, int]
    flops: float
    """Floating-point operations of the step, at most."""
    flops_bounds: tuple[float, float]
    jump: bool
    """Whether frames are completed before the step."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A run's schedule and what it is predicted to cost."""

    spec: RunSpec
    """With device, dtypes and shift named."""
    model_path: str
    boundary: float | None
    shape: tuple[int, int, int, int]
    """C, F, H, W of the latents."""
    rows: tuple[Row, ...]
    passes: int
    """At most; `passes_bounds` has the least too."""
    passes_bounds: tuple[int, int]
    plain_passes: int
    """Without policies."""
    flops: float
    """At most."""
    flops_bounds: tuple[float, float]
    plain_flops: float
    plain_flops_by_step: tuple[float, ...]
    pass_flops_by_step: tuple[float, ...]
    """Operations of one whole pass on the full-length latents: what a pass-equivalent is."""
    parameters: Mapping[str, int]
    """By component."""
    memory_bytes: Mapping[str, int]
    """By component, weights in their dtypes; and estimates of the transformers' "activations", of "decoding" one
    latent frame and, where a policy keeps them, of "keys" and values and of "caches": hidden states."""
    memory_plans: Mapping[str, int]
    """The predicted peak on the device under each plan of placement.py."""
    host_plans: Mapping[str, int]
    """Bytes of page-locked host memory under each of them, on a GPU."""
    disk_bytes: int
    """The run file's arrays before compression."""
    indicators: Mapping[str, tuple[float | None, ...]]
    """By policy, what it compares with its threshold at each step, where that is known beforehand."""

    @property
    def exact(self) -> bool:
        """Whether everything is decided beforehand."""
        return self.flops_bounds[0] == self.flops_bounds[1]

    @property
    def speedup(self) -> float:
        """Predicted speed-up of the sampling loop over the same run without policies, at least: the ratio of
        operations."""
        return self.plain_flops / self.flops

    @property
    def decoded_at_once(self) -> int:
        """How many latent frames a GPU decodes together."""
        return decoded_at_once(self.memory_bytes)

    def totals(self) -> dict[str, Any]:
        """The figures that the run is compared with afterwards."""
        return {
            "passes": self.passes,
            "passes_bounds": list(self.passes_bounds),
            "plain_passes": self.plain_passes,
            "flops": self.flops,
            "flops_bounds": list(self.flops_bounds),
            "plain_flops": self.plain_flops,
            "speedup": self.speedup,
            "tokens": sum(r.passes * r.tokens for r in self.rows),
            "flops_by_step": [r.flops for r in self.rows],
            "plain_flops_by_step": list(self.plain_flops_by_step),
            "pass_flops_by_step": list(self.pass_flops_by_step),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = {k: v for k, v in asdict(self).items() if k != "spec"}
        more = {"spec": self.spec.to_dict(), "speedup": self.speedup, "exact": self.exact}
        return plain | more | {"parameters": dict(self.parameters)}


def make_env(spec: RunSpec, checkpoint: Checkpoint, solver: Solver) -> Env:
    """The run's schedule, guidance and cost by expert, and full-length latent shape. Raises UsageError for a size that
    the model cannot make."""
    low, high = spec.guidance
    steps = step_contexts(solver, checkpoint.boundary, loading.TRAIN_TIMESTEPS)
    return Env(
        steps=steps,
        guidance={"low": low, "high": high, "single": low},
        shape=checkpoint.latent_shape(spec.frames, spec.width, spec.height),
        costs={
            expert: Cost.of(checkpoint.expert_config(expert), checkpoint.expand_timesteps)
            for expert in checkpoint.experts
        },
        seed=spec.seed,
        model=spec.model,
        solver=spec.solver,
        shift=float(spec.shift or 0),
        batched=spec.batch_cfg,
        read_fingerprint=lambda: fingerprint(checkpoint) if checkpoint.files else "",
        read_time_embeddings=partial(time_embeddings, checkpoint, steps),
    )


def forecast(spec: RunSpec, checkpoint: Checkpoint) -> Forecast:
    """The forecast of a resolved spec. Raises UsageError where the run would: policies that do not fit, sizes,
    schedule."""
    solver = Solver(
        spec.solver, spec.schedule, spec.steps, float(spec.shift or 0), checkpoint.scheduler, torch.device("cpu")
    )
    env = make_env(spec, checkpoint, solver)
    sessions = policies.begin(spec.policies, env)
    nest(sessions, lambda call: call.x)  # that the policies fit each other
    choice.check_policies(spec, sessions, env.tokens(1))
    guider: Guider = build("guider", spec.guider)
    rows = [_row(plan, ctx, env) for ctx, plan in plans(env, sessions, guider)]
    plain = [_row(plan, ctx, env) for ctx, plan in plans(env, (), Cfg())]
    parameters = loading.parameters(checkpoint)
    memory = _memory(spec, checkpoint, env, parameters)
    keeping = [session for session in sessions if session.keeps_keys]
    if keeping:
        memory["keys"] = _kept_keys(spec, env, rows, float8=all(s.keys_float8 for s in keeping))
    if caches := _kept_hidden(spec, env, rows, sessions):
        memory["caches"] = caches
    return Forecast(
        spec=spec,
        model_path=str(checkpoint.path),
        boundary=checkpoint.boundary,
        shape=env.shape,
        rows=tuple(rows),
        passes=sum(r.passes for r in rows),
        passes_bounds=_sums([r.passes_bounds for r in rows]),
        plain_passes=sum(r.passes for r in plain),
        flops=sum(r.flops for r in rows),
        flops_bounds=_sums([r.flops_bounds for r in rows]),
        plain_flops=sum(r.flops for r in plain),
        plain_flops_by_step=tuple(r.flops for r in plain),
        pass_flops_by_step=tuple(env.costs[ctx.expert].whole(env.tokens()) for ctx in env.steps),
        parameters=parameters,
        memory_bytes=memory,
        memory_plans=_peaks(memory, checkpoint, env.shape[1], around_blocks(checkpoint) * BYTES[spec.dtype]),
        host_plans=_host(memory, checkpoint),
        disk_bytes=_disk(spec, env, sessions),
        indicators={
            p.name: tuple(None if math.isnan(v) else v for v in s.indicator)
            for p, s in zip(spec.policies, sessions, strict=True)
            if s.indicator
        },
    )


def _sums(bounds: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    return sum(low for low, _ in bounds), sum(high for _, high in bounds)


def _row(plan: StepPlan, ctx: StepContext, env: Env) -> Row:
    tokens, cost = env.tokens(plan.frames), env.costs[ctx.expert]
    around, whole = cost.around(tokens), cost.whole(tokens)
    every, sure = set(plan.branches), set(plan.branches) - set(plan.optional)
    passes, fewest = (len(branches - set(plan.reused)) + plan.extra for branches in (every, sure))

    def operations(branches: set[str], share: float) -> float:
        count = len(branches - set(plan.reused)) + plan.extra
        asked = len(branches) if plan.around else count if share else 0  # else the network is not asked
        return asked * around + count * share * (whole - around)

    least, most = operations(sure, plan.least), operations(every, plan.most)
    return Row(
        step=ctx.index,
        timestep=ctx.timestep,
        sigma=ctx.sigma,
        expert=ctx.expert,
        branches=plan.branches,
        reused=plan.reused,
        guider=plan.guide.name,
        guidance=plan.guide.scale,
        frames=plan.frames,
        positions=plan.positions,
        tokens=tokens,
        passes=passes if plan.most else 0,
        passes_bounds=(fewest if plan.least else 0, passes if plan.most else 0),
        flops=most,
        flops_bounds=(least, most),
        jump=plan.jump is not None,
    )


def _kept_keys(spec: RunSpec, env: Env, rows: Sequence[Row], *, float8: bool) -> int:
    """Bytes of the keys and values of every block and branch, in the step that may leave tokens out and has most."""
    most = 0
    for row in rows:
        cost = env.costs[row.expert]
        if row.flops_bounds[0] < row.passes * cost.whole(row.tokens):
            token = cost.width + 4 if float8 else cost.width * BYTES[spec.dtype]  # 8 bits have a scale for each token
            most = max(most, 2 * cost.layers * token * len(row.branches) * row.tokens)
    return most


def _kept_hidden(spec: RunSpec, env: Env, rows: Sequence[Row], sessions: Sequence[Session]) -> int:
    """Bytes of the hidden states that policies keep, at most."""
    width = max(cost.width for cost in env.costs.values())
    most = max(r.tokens * sum(s.kept_hidden(len(r.branches)) for s in sessions) for r in rows)
    return most * width * BYTES[spec.dtype]


def _memory(spec: RunSpec, checkpoint: Checkpoint, env: Env, counted: Mapping[str, int]) -> dict[str, int]:
    main, decoder = BYTES[spec.dtype], BYTES[spec.vae_dtype]
    held = {name: n * (decoder if name == "vae" else main) for name, n in counted.items()}
    config = checkpoint.transformer
    width, inner = config.width, config.ffn_dim
    if spec.precision == "fp8":  # those of kernels.products
        eighths = config.num_layers * (6 * width**2 + 2 * width * inner)
        for component in checkpoint.experts.values():
            held[component] -= (main - 1) * eighths
    batch = len(BOTH) if spec.batch_cfg else 1
    # Alive at once in a block: the residual stream, two float32 copies of it (norm and modulation), and either
    # query, key, value and output, or the feed-forward's inner values.
    per_token = width * main + 2 * width * 4 + max(4 * width, inner + width) * main
    if checkpoint.expand_timesteps:  # six modulations of every token, as they are and in float32
        per_token += 6 * width * (main + 4)
    *_, height, columns = env.shape
    own = -(-env.tokens() // Layout.parse("none" if spec.parallel == AUTO else spec.parallel).split)
    return held | {
        "activations": batch * own * per_token,
        # Where the decoder is widest: a block's input, its norm, a convolution's result, the cache, and three times as
        # much for cuDNN's workspaces; less where that block makes it half as wide (both measured: benchmarks/a14b.md).
        "decoding": int(
            (12.4 if checkpoint.vae.is_residual else 16) * decoder * vae.widest(checkpoint.vae, height, columns)
        ),
    }


def decoded_at_once(held: Mapping[str, int]) -> int:
    """The more latent frames are decoded together, the faster; so many that it takes no more memory than sampling did,
    or DECODING more than one frame does."""
    decoding = held["decoding"]
    return max(1, max(held["activations"], decoding + DECODING) // decoding)


def _weights(held: Mapping[str, int], checkpoint: Checkpoint) -> int:
    """Bytes of all parts."""
    return held["text_encoder"] + held["vae"] + sum(held[component] for component in checkpoint.experts.values())


def _peaks(held: Mapping[str, int], checkpoint: Checkpoint, frames: int, around: int) -> dict[str, int]:
    """Bytes on the device at most, by plan; `around`: those of the experts outside their blocks."""
    experts = {component: held[component] for component in checkpoint.experts.values()}
    working = held["activations"] + held.get("keys", 0) + held.get("caches", 0)
    decoding = min(decoded_at_once(held), frames) * held["decoding"]
    block = (sum(experts.values()) - around) / len(experts) / checkpoint.transformer.num_layers
    alone = max(held["text_encoder"], held["vae"] + decoding)
    return {
        "resident": _weights(held, checkpoint) + max(working, decoding),
        "swap": max(alone, max(experts.values()) + working),
        "offload": around + max(alone, int(3 * block) + working),
    }


def _host(held: Mapping[str, int], checkpoint: Checkpoint) -> dict[str, int]:
    """Bytes of page-locked host memory, by plan: every weight once, in whole pieces."""
    pieces = -(-_weights(held, checkpoint) // HostMemory.PIECE) * HostMemory.PIECE
    return {"resident": 0, "swap": pieces, "offload": pieces}


def _disk(spec: RunSpec, env: Env, sessions: Sequence[Session]) -> int:
    channels, frames, height, width = env.shape
    values = channels * frames * height * width
    total = 4 * values + 3 * spec.frames * spec.height * spec.width
    if spec.record.video == "float32":
        total += 12 * spec.frames * spec.height * spec.width
    sizes = dict(zip(DIMS, env.shape, strict=True)) | {
        "token_height": height // 2,
        "token_width_bytes": math.ceil(width / 16),
        "branch": len(BOTH),
    }
    around = set() if env.switch is None else {env.switch - 1, env.switch}
    for observer in observers.begin(spec, env.total, sessions):
        for f in observer.fields:
            steps = env.total
            if set(DIMS) <= set(f.dims):  # not in every step
                recorded = {*range(0, env.total, spec.record.every), env.total - 1}
                steps = len(recorded | around if spec.record.other_expert else recorded)
            if f.name == OTHER_EXPERT:
                steps = len(around)
            total += steps * f.stored.itemsize * math.prod(sizes.get(d, 1) for d in f.dims)
    return total
