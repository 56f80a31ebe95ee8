"""Continuity in time: how far neighbouring latent frames are from each other at each step, and what explains it.

Spaces: x_t, x0_pred, eps_pred and velocity (latent frames), and the final video (frames in [0,1]). Of neighbours a, b:
mse = mean((a-b)²), cosine = <a,b>/(|a||b|), normalised_l2 = |a-b|/sqrt(|a|²+|b|²). Arrays are [steps, pairs], NaN where
a step has no value or fewer pairs; means and standard deviations are over a step's pairs, the latter the population's
(divided by their number). Neighbours are neighbours among the frames that a step worked on: see `stride`.

Theory: x_t = (1-σ) x0 + σ ε with noise that is independent of x0 and from frame to frame gives
mse = (1-σ)² m0 + 2σ², m0 being that of the final latent. docs/methods.md, "Continuity", has what follows from it.

Steps are counted from 0 here, from 1 in sentences and in `statistics`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from wanlab.errors import WanlabError
from wanlab.runfile import Data, Run
from wanlab.spec import METHOD_SETTINGS, RunSpec

Floats = NDArray[np.float64]
Frames = Iterable[NDArray[Any]]

FORMAT = "wanlab-continuity/1"
METRICS = ("mse", "cosine", "normalised_l2")
SPACES = ("x_t", "x0_pred", "eps_pred", "velocity")
BASELINE = "baseline"
TELLING = 0.5  # noise's least share of the expected mse at which a correlation of the noise can be told from it
INDEPENDENT = 0.05  # noise correlations up to this size, or three standard errors, count as none


@dataclass(frozen=True, kw_only=True)
class Space:
    """Metrics of neighbouring frames [steps, pairs] of one space, and each frame's mean square [steps, frames]."""

    mse: Floats
    cosine: Floats
    normalised_l2: Floats
    power: Floats

    def mean(self, metric: str) -> Floats:
        """Mean over pairs [steps]."""
        return _over_pairs(np.mean, getattr(self, metric))

    def std(self, metric: str) -> Floats:
        """Population standard deviation over pairs [steps]."""
        return _over_pairs(np.std, getattr(self, metric))


@dataclass(frozen=True, kw_only=True)
class Theory:
    """What independent noise would give, beside what is there; arrays [steps] unless said otherwise."""

    m0: Floats
    """Mean mse of the final latent's frames at the step's stride."""
    expected: Floats
    """(1-σ)² m0 + 2σ²."""
    residual: Floats
    """Measured minus expected mse of x_t."""
    signal: Floats
    """The part of the residual from x0_pred, (1-σ)² (mse(x0_pred) - m0); the three parts add up to it exactly."""
    noise: Floats
    """The part from eps_pred, σ² (mse(eps_pred) - 2)."""
    cross: Floats
    """The part from x0_pred and eps_pred together, 2σ(1-σ) mean(Δx0_pred Δeps_pred)."""
    noise_share: Floats
    """2σ² / expected."""
    correlation: Floats
    """[steps, pairs]: ρ for which (1-σ)² m0 + 2σ² (1-ρ) is the pair's mse, with the pair's own m0; NaN where
    `noise_share` is under one half."""
    correlation_sd: Floats
    """Standard deviation of a step's mean ρ when the noise is independent: sqrt((3P-1)/n)/P of P pairs, n values each."""

    @property
    def rho(self) -> Floats:
        """Mean fitted noise correlation over pairs [steps]."""
        return _over_pairs(np.mean, self.correlation)

    @property
    def independent(self) -> NDArray[np.bool_]:
        """Where ρ is known and counts as none [steps]."""
        return np.asarray(np.abs(self.rho) <= np.maximum(INDEPENDENT, 3 * self.correlation_sd))


@dataclass(frozen=True, kw_only=True)
class OtherExpert:
    """What the expert that did not work at a step would have said, guided alike."""

    step: int
    used: str
    other: str
    cosine: float
    """<v,w>/(|v||w|) of the two velocities over the whole clip."""
    difference: float
    """|v-w|/|v|, v being the one that was used."""
    spaces: Mapping[str, Space]
    """x0_pred and velocity by the other expert; one row."""


