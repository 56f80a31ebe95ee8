"""What passes between the loop, the policies and the observers.

Shapes: B batch (branches evaluated together), C latent channels, F latent frames, H W latent height and width.
Latents x_t, x0_pred, eps_pred and velocity are [1,C,F,H,W] in latent units (the VAE's, normalised to zero mean and
unit variance); sigma is in [0,1]: x_t = (1-sigma) x0 + sigma eps, velocity = eps - x0 (flow matching, Lipman et al.,
"Flow Matching for Generative Modeling", 2023, and Liu et al., "Flow Straight and Fast", 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from wanlab.runfile import Field

COND, UNCOND = "cond", "uncond"
BOTH = (COND, UNCOND)

State = dict[str, Any]
"""What a session, solver or observer needs to go on: tensors, and JSON values for the rest."""


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """Where in the schedule a step is."""

    index: int
    total: int
    timestep: float
    sigma: float
    sigma_next: float
    expert: str
    """"high", "low", or "single" for a model of one expert."""
    t: Tensor = field(repr=False, compare=False)
    """The scheduler's own timestep, 0-dim, in its own dtype: what the transformer is given."""


@dataclass(frozen=True, kw_only=True)
class Env:
    """What a run is, as policies and observers may know it before it begins."""

    steps: tuple[StepContext, ...]
    guidance: Mapping[str, float]
    """Guidance scale by expert."""
    shape: tuple[int, int, int, int]
    """C, F, H, W of the full-length latents."""

    @property
    def total(self) -> int:
        """Number of steps."""
        return len(self.steps)

    @property
    def switch(self) -> int | None:
        """Index of the first low-noise step when there are steps of both experts, else None."""
        experts = [s.expert for s in self.steps]
        return experts.index("low") if {"high", "low"} <= set(experts) else None


@dataclass(frozen=True, kw_only=True)
class Lift:
    """A change of the latents between two steps, outside what the solver does."""

    apply: Callable[[Tensor, Tensor | None], Tensor]
    """(x_t, x0_pred of the step before) -> the new x_t."""
    restart: bool
    """Whether the solver's history no longer fits and must be forgotten."""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What one step is going to do."""

    branches: tuple[str, ...]
    """The branches to evaluate."""
    guidance: float
    frames: int
    """Latent frames that the transformer works on."""
    stride: int = 1
    """Full-length latent frames from one of them to the next."""
    lift: Lift | None = None
    """Applied to the latents before they are evaluated."""
    reuse: bool = False
    """Add `difference` in place of the one that is not evaluated."""
    difference: Tensor | None = None
    """cond - uncond of an earlier step of the same expert and length; None only while nothing is evaluated."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request for velocities: the branches are the batch, in this order."""

    ctx: StepContext
    branches: tuple[str, ...]
    x: Tensor
    frame_stride: int = 1
    """Distance of neighbouring latent frames in temporal rotary positions."""
    probe: bool = False
    """For the record only: a policy that keeps state must pass it on untouched."""


Inner = Callable[[Call], Tensor]
"""Call -> velocities [B,C,F,H,W], B = the call's branches."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one step did. `predictions` holds exactly the branches evaluated in this step; `probes` those evaluated
    for the record only."""

    ctx: StepContext
    plan: StepPlan
    x_t: Tensor
    predictions: Mapping[str, Tensor]
    probes: Mapping[str, Tensor]
    velocity: Tensor
    """The guided velocity that the solver was given."""
    x0_pred: Tensor
    """x_t - sigma * velocity in float32, before the solver stepped."""
    x_next: Tensor
    passes: int
    """Samples that went through the transformer: a forward of both branches is two."""
    tokens: int
    """Transformer tokens summed over passes."""
    seconds: float
    """Time of the step, the device synchronised, without recording and probing."""
    switching: float = 0.0
    """The part of it that completing frames took."""
    other: Tensor | None = None
    """The velocity that the other expert gives in this one's place, guided alike: for the record only."""

    @property
    def eps_pred(self) -> Tensor:
        """x_t + (1 - sigma) * velocity in float32."""
        return self.x_t.float() + (1 - self.ctx.sigma) * self.velocity.float()


class Session:
    """A policy in one run: neutral defaults. All state lives here and is made anew for each run."""

    def initial(self, noise: Tensor) -> Tensor:
        """The latents to begin with, of the full-length noise [1,C,F,H,W]."""
        return noise

    def plan(self, plan: StepPlan, ctx: StepContext) -> StepPlan:
        """The plan of a step, of the one that the policies before made. Called once a step, in order."""
        return plan

    def evaluate(self, call: Call, inner: Inner) -> Tensor:
        """The velocities of a call; `inner` evaluates it."""
        return inner(call)

    def after(self, record: StepRecord) -> None:
        """Told of every finished step; only reads."""

    def state(self) -> State:
        """What `restore` needs to go on after the last finished step."""
        return {}

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""


class Policy:
    """A frozen set of knobs (a frozen dataclass, one field a knob)."""

    def begin(self, env: Env) -> Session:
        """A session for one run. Raises UsageError when the knobs do not fit the run."""
        raise NotImplementedError


class Observer:
    """Reads each step's record and returns values for the run file. If it fails, the run fails."""

    fields: tuple[Field, ...] = ()

    def observe(self, record: StepRecord) -> dict[str, np.ndarray]:
        """Values by field name; a field left out has no value at this step."""
        raise NotImplementedError

    def state(self) -> State:
        """What `restore` needs to go on after the last finished step."""
        return {}

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
