"""Pairs, summaries and verdicts, from run files written by hand."""

import json
import math
from dataclasses import replace

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanlab.analysis import table, verdict
from wanlab.analysis.compare import Comparison, Result, apart, failures, measure, pareto, parse_condition, parse_losses
from wanlab.analysis.metrics.latent import Divergence
from wanlab.analysis.verdict import at_equal_cost, check_conditions, standing, where_time_went
from wanlab.errors import UsageError, WanlabError
from wanlab.runfile import Field, RunWriter
from wanlab.spec import RunSpec

STEPS = 4
SCALARS = {
    "sigma": "float64",
    "seconds": "float64",
    "expert": "S6",
    "passes": "int32",
    "tokens": "int64",
    "frames": "int32",
    "frame_stride": "int32",
}


def write(
    path,
    *,
    value=0.5,
    prompt="a ball",
    seed=0,
    passes=(2, 2, 2, 2),
    seconds=(1.0, 1, 1, 1),
    flops=None,
    strides=(1, 1, 1, 1),
    x=None,
    process="here",
    resumed=0,
    predicted=None,
    operations=(),
    status=(),
    video=None,
    **attributes,
):
    """A run of four steps on latents [1,4,2,2]; its video is of one grey value, or `video` [T,H,W,3]."""
    if video is None:
        video = np.broadcast_to(np.asarray(value, np.float32), (13, 16, 16, 3)).copy()
    frames, height, width = video.shape[:3]
    spec = RunSpec(prompt=prompt, seed=seed, width=width, height=height, frames=frames, steps=STEPS)
    dims = ("channel", "latent_frame", "latent_height", "latent_width")
    fields = [Field(n, (), d, "1", n) for n, d in SCALARS.items()] + [Field("x_t", dims, "float32", "1", "x")]
    x = np.ones((STEPS + 1, 1, 4, 2, 2), np.float32) if x is None else x
    flops = [float(p) for p in passes] if flops is None else flops
    attrs = {
        "timing_seconds": {"encode": 0.5, "decode": 1.0, "write": 0.5},
        "predicted": predicted or {"flops_by_step": flops},
        "process": process,
        "resumed_from_step": resumed,
        **attributes,
    }
    if operations:
        fields += [Field("operations", (), "float64", "1", "o")] + [
            Field(f"status_{b}", (), "S7", "1", b) for b in ("cond", "uncond")
        ]
    with RunWriter(path, spec_json=spec.to_json(), digest=spec.digest(), attrs=attrs, fields=fields) as writer:
        for k in range(STEPS):
            kept = x[k][:, :: strides[k]]
            more = (
                {"operations": operations[k], "status_cond": "fresh", "status_uncond": status[k]} if operations else {}
            )
            writer.step(
                k,
                more
                | {
                    "sigma": 1 - k / 4,
                    "seconds": seconds[k],
                    "expert": "high" if k < 2 else "low",
                    "passes": passes[k],
                    "tokens": 10 * passes[k],
                    "frames": kept.shape[1],
                    "frame_stride": strides[k],
                    "x_t": kept,
                },
            )
        final = {
            Field("latent", dims, "float32", "1", "latent"): x[STEPS],
            Field("video", ("frame", "height", "width", "rgb"), "uint8", "1", "v"): (video * 255)
            .round()
            .astype(np.uint8),
            Field("video_float", ("frame", "height", "width", "rgb"), "float32", "1", "v"): video,
        }
        writer.finish(final, {})
    return path


