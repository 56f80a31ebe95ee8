"""Verdicts on either side of a threshold, and the guide's contradictions by hand."""

from __future__ import annotations

import json
import math
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from wanlab.analysis import hypotheses as h
from wanlab.analysis import metrics
from wanlab.analysis.bands import Bands, bands
from wanlab.analysis.hypotheses import scales
from wanlab.analysis.key import Key
from wanlab.analysis.metrics.adherence import difference
from wanlab.analysis.stats import Interval, paired_ratio
from wanlab.errors import UsageError
from wanlab.runfile import Run
from wanlab.spec import RecordSpec, RunSpec


@pytest.fixture(scope="module")
def sampled(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run, of random weights."""
    from wanlab.engine.run import execute

    kept = RecordSpec(level="all")
    spec = RunSpec(
        prompt="a red ball", model=str(checkpoint), width=32, height=16, frames=17, steps=20, device="cpu", record=kept
    )
    return execute(spec, tmp_path_factory.mktemp("run") / "r.h5")


def pair(prompt: str, seed: int, **figures: Any) -> dict[str, Any]:
    return {"prompt": prompt, "seed": seed, "a": "gone.h5", "b": "gone too.h5"} | figures


def comparison(
    folder: Path,
    label: str,
    values: list[float],
    quantity: str = "psnr",
    baseline: str = "baseline",
    method: str = "",
    compared: str = "",
    **more: Any,
) -> Path:
    """A comparison.json of one method, a prompt a value."""
    pairs = [pair(f"prompt {k}", 0, **{quantity: v}, **more) for k, v in enumerate(values)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "comparison.json"
    methods = [{"label": label, "method": method, "pairs": pairs}]
    content = {"format": h.COMPARISON, "baseline": baseline, "compared": compared, "methods": methods}
    path.write_text(json.dumps(content))
    return path


def claims(path: Path, name: str, held: h.Thresholds | None = None) -> dict[str, h.Claim]:
    judged = {x.name: x for x in h.judge(h.collect([path]), held or h.Thresholds())}
    return {c.quantity: c for c in judged[name].claims}


@pytest.mark.parametrize(
    ("low", "high", "relation", "verdict"),
    [
        (36, 40, ">=", h.SUPPORTED),
        (35, 40, ">=", h.SUPPORTED),
        (34, 40, ">=", h.UNDECIDED),
        (30, 34.9, ">=", h.REFUTED),
        (30, 35, ">", h.REFUTED),
        (35, 40, ">", h.UNDECIDED),
        (30, 35, "<=", h.SUPPORTED),
        (35.1, 40, "<=", h.REFUTED),
        (34, 36, "<=", h.UNDECIDED),
        (math.nan, math.nan, ">=", h.UNDECIDED),
    ],
)
def test_the_whole_interval_decides(low: float, high: float, relation: str, verdict: str) -> None:
    assert h.decide(Interval((low + high) / 2, low, high, 8), relation, 35.0) == verdict


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([40.0, 40.2, 40.1, 40.3], h.SUPPORTED),
        ([20.0, 20.2, 20.1, 20.3], h.REFUTED),
        ([30.0, 50.0, 35.0, 45.0], h.UNDECIDED),
    ],
)
def test_h1_follows_the_psnr(tmp_path: Path, values: list[float], verdict: str) -> None:
    path = comparison(tmp_path, "cfg_truncated", values)
    claim = claims(path, "H1")["psnr"]
    assert claim.verdict == verdict and claim.decides
    assert claim.value.mean == pytest.approx(-10 * math.log10(np.mean(10 ** (-np.array(values) / 10))))
    assert (claim.value.n, claim.units) == (4, "prompts")
    assert claim.threshold == 39.0 and claim.sources == (str(path),)
    assert bool(claim.run) == (verdict == h.UNDECIDED)
    assert claims(path, "H1")["mse"].verdict == h.UNDECIDED  # nothing of it in the file


def test_an_identical_pair_counts(tmp_path: Path) -> None:
    """One of four: the mean error of 1e-3, thrice, and 0 is 31.25 dB."""
    path = comparison(tmp_path, "cfg_truncated", ["identical"] * 4)  # type: ignore[list-item]
    assert claims(path, "H1")["psnr"].value.mean == math.inf and claims(path, "H1")["psnr"].verdict == h.SUPPORTED
    path = comparison(tmp_path, "cfg_truncated", ["identical", 30.0, 30.0, 30.0])  # type: ignore[list-item]
    assert claims(path, "H1")["psnr"].value.mean == pytest.approx(31.249, abs=1e-3)


@pytest.mark.parametrize(
    ("psnrs", "mean"), [([30.5] * 15, 30.78), ([20.0] * 6 + [54.0] * 53, 29.98), ([34.99] * 8 + [120.0] * 7, 37.999)]
)
def test_an_identical_pair_is_one_without_an_error(psnrs: list[float], mean: float) -> None:
    """Beside 15 pairs near 30.5 dB, six of 60 at 20 dB, or half of them at 34.99: what a pair of 120 dB gives, with
    bounds. By hand: mean errors of 15/16 · 10^-3.05, (.06 + 53 · 10^-5.4)/60 and 10^-3.499/2."""
    prompts = [f"p{k}" for k in range(len(psnrs) + 1)]
    same, near = (scales.pooled("psnr", [*psnrs, last], prompts)[0] for last in (math.inf, 120.0))
    assert same.mean == pytest.approx(mean, abs=0.01)
    assert (same.mean, same.low, same.high) == pytest.approx((near.mean, near.low, near.high), abs=1e-3)
    assert same.low < same.mean < same.high < math.inf


def test_a_variant_is_shown_and_does_not_decide(tmp_path: Path) -> None:
    judged = h.judge(h.collect([comparison(tmp_path, "cfg:keep=cond,last=5", [20.0] * 4)]), h.Thresholds())
    assert judged[0].verdict == h.UNDECIDED
    assert [c.decides for c in judged[0].claims] == [False] * 3
    other = h.judge(h.collect([comparison(tmp_path / "b", "half+cfg:last=5", [20.0] * 4)]), h.Thresholds())
    assert other[0].claims[0].value.n == 0  # two methods at once are evidence for neither


def test_thresholds_turn_a_verdict(tmp_path: Path) -> None:
    path = comparison(tmp_path, "half_frame", [0.90, 0.91, 0.92, 0.91], "ssim")
    assert claims(path, "H2")["ssim"].verdict == h.REFUTED
    (tmp_path / "t.toml").write_text("ssim = 0.8\n")
    assert claims(path, "H2", h.thresholds(tmp_path / "t.toml"))["ssim"].verdict == h.SUPPORTED


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("psrn = 35", "psnr"),
        ('psnr = "high"', "no number"),
        ("first_steps = 2.5", "whole number"),
        ("psnr = ", "cannot read"),
        ("psnr = -1", "no number"),
        ("psnr = nan", "no number"),
    ],
)
def test_bad_thresholds_are_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        h.thresholds(tmp_path / "t.toml")
    assert says in f"{caught.value.message} {caught.value.hint}"


def continuity(folder: Path, after: list[int | None], method: str = "half") -> Path:
    runs = [
        {"method": method, "prompt": f"p{k}", "recovery": {"after": a, "pairs": "duplicated"}, "sigma": []}
        for k, a in enumerate(after)
    ]
    path = folder / "continuity_statistics.json"
    path.write_text(json.dumps({"format": h.CONTINUITY, "groups": [], "runs": runs}))
    return path


def test_h2_counts_the_runs_that_recover(tmp_path: Path) -> None:
    """All of 40 prompts' single runs: the posterior is Beta(41, 1), its 2.5 % point .025^(1/41)."""
    path = continuity(tmp_path, [7] * 40)
    claim = claims(path, "H2")["share recovered"]
    assert (claim.verdict, claim.value.mean, claim.value.n) == (h.SUPPORTED, 1.0, 40)
    assert claim.value.low == pytest.approx(0.025 ** (1 / 41), abs=1e-3)
    path = continuity(tmp_path, [8, None] * 20)
    assert claims(path, "H2")["share recovered"].verdict == h.REFUTED
    text = json.loads(path.read_text())
    for run in text["runs"]:  # two steps were left: of seven nothing is known
        run["recovery"] |= {"from_step": 7, "curve": [0.1] * 9}
    path.write_text(json.dumps(text))
    assert claims(path, "H2")["share recovered"].value.n == 0
    assert "continuity comparison_outputs" in claims(continuity(tmp_path, [7, 7]), "H2")["share recovered"].run


def test_h3_and_h4_from_a_run_file(sampled: Path) -> None:
    """Shares of power by hand, over the whole plane of frequencies; a latent of 2 x 4: low is all below a quarter of
    the highest, which is the mean alone."""
    (run,) = h.collect([sampled]).runs
    with h5py.File(sampled) as file:
        sigma, expert = file["steps/sigma"][...], file["steps/expert"].asstr()[...].tolist()
        mse = file["steps/mse"][...]
        latent = file["final/latent"][...].astype(np.float64)
    with Run(sampled) as opened:
        k = expert.index("low")
        shape = opened["x_t"].shape_at(k)
        x_t, x0 = (opened[n][(k, *map(slice, shape))].astype(np.float64) for n in ("x_t", "x0_pred"))
    clean = (1 - sigma[k]) * latent
    noise, signal = (np.abs(np.fft.fft2(v)) ** 2 for v in (x_t - clean, clean))
    own = noise[..., 0, 0].sum() / (noise + signal)[..., 0, 0].sum()
    rest = 1 - (signal.sum() - signal[..., 0, 0].sum()) / ((noise + signal).sum() - (noise + signal)[..., 0, 0].sum())
    assert (run.bands.noise_low, run.bands.noise_high) == pytest.approx((own, rest))
    apart, whole = (
        (v.mean(axis=(2, 3)) ** 2).sum() for v in (x0 - latent, latent - latent.mean((1, 2, 3), keepdims=True))
    )
    assert run.bands.predicted == pytest.approx(1 - apart / whole)
    high, low = np.array(expert) == "high", np.array(expert) == "low"
    assert run.high_over_low == pytest.approx(np.nanmean(mse[high]) / np.nanmean(mse[low]))


def test_bands_of_waves(tmp_path: Path) -> None:
    """x0 is a slow wave of amplitude 4 and mean square 8; at σ = .5 x_t adds half of a fast wave of amplitude 2 (.5)
    and of a slow one of 1 (.125 against .25 · 8): noise has .125/2.125 of the low band and all of the high one. x0_pred
    is half of x0: 1 - .25."""
    column = np.arange(16)
    slow, fast = (np.broadcast_to(np.cos(2 * np.pi * n * column / 16), (1, 2, 8, 16)) for n in (1, 6))
    x0 = (4 * slow).astype(np.float32)
    x_t = (0.5 * x0 + 0.5 * (2 * fast + slow)).astype(np.float32)
    found = bands(Recorded(latent=x0, x_t=x_t[None], x0_pred=x0[None] / 2), 0, 0.5)  # type: ignore[arg-type]
    assert found.noise_low == pytest.approx(0.125 / 2.125, rel=1e-5) and found.noise_high == pytest.approx(1, rel=1e-5)
    assert found.predicted == pytest.approx(0.75, rel=1e-5)
    half = bands(Recorded(latent=x0, x_t=x_t[None, :, :1]), 0, 0.5)  # type: ignore[arg-type]
    assert math.isnan(half.noise_low) and math.isnan(half.predicted)


class Recorded(dict[str, Any]):
    """A run file as far as `bands` reads it."""

    spec = RunSpec(prompt="p", width=128, height=64, frames=17)
    path = Path("r.h5")

    def __init__(self, **arrays: Any) -> None:
        super().__init__({name: Array(values) for name, values in arrays.items()})


class Array:
    dims, recorded = ("c", "f", "h", "w"), (0,)

    def __init__(self, values: Any) -> None:
        self.values, self.dtype, self.shape = values, values.dtype, values.shape

    def __getitem__(self, at: Any) -> Any:
        return self.values[at]

    def shape_at(self, step: int) -> tuple[int, ...]:
        return tuple(self.values.shape[1:])


def plain(
    prompt: str, mse: list[float], change: list[float], noise: float = 0.97, folder: str = "", seed: int = 0, **key: Any
) -> h.Measured:
    """A baseline's run of two experts, the second from the third step on; sigma falls by .1 a step."""
    return h.Measured(
        path=Path(folder, f"{prompt}.h5"),
        prompt=prompt,
        seed=seed,
        key=Key(**{"model": "m", "steps": len(mse), "frames": 49, "shift": 12.0} | key),
        policies=(),
        settings=(),
        passes=40,
        seconds=1.0,
        sigma=tuple(1 - 0.1 * k for k in range(len(mse))),
        switch=2,
        bands=Bands(noise_low=noise, noise_high=noise, predicted=1 - noise),
        mse=tuple(mse),
        change=tuple(change),
        high_over_low=8.0,
    )


def h4_of(runs: Any) -> dict[str, h.Claim]:
    return {c.quantity: c for c in h.judge(h.Evidence(runs=tuple(runs)), h.Thresholds())[3].claims}


def test_h4_by_hand() -> None:
    """First 5 steps of mean 4, the rest of mean 1. Without the switch at the third step (changes of 9 there would
    count else): 1 + 1 + 1 + .25 + 1 over 4 + 4 + 4 + 1 + 1; speeds √(1/4)/.1 = 5 thrice and √(.25/1)/.1 = 5, the
    first four, against √(1/1)/.1 = 10."""
    nan = math.nan
    runs = [plain(f"p{k}", [4.0] * 5 + [1.0] * 2, [nan, 1, 9, 1, 1, 0.25, 1]) for k in range(6)]
    found = h4_of(runs)
    assert (found["first over rest"].value.mean, found["first over rest"].verdict) == (
        pytest.approx(4.0),
        h.SUPPORTED,
    )
    assert found["change over mse"].value.mean == pytest.approx(4.25 / 14)
    assert found["change over mse"].verdict == h.SUPPORTED
    assert found["slowing"].value.mean == pytest.approx(0.5) and found["slowing"].verdict == h.REFUTED
    assert found["high over low"].verdict == h.SUPPORTED
    assert found["across the switch"].value.mean == pytest.approx(1) and not found["across the switch"].decides
    fast = [plain(f"p{k}", [4.0] * 5 + [1.0] * 2, [nan, 4, 9, 4, 4, 0.01, 0.01]) for k in range(6)]
    assert h4_of(fast)["slowing"].value.mean == pytest.approx(7.75)  # 10, 10, 10 and 1 over 1
    short = [plain(f"p{k}", [4.0] * 5 + [1.0], [nan, 4, 9, 4, 4, 0.01]) for k in range(6)]
    assert math.isnan(h4_of(short)["slowing"].value.mean)  # four changes, and no others
    judged = h.judge(h.Evidence(runs=tuple(runs)), h.Thresholds())
    assert judged[3].verdict == h.PARTLY and judged[2].verdict == h.SUPPORTED
    # The command samples tiny's usual clips, which say nothing of a model m of 7 steps.
    few = h.judge(h.Evidence(runs=tuple(runs[:1])), h.Thresholds())[2]
    assert few.verdict == h.UNDECIDED and few.claims[0].run == ""
    usual = [replace(runs[0], key=Key("tiny", 20, 49))]
    few = h.judge(h.Evidence(runs=tuple(usual)), h.Thresholds())[2]
    assert few.verdict == h.UNDECIDED and few.claims[0].run.startswith("wanlab compare ")
    assert "these prompts only" in few.claims[0].needs


def test_a_baseline_is_not_replaced_by_a_plain_run_of_other_settings() -> None:
    """`compare --a guidance=1` leaves runs without policies, and without a guidance difference, beside the baseline."""
    nan = math.nan
    runs = tuple(plain(f"p{k}", [4.0] * 5 + [1.0], [nan] + [1.0] * 5, folder="baseline") for k in range(6))
    others = tuple(plain(f"p{k}", [nan] * 6, [nan] * 6, folder="guidance=1") for k in range(6))
    for evidence in (h.Evidence(runs=runs + others), h.Evidence(runs=others + runs)):
        first = h.judge(evidence, h.Thresholds())[3].claims[0]
        assert (first.value.mean, first.value.n) == (pytest.approx(4.0), 6)


def test_only_pairs_against_the_baseline_decide(tmp_path: Path) -> None:
    """cfg_vs_half holds truncation against half-frame runs: that says nothing of the baseline."""
    path = comparison(tmp_path, "cfg_truncated", [20.0] * 4, baseline="half_frame")
    assert claims(path, "H1")["psnr"].value.n == 0
    set_too = h.judge(h.collect([comparison(tmp_path, "cfg:last=5+steps=10", [20.0] * 4)]), h.Thresholds())[0]
    assert set_too.verdict == h.UNDECIDED and not any(c.decides for c in set_too.claims)


def test_what_a_method_is_goes_before_its_name(tmp_path: Path) -> None:
    """`--mode cfg_vs_baseline --cfg-keep cond` calls its runs cfg_truncated too."""
    path = comparison(tmp_path, "cfg_truncated", [20.0] * 4, method="cfg:high=3,keep=cond,last=5")
    assert not claims(path, "H1")["psnr"].decides
    assert claims(comparison(tmp_path / "b", "mine", [20.0] * 4, method="cfg:high=3,last=5"), "H1")["psnr"].decides


def test_other_lengths_are_not_pooled(tmp_path: Path) -> None:
    for frames in ("49", "81"):
        comparison(tmp_path / frames, "cfg_truncated", [20.0, 20.5, 21.0, 21.5], compared=f"tiny, {frames} frames")
    judged = h.judge(h.collect([tmp_path]), h.Thresholds())[0]
    psnr = [c for c in judged.claims if c.quantity == "psnr"]
    assert [(c.says.split(":")[0], c.value.n, len(c.sources)) for c in psnr] == [
        ("on tiny, 49 frames", 4, 1),
        ("on tiny, 81 frames", 4, 1),
    ]
    runs = [
        {
            "method": "half",
            "model": "tiny",
            "prompt": "p",
            "seed": 0,
            "frames": n,
            "sigma": [1.0],
            "recovery": {"after": n, "pairs": "duplicated"},
        }
        for n in (1, 5, 9)
    ]
    for name in ("c", "again"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "continuity_statistics.json").write_text(
            json.dumps({"format": h.CONTINUITY, "groups": [], "runs": runs})
        )
    back = [c for c in h.judge(h.collect([tmp_path]), h.Thresholds())[1].claims if c.quantity == "share recovered"]
    assert [(c.value.n, c.value.mean) for c in back] == [(1, 1.0), (1, 1.0), (1, 0.0)]  # of at most 7 steps; once each
    assert back[2].says.startswith("on tiny, 1 steps, 9 frames: ")


def test_a_pair_counts_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        comparison(tmp_path / name, "cfg_truncated", [20.0, 20.5, 21.0, 21.5])
    claim = claims(tmp_path, "H1")["psnr"]
    assert (claim.value.n, claim.value.mean) == (4, pytest.approx(20.714, abs=1e-3)) and len(claim.sources) == 1


def test_the_guides_contradictions_are_computed() -> None:
    assert h.shifted(13, 20, 12) == pytest.approx(4.8 / 5.4)  # u = .4: 12 x .4 / (1 + 11 x .4)
    figures = {f.what: f for f in h.reproduce(h.Evidence())}
    found = " ".join(f"{f.theory} {f.contradiction}" for f in figures.values())
    # -10 log10(.000105) = 39.788; .010234² + .023456² = .000655; 10^-3.9 = .000126; 5/80; 2 x .8889² = 1.58
    for number in ("39.79 dB", "0.000655", "20 dB", "0.000126", "6.25%", "1.067x", "0.889", "1.58", "20 - 13 = 7"):
        assert number in found, number
    assert all(f.measured.strip("–; ") == "" for f in figures.values())  # nothing was measured, and nothing is claimed


def test_the_guides_figures_are_of_one_kind_of_runs_each(tmp_path: Path) -> None:
    """What 5 truncated steps of 40 save is measured where those are truncated, 5 passes of 80; not in runs of 20 steps,
    and not where 3 more are. Every figure says what it is of."""
    shared: dict[str, Any] = {"model": "m", "frames": 49}
    for steps in (20, 40):
        key, passes = shared | {"steps": steps}, {"passes": 2 * steps - 5, "passes_baseline": 2 * steps}
        for name in ("cfg:last=5", "cfg_truncated"):
            folder = tmp_path / f"{steps}{name[3]}"
            comparison(folder, name, [30.0, 31.0, 30.5, 30.2], key=key, **passes)
        curves = [{"method": "half", "prompt": "p", "key": key, "recovery": {"after": steps // 10, "pairs": "all"}}]
        content = {"format": h.CONTINUITY, "groups": [], "runs": curves}
        (folder / "continuity_statistics.json").write_text(json.dumps(content))
    measured = {f.what: f.measured for f in h.reproduce(h.collect([tmp_path]))}
    saved = measured["saving of 5 truncated steps of 40"]
    assert saved.startswith("cfg:last=5 on m, 40 steps, 49 frames: 6.2% of passes")
    assert "20 steps" not in saved and "high=3" not in saved
    back = measured["H2: 7 steps after step 13 recover continuity"]
    assert "m, 20 steps, 49 frames: 0 of 1 runs never, the others after 2 (median)" in back
    assert "40 steps, 49 frames: 0 of 1 runs never, the others after 4" in back


def test_what_cannot_be_read_is_named(tmp_path: Path, sampled: Path) -> None:
    (tmp_path / "broken.h5").write_bytes(b"no file of ours")
    (tmp_path / "comparison.json").write_text('{"format": "wanlab-comparison/1"}')
    (tmp_path / "r.h5.part").mkdir()
    (tmp_path / "r.h5.part" / "x.h5").write_bytes(b"")
    evidence = h.collect([tmp_path, sampled])
    assert sorted(p.name for p, _ in evidence.problems) == ["broken.h5", "comparison.json"]
    assert len(evidence.runs) == 1
    with pytest.raises(UsageError, match="there is no"):
        h.collect([tmp_path / "nowhere"])


def test_runs_that_were_sampled_differently_are_not_pooled() -> None:
    """Six of 6 steps whose first 5 are 4 times the rest, six of 7 steps whose first 5 are half of it: pooled, the
    ratio would be sqrt(2)."""
    nan = math.nan
    six = [plain(f"p{k}", [4.0] * 5 + [1.0], [nan] + [1.0] * 5) for k in range(6)]
    seven = [plain(f"p{k}", [1.0] * 5 + [2.0] * 2, [nan] + [1.0] * 6) for k in range(6)]
    judged = h.judge(h.Evidence(runs=(*six, *seven)), h.Thresholds())[3]
    found = {c.says.split(":")[0]: (c.value.mean, c.verdict) for c in judged.claims if c.quantity == "first over rest"}
    assert found == {
        "on m, 6 steps, 49 frames": (pytest.approx(4.0), h.SUPPORTED),
        "on m, 7 steps, 49 frames": (pytest.approx(0.5), h.REFUTED),
    }
    other = [replace(r, key=replace(r.key, shift=3.0)) for r in six]
    says = {c.says.split(":")[0] for c in h.judge(h.Evidence(runs=(*six, *other)), h.Thresholds())[2].claims}
    assert says == {"on m, 6 steps, 49 frames, shift 12.0", "on m, 6 steps, 49 frames, shift 3.0"}


KEYS: dict[str, Any] = {
    "model": "other",
    "steps": 40,
    "frames": 17,
    "size": "80x144",
    "shift": 3.0,
    "schedule": "wan",
    "solver": "euler",
    "guidance": "1",
    "guider": "apg",
    "dtype": "bfloat16",
}


def test_every_key_is_tried() -> None:
    assert set(KEYS) == {f.name for f in fields(Key)}


@pytest.mark.parametrize("name", KEYS)
def test_runs_that_differ_in_a_key_share_no_verdict(tmp_path: Path, name: str) -> None:
    """Six prompts of one kind and six of another: run files, pairs and curves whose files are gone, each by itself."""
    nan = math.nan
    usual = {
        "model": "m",
        "steps": 20,
        "frames": 49,
        "size": "144x80",
        "shift": 12.0,
        "schedule": "",
        "solver": "unipc",
    }
    kinds = [usual | {"guidance": "5", "guider": "cfg", "dtype": "float32"}]
    kinds.append(kinds[0] | {name: KEYS[name]})
    runs = tuple(plain(f"p{k}", [4.0] * 6, [nan] * 6, **key) for key in kinds for k in range(6))
    for kind, key in enumerate(kinds):
        comparison(tmp_path / f"{kind}", "cfg_truncated", [20.0 + k for k in range(6)], key=key)
        curves = [
            {
                "method": "half",
                "prompt": f"p{k}",
                "seed": 0,
                "key": key,
                "recovery": {"after": 1, "pairs": "duplicated"},
            }
            for k in range(6)
        ]
        content = {"format": h.CONTINUITY, "groups": [], "runs": curves}
        (tmp_path / f"{kind}" / "continuity_statistics.json").write_text(json.dumps(content))
    judged = h.judge(replace(h.collect([tmp_path]), runs=runs), h.Thresholds())
    of = [c for x in judged for c in x.claims if c.quantity in ("psnr", "share recovered", "first over rest")]
    assert [c.value.n for c in of] == [6] * 6 and len({(c.quantity, c.on) for c in of}) == 6
    assert all(c.says.startswith(f"on {c.on}: ") for c in of)
    if name not in ("model", "steps", "frames"):
        assert all(name in c.on for c in of)


@pytest.mark.parametrize(
    ("spread", "seeds", "threshold", "prompts_do", "seeds_do"),
    [(1.0, 0.1, 9.8, True, False), (0.02, 1.0, 9.8, True, True), (1.0, 1.0, 10.0, False, False)],
)
def test_what_would_decide_is_enough(
    spread: float, seeds: float, threshold: float, prompts_do: bool, seeds_do: bool
) -> None:
    """Prompts that differ need more prompts, seeds that differ more seeds; on the threshold nothing helps. With as
    many prompts of the same spread, or seeds, and some more for their own skewness, the interval lies on one side."""
    rng = np.random.default_rng(5)

    def drawn(prompts: int, count: int) -> tuple[list[float], list[str]]:
        """Of exactly these variances: means spread by `spread`, seeds of each by `seeds`, of mean 10."""
        own, noise = rng.standard_normal(prompts), rng.standard_normal((prompts, count))
        noise -= noise.mean(axis=1, keepdims=True)
        noise *= seeds / np.sqrt((noise**2).sum() / (prompts * (count - 1)))
        own = (own - own.mean()) / own.std(ddof=1) * math.sqrt(spread**2 + seeds**2 / count)
        return (10 + own[:, None] + noise).ravel().tolist(), [f"p{k}" for k in range(prompts) for _ in range(count)]

    def found(values: list[float], prompts: list[str]) -> Interval:
        return scales.on_scale(scales.Scale(), values, prompts)[0]

    now = drawn(8, 4)
    more, again = scales.enough(found(*now), *now, threshold)
    assert (more > 8) == prompts_do and (again > 4) == seeds_do
    if prompts_do:
        assert found(*drawn(math.ceil(1.6 * more), 4)).low > threshold
    if seeds_do:
        assert found(*drawn(8, math.ceil(1.6 * again))).low > threshold
    said = scales.advice(*now, more, again)
    assert ("prompts of 4 seeds" in said, "seeds of each of these 8" in said) == (prompts_do, seeds_do)
    assert ("no number up to" in said) == (not prompts_do)


def adherence(folder: Path, rows: list[tuple[float | None, float | None]]) -> h.Claim:
    pairs = [pair(f"p{k // 4}", k % 4, adherence=a, adherence_baseline=b) for k, (a, b) in enumerate(rows)]
    content = {"format": h.COMPARISON, "baseline": "baseline", "methods": [{"label": "cfg_truncated", "pairs": pairs}]}
    (folder / "comparison.json").write_text(json.dumps(content))
    return claims(folder, "H1")["adherence, difference"]


def test_h1_counts_what_is_shown_of_what_was_asked(tmp_path: Path) -> None:
    """Pairs of 60 prompts x 4 seeds: alike, lost by a fifth, or outside the world. No pair of 4 x 4 differs: nothing
    can be said, for an interval of no width would say too much."""
    alike = adherence(tmp_path, [(1.0, 1.0)] * 120 + [(0.0, 0.0)] * 120)
    assert (alike.verdict, alike.value.mean, alike.value.n) == (h.SUPPORTED, 0.0, 60)
    worse = adherence(tmp_path, [(0.0, 1.0), (1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (1.0, 1.0)] * 48)
    assert (worse.verdict, worse.value.mean) == (h.REFUTED, pytest.approx(-0.2))
    few = adherence(tmp_path, [(1.0, 1.0)] * 16)
    assert few.verdict == h.UNDECIDED and few.value.low < -0.05 and "prompts of 4 seeds" in few.needs
    outside = adherence(tmp_path, [(None, None)] * 16 + [(1.0, 1.0)] * 16)
    assert outside.value.n == 4


def test_adherence_has_the_comparisons_interval(tmp_path: Path) -> None:
    rows = [(0.0, 1.0)] * 3 + [(1.0, 0.0)] + [(1.0, 1.0)] * 60
    prompts = [f"p{k // 4}" for k in range(64)]
    metric = metrics.get("adherence_change")
    assert metric.interval
    assert adherence(tmp_path, rows).value == metric.interval(
        "adherence_change", lambda name: [a - b for a, b in rows], prompts, None
    )


@pytest.mark.parametrize("seeds", [1, 4])
def test_the_prompts_that_would_decide_a_share_are_the_fewest(seeds: int) -> None:
    """Where no pair changes the interval shrinks with their number, not its root: one prompt fewer leaves it open."""

    def found(prompts: int) -> Interval:
        return difference([0.0] * prompts * seeds, [f"p{k // seeds}" for k in range(prompts * seeds)])

    more, again = scales.enough(
        found(16), [0.0] * 16 * seeds, [f"p{k // seeds}" for k in range(16 * seeds)], -0.05, difference
    )
    assert again == 0 and found(more).low >= -0.05 > found(more - 1).low


def test_h2_counts_a_frozen_clip(tmp_path: Path) -> None:
    """One of six moves ever less, and then not at all: the ratio's interval goes on to there, as the table's does."""
    ends = []
    for still in (1e-9, 0.0):
        values = [still, 0.9, 0.92, 0.91, 0.9, 0.89]
        path = comparison(tmp_path, "half_frame", values, "difference", difference_baseline=1.0)
        value = claims(path, "H2")["frame difference, ratio"].value
        own = paired_ratio(values, [1.0] * 6, range(6))
        assert (value.mean, value.low, value.high, value.n) == pytest.approx((own.mean, own.low, own.high, 6))
        ends.append((value.mean, value.low, value.high))
    assert ends[0] == pytest.approx(ends[1], rel=1e-6)


def test_truncation_is_stated_in_noise_levels(tmp_path: Path, sampled: Path) -> None:
    """The last five of 20 steps at shift 12 begin at 12 · .25/(1 + 11 · .25) = .80."""
    (tmp_path / "r.h5").write_bytes(sampled.read_bytes())
    comparison(tmp_path, "cfg_truncated", [20.0] * 4, b=str(tmp_path / "r.h5"))
    judged = h.judge(h.collect([tmp_path]), h.Thresholds())[0]
    assert "fidelity, its last 5 steps truncated (σ ≤ 0.80)" in judged.claims[0].says
    assert "20 steps, 17 frames" in judged.on


def test_h2_holds_continuity_and_motion_apart(tmp_path: Path) -> None:
    """As smooth as the baseline, at three quarters of its motion: continuity holds, motion does not."""
    ratios = [0.9, 0.92, 0.91, 0.9, 0.89, 0.92]
    comparison(
        tmp_path,
        "half_frame",
        ratios,
        "warping_error",
        warping_error_baseline=1.0,
        difference=0.75,
        difference_baseline=1.0,
    )
    judged = h.judge(h.collect([tmp_path]), h.Thresholds())[1]
    said = {(c.quantity, c.relation): c.verdict for c in judged.claims}
    assert said["warping error, ratio", "<="] == h.SUPPORTED
    assert said["frame difference, ratio", ">="] == h.REFUTED and said["frame difference, ratio", "<="] == h.SUPPORTED
    assert judged.verdict == h.PARTLY


def test_two_equal_values_are_not_enough() -> None:
    nan = math.nan
    for n, verdict in ((2, h.UNDECIDED), (3, h.UNDECIDED), (4, h.REFUTED)):
        runs = tuple(plain(f"p{k}", [1.0] * 6, [nan] * 6, noise=0.2) for k in range(n))
        assert h.judge(h.Evidence(runs=runs), h.Thresholds())[2].verdict == verdict
    assert h.decide(Interval(1.0, 1.0, 1.0, h.LEAST - 1), ">=", 0.5) == h.UNDECIDED


def test_a_few_runs_of_other_settings_do_not_open_what_many_decide() -> None:
    nan = math.nan
    many = tuple(plain(f"p{k}", [4.0] * 6, [nan] * 6) for k in range(6))
    few = (plain("p0", [4.0] * 7, [nan] * 7),)
    assert h.judge(h.Evidence(runs=many + few), h.Thresholds())[2].verdict == h.SUPPORTED


def test_intervals_end_where_their_quantity_does(tmp_path: Path) -> None:
    """.9, 1, .9, 1: the mean is .95, Student's interval ± 3.18 · .0577/2 = .092 reaches above 1. Below four prompts
    there is none, whatever the number of their seeds."""
    nan = math.nan
    two = [([1.0] * 6, 0.9), ([3.0] * 5 + [1.0], 1.0)]
    runs = tuple(plain(f"p{k}", mse, [nan] * 6, noise=noise) for k, (mse, noise) in enumerate(two * 2))
    many = tuple(replace(r, seed=seed) for r in runs[:3] for seed in range(8))
    for few in (runs[:2], many):
        claim = h.judge(h.Evidence(runs=few), h.Thresholds())[2].claims[0]
        assert not claim.value.known and claim.verdict == h.UNDECIDED and "these prompts only" in claim.needs
    judged = h.judge(h.Evidence(runs=runs), h.Thresholds())
    assert 0.95 < judged[2].claims[0].value.high < 1.0
    ratio = judged[3].claims[0].value
    assert ratio.mean == pytest.approx(math.sqrt(3)) and 0 < ratio.low < ratio.mean  # geometric: of 1 and 3


def test_steps_without_a_value_are_left_out() -> None:
    nan = math.nan
    runs = tuple(plain(f"p{k}", [4.0, nan, 4.0, nan, 4.0, 1.0, nan], [nan] * 7) for k in range(4))
    runs += (plain("none", [nan] * 7, [nan] * 7),)
    first = h.judge(h.Evidence(runs=runs), h.Thresholds())[3].claims[0]
    assert (first.value.mean, first.value.n) == (pytest.approx(4.0), 4)


def test_comparisons_accumulate_and_the_newest_counts_once(tmp_path: Path) -> None:
    comparison(tmp_path / "comparisons", "cfg_truncated", [20.0] * 4).rename(tmp_path / "comparisons" / "cfg.json")
    comparison(tmp_path / "comparisons", "half_frame", [0.9] * 4, "ssim").rename(tmp_path / "comparisons" / "half.json")
    (tmp_path / "comparison.json").write_bytes((tmp_path / "comparisons" / "half.json").read_bytes())
    evidence = h.collect([tmp_path])
    assert len(evidence.comparisons) == 2 and not evidence.problems
    judged = h.judge(evidence, h.Thresholds())
    assert [judged[k].claims[0].method for k in (0, 1)] == ["cfg_truncated", "half_frame"]


GOOD = {"label": "cfg_truncated", "pairs": [pair("p", 0, psnr=1.0)]}
HOSTILE: list[Any] = [
    [],
    5,
    "x",
    None,
    {"methods": {}},
    {"methods": [5]},
    {"methods": [{"label": 5}]},
    {"methods": [{"pairs": 5}]},
    {"methods": [{"pairs": [5]}]},
    {"methods": [{"pairs": [pair("p", 0, psnr="high")]}]},
    {"methods": [{"pairs": [pair("p", 0, psnr=True)]}]},
    {"methods": [{"pairs": [pair("p", 0, mse=[1])]}]},
    {"methods": [{"pairs": [{"prompt": [], "seed": 0}]}]},
    {"methods": [{"pairs": [{"prompt": "p", "seed": {}}]}]},
    {"methods": [{"pairs": [pair("p", 0) | {"a": "x\0y"}]}]},
    {"methods": [{"pairs": [pair("p", 0, passes="9")]}]},
    {"methods": [{"pairs": [pair("p", 0) | {"key": {"steps": 2.5}}]}]},
    {"methods": [{"pairs": [pair("p", 0) | {"key": "tiny"}]}]},
    {"methods": [{"summary": []}]},
    {"methods": [{"summary": {"psnr": 3}}]},
    {"methods": [{"n": "many"}]},
    {"methods": [{"summary": {"psnr": {"mean": {}}}}]},
    {"methods": [{"summary": {"somebody's own": 5}}]},
    {"methods": [{"method": ["half"]}]},
    {"methods": [GOOD], "baseline": 5},
    {"methods": [GOOD], "compared": []},
    {"methods": [{"label": "\ud800"}]},
    {"methods": [{"pairs": [pair("p", 0, psnr=10**400)]}]},
    {"methods": [{"pairs": [pair("p", 0, psnr=math.nan)]}]},
]
CURVES: list[Any] = [
    {"groups": []},
    {"groups": 5, "runs": []},
    {"groups": [5], "runs": []},
    {"groups": [{"reading": 5}], "runs": []},
    {"groups": [{"reading": [5]}], "runs": []},
    {"groups": [], "runs": [5]},
    {"groups": [], "runs": [{"prompt": []}]},
    {"groups": [], "runs": [{"method": "half", "recovery": {"after": "soon"}}]},
    {"groups": [], "runs": [{"sigma": 5}]},
    {"groups": [], "runs": [{"method": "half", "recovery": [1]}]},
    {"groups": [], "runs": [{"source": []}]},
    {"groups": [], "runs": [{"method": "baseline", "sigma": [1] * 20, "spaces": {"x_t": {"mse": 5}}}]},
    {
        "groups": [],
        "runs": [{"method": "baseline", "sigma": [1] * 20, "spaces": {"x_t": {"mse": {"mean": ["a"] * 20}}}}],
    },
    {"groups": [], "runs": [{"frames": "49"}]},
    {"groups": [], "runs": [{"key": {"model": 5}}]},
    {"groups": [], "runs": [{"policies": []}]},
    {"groups": [], "runs": [{"model": 5}]},
    {"groups": [], "runs": [{"seed": []}]},
]


@pytest.mark.parametrize("content", [*HOSTILE, *CURVES], ids=lambda c: repr(c)[:60])
def test_a_result_of_another_shape_is_named_and_left_out(tmp_path: Path, content: Any) -> None:
    (tmp_path / "good").mkdir()
    comparison(tmp_path / "good", "cfg_truncated", [20.0] * 4)
    if isinstance(content, dict):
        content = {"format": h.CONTINUITY if "groups" in content else h.COMPARISON} | content
    (tmp_path / "comparison.json").write_text(json.dumps(content))
    evidence = h.collect([tmp_path])
    assert [p for p, _ in evidence.problems] == [tmp_path / "comparison.json"]
    assert len(evidence.comparisons) == 1 and str(tmp_path / "comparison.json") in evidence.problems[0][1]
    h.judge(evidence, h.Thresholds())
    h.reproduce(evidence)


@pytest.mark.parametrize("psnr", [-1e5, -1e300, 1e300])
def test_any_psnr_is_an_error(tmp_path: Path, psnr: float) -> None:
    comparison(tmp_path, "cfg_truncated", [20.0, psnr, 21.0, 22.0])
    evidence = h.collect([tmp_path])
    assert evidence.comparisons
    h.judge(evidence, h.Thresholds())
    h.reproduce(evidence)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"format": 1e999}', "\ufeff{}", '{"a": ' + "9" * 5000 + "}"])
def test_what_is_no_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "comparison.json").write_text(text)
    assert len(h.collect([tmp_path]).problems) == 1


def test_pipes_and_devices_are_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "comparison.json")
    os.mkfifo(tmp_path / "x.h5")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "comparison.json").symlink_to("/dev/zero")
    assert len(h.collect([tmp_path]).problems) == 3
    assert len(h.collect([tmp_path / "comparison.json"]).problems) == 1


def _text_for_mse(file: h5py.File) -> None:
    attrs = dict(file["steps/mse"].attrs)
    size = file["steps/mse"].shape[0]
    del file["steps/mse"]
    made = file["steps"].create_dataset("mse", data=np.array([b"much"] * size, "S4"))
    for name in ("encoding-type", "encoding-version", "dims_json", "units", "long_name"):
        if name in attrs:
            made.attrs[name] = attrs[name]


def test_a_run_file_with_text_for_a_number_is_named(tmp_path: Path, sampled: Path) -> None:
    path = tmp_path / "r.h5"
    path.write_bytes(sampled.read_bytes())
    with h5py.File(path, "r+") as file:
        _text_for_mse(file)
    evidence = h.collect([path, sampled])
    assert [p for p, _ in evidence.problems] == [path] and len(evidence.runs) == 1
