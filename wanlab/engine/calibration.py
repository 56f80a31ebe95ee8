"""What was measured of a model once so that methods can use it: a JSON that says to what it belongs.

`wanlab calibrate` writes it (docs/caches.md has its fields), policies read it. Files of the package are known by name;
those named for a model other than `tiny` hold published figures, and say whose. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wanlab.errors import UsageError, WanlabError
from wanlab.files import parse_json, read_bytes
from wanlab.registry import suggest
from wanlab.spec.run import MAX_SIZE, MAX_STEPS, short

FORMAT = 1
BRANCHES = ("cond", "uncond")
EXPERTS = ("high", "low", "single")
SHARED = Path(__file__).with_name("calibrations")
MAX_BYTES = 2**22  # 1000 steps of everything are a tenth of it
SIGMA = 1e-3  # how far noise levels of one schedule may be apart
REMEDY = "make one: wanlab calibrate --model MODEL --out FILE"


class Step(Protocol):
    """A step of a schedule (types.StepContext)."""

    @property
    def sigma(self) -> float: ...


class Run(Protocol):
    """What a calibration asks of a run (types.Env)."""

    @property
    def fingerprint(self) -> str:
        """The checkpoint's; "" where it is not known, as in a forecast of weights that are not fetched."""

    @property
    def solver(self) -> str: ...
    @property
    def shift(self) -> float: ...
    @property
    def shape(self) -> tuple[int, int, int, int]:
        """C, F, H, W of the latents."""

    @property
    def steps(self) -> Sequence[Step]: ...
    @property
    def total(self) -> int: ...
    @property
    def switch(self) -> int | None: ...


@dataclass(frozen=True)
class Fit:
    """TeaCache's polynomial of one expert: the output's relative change as a function of the timestep embedding's."""

    coefficients: tuple[float, ...]
    """Highest power first, as numpy.polyval takes them."""
    threshold: float
    """The suggested one."""
    r2: float | None = None
    """Share of the output's variance that it explains."""


