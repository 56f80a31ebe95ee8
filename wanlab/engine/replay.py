"""A method held against a run that was recorded whole: what it would have done, without weights and in seconds.

The loop and the policies are the ones that sample; only the network is a file that gives back the velocities of the
recorded step, and the solver one that gives back the next recorded latents. So nothing of a rule is written twice. It
stays an estimate: in a run of its own the method would have come to other latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from wanlab.engine import policies
from wanlab.engine.loop import denoise, plans
from wanlab.engine.solvers import Solver
from wanlab.engine.types import BOTH, FRESH, REUSED, Call, Env, Session, StepContext, StepRecord
from wanlab.errors import UsageError, WanlabError
from wanlab.registry import build
from wanlab.runfile import Run
from wanlab.spec import RunSpec

EMBEDDING = "measure_embedding"
LAYERS = 1000  # of which a policy may leave out as many as it is asked to


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What a method would have done at one step."""

    step: int
    expert: str
    passes: int
    of: int
    """Passes of the recorded run's step, had it evaluated each branch once."""
    reused: tuple[str, ...]
    """Branches whose value is an earlier step's."""
    left_out: tuple[str, ...]
    """Branches that the run's own guider has and this method has not."""
    errors: dict[str, float]
    """|reused - recorded| / |recorded| of each reused branch; of a policy that reuses the blocks' residual that of the
    last velocity instead, for residuals are not recorded."""
    error: float
    """The same of the guided velocity, by the run's own guider."""


def replay(run: Run, spec: RunSpec) -> list[Replayed]:
    """`spec`'s policies and guider on a run recorded with level "all" at every step. Raises UsageError for a run or a
    method that does not allow it, WanlabError for a damaged file."""
    tape = _Tape(run)
    sessions = policies.begin(spec.policies, tape.env)
    guider = build("guider", spec.guider)
    for session in sessions:
        _check(session, tape.env, guider, spec)
    sessions = policies.begin(spec.policies, tape.env)
    records = denoise(tape.latents(0), tape.env, cast(Solver, tape), tape, sessions, guider)
    return [tape.compare(record) for record in records]


def _check(session: Session, env: Env, guider: Any, spec: RunSpec) -> None:
    """Refuse what recorded velocities cannot answer. Raises UsageError."""
    inside = type(session).through is not Session.through
    for _, plan in plans(env, [session], guider):
        name = "+".join(map(str, spec.policies))
        if plan.frames != env.shape[1] or plan.jump is not None:
            raise UsageError(f"{name} works on other latents than were recorded", "compare samples it: wanlab compare")
        if inside and (plan.least, plan.most) != (1.0, 1.0):
            raise UsageError(
                f"{name} decides inside the network, and velocities are what is recorded",
                "take a policy that decides beforehand or by velocities, or sample it: wanlab compare",
            )


