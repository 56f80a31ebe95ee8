"""VBench's hand-over: films under its names, and its scores back with intervals.

VBench (Huang et al., 2024; github.com/Vchitect/VBench) scores a folder of PROMPT-INDEX.mp4. What it writes is
NAME_eval_results.json, {dimension: [its overall score, [film, …]]}, where a film is {"video_path": its path,
"video_results": a number, or true or false}.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from wanlab.errors import UsageError, WanlabError
from wanlab.files import make_folder, parse_json, read_bytes, write_text
from wanlab.runfile import Run
from wanlab.study.design import slug
from wanlab.study.folders import prompt_and_seed
from wanlab.study.text import plain

if TYPE_CHECKING:
    from wanlab.spec import RunSpec

FORMAT = "wanlab-vbench/1"
RESULTS = "_eval_results.json"
# What it measures of own prompts; the other dimensions need its own.
OWN = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
)
PERCENT = ("imaging_quality",)  # its single values are of 100, its overall score of 1
COSINES = ("overall_consistency", "temporal_style", "appearance_style")  # can be below 0
ROUNDING = 1e-5
MAX_BYTES = 50_000_000
MAX_NAME = 180  # bytes of a prompt that becomes a file's name


def export(paths: Sequence[Path], out: Path) -> list[dict[str, Any]]:
    """Write the films of the runs below `paths` as OUT/METHOD/PROMPT-INDEX.mp4, the index counting each prompt's seeds
    from 0; beside each folder METHOD.prompts.json for VBench's --prompt_file, and OUT/manifest.json. A row a film.

    Raises UsageError where there is no run, WanlabError for a damaged one or a full disk.
    """
    from wanlab.analysis.hypotheses import files
    from wanlab.analysis.metrics.clip import Clip
    from wanlab.analysis.metrics.pixels import eight_bits
    from wanlab.video import write_mp4_from

    runs = _by_method([p for given in paths for p in files(given) if p.suffix == ".h5"])
    if not runs:
        raise UsageError(f"there is no run in {', '.join(map(str, paths))[:200]}", "name folders of run files")
    seeds: dict[str, set[int]] = {}
    for own in runs.values():
        for prompt, seed in own:
            seeds.setdefault(prompt, set()).add(seed)
    rows = []
    for method, own in runs.items():
        folder, prompts = make_folder(make_folder(out) / method), {}
        for (prompt, seed), path in own.items():
            index = sorted(seeds[prompt]).index(seed)
            name = f"{_name(prompt)}-{index}.mp4"
            clip = Clip.of(path)
            with clip.read() as frames:
                write_mp4_from(folder / name, map(eight_bits, frames), (clip.width, clip.height), clip.fps)
            prompts[name] = prompt
            rows.append(
                {"film": f"{method}/{name}", "method": method, "prompt": prompt, "seed": seed, "run": str(path)}
            )
        write_text(out / f"{method}.prompts.json", json.dumps(prompts, indent=1) + "\n")
    write_text(out / "manifest.json", json.dumps({"format": FORMAT, "films": rows}, indent=1) + "\n")
    return rows


def commands(out: Path, methods: Sequence[str]) -> list[str]:
    """What to run in VBench's folder, a line a method."""
    at, written = out.resolve(), []
    for m in methods:
        words = ["python", "evaluate.py", "--mode", "custom_input", "--videos_path", at / m]
        words += ["--prompt_file", f"{at / m}.prompts.json", "--output_path", at / "results" / m, "--dimension", *OWN]
        written.append(shlex.join(map(str, words)))
    return written


def _by_method(paths: Sequence[Path]) -> dict[str, dict[tuple[str, int], Path]]:
    """The runs by what they have in common beside prompt and seed, under a folder's name; a copy counts once."""
    found: dict[str, tuple[RunSpec, dict[tuple[str, int], Path]]] = {}
    for path in paths:
        with Run(path) as run:
            if run.status != "complete":
                continue
            spec = run.spec
        common = dataclasses.replace(spec, prompt="any", seed=0)
        found.setdefault(repr(common), (common, {}))[1].setdefault((spec.prompt, spec.seed), path)
    named: dict[str, dict[tuple[str, int], Path]] = {}
    for common, own in found.values():
        label = slug(" ".join(map(str, common.policies)) or "baseline")
        several = [name for name in named if name == label or name.startswith(f"{label}~")]
        named[f"{label}~{len(several) + 1}" if several else label] = own
    return named