@dataclass(frozen=True)
class Sensitivity:
    """What an expert's velocity changes by (RMS) when its input changes by 1 (RMS), and when t/1000 does (SenCache)."""

    x: float
    t: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """One file, checked. What it does not hold is empty; the methods below refuse in words to give it."""

    name: str
    """As it was asked for."""
    model: str
    fingerprint: str | None
    """None for published figures: they go with every checkpoint of that kind."""
    solver: str | None
    steps: int
    shift: float | None
    switch: int | None
    """Index of the first low-noise step; None for one expert."""
    sigmas: tuple[float, ...] | None
    """Noise level before each step."""
    latents: tuple[int, int, int] | None
    """Frames, height, width of the latents."""
    source: str
    ratios: Mapping[str, np.ndarray]
    """[steps] by branch: mean over tokens of the norm of the block stack's residual to that at the step before."""
    fits: Mapping[str, Fit]
    sensitivities: Mapping[str, Sensitivity]
    plans: Mapping[int, tuple[int, ...]]
    """Indices of the computed steps by their number."""

    def refuse(self, run: Run, *, steps: bool = True) -> None:
        """Raise UsageError where this was not measured on such a run: another checkpoint, solver, shift or size, and
        where `steps` is true another number of steps or place of the expert switch."""
        if self.fingerprint is not None and run.fingerprint and run.fingerprint != self.fingerprint:
            raise UsageError(
                f"calibration {self.name} was made with other weights than this model's",
                REMEDY,
            )
        if self.solver is not None and run.solver != self.solver:
            raise self._other("solver", self.solver, run.solver)
        if self.shift is not None and not math.isclose(run.shift, self.shift, rel_tol=1e-6):
            raise self._other("shift", f"{self.shift:g}", f"{run.shift:g}")
        if self.latents is not None and run.shape[1:] != self.latents:
            raise self._other("latents", "x".join(map(str, self.latents)), "x".join(map(str, run.shape[1:])))
        if (self.switch is None) is not (run.switch is None):
            raise UsageError(
                f"calibration {self.name} has {'no' if self.switch is None else 'an'} expert switch, and this run "
                f"{'has none' if run.switch is None else 'has one'}",
                REMEDY,
            )
        if steps and run.total != self.steps:
            raise self._other("steps", str(self.steps), str(run.total))
        if steps and run.switch != self.switch:
            raise self._other("expert switch", f"step {self.switch}", f"step {run.switch}")
        if steps and self.sigmas is not None:
            for k, (its, step) in enumerate(zip(self.sigmas, run.steps, strict=True)):
                if abs(its - step.sigma) > SIGMA:
                    raise self._other("another schedule: sigma", f"{its:.4f} at step {k}", f"{step.sigma:.4f}")

    def magnitude(self, branch: str, total: int, switch: int | None) -> np.ndarray:
        """The ratio [total] of each step's residual to the one before, 1 at step 0 (MagCache).

        For another number of steps than it was measured at, each expert's stretch is resampled by itself to the nearest
        index, its ends kept: the step of the switch keeps its own value, which one list for both would lose. Raises
        UsageError when there are none.
        """
        if branch not in self.ratios:
            raise self._lacks("magnitude ratios")
        values = self.ratios[branch]
        if switch is None or self.switch is None:
            return _nearest(values, total)
        return np.concatenate(
            [_nearest(values[: self.switch], switch), _nearest(values[self.switch :], total - switch)]
        )

    def fit(self, expert: str) -> Fit:
        """TeaCache's polynomial of an expert. Raises UsageError when there is none."""
        if expert not in self.fits:
            raise self._lacks(f"TeaCache fit for the {expert} expert")
        return self.fits[expert]

    def sensitivity(self, expert: str) -> Sensitivity:
        """SenCache's sensitivities of an expert. Raises UsageError when there are none."""
        if expert not in self.sensitivities:
            raise self._lacks(f"sensitivity for the {expert} expert")
        return self.sensitivities[expert]

    def plan(self, budget: int) -> tuple[int, ...]:
        """The steps that DPCache computes when it may compute so many. Raises UsageError when there is no such plan."""
        if not self.plans:
            raise self._lacks("plans")
        if budget not in self.plans:
            near = sorted(sorted(self.plans, key=lambda n: abs(n - budget))[:2])
            raise UsageError(
                f"calibration {self.name} has no plan of {budget} steps", f"use {' or '.join(map(str, near))}"
            )
        return self.plans[budget]

    def _other(self, what: str, its: str, runs: str) -> UsageError:
        return UsageError(f"calibration {self.name} was made with {what} {its}, and this run has {runs}", REMEDY)

    def _lacks(self, what: str) -> UsageError:
        return UsageError(f"calibration {self.name} has no {what}", REMEDY)


def packaged() -> list[str]:
    """The names of the package's own."""
    return sorted(path.stem for path in SHARED.glob("*.json"))


def of_model(model: str) -> str:
    """The name of the package's calibration for a model by name, directory or hub id. Raises UsageError."""
    name = Path(model).name.lower().removesuffix("-diffusers")
    if name not in packaged():
        raise UsageError(f"there is no calibration of {short(model)} in the package", REMEDY + ", and name it")
    return name


def load(name: str) -> Calibration:
    """A calibration of the package by its name, or a file. Raises UsageError that says what is wrong with it."""
    path = SHARED / f"{name}.json" if name in packaged() else Path(name)
    if path.suffix != ".json":
        raise UsageError(f"there is no calibration '{short(name)}'", suggest(name, packaged()) + ", or name a .json")
    try:
        plain = parse_json(read_bytes(path, MAX_BYTES).decode("utf-8"))
        return parse(name, plain)
    except WanlabError as error:
        raise UsageError(error.message, error.hint) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        said = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())[:160]
        raise UsageError(f"{short(name, 200)} is no calibration: {said}", REMEDY) from error


