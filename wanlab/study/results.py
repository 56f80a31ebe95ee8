"""What a study gives back: files, figures and tables, as a notebook shows them."""

from __future__ import annotations

import base64
import html
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanlab.errors import UsageError, WanlabError
from wanlab.registry import suggest

if TYPE_CHECKING:
    from wanlab.analysis.compare import Comparison
    from wanlab.analysis.continuity import Group
    from wanlab.analysis.hypotheses import Figure, Hypothesis
    from wanlab.runfile import Run
    from wanlab.spec import RunSpec

MAX_CLIP = 20_000_000  # bytes of a film in a notebook


def _need(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise WanlabError(f"{module} is not installed", "pip install 'wanlab[notebook]'") from error


def _frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    return _need("pandas").DataFrame([dict(row) for row in rows])


def _dataset(rows: Sequence[Mapping[str, Any]], index: Sequence[str]) -> Any:
    _need("xarray")
    return _frame(rows).set_index(list(index)).to_xarray()


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as an HTML table; every text is escaped."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(row.get(n, '')))}</td>" for n in names) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True)
class Picture:
    """A PNG that a notebook shows."""

    data: bytes

    def _repr_png_(self) -> bytes:
        return self.data

    def save(self, path: str | Path) -> Path:
        """Write the PNG. Raises WanlabError."""
        from wanlab.files import write_bytes

        return write_bytes(Path(path), self.data)


def _draw(draw: Callable[[Path], object]) -> Picture:
    """What a function that writes a PNG writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figure.png"
        if draw(path) is None:
            raise WanlabError("there is nothing to draw", "the runs recorded too little: compare runs with latents")
        return Picture(path.read_bytes())


def _choose(kinds: Mapping[str, Callable[[], Picture]], kind: str) -> Picture:
    if kind not in kinds:
        raise UsageError(f"there is no figure '{kind}'", suggest(kind, kinds))
    return kinds[kind]()


@dataclass(frozen=True)
class Clip:
    """A film that plays in a notebook."""

    path: Path
    title: str = ""

    def _repr_html_(self) -> str:
        caption = f"<figcaption>{html.escape(self.title)}</figcaption>" if self.title else ""
        try:
            if self.path.stat().st_size > MAX_CLIP:
                return f"<figure>{html.escape(str(self.path))} is too large to be shown here{caption}</figure>"
            data = base64.b64encode(self.path.read_bytes()).decode()
        except OSError as error:
            return f"<figure>{html.escape(f'{self.path}: {error.strerror}')}{caption}</figure>"
        source = f"data:video/mp4;base64,{data}"
        return f'<figure><video controls loop muted src="{source}"></video>{caption}</figure>'


# --- results -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A run file, complete."""

    path: Path

    def open(self) -> Run:
        """The run file, to be closed by the caller (`with result.open() as run:`). Raises WanlabError."""
        from wanlab.runfile import Run

        return Run(self.path)

    @cached_property
    def spec(self) -> RunSpec:
        """What was asked for."""
        with self.open() as run:
            return run.spec

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Every step's single values, as recorded."""
        import numpy as np

        with self.open() as run:
            columns = {}
            for name, data in run.data.items():
                if data.group == "steps" and len(data.shape) == 1:
                    columns[name] = np.asarray(data).tolist()
            return [{"step": k + 1} | {n: v[k] for n, v in columns.items()} for k in range(run.steps)]

    def to_pandas(self) -> Any:
        """A DataFrame of `rows`. Raises WanlabError without pandas."""
        return _frame(self.rows)

    def to_xarray(self) -> Any:
        """A Dataset of `rows` over "step". Raises WanlabError without pandas and xarray."""
        return _dataset(self.rows, ["step"])

    def clip(self) -> Clip:
        """The film."""
        return Clip(self.path.with_suffix(".mp4"), f"{self.spec.prompt}, seed {self.spec.seed}")

    def figure(self, kind: str = "guidance") -> Picture:
        """ "guidance": what the branches differ in at each step; "frames": some of the video's. Raises UsageError."""
        import numpy as np

        from wanlab.analysis import figures, guidance

        def draw_guidance() -> Picture:
            with self.open() as run:
                analysis = guidance.analyse(run)
            return _draw(lambda path: figures.guidance_figure(analysis, path, title=self.spec.prompt))

        def draw_frames() -> Picture:
            with self.open() as run:
                video = np.asarray(run.video)
            return _draw(lambda path: figures.contact_sheet(video, path, title=self.spec.prompt))

        return _choose({"guidance": draw_guidance, "frames": draw_frames}, kind)

    def _repr_html_(self) -> str:
        return self.clip()._repr_html_() + f"<p>{html.escape(str(self.path))}</p>"