def test_a_pair_by_hand(tmp_path):
    """Passes 2,2,1,1 against 2,2,2,2; 6 against 8 operations. Sampling 3 s against 4 s, end to end 5 s against 6 s."""
    b = write(tmp_path / "b.h5", value=0.5)
    x = np.ones((STEPS + 1, 1, 4, 2, 2), np.float32)
    x[3:] += 0.5  # the latents part when step 3 (from 1) is done
    a = write(tmp_path / "a.h5", value=0.6, passes=(2, 2, 1, 1), seconds=(1, 1, 0.5, 0.5), x=x)
    pair = measure(a, b)
    f = pair.figures
    assert (f["passes"], f["passes_baseline"], f["tokens"], f["tokens_baseline"]) == (6, 8, 60, 80)
    assert f["speedup_predicted"] == pytest.approx(8 / 6)
    assert f["mse"] == pytest.approx(0.01, rel=1e-5) and f["psnr"] == pytest.approx(20, abs=1e-4)
    assert pair.divergence.error.tolist() == pytest.approx([0, 0, 0, 0.5, 0.5])
    assert (pair.divergence.parted, pair.divergence.switch, pair.divergence.truncated) == (3, 2, (2, 3))
    s = Result(label="A", pairs=(pair,)).summary
    assert s["speedup"].mean == pytest.approx(4 / 3) and s["speedup_total"].mean == pytest.approx(6 / 5)
    assert f["difference"] == 0 and f["operations"] == 6 and f["operations_baseline"] == 8