class _Tape:
    """A recorded run in the place of network and solver."""

    def __init__(self, run: Run) -> None:
        self.run, self._step = run, 0
        self.env = env_of(run)
        self._held: dict[str, Tensor] = {}
        self.read = cache(self._read)
        self._guider = build("guider", run.spec.guider)

    def _read(self, name: str, k: int) -> Tensor:
        value = torch.from_numpy(np.ascontiguousarray(self.run[name][k], dtype=np.float32))[None]
        if not bool(torch.isfinite(value).all()):
            raise WanlabError(f"{self.run.path}: {name} of step {k} is no numbers", "make the run again")
        return value

    def latents(self, k: int) -> Tensor:
        """x_t of step k [1,C,F,H,W]."""
        return self.read("x_t", min(k, self.env.total - 1))

    def step(self, velocity: Tensor, ctx: StepContext, x: Tensor, frozen: Tensor | None = None) -> Tensor:
        """As a solver: the next recorded latents, whatever the velocity."""
        self._step = ctx.index + 1
        return self.latents(ctx.index + 1)

    def __call__(self, call: Call) -> Tensor:
        """As the network: the recorded velocities [B,C,F,H,W]. Where a policy reuses the blocks' residual, those of the
        step computed last."""
        if call.ctx.index != self._step or not torch.equal(call.x, self.latents(self._step)):
            raise UsageError("the policy asks for what the run did not evaluate", "sample it: wanlab compare")
        blocks = _Blocks()
        if call.through is not None:
            call.through(torch.zeros(len(call.branches), 1, 1), cast(Any, blocks))
        if call.through is None or blocks.ran:
            if call.count is not None:
                call.count(LAYERS * len(call.branches), self.env.tokens(), self.env.tokens())
            self._held |= {b: self.read(f"velocity_{b}", self._step) for b in call.branches}
        return torch.cat([self._held[b] for b in call.branches])

    def compare(self, record: StepRecord) -> Replayed:
        """What a step did, against the recorded one."""
        k = record.ctx.index
        guide = self._guider.guide(self.env.guidance[record.ctx.expert], record.ctx)
        own = guide({b: self.read(f"velocity_{b}", k) for b in guide.branches})
        reused = tuple(b for b in BOTH if record.status(b) == REUSED)
        errors = {b: _relative(record.reused[b], self.read(f"velocity_{b}", k)) for b in reused}
        return Replayed(
            step=k,
            expert=record.ctx.expert,
            passes=record.ran.passes,
            of=len(guide.branches),
            reused=reused,
            left_out=tuple(b for b in guide.branches if record.status(b) not in (FRESH, REUSED)),
            errors=errors,
            error=_relative(record.velocity, own),
        )


class _Blocks:
    """In the place of the blocks: says whether they were run."""

    ran = False

    def __call__(self, hidden: Tensor, *_: Any) -> Tensor:
        self.ran = True
        return hidden


class _Pass:
    """Cost in tokens of a block, which tells a policy that leaves some out."""

    layers = LAYERS
    width = 1

    def block(self, queries: int, keys: int) -> float:
        return float(queries)

    def around(self, tokens: int) -> float:
        return 0.0

    def whole(self, tokens: int) -> float:
        return float(LAYERS * tokens)


def env_of(run: Run) -> Env:
    """What the run file says of the run. Raises UsageError where it was not recorded whole."""
    spec = run.spec
    names = [p.name for p in spec.policies if p.name != "measure" or p.file]
    if names:
        raise UsageError(f"{run.path} was made with policy {names[0]}", "name full runs: of no policy but measure")
    if "velocity" not in run or len(run["velocity"].recorded) < run.steps:
        raise UsageError(f"{run.path} does not hold the velocity of every step", "generate with --record all")
    low, high = spec.guidance
    experts = [str(e) for e in run["expert"][...]]
    columns = (run[n][...].tolist() for n in ("timestep", "sigma", "sigma_next"))
    steps = tuple(
        StepContext(index=k, total=run.steps, timestep=t, sigma=s, sigma_next=n, expert=experts[k], t=torch.tensor(t))
        for k, (t, s, n) in enumerate(zip(*columns, strict=True))
    )
    return Env(
        steps=steps,
        guidance={"low": low, "high": high, "single": low},
        shape=cast(Any, run["x_t"].shape[1:]),
        costs=dict.fromkeys(experts, _Pass()),
        model=spec.model,
        solver=spec.solver,
        shift=float(run.attrs["shift"]),
        read_fingerprint=lambda: str(run.attrs["weights_fingerprint"]),
        read_time_embeddings=lambda projected: _embeddings(run, projected),
    )


def _embeddings(run: Run, projected: bool) -> Tensor:
    """Numbers [steps,1] whose relative change is the recorded one of the embeddings: all that TeaCache asks of them."""
    if not projected or EMBEDDING not in run:
        what = "the change of the timestep embedding" + " as it modulates the blocks" * projected
        raise UsageError(f"{run.path} does not hold {what}", "use --dry-run: it is the same for every prompt")
    change = np.nan_to_num(np.asarray(run[EMBEDDING][...], dtype=float))
    return torch.from_numpy(np.cumprod(1 + change))[:, None]


def _relative(value: Tensor, true: Tensor) -> float:
    length, off = float(true.norm()), float((value.float() - true).norm())
    return off / length if length else math.inf if off else 0.0
