"""What passes between the loop, the policies and the observers.

Shapes: B batch (branches evaluated together), C latent channels, F latent frames, H W latent height and width, N tokens
of a pass, D the transformer's width. Latents x_t, x0_pred, eps_pred and velocity are [1,C,F,H,W] in latent units (the
VAE's, normalised to zero mean and unit variance); sigma is in [0,1]: x_t = (1-sigma) x0 + sigma eps, velocity =
eps - x0 (flow matching, Lipman et al., "Flow Matching for Generative Modeling", 2023, and Liu et al., "Flow Straight
and Fast", 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypeAlias

import numpy as np

from wanlab.runfile import Field

if TYPE_CHECKING:  # torch takes a second to import, and a policy's name and knobs can be judged without it
    from torch import Tensor

    from wanlab.engine.guiders import Guide
    from wanlab.engine.meter import Reading
    from wanlab.engine.model.transformer import Blocks

COND, UNCOND = "cond", "uncond"
BOTH = (COND, UNCOND)
FRESH, REUSED, SKIPPED = "fresh", "reused", "skipped"

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


class Cost(Protocol):
    """What an expert's work costs in floating-point operations (engine/model/cost.py)."""

    @property
    def layers(self) -> int:
        """Blocks in the stack."""

    @property
    def width(self) -> int:
        """D."""

    def block(self, queries: int, keys: int) -> float:
        """One block of one sample, for so many active tokens that attend to so many keys."""

    def around(self, tokens: int) -> float:
        """What lies before and after the blocks, of one sample."""

    def whole(self, tokens: int) -> float:
        """A whole pass of one sample."""


@dataclass(frozen=True, kw_only=True)
class Env:
    """What a run is, as policies and observers may know it before it begins."""

    steps: tuple[StepContext, ...]
    guidance: Mapping[str, float]
    """Guidance scale by expert."""
    shape: tuple[int, int, int, int]
    """C, F, H, W of the full-length latents."""
    costs: Mapping[str, Cost] = field(repr=False)
    """By expert."""
    seed: int = 0
    """Of the initial noise."""
    model: str = ""
    """The model's name, as it was asked for."""
    solver: str = ""
    shift: float = 1.0
    batched: bool = False
    """Whether a step's branches are evaluated in one call."""
    read_fingerprint: Callable[[], str] = field(default=lambda: "", repr=False, compare=False)
    """Reads all weights the first time, so it is called by those alone who need the fingerprint."""
    read_time_embeddings: Callable[[bool], Tensor | None] = field(default=lambda _: None, repr=False, compare=False)
    """What the experts make of each step's timestep (model/time.py): [steps, D] float32, or with True what modulates
    the blocks, [steps, 6 D]. None where the weights are not here: a forecast of a model on the hub."""

    @property
    def fingerprint(self) -> str:
        """The checkpoint's; "" where its weights are not here."""
        return self.read_fingerprint()

    @property
    def total(self) -> int:
        """Number of steps."""
        return len(self.steps)

    @property
    def switch(self) -> int | None:
        """Index of the first low-noise step when there are steps of both experts, else None."""
        experts = [s.expert for s in self.steps]
        return experts.index("low") if {"high", "low"} <= set(experts) else None

    def share(self, part: float) -> int:
        """Steps of so large a part of the run, not one less for a float's last bit: .29 of 100 is 28.999…"""
        return int(round(part * self.total, 6))

    def since(self, ctx: StepContext) -> int:
        """Steps of this step's expert before it."""
        return sum(s.expert == ctx.expert for s in self.steps[: ctx.index])

    def layers(self, ctx: StepContext) -> int:
        """Blocks of this step's expert."""
        return self.costs[ctx.expert].layers

    def tokens(self, frames: int | None = None) -> int:
        """Transformer tokens of a pass of so many latent frames, all of them by default: patches of 1 x 2 x 2."""
        _, full, height, width = self.shape
        return (full if frames is None else frames) * height * width // 4