def test_half_the_frames_are_held_against_the_same_frames(tmp_path):
    """Frames 0 and 2 of four, equal to B's: no difference until they are completed."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((STEPS + 1, 1, 4, 2, 2)).astype(np.float32)
    a = write(tmp_path / "a.h5", x=x, strides=(2, 2, 1, 1))
    b = write(tmp_path / "b.h5", x=x)
    assert measure(a, b).divergence.error.tolist() == measure(b, a).divergence.error.tolist() == [0] * 5


def test_where_latents_part_is_said_only_where_it_is_known():
    """Different at the beginning of step 4 (from 1): step 3 did it, unless what step 3 began with is not known."""
    known = dict(cosine=np.ones(5), switch=None, truncated=())
    nan = math.nan
    for error, parted in [([0, 0, 0, 0.5, 0.6], 3), ([0, 0, nan, 0.5, 0.6], None), ([0.0] * 5, None)]:
        assert Divergence(error=np.array(error), **known).parted == parted


DIMS = ["channel", "latent_frame", "latent_height", "latent_width"]


@pytest.mark.parametrize(
    ("where", "shape", "dims"),
    [
        ("steps/x_t", (4,), ["step"]),
        ("steps/x_t", (4, 1, 2, 2), ["step", *DIMS[::2], "latent_width"]),
        ("steps/frame_stride", (4,), ["step"]),
        ("final/latent", (1,), DIMS[:1]),
        ("final/latent", (1, 4, 2), DIMS[:3]),
    ],
)
def test_latents_that_cannot_be_are_blamed_on_their_file(tmp_path, where, shape, dims):
    """Latents of another rank than [C,F,H,W], also of a file without the x_t of its steps; or frames 0 apart."""
    a, b = write(tmp_path / "a.h5"), write(tmp_path / "b.h5")
    with h5py.File(a, "r+") as file:
        old = dict(file[where].attrs)
        del file[where]
        made = file.create_dataset(where, data=np.zeros(shape, "i4" if where == "steps/frame_stride" else "f4"))
        made.attrs.update({k: old[k] for k in ("encoding-type", "encoding-version", "units", "long_name")})
        made.attrs["dims"] = np.array(dims, "S")
        if where == "final/latent":
            del file["steps/x_t"]
    for pair in ((a, b), (b, a)):
        with pytest.raises(WanlabError, match=rf"a\.h5.*{where.split('/')[1]}'? has "):
            measure(*pair)


def test_a_latent_that_is_missing_costs_its_own_figure_alone(tmp_path):
    """A file with the latents of its steps and no last one: the steps are compared."""
    a, b = write(tmp_path / "a.h5"), write(tmp_path / "b.h5")
    with h5py.File(a, "r+") as file:
        del file["final/latent"]
    found = measure(a, b)
    assert math.isnan(found.divergence.error[-1]) and found.divergence.error[:-1].tolist() == [0] * STEPS
    assert math.isnan(found.figures["latent_error"])


def test_apart_by_hand():
    """(3,4) against (4,3): |(-1,1)|/5, cosine 24/25."""
    assert apart(np.array([3.0, 4]), np.array([4.0, 3])) == pytest.approx((math.sqrt(2) / 5, 0.96))
    assert math.isnan(apart(np.zeros(2), np.ones(2))[0])


def many(tmp_path, values, prompts=None, base=0.5, **more):
    prompts = prompts or [f"p{k}" for k in range(len(values))]
    pairs = []
    for k, value in enumerate(values):
        b = write(tmp_path / f"b{k}.h5", value=base, prompt=prompts[k], seed=k)
        a = write(tmp_path / f"a{k}-{value}.h5", value=value, prompt=prompts[k], seed=k, **more)
        pairs.append(measure(a, b))
    return Result(label=f"by {values[0]}", pairs=tuple(pairs))


def test_verdicts(tmp_path):
    """Offsets of .01 are 40 dB with SSIM .9998, offsets of .1 are 20 dB."""
    near, far = many(tmp_path, [0.51, 0.511, 0.509, 0.51]), many(tmp_path, [0.6, 0.61, 0.6, 0.61])
    same = many(tmp_path, [0.5, 0.5])
    floor = many(tmp_path, [0.515, 0.516, 0.514, 0.515])
    plain = Comparison(baseline="baseline", results=(near, far, same))
    assert plain.verdict(near) == "minimal loss, structure kept"
    assert plain.verdict(far).startswith("loss")
    assert plain.verdict(same) == "identical"
    floored = Comparison(baseline="baseline", results=(near, far, same), floors=(floor,))
    assert floored.verdict(near) == "below by 0.515" and floored.verdict(far).startswith("loss")
    assert floored.verdict(same) == "identical"
    level = many(tmp_path, [0.51, 0.512, 0.508, 0.51])  # its errors lie on both sides of near's
    assert (
        Comparison(baseline="baseline", results=(near,), floors=(level,)).verdict(near) == "not told apart from by 0.51"
    )
    assert Comparison(baseline="baseline", results=(level,), floors=(near,)).verdict(level).startswith("not told apart")


def test_below_four_prompts_only_these_are_spoken_of(tmp_path):
    """40 dB in one pair or three is a fact about these; a floor is passed when every pair passes it."""
    three, one = many(tmp_path, [0.51] * 3), many(tmp_path, [0.51])
    both = Comparison(baseline="baseline", results=(three, one))
    assert both.verdict(three) == "these prompts only: above 35 dB, above 0.98 SSIM"
    assert both.verdict(one).startswith("this pair only: above 35 dB") and not three.summary["psnr"].known
    said = " ".join(both.remarks())
    assert "these prompts only" in said and "%" not in said
    seeds = many(tmp_path, [0.51, 0.511] * 4, prompts=["x", "y"] * 4)  # eight pairs of two prompts: still two prompts
    only = Comparison(baseline="baseline", results=(seeds,))
    assert only.verdict(seeds).startswith("these prompts only") and only.cheapest(("psnr", 35)) == (None, seeds)
    assert "%" not in " ".join(only.remarks())
    low, mixed = many(tmp_path, [0.505] * 3), many(tmp_path, [0.505, 0.52, 0.505])
    assert [standing(three, f) for f in (low, mixed, three)] == ["above", "not told apart", "not told apart"]
    assert standing(low, three) == "below"


def test_what_is_not_a_number_meets_nothing(tmp_path):
    """A value that is not finite in one pair of four: no figure, no verdict, no condition, on no front, never the
    answer."""
    hurt = many(tmp_path, [0.51, math.nan, 0.51, 0.51], passes=(1, 1, 1, 1))
    comparison = Comparison(baseline="baseline", results=(hurt,))
    assert comparison.verdict(hurt) == "not a number" and not hurt.identical
    assert hurt.worst.seed == 1 and "not finite" in " ".join(comparison.remarks())
    assert comparison.cheapest(("psnr", 1)) == (None, None)
    for text in ("psnr<1", "psnr>1", "mse<1", "ssim<=-1"):
        assert failures([hurt], [parse_condition(text)]), text
    both_alike = measure(hurt.pairs[1].a, hurt.pairs[1].a)
    assert math.isnan(both_alike.figures["psnr"]) and not both_alike.fidelity.identical
    assert pareto([(1, math.nan), (math.nan, 5), (2, 3)]) == [2]
    plain = json.loads(
        json.dumps(comparison.to_dict()), parse_constant=lambda name: None if name == "NaN" else pytest.fail(name)
    )
    assert plain["methods"][0]["summary"]["psnr"]["mean"] is None


@pytest.mark.parametrize("step", [1, STEPS])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_latents_that_are_no_numbers_make_no_run_equal(tmp_path, step, value):
    """One value of x_t or of the last latents; the frames are those of the baseline, or both files are the same one."""
    x = np.ones((STEPS + 1, 1, 4, 2, 2), np.float32)
    x[step, 0, 1, 1, 1] = value
    a, b = write(tmp_path / "a.h5", x=x), write(tmp_path / "b.h5")
    for pair in (measure(a, b), measure(b, a), measure(a, a)):
        result = Result(label="A", pairs=(pair,))
        comparison = Comparison(baseline="b", results=(result,))
        assert comparison.verdict(result) == "not a number" and not result.identical
        assert "latents that are not finite, in A" in " ".join(comparison.remarks())
        assert failures([result], [parse_condition("psnr<1")])
    assert measure(b, b).fidelity.identical


def test_an_interval_across_the_threshold_decides_nothing(tmp_path):
    """PSNR of offsets .01 and .03: 40 and 30.5 dB, 33 dB of the mean error; four values say nothing about 35."""
    both = many(tmp_path, [0.51, 0.53, 0.51, 0.53])
    assert "undecided at 35 dB" in Comparison(baseline="baseline", results=(both,)).verdict(both)


def test_identical_pairs_in_every_export(tmp_path):
    same = many(tmp_path, [0.5, 0.5, 0.5])
    plain = Comparison(baseline="baseline", results=(same,)).to_dict()
    text = json.dumps(plain, allow_nan=True)
    assert "Infinity" not in text
    (method,) = plain["methods"]
    assert method["identical"] and method["summary"]["psnr"]["mean"] == "identical"
    assert method["summary"]["mse"]["mean"] == 0 and method["summary"]["ssim"]["mean"] == pytest.approx(1)
    assert method["pairs"][0]["psnr"] == "identical" and method["verdict"] == "identical"
    # Some identical, some not: PSNR of the mean MSE, .01²/2, with its interval.
    mixed = many(tmp_path, [0.5, 0.51, 0.5, 0.51]).summary["psnr"]
    assert mixed.mean == pytest.approx(-10 * math.log10(0.01**2 / 2), abs=1e-3)
    assert mixed.known and mixed.low < mixed.mean < mixed.high < math.inf


def test_nothing_jumps_where_a_pair_becomes_identical(tmp_path):
    """The error of one of five pairs goes to 0: every figure, bound and verdict goes there too."""
    last = {}
    for offset in (1e-3, 1e-4, 1e-5, 1e-6, 0):
        result = many(tmp_path, [0.51, 0.511, 0.509, 0.51, 0.5 + offset])
        s = result.summary
        last[offset] = [
            getattr(s[n], end) for n in ("mse", "psnr", "ssim", "abs_mean") for end in ("mean", "low", "high")
        ]
        last[offset].append(result.median("psnr"))
        assert Comparison(baseline="b", results=(result,)).verdict(result) == "minimal loss, structure kept"
    assert last[0] == pytest.approx(last[1e-6], rel=2e-3) and np.isfinite(last[0]).all()


def test_the_middle_of_identical_pairs_and_others_is_that_of_their_errors(tmp_path):
    """Two of four pairs at 40 dB, the others at 80, 100, … and identical: between them lies half the error, 43 dB."""
    for offset, middle in ((1e-4, 1e-4 * (1 + 1e-4) / 2), (0, 1e-4 / 2)):
        result = many(tmp_path, [0.51, 0.51, 0.5 + offset, 0.5 + offset])
        assert result.median("psnr") == pytest.approx(-10 * math.log10(middle), abs=1e-3)


def test_only_runs_of_one_process_are_timed(tmp_path):
    b = write(tmp_path / "b.h5", process="one")
    apart_, together = (
        write(tmp_path / "a1.h5", process="two"),
        write(tmp_path / "a2.h5", process="one", seconds=(2, 2, 2, 2)),
    )
    resumed = write(tmp_path / "a3.h5", process="one", resumed=2)
    for path, timed in ((apart_, 0), (together, 1), (resumed, 0)):
        result = Result(label="A", pairs=(measure(path, b),))
        assert len(result.timed) == timed and result.summary["speedup"].n == timed
    assert Result(label="A", pairs=(measure(together, b),)).summary["speedup"].mean == pytest.approx(0.5)
    said = Comparison(baseline="baseline", results=(Result(label="A", pairs=(measure(apart_, b),)),)).remarks()
    assert any("--force" in line for line in said)


def test_time_that_the_interval_explains_is_not_explained(tmp_path):
    """Speed-ups of 1, 1.6, 1 and 1.6 with 1.33 predicted: the mean, 1.265, is near; 1, 1.3, .9, 1.5 are not, but their
    interval holds 1.33."""
    b = [write(tmp_path / f"b{k}.h5", prompt=f"p{k}") for k in range(4)]
    pairs = [
        measure(write(tmp_path / f"a{k}.h5", prompt=f"p{k}", passes=(2, 2, 1, 1), seconds=(1 / f,) * 4), b[k])
        for k, f in enumerate((1, 1.3, 0.9, 1.5))
    ]
    result = Result(label="A", pairs=tuple(pairs))
    s = result.summary["speedup"]
    assert s.mean / (8 / 6) < 0.9 and s.low < 8 / 6 < s.high and where_time_went(result) == ""


def test_a_run_of_three_times_the_usual_time_is_remarked(tmp_path):
    """One of four of A took 3 s a step where 1 s is usual; one of B, which two methods share, and is said once."""
    b = [write(tmp_path / f"b{k}.h5", prompt=f"p{k}", seconds=(1 + 1.5 * (k == 1),) * 4) for k in range(4)]

    def result(name, slow):
        paths = [
            write(tmp_path / f"{name}{k}.h5", prompt=f"p{k}", seconds=(1 + 2 * (k == slow),) * 4) for k in range(4)
        ]
        return Result(label=name, pairs=tuple(measure(x, y) for x, y in zip(paths, b, strict=True)))

    said = Comparison(baseline="baseline", results=(result("A", 2), result("C", None))).remarks()
    busy = [line for line in said if "busy" in line]
    assert [line.partition(":")[0] for line in busy] == ["A", "the baseline"]
    assert "1 of 4 runs" in busy[0] and "3.0 times ('p2', seed 0)" in busy[0] and "2.5 times ('p1', seed" in busy[1]


def test_where_the_time_went(tmp_path):
    """Half the operations in the last two steps, which yet take .9 s each: .4 s more a step than at B's pace."""
    b = write(tmp_path / "b.h5")
    slow = write(tmp_path / "a.h5", passes=(2, 2, 1, 1), seconds=(1, 1, 0.9, 0.9))
    pair = measure(slow, b)
    assert where_time_went(Result(label="A", pairs=(pair,))) == ""  # of one pair there is no interval
    said = where_time_went(Result(label="A", pairs=(pair,) * 4))
    assert said == (
        "A: 1.33x predicted from operations, 1.05x measured; its steps of 4 latent frames and 1 pass took "
        "0.80 s more than at the baseline's pace"
    )
    as_predicted = write(tmp_path / "c.h5", passes=(2, 2, 1, 1), seconds=(1, 1, 0.5, 0.5))
    assert where_time_went(Result(label="A", pairs=(measure(as_predicted, b),) * 4)) == ""