def _name(prompt: str) -> str:
    """The prompt where it can be a file's name, else what is left of it with a digest; METHOD.prompts.json has it
    whole."""
    fits = prompt.isprintable() and "/" not in prompt and not prompt.startswith(".") and prompt == prompt.strip()
    return prompt if prompt and fits and len(prompt.encode()) <= MAX_NAME else slug(f"{prompt[:100]} {_digest(prompt)}")


def _digest(text: str) -> str:
    from hashlib import sha256

    return sha256(text.encode()).hexdigest()[:8]


def scores(path: Path) -> list[dict[str, Any]]:
    """VBench's scores of a file, or of all NAME_eval_results.json below a folder, as metrics: a row a method and
    dimension with the mean over prompts, its 95 % interval, and the difference to the method "baseline", film by film.

    A method is the folder that its films lay in. Raises UsageError where there is none, WanlabError for another file.
    """
    from wanlab.analysis.stats import grouped

    given = sorted(path.rglob(f"*{RESULTS}")) if path.is_dir() else [path]
    if not given:
        raise UsageError(f"no file in {path} ends in {RESULTS}", "name what VBench wrote, or its folder")
    known: dict[tuple[str, str], dict[str, float]] = {}
    stated: dict[tuple[str, str], float] = {}
    for file in given:
        for dimension, (overall, films) in _read(file).items():
            for film, value in films.items():
                method = PurePosixPath(film).parent.name or "films"
                known.setdefault((method, dimension), {})[PurePosixPath(film).name] = value
                stated[method, dimension] = overall
    rows = []
    for (method, dimension), films in known.items():
        metric = _metric(dimension)
        prompts = [prompt_and_seed(Path(name).stem)[0] for name in films]
        mean, units = grouped(list(films.values()), prompts, metric.bounds)
        row = {"method": method, "figure": metric.name, "mean": mean.mean, "low": mean.low, "high": mean.high}
        row |= {"n": mean.n, "units": units, "films": len(films), "VBench says": stated[method, dimension]}
        other = known.get(("baseline", dimension), {}) if method != "baseline" else {}
        both = [name for name in films if name in other]
        apart, _ = grouped(
            [films[n] - other[n] for n in both], [prompt_and_seed(Path(n).stem)[0] for n in both], (-math.inf, math.inf)
        )
        rows.append(row | {"difference": apart.mean, "difference_low": apart.low, "difference_high": apart.high})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The same for people; the interval on a second line."""
    from wanlab.analysis.stats import Interval
    from wanlab.analysis.table import cell

    shown = []
    for r in rows:
        metric = _metric(r["figure"].removeprefix("vbench."))
        value = cell(Interval(r["mean"], r["low"], r["high"], r["n"]), metric)
        apart = Interval(r["difference"], r["difference_low"], r["difference_high"], r["n"])
        line = {"method": r["method"], "figure": r["figure"], "mean": value, "n": f"{r['n']} {r['units']}"}
        shown.append(line | {"against the baseline": cell(apart, metric, form="+.4f")})
    return shown


def _metric(dimension: str) -> Any:
    from wanlab.analysis.metrics import Metric

    return Metric(
        name=f"vbench.{dimension}",
        function=lambda value: value,
        needs="figures",
        title=dimension.replace("_", " "),
        better="higher",
        bounds=(-1.0 if dimension in COSINES else 0.0, 1.0),
        format=".4f",
    )


def _read(file: Path) -> dict[str, tuple[float, dict[str, float]]]:
    """(overall score, score by film) by dimension. Raises WanlabError unless the file has VBench's shape."""
    wrong = f"{file} is not what VBench writes"
    try:
        content = parse_json(read_bytes(file, MAX_BYTES).decode("utf-8"))
        found = {}
        for dimension, (overall, films) in content.items():
            scale = 100.0 if dimension in PERCENT else 1.0
            metric = _metric(dimension)
            values = {str(f["video_path"]): _within(float(f["video_results"]) / scale, *metric.bounds) for f in films}
            found[plain(dimension, 60)] = (float(overall), values)
            for film, value in values.items():
                if math.isnan(metric(value)):
                    raise WanlabError(
                        f"{wrong}: {plain(dimension, 40)} of {plain(film, 80)} is {value:g}", "make it again"
                    )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        hint = f"name a file NAME{RESULTS}: dimension, [score, [video_path and video_results of each film]]"
        raise WanlabError(wrong, hint) from error
    return found


def _within(value: float, low: float, high: float) -> float:
    """The value; the limit where it passes that by rounding, as a cosine in float32 does."""
    near = min(max(value, low), high)
    return near if abs(near - value) < ROUNDING else value
