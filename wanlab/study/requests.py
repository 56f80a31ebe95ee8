"""What is asked for, read: prompts, seeds, and the run specifications and places that follow from them.

Imports no torch. What can be told without a model, a name that nothing has say, is refused here.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from wanlab.engine.model import names as model
from wanlab.errors import UsageError
from wanlab.files import parse_json
from wanlab.registry import ENTRY_POINTS, suggest
from wanlab.spec import PolicySpec, RunSpec, parse_guidance, parse_size
from wanlab.spec.run import short

MAX_PROMPT_FILE = 64 * 2**20
MAX_SEEDS = 100_000
NAME_BYTES = 255  # of a file's name, on every usual file system
ENGINE = Path(__file__).parents[1] / "engine"
# What wanlab writes beside NAME.h5 while it runs and after it.
LONGEST_SUFFIX = ".h5.part"


@dataclass(frozen=True)
class Prompt:
    """A prompt with the settings that it brings along, fields of `RunSpec` and "size", "policy"."""

    settings: Mapping[str, Any]
    source: str = ""
    """Where it was read, for errors: "prompts.jsonl, line 3"; empty for the command line."""


def read_prompts(given: Sequence[str], source: str | None) -> list[Prompt]:
    """The prompts `given`, then those of the file `source` ("-" is standard input).

    A file has a prompt a line, plain or as a JSON object with "prompt" and other settings; or it is one JSON array of
    such. Lines end at LF or CR LF, nowhere else. Raises UsageError.
    """
    prompts = [Prompt({"prompt": p}) for p in given]
    if source is not None:
        prompts += parse_prompts(_read(source), _named(source))
    if not prompts:
        raise UsageError("there is no prompt", 'give --prompt "…" or --prompts FILE')
    return prompts


def parse_prompts(text: str, name: str) -> list[Prompt]:
    """The prompts in a file's text; `name` is the file's, for errors. Raises UsageError."""
    if text.lstrip().startswith("["):
        try:
            items = parse_json(text)
        except ValueError:
            items = None  # "[slow motion] a ball" is a prompt
        if isinstance(items, list):
            if not items:
                raise UsageError(f"{name} has no prompt", "write one prompt a line")
            return [_item(item, f"{name}, item {k}") for k, item in enumerate(items, 1)]
    prompts = []
    for number, line in enumerate(re.split(r"\r?\n", text), 1):
        line = line.strip()
        if line.startswith("{"):
            try:
                prompts.append(_item(parse_json(line), f"{name}, line {number}"))
            except ValueError as error:
                raise UsageError(
                    f"{name}, line {number}: no JSON: {short(str(error))}",
                    "write one JSON object a line, or a plain prompt",
                ) from error
        elif line:
            prompts.append(Prompt({"prompt": line}, f"{name}, line {number}"))
    if not prompts:
        raise UsageError(f"{name} has no prompt", "write one prompt a line")
    return prompts


def _item(item: Any, place: str) -> Prompt:
    if isinstance(item, str):
        return Prompt({"prompt": item}, place)
    if not isinstance(item, dict) or "prompt" not in item:
        raise UsageError(f"{place}: no prompt", 'write {"prompt": "…", "seed": 3}')
    return Prompt(item, place)


def _named(source: str) -> str:
    return "standard input" if source == "-" else short(source, 200)


def _read(source: str) -> str:
    try:
        if source == "-":
            if sys.stdin is None:
                raise UsageError("standard input is closed", "give --prompts FILE")
            data = sys.stdin.buffer.read(MAX_PROMPT_FILE + 1)
        else:
            with open(source, "rb") as file:
                data = file.read(MAX_PROMPT_FILE + 1)
    except OSError as error:
        raise UsageError(f"cannot read {_named(source)}: {error.strerror}", "check --prompts") from error
    if len(data) > MAX_PROMPT_FILE:
        raise UsageError(f"{_named(source)} is larger than 64 MiB", "split it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{_named(source)} is not UTF-8 text (byte {error.start})", "save it as UTF-8") from error


def parse_seeds(texts: Sequence[str]) -> list[int]:
    """Seeds of `3` and `0:8` (0 to 7), in order, each once. Raises UsageError."""
    seeds: list[int] = []
    for text in texts:
        match = re.fullmatch(r"\s*(\d{1,19})\s*(?::\s*(\d{1,19})\s*)?", text, re.ASCII)
        if match is None:
            raise UsageError(
                f"seed '{short(text, 40)}' is neither a number nor a range", "write --seed 3 or --seed 0:8"
            )
        first, last = int(match[1]), int(match[2]) if match[2] else int(match[1]) + 1
        if not first < last <= first + MAX_SEEDS:
            raise UsageError(
                f"the seed range {first}:{last} has {max(0, last - first)} seeds",
                f"write --seed 0:8 for 0 to 7; {MAX_SEEDS} at most",
            )
        seeds += range(first, last)
    return list(dict.fromkeys(seeds))


def expand(prompts: Sequence[Prompt], seeds: Sequence[int], common: Mapping[str, Any]) -> Iterator[RunSpec]:
    """A spec for every prompt and seed. A prompt's own settings win over `common`. Raises UsageError."""
    for prompt in prompts:
        try:
            own = _settings(prompt.settings)
            mine = own.pop("seed", list(seeds))
            for seed in mine if isinstance(mine, list) else [mine]:
                spec = RunSpec(**dict(common) | own | {"seed": seed})
                check_names(spec)
                yield spec
        except UsageError as error:
            raise _at(prompt, error) from error


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    own = dict(given)
    for name in own:
        if name == "record" or name not in {*RunSpec.__dataclass_fields__, "size", "policy"}:
            fields = {*RunSpec.__dataclass_fields__, "size", "policy"} - {"record"}
            raise UsageError(f"a prompt sets '{short(name, 40)}'", suggest(name, fields))
    if "size" in own:
        own["width"], own["height"] = parse_size(str(own.pop("size")))
    if isinstance(own.get("guidance"), str | int | float):
        own["guidance"] = parse_guidance(str(own["guidance"]))
    if "policy" in own or "policies" in own:
        texts = own.pop("policy") if "policy" in own else own["policies"]
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise UsageError(f"policy is {short(str(texts), 40)}", 'write "policy": "cfg:last=5", or a list of such')
        own["policies"] = tuple(PolicySpec.parse(t) for t in texts)
    if own.get("seed") == []:
        raise UsageError("the list of seeds is empty", 'write "seed": [0, 1]')
    return own