def test_by_prompt_and_units(tmp_path):
    result = many(tmp_path, [0.51, 0.53, 0.51, 0.51], prompts=["x", "x", "y", "y"])
    assert result.units == (4, "pairs")
    rows = result.by_prompt()
    assert [r["prompt"] for r in rows] == ["x", "y"] and rows[0]["mse"] == pytest.approx(
        (0.01**2 + 0.03**2) / 2, rel=1e-3
    )
    assert result.worst.seed == 1


def test_the_cheapest_within_a_loss(tmp_path):
    """Cheaper is worse here. 40 dB costs 6 operations of 8, 20 dB costs 4."""
    near = many(tmp_path, [0.51, 0.511, 0.51, 0.51], passes=(2, 2, 1, 1))
    far = many(tmp_path, [0.6, 0.6, 0.6, 0.61], passes=(1, 1, 1, 1))
    both = Comparison(baseline="baseline", results=(near, far))
    assert both.cheapest(("psnr", 35)) == (near, near)
    assert both.cheapest(("psnr", 15)) == (far, far)
    assert both.cheapest(("psnr", 45)) == (None, None)
    assert both.cheapest(("mse", 0.001)) == (near, near)  # of an error less is better
    assert both.cheapest(("psnr", 15), ("mse", 0.001)) == (near, near)  # all bounds are kept
    assert both.cheapest(("psnr", 45), ("mse", 0.1)) == (None, None)
    (line,) = table.answer(both, [("psnr", 15), ("mse", 0.001)])
    assert line.startswith("cheapest that keeps above PSNR 15 dB and below MSE 0.001: by 0.51, PSNR 39.78")
    assert ", MSE 0.000105" in line and line.endswith(" at 0.750 of the operations")
    (line,) = table.answer(both, [("psnr", 15), ("mse", 1e-5)])
    assert line.startswith(
        "no method of this sweep keeps above PSNR 15 dB and below MSE 1e-05; the nearest is by 0.51, PSNR 39"
    )