@dataclass(frozen=True, kw_only=True)
class Jump:
    """A change of the latents between two steps, outside what the solver does."""

    apply: Callable[[Tensor, Tensor | None], Tensor]
    """(x_t, x0_pred of the step before) -> the new x_t."""
    restart: bool
    """Whether the solver's history no longer fits and must be forgotten."""


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """Latents whose velocity in this step is no prediction of it."""

    mask: Tensor
    """[1,1,F,H,W] bool: a solver's corrector leaves them alone, which goes by the newest prediction …"""
    still: bool = False
    """… and so does the solver altogether."""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What one step is going to do, as far as it is known before the run begins."""

    branches: tuple[str, ...]
    """The branches that the guide needs; the others are skipped."""
    guide: Guide
    """How their velocities become one."""
    frames: int
    """Latent frames that the transformer works on."""
    stride: int = 1
    """Full-length latent frames from one of them to the next."""
    positions: int = 1
    """Distance of neighbouring latent frames in temporal rotary positions."""
    jump: Jump | None = None
    """Applied to the latents before they are evaluated."""
    reused: tuple[str, ...] = ()
    """Those of `branches` that will not be evaluated: their values are from an earlier step."""
    optional: tuple[str, ...] = ()
    """Those of `branches` that the step may turn out not to need: a policy decides it while it runs."""
    extra: int = 0
    """Passes besides, that no velocity is made of."""
    least: float = 1.0
    """The least share of the blocks' operations, in the other branches, that will run: below 1 where a policy decides
    while it runs, 0 where the network may not be asked at all."""
    most: float = 1.0
    """The greatest share: below 1 where fewer blocks or tokens are certain."""
    merged: bool = False
    """Whether it is below 1 because tokens go through the blocks together: a value is of this step alone all the
    same."""
    around: bool = False
    """Whether the embeddings and the head run also where no block does: the blocks' work is used again, not the
    velocity."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request for velocities: the branches are the batch, in this order."""

    ctx: StepContext
    branches: tuple[str, ...]
    x: Tensor
    step_branches: tuple[str, ...] = ()
    """All branches of the step, of this and its other calls: what decides for the step decides for all of them."""
    positions: int = 1
    """Distance of neighbouring latent frames in temporal rotary positions."""
    through: Callable[[Tensor, Blocks], Tensor] | None = None
    """What a policy does in place of running all blocks: (hidden [B,N,D], blocks) -> hidden [B,N,D]."""
    count: Callable[[int, int, int], None] | None = None
    """Told of every block that runs: (samples, active tokens, keys). None for what is evaluated for the record only."""
    together: bool = False
    """Whether all ranks of a job evaluate it together, a step having one branch only (engine/ranks/)."""
    agree: Callable[[float], float] = float
    """A branch's own number to that of the step's first branch: what a decision for the whole step is made on. Branches
    may be evaluated at the same time on different ranks, so every branch asks, or none."""