def _at(prompt: Prompt, error: UsageError) -> UsageError:
    return UsageError(f"{prompt.source}: {error.message}", error.hint) if prompt.source else error


# --- names -----------------------------------------------------------------------------------------------------------


def check_names(spec: RunSpec) -> None:
    """Refuse a policy, a guider, a knob or a model that there is not, as far as can be told without loading the engine.

    Raises UsageError.
    """
    for policy in spec.policies:
        _check("policy", policy)
    _check("guider", spec.guider)
    model.directory(spec.model)


def _check(kind: str, asked: PolicySpec) -> None:
    if asked.file:  # known once its code has run
        return
    names = known(kind)
    if asked.name not in names:
        raise UsageError(f"unknown {kind} '{asked.name}'", suggest(asked.name, names))
    knobs = names[asked.name]
    for knob in asked.options:
        if knobs is not None and knob not in knobs:
            raise UsageError(f"{kind} {asked.name} has no knob '{knob}'", suggest(knob, knobs))


@cache
def known(kind: str) -> dict[str, tuple[str, ...] | None]:
    """The knobs of every "policy" or "guider" by its name; None where they cannot be told.

    Read from the source, for importing it takes seconds; those of other packages are known by name alone.
    """
    names: dict[str, tuple[str, ...] | None] = dict.fromkeys(
        entry.name for entry in metadata.entry_points(group=ENTRY_POINTS[kind])
    )
    paths = [ENGINE / "guiders.py"] if kind == "guider" else sorted((ENGINE / "policies").rglob("*.py"))
    bodies = (ast.parse(path.read_text("utf-8")).body for path in filter(Path.exists, paths))
    classes = {n.name: n for body in bodies for n in body if isinstance(n, ast.ClassDef)}
    return names | {name: _fields(node, classes) for node in classes.values() if (name := _registered(kind, node))}


