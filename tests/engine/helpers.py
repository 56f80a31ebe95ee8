"""What several engine tests need: a spec for the small checkpoint, and a run without files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from wanlab.engine import policies
from wanlab.engine.loop import denoise
from wanlab.engine.model.loading import Denoiser, Model
from wanlab.engine.run import initial_noise, resolve
from wanlab.engine.run.forecast import make_env
from wanlab.engine.solvers import Solver
from wanlab.engine.types import StepRecord
from wanlab.spec import PolicySpec, RunSpec


def make_spec(model: Any, **changes: Any) -> RunSpec:
    given: dict[str, Any] = {
        "prompt": "a red ball moves left", "model": str(model), "width": 32, "height": 32, "frames": 17,
        "device": "cpu",
    }  # fmt: skip
    given |= changes
    given["policies"] = tuple(PolicySpec.parse(p) if isinstance(p, str) else p for p in given.get("policies", ()))
    return RunSpec(**given)


def sample(model: Model, spec: RunSpec, **options: Any) -> list[StepRecord]:
    """The records of a whole run."""
    spec = resolve(spec, model.checkpoint)
    solver = Solver(spec.solver, spec.schedule, spec.steps, spec.shift, model.checkpoint.scheduler, model.device)
    env = make_env(spec, model.checkpoint, solver)
    sessions = policies.begin(spec.policies, env)
    x = initial_noise(spec.seed, env, model.device)
    for session in sessions:
        x = session.initial(x)
    embeds = {"cond": model.encode(spec.prompt), "uncond": model.encode(spec.negative_prompt)}
    return list(denoise(x, env, solver, Denoiser(model, embeds), sessions, **options))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def passes(records: Sequence[StepRecord]) -> int:
    return sum(r.passes for r in records)