def parse(name: str, plain: Mapping[str, Any]) -> Calibration:
    """The calibration of a JSON's values. Raises ValueError, TypeError, KeyError or AttributeError for another form."""
    if plain["format"] != FORMAT:
        raise ValueError(f"format {plain['format']!r}, and this wanlab reads {FORMAT}")
    schedule, size = plain["schedule"], plain["size"]
    steps = _whole("steps", schedule["steps"], 1, MAX_STEPS)
    switch = None if schedule["switch"] is None else _whole("switch", schedule["switch"], 1, steps - 1)
    fits = {_expert(e): _fit(fit) for e, fit in plain.get("teacache", {}).items()}
    sensitivities = {
        _expert(e): Sensitivity(_number("sensitivity", s["x"], 0), _number("sensitivity", s["t"], 0))
        for e, s in plain.get("sensitivity", {}).items()
    }
    return Calibration(
        name=name,
        model=str(plain["model"]["name"]),
        fingerprint=_text(plain["model"]["fingerprint"]),
        solver=_text(schedule["solver"]),
        steps=steps,
        shift=None if schedule["shift"] is None else _number("shift", schedule["shift"], 0),
        switch=switch,
        sigmas=_sigmas(schedule.get("sigmas"), steps),
        latents=None if size is None else _latents(size["latents"]),
        source=str(plain["source"]),
        ratios={b: _ratios(plain["magnitude"][b]["mean"], steps) for b in BRANCHES if plain.get("magnitude")},
        fits=fits,
        sensitivities=sensitivities,
        plans={int(k): _plan(keys, int(k), steps, switch) for k, keys in plain.get("plans", {}).items()},
    )


def _fit(plain: Mapping[str, Any]) -> Fit:
    r2 = plain.get("r2")
    coefficients = tuple(_number("coefficient", c) for c in plain["coefficients"])
    if not coefficients:
        raise ValueError("a fit has no coefficients")
    return Fit(coefficients, _number("threshold", plain["threshold"], 0), None if r2 is None else _number("r2", r2))


def _ratios(values: list[Any], steps: int) -> np.ndarray:
    if len(values) != steps:
        raise ValueError(f"{len(values)} magnitude ratios for {steps} steps")
    ratios = np.array([_number("magnitude ratio", v, 0) for v in values])
    if ratios[0] != 1:
        raise ValueError(f"the first magnitude ratio is {ratios[0]:g}, not 1: step 0 has none before it")
    return ratios


def _sigmas(values: list[Any] | None, steps: int) -> tuple[float, ...] | None:
    if values is not None and len(values) != steps:
        raise ValueError(f"{len(values)} sigmas for {steps} steps")
    return None if values is None else tuple(_number("sigma", v, 0) for v in values)


def _plan(keys: list[Any], budget: int, steps: int, switch: int | None) -> tuple[int, ...]:
    plan = tuple(_whole("step of a plan", k, 0, steps - 1) for k in keys)
    if len(plan) != budget or list(plan) != sorted(set(plan)):
        raise ValueError(f"the plan of {budget} steps is {list(plan)}")
    if not {0, switch or 0} <= set(plan):
        raise ValueError(f"the plan of {budget} steps leaves out an expert's first step: nothing crosses the switch")
    return plan


def _nearest(values: np.ndarray, total: int) -> np.ndarray:
    """`total` of the values: the nearest by index, first and last kept; the first alone where one is asked for."""
    at = np.round(np.linspace(0, len(values) - 1, total)).astype(int)
    return np.take(values, at)


def _latents(values: list[Any]) -> tuple[int, int, int]:
    frames, height, width = (_whole("size of the latents", v, 1, MAX_SIZE) for v in values)
    return frames, height, width


def _expert(name: str) -> str:
    if name not in EXPERTS:
        raise ValueError(f"unknown expert {name!r}")
    return name


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _whole(what: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{what} {value!r} is no whole number from {low} to {high}")
    return value


def _number(what: str, value: Any, low: float = -math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < low:
        raise ValueError(f"{what} {value!r} is no number{'' if low < 0 else f' of {low:g} or more'}")
    return float(value)
