"""What a comparison runs: its methods, noise floors and pairs, and the place and turn of every run.

Imports no torch until a noise floor or a value that a sweep leaves without effect has to be looked at.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wanlab.errors import UsageError
from wanlab.files import read_toml
from wanlab.registry import suggest
from wanlab.spec import METHOD_SETTINGS, MethodSpec, PolicySpec, RunSpec, parse_guidance
from wanlab.spec.parallel import AUTO, NONE
from wanlab.spec.paths import VIDEOS, is_run_file
from wanlab.spec.run import short
from wanlab.study.requests import check_names, known, run_name
from wanlab.study.runners.groups import PairGroup

MODES = ("cfg_vs_baseline", "half_vs_baseline", "improved_vs_baseline", "combined_vs_baseline", "cfg_vs_half")
MAX_METHODS = 10_000  # of a sweep
BUILTIN = "builtin:"
MAX_NAME = 80  # characters of a method's folder


@dataclass(frozen=True)
class Variant:
    """A method and, in a sweep, the values it was given."""

    method: MethodSpec
    setting: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Design:
    """Every run that a comparison needs, each once, and which of them each method's pairs are."""

    specs: list[RunSpec]
    """Of the baseline, one for each prompt and seed."""
    baseline: MethodSpec
    baseline_runs: list[Path]
    variants: list[Variant]
    variant_runs: list[list[Path]]
    floors: list[Variant]
    floor_runs: list[list[Path]]
    groups: list[PairGroup]
    """What to run, by prompt and seed, the order of the methods rotating so that drift in the machine's speed falls on
    all of them alike."""

    @property
    def order(self) -> list[tuple[RunSpec, Path]]:
        """Every run with its place, as they come."""
        return [run for group in self.groups for run in group.runs]

    @property
    def new(self) -> list[tuple[RunSpec, Path]]:
        """What has no file yet."""
        return [(spec, path) for spec, path in self.order if not path.exists()]

    @property
    def name(self) -> str:
        """The comparison's own: another one for other methods, settings, prompts or seeds."""
        labels = "+".join(v.method.label for v in self.variants[:2]) + "+more" * (len(self.variants) > 2)
        parts = [str(self.baseline), *(str(v.method) for v in (*self.floors, *self.variants))]
        parts += [s.digest() for s in self.specs]
        return f"{slug(f'{labels} vs {self.baseline.label}')[:60]}-{_digest(*parts)}"

    @property
    def description(self) -> str:
        """Prompts, seeds and settings in one line."""
        spec = self.specs[0]
        prompts, seeds = len({s.prompt for s in self.specs}), len({s.seed for s in self.specs})
        return (
            f"{prompts} prompt{'s' * (prompts > 1)} x {seeds} seed{'s' * (seeds > 1)}; {spec.model}, "
            f"{spec.width}x{spec.height}, {spec.frames} frames, {spec.steps} steps, "
            f"guidance {spec.guidance[0]:g},{spec.guidance[1]:g}"
        )


# --- methods -----------------------------------------------------------------------------------------------------


def suite_prompts(suite: str | None) -> list[str]:
    """The prompts of a suite of the package; the first three of "builtin" where none is named. Raises UsageError."""
    from wanlab.embedded.suite import SUITE, SUITES

    if suite is None:
        return list(SUITE.values())[:3]
    if suite not in SUITES:
        raise UsageError(
            f"there is no suite '{short(suite, 40)}'", f"use --suite {' or --suite '.join(SUITES)}, or --prompts FILE"
        )
    return list(SUITES[suite].values())


def methods_of(mode: str, cfg: PolicySpec) -> tuple[MethodSpec, MethodSpec]:
    """A and B of a mode; `cfg` is the CFG truncation it uses. Raises UsageError for an unknown mode."""
    mode = mode.replace("-", "_")
    if mode not in MODES:
        raise UsageError(f"--mode '{short(mode, 40)}' is unknown", suggest(mode, MODES))
    methods = {
        "cfg": MethodSpec("cfg_truncated", (cfg,)),
        "half": MethodSpec("half_frame", (PolicySpec("half"),)),
        "improved": MethodSpec("improved", (PolicySpec("paired"),)),
        "combined": MethodSpec("combined", (cfg, PolicySpec("paired"))),
        "baseline": MethodSpec("baseline"),
    }
    first, _, second = mode.partition("_vs_")
    return methods[first], methods[second]


