"""What several engine tests need: a spec for the small checkpoint, and runs without files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from wanlab.engine import policies
from wanlab.engine.loop import Prober, denoise
from wanlab.engine.model.config import TransformerConfig
from wanlab.engine.model.cost import Cost
from wanlab.engine.model.loading import Model
from wanlab.engine.model.transformer import Denoiser
from wanlab.engine.run import initial_noise, resolve
from wanlab.engine.run.forecast import make_env
from wanlab.engine.solvers import Solver, step_contexts
from wanlab.engine.types import Call, Env, StepRecord
from wanlab.registry import build
from wanlab.spec import PolicySpec, RunSpec


def make_spec(model: Any, **changes: Any) -> RunSpec:
    given: dict[str, Any] = {
        "prompt": "a red ball moves left",
        "model": str(model),
        "width": 32,
        "height": 32,
        "frames": 17,
        "device": "cpu",
    }
    given |= changes
    given["policies"] = tuple(PolicySpec.parse(p) if isinstance(p, str) else p for p in given.get("policies", ()))
    return RunSpec(**given)


def sample(
    model: Model, spec: RunSpec, *, probe: bool = False, both_experts: bool = False, **options: Any
) -> list[StepRecord]:
    """The records of a whole run."""
    spec = resolve(replace(spec, batch_cfg=bool(options.get("batched"))), model.checkpoint)
    solver = Solver(spec.solver, spec.schedule, spec.steps, spec.shift, model.checkpoint.scheduler, model.device)
    env = make_env(spec, model.checkpoint, solver)
    sessions = policies.begin(spec.policies, env)
    x = initial_noise(spec.seed, env, model.device)
    for session in sessions:
        x = session.initial(x)
    embeds = {"cond": model.encode(spec.prompt), "uncond": model.encode(spec.negative_prompt)}
    network = Denoiser(model, embeds, keeps_keys=any(s.keeps_keys for s in sessions))
    prober = Prober(network, env, branches=probe, experts=both_experts)
    steps = denoise(x, env, solver, network, sessions, build("guider", spec.guider), **options)
    return [prober(record) for record in steps]


def collecting() -> tuple[list[Any], Callable[..., Any]]:
    """(what was compiled so far, a backend of torch.compile that runs it as it is)."""
    graphs: list[Any] = []

    def backend(module: Any, _: Any) -> Any:
        graphs.append(module)
        return module.forward

    return graphs, backend


class Toy:
    """A made-up network of one block: it counts that block as run, and asks `function` for the velocities."""

    def __init__(self, function: Callable[[Call], torch.Tensor]) -> None:
        self.function = function

    def __call__(self, call: Call) -> torch.Tensor:
        tokens = call.x.shape[2:].numel() // 4
        if call.count is not None:
            call.count(len(call.branches), tokens, tokens)
        return self.function(call)


TOY_COST = Cost.of(
    TransformerConfig.from_json(
        {"num_attention_heads": 1, "attention_head_dim": 2, "ffn_dim": 2, "num_layers": 1, "text_dim": 2}
    )
)


def toy_env(steps: int = 20, frames: int = 5, guidance: float = 4.0, solver: str = "euler") -> tuple[Env, Solver]:
    """[1,1,frames,2,2] latents on the schedule of shift 12; of 20 steps the switch is before step 13."""
    made = Solver(solver, "diffusers", steps, 12.0, {"num_train_timesteps": 1000}, torch.device("cpu"))
    env = Env(
        steps=step_contexts(made, 0.875),
        guidance={"high": guidance, "low": guidance},
        shape=(1, frames, 2, 2),
        costs={"high": TOY_COST, "low": TOY_COST},
        solver=solver,
        shift=12.0,
    )
    return env, made


def toy(
    policy_texts: Sequence[str],
    function: Callable[[Call], torch.Tensor],
    *,
    probe: bool = False,
    both_experts: bool = False,
    guider: str = "cfg",
    batched: bool = False,
    **options: Any,
) -> list[StepRecord]:
    """A run of a made-up network."""
    env, solver = toy_env(**options)
    env = replace(env, batched=batched)
    sessions = policies.begin([PolicySpec.parse(t) for t in policy_texts], env)
    x = torch.randn((1, 1, env.shape[1], 2, 2), generator=torch.Generator().manual_seed(0))
    for session in sessions:
        x = session.initial(x)
    network = Toy(function)
    prober = Prober(network, env, branches=probe, experts=both_experts)
    steps = denoise(x, env, solver, network, sessions, build("guider", PolicySpec.parse(guider)), batched=batched)
    return [prober(record) for record in steps]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def passes(records: Sequence[StepRecord]) -> int:
    return sum(r.ran.passes for r in records)