def _registered(kind: str, node: ast.ClassDef) -> str:
    """The name that a class is registered under among `kind`; empty when it is not."""
    for call in node.decorator_list:
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "register":
            given = [a.value if isinstance(a, ast.Constant) else "" for a in call.args]
            if given[:1] == [kind]:
                return str(given[1])
    return ""


def _fields(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> tuple[str, ...] | None:
    targets = (n.target for n in node.body if isinstance(n, ast.AnnAssign))
    own = tuple(t.id for t in targets if isinstance(t, ast.Name))
    for base in node.bases:
        name = base.id if isinstance(base, ast.Name) else ""
        if name in ("Policy", "Guider"):
            continue
        inherited = _fields(classes[name], classes) if name in classes else None
        if inherited is None:
            return None
        own = inherited + own
    return own


# --- places ----------------------------------------------------------------------------------------------------------


def places(specs: Sequence[RunSpec], out: Path) -> list[Path]:
    """Where each run goes: into the file `out`, or into files of their own in the folder `out`.

    Raises UsageError when one file is to hold several runs or nothing can be written there.
    """
    if out.suffix == ".h5":
        if len(specs) > 1:
            raise UsageError(f"{len(specs)} runs do not fit into the one file {out}", "name a folder with --out")
        check_place(out)
        return [out]
    if out.suffix.lower() in (".h5", ".hdf5"):
        raise UsageError(f"the run file {out} does not end in .h5", f"use {out.with_suffix('.h5').name}")
    if os.path.exists(out) and not out.is_dir():
        raise UsageError(f"{out} is not a folder", "name a folder, or a file that ends in .h5")
    paths = [out / f"{run_name(spec)}.h5" for spec in specs]
    check_place(paths[0])
    return paths


def check_place(path: Path) -> None:
    """Refuse a file that cannot be made: a name too long, a dangling link or a file in the way, a folder that nothing
    may be written to. Leaves nothing behind. Raises UsageError."""
    for part in path.parts:
        name = part + LONGEST_SUFFIX.removeprefix(path.suffix) * (part == path.name)
        if len(os.fsencode(name)) > NAME_BYTES:
            raise UsageError(
                f"the name {short(part, 40)} is too long: {len(os.fsencode(part))} bytes",
                f"use {NAME_BYTES - len(os.fsencode(name)) + len(os.fsencode(part))} bytes at most",
            )
    whole = path.absolute()
    for place in (whole, *whole.parents):
        if place.is_symlink() and not os.path.exists(place):
            raise UsageError(
                f"cannot write to {path}: {place} is a link to nothing", "remove it, or choose another --out"
            )
    folder = next(p for p in whole.parents if os.path.exists(p))
    if not folder.is_dir():
        raise UsageError(f"cannot write to {path.parent}: {folder} is a file", "choose another --out")
    try:  # permission bits do not say it all: a file system may be read-only or full
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
            file.flush()
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}", "choose another --out") from error


def run_name(spec: RunSpec) -> str:
    """A file name that says the prompt and seed, and differs for whatever else decides the result."""
    slug = "-".join(re.findall(r"[^\W_]+", spec.prompt.lower()))
    slug = slug.encode()[:48].decode("utf-8", "ignore").rstrip("-") or "prompt"
    return f"{slug}-s{spec.seed}-{hashlib.sha256(spec.digest().encode()).hexdigest()[:8]}"
