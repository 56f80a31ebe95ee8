"""What step caches are calibrated with, of runs that were recorded whole (`--policy measure --record all`).

Numbers in, numbers out: ratios, TeaCache's polynomial, DPCache's plans, SenCache's sensitivities, each with its spread
over prompts. Nothing crosses the expert switch but the ratio of the residuals' norms, which is recorded there too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wanlab.errors import WanlabError

if TYPE_CHECKING:
    from wanlab.runfile import Run

BRANCHES = ("cond", "uncond")
DEGREE = 4
FLAT = 0.01  # a slope below it is none, for the threshold that is suggested
FALLBACK = 0.2  # the threshold where the change is nowhere flat
ENOUGH = 2**18  # values of a velocity that plans are made from: of more, evenly spread ones
MANDATORY = 3  # first steps of a run that every plan computes

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of N steps. NaN where a step has none before it, of its expert, to be held against."""

    prompt: str
    experts: tuple[str, ...]
    """[N]: high, low or single."""
    magnitude: Array
    """[2,N] by branch: norm of the stack's residual to that at the step before, 1 at step 0."""
    embedding: Array
    """[N]: relative change (L1) of the timestep's embedding, the same in every run."""
    output: Array
    """[2,N] by branch: relative change (L1) of the velocity."""
    sensitivity: Array
    """[2,N]: by the latents, by t/1000."""
    misses: Mapping[str, Array]
    """By expert of n steps, [n+1,n,n]: `misses_of` of its velocities."""
    size: float
    """Mean of |v| over steps and branches."""

    @property
    def switch(self) -> int | None:
        """Index of the first low-noise step; None without one."""
        return self.experts.index("low") if len(set(self.experts)) > 1 else None


