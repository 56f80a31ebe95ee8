"""Methods against a baseline: pairs of runs, what they cost and how far apart they end, and what can be said of it.

A pair is one prompt and one seed sampled by both, from the same noise. Every figure of a method is over its pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanlab.analysis.fidelity import Clip, Fidelity, Steadiness, compare, steadiness
from wanlab.analysis.stats import Interval, caution, grouped, interval, ratio
from wanlab.errors import UsageError
from wanlab.registry import suggest
from wanlab.runfile import Run

Floats = NDArray[np.float64]
FORMAT = "wanlab-comparison/1"
# The experiment guide's reading: PSNR above 35 dB is "minimal loss", SSIM above .98 "structure kept".
THRESHOLDS = {"psnr": 35.0, "ssim": 0.98}
FAR = 0.10  # predicted and measured speed-ups further apart than this are explained


@dataclass(frozen=True, kw_only=True, eq=False)
class Cost:
    """What a run did, from its file."""

    passes: int
    tokens: int
    flops: float
    """Predicted floating-point operations of the passes that ran."""
    sampling: float
    """Seconds of the sampling loop."""
    total: float
    """Seconds of encoding, sampling, recording, decoding and writing; loading and warm-up are one-off."""
    process: str
    """Empty when it cannot be timed against others: it was resumed."""
    seconds_by_step: Floats
    flops_by_step: Floats
    frames_by_step: NDArray[np.int64]
    passes_by_step: NDArray[np.int64]

    @classmethod
    def of(cls, run: Run) -> Cost:
        timing, predicted = run.attrs.get("timing_seconds", {}), run.attrs.get("predicted", {})
        seconds = np.asarray(run["seconds"], np.float64)
        flops = np.asarray(predicted.get("flops_by_step", []), np.float64)
        return cls(
            passes=int(np.asarray(run["passes"]).sum()), tokens=int(np.asarray(run["tokens"]).sum()),
            flops=float(flops.sum()) if len(flops) else math.nan, sampling=float(seconds.sum()),
            total=float(seconds.sum()) + sum(timing.get(k, 0.0) for k in ("encode", "recording", "decode", "write")),
            process="" if run.attrs.get("resumed_from_step") else str(run.attrs.get("process", "")),
            seconds_by_step=seconds, flops_by_step=flops, frames_by_step=np.asarray(run["frames"], np.int64),
            passes_by_step=np.asarray(run["passes"], np.int64),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Divergence:
    """How far A's latents are from B's at the beginning of each step, and after the last: arrays [steps + 1].

    error is |a - b| / |b|; where A works on some of the frames, it is held against the same frames of B.
    """

    error: Floats
    cosine: Floats
    switch: int | None
    """Steps before the expert switch."""
    truncated: tuple[int, ...]
    """Steps (from 0) at which A evaluated fewer branches than B."""

    @property
    def parted(self) -> int | None:
        """The first step (from 1) whose result differs; None when the latents never part."""
        apart = np.flatnonzero(self.error > 0)
        return int(apart[0]) if len(apart) else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"error": self.error.tolist(), "cosine": self.cosine.tolist(), "switch": self.switch, "truncated": list(self.truncated), "parted": self.parted}  # fmt: skip


def divergence(a: Run, b: Run) -> Divergence | None:
    """None when either has no latents recorded at the same steps, or other noise levels."""
    if "x_t" not in a or "x_t" not in b or a.steps != b.steps:
        return None
    if not np.allclose(np.asarray(a["sigma"]), np.asarray(b["sigma"]), rtol=0, atol=1e-9):
        return None
    strides = np.asarray(a["frame_stride"]), np.asarray(b["frame_stride"])
    recorded = sorted(set(a["x_t"].recorded) & set(b["x_t"].recorded))
    error, cosine = np.full(a.steps + 1, np.nan), np.full(a.steps + 1, np.nan)
    for k in recorded:
        x, y = a["x_t"][k], b["x_t"][k]
        if strides[1][k] == 1:
            y = y[:, :: strides[0][k]]
        if x.shape == y.shape:
            error[k], cosine[k] = apart(x, y)
    if a["latent"].shape == b["latent"].shape:
        error[-1], cosine[-1] = apart(a["latent"][...], b["latent"][...])
    expert = np.asarray(b["expert"])
    low = np.flatnonzero(expert == "low")
    fewer = np.flatnonzero(np.asarray(a["passes"]) < np.asarray(b["passes"]))
    return Divergence(
        error=error, cosine=cosine, switch=int(low[0]) if len(low) and "high" in expert else None,
        truncated=tuple(int(k) for k in fewer),
    )  # fmt: skip


def apart(x: NDArray[Any], y: NDArray[Any]) -> tuple[float, float]:
    """|x - y| / |y| and the cosine of x and y; (0, 1) for equal arrays, NaN where a norm is 0."""
    if np.array_equal(x, y):
        return 0.0, 1.0
    a, b = x.astype(np.float64).ravel(), y.astype(np.float64).ravel()
    norm_a, norm_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    if not norm_a or not norm_b:
        return math.nan, math.nan
    return float(np.linalg.norm(a - b)) / norm_b, float(a @ b) / (norm_a * norm_b)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """One prompt and seed, sampled by a method (A) and by the baseline (B)."""

    prompt: str
    seed: int
    a: Path
    b: Path
    fidelity: Fidelity
    steady_a: Steadiness
    steady_b: Steadiness
    cost_a: Cost | None = None
    """None for a video file: nobody knows what it cost."""
    cost_b: Cost | None = None
    divergence: Divergence | None = None

    @property
    def figures(self) -> dict[str, float]:
        """The pair's figures by the names that summaries, exports and thresholds use."""
        f, a, b = self.fidelity, self.cost_a, self.cost_b
        found = {n: getattr(f, n) for n in ("psnr", "ssim", "mse", "abs_mean", "abs_max", "abs_std", "rel_mean", "rel_max", "vmaf")}  # fmt: skip
        found |= {
            "latent_error": float(self.divergence.error[-1]) if self.divergence else math.nan,
            "difference": self.steady_a.difference, "difference_baseline": self.steady_b.difference,
            "warping_error": self.steady_a.warping_error, "warping_error_baseline": self.steady_b.warping_error,
        }  # fmt: skip
        if a and b:
            found |= {"passes": a.passes, "passes_baseline": b.passes, "tokens": a.tokens, "tokens_baseline": b.tokens,
                      "speedup_predicted": b.flops / a.flops, "seconds": a.sampling, "seconds_baseline": b.sampling,
                      "seconds_total": a.total, "seconds_total_baseline": b.total}  # fmt: skip
        return found