Inner: TypeAlias = "Callable[[Call], Tensor]"
"""Call -> velocities [B,C,F,H,W], B = the call's branches."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one step did. A branch is in `predictions` if the whole network evaluated it in this step, in `reused` if
    any part of its value is from an earlier one, and else in neither."""

    ctx: StepContext
    plan: StepPlan
    x_t: Tensor
    predictions: Mapping[str, Tensor]
    reused: Mapping[str, Tensor]
    velocity: Tensor
    """The guided velocity that the solver was given."""
    x0_pred: Tensor
    """x_t - sigma * velocity in float32, before the solver stepped."""
    x_next: Tensor
    ran: Reading
    """What ran, and how long it took."""
    probes: Mapping[str, Tensor] = field(default_factory=dict)
    """Fresh velocities of branches that were reused or skipped: for the record only."""
    other: Tensor | None = None
    """The velocity that the other expert gives in this one's place, guided alike: for the record only."""
    notes: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What the policies report of their decisions, by the names of their fields."""

    @property
    def eps_pred(self) -> Tensor:
        """x_t + (1 - sigma) * velocity in float32."""
        return self.x_t.float() + (1 - self.ctx.sigma) * self.velocity.float()

    def status(self, branch: str) -> str:
        """FRESH, REUSED or SKIPPED."""
        return FRESH if branch in self.predictions else REUSED if branch in self.reused else SKIPPED


class Session:
    """A policy in one run: neutral defaults.

    What it remembers from step to step lies in `memory`, which the engine saves with every step, gives back when an
    interrupted run goes on, and empties where it no longer belongs: at the expert switch, and when the number of latent
    frames changes. Everything else is made by `begin` and `plan`, which are called again then.
    What is evaluated for the record only (`--probe`) passes no session.
    """

    changes: ClassVar[Literal["frames", "branches", "values"]] = "values"
    """What of a plan it changes: which frames are worked on (or `jump`), which branches are evaluated, or what stands
    for their values. Each is planned by what comes before it here, so plans are made in this order, and those of one
    kind as their policies are named."""
    fields: ClassVar[tuple[Field, ...]] = ()
    """What `note` reports, one value a step, and with dims ("branch",) one a branch. In the run file each is called
    POLICY_NAME."""
    indicator: Sequence[float] = ()
    """What the session compares with its threshold, by step, NaN where it does not: if it is known beforehand."""
    keeps_keys: bool = False
    """Whether `through` runs blocks on some tokens that attend to all of them (`Blocks.__call__`, `keys`)."""
    keys_float8: bool = False
    """Whether it keeps their keys and values as 8-bit floats (`Blocks.__call__`, `float8`)."""

    couples: ClassVar[bool] = False
    """Whether `evaluate` or `through` of one branch looks at what the same step made of the other, otherwise than by
    `Call.agree`."""

    def kept_hidden(self, branches: int) -> int:
        """How many hidden states [1,N,D] are kept in memory in steps of so many branches: for the forecast of it."""
        return 0

    _memory: dict[tuple[str, int, str], dict[str, Any]]
    _notes: dict[str, np.ndarray]

    def __new__(cls, *args: Any, **knobs: Any) -> Self:
        """Memory is there whatever a subclass's own `__init__` does."""
        session = super().__new__(cls)
        session._memory, session._notes = {}, {}
        return session

    def initial(self, noise: Tensor) -> Tensor:
        """The latents to begin with, of the full-length noise [1,C,F,H,W]."""
        return noise

    def plan(self, plan: StepPlan, ctx: StepContext) -> StepPlan:
        """The plan of a step, of the one that the policies before made (`changes`). Called once a step, in order, also
        by the forecast, where nothing is evaluated."""
        return plan

    def evaluate(self, call: Call, inner: Inner) -> Tensor:
        """The velocities of a call; `inner` evaluates it."""
        return inner(call)

    def through(self, call: Call, hidden: Tensor, blocks: Blocks) -> Tensor:
        """The stack of blocks on hidden states [B,N,D]; `blocks(hidden)` runs it. At most one policy of a
        run has it."""
        return blocks(hidden)

    def warm_up(self, call: Call, hidden: Tensor, blocks: Blocks) -> None:
        """Run, on meaningless values, what `through` is going to: called once for each expert and shape before the
        first step, so that no step's time holds what is done once, such as compiling. Nothing may be remembered."""

    def frozen(self, ctx: StepContext, x: Tensor) -> Frozen | None:
        """What the solver shall leave alone in this step of latents x, its velocities evaluated; None: nothing."""
        return None

    def after(self, record: StepRecord) -> None:
        """Told of every finished step."""

    def memory(self, ctx: StepContext, frames: int, branches: tuple[str, ...] = ()) -> dict[str, Any]:
        """What is remembered of this expert and number of latent frames, for these branches or (by default) for all
        together: tensors, and JSON values, by name."""
        return self._memory.setdefault((ctx.expert, frames, "+".join(branches)), {})

    def recall(self, call: Call) -> dict[str, Any]:
        """`memory` of a call's own branches."""
        return self.memory(call.ctx, call.x.shape[2], call.branches)

    def note(self, branches: tuple[str, ...] = (), /, **values: Any) -> None:
        """Report declared values of this step, of these branches where the field has dims ("branch",)."""
        for name, value in values.items():
            if not branches:
                self._notes[name] = np.asarray(value)
                continue
            by_branch = self._notes.setdefault(name, np.full(len(BOTH), np.nan))
            by_branch[[BOTH.index(b) for b in branches]] = value

    def noted(self) -> dict[str, np.ndarray]:
        """What was reported since the last time."""
        notes, self._notes = self._notes, {}
        return notes

    @property
    def notes(self) -> Mapping[str, np.ndarray]:
        """What was reported and not taken yet."""
        return self._notes

    def complete(self, notes: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Take over what the same session noted of other branches, on other ranks."""
        for name, value in ((n, v) for others in notes for n, v in others.items()):
            own = self._notes.setdefault(name, value)
            if own.shape == (len(BOTH),):
                self._notes[name] = np.where(np.isnan(own), value, own)

    def remembered(self, branches: tuple[str, ...]) -> State:
        """The memory of these branches by flat names, of all together for none."""
        every = self._memory.items()
        return {f"{e} {f}/{n}": v for (e, f, b), kept in every if b == "+".join(branches) for n, v in kept.items()}

    def remember(self, branches: tuple[str, ...], state: State) -> None:
        """Put what `remembered` gave in the place of what is known of these branches."""
        for key in [key for key in self._memory if key[2] == "+".join(branches)]:
            self._memory[key].clear()  # a session may hold on to it
        for flat, value in state.items():
            where, _, name = flat.partition("/")
            expert, frames = where.split(" ")
            self._memory.setdefault((expert, int(frames), "+".join(branches)), {})[name] = value

    def forget(self, ctx: StepContext, frames: int) -> None:
        """Let go of what belongs to another expert or length than the step that begins."""
        self._memory = {key: kept for key, kept in self._memory.items() if key[:2] == (ctx.expert, frames)}

    def state(self) -> State:
        """All of the memory by flat names."""
        return {
            f"{expert} {frames} {branches}/{name}": value
            for (expert, frames, branches), kept in self._memory.items()
            for name, value in kept.items()
        }

    def restore(self, state: State) -> None:
        """Take back what `state` gave."""
        self._memory = {}
        for flat, value in state.items():
            where, _, name = flat.partition("/")
            expert, frames, branches = where.split(" ")
            self._memory.setdefault((expert, int(frames), branches), {})[name] = value


class Policy:
    """A frozen set of knobs (a frozen dataclass, one field a knob)."""

    cost_knob: ClassVar[tuple[str, float, float] | None] = None
    """The knob that trades cost for quality, its value at which all is evaluated, and the one at which least is
    (`inf` for the number of steps): what `wanlab compare --at-cost` turns. None when there is no such knob."""

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
