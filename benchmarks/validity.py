"""What `tiny` says about the real model: its step-cache ratios, branches and losses beside published ones.

python -m benchmarks.validity                                          # the embedded model, 16 prompts x 4 seeds
python -m benchmarks.validity --processes 16                           # on a GPU through NVIDIA's MPS where there is
python -m benchmarks.validity --model runs/tiny/tiny --prompts 4 --seeds 1 --out runs/validity

It samples with `wanlab calibrate` and `wanlab compare` into OUT, continues what is there, and writes OUT/validity.md
(what docs/validity.md is made from), OUT/validity.json, OUT/ratios.png and OUT/cosine.png. In float32 on a GPU too:
what bfloat16 rounds would be among the losses.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from scipy import stats

import wanlab
from benchmarks import tables
from benchmarks.tables import in_shards, run_all, shared, some
from wanlab.analysis.table import cell
from wanlab.engine import calibration
from wanlab.engine.run import plan
from wanlab.runfile import Run
from wanlab.spec import MethodSpec
from wanlab.study.api import specify

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Floats = NDArray[np.float64]
# As the A14B is published with. Its shift of 12, and the model's own, have the expert switch before step 26 then.
STEPS = 40
GUIDANCE = (3.0, 4.0)  # low-noise, high-noise
A14B = "wan2.2-t2v-a14b"
PUBLISHED = (A14B, "wan2.2-ti2v-5b", "wan2.1-t2v-14b", "wan2.1-t2v-1.3b")  # ratios in the package


@dataclass(frozen=True)
class Figure:
    """A published loss: PSNR in dB against the uncached run, of which model and settings, at what speed-up, by whom."""

    psnr: float
    model: str
    speedup: float
    source: str


SCALING = "ScalingCache's README, 50 steps"
HALVED = Figure(15.82, "Wan2.1-T2V-14B", 2.0, SCALING)
METHODS: dict[str, tuple[str, tuple[Figure, ...]]] = {
    "half the steps": (f"steps={STEPS // 2}", (HALVED,)),
    "MagCache .04 K2 R.2, the A14B's ratios": (
        "magcache:threshold=0.04,consecutive=2,retention=0.2,calibration={a14b}",
        (Figure(21.8, "Wan2.2-T2V-A14B", 1.82, "maxdiffusion, pull request 433"),),
    ),
    "MagCache .06 K2 R.4, the A14B's ratios": (
        "magcache:threshold=0.06,consecutive=2,retention=0.4,calibration={a14b}",
        (),
    ),
    "MagCache .12 K4 R.2, the A14B's ratios": (
        "magcache:threshold=0.12,consecutive=4,retention=0.2,calibration={a14b}",
        (Figure(24.39, "Wan2.1-T2V-14B", 2.8, "MagCache's README, one prompt"),),
    ),
    "MagCache .04 K2 R.2, its own ratios": (
        "magcache:threshold=0.04,consecutive=2,retention=0.2,calibration={own}",
        (),
    ),
    "TeaCache .14, calibrated": (
        "teacache:threshold=0.14,calibration={own}",
        (Figure(18.60, "Wan2.1-T2V-14B", 1.5, SCALING),),
    ),
    "TeaCache .2, calibrated": (
        "teacache:threshold=0.2,calibration={own}",
        (
            Figure(17.39, "Wan2.1-T2V-14B", 2.0, "MagCache's README, one prompt"),
            Figure(14.55, "Wan2.2-T2V-A14B", float("nan"), "sglang, pull request 36767"),
        ),
    ),
}


# --- magnitude ratios ------------------------------------------------------------------------------------------------


def agreement(mine: Floats, theirs: Floats) -> dict[str, float]:
    """Pearson's and Spearman's correlation of ratios by step [K], how far they are apart at most, and the last ones."""
    return {
        "pearson": float(stats.pearsonr(mine, theirs).statistic),
        "spearman": float(stats.spearmanr(mine, theirs).statistic),
        "apart": float(np.abs(mine - theirs).max()),
        "last": float(mine[-1]),
        "last_published": float(theirs[-1]),
    }


def ratios(own: calibration.Calibration) -> list[dict[str, Any]]:
    """The model's ratios against every published list: by expert where both have two, else over all steps but the
    switch, the list resampled to as many steps. Step 0 has no ratio and is left out."""
    rows = []
    for name in PUBLISHED:
        published = calibration.load(name)
        for branch in calibration.BRANCHES:
            mine = own.magnitude(branch, own.steps, own.switch)
            theirs = published.magnitude(branch, own.steps, own.switch if published.switch else None)
            parts = {"all steps but the switch": [k for k in range(1, own.steps) if k != own.switch]}
            if own.switch and published.switch:
                parts = {"high noise": [*range(1, own.switch)], "low noise": [*range(own.switch + 1, own.steps)]}
            for part, steps in parts.items():
                rows.append({"model": name, "branch": branch, "part": part} | agreement(mine[steps], theirs[steps]))
            if own.switch and published.switch:
                at = {"switch": float(mine[own.switch]), "switch_published": float(theirs[own.switch])}
                rows.append({"model": name, "branch": branch, "part": "switch"} | at)
    return rows


def draw_ratios(own: calibration.Calibration, file: Path) -> None:
    """Both branches of the model and of the A14B by step; the published single-expert lists, resampled, thin."""
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    steps = range(1, own.steps)
    for name in PUBLISHED:
        published = calibration.load(name)
        switch = own.switch if published.switch else None
        look = {"color": "tab:orange", "lw": 1.6} if name == A14B else {"color": "0.7", "lw": 1}
        axes.plot(steps, published.magnitude("cond", own.steps, switch)[1:], label=name, **look)
    for branch, dash in (("cond", "-"), ("uncond", ":")):
        axes.plot(
            steps, own.magnitude(branch, own.steps, own.switch)[1:], dash, color="tab:blue", label=f"tiny, {branch}"
        )
    axes.set(xlabel="step", ylabel="residual's magnitude over the last step's")
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=150)
    plt.close(figure)


# --- branches --------------------------------------------------------------------------------------------------------


def cosines(runs: list[Path]) -> tuple[Floats, Floats]:
    """Cosine between the branches' velocities by step: mean over runs and standard deviation, [K] each."""
    values = []
    for path in runs:
        with Run(path) as run:
            values.append(np.asarray(run["cosine"][...], np.float64))
    return np.mean(values, axis=0), np.std(values, axis=0)