def measure(
    a: Path,
    b: Path,
    *,
    vmaf: bool = False,
    steady: dict[Path, Steadiness] | None = None,
    prompt: str = "",
    seed: int = 0,
) -> Pair:
    """The pair of two run files, or two video files, or one of each. `steady` remembers clips seen before.

    Raises UsageError when they cannot be compared, WanlabError when one is damaged.
    """
    known = {} if steady is None else steady
    clips = [Clip.of(p) for p in (a, b)]
    fidelity = compare(clips[0], clips[1], vmaf=vmaf)
    for clip in clips:
        if clip.path not in known:
            known[clip.path] = steadiness(clip)
    more: dict[str, Any] = {}
    if a.suffix == b.suffix == ".h5":
        with Run(a) as run_a, Run(b) as run_b:
            more = {"cost_a": Cost.of(run_a), "cost_b": Cost.of(run_b), "divergence": divergence(run_a, run_b)}
            prompt, seed = run_b.spec.prompt, run_b.spec.seed
    return Pair(prompt=prompt, seed=seed, a=a, b=b, fidelity=fidelity, steady_a=known[clips[0].path],
                steady_b=known[clips[1].path], **more)  # fmt: skip


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
        """Every figure's mean with its interval. PSNR: the mean over pairs in dB; if some pairs are identical, that of
        the mean MSE, without an interval. Times only from pairs that one process sampled without a pause."""
        prompts = [p.prompt for p in self.pairs]
        figures = [p.figures for p in self.pairs]
        names = [n for n in figures[0] if not n.startswith("seconds")]
        found = {n: grouped([f.get(n, math.nan) for f in figures], prompts)[0] for n in names}
        found = {
            n: i.within(-math.inf if n in ("psnr", "ssim") else 0.0, 1.0 if n == "ssim" else math.inf)
            for n, i in found.items()
        }
        if any(p.fidelity.identical for p in self.pairs):
            mse = found["mse"].mean
            found["psnr"] = Interval(
                -10 * math.log10(mse) if mse > 0 else math.inf, math.nan, math.nan, len(self.pairs)
            )
        timed = self.timed
        for name, which in (("speedup", "sampling"), ("speedup_total", "total")):
            times = [(getattr(p.cost_a, which), getattr(p.cost_b, which)) for p in timed]
            found[name] = ratio([t[0] for t in times], [t[1] for t in times]) if times else interval([])
        return found

    @property
    def timed(self) -> list[Pair]:
        """Pairs whose runs one process sampled, neither being resumed: only these can be timed against each other."""
        return [p for p in self.pairs if p.cost_a and p.cost_b and p.cost_a.process and p.cost_a.process == p.cost_b.process]  # fmt: skip

    @property
    def units(self) -> tuple[int, str]:
        """How many independent units the intervals rest on, and what they are."""
        found, units = grouped([p.fidelity.mse for p in self.pairs], [p.prompt for p in self.pairs])
        return found.n, units

    @property
    def identical(self) -> bool:
        return all(p.fidelity.identical for p in self.pairs)

    @property
    def worst(self) -> Pair:
        """The pair with the largest MSE."""
        return max(self.pairs, key=lambda p: p.fidelity.mse)

    def by_prompt(self) -> list[dict[str, Any]]:
        """The means of each prompt over its seeds."""
        rows = []
        for prompt in dict.fromkeys(p.prompt for p in self.pairs):
            own = [p.fidelity for p in self.pairs if p.prompt == prompt]
            rows.append({"prompt": prompt, "seeds": len(own), "psnr": float(np.mean([f.psnr for f in own])),
                         "ssim": float(np.mean([f.ssim for f in own])), "mse": float(np.mean([f.mse for f in own]))})  # fmt: skip
        return rows

    def where_time_went(self) -> str:
        """A sentence when predicted and measured speed-up of the sampling loop are further apart than 10 %; else ""."""
        timed, s = self.timed, self.summary
        predicted, measured = s["speedup_predicted"].mean if "speedup_predicted" in s else math.nan, s["speedup"].mean
        if not timed or not math.isfinite(predicted) or abs(measured / predicted - 1) <= FAR:
            return ""
        excess: dict[tuple[int, int], list[float]] = {}
        for pair in timed:
            a, b = pair.cost_a, pair.cost_b
            assert a and b
            rate = b.sampling / b.flops  # seconds per operation that the baseline took
            for frames in np.unique(a.frames_by_step):
                for passes in np.unique(a.passes_by_step):
                    own = (a.frames_by_step == frames) & (a.passes_by_step == passes)
                    if own.any():
                        took, expected = a.seconds_by_step[own].sum(), a.flops_by_step[own].sum() * rate
                        excess.setdefault((int(frames), int(passes)), []).append(float(took - expected))
        (frames, passes), seconds = max(excess.items(), key=lambda item: abs(np.mean(item[1])))
        more = float(np.mean(seconds))
        return (
            f"{self.label}: {predicted:.2f}x predicted from operations, {measured:.2f}x measured; its steps of "
            f"{frames} latent frames and {passes} pass{'es' * (passes != 1)} took {abs(more):.2f} s "
            f"{'more' if more > 0 else 'less'} than at the baseline's pace"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        n, units = self.units
        return {
            "label": self.label, "method": self.method, "setting": dict(self.setting), "n": n, "units": units, "pairs_measured": len(self.pairs),
            "identical": self.identical, "summary": {k: _plain(v.to_dict(), k) for k, v in self.summary.items()},
            "by_prompt": [_plain(r, "psnr") for r in self.by_prompt()], "worst": {"prompt": self.worst.prompt, "seed": self.worst.seed},
            "pairs": [
                {"prompt": p.prompt, "seed": p.seed, "a": str(p.a), "b": str(p.b), **{k: "identical" if k == "psnr" and math.isinf(v) else v for k, v in p.figures.items()},
                 "rounded": p.fidelity.rounded, "worst_frame": p.fidelity.worst_frame,
                 "psnr_by_frame": ["identical" if math.isinf(v) else v for v in p.fidelity.psnr_by_frame.tolist()],
                 "ssim_by_frame": p.fidelity.ssim_by_frame.tolist(),
                 "divergence": p.divergence.to_dict() if p.divergence else None}
                for p in self.pairs
            ],
        }  # fmt: skip


def _plain(values: dict[str, Any], name: str) -> dict[str, Any]:
    """An infinite PSNR as the word "identical"."""
    return {k: "identical" if name == "psnr" and isinstance(v, float) and math.isinf(v) else v for k, v in values.items()}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Methods, noise floors and the baseline they were held against."""

    baseline: str
    results: tuple[Result, ...]
    floors: tuple[Result, ...] = ()
    """The baseline again, computed another way: what a difference must exceed to mean anything."""
    thresholds: Mapping[str, float] = field(default_factory=lambda: dict(THRESHOLDS))

    def under_floor(self, result: Result) -> Result | None:
        """The noise floor that `result` does not rise above, None when it does (or there is none)."""
        below = [f for f in self.floors if result.summary["mse"].mean <= f.summary["mse"].mean]
        return min(below, key=lambda f: f.summary["mse"].mean) if below and not result.identical else None

    def verdict(self, result: Result) -> str:
        """What can be said of a method, in few words, against the thresholds and the floor."""
        if result.identical:
            return "identical"
        if (floor := self.under_floor(result)) is not None:
            return f"indistinguishable (under {floor.label})"
        said = []
        for name, good, bad in (("psnr", "minimal loss", "loss"), ("ssim", "structure kept", "structure lost")):
            found, bound = result.summary[name], self.thresholds[name]
            if found.known and found.low <= bound <= found.high:
                said.append(f"undecided at {bound:g} {'dB' if name == 'psnr' else 'SSIM'}")
            else:
                said.append(good if found.mean > bound else bad)
        return ", ".join(said)

    def remarks(self) -> list[str]:
        """What to bear in mind when reading the table, in sentences."""
        every = (*self.floors, *self.results)
        said = [*self.at_equal_cost(), *(caution(*r.units) for r in every[:1])]
        if any(p.fidelity.rounded for r in every for p in r.pairs):
            said.append("some videos were compared after rounding to 8 bits: small differences are hidden")
        if self.results and not any(r.timed for r in self.results):
            said.append(
                "no measured speed-up: the runs are of different processes; --force samples them again together"
            )
        said += [r.where_time_went() for r in self.results]
        return [s for s in said if s]

    def at_equal_cost(self) -> list[str]:
        """Which of the methods that cost the same operations loses least, from differences within pairs: the methods
        share prompts and seeds, so their difference is known much better than either loss."""
        groups: dict[float, list[Result]] = {}
        for result in self.results:
            cost = result.summary.get("speedup_predicted")
            if (
                cost
                and math.isfinite(cost.mean)
                and cost.mean > 1
                and not any(p.fidelity.identical for p in result.pairs)
            ):
                groups.setdefault(round(1 / cost.mean, 6), []).append(result)
        said = []
        for share, results in sorted(groups.items()):
            if len(results) < 2:
                continue
            best, *others = sorted(results, key=lambda r: -r.summary["psnr"].mean)
            psnr = {(p.prompt, p.seed): p.fidelity.psnr for p in best.pairs}
            against = []
            for other in others:
                shared = [p for p in other.pairs if (p.prompt, p.seed) in psnr]
                differences = [psnr[p.prompt, p.seed] - p.fidelity.psnr for p in shared]
                found, _ = grouped(differences, [p.prompt for p in shared])
                spread = f" ({found.low:.2f} to {found.high:.2f})" if found.known else ""
                apart = "" if found.known and found.low > 0 else ", which is not enough to tell them apart"
                against.append(f"{found.mean:.2f} dB{spread} above {other.label}{apart}")
            said.append(f"at {share:.3f} of the operations {best.label} loses least: PSNR {'; '.join(against)}")
        return said

    def cheapest(self, metric: str, bound: float) -> tuple[Result | None, Result | None]:
        """The cheapest method whose `metric` stays above `bound` for certain (its whole interval; its mean when
        there is no interval), and the cheapest one of which only the mean does."""
        by_cost = sorted(self.results, key=lambda r: -r.summary["speedup_predicted"].mean)
        sure = [r for r in by_cost if (r.summary[metric].low if r.summary[metric].known else r.summary[metric].mean) > bound]  # fmt: skip
        likely = [r for r in by_cost if r.summary[metric].mean > bound]
        return (sure[0] if sure else None), (likely[0] if likely else None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; docs/comparison.schema.json describes them."""
        return {
            "format": FORMAT, "baseline": self.baseline, "thresholds": dict(self.thresholds),
            "noise_floor": [r.to_dict() for r in self.floors],
            "methods": [r.to_dict() | {"verdict": self.verdict(r)} for r in self.results], "remarks": self.remarks(),
        }  # fmt: skip


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, quality) that no other one beats: none costs no more and is better, or costs less
    and is as good. In order of cost."""
    front: list[int] = []
    best = -math.inf
    for k in sorted(range(len(points)), key=lambda k: (points[k][0], -points[k][1])):
        if points[k][1] > best:
            front.append(k)
            best = points[k][1]
    return front


def failures(results: Iterable[Result], conditions: Sequence[tuple[str, str, float]]) -> list[str]:
    """The conditions that hold for a method's mean, in words: ("psnr", "<", 35)."""
    said = []
    for result in results:
        for metric, sign, bound in conditions:
            value = result.summary[metric].mean
            holds = {"<": value < bound, "<=": value <= bound, ">": value > bound, ">=": value >= bound}[sign]
            if holds or math.isnan(value):
                said.append(f"{result.label}: {metric} is {value:.6g}, {sign} {bound:g}")
    return said


def parse_condition(text: str) -> tuple[str, str, float]:
    """`psnr<35` as ("psnr", "<", 35.0). Raises UsageError for another form or an unknown figure."""
    for sign in ("<=", ">=", "<", ">"):
        name, found, value = text.partition(sign)
        if found:
            name = name.strip().lower()
            if name not in CONDITIONS:
                raise UsageError(f"'{name[:40]}' is no figure of a comparison", suggest(name, CONDITIONS))
            try:
                return name, sign, float(value)
            except ValueError:
                break
    raise UsageError(f"'{text[:60]}' is no condition", 'write --fail-if "psnr<35"')


CONDITIONS = ("psnr", "ssim", "mse", "abs_mean", "abs_max", "abs_std", "rel_mean", "rel_max", "vmaf", "latent_error", "difference",
              "warping_error", "passes", "tokens", "speedup_predicted", "speedup", "speedup_total")  # fmt: skip