def test_an_answer_names_the_bounds_that_are_in_doubt(tmp_path):
    """Of 39.78 dB (38.75 to 40.36); an mse of .000105 (.000092 to .000133)."""
    near = many(tmp_path, [0.51, 0.511, 0.51, 0.51], passes=(2, 2, 1, 1))
    far = many(tmp_path, [0.6, 0.6, 0.6, 0.61], passes=(1, 1, 1, 1))
    one = Comparison(baseline="baseline", results=(near,))
    (line,) = table.answer(one, [("psnr", 39), ("mse", 1e-3)])
    assert line.startswith("by the means alone by 0.51, PSNR 39.78 (38.75–40.36), MSE 0.000105")
    assert line.endswith("reaches below PSNR 39 dB")
    (line,) = table.answer(one, [("psnr", 39)])
    assert line.startswith("by its mean alone by 0.51")
    said, *_ = table.answer(replace(one, confirmed=(far,)), [("psnr", 15), ("mse", 1e-3)])
    assert said.startswith("measured again on 4 fresh seeds: by 0.6, PSNR")
    assert said.endswith("; its whole interval is above PSNR 15 dB; its whole interval is above MSE 0.001")
    said, *_ = table.answer(replace(one, confirmed=(near,)), [("psnr", 39)])
    assert said.endswith("; its interval reaches below PSNR 39 dB")
    dear = Comparison(baseline="baseline", results=(replace(near, label="near"), replace(far, label="far")))
    assert table.answer(dear, [("psnr", 35), ("passes", 5)]) == [
        "no method of this sweep keeps above PSNR 35 dB and below passes 5: each is kept by some, together by none"
    ]