@dataclass(frozen=True, kw_only=True)
class ComparisonResult:
    """Methods held against a baseline, and the files that say it."""

    comparison: Comparison
    content: dict[str, Any]
    """What comparison.json says (docs/comparison.schema.json), and the files."""
    out: Path
    description: str
    remarks: tuple[str, ...]
    answer: tuple[str, ...]
    """The cheapest method of a sweep, in words."""
    missed: tuple[str, ...]
    """Conditions that a method fails."""
    files: Mapping[str, Path]
    failed: tuple[Path, ...] = ()

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """A row a method: every figure's mean and bounds."""
        from wanlab.analysis import table

        return table.flat(self.comparison)

    @cached_property
    def pairs(self) -> list[dict[str, Any]]:
        """A row a pair."""
        results = (*self.comparison.floors, *self.comparison.results)
        return [
            {"method": r.label, "prompt": p.prompt, "seed": p.seed, **r.setting, **p.figures}
            for r in results
            for p in r.pairs
        ]

    def to_pandas(self) -> Any:
        """A DataFrame, a row a pair. Raises WanlabError without pandas."""
        return _frame(self.pairs)

    def to_xarray(self) -> Any:
        """A Dataset over "method", "prompt" and "seed": `data.sel({"method": "half"})`.

        Raises WanlabError without pandas and xarray.
        """
        return _dataset(self.pairs, ["method", "prompt", "seed"])

    def figure(self, kind: str = "per_frame", method: str = "") -> Picture:
        """ "per_frame", "divergence", "worst_frame" of a method (the first by default), or "front" of all.

        Raises UsageError for another kind or method, WanlabError when there is nothing to draw.
        """
        from wanlab.analysis.figures import compare as figures
        from wanlab.analysis.figures.pareto import front

        results = {r.label: r for r in self.comparison.results}
        if method and method not in results:
            raise UsageError(f"there is no method '{method}'", suggest(method, results))
        result = results[method or next(iter(results))]
        kinds: dict[str, Callable[[Path], object]] = {
            "per_frame": lambda path: figures.per_frame(result, path),
            "divergence": lambda path: figures.divergence(result, path),
            "worst_frame": lambda path: figures.worst_frame(result.worst, path, result.label),
            "front": lambda path: front(self.comparison, path),
        }
        return _choose({name: lambda draw=draw: _draw(draw) for name, draw in kinds.items()}, kind)  # type: ignore[misc]

    def clip(self, method: str = "") -> Clip:
        """A method's worst pair beside each other. Raises WanlabError when it is identical to the baseline."""
        label = method or self.comparison.results[0].label
        path = self.files.get(f"{label} side_by_side")
        if path is None:
            raise WanlabError(f"there is no film of {label}", "it is identical to the baseline, or was left out")
        return Clip(path, f"{label}, {self.comparison.baseline}, and 8 times their difference")

    def _repr_html_(self) -> str:
        from wanlab.analysis.table import clip_rows, rows

        lines = [self.description, *self.answer, *self.remarks]
        return (
            table(rows(self.comparison))
            + table(clip_rows(self.comparison))
            + "".join(f"<p>{html.escape(line)}</p>" for line in lines if line)
        )


