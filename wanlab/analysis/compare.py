"""Methods against a baseline: pairs of runs, what they cost and how far apart they end, and what can be said of it.

A pair is one prompt and one seed sampled by both, from the same noise. Every figure of a method is over its pairs;
which figures there are says the registry of metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from wanlab.analysis import clips, verdict
from wanlab.analysis import metrics as registered
from wanlab.analysis.fidelity import Fidelity, Known
from wanlab.analysis.fidelity import compare as compare_clips
from wanlab.analysis.key import Key
from wanlab.analysis.metrics import BASELINE, Metric
from wanlab.analysis.metrics.adherence import judged
from wanlab.analysis.metrics.clip import Clip, Floats
from wanlab.analysis.metrics.cost import Cost
from wanlab.analysis.metrics.latent import Divergence, apart, are_finite, divergence
from wanlab.analysis.stats import Interval, geometric, grouped, units
from wanlab.analysis.verdict import THRESHOLDS, Bound, failures, parse_condition, parse_losses
from wanlab.embedded.suite import NAMES
from wanlab.runfile import Run
from wanlab.spec.paths import is_run_file

__all__ = [
    "FORMAT",
    "THRESHOLDS",
    "Clip",
    "Comparison",
    "Cost",
    "Divergence",
    "Fidelity",
    "Known",
    "Pair",
    "Result",
    "apart",
    "divergence",
    "failures",
    "measure",
    "pareto",
    "parse_condition",
    "parse_losses",
]

FORMAT = "wanlab-comparison/1"


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """One prompt and seed, sampled by a method (A) and by the baseline (B)."""

    prompt: str
    seed: int
    a: Path
    b: Path
    fidelity: Fidelity
    figures: Mapping[str, float]
    """The pair's figures by the names that summaries, exports and thresholds use."""
    keys: tuple[Key, Key] | None = None
    """What A's and B's run may be pooled by; None of video files."""
    cost_a: Cost | None = None
    """None for a video file: nobody knows what it cost."""
    cost_b: Cost | None = None
    divergence: Divergence | None = None

    @property
    def timed(self) -> bool:
        """Whether one process sampled both without a pause: only then can they be timed against each other."""
        a, b = self.cost_a, self.cost_b
        return bool(a and b and a.process and a.process == b.process)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        by_frame = self.fidelity.by_frame
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "a": str(self.a),
            "b": str(self.b),
            "key": None if self.keys is None else asdict(self.keys[1]),
            **{n: m.plain(self.figures[n]) for n, m in registered.by_figure().items() if n in self.figures},
            "rounded": self.fidelity.rounded,
            "worst_frame": self.fidelity.worst_frame,
            "psnr_by_frame": [registered.get("psnr").plain(v) for v in by_frame["psnr"].tolist()],
            "ssim_by_frame": by_frame["ssim"].tolist(),
            "divergence": self.divergence.to_dict() if self.divergence else None,
        }


def measure(
    a: Path,
    b: Path,
    *,
    metrics: Sequence[str] = (),
    known: Known | None = None,
    prompt: str = "",
    seed: int = 0,
    told: Callable[[int], None] = lambda done: None,
) -> Pair:
    """The pair of two run files, or two video files, or one of each.

    metrics  measured beyond those that always are: names, or files that register some
    known    remembers what was measured of a clip alone, for the next pairs
    told     is told how many frames are done

    Raises UsageError when they cannot be compared, WanlabError when one is damaged.
    """
    wanted = registered.chosen(metrics)
    known = {} if known is None else known
    fidelity = compare_clips(Clip.of(a), Clip.of(b), metrics=wanted, known=known, told=told)
    figures, more = dict(fidelity.figures), dict[str, Any]()
    if is_run_file(a) and is_run_file(b):
        with Run(a) as run_a, Run(b) as run_b:
            costs = Cost.of(run_a), Cost.of(run_b)
            more = {
                "keys": (Key.of(run_a), Key.of(run_b)),
                "cost_a": costs[0],
                "cost_b": costs[1],
                "divergence": divergence(run_a, run_b),
            }
            prompt, seed = run_b.spec.prompt, run_b.spec.seed
            if not (are_finite(run_a) and are_finite(run_b)):  # their frames mean nothing, whatever they look like
                fidelity = fidelity.unknown()
                figures = dict(fidelity.figures)
            verdicts = [_verdict(run, known[path]) for path, run in ((a, run_a), (b, run_b))]
            for m in wanted:
                if m.needs == "verdict":
                    figures |= {m.name: m(verdicts[0]), m.name + BASELINE: m(verdicts[1])}
                elif m.needs == "runs":
                    figures[m.name] = m(run_a, run_b)
                elif m.needs == "run":
                    figures |= {m.name: m(costs[0]), m.name + BASELINE: m(costs[1])}
    pair = Pair(prompt=prompt, seed=seed, a=a, b=b, fidelity=fidelity, figures=figures, **more)
    figures = registered.values(wanted, figures | {"timed": float(pair.timed)})
    ordered = {n: figures[n] for n in registered.by_figure(wanted) if n in figures}
    return Pair(prompt=prompt, seed=seed, a=a, b=b, fidelity=fidelity, figures=ordered, **more)


