"""The options that commands share: what is asked for, as run specifications, and the form of the output.

A command takes a group as one parameter, `sampling: Sampling`; `with_options` shows typer the group's fields.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from wanlab.cli import render
from wanlab.errors import UsageError
from wanlab.registry import suggest
from wanlab.spec import PolicySpec, RecordSpec, RunSpec, parse_guidance, parse_size
from wanlab.spec.presets import TASKS, TINY

MAX_PROMPT_FILE = 64 * 2**20
_TASK_HELP = f"A model's official settings as defaults: {', '.join(name for name in TASKS if name != 'tiny')}."
_SAMPLING, _METHOD, _OUTPUT = "Sampling", "Method", "Output"
KEEPS = ("uncond", "cond", "reuse")


def option(*names: str, panel: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=more.pop("show_default", True), **more)


def with_options(command: Callable[..., int]) -> Callable[..., int]:
    """The command with every parameter that is a dataclass replaced by the dataclass's fields, except those that the
    command has a parameter of its own for: these stay at their defaults."""
    own = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {n: p.annotation for n, p in own.items() if dataclasses.is_dataclass(p.annotation)}
    shown: list[inspect.Parameter] = []
    for name, parameter in own.items():
        if name not in groups:
            shown.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        hints = typing.get_type_hints(groups[name], include_extras=True)
        shown += [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
            for f in dataclasses.fields(groups[name])
            if f.name not in own
        ]

    @functools.wraps(command)
    def called(**given: Any) -> int:
        made = {
            n: g(**{f.name: given.pop(f.name) for f in dataclasses.fields(g) if f.name not in own})
            for n, g in groups.items()
        }
        return command(**made, **given)

    called.__signature__ = inspect.Signature(shown, return_annotation=int)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in shown}
    del called.__wrapped__  # type: ignore[attr-defined]
    return called


@dataclass(frozen=True, kw_only=True)
class Form:
    """How results are printed."""

    format: Annotated[
        str,
        option(
            "--format",
            panel=_OUTPUT,
            help="auto, human, json, csv or md. auto: tables on a terminal, file names in a pipe.",
        ),
    ] = "auto"
    as_json: Annotated[bool, option("--json", panel=_OUTPUT, help="The same as --format json.")] = False

    def choose(self) -> str:
        """human, json, csv, md or paths. Raises UsageError."""
        form = "json" if self.as_json else self.format
        if form not in render.FORMATS:
            raise UsageError(f"--format '{render.plain(form, 40)}' is unknown", suggest(form, render.FORMATS))
        return render.choose(form)


@dataclass(frozen=True, kw_only=True)
class Shortcuts:
    """The options that the experiment guide gives to its methods."""

    cfg_truncate_steps: Annotated[
        int | None, option("--cfg-truncate-steps", panel=_METHOD, help="One branch only in this many last steps.")
    ] = None
    cfg_truncate_high_noise_steps: Annotated[
        int | None,
        option(
            "--cfg-truncate-high-noise-steps",
            panel=_METHOD,
            help="And in this many last steps before the expert switch.",
        ),
    ] = None
    cfg_keep: Annotated[
        str,
        option(
            "--cfg-keep",
            panel=_METHOD,
            help="What a truncated step keeps: uncond, cond, or reuse (cond and the last difference).",
        ),
    ] = "uncond"
    enable_half_frame_generation: Annotated[
        bool,
        option(
            "--enable-half-frame-generation",
            panel=_METHOD,
            help="Half the frames until the expert switch (policy half).",
        ),
    ] = False
    enable_improved_frame_completion: Annotated[
        bool,
        option(
            "--enable-improved-frame-completion",
            panel=_METHOD,
            help="Pair frames at the expert switch (policy paired).",
        ),
    ] = False

    def cfg(self, last: int = 0, high: int = 0) -> PolicySpec | None:
        """CFG truncation by these options, `last` and `high` where they are not given; None for none."""
        if self.cfg_keep not in KEEPS:
            raise UsageError(
                f"--cfg-keep '{render.plain(self.cfg_keep, 40)}' is unknown", suggest(self.cfg_keep, KEEPS)
            )
        last = last if self.cfg_truncate_steps is None else self.cfg_truncate_steps
        high = high if self.cfg_truncate_high_noise_steps is None else self.cfg_truncate_high_noise_steps
        return PolicySpec("cfg", {"last": last, "high": high, "keep": self.cfg_keep}) if last or high else None


@dataclass(frozen=True, kw_only=True)
class Method(Shortcuts):
    """One way to sample, as policies."""

    policy: Annotated[
        list[str] | None,
        option(
            "--policy",
            panel=_METHOD,
            help="name:knob=value,… Any policy with its knobs. Repeat to combine, left to right.",
        ),
    ] = None

    def policies(self) -> tuple[PolicySpec, ...]:
        """Those of `--policy`, then those with an option of their own. Raises UsageError."""
        made = [PolicySpec.parse(p) for p in self.policy or []]
        cfg = self.cfg()
        made += [cfg] if cfg else []
        made += [PolicySpec("half")] * self.enable_half_frame_generation
        made += [PolicySpec("paired")] * self.enable_improved_frame_completion
        return tuple(made)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What is sampled, and with what."""

    prompt: Annotated[
        list[str] | None, option("--prompt", "-p", panel=_SAMPLING, help="What to show. Repeat for several.")
    ] = None
    prompts: Annotated[
        str | None,
        option(
            "--prompts",
            panel=_SAMPLING,
            help="A file of prompts, or -: one a line, or JSON lines with prompt, seed and other settings.",
        ),
    ] = None
    negative_prompt: Annotated[
        str | None,
        option(
            "--negative-prompt", panel=_SAMPLING, help="What the unconditional branch is given.  [default: nothing]"
        ),
    ] = None
    model: Annotated[
        str,
        option("--model", "-m", panel=_SAMPLING, help="tiny (in the package), a checkpoint directory, or a hub id."),
    ] = "tiny"
    revision: Annotated[str, option("--revision", panel=_SAMPLING, help="A revision on the hub.")] = ""
    task: Annotated[str | None, option("--task", panel=_SAMPLING, help=_TASK_HELP)] = None
    seed: Annotated[
        list[str] | None,
        option("--seed", panel=_SAMPLING, help="A seed or a range 0:8 (0 to 7). Repeat for several.  [default: 0]"),
    ] = None
    size: Annotated[
        str | None, option("--size", panel=_SAMPLING, help="WIDTHxHEIGHT, multiples of 16.  [default: 144x80]")
    ] = None
    frames: Annotated[int | None, option("--frames", panel=_SAMPLING, help="Video frames, 4n+1.  [default: 49]")] = None
    steps: Annotated[int | None, option("--steps", panel=_SAMPLING, help="Denoising steps.  [default: 20]")] = None
    shift: Annotated[
        float | None, option("--shift", panel=_SAMPLING, help="Flow shift.  [default: the checkpoint's]")
    ] = None
    solver: Annotated[str, option("--solver", panel=_SAMPLING, help="unipc, dpm++ or euler.")] = "unipc"
    schedule: Annotated[
        str,
        option(
            "--schedule", panel=_SAMPLING, help="diffusers, or wan: the official repository's sigmas and timesteps."
        ),
    ] = "diffusers"
    guidance: Annotated[
        str | None,
        option(
            "--guidance", "-g", panel=_SAMPLING, help="LOW or LOW,HIGH: the experts' guidance scales.  [default: 4]"
        ),
    ] = None
    batch_cfg: Annotated[bool, option("--batch-cfg", panel=_METHOD, help="Both branches in one forward.")] = False
    memory: Annotated[
        str,
        option(
            "--memory",
            panel=_OUTPUT,
            help="Where the weights are: resident, swap (one expert at a time), offload (block by block), or auto.",
        ),
    ] = "auto"
    precision: Annotated[
        str,
        option("--precision", panel=_OUTPUT, help="How transformers compute: auto, reference, exact or fp8."),
    ] = "auto"
    attention: Annotated[
        str, option("--attention", panel=_OUTPUT, help="The kernel: auto, math, flash, efficient, cudnn or flash3.")
    ] = "auto"
    device: Annotated[str, option("--device", panel=_OUTPUT, help="auto, cpu, cuda or cuda:N.")] = "auto"
    dtype: Annotated[
        str, option("--dtype", panel=_OUTPUT, help="The transformers': auto, float32, bfloat16 or float16.")
    ] = "auto"
    vae_dtype: Annotated[str, option("--vae-dtype", panel=_OUTPUT, help="The VAE's.")] = "auto"

    def specs(
        self,
        policies: tuple[PolicySpec, ...] = (),
        record: RecordSpec = RecordSpec(),  # noqa: B008 - frozen
        prompts: Sequence[str] = (),
    ) -> list[RunSpec]:
        """A spec for every prompt and seed; `prompts` are taken when none is asked for. Raises UsageError."""
        if self.task is not None and self.task not in TASKS:
            raise UsageError(f"--task '{render.plain(self.task, 40)}' is unknown", suggest(self.task, TASKS))
        if self.task is not None and self.model == "tiny":
            raise UsageError(
                f"--task {self.task} has the settings of a checkpoint of its own, not of tiny", "add --model DIRECTORY"
            )
        preset = TINY | TASKS.get(self.task or "", {})
        width, height = parse_size(self.size or preset["size"])
        common: dict[str, Any] = dict(
            negative_prompt=preset["negative"] if self.negative_prompt is None else self.negative_prompt,
            model=self.model, revision=self.revision, width=width, height=height,
            frames=preset["frames"] if self.frames is None else self.frames,
            steps=preset["steps"] if self.steps is None else self.steps,
            shift=preset["shift"] if self.shift is None else self.shift, solver=self.solver, schedule=self.schedule,
            guidance=parse_guidance(self.guidance or preset["guidance"]), batch_cfg=self.batch_cfg,
            policies=tuple(policies), device=self.device, dtype=self.dtype, vae_dtype=self.vae_dtype,
            precision=self.precision, attention=self.attention, memory=self.memory, record=record,
        )  # fmt: skip
        given = self.prompt or (prompts if self.prompts is None else [])
        return list(expand(asked_for(given, self.prompts), parse_seeds(self.seed or ["0"]), common))