def test_methods_of_equal_cost_are_compared_within_pairs(tmp_path):
    """Offsets of .01 and .02 are 40 and 33.98 dB, 6.02 apart, in every pair; one of 20 dB costs less and is left
    out."""
    cut = (2, 2, 1, 1)
    near = many(tmp_path, [0.51, 0.51, 0.51, 0.51], passes=cut)
    far = many(tmp_path, [0.52, 0.52, 0.52, 0.52], passes=cut)
    cheap = many(tmp_path, [0.6, 0.6, 0.6, 0.6], passes=(1, 1, 1, 1))
    (said,) = at_equal_cost((far, cheap, near))
    assert said == "at 0.750 of the operations by 0.51 loses least: PSNR 6.02 dB (6.02 to 6.02) above by 0.52"
    mixed = many(tmp_path, [0.505, 0.53, 0.505, 0.53], passes=cut)
    (said,) = at_equal_cost((mixed, near))
    assert "not enough to tell them apart" in said
    assert at_equal_cost((near, cheap)) == []


def test_pareto_by_hand():
    """(2, 5) is beaten by (1, 5); (3, 4) by (1, 5); (4, 9) by nobody."""
    assert pareto([(2, 5), (1, 5), (3, 4), (4, 9)]) == [1, 3]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_every_point_is_on_the_front_or_beaten(points):
    front = pareto(points)
    for k, (cost, quality) in enumerate(points):
        beaten = any(points[f][0] <= cost and points[f][1] >= quality for f in front)
        assert beaten, (k, front)
    costs, qualities = zip(*(points[k] for k in front), strict=True)
    assert list(costs) == sorted(set(costs)) and list(qualities) == sorted(set(qualities))


