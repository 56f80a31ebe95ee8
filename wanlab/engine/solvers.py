"""Thin adapters over diffusers' schedulers: start, step, restart, and save and restore the multistep history.

The arithmetic is diffusers' own; nothing of it is repeated here. `schedule="wan"` only replaces the sigmas and
timesteps by those of the official repository (docs/methods.md, "Schedules").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from wanlab.engine.types import Frozen, State, StepContext
from wanlab.errors import UsageError, WanlabError
from wanlab.registry import lookup, register

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


@register("solver", "unipc")
def unipc(config: Mapping[str, Any], shift: float) -> Any:
    """UniPC (Zhao et al., "UniPC", 2023), with the checkpoint's own settings."""
    return UniPC.from_config(_known(config), flow_shift=shift, **FLOW)


class UniPC(UniPCMultistepScheduler):  # type: ignore[misc]
    """diffusers' scheduler, whose corrector can be kept from some latents."""

    uncorrected: Tensor | None = None
    """[1,1,F,H,W] bool."""

    def multistep_uni_c_bh_update(self, *args: Any, **kwargs: Any) -> Tensor:
        corrected: Tensor = super().multistep_uni_c_bh_update(*args, **kwargs)
        return (
            corrected if self.uncorrected is None else torch.where(self.uncorrected, kwargs["this_sample"], corrected)
        )


@register("solver", "dpm++")
def dpmpp(config: Mapping[str, Any], shift: float) -> Any:
    """DPM-Solver++ 2M (Lu et al., "DPM-Solver++", 2022)."""
    return DPMSolverMultistepScheduler.from_config(
        _known(config), flow_shift=shift, algorithm_type="dpmsolver++", solver_type="midpoint", **FLOW
    )


@register("solver", "euler")
def euler(config: Mapping[str, Any], shift: float) -> Any:
    """Euler's method on the flow."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=config.get("num_train_timesteps", 1000), shift=shift)


_REMEDY = "mend scheduler/scheduler_config.json, or get the checkpoint again"
# Everything a scheduler carries from one step to the next; the rest follows from the configuration.
_HISTORY = ("model_outputs", "timestep_list", "lower_order_nums", "last_sample", "this_order", "_step_index")


class Solver:
    """One run's solver.

    name      "unipc", "dpm++" or "euler"
    schedule  "diffusers" or "wan"
    config    the checkpoint's scheduler configuration
    device    where the timesteps lie

    `timesteps` [N] and `sigmas` [N+1] are the schedule; sigmas stay where the scheduler keeps them.
    Raises UsageError for an unknown name or a schedule that does not exist for the solver, and WanlabError for a
    configuration that makes no schedule of a flow.
    """

    def __init__(
        self, name: str, schedule: str, steps: int, shift: float, config: Mapping[str, Any], device: torch.device
    ) -> None:
        make = lookup("solver", name)
        self._name, self._schedule, self._steps, self._shift, self._device = name, schedule, steps, shift, device
        try:
            self._scheduler = make(config, shift)
            self.restart(0)
        except WanlabError:
            raise
        except Exception as error:  # the library's, of settings that it cannot use
            said = " ".join(str(error).split())[:160] or type(error).__name__
            raise WanlabError(f"solver {name} cannot use the checkpoint's scheduler: {said}", _REMEDY) from error
        # Of NaN nothing is true.
        if not bool(((self.sigmas >= 0) & (self.sigmas <= 1)).all() and (self.sigmas.diff() <= 0).all()):
            raise WanlabError(
                f"the checkpoint's scheduler gives solver {name} noise levels that do not fall from 1 to 0", _REMEDY
            )

    def restart(self, index: int) -> None:
        """Go on at step `index` with no history: the next step is of first order."""
        scheduler = self._scheduler
        scheduler.set_timesteps(self._steps, device=self._device)
        if self._schedule == "wan":
            sigmas, timesteps = official_schedule(self._name, self._steps, self._shift)
            scheduler.sigmas = torch.from_numpy(sigmas)
            scheduler.timesteps = torch.from_numpy(timesteps).to(self._device)
        scheduler.set_begin_index(index)
        self.timesteps: Tensor = scheduler.timesteps
        self.sigmas: Tensor = scheduler.sigmas

    def step(self, velocity: Tensor, ctx: StepContext, x: Tensor, frozen: Frozen | None = None) -> Tensor:
        """x_t at the next sigma, [1,C,F,H,W]; where it is frozen uncorrected, or as it was."""
        if isinstance(self._scheduler, UniPC):
            self._scheduler.uncorrected = None if frozen is None else frozen.mask
        stepped: Tensor = self._scheduler.step(velocity, ctx.t, x, return_dict=False)[0]
        return torch.where(frozen.mask, x, stepped) if frozen is not None and frozen.still else stepped

    def state(self) -> State:
        """The history: tensors, None and whole numbers by flat names."""
        flat: State = {}
        for name in _HISTORY:
            if hasattr(self._scheduler, name):
                value = getattr(self._scheduler, name)
                flat |= {f"{name}.{i}": v for i, v in enumerate(value)} if isinstance(value, list) else {name: value}
        return flat

    def restore(self, state: State) -> None:
        """Take back what `state` gave: the next step is what it would have been."""
        for key, value in state.items():
            name, _, at = key.partition(".")
            if at:
                getattr(self._scheduler, name)[int(at)] = value
            else:
                setattr(self._scheduler, name, value)


def official_schedule(solver: str, steps: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Sigmas [N+1] float32 and timesteps [N] int64 of github.com/Wan-Video/Wan2.2.

    UniPC spaces sigma evenly from 0.999 down to 0 (wan/utils/fm_solvers_unipc.py), DPM++ from 1 down to 0
    (`get_sampling_sigmas` in wan/utils/fm_solvers.py), both without the last point; then
    sigma -> shift sigma / (1 + (shift - 1) sigma), and a final 0. Timesteps are 1000 sigma cut to whole numbers.
    """
    first = {"unipc": float(np.float32(0.999)), "dpm++": 1.0}.get(solver)
    if first is None:
        raise UsageError(f"the official repository has no {solver} schedule", "use --schedule diffusers")
    even = np.linspace(first, 0, steps + 1)[:-1]
    shifted = shift * even / (1 + (shift - 1) * even)
    return np.append(shifted, 0).astype(np.float32), (shifted * 1000).astype(np.int64)


def default_shift(config: Mapping[str, Any]) -> float:
    """The flow shift in a scheduler's configuration, whichever class wrote it; 1 when there is none."""
    return float(config.get("flow_shift", config.get("shift", 1.0)) or 1.0)


def step_contexts(solver: Solver, boundary: float | None, train_timesteps: int = 1000) -> tuple[StepContext, ...]:
    """The schedule as contexts: the high-noise expert works while t >= boundary * 1000."""
    made = []
    for i, t in enumerate(solver.timesteps):
        expert = "single" if boundary is None else "high" if t >= boundary * train_timesteps else "low"
        here, after = float(solver.sigmas[i]), float(solver.sigmas[i + 1])
        total = len(solver.timesteps)
        made.append(
            StepContext(index=i, total=total, timestep=float(t), sigma=here, sigma_next=after, expert=expert, t=t)
        )
    return tuple(made)


def _known(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings to carry over: not the class, nor what another class means by the same word."""
    return {k: v for k, v in config.items() if not k.startswith("_") and k not in ("solver_type", "shift")} | (
        {"solver_type": config["solver_type"]} if config.get("solver_type") in ("bh1", "bh2") else {}
    )