def read(run: Run) -> Measured:
    """What one run says. Raises WanlabError where it lacks something."""
    experts = tuple(str(e) for e in run["expert"][...])
    output, sizes = np.full((2, len(experts)), np.nan), []
    kept: dict[str, list[Array]] = {}
    before: Array | None = None
    for k, expert in enumerate(experts):
        now = np.stack([run[f"velocity_{b}"][k] for b in BRANCHES]).astype(np.float32)
        if not np.isfinite(now).all():
            raise WanlabError(f"{run.path} has velocities that are no numbers", "make it again")
        if before is not None and expert in kept:
            output[:, k] = [relative_change(a, b) for a, b in zip(before, now, strict=True)]
        sizes.append(float(np.abs(now).mean()))
        flat = now.reshape(2, -1)
        kept.setdefault(expert, []).append(flat[:, :: flat.shape[1] // ENOUGH | 1])  # odd: no multiple of a row
        before = now
    magnitude = np.array(run["measure_magnitude"][...], dtype=float).T
    magnitude[:, 0] = 1.0
    return Measured(
        prompt=run.spec.prompt,
        experts=experts,
        magnitude=magnitude,
        embedding=np.asarray(run["measure_embedding"][...]),
        output=output,
        sensitivity=np.stack([run["measure_sensitivity_x"][...], run["measure_sensitivity_t"][...]]),
        misses={expert: misses_of(np.stack(values)) for expert, values in kept.items()},
        size=float(np.mean(sizes)),
    )


def relative_change(before: Array, after: Array) -> float:
    """mean|after - before| / mean|before|."""
    return float(np.abs(after - before).mean() / np.abs(before).mean())


# --- TeaCache -----------------------------------------------------------------------------------------------------


def fit(inputs: Array, outputs: Array) -> Array:
    """Coefficients, highest power first, of the polynomial of degree 4 that is nearest in least squares."""
    return np.asarray(np.polyfit(inputs, outputs, DEGREE))


def r_squared(coefficients: Array, inputs: Array, outputs: Array) -> float:
    """1 - Σ(y - p(x))² / Σ(y - mean y)²: 1 where it explains all, 0 no more than the mean does; NaN for equal y."""
    spread = np.square(outputs - outputs.mean()).sum()
    return float(1 - np.square(outputs - np.polyval(coefficients, inputs)).sum() / spread) if spread else float("nan")


def suggested_threshold(outputs: Array) -> float:
    """Twice the mean of the output's change [n] over its longest stretch of slope below 0.01, and 0.2 where there is
    none: what a fit that were exact would skip every other step of there. The rule is sglang's (teacache_calibrate.py).
    """
    flat = np.abs(np.diff(outputs)) < FLAT
    best = (0, 0)
    start = 0
    for k, is_flat in enumerate([*flat, False]):
        if not is_flat:
            best = max(best, (k - start, -start))
            start = k + 1
    length, first = best[0], -best[1]
    return float(2 * outputs[first : first + length + 1].mean()) if length else FALLBACK


# --- DPCache ------------------------------------------------------------------------------------------------------


def misses_of(values: Array) -> Array:
    """How far a value [n,...] at step t is from the line through two earlier ones: [n+1,n,n], at [i+1,j,t] for
    i < j < t the mean of |h_j + (h_j - h_i)(t - j)/(j - i) - h_t|, at [0,0,t] of |h_0 - h_t|; NaN elsewhere."""
    n = len(values)
    misses = np.full((n + 1, n, n), np.nan)
    for j in range(n):
        for t in range(j + 1, n):
            gap = values[j] - values[t]
            if j == 0:
                misses[0, 0, t] = np.abs(gap).mean()
            for i in range(j):
                line = (values[j] - values[i]) * np.float32((t - j) / (j - i))
                line += gap
                misses[i + 1, j, t] = np.abs(line, out=line).mean()
    return misses


def costs_of(misses: Array) -> Array:
    """[n+1,n,n+1]: at [i+1,j,k] what is missed between the computed steps j and k, i being computed before j; infinite
    where these do not follow each other. Only an expert's first step has none before it (row 0)."""
    n = misses.shape[1]
    costs = np.full((n + 1, n, n + 1), np.inf)
    for j in range(n):
        for i in range(-1, j):
            if (i < 0) is (j == 0):
                costs[i + 1, j, j + 1 :] = np.concatenate([[0.0], np.cumsum(misses[i + 1, j, j + 1 :])])
    return costs


def best_plans(costs: Array, mandatory: int = 1) -> dict[int, tuple[float, tuple[int, ...]]]:
    """For every number of computed steps the least sum of misses, and the steps: the first `mandatory` and others of
    n. Exact: a dynamic programme over pairs of neighbouring computed steps (DPCache)."""
    n = costs.shape[1]
    costs = costs.copy()
    for j in range(min(mandatory, n) - 1):
        costs[:, j, j + 2 :] = np.inf
    reached = np.full((n + 1, n), np.inf)  # [i+1,j]: the least sum up to the computed step j, i being the one before
    reached[0, 0] = 0.0
    before: list[Array] = []
    plans: dict[int, tuple[float, tuple[int, ...]]] = {}
    for count in range(1, n + 1):
        ends = reached + costs[:, :, n]
        i, j = (int(k) for k in np.unravel_index(np.argmin(ends), ends.shape))
        if np.isfinite(ends[i, j]):
            plans[count] = (float(ends[i, j]), _steps(before, i, j))
        onward = reached[:, :, None] + costs[:, :, :n]
        before.append(onward.argmin(axis=0))
        reached = np.full((n + 1, n), np.inf)
        reached[1:] = onward.min(axis=0)
    return plans


def _steps(before: Sequence[Array], i: int, j: int) -> tuple[int, ...]:
    """The computed steps that end in j after the step i - 1; `before` has by count, step and the one after it what came
    before, i counted as in `best_plans`."""
    steps = [j]
    for choice in reversed(before):
        steps.append(i - 1)
        i, j = int(choice[i - 1, j]), i - 1
    return tuple(reversed(steps))


def join_plans(
    parts: Sequence[tuple[int, Mapping[int, tuple[float, tuple[int, ...]]]]],
) -> dict[int, tuple[int, ...]]:
    """Plans of the whole run by their number of steps, of those of its experts: (first step, plans) of each."""
    joined: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for first, plans in parts:
        longer: dict[int, tuple[float, tuple[int, ...]]] = {}
        for count, (cost, steps) in joined.items():
            for more, (own, added) in plans.items():
                total = (cost + own, (*steps, *(first + k for k in added)))
                longer[count + more] = min(longer.get(count + more, total), total)
        joined = longer
    return {count: steps for count, (_, steps) in sorted(joined.items())}


def missed(plan: Sequence[int], run: Measured) -> float:
    """What a plan misses of a run: the mean of |forecast - velocity| over all its steps, computed ones counting 0, to
    the mean of |velocity|."""
    total, first = 0.0, 0
    for expert in dict.fromkeys(run.experts):
        costs = costs_of(run.misses[expert])
        n = costs.shape[1]
        keys = [k - first for k in plan if first <= k < first + n]
        for at, j in enumerate(keys):
            i = keys[at - 1] if at else -1
            total += float(costs[i + 1, j, keys[at + 1] if at + 1 < len(keys) else n])
        first += n
    return total / len(run.experts) / run.size


# --- all of it ----------------------------------------------------------------------------------------------------


def over_prompts(values: Sequence[Any], prompts: Sequence[str]) -> tuple[Array, Array | None]:
    """(mean, standard deviation) over prompts of values, one a run, each prompt's runs averaged first; None for the
    deviation of a single prompt."""
    each = [
        np.mean([v for v, p in zip(values, prompts, strict=True) if p == own], axis=0) for own in dict.fromkeys(prompts)
    ]
    return np.mean(each, axis=0), np.std(each, axis=0, ddof=1) if len(each) > 1 else None


def summarise(runs: Sequence[Measured]) -> tuple[dict[str, Any], list[str]]:
    """(the measured part of a calibration file, what is lacking in it and why)."""
    prompts, experts = [r.prompt for r in runs], runs[0].experts
    mean, sd = over_prompts([r.magnitude for r in runs], prompts)
    slopes, _ = over_prompts([r.sensitivity for r in runs], prompts)
    parts: dict[str, Any] = {
        "magnitude": {
            b: {"mean": mean[k].tolist(), "sd": None if sd is None else sd[k].tolist()} for k, b in enumerate(BRANCHES)
        },
        "embedding_change": _listed(runs[0].embedding),
        "teacache": {},
        "sensitivity": {},
        "sensitivity_by_step": {"x": _listed(slopes[0]), "t": _listed(slopes[1])},
    }
    remarks = []
    for expert in dict.fromkeys(experts):
        at = np.array([e == expert for e in experts]) & np.isfinite(runs[0].embedding)
        if len(set(runs[0].embedding[at])) <= DEGREE + 1:
            remarks.append(f"no TeaCache fit of the {expert} expert: {at.sum() + 1} steps, {DEGREE + 3} are needed")
        else:
            parts["teacache"][expert] = _teacache(runs, at)
        if at.any():
            means, deviations = over_prompts([np.median(r.sensitivity[:, at], axis=1) for r in runs], prompts)
            parts["sensitivity"][expert] = {"x": float(means[0]), "t": float(means[1])} | (
                {"x_sd": None, "t_sd": None}
                if deviations is None
                else {"x_sd": float(deviations[0]), "t_sd": float(deviations[1])}
            )
    return parts | _plans(runs), remarks


def _listed(values: Array) -> list[float | None]:
    return [None if np.isnan(v) else float(v) for v in values]


def _teacache(runs: Sequence[Measured], at: Array) -> dict[str, Any]:
    inputs = runs[0].embedding[at]
    each = np.tile(inputs, len(BRANCHES))
    outputs = [r.output[:, at].ravel() for r in runs]
    x, y = np.tile(each, len(runs)), np.concatenate(outputs)
    coefficients = fit(x, y)
    own = [r_squared(coefficients, each, o) for o in outputs]
    mean, sd = over_prompts(own, [r.prompt for r in runs])
    return {
        "coefficients": coefficients.tolist(),
        "r2": r_squared(coefficients, x, y),
        "r2_prompts": {"mean": float(mean), "sd": None if sd is None else float(sd)},
        "pairs": len(x),
        "threshold": suggested_threshold(np.mean([r.output[:, at].mean(axis=0) for r in runs], axis=0)),
    }


def _plans(runs: Sequence[Measured]) -> dict[str, Any]:
    prompts, experts = [r.prompt for r in runs], runs[0].experts
    parts = []
    for k, expert in enumerate(dict.fromkeys(experts)):
        mean, _ = over_prompts([r.misses[expert] for r in runs], prompts)
        parts.append((experts.index(expert), best_plans(costs_of(mean), MANDATORY if k == 0 else 1)))
    plans = join_plans(parts)
    errors = {}
    for count, plan in plans.items():
        mean, sd = over_prompts([missed(plan, r) for r in runs], prompts)
        errors[str(count)] = {"mean": float(mean), "sd": None if sd is None else float(sd)}
    return {"plans": {str(count): list(plan) for count, plan in plans.items()}, "plan_errors": errors}