def test_conditions(tmp_path):
    result = many(tmp_path, [0.6, 0.6])
    assert parse_condition(" PSNR <= 35.5") == ("psnr", "<=", 35.5)
    assert failures([result], [("psnr", "<", 35.0)]) == ["by 0.6: psnr is 20, < 35"]
    assert failures([result], [("psnr", "<", 15.0), ("ssim", ">", 2)]) == []
    assert failures([result], [("vmaf", "<", 90.0)])  # a figure that is not there meets no threshold
    for text in ("psnr", "psnr<x", "speed<2", "psnr=35", "psnr<nan", "psnr>inf"):
        with pytest.raises(UsageError):
            parse_condition(text)


def test_a_figure_of_runs_is_refused_where_videos_are_given(tmp_path):
    for text in ("passes>10", "speedup<1", "latent_error>0", "vmaf<90"):
        with pytest.raises(UsageError, match=r"videos are given|asked for"):
            check_conditions([parse_condition(text)], runs=False)
    check_conditions([parse_condition("psnr<30"), parse_condition("difference_baseline>1")], runs=False)
    check_conditions([parse_condition("passes>10"), parse_condition("vmaf<90")], runs=True, asked=["vmaf"])
    result = many(tmp_path, [0.51])
    bare = Result(label="A", pairs=tuple(replace(p, figures={"mse": 1e-4, "psnr": 40.0}) for p in result.pairs))
    assert failures([bare], [parse_condition("passes>10")]) == ["A: passes is not a number, > 10 cannot be tested"]


def test_bounds_of_a_loss():
    assert parse_losses(["ssim=.98", "mse=1e-4"]) == [("ssim", 0.98), ("mse", 1e-4)]
    for text in ("psnr", "psnr=much", "psnr=nan", "difference=1", "psn=3"):
        with pytest.raises(UsageError):
            parse_losses([text])
    for texts, says in (
        (["psnr=35", "psnr=30"], "psnr twice"),
        ([], "no loss that it may cost"),
        (["speedup_predicted=1.2"], "nothing that is lost"),
        (["psnr=1,ssim=.9"], "is no bound"),
    ):
        with pytest.raises(UsageError, match=says):
            parse_losses(texts)


def test_intervals_stay_within_what_a_figure_can_be(tmp_path):
    """Grey .5 against .5, .5, .6 and .9: MSE 0, 0, .01 and .16, of which Student's interval would reach below 0; the
    SSIM of two even greys is (2ab + .0001)/(a² + b² + .0001), and its interval would reach above 1."""
    b = write(tmp_path / "b.h5", value=0.5)
    pairs = tuple(measure(write(tmp_path / f"{v}.h5", value=v), b) for v in (0.50001, 0.50002, 0.6, 0.9))
    summary = Result(label="A", pairs=pairs).summary
    assert summary["mse"].mean == pytest.approx(0.17 / 4, rel=1e-3)
    assert 0 < summary["mse"].low < 0.0425 and summary["mse"].high > 0.16
    assert summary["ssim"].mean < summary["ssim"].high < 1.0 and summary["ssim"].low < summary["ssim"].mean