def parse_method(text: str, named: Mapping[str, MethodSpec]) -> MethodSpec:
    """A method by its name in `named`, or what it says. Raises UsageError, with the nearest names, for neither."""
    if text in named:
        return named[text]
    policies = known("policy")
    if not re.search(r"[:=+]", text) and text not in (*policies, "baseline"):
        raise UsageError(
            f"'{short(text)}' is no method, run, video or folder", suggest(text, [*named, "baseline", *policies])
        )
    return MethodSpec.parse(text)


def builtin_methods(name: str) -> dict[str, MethodSpec]:
    """The methods of a list in the package, by name. Raises UsageError when there is no such list."""
    lists = {p.stem: p for p in sorted((Path(__file__).parent / "methods").glob("*.toml"))}
    if name not in lists:
        raise UsageError(f"there is no list of methods 'builtin:{short(name, 40)}'", suggest(name, lists))
    return read_methods(lists[name])


def read_methods(path: Path) -> dict[str, MethodSpec]:
    """The methods of a TOML file by name; `builtin:NAME` is a list in the package. Raises UsageError."""
    if str(path).startswith(BUILTIN):
        return builtin_methods(str(path).removeprefix(BUILTIN))
    plain = read_toml(path, "check --methods")
    tables = plain.get("methods")
    if not isinstance(tables, dict) or not tables or not all(isinstance(t, dict) for t in tables.values()):
        raise UsageError(f"{path} names no method", 'write [methods.fast] policies = ["cfg:last=5"]')
    return {name: MethodSpec.from_dict(name, table) for name, table in tables.items()}


def split_methods(texts: Sequence[str]) -> list[MethodSpec]:
    """The methods of `baseline,cfg:last=5,keep=cond,half`, each once. A piece that is only a knob or a number belongs
    to the method before it. Raises UsageError."""
    pieces: list[str] = []
    for text in texts:
        first = len(pieces)
        for piece in filter(None, (p.strip() for p in text.split(","))):
            knob = re.match(r"[a-z0-9_]+(?==)", piece)
            if len(pieces) > first and (piece[0].isdigit() or (knob and knob[0] not in METHOD_SETTINGS)):
                pieces[-1] += f",{piece}"
            else:
                pieces.append(piece)
    return [MethodSpec.parse(p) for p in dict.fromkeys(pieces)] or [MethodSpec("baseline")]


def split_counts(text: str | None) -> list[int | None]:
    """The frame counts of `49,81,121`; [None] for the default. Raises UsageError."""
    if text is None:
        return [None]
    if not re.fullmatch(r"\s*\d{1,6}\s*(,\s*\d{1,6}\s*)*", text, re.ASCII):
        raise UsageError(f"--frames '{short(text, 40)}' is no list of frame counts", "write --frames 49,81,121")
    return list(dict.fromkeys(int(n) for n in text.split(",")))


def is_source(text: str | None, named: Mapping[str, MethodSpec] = {}) -> bool:
    """Whether `text` names a run file, a video or a folder rather than a method.

    A method's name is one whatever lies in the folder: `half` is the method, `./half` the file.
    """
    if text is None or text in named:
        return False
    if is_run_file(text) or Path(text).suffix.lower() in VIDEOS:
        return True
    if text.endswith(".py"):  # a method whose name is missing, which is said as such
        return False
    separated = os.sep in text or (os.altsep is not None and os.altsep in text)
    name = text.partition(":")[0].partition("+")[0].strip()
    if not separated and (name in ("baseline", *known("policy")) or "=" in name):
        return False
    return os.path.exists(text)


# --- sweeps ------------------------------------------------------------------------------------------------------


def swept(base: MethodSpec, texts: Sequence[str]) -> list[Variant]:
    """The base method at every combination of the values; equal methods once.

    Raises UsageError for what is no sweep, a knob or value that does not exist, one that changes nothing, and more
    than `MAX_METHODS` combinations.
    """
    axes = dict(_axis(t) for t in texts)
    if len(axes) < len(texts):
        raise UsageError("a sweep names the same knob or setting twice", "give its values in one --sweep")
    count = math.prod(map(len, axes.values()))
    if count > MAX_METHODS:
        raise UsageError(f"this sweep has {count:,} methods, {MAX_METHODS:,} at most", "take fewer values")
    methods: dict[tuple[Any, ...], MethodSpec] = {}
    for values in itertools.product(*axes.values()):
        methods[values] = _at(base, dict(zip(axes, values, strict=True)))
    _check_effect(base, axes, methods)
    variants: dict[tuple[Any, ...], Variant] = {}
    for values, method in methods.items():
        variant = Variant(method, dict(zip(axes, values, strict=True)))
        variants.setdefault((method.policies, method.settings), variant)
    return list(variants.values())


