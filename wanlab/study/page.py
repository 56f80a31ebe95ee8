"""The report as one HTML page that loads nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from datetime import date
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from wanlab import __version__
from wanlab.analysis.measured import small_film
from wanlab.analysis.metrics.pixels import squared_error
from wanlab.analysis.verdict import THRESHOLDS
from wanlab.errors import WanlabError
from wanlab.files import read_bytes
from wanlab.runfile import Reader
from wanlab.study.design import slug
from wanlab.study.report import counted, exact, interval, said, sources, threshold

if TYPE_CHECKING:
    from wanlab.analysis.hypotheses import Claim, Evidence, Hypothesis
    from wanlab.analysis.hypotheses import Figure as Stated
    from wanlab.analysis.measured import Measured

CLIPS = 6_700_000  # bytes of clips in the page …
FIGURES = 2_000_000  # … and of figures before base64: under 10 MiB together
CARD = 5  # figures on a hypothesis' card
MARKS = {"supported": "✓", "refuted": "✗"}  # a claim's verdict on the card
KINDS = {"supported": "good", "refuted": "bad"}
NEEDS = {">=": "at least ", ">": "more than ", "<=": "at most ", "<": "less than "}
VOID = ("–", "", None)


def page(evidence: Evidence, judged: Sequence[Hypothesis], figures: Sequence[Stated]) -> tuple[str, list[str]]:
    """The whole report as one HTML page that loads nothing from anywhere, and notes on what is left out."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    there = resources.files("wanlab.study") / "templates"
    style, script = ((there / name).read_text("utf-8") for name in ("report.css", "report.js"))
    environment = Environment(
        loader=PackageLoader("wanlab.study"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = Figures()
    with Reader() as reader:
        clips = Clips(evidence.runs, reader)
        comparisons = [_comparison(c.path, c.content, drawn, clips) for c in evidence.comparisons]
        paired = set(clips.shown)
        alone = [
            {"says": r.prompt, "beside": f"{r.method}, seed {r.seed}", "data": data}
            for r in evidence.runs
            if r.path not in paired and (data := clips.of(r.path))
        ]
    # Style and script are our own text: marked as safe, and named to the browser by their hashes.
    html = environment.get_template("report.html.j2").render(
        title="wanlab report",
        version=__version__,
        date=date.today().isoformat(),
        counted=counted(evidence),
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        hypotheses=[_hypothesis(x) for x in judged],
        stated=_table([_stated(f) for f in figures]),
        comparisons=comparisons,
        continuities=[_continuity(c.path, c.content, drawn) for c in evidence.continuities],
        runs=_table([_run(r) for r in evidence.runs], ("prompt", "method", "model")),
        clips=alone,
        clips_said=clips.counted(),
        figures_said=drawn.counted(),
        problems=[{"path": str(p), "message": m} for p, m in evidence.problems],
    )
    return html, [*drawn.notes, *clips.notes]


def _table(rows: Sequence[dict[str, Any]], texts: Sequence[str] | None = None) -> dict[str, Any]:
    """Rows of one shape without the columns in which no row says anything; all are numbers but the `texts`."""
    columns = [name for name in (rows[0] if rows else ()) if any(row[name] not in VOID for row in rows)]
    return {
        "columns": columns,
        "numbers": [name for name in columns if texts is not None and name not in texts],
        "rows": [[row[name] for name in columns] for row in rows],
    }


def _stated(f: Stated) -> dict[str, Any]:
    return {
        "figure": f.what,
        "stated": f.stated,
        "theory": f.theory,
        "measured": f.measured,
        "contradiction": f.contradiction or "–",
    }


def _run(r: Measured) -> dict[str, Any]:
    return {
        "prompt": r.prompt,
        "method": r.method,
        "model": r.key.model,
        "seed": r.seed,
        "frames": r.key.frames,
        "steps": r.key.steps,
        "passes": r.passes,
        "seconds": f"{r.seconds:.2f}",
    }


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _hypothesis(x: Hypothesis) -> dict[str, Any]:
    alone = len({c.on for c in x.claims}) == 1  # what all are about says the answer
    claims = [_claim(c, alone) for c in sorted(x.claims, key=lambda c: not c.decides)]
    deciding = _deciding(x)
    measured = any(c.value.n for c in deciding)
    return {
        "name": x.name,
        "says": x.says,
        "verdict": x.verdict,
        "answer": answer(x),
        "figures": [f"{MARKS.get(c.verdict, '?')} {against(c)}" for c in deciding][:CARD]
        if measured
        else ["nothing measured"],
        "kind": KINDS.get(x.verdict, "open"),
        "claims": claims,
        "void": [name for name in ("interval", "n", "sources") if all(c[name] in VOID for c in claims)],
    }


def _deciding(x: Hypothesis) -> list[Claim]:
    """The claims that it rests on: those that were measured first, and of these those that say what the whole says."""
    claims = [c for c in x.claims if c.decides]
    return sorted(claims, key=lambda c: (math.isnan(c.value.mean), c.verdict != x.verdict))


def against(c: Claim) -> str:
    """A claim's value and what it was held against, as "PSNR 28.5 dB, needs at least 39"."""
    name = c.quantity.upper() if c.quantity in ("psnr", "ssim", "mse") else c.quantity
    unit = " dB" if c.quantity == "psnr" else ""
    value = "not measured" if math.isnan(c.value.mean) else _short(c.value.mean) + unit
    return f"{name} {value}, needs {NEEDS[c.relation]}{c.threshold:g}"


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "∞"


def answer(x: Hypothesis) -> str:
    """One sentence that answers the hypothesis."""
    claims = _deciding(x)
    if not any(c.value.n for c in claims):
        return "Open: nothing was measured that would tell."
    on = f" on {x.on}" if x.on else ""
    rest = len([c for c in claims if c.verdict == x.verdict]) - 1
    first = claims[0]
    spread = ""
    if first.value.known:
        spread = f" (95 % interval {_short(first.value.low)} to {_short(first.value.high)})"
    said = against(first).replace(", needs", f"{spread}, needs", 1)
    if x.verdict == "supported":
        return f"Yes{on}: {said}" + (f", and {counted_claims(rest)} as well." if rest else ".")
    if x.verdict == "refuted":
        return f"No{on}: {said}" + (f", and {counted_claims(rest, 'fail', 'fails')} as well." if rest else ".")
    if x.verdict == "in part":
        holds, fails = (next(c for c in claims if c.verdict == v) for v in ("supported", "refuted"))
        return f"In part{on}: it holds for {against(holds)}; not for {against(fails)}."
    return f"Open{on}: {said}" + (f"; {first.needs}." if first.needs else ".")


def counted_claims(count: int, several: str = "hold", one: str = "holds") -> str:
    return f"{count} more claims {several}" if count > 1 else f"1 more claim {one}"


def _claim(c: Claim, alone: bool) -> dict[str, Any]:
    return {
        "says": c.says.removeprefix(f"on {c.on}: ") if alone else c.says,
        "method": c.method,
        "decides": c.decides,
        "needs": c.needs,
        "run": c.run,
        "verdict": c.verdict,
        "kind": KINDS.get(c.verdict, "open"),
        "value": said(c.value.mean),
        "sort": exact(c.value.mean),
        "interval": interval(c),
        "n": f"{c.value.n} {c.units}" if c.value.n else "–",
        "threshold": threshold(c),
        "sources": sources(c),
    }


SHOWN = {
    "followed": ("adherence", ".1%", ""),
    "A - B": ("adherence_change", "+.1%", ""),
    **{name: (f"{name}_ratio", ".2f", "x") for name in ("motion", "flicker", "sharpness", "saturation", "contrast")},
}
COLUMNS = {
    "predicted": ("speedup_predicted", ".2f", "x"),
    "measured": ("speedup", ".2f", "x"),
    "PSNR": ("psnr", ".1f", " dB"),
    "SSIM": ("ssim", ".3f", ""),
}


def _comparison(path: Path, content: Any, drawn: Figures, clips: Clips) -> dict[str, Any]:
    columns = COLUMNS | {name.replace("_", " "): (name, ".4g", "") for name in _others(content)}
    summaries = [(m.get("label"), m.get("summary") or {}) for m in content["methods"]]
    rows = [
        {
            "method": m.get("label"),
            **{title: _of(m.get("summary") or {}, *c) for title, c in columns.items()},
            "n": m.get("n", "–"),
            "verdict": m.get("verdict"),
        }
        for m in content["methods"]
    ]
    seen = [{"method": label, **{title: _of(s, *c) for title, c in SHOWN.items()}} for label, s in summaries]
    return {
        "title": content.get("compared") or "comparison",
        "path": str(path),
        "table": _table(rows, ("method", "verdict")),
        "clip_table": _table(seen, ("method",)),
        "pairs": _pairs(content, clips),
        "figures": drawn.of(_drawn(path, content)),
    }


def _pairs(content: Any, clips: Clips) -> list[dict[str, Any]]:
    """The clips by prompt and seed, the worst pair first: its A beside B, then the A's of the other methods. Without
    those whose runs are not among what was read."""
    given = content.get("thresholds") or {}
    bounds = THRESHOLDS | {name: value for name, value in given.items() if value is not None}
    groups: dict[Any, list[tuple[str, Any]]] = {}
    for m in content["methods"]:
        for p in m.get("pairs") or ():
            groups.setdefault((p.get("prompt"), p.get("seed"), p.get("b")), []).append((m.get("label"), p))
    for group in groups.values():
        group.sort(key=lambda x: -_error(x[1]))
    shown = []
    for (prompt, seed, path), group in sorted(groups.items(), key=lambda item: -_error(item[1][0][1])):
        if not (clips.knows(path) and clips.knows(group[0][1].get("a"))):
            continue
        sides = [(f"A: {label}", _held(p, bounds), p.get("a")) for label, p in group]
        sides.insert(1, (f"B: {content.get('baseline') or 'baseline'}", "", path))
        films = [{"says": says, "beside": beside, "data": clips.find(p)} for says, beside, p in sides]
        if films[0]["data"] and films[1]["data"]:
            shown.append({"says": f"{prompt}, seed {seed}", "clips": [f for f in films if f["data"]]})
    return shown


def _error(pair: Any) -> float:
    """What pairs are sorted by: the mean squared error; infinite when it is no number."""
    if pair.get("psnr") == "identical":
        return 0.0
    if isinstance(mse := pair.get("mse"), int | float):
        return float(mse)
    return squared_error(pair["psnr"]) if isinstance(pair.get("psnr"), int | float) else math.inf


def _held(pair: Any, bounds: Mapping[str, float]) -> str:
    """A pair's figures and what they are held against, as "28.5 dB, needs 35"."""
    if pair.get("psnr") in ("identical", "inf"):
        return "identical"
    forms = {"psnr": (".1f", " dB"), "ssim": (".3f", " SSIM")}
    numbers = {n: v for n in forms if isinstance(v := pair.get(n), int | float)}
    return "; ".join(f"{v:{forms[n][0]}}{forms[n][1]}, needs {bounds[n]:g}" for n, v in numbers.items())


def _others(content: Any) -> list[str]:
    """The figures that are not wanlab's own: measures that somebody registered."""
    from wanlab.analysis import metrics

    own = {
        name for name, m in metrics.by_figure().items() if getattr(m.function, "__module__", "").startswith("wanlab.")
    }
    names = dict.fromkeys(name for m in content["methods"] for name in m.get("summary") or {})
    return [name for name in names if name not in own and not name.endswith("_baseline")]


def _drawn(path: Path, content: Any) -> list[Path]:
    """The figures of a comparison: its front and those of its methods, in the folder that it was written into."""
    folder = path.parent.parent if path.parent.name == "comparisons" else path.parent
    front = [folder / "pareto.png"] if len(content["methods"]) > 1 else []
    return front + [p for m in content["methods"] for p in sorted((folder / slug(str(m.get("label")))).glob("*.png"))]


def _of(summary: Any, name: str, form: str, unit: str) -> str:
    found = summary.get(name) or {}
    mean, low, high = (found.get(k) for k in ("mean", "low", "high"))
    if not isinstance(mean, int | float):
        return "identical" if mean in ("inf", "identical") else "–"
    spread = ""
    if isinstance(low, int | float) and isinstance(high, int | float):
        spread = f" ({low:{form}}{'–' if low >= 0 else ' to '}{high:{form}})"
    return f"{mean:{form}}{unit}{spread}"


def _continuity(path: Path, content: Any, drawn: Figures) -> dict[str, Any]:
    return {
        "title": str(path),
        "reading": [
            f"{g.get('method')}, {g.get('frames')} frames: {line}"
            for g in content["groups"]
            for line in g.get("reading") or []
        ],
        "figures": drawn.of(sorted(path.parent.glob("continuity_*.png"))),
    }


class Figures:
    """PNG files as data URIs, until the page's budget is spent."""

    def __init__(self) -> None:
        self._left = FIGURES
        self._no_room = 0
        self.notes: list[str] = []

    def counted(self) -> str:
        """How many had no room, in a sentence; "" for none."""
        many = "s are" if self._no_room > 1 else " is"
        return (
            f"{self._no_room} figure{many} left out: together they may have {FIGURES:,} bytes." if self._no_room else ""
        )

    def of(self, files: Sequence[Path]) -> list[dict[str, str]]:
        """Those of the files that are there and can be shown; of the others that are there a note says why not."""
        found = []
        for file in filter(os.path.lexists, files):
            try:
                if file.is_file() and self._left < file.stat().st_size <= FIGURES:
                    self._no_room += 1
                    self.notes.append(f"{file}: figures may have {FIGURES:,} bytes in all: the figure is left out")
                    continue
                data = read_bytes(file, FIGURES)
                if data[:8] != b"\x89PNG\r\n\x1a\n":
                    raise WanlabError(f"{file} is no PNG")
            except WanlabError as error:
                self.notes.append(f"{error.message}: the figure is left out")
                continue
            self._left -= len(data)
            name = f"{file.parent.name}: {file.stem.replace('_', ' ')}"
            found.append({"name": name, "data": _uri("image/png", data)})
        return found


class Clips:
    """The runs' films, small, as data URIs, until the page's budget is spent."""

    def __init__(self, runs: Sequence[Measured], reader: Reader) -> None:
        self._reader = reader
        # A comparison names its runs as they were when it was made: the folder may have moved since.
        self._runs = {r.path.parts[-2:]: r.path for r in runs} | {
            Path(os.path.abspath(r.path)).parts: r.path for r in runs
        }
        self._data: dict[Path, str] = {}
        self._left_out: set[Path] = set()
        self._used, self._full = 0, False
        self.shown: set[Path] = set()
        self.notes: list[str] = []

    def counted(self) -> str:
        """How many there are, and how many are left out to keep the page small."""
        left_out = len(self._left_out - self.shown)
        said = f"{len(self.shown)} clip{'' if len(self.shown) == 1 else 's'}"
        return said + (f"; {left_out} left out to keep the page small" if left_out else "")

    def knows(self, path: str | None) -> bool:
        """Whether this is a run that was read."""
        return self._known(path) is not None

    def find(self, path: str | None) -> str:
        """The film of a run that a comparison names; "" when it was not read or has no place any more."""
        known = self._known(path)
        return self.of(known) if known else ""

    def of(self, path: Path) -> str:
        """The film of a run; "" when it has none, or no place any more."""
        if path not in self._data and not self._full:
            self._data[path] = self._encoded(path)
        data = self._data.get(path, "")
        self._full = self._full or self._used + len(data) > CLIPS
        if self._full:
            self._left_out.add(path)
        if self._full or not data:
            return ""
        self._used += len(data)
        self.shown.add(path)
        return data

    def _known(self, path: str | None) -> Path | None:
        if not path:
            return None
        return self._runs.get(Path(os.path.abspath(path)).parts) or self._runs.get(Path(path).parts[-2:])

    def _encoded(self, path: Path) -> str:
        from wanlab.video import write_mp4

        try:
            film = self._reader(small_film, path)
            if film is None:
                return ""
            with TemporaryDirectory() as folder:
                clip = Path(folder) / "clip.mp4"
                write_mp4(clip, *film)
                return _uri("video/mp4", clip.read_bytes())
        except WanlabError as error:
            self.notes.append(f"{path}: {error.message}: its clip is left out")
            return ""


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