def _verdict(run: Run, of_clip: dict[str, Floats]) -> Floats:
    """What the verifier says of a run, once."""
    if "verdict" not in of_clip:
        of_clip["verdict"] = judged(run)
    return of_clip["verdict"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """A method against the baseline over all pairs."""

    label: str
    pairs: tuple[Pair, ...]
    method: str = ""
    """Its policies and settings, as --a takes them; "" of two files."""
    setting: Mapping[str, Any] = field(default_factory=dict)
    """The values that a sweep gave it."""

    @cached_property
    def summary(self) -> dict[str, Interval]:
        """Every figure's mean with its interval, as its registration says (Metric.mean, Metric.bounds)."""
        return {n: self.mean(n) for n, m in self.metrics.items() if m.mean != "none"}

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """The measures that gave the figures of the pairs, by figure."""
        return {n: m for n, m in registered.by_figure().items() if n in self.pairs[0].figures}

    def values(self, name: str) -> list[float]:
        """A figure of every pair."""
        return [p.figures.get(name, math.nan) for p in self.pairs]

    def mean(self, name: str, factor: float | None = None) -> Interval:
        """The mean of a figure; `factor` makes intervals that hold together (see stats.simultaneous)."""
        metric = self.metrics[name]
        if metric.interval:
            return metric.interval(name, self.values, self.prompts, factor)
        if metric.mean == "geometric":
            return geometric([v for v in self.values(name) if math.isfinite(v)])
        if metric.mean != "arithmetic":
            base = self.mean(metric.mean, factor)
            value, *ends = (metric({metric.mean: v}) for v in (base.mean, base.low, base.high))
            low, high = (math.nan, math.nan) if any(map(math.isnan, ends)) else sorted(ends)
            return Interval(value, low, high, base.n)
        low, high = metric.bounds
        far = metric.better == "lower" and low == 0  # of an error the upper limit is far away: there it is only cut
        limits = (low, math.inf if far else high)
        values = self.values(name)
        counted = metric.counted(values)
        prompts = list(compress(self.prompts, counted))
        return grouped(list(compress(values, counted)), prompts, limits, factor=factor)[0].within(low, high)

    def median(self, name: str) -> float:
        """A figure of the pair in the middle; of two in the middle, that of their mean error where its mean is."""
        metric = self.metrics.get(name)
        if metric and metric.mean not in ("arithmetic", "geometric", "none"):
            return metric({metric.mean: self.median(metric.mean)})
        return float(np.median(self.values(name)))

    @property
    def prompts(self) -> list[str]:
        """The prompt of every pair."""
        return [p.prompt for p in self.pairs]

    @property
    def timed(self) -> list[Pair]:
        """Pairs that can be timed."""
        return [p for p in self.pairs if p.timed]

    @property
    def units(self) -> tuple[int, str]:
        """How many independent units the intervals rest on, and what they are."""
        own, what = units(self.values("mse"), self.prompts)
        return len(own), what

    @property
    def identical(self) -> bool:
        return all(p.fidelity.identical for p in self.pairs)

    @property
    def rounded(self) -> bool:
        """Whether a video had been rounded to integers."""
        return any(p.fidelity.rounded for p in self.pairs)

    @property
    def worst(self) -> Pair:
        """The pair with the largest MSE; one that is not finite before all."""
        return max(self.pairs, key=lambda p: p.figures["mse"] if math.isfinite(p.figures["mse"]) else math.inf)

    def by_prompt(self) -> list[dict[str, Any]]:
        """The means of each prompt over its seeds."""
        rows = []
        for prompt in dict.fromkeys(self.prompts):
            own = Result(label=self.label, pairs=tuple(p for p in self.pairs if p.prompt == prompt))
            means = {n: own.mean(n).mean for n in ("psnr", "ssim", "mse")}
            rows.append({"prompt": prompt, "name": NAMES.get(prompt, ""), "seeds": len(own.pairs), **means})
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        n, what = self.units
        shown = self.metrics
        return {
            "label": self.label,
            "method": self.method,
            "setting": dict(self.setting),
            "n": n,
            "units": what,
            "pairs_measured": len(self.pairs),
            "identical": self.identical,
            "summary": {k: _plain(v.to_dict(), shown[k].plain) for k, v in self.summary.items()},
            "median": {k: shown[k].plain(self.median(k)) for k in self.summary},
            "by_prompt": [r | {k: shown[k].plain(r[k]) for k in ("psnr", "ssim", "mse")} for r in self.by_prompt()],
            "followed": clips.followed(self),
            "worst": {"prompt": self.worst.prompt, "seed": self.worst.seed},
            "pairs": [p.to_dict() for p in self.pairs],
        }


def _plain(values: dict[str, Any], word: Callable[[float], float | str]) -> dict[str, Any]:
    return {k: v if k == "n" else word(v) for k, v in values.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Methods, noise floors and the baseline they were held against. What can be said of it: verdict.py."""

    baseline: str
    results: tuple[Result, ...]
    floors: tuple[Result, ...] = ()
    """The baseline again, computed another way: what a difference must exceed to mean anything."""
    confirmed: tuple[Result, ...] = ()
    """What a sweep chose, measured again on seeds that had no part in the choice."""
    thresholds: Mapping[str, float] = field(default_factory=lambda: dict(THRESHOLDS))

    @property
    def every(self) -> tuple[Result, ...]:
        """Noise floors, methods, and what was measured again."""
        return (*self.floors, *self.results, *self.confirmed)

    def verdict(self, result: Result) -> str:
        """What can be said of a method, in few words, against the thresholds and the floor."""
        return verdict.verdict(result, self.floors, self.thresholds)

    def remarks(self) -> list[str]:
        """What to bear in mind when reading the table, in sentences."""
        return [*verdict.remarks(self.results, self.floors), *clips.remarks((*self.floors, *self.results))]

    def cheapest(self, *bounds: Bound) -> tuple[Result | None, Result | None]:
        """The cheapest method that keeps within all bounds for certain, and the cheapest of which only the means do."""
        return verdict.cheapest(self.results, *bounds)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; docs/comparison.schema.json describes them."""
        return {
            "format": FORMAT,
            "baseline": self.baseline,
            "thresholds": dict(self.thresholds),
            "noise_floor": [r.to_dict() for r in self.floors],
            "methods": [r.to_dict() | {"verdict": self.verdict(r)} for r in self.results],
            "confirmed": [r.to_dict() | {"verdict": self.verdict(r)} for r in self.confirmed],
            "remarks": self.remarks(),
        }


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, quality) that no other one beats: none costs no more and is better, or costs less
    and is as good. In order of cost; a point that is not a number is on no front."""
    front: list[int] = []
    best = -math.inf
    known = [k for k, (cost, quality) in enumerate(points) if not (math.isnan(cost) or math.isnan(quality))]
    for k in sorted(known, key=lambda k: (points[k][0], -points[k][1])):
        if points[k][1] > best:
            front.append(k)
            best = points[k][1]
    return front
