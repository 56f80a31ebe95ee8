"""The options that say what is sampled, as run specifications."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from wanlab.cli import render
from wanlab.cli.grouping import option
from wanlab.errors import UsageError
from wanlab.registry import suggest
from wanlab.spec import PolicySpec, RecordSpec, RunSpec, parse_guidance, parse_size
from wanlab.spec.presets import TASKS, TINY
from wanlab.study.requests import Prompt, expand, parse_seeds, read_prompts

_TASK_HELP = f"A model's official settings as defaults: {', '.join(name for name in TASKS if name != 'tiny')}."
_SAMPLING, _METHOD, _OUTPUT = "Sampling", "Method", "Output"


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
        str | None,
        option(
            "--model",
            "-m",
            panel=_SAMPLING,
            help="tiny (in the package), a checkpoint directory, or a hub id.  [default: tiny]",
        ),
    ] = None
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
    guider: Annotated[
        str | None,
        option(
            "--guider",
            panel=_METHOD,
            help="How the branches become one velocity, name:knob=value,… (see wanlab methods).  [default: cfg]",
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
        str,
        option(
            "--attention", panel=_OUTPUT, help="The kernel: auto, math, flash, efficient, cudnn, flash3, flash3-fp8."
        ),
    ] = "auto"
    parallel: Annotated[
        str,
        option(
            "--parallel",
            panel=_OUTPUT,
            help="How torchrun's processes share a clip: auto, none, cfg=2 (a branch each half), ulysses=N or ring=N "
            "(tokens), or several as cfg=2,ulysses=4.",
        ),
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
        preset = self._defaults()
        width, height = parse_size(self.size or preset["size"])
        common: dict[str, Any] = dict(
            negative_prompt=preset["negative"] if self.negative_prompt is None else self.negative_prompt,
            model=self.model or "tiny",
            revision=self.revision,
            width=width,
            height=height,
            frames=preset["frames"] if self.frames is None else self.frames,
            steps=preset["steps"] if self.steps is None else self.steps,
            shift=preset["shift"] if self.shift is None else self.shift,
            solver=self.solver,
            schedule=self.schedule,
            guidance=parse_guidance(self.guidance or preset["guidance"]),
            batch_cfg=self.batch_cfg,
            policies=tuple(policies),
            device=self.device,
            dtype=self.dtype,
            vae_dtype=self.vae_dtype,
            precision=self.precision,
            attention=self.attention,
            memory=self.memory,
            parallel=self.parallel,
            record=record,
        )
        if self.guider is not None:
            common["guider"] = PolicySpec.parse(self.guider)
        if not self.prompt and self.prompts is None:
            asked = [Prompt({"prompt": p}) for p in prompts] or read_prompts([], None)
        else:
            asked = read_prompts(self.prompt or [], self.prompts)
        return list(expand(asked, parse_seeds(self.seed or ["0"]), common))

    def _defaults(self) -> dict[str, Any]:
        """What is not given: tiny's settings, or the task's. A task without a model is sampled on tiny, and said so."""
        if self.task is None or self.task == "tiny":
            return TINY
        if self.task not in TASKS:
            raise UsageError(f"--task '{render.plain(self.task, 40)}' is unknown", suggest(self.task, TASKS))
        if self.model == "tiny":
            raise UsageError(
                f"--task {self.task} has the settings of a checkpoint of its own, not of tiny", "add --model DIRECTORY"
            )
        if self.model is not None:
            return TINY | TASKS[self.task]
        _say_tiny(self.task)
        return TINY


@functools.cache  # once, however many times a command makes specifications
def _say_tiny(task: str) -> None:
    render.say(
        f"note: --task {task} has no checkpoint: sampling on tiny, the model in the package, with its own defaults "
        f"({TINY['size']}, {TINY['frames']} frames, {TINY['steps']} steps, guidance {TINY['guidance']}); "
        "name a checkpoint with --model DIRECTORY"
    )