def parse_seeds(texts: Sequence[str]) -> list[int]:
    """Seeds of `3` and `0:8` (0 to 7), in order, each once. Raises UsageError."""
    seeds: list[int] = []
    for text in texts:
        match = re.fullmatch(r"\s*(\d{1,19})\s*(?::\s*(\d{1,19})\s*)?", text, re.ASCII)
        if match is None:
            raise UsageError(
                f"seed '{render.plain(text, 40)}' is neither a number nor a range", "write --seed 3 or --seed 0:8"
            )
        first, last = int(match[1]), int(match[2]) if match[2] else int(match[1]) + 1
        if not first < last <= first + 100_000:
            raise UsageError(
                f"the seed range {first}:{last} has {max(0, last - first)} seeds", "write --seed 0:8 for 0 to 7"
            )
        seeds += range(first, last)
    return list(dict.fromkeys(seeds))


def asked_for(given: Sequence[str], source: str | None) -> list[dict[str, Any]]:
    """The prompts, each with its own settings: those on the command line, then the file's. Raises UsageError."""
    asked: list[dict[str, Any]] = [{"prompt": p} for p in given]
    if source is not None:
        lines = [line.strip() for line in _read(source).splitlines()]
        lines = [line for line in lines if line]
        if not lines:
            raise UsageError(f"{_named(source)} has no prompt", "write one prompt a line")
        asked += [_line(line, number, source) for number, line in enumerate(lines, 1)]
    if not asked:
        raise UsageError("there is no prompt", 'give --prompt "…" or --prompts FILE')
    return asked