def draw_cosines(mean: Floats, spread: Floats, switch: int | None, file: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    axes.plot(mean)
    axes.fill_between(range(len(mean)), mean - spread, mean + spread, alpha=0.3)
    if switch:
        axes.axvline(switch - 0.5, color="0.6", lw=1)
    axes.set(xlabel="step", ylabel="cosine of the branches' velocities")
    figure.savefig(file, dpi=150)
    plt.close(figure)


# --- losses ----------------------------------------------------------------------------------------------------------


def relabelled(shift: float | None, file: Path) -> Path:
    """The A14B's ratios as ones of this shift, each expert's by the index of the step: the published list is of shift
    12, and a calibration of another shift is refused."""
    content = json.loads((calibration.SHARED / f"{A14B}.json").read_text())
    content["schedule"]["shift"] = shift
    file.write_text(json.dumps(content) + "\n")
    return file.resolve()


@dataclass(frozen=True)
class Asked:
    """A method of `METHODS`, how many whole steps its operations are, and the method of so few steps, which chooses
    nothing."""

    method: MethodSpec
    worth: float
    fewer: MethodSpec


def asked(own: Path, a14b: Path, prompts: list[str], settings: dict[str, Any]) -> dict[str, Asked]:
    """What is compared, with calibrations of the model's `own` and the A14B's. All schedules are known beforehand, and
    so is what they cost."""
    found = {}
    for name, (text, _) in METHODS.items():
        method = MethodSpec.parse(text.format(own=own, a14b=a14b))
        worth = steps_worth(method, prompts[:1], settings)
        found[name] = Asked(method, worth, MethodSpec.parse(f"steps={round(worth)}"))
    return found


def every(methods: dict[str, Asked]) -> list[str]:
    """These and those of fewer steps, each once."""
    return [
        *dict.fromkeys(str(m) for m in (*(a.method for a in methods.values()), *(a.fewer for a in methods.values())))
    ]


def losses(
    methods: dict[str, Asked], prompts: list[str], seeds: range, out: Path, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """What each method loses, and what fewer steps of the same cost lose."""
    compared = wanlab.compare(every(methods), prompts=prompts, seeds=seeds, out=out, progress=False, **settings)
    made = {result.method: result for result in compared.comparison.results}
    rows = []
    for name, (_, published) in METHODS.items():
        given = methods[name]
        result, equal = made[str(given.method)], made[str(given.fewer)]
        rows.append(
            {
                "method": name,
                "steps_worth": given.worth,
                "psnr": result.summary["psnr"].to_dict(),
                "shown": cell(result.summary["psnr"], result.metrics["psnr"], lines=False),
                "equal_steps": round(given.worth),
                "fewer_steps": cell(equal.summary["psnr"], equal.metrics["psnr"], lines=False),
                "fewer_steps_psnr": equal.summary["psnr"].to_dict(),
                "adherence": cell(result.summary.get("adherence"), result.metrics["adherence"], lines=False),
                "published": [
                    f"{f.psnr:g} dB, {f.model}, {f.speedup:g}x ({f.source})".replace(", nanx", "") for f in published
                ],
            }
        )
    return rows


def steps_worth(method: MethodSpec, prompts: list[str], settings: dict[str, Any]) -> float:
    """How many whole steps a method's operations are."""
    (spec,) = specify(prompts, **settings)
    return STEPS * plan(method.apply(spec)).flops / plan(spec).flops


# --- tables ----------------------------------------------------------------------------------------------------------


def markdown(content: dict[str, Any]) -> str:
    """The tables of docs/validity.md."""
    lines = [
        "| published | branch | steps | Pearson | Spearman | most apart | last: tiny, published |",
        "|" + " --- |" * 7,
    ]
    for r in content["ratios"]:
        head = f"| {r['model']} | {r['branch']} | {r['part']} "
        if r["part"] == "switch":
            lines.append(f"{head}| | | {abs(r['switch'] - r['switch_published']):.3f} | {_two(r, 'switch')} |")
        else:
            lines.append(f"{head}| {r['pearson']:+.3f} | {r['spearman']:+.3f} | {r['apart']:.3f} | {_two(r, 'last')} |")
    shown = ", ".join(f"{c:.3f}" for c in content["cosine"])
    lines += ["", f"Cosine between the branches' velocities by step: {shown}.", ""]
    lines += [
        "| method | worth steps | PSNR, dB | fewer steps at that cost | followed | published |",
        "|" + " --- |" * 6,
    ]
    lines += [
        f"| {r['method']} | {r['steps_worth']:.1f} | {r['shown']} | {r['equal_steps']}: {r['fewer_steps']} | "
        f"{r['adherence']} | {'; '.join(r['published']) or '–'} |"
        for r in content["losses"]
    ]
    return "\n".join(lines) + "\n"


def _two(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.3f}, {row[f'{name}_published']:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--prompts", type=int, default=16, help="so many of the suite held-out, spread over it")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/validity"))
    args = parser.parse_args()
    prompts, seeds = some("held-out", args.prompts), range(args.seeds)
    settings = {"model": args.model, "frames": args.frames, "steps": STEPS, "guidance": GUIDANCE, "dtype": "float32"}
    args.out.mkdir(parents=True, exist_ok=True)
    measure(args.out, prompts, seeds, settings, args.processes)


def together(name: str, commands: list[list[str]], out: Path) -> None:
    """Several processes sample what follows finds made; ends where one of them fails."""
    with shared(len(commands)):
        if not run_all(name, commands, out):
            sys.exit(1)


def measure(out: Path, prompts: list[str], seeds: range, settings: dict[str, Any], processes: int) -> None:
    """Everything, into `out`."""
    (out / "prompts.txt").write_text("\n".join(prompts) + "\n")
    words = ["--prompts", str(out / "prompts.txt"), "--seed", f"0:{len(seeds)}"]
    words += ["--guidance", ",".join(map(str, GUIDANCE))]
    words += [word for name in ("model", "frames", "steps", "dtype") for word in (f"--{name}", str(settings[name]))]
    file = out / "calibration.json"
    if processes > 1:
        together("calibrate", [["calibrate", *words, "--out", str(file)]] * processes, out)
    measured = wanlab.calibrate(prompts, seeds, out=file, progress=False, **settings)
    own = calibration.load(str(measured.path))
    mean, spread = cosines([p for p in measured.runs if p not in measured.failed])
    methods = asked(measured.path.resolve(), relabelled(own.shift, out / "a14b.json"), prompts, settings)
    compared = out / "compared"
    if processes > 1:
        words = ["compare", *tables.methods(*every(methods)), *words, "--out", str(compared), "--yes"]
        together("compare", in_shards(words, processes), out)
    content: dict[str, Any] = {
        "model": settings["model"],
        "prompts": len(prompts),
        "seeds": len(seeds),
        "ratios": ratios(own),
        "cosine": mean.tolist(),
        "cosine_spread": spread.tolist(),
        "losses": losses(methods, prompts, seeds, compared, settings),
    }
    draw_ratios(own, out / "ratios.png")
    draw_cosines(mean, spread, own.switch, out / "cosine.png")
    (out / "validity.json").write_text(json.dumps(content, indent=1) + "\n")
    text = markdown(content)
    (out / "validity.md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