def _at(base: MethodSpec, setting: Mapping[str, Any]) -> MethodSpec:
    every, settings = list(base.policies), dict(base.settings)
    for name, value in setting.items():
        policy, dot, knob = name.partition(".")
        if not dot:
            settings[policy] = parse_guidance(str(value)) if policy == "guidance" else value
            continue
        named = [k for k, p in enumerate(every) if p.name == policy]
        if len(named) > 1:
            raise UsageError(f"{policy} is named {len(named)} times, and {name} is swept", "name it once")
        if not named:
            named = [len(every)]
            every.append(PolicySpec(policy))
        every[named[0]] = replace(every[named[0]], knobs={**every[named[0]].options, knob: value})
    check_names(MethodSpec("", tuple(every), tuple(settings.items())).apply(RunSpec(prompt="-")))
    policies = tuple(p for p in every if not _is_idle(p))
    kept = tuple((n, v) for n, v in base.settings if n not in setting)
    parts = [str(MethodSpec("", policies, kept))] if policies or kept else []
    label = "+".join([*parts, *(f"{n}={v}" for n, v in setting.items() if "." not in n)]) or "baseline"
    return MethodSpec(label, policies, tuple(settings.items()))


def _is_idle(policy: PolicySpec) -> bool:
    """Whether it is a CFG truncation of no step: the baseline, whatever it keeps. Raises UsageError for a value that
    such a truncation cannot have either."""
    if policy.name != "cfg" or policy.file or policy.options.get("last") or policy.options.get("high"):
        return False
    from wanlab.engine import policies  # noqa: F401 - registers them
    from wanlab.registry import build

    build("policy", policy)
    return True


def _check_effect(
    base: MethodSpec, axes: Mapping[str, Sequence[Any]], methods: Mapping[tuple[Any, ...], MethodSpec]
) -> None:
    """Raises UsageError for an axis along which no method differs from another, nor from one without the axis."""
    for k, (name, values) in enumerate(axes.items()):
        along: dict[tuple[Any, ...], set[tuple[Any, ...]]] = {}
        for at, method in methods.items():
            along.setdefault(at[:k] + at[k + 1 :], set()).add((method.policies, method.settings))
        if len(values) == 1:
            others = [n for n in axes if n != name]
            for at, different in along.items():
                without = _at(base, dict(zip(others, at, strict=True)))
                different.add((without.policies, without.settings))
        if all(len(different) == 1 for different in along.values()):
            hint = "also give cfg.last or cfg.high" if name == "cfg.keep" else "give it other values"
            raise UsageError(f"--sweep {short(name)} changes nothing: its methods are all the same", hint)


def _axis(text: str) -> tuple[str, list[Any]]:
    name, equals, values = (p.strip() for p in text.partition("="))
    if not equals or not re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)?", name) or not values:
        raise UsageError(f"'{short(text)}' is no sweep", "write cfg.last=0:10, guidance=1:8:1 or cfg.keep=uncond,cond")
    bounds = values.split(":")
    if len(bounds) == 1:
        return name, list(
            dict.fromkeys(PolicySpec.parse(f"x:y={v}").options["y"] for v in values.split(",") if v.strip())
        )
    try:
        numbers = [float(v) for v in bounds]
        start, stop, step = numbers if len(numbers) == 3 else (*numbers, 1.0)
        count = math.ceil((stop - start) / step - 1e-9)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise UsageError(f"'{short(values, 40)}' is no range", "write 0:10 (0 to 9) or 1:8:0.5") from None
    if not 1 <= count <= 100_000:
        raise UsageError(f"the range {short(values, 40)} is empty or too long", "write 0:10 (0 to 9) or 1:8:0.5")
    numbers = [start + k * step for k in range(count)]
    return name, [int(v) if v.is_integer() else round(v, 9) for v in numbers]


# --- floors and runs -----------------------------------------------------------------------------------------------