def _named(source: str) -> str:
    return "standard input" if source == "-" else render.plain(source)


def _read(source: str) -> str:
    try:
        if source == "-":
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


def _line(line: str, number: int, source: str) -> dict[str, Any]:
    if not line.startswith("{"):
        return {"prompt": line}
    try:
        settings = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{_named(source)}, line {number}: no JSON: {error}", "write one JSON object a line, or a plain prompt"
        ) from error
    if not isinstance(settings, dict) or "prompt" not in settings:
        raise UsageError(f"{_named(source)}, line {number}: no prompt", 'write {"prompt": "…", "seed": 3}')
    return settings


def expand(asked: Sequence[dict[str, Any]], seeds: Sequence[int], common: dict[str, Any]) -> Iterator[RunSpec]:
    """A spec for every prompt and seed. A line's own settings win over the command line's. Raises UsageError."""
    for settings in asked:
        own = dict(settings)
        if "size" in own:
            own["width"], own["height"] = parse_size(str(own.pop("size")))
        if isinstance(own.get("guidance"), str | int | float):
            own["guidance"] = parse_guidance(str(own["guidance"]))
        if "policy" in own:
            texts = own.pop("policy")
            own["policies"] = tuple(PolicySpec.parse(str(t)) for t in ([texts] if isinstance(texts, str) else texts))
        unknown = sorted(set(own) - set(RunSpec.__dataclass_fields__) - {"policies"})
        if unknown or "record" in own:
            name = unknown[0] if unknown else "record"
            raise UsageError(
                f"a prompt line sets '{render.plain(name, 40)}'", suggest(name, RunSpec.__dataclass_fields__)
            )
        mine = own.pop("seed", None)
        for seed in seeds if mine is None else mine if isinstance(mine, list) else [mine]:
            yield RunSpec(**common | own | {"seed": seed})


def places(specs: Sequence[RunSpec], out: Path) -> list[Path]:
    """Where each run goes. Raises UsageError when one file is to hold several runs or nothing can be written there."""
    if out.suffix == ".h5":
        if len(specs) > 1:
            raise UsageError(f"{len(specs)} runs do not fit into the one file {out}", "name a folder with --out")
        return [out]
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is not a folder", "name a folder, or a file that ends in .h5")
    return [out / f"{run_name(spec)}.h5" for spec in specs]


def run_name(spec: RunSpec) -> str:
    """A file name that says the prompt and seed, and differs for whatever else decides the result."""
    slug = "-".join(re.findall(r"[a-z0-9]+", spec.prompt.lower()))[:48].rstrip("-") or "prompt"
    return f"{slug}-s{spec.seed}-{hashlib.sha256(spec.digest().encode()).hexdigest()[:8]}"