@dataclass(frozen=True, kw_only=True)
class Continuity:
    """The analysis of one run."""

    source: str
    """The file or folder."""
    prompt: str
    seed: int | None
    model: str
    method: str
    """Its label: `BASELINE`, or its policies."""
    settings: str
    """Equal for runs that may be compared step by step."""
    frames: int
    """Video frames."""
    timestep: Floats
    sigma: Floats
    expert: NDArray[np.str_]
    evaluated: NDArray[np.int64]
    """Latent frames that each step worked on."""
    stride: NDArray[np.int64]
    """Full-length latent frames from one of them to the next."""
    lifted: int | None
    """The first step after frames were completed, where that is known and happened apart from the expert switch."""
    spaces: Mapping[str, Space]
    final: Space | None
    """The final latent; one row."""
    video: Space | None
    """The frames of the video in [0,1]; one row."""
    theory: Theory | None
    experts: tuple[OtherExpert, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        return len(self.sigma)

    @property
    def switch(self) -> int | None:
        """Index of the first low-noise step, None without an expert switch."""
        low = np.flatnonzero(self.expert == "low")
        return int(low[0]) if len(low) and low[0] > 0 and "high" in self.expert else None

    @property
    def disturbed(self) -> int | None:
        """The step from which a method's recovery is counted: where frames were completed, else the expert switch."""
        changed = np.flatnonzero(np.diff(self.stride))
        if self.lifted is not None:
            return self.lifted
        return int(changed[0]) + 1 if len(changed) else self.switch

    @property
    def curve(self) -> Floats:
        """Mean mse of x_t at each step, then of the final latent [steps + 1]."""
        last = self.final.mean("mse") if self.final is not None else np.array([np.nan])
        return np.append(self.spaces["x_t"].mean("mse"), last)


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """How long a method's curve takes to be back within the baseline's spread."""

    step: int
    """The first step after the disturbance."""
    after: int | None
    """Steps from `step` on that are outside the spread, up to the last one that is; None when the final latent is."""
    spread: str
    """"seeds": the 95 % prediction interval for one more seed of the same prompt; "pairs": mean ± 2 standard
    deviations over the pairs of the baseline run with the same prompt and seed; "runs": as "seeds", of all prompts."""
    n: int
    """Baseline runs, or pairs, that the spread is of."""
    low: Floats
    high: Floats
    """The spread at each step and at the final latent [steps + 1]."""


# --- measuring -------------------------------------------------------------------------------------------------------


def adjacent(frames: Frames, what: str = "a frame") -> tuple[list[float], list[float], list[float], list[float]]:
    """(mse, cosine, normalised_l2) of each pair of neighbours, then each frame's mean square; two frames in memory.
    Frames of bytes count as multiples of 1/255. cosine and normalised_l2 are NaN for frames of zeros. Raises WanlabError for values that are no numbers."""
    mse: list[float] = []
    cosine: list[float] = []
    distance: list[float] = []
    power: list[float] = []
    last = apart = np.empty(0, np.float32)
    before, unit = 0.0, 1.0
    for frame in frames:
        this = np.ascontiguousarray(frame).reshape(-1)
        unit = 1 / 255**2 if this.dtype == np.uint8 else 1.0  # of a square: cheaper than to divide every value
        if this.dtype != np.float64:
            this = this.astype(np.float32, copy=False)
        square = dot(this, this)
        if not math.isfinite(square):
            raise WanlabError(f"{what} has values that are no numbers", "run it again with --dtype float32")
        if power:
            product = dot(this, last)
            apart = np.subtract(this, last, out=apart if apart.shape == this.shape else None)
            far = dot(apart, apart)
            mse.append(unit * far / this.size)
            cosine.append(product / math.sqrt(square * before) if square * before else math.nan)
            distance.append(math.sqrt(far / (square + before)) if square + before else math.nan)
        power.append(unit * square / this.size)
        last, before = this, square
    return mse, cosine, distance, power


def dot(a: NDArray[Any], b: NDArray[Any]) -> float:
    """<a,b> of flat arrays: sums of 1024 products in their own dtype, added up in float64. Of float32 values it is
    within 1e-7 of the float64 product, for half the time."""
    whole = len(a) // 1024 * 1024
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.matmul(a[:whole].reshape(-1, 1, 1024), b[:whole].reshape(-1, 1024, 1))  # faster than einsum
    rest = a[whole:].astype(np.float64) @ b[whole:].astype(np.float64)
    return float(sums.sum(dtype=np.float64) + rest)


def space(rows: Sequence[tuple[list[float], ...]]) -> Space:
    """The rows that `adjacent` gave, one a step, as arrays."""
    return Space(**{n: _padded([r[i] for r in rows]) for i, n in enumerate((*METRICS, "power"))})


def _padded(rows: Sequence[Sequence[float]]) -> Floats:
    made = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for k, row in enumerate(rows):
        made[k, : len(row)] = row
    return made


def _over_pairs(reduce: Any, values: Floats) -> Floats:
    return np.array([reduce(row[np.isfinite(row)]) if np.isfinite(row).any() else np.nan for row in values], np.float64)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step as it is read: what it is, and its latent frames [C,H,W] by space, each read once and in order."""

    timestep: float
    sigma: float
    expert: str = "single"
    stride: int | None = 1
    """None where it is not known: told from the number of frames."""
    values: int = 0
    """Values in one frame."""
    spaces: Mapping[str, Frames] = field(default_factory=dict)


def measure(
    steps: Iterable[Step], final: Frames | None, about: Mapping[str, Any], video: Frames | None = None
) -> Continuity:
    """Read `steps` once, frame by frame. `about` holds the fields of `Continuity` that say which run it is.

    final  the final latent's frames [C,H,W]; asked for after the last step
    video  its frames [H,W,3] in [0,1], or bytes

    Raises WanlabError when there is nothing to compare.
    """
    seen: list[Step] = []
    rows: dict[str, list[tuple[list[float], ...]]] = {}
    empty: tuple[list[float], ...] = ([], [], [], [])
    for k, step in enumerate(steps):
        seen.append(dataclasses.replace(step, spaces={}))
        for name in SPACES:
            here = rows.setdefault(name, [])
            frames = step.spaces.get(name)
            here.append(empty if frames is None else adjacent(frames, f"{name} of step {k + 1}"))
    spaces = {n: space(r) for n, r in rows.items() if any(row[3] for row in r)}
    if not spaces:
        raise WanlabError(f"{about['source']} holds no latents", "record them with --record latents or --record all")
    if all(np.isnan(s.mse).all() for s in spaces.values()):
        raise WanlabError(f"{about['source']} has one latent frame, which has no neighbour", "use --frames 5 or more")
    last = list(final) or None if final is not None else None
    counts = np.max([np.isfinite(s.power).sum(1) for s in spaces.values()], axis=0)
    full = len(last) if last is not None else int(counts.max())
    stride = np.array([_stride(s.stride, int(n), full) for s, n in zip(seen, counts, strict=True)], np.int64)
    sigma = np.array([s.sigma for s in seen])
    return Continuity(
        **{**about, "frames": about.get("frames") or 4 * (full - 1) + 1},
        timestep=np.array([s.timestep for s in seen]), sigma=sigma, expert=np.array([s.expert for s in seen]),
        evaluated=counts.astype(np.int64), stride=stride, spaces=spaces,
        final=None if last is None else space([adjacent(last, "the final latent")]),
        video=None if video is None else space([adjacent(video, "the video")]),
        theory=None if last is None else _theory(sigma, stride, spaces, last, max((s.values for s in seen), default=0)),
    )  # fmt: skip


def _stride(said: int | None, count: int, full: int) -> int:
    """Told from the number of frames where it is not said, and 1 where it does not fit them."""
    if said is None:
        said = 2 if count == (full + 1) // 2 else 1
    return said if not count or count == -(-full // max(1, said)) else 1


def _theory(
    sigma: Floats, stride: NDArray[np.int64], spaces: Mapping[str, Space], last: list[NDArray[Any]], values: int
) -> Theory | None:
    if "x_t" not in spaces:
        return None
    measured = spaces["x_t"]
    m0 = np.full_like(measured.mse, np.nan)
    for s in set(stride.tolist()):
        apart = np.array(adjacent(last[::s])[0])
        for k in np.flatnonzero(stride == s):
            if np.isfinite(measured.mse[k]).sum() == len(apart):
                m0[k, : len(apart)] = apart
    clean, noise = (1 - sigma) ** 2, sigma**2
    mean0 = _over_pairs(np.mean, m0)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = clean * mean0 + 2 * noise
        share = 2 * noise / expected
        rho = 1 - (measured.mse - clean[:, None] * m0) / (2 * noise[:, None])
    rho[~(share >= TELLING)] = np.nan
    count = np.isfinite(measured.mse).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        sd = np.sqrt((3 * count - 1) / values) / count
    parts = np.full((3, len(sigma)), np.nan)
    total = measured.mean("mse")
    if {"x0_pred", "eps_pred"} <= set(spaces):
        x0, eps = spaces["x0_pred"].mean("mse"), spaces["eps_pred"].mean("mse")
        # x_t = (1-σ) x0_pred + σ eps_pred exactly, so the cross term is what the other two leave.
        parts = np.stack([clean * (x0 - mean0), noise * (eps - 2), total - clean * x0 - noise * eps])
    return Theory(
        m0=mean0, expected=expected, residual=total - expected, signal=parts[0], noise=parts[1], cross=parts[2],
        noise_share=share, correlation=rho, correlation_sd=sd,
    )  # fmt: skip


def mixture(name: str, sigma: float) -> tuple[float, float]:
    """The weights of x0 and of ε in a space."""
    return {"x_t": (1 - sigma, sigma), "x0_pred": (1.0, 0.0), "eps_pred": (0.0, 1.0), "velocity": (-1.0, 1.0)}[name]


def expectation(name: str, sigma: float, final: Space) -> dict[str, float]:
    """Each metric that independent noise gives in a space, from the final latent's frames: with weights a of x0 and b
    of ε, mean square e and mean product c of neighbours, mse = a² m0 + 2b², cosine = a² c/(a² e + b²) and
    normalised_l2 = sqrt(mse / (2 (a² e + b²))). A prediction's own blur is not in it."""
    a, b = mixture(name, sigma)
    power = final.power[0]
    apart = final.mse[0]
    e, m0 = float(np.nanmean(power)), float(np.nanmean(apart))
    pairs = (power[:-1] + power[1:])[: len(apart)] / 2
    c = float(np.nanmean(pairs - apart / 2))
    size, mse = a * a * e + b * b, a * a * m0 + 2 * b * b
    nan = math.nan
    return {
        "mse": mse,
        "cosine": a * a * c / size if size else nan,
        "normalised_l2": math.sqrt(mse / (2 * size)) if size else nan,
    }


def frames_at(data: Data, step: int) -> Iterator[NDArray[Any]]:
    """The latent frames [C,H,W] of one step of a run file, read one at a time: a chunk each."""
    channels, count, height, width = data.shape_at(step)
    for f in range(count):
        yield data[step, :channels, f, :height, :width]


def analyse(run: Run, *, method: str = "", settings: str = "") -> Continuity:
    """The analysis of a finished run file, read frame by frame.

    method, settings  where the file's specification does not say them: see `Continuity`

    Raises WanlabError when the run was recorded without latents or has one latent frame.
    """
    spec = run.spec
    for name in (*SPACES, "velocity_other_expert", "latent"):
        if name in run and len(run[name].dims) != (4 if name == "latent" else 5):
            raise WanlabError(f"{run.path}: '{name}' has dimensions {run[name].dims}", "record it with this wanlab")
    recorded = [n for n in SPACES if n in run and run[n].recorded]
    if not recorded:
        raise WanlabError(
            f"{run.path} holds no latents", "make it again with --record latents, or all for the predictions too"
        )
    floats = {n: np.asarray(run[n], np.float64) for n in ("timestep", "sigma")}
    expert, stride = np.asarray(run["expert"]), np.asarray(run["frame_stride"], np.int64)

    def steps() -> Iterator[Step]:
        for k in range(run.steps):
            here = {n: run[n] for n in recorded if k in run[n].recorded}
            shapes = [d.shape_at(k) for d in here.values()]
            yield Step(
                timestep=float(floats["timestep"][k]), sigma=float(floats["sigma"][k]), expert=str(expert[k]),
                stride=max(1, int(stride[k])), values=math.prod(shapes[0]) // shapes[0][1] if shapes else 0,
                spaces={n: frames_at(d, k) for n, d in here.items()},
            )  # fmt: skip

    switched = next((int(v) for p in spec.policies if (v := p.options.get("switch"))), None)
    about = dict(
        source=str(run.path), prompt=spec.prompt, seed=spec.seed, model=spec.model, frames=spec.frames,
        method=method or label(spec), settings=settings or settings_of(spec), lifted=switched,
    )  # fmt: skip
    made = measure(steps(), _final(run), about, _video(run))
    return dataclasses.replace(made, experts=tuple(_other_experts(run, made)))


def _final(run: Run) -> Frames | None:
    if "latent" not in run:
        return None
    latent = run["latent"]
    return (latent[:, f] for f in range(latent.shape[1]))


def _video(run: Run) -> Frames | None:
    if "video_float" in run:
        return (run["video_float"][f] for f in range(len(run["video_float"])))
    if "video" not in run:
        return None
    return (run["video"][f] for f in range(len(run["video"])))


def _other_experts(run: Run, made: Continuity) -> Iterator[OtherExpert]:
    if "velocity_other_expert" not in run or made.switch is None:
        return
    others, velocity, x_t = run["velocity_other_expert"], run["velocity"], run["x_t"]
    for k in others.recorded:
        vv = ww = vw = dd = 0.0
        for mine, theirs in zip(frames_at(velocity, k), frames_at(others, k), strict=True):
            v, w = mine.reshape(-1).astype(np.float64), theirs.reshape(-1).astype(np.float64)
            vv, ww, vw, dd = vv + dot(v, v), ww + dot(w, w), vw + dot(v, w), dd + dot(v - w, v - w)
        clean = (
            x.astype(np.float64) - made.sigma[k] * w
            for x, w in zip(frames_at(x_t, k), frames_at(others, k), strict=True)
        )
        used = str(made.expert[k])
        yield OtherExpert(
            step=k, used=used, other={"high": "low", "low": "high"}.get(used, used),
            cosine=vw / math.sqrt(vv * ww) if vv * ww else math.nan,
            difference=math.sqrt(dd / vv) if vv else math.nan,
            spaces={"x0_pred": space([adjacent(clean)]), "velocity": space([adjacent(frames_at(others, k))])},
        )  # fmt: skip


# --- comparing -------------------------------------------------------------------------------------------------------


def label(spec: RunSpec) -> str:
    """How a run was sampled, from its policies."""
    return "+".join(map(str, spec.policies)) or BASELINE


def labels(specs: Sequence[RunSpec]) -> list[str]:
    """A label for each of several runs; settings that are not the same in all of them are part of it."""

    def said(spec: RunSpec) -> dict[str, str]:
        plain = {n: getattr(spec, n) for n in METHOD_SETTINGS} | {"size": f"{spec.width}x{spec.height}"}
        plain |= {"model": spec.model, "guidance": ",".join(f"{g:g}" for g in dict.fromkeys(spec.guidance))}
        return {n: f"{v:g}" if isinstance(v, float) else str(v) for n, v in plain.items()}

    told = [said(s) for s in specs]
    vary = [n for n in (told[0] if told else ()) if len({t[n] for t in told}) > 1]
    return ["+".join([label(s), *(f"{n}={t[n]}" for n in vary)]) for s, t in zip(specs, told, strict=True)]


def settings_of(spec: RunSpec) -> str:
    """Equal for runs that differ in prompt, seed and policies alone."""
    same = {k: v for k, v in spec.to_dict().items() if k not in ("prompt", "seed", "policies", "record", "device")}
    return repr(sorted(same.items()))


def change_at_switch(c: Continuity) -> dict[str, dict[str, dict[str, float]]]:
    """By space and metric, across the expert switch: the mean `before` and `after`, the `jump`, the one that the
    schedule makes by itself (`expected_jump`), and the changes one step earlier and later, which are no jumps."""
    s = c.switch
    if s is None:
        return {}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, values in c.spaces.items():
        for metric in METRICS:
            v = values.mean(metric)
            expected = math.nan
            if c.final is not None:
                after, before = (_expected(c, name, metric, k) for k in (s, s - 1))
                expected = after - before
            found.setdefault(name, {})[metric] = {
                "before": float(v[s - 1]), "after": float(v[s]), "jump": float(v[s] - v[s - 1]),
                "expected_jump": expected, "change_before": float(v[s - 1] - v[s - 2]) if s > 1 else math.nan,
                "change_after": float(v[s + 1] - v[s]) if s + 1 < c.steps else math.nan,
            }  # fmt: skip
    return found


def _expected(c: Continuity, name: str, metric: str, k: int) -> float:
    assert c.final is not None
    if metric == "mse" and c.theory is not None:  # exact for every stride
        a, b = mixture(name, float(c.sigma[k]))
        return float(a * a * c.theory.m0[k] + 2 * b * b)
    if c.stride[k] != 1:  # the products of frames two apart are not kept
        return math.nan
    return expectation(name, float(c.sigma[k]), c.final)[metric]


def recovery(c: Continuity, others: Sequence[Continuity]) -> Recovery | None:
    """How many steps after its disturbance a run's curve (see `Continuity.curve`) is back, for good, within the spread
    of the baselines among `others`; None when it is a baseline or there is nothing to hold it against.

    With three or more baseline seeds of the same prompt the spread at a step is Student's 95 % prediction interval for
    one more, mean ± t s sqrt(1 + 1/n); else mean ± 2 standard deviations over the pairs of the baseline with the same
    prompt and seed; else the interval of three or more baselines of any prompt.
    """
    start = c.disturbed
    if c.method == BASELINE or start is None or c.spaces.get("x_t") is None:
        return None
    known = [
        o for o in others
        if o.method == BASELINE and (o.settings, o.frames) == (c.settings, c.frames) and len(o.sigma) == len(c.sigma)
        and np.allclose(o.sigma, c.sigma) and "x_t" in o.spaces
    ]  # fmt: skip
    seeds = [o for o in known if o.prompt == c.prompt]
    own = next((o for o in seeds if o.seed == c.seed), None)
    if len(seeds) >= 3:
        spread, n, (low, high) = "seeds", len(seeds), _prediction(seeds)
    elif own is not None and own.final is not None:
        values = [row[np.isfinite(row)] for row in (*own.spaces["x_t"].mse, *own.final.mse)]
        mean, std = np.array([r.mean() for r in values]), np.array([r.std() for r in values])
        spread, n, (low, high) = "pairs", len(values[-1]), (mean - 2 * std, mean + 2 * std)
    elif len(known) >= 3:
        spread, n, (low, high) = "runs", len(known), _prediction(known)
    else:
        return None
    curve = c.curve
    there = np.isfinite(curve) & np.isfinite(low)
    outside = np.flatnonzero(there[start:] & ((curve < low) | (curve > high))[start:])
    after = 0 if not len(outside) else int(outside[-1]) + 1
    never = not there[-1] or after > c.steps - start
    return Recovery(step=start, after=None if never else after, spread=spread, n=n, low=low, high=high)


def _prediction(runs: Sequence[Continuity]) -> tuple[Floats, Floats]:
    curves = np.stack([o.curve for o in runs])
    n = len(curves)
    wide = float(stats.t.ppf(0.975, n - 1)) * curves.std(axis=0, ddof=1) * math.sqrt(1 + 1 / n)
    return curves.mean(axis=0) - wide, curves.mean(axis=0) + wide


def noise_back_after(c: Continuity) -> int | None:
    """Steps after the disturbance until the fitted noise correlation counts as none for good; None when it never does
    or cannot be told."""
    start = c.disturbed
    if c.theory is None or start is None:
        return None
    known = np.isfinite(c.theory.rho[start:])
    wrong = np.flatnonzero(known & ~c.theory.independent[start:])
    after = 0 if not len(wrong) else int(wrong[-1]) + 1
    return after if known[after:].any() else None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs of one method and frame count: what figures and tables show."""

    method: str
    frames: int
    runs: tuple[Continuity, ...]
    recoveries: tuple[Recovery | None, ...]

    @property
    def first(self) -> Continuity:
        return self.runs[0]

    def average(self, values: Any) -> Any:
        """The mean over runs of `values(run)`, arrays of one shape or numbers; NaN where a run has none."""
        return np.mean([values(r) for r in self.runs], axis=0)

    def curve(self, name: str, metric: str = "mse", std: bool = False) -> Floats:
        """A space's mean (or standard deviation) over pairs at each step [steps], averaged over runs; NaN without."""
        nothing = np.full(self.first.steps, np.nan)
        return np.asarray(
            self.average(
                lambda r: (
                    nothing
                    if name not in r.spaces
                    else r.spaces[name].std(metric)
                    if std
                    else r.spaces[name].mean(metric)
                )
            )
        )

    def theory(self, name: str) -> Floats:
        """A field of `Theory` (or rho) at each step [steps], averaged over runs; NaN without."""
        nothing = np.full(self.first.steps, np.nan)
        return np.asarray(self.average(lambda r: nothing if r.theory is None else getattr(r.theory, name)))

    def pairs(self, name: str, metric: str = "mse") -> Floats:
        """A space's values [steps, pairs], averaged over runs."""
        return np.asarray(self.average(lambda r: getattr(r.spaces[name], metric)))

    def has(self, name: str) -> bool:
        """Whether every run has the space."""
        return all(name in r.spaces for r in self.runs)

    @property
    def recovered(self) -> tuple[list[int], int]:
        """(steps to recover of the runs that do, how many never do)."""
        known = [r for r in self.recoveries if r is not None]
        return [r.after for r in known if r.after is not None], sum(r.after is None for r in known)


def names(groups: Sequence[Group]) -> list[str]:
    """What to call each group among the others: its method, and its frame count where these differ."""
    counts = {g.frames for g in groups}
    return [g.method + (f", {g.frames} frames" if len(counts) > 1 else "") for g in groups]


def group(runs: Sequence[Continuity]) -> list[Group]:
    """Runs by method, in the order of their first, and frame count (and schedule, should they differ)."""
    found: dict[tuple[Any, ...], list[Continuity]] = {}
    for r in runs:
        shapes = tuple((n, s.mse.shape) for n, s in r.spaces.items())
        found.setdefault((r.method, r.frames, shapes, r.sigma.tobytes()), []).append(r)
    methods = list(dict.fromkeys(k[0] for k in found))
    return [
        Group(method=k[0], frames=k[1], runs=tuple(rs), recoveries=tuple(recovery(r, runs) for r in rs))
        for k, rs in sorted(found.items(), key=lambda item: (methods.index(item[0][0]), item[0][1]))
    ]


# --- saying ----------------------------------------------------------------------------------------------------------


def reading(g: Group) -> list[str]:
    """What the numbers of one group say, in sentences; only what they can say."""
    said = []
    c, x_t, s = g.first, g.curve("x_t"), g.first.switch
    share, rho, residual = g.theory("noise_share"), g.theory("rho"), g.theory("residual") / g.theory("expected")
    if np.isfinite(x_t[[0, -1]]).all():
        line = f"Neighbouring latent frames of x_t differ by {x_t[0]:#.3g} (mse) at step 1 and by {x_t[-1]:#.3g} at step {c.steps}"
        known = s is not None and np.isfinite(share[s])
        said.append(line + (f"; at the expert switch {share[s]:.1%} of it is noise." if known else "."))
    if np.isfinite(rho).any():
        said.append(_noise(g, rho))
    if np.isfinite(residual).any():
        k = int(np.nanargmax(np.abs(residual)))
        line = f"Independent noise and the final latent explain x_t to within {abs(residual[k]):.1%}"
        parts = [g.theory(n)[k] / g.theory("expected")[k] for n in ("signal", "noise", "cross")]
        if np.isfinite(parts).all():
            line += f"; the rest at step {k + 1} is x0_pred {parts[0]:+.1%}, eps_pred {parts[1]:+.1%}, both together {parts[2]:+.1%}"
        said.append(line + ".")
    if s is not None:
        jumps = [change_at_switch(r) for r in g.runs]
        told = []
        for name in ("x_t", "x0_pred"):
            if g.has(name):
                own, expected = (float(np.mean([j[name]["mse"][w] for j in jumps])) for w in ("jump", "expected_jump"))
                if math.isfinite(own) and math.isfinite(expected):
                    told.append(f"of {name} by {own:+.3g} (the schedule alone: {expected:+.3g})")
        if told:
            said.append(f"From step {s} to {s + 1}, across the expert switch, the mse changes: {', '.join(told)}.")
    told = []
    for at in zip(*(r.experts for r in g.runs), strict=False):
        cosine, apart = (float(np.mean([getattr(o, w) for o in at])) for w in ("cosine", "difference"))
        if math.isfinite(cosine):
            told.append(
                f"at step {at[0].step + 1} the {at[0].other}-noise expert's is {apart:.0%} away (cosine {cosine:.4f})"
            )
    if told:
        said.append(f"Of the velocity that was used, {' and '.join(told)}.")
    after, never = g.recovered
    if after or never:
        said.append(_recovered(g, after, never))
    return said


def _noise(g: Group, rho: Floats) -> str:
    """How far from independent the noise of neighbouring frames is, and from when to when."""
    limit = np.maximum(INDEPENDENT, 3 * g.theory("correlation_sd") / math.sqrt(len(g.runs)))
    known = [int(k) for k in np.flatnonzero(np.isfinite(rho))]
    wrong = [k for k in known if abs(rho[k]) > limit[k]]
    noise = "The noise of neighbouring frames is"
    if not wrong:
        where = "at every step" if len(known) == len(rho) else f"at the {len(known)} of {len(rho)} steps that can tell"
        return f"{noise} independent {where}: its fitted correlation ρ is {np.abs(rho[known]).max():.3f} at most."
    most = max(wrong, key=lambda k: abs(rho[k]))
    before = f"independent until step {wrong[0]}, then" if wrong[0] > known[0] else "not independent:"
    back = [k for k in known if k > wrong[-1]]
    after = f", and none is left from step {back[0] + 1} on" if back else ", and it stays as far as can be told"
    return f"{noise} {before} correlated: ρ is {rho[most]:+.2f} at step {most + 1}{after}."


def _recovered(g: Group, after: list[int], never: int) -> str:
    known = [r for r in g.recoveries if r is not None]
    one = known[0]
    of = f"of the {g.first.steps - one.step} steps from step {one.step + 1} on"
    spread = {"seeds": "the baseline's seeds", "pairs": "the baseline's pairs", "runs": "the baselines"}[one.spread]
    if not after:
        runs = f" in any of {never} runs" if never > 1 else ""
        return f"Its curve is not back within the spread of {spread} by the end{runs}."
    if len(known) == 1:
        return f"Its curve is back within the spread of {spread} after {after[0]} {of}."
    some = f"in all {len(known)} runs" if not never else f"in {len(after)} of {len(known)} runs, in the others never"
    return f"Its curve is back within the spread of {spread} after {float(np.median(after)):g} {of} (median; {min(after)} to {max(after)}) {some}."


def statistics(groups: Sequence[Group], version: str) -> dict[str, Any]:
    """Everything, as plain values for continuity_statistics.json; docs/methods.md has the structure. No NaN: None."""
    return {
        "format": FORMAT,
        "wanlab": version,
        "groups": [_group_plain(g) for g in groups],
        "runs": [_run_plain(r, found) for g in groups for r, found in zip(g.runs, g.recoveries, strict=True)],
    }


def _group_plain(g: Group) -> dict[str, Any]:
    after, never = g.recovered
    return {
        "method": g.method, "frames": g.frames, "runs": len(g.runs), "sources": [r.source for r in g.runs],
        "x_t_mse": {"mean": plain(g.curve("x_t")), "std": plain(g.curve("x_t", std=True))},
        "noise_correlation": plain(g.theory("rho")),
        "final": {m: _each(g, "final", m) for m in METRICS}, "video": {m: _each(g, "video", m) for m in METRICS},
        "recovery": {"after": after, "never": never} if after or never else None, "reading": reading(g),
    }  # fmt: skip


def _each(g: Group, name: str, metric: str) -> dict[str, Any]:
    """A metric's mean over pairs in each run's final latent or video; mean and standard deviation (n - 1) over runs."""
    values = np.array([float(v.mean(metric)[0]) if (v := getattr(r, name)) is not None else math.nan for r in g.runs])
    known = values[np.isfinite(values)]
    return {
        "mean": plain(known.mean()) if len(known) else None,
        "std": plain(known.std(ddof=1)) if len(known) > 1 else None,
        "n": len(known), "values": plain(values),
    }  # fmt: skip


def _run_plain(c: Continuity, found: Recovery | None) -> dict[str, Any]:
    t, s = c.theory, c.switch
    return {
        "source": c.source, "prompt": c.prompt, "seed": c.seed, "model": c.model, "method": c.method, "frames": c.frames,
        "notes": list(c.notes), "step": list(range(1, c.steps + 1)), "timestep": plain(c.timestep), "sigma": plain(c.sigma),
        "expert": c.expert.tolist(), "latent_frames": c.evaluated.tolist(), "frame_stride": c.stride.tolist(),
        "spaces": {n: _space_plain(v) for n, v in c.spaces.items()},
        "final": None if c.final is None else _space_plain(c.final, single=True),
        "video": None if c.video is None else _space_plain(c.video, single=True),
        "theory": None if t is None else {
            "m0": plain(t.m0), "expected": plain(t.expected), "residual": plain(t.residual),
            "relative_residual": plain(t.residual / t.expected),
            "parts": {"signal": plain(t.signal), "noise": plain(t.noise), "cross": plain(t.cross)},
            "noise_share": plain(t.noise_share),
            "noise_correlation": {"mean": plain(t.rho), "pairs": _rows(t.correlation), "sd_if_independent": plain(t.correlation_sd)},
            "independent": [bool(i) if math.isfinite(r) else None for i, r in zip(t.independent, t.rho, strict=True)],
            "independent_again_after": noise_back_after(c),
        },
        "switch": None if s is None else {
            "last_high_noise_step": s, "first_low_noise_step": s + 1,
            "metrics": {n: {m: {k: plain(v) for k, v in w.items()} for m, w in by.items()} for n, by in change_at_switch(c).items()},
            "other_expert": [
                {"step": o.step + 1, "used": o.used, "other": o.other, "velocity_cosine": plain(o.cosine),
                 "velocity_difference": plain(o.difference),
                 "would_be": {n: _space_plain(v, single=True) for n, v in o.spaces.items()}}
                for o in c.experts
            ],
        },
        "recovery": None if found is None else {
            "from_step": found.step + 1, "after": found.after, "spread": found.spread, "n": found.n,
            "curve": plain(c.curve), "low": plain(found.low), "high": plain(found.high),
        },
    }  # fmt: skip


def _space_plain(v: Space, single: bool = False) -> dict[str, Any]:
    """Of each metric mean, std and pairs: by step, or of the only row."""
    made = {}
    for metric in METRICS:
        mean, std, pairs = plain(v.mean(metric)), plain(v.std(metric)), _rows(getattr(v, metric))
        made[metric] = dict(
            zip(("mean", "std", "pairs"), (w[0] if single else w for w in (mean, std, pairs)), strict=True)
        )
    return made


def _rows(values: Floats) -> list[Any]:
    """[steps, pairs] as a list a step: None for a step without a value, without the padding for a short one."""
    made: list[Any] = []
    for row in values:
        finite = np.flatnonzero(np.isfinite(row))
        made.append(plain(row[: finite[-1] + 1]) if len(finite) else None)
    return made


def plain(values: Any) -> Any:
    """A number or an array as plain values of nine digits, None where there is no number."""
    if np.ndim(values):
        return [plain(v) for v in values]
    return float(f"{float(values):.9g}") if math.isfinite(values) else None
