"""The options that commands share: methods and the form of the output. sampling.py has what is sampled.

grouping.py shows typer the fields of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from wanlab.cli import render
from wanlab.cli.grouping import option
from wanlab.errors import UsageError
from wanlab.registry import suggest
from wanlab.spec import MethodSpec, PolicySpec
from wanlab.study.design import methods_of

_SAMPLING, _METHOD, _OUTPUT = "Sampling", "Method", "Output"
KEEPS = ("uncond", "cond", "reuse")


Figures = Annotated[
    str | None,
    option("--figures", panel=_OUTPUT, help="Figures for papers too: pdf or svg; pdf:6.75 is 6.75 inches wide."),
]


@dataclass(frozen=True, kw_only=True)
class Form:
    """How results are printed."""

    format: Annotated[
        str,
        option(
            "--format",
            panel=_OUTPUT,
            help="auto, human, json, csv, md or latex. auto: tables on a terminal; in a pipe file names from generate "
            "and continuity, plain tables from the others.",
        ),
    ] = "auto"
    as_json: Annotated[bool, option("--json", panel=_OUTPUT, help="The same as --format json.")] = False

    def choose(self) -> str:
        """human, json, csv, md, latex or paths. Raises UsageError."""
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
        option("--enable-half-frame-generation", panel=_METHOD, help="Half the frames until the switch (policy half)."),
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

    def of_mode(self, mode: str) -> tuple[MethodSpec, MethodSpec]:
        """A and B of a mode, with the guide's defaults. Raises UsageError, for an option that is no part of it too."""
        cfg = self.cfg(last=5, high=3)
        methods = methods_of(mode, cfg or PolicySpec("cfg"))
        first = mode.replace("-", "_").partition("_vs_")[0]
        uses_cfg = first in ("cfg", "combined")
        used = {
            "--cfg-truncate-steps": self.cfg_truncate_steps is None or uses_cfg,
            "--cfg-truncate-high-noise-steps": self.cfg_truncate_high_noise_steps is None or uses_cfg,
            "--enable-half-frame-generation": not self.enable_half_frame_generation or "half" in mode,
            "--enable-improved-frame-completion": not self.enable_improved_frame_completion
            or first in ("improved", "combined"),
        }
        for name, fits in used.items():
            if not fits:
                raise UsageError(f"{name} is no part of {mode}", "leave it out, or choose another --mode or --a")
        if uses_cfg and cfg is None:
            raise UsageError(f"{mode} truncates no step", "give --cfg-truncate-steps 1 or more")
        return methods


@dataclass(frozen=True, kw_only=True)
class Method(Shortcuts):
    """One way to sample, as policies."""

    policy: Annotated[
        list[str] | None,
        option(
            "--policy",
            panel=_METHOD,
            help="name:knob=value,… Any policy with its knobs (see wanlab methods); or FILE.py:name:knob=value,…, "
            "which runs the code in that file. Repeat to combine.",
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