def test_an_answer_is_walked_to_from_the_baseline(tmp_path):
    """40, 20 and 40 dB at 7, 6 and 4 of 8 operations: the walk stops at the second, whatever comes after it. Methods
    that differ in a word have walks of their own, and then wider intervals: a bound at one's own end is not kept."""
    costs = [(2, 2, 2, 1), (2, 2, 1, 1), (1, 1, 1, 1)]
    values = ([0.51, 0.511, 0.51, 0.51], [0.6, 0.6, 0.6, 0.61], [0.509, 0.51, 0.51, 0.51])
    near, far, lucky = (many(tmp_path, v, passes=c) for v, c in zip(values, costs, strict=True))
    assert verdict.cheapest([lucky, far, near], ("psnr", 35)) == (near, lucky)
    words = [
        replace(r, setting={"cfg.keep": k}) for r, k in zip((near, far, lucky), ("cond", "uncond", "cond"), strict=True)
    ]
    assert verdict.cheapest(words, ("psnr", 35)) == (words[2], words[2])
    own = near.summary["psnr"].low - 0.01
    assert verdict.cheapest([near], ("psnr", own))[0] is near
    assert verdict.cheapest([words[0], words[1]], ("psnr", own))[0] is None


def test_a_floor_is_held_against_in_latents(tmp_path):
    """Frames of equal error whose latents are a hundred times nearer: below the floor."""
    floor = many(tmp_path, [0.51, 0.511, 0.51, 0.51])

    def with_latents(error):
        pairs = (replace(p, figures={**p.figures, "latent_error": error * (1 + p.seed / 9)}) for p in floor.pairs)
        return replace(floor, pairs=tuple(pairs))

    assert standing(floor, floor) == standing(with_latents(1e-2), with_latents(1e-2)) == "not told apart"
    assert standing(with_latents(1e-4), with_latents(1e-2)) == "below"
    assert standing(with_latents(1e-2), with_latents(1e-4)) == "above"


def test_a_pair_that_becomes_identical_changes_nothing_suddenly(tmp_path):
    """One pair, then half of them, of error 0 or of next to nothing: every figure, bound and verdict alike."""
    some = many(tmp_path, [0.51, 0.513, 0.52, 0.53])
    floor = many(tmp_path, [0.512, 0.51, 0.52, 0.531])
    for count in (1, 2):
        rows = []
        for error in (1e-13, 0.0):
            pairs = tuple(
                replace(p, figures={**p.figures, "mse": error, "psnr": math.inf if not error else 130.0})
                if k < count
                else p
                for k, p in enumerate(some.pairs)
            )
            rows.append(replace(some, pairs=pairs))
        near, gone = ([r.summary["mse"], r.summary["psnr"]] for r in rows)
        for x, y in zip(near, gone, strict=True):
            assert (x.mean, x.low, x.high) == pytest.approx((y.mean, y.low, y.high), rel=1e-3)
        said = [Comparison(baseline="b", results=(r,), floors=(floor,)).verdict(r) for r in rows]
        assert said[0] == said[1] and standing(rows[0], floor) == standing(rows[1], floor)


def test_pass_equivalents_and_statuses(tmp_path):
    """A version-2 file by hand: operations that ran, statuses, and the operations of a whole pass."""
    v2 = {"flops_by_step": [100.0] * 4, "pass_flops_by_step": [50.0] * 4}
    b = write(tmp_path / "b.h5", predicted=v2, operations=(100, 100, 100, 100), status=("fresh",) * 4)
    a = write(
        tmp_path / "a.h5", predicted=v2, operations=(100, 100, 20, 50), status=("fresh", "fresh", "skipped", "reused")
    )
    pair = measure(a, b)
    f = pair.figures
    assert (f["pass_equivalents"], f["pass_equivalents_baseline"], f["passes"]) == (5.4, 8, 8)
    assert f["speedup_predicted"] == pytest.approx(400 / 270) and pair.divergence.truncated == (2, 3)
    comparison = Comparison(baseline="baseline", results=(Result(label="A", pairs=(pair,)),))
    assert table.rows(comparison)[0]["passes"] == "5.4/8"
    old = Comparison(baseline="baseline", results=(many(tmp_path, [0.6], passes=(2, 2, 1, 1)),))
    assert table.rows(old)[0]["passes"] == "6/8"