@dataclass(frozen=True, kw_only=True)
class ContinuityResult:
    """How neighbouring frames differ at every step, by method and frame count."""

    groups: tuple[Group, ...]
    content: dict[str, Any]
    """What continuity_statistics.json says."""
    out: Path
    files: tuple[Path, ...]
    failed: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """A row a group and step: means over pairs of frames, then over runs."""
        from wanlab.study.continuity import step_rows

        return step_rows(self.groups)

    @cached_property
    def reading(self) -> list[str]:
        """What the numbers say, in sentences."""
        from wanlab.analysis import continuity

        names = continuity.names(self.groups)
        alone = len(self.groups) == 1
        return [
            line if alone else f"{name}: {line}"
            for g, name in zip(self.groups, names, strict=True)
            for line in continuity.reading(g)
        ]

    def to_pandas(self) -> Any:
        """A DataFrame of `rows`. Raises WanlabError without pandas."""
        return _frame(self.rows)

    def to_xarray(self) -> Any:
        """A Dataset over "method", "frames" and "step". Raises WanlabError without pandas and xarray."""
        return _dataset(self.rows, ["method", "frames", "step"])

    def figure(self, kind: str = "analysis") -> Picture:
        """ "analysis", "theory", "heatmap", "spaces", or "frames" where frame counts differ. Raises UsageError."""
        drawn = {p.stem.removeprefix("continuity_"): p for p in self.files if p.suffix == ".png"}
        return _choose({name: lambda path=path: Picture(path.read_bytes()) for name, path in drawn.items()}, kind)  # type: ignore[misc]

    def _repr_html_(self) -> str:
        rows = [
            {"method": g.method, "frames": g.frames, "runs": len(g.runs), "steps": g.first.steps} for g in self.groups
        ]
        return table(rows) + "".join(f"<p>{html.escape(line)}</p>" for line in self.reading)


@dataclass(frozen=True, kw_only=True)
class CalibrationResult:
    """What was measured of a model for its step caches: `policy:calibration=PATH` uses it."""

    path: Path
    content: dict[str, Any]
    """What the file says (docs/caches.md)."""
    runs: tuple[Path, ...]
    remarks: tuple[str, ...] = ()
    """What it lacks, and why."""
    failed: tuple[Path, ...] = ()

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """A row a step: ratios with their spread over prompts, the embedding's change."""
        from wanlab.study.calibrate import step_rows

        return step_rows(self.content)

    def to_pandas(self) -> Any:
        """A DataFrame of `rows`. Raises WanlabError without pandas."""
        return _frame(self.rows)

    def _repr_html_(self) -> str:
        from wanlab.study.calibrate import expert_rows, plan_rows

        return table(expert_rows(self.content)) + table(plan_rows(self.content))


@dataclass(frozen=True, kw_only=True)
class WhatIfResult:
    """What methods would have done in recorded runs: an estimate, for the latents are those of the full runs."""

    content: dict[str, Any]
    """Every method, run and step."""
    rows: list[dict[str, Any]]
    """A row a method: the share of passes saved (mean, least, most over runs), the error of the guided velocity where
    it is off (mean, worst), and where something is reused or left out, in all and in some of the runs."""

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """A row a method and step."""
        from wanlab.study.what_if import step_rows

        return step_rows(self.content)

    def to_pandas(self) -> Any:
        """A DataFrame of `steps`. Raises WanlabError without pandas."""
        return _frame(self.steps)

    def _repr_html_(self) -> str:
        return table(self.rows) + f"<p>{html.escape(self.content['estimate'])}</p>"


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """Hypotheses decided from what was measured."""

    content: dict[str, Any]
    """What report.json says."""
    rows: list[dict[str, Any]]
    """A row a claim."""
    files: tuple[Path, ...]
    """report.html, report.md, report.json."""
    judged: tuple[Hypothesis, ...]
    figures: tuple[Figure, ...]
    """The guide's figures: stated, in theory, measured."""
    markdown: str
    """What report.md says."""
    counted: str
    """What was read, as "3 runs, 1 comparison"."""
    problems: tuple[tuple[Path, str], ...] = ()
    """Files that could not be read, and why."""
    notes: tuple[str, ...] = ()

    def to_pandas(self) -> Any:
        """A DataFrame of `rows`. Raises WanlabError without pandas."""
        return _frame(self.rows)

    def to_xarray(self) -> Any:
        """A Dataset of `rows`, numbered. Raises WanlabError without pandas and xarray."""
        _need("xarray")
        return _frame(self.rows).rename_axis("number").to_xarray()

    def _repr_html_(self) -> str:
        verdicts = [
            {"": x["name"], "hypothesis": x["says"], "verdict": x["verdict"]} for x in self.content["hypotheses"]
        ]
        return table(verdicts) + f"<p>{html.escape(str(self.files[0]))}</p>"