def floors_of(baseline: MethodSpec, spec: RunSpec) -> list[Variant]:
    """The baseline, policies and all, computed other ways: both branches in one forward, another attention kernel,
    another dtype, and where several ranks share a clip, by one of them alone. `spec` is one of the specifications
    that methods are laid over. Raises UsageError."""
    from wanlab.engine.run import resolved

    usual = resolved(baseline.apply(spec))
    ways: dict[str, Any] = {
        "batch_cfg": not usual.batch_cfg,
        "attention": "math" if usual.device == "cpu" else "efficient",
        "dtype": "bfloat16" if usual.dtype == "float32" else "float32",
    }
    if usual.parallel != NONE:
        ways["parallel"] = NONE
    # What is for 16 bits alone gives way to the other dtype.
    wide = {"attention": "auto"} if usual.attention in ("flash3", "flash3-fp8", "cudnn") else {}
    wide |= {"precision": "exact"} if usual.precision == "fp8" else {}
    beside = {"dtype": wide, "batch_cfg": {"parallel": AUTO}}  # branches in one forward are not on two halves
    return [
        Variant(
            MethodSpec(
                f"floor: {name}={str(value).lower()}",
                baseline.policies,
                tuple((dict(baseline.settings) | {name: value} | beside.get(name, {})).items()),
            )
        )
        for name, value in ways.items()
    ]


def with_floors(specs: Sequence[RunSpec], baseline: MethodSpec) -> tuple[list[RunSpec], list[Variant]]:
    """The specs as a noise floor needs them, and the floors: a decoder in 16 bits would hide them by its rounding."""
    wide = [replace(s, vae_dtype="float32") if s.vae_dtype == "auto" else s for s in specs]
    return wide, floors_of(baseline, wide[0])


def arrange(
    specs: Sequence[RunSpec], baseline: MethodSpec, variants: list[Variant], floors: list[Variant], out: Path
) -> Design:
    """Give every run a place, equal runs the same one. Raises UsageError for a method that cannot be."""
    if is_run_file(out) or out.suffix.lower() in VIDEOS or (os.path.exists(out) and not out.is_dir()):
        raise UsageError(f"{out} is not a folder", "name a folder with --out")
    base = [baseline.apply(s) for s in specs]
    for spec in base:
        check_names(spec)
    folders = {slug(baseline.label)}
    base_runs = [out / slug(baseline.label) / f"{run_name(s)}.h5" for s in base]
    baseline_places = {(s.digest(), s.parallel): p for s, p in zip(base, base_runs, strict=True)}
    rows: list[list[RunSpec]] = []
    runs: list[list[Path]] = []
    for group in (floors, variants):
        # A method equal to its baseline is sampled again: the result must be the same, and is not taken for granted.
        places = dict(baseline_places) if len(group) > 1 else {}
        for variant in group:
            own = [variant.method.apply(s) for s in specs]
            check_names(own[0])
            folder = out / _folder(variant.method, folders)
            rows.append(own)
            runs.append([places.setdefault((s.digest(), s.parallel), folder / f"{run_name(s)}.h5") for s in own])
    groups: list[PairGroup] = []
    placed: set[Path] = set()
    for k in range(len(base)):
        row = [(base[k], base_runs[k]), *((s[k], p[k]) for s, p in zip(rows, runs, strict=True))]
        turn = k % len(row)
        new = {path: spec for spec, path in row[turn:] + row[:turn] if path not in placed}
        placed |= set(new)
        if new:
            groups.append(PairGroup(tuple((spec, path) for path, spec in new.items()), base_runs[k]))
    return Design(
        specs=base,
        baseline=baseline,
        baseline_runs=base_runs,
        variants=variants,
        variant_runs=runs[len(floors) :],
        floors=floors,
        floor_runs=runs[: len(floors)],
        groups=groups,
    )


def _folder(method: MethodSpec, taken: set[str]) -> str:
    """A name for the method's folder that none of `taken` has; it is added to them."""
    name = slug(method.label)
    if name in taken:
        again = f"{name}-again"
        name = again if again not in taken else f"{name}-{_digest(method.label, str(method))}"
    taken.add(name)
    return name


def slug(label: str) -> str:
    """A folder's name for a method; one that had to be cut carries a digest of the whole."""
    name = re.sub(r"[^a-z0-9_.=,+-]+", "-", label.lower()).strip("-.") or "method"
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 9].rstrip('-.')}-{_digest(label)}"


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]
