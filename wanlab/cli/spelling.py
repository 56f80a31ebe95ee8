"""The experiment guide's own spellings of options, as ours: its commands work with the program's name replaced.

Underscores are hyphens; some names are others; where the guide names the place of a file, its spelling asks for that
place too. All of it is hidden in help.
"""

from __future__ import annotations

import os

from wanlab.errors import UsageError

ALIASES = {
    "--ckpt-dir": "--model",
    "--model-path": "--model",
    "--frame-num": "--frames",
    "--num-frames": "--frames",
    "--sampling-steps": "--steps",
    "--sample-steps": "--steps",
    "--num-inference-steps": "--steps",
    "--output-dir": "--out",
    "--sample-shift": "--shift",
    "--sample-solver": "--solver",
    "--sample-guide-scale": "--guidance",
    "--base-seed": "--seed",
    "--comparison-mode": "--mode",
}
DIRECTORIES = ("--ckpt-dir", "--model-path")  # "tiny" is a directory's name there
# By command: the guide's spellings, and the option that puts files where the guide has them.
PLACES = {
    "generate": (("--enable_debug",), "--debug-outputs"),
    "continuity": (("--model_path", "--output_dir", "--num_frames", "--num_inference_steps"), "--debug-latents"),
}
PRUNING = {
    "--pruning-threshold": "threshold",
    "--pruning-baseline-steps": "baseline_steps",
    "--pruning-start-layer": "start_step",  # the guide's "layer" is a step
    "--pruning-end-layer": "end_step",
}
POLICY_OPTION = {"generate": "--policy", "compare": "--a", "continuity": "--methods"}


def spelled(args: list[str]) -> list[str]:
    """A command line under our names: `--frame_num 49` and `--frame-num=49` become `--frames 49` and `--frames=49`.

    Raises UsageError for knobs of token pruning without it.
    """
    end = args.index("--") if "--" in args else len(args)
    given, rest = args[:end], args[end:]
    command = next((a for a in given if not a.startswith("-")), "")
    spellings, place = PLACES.get(command, ((), ""))
    added = [place] if any(a.partition("=")[0] in spellings for a in given) and place not in given else []
    out: list[str] = []
    directory = False  # whether the next argument names a checkpoint's directory
    for arg in given:
        if arg.startswith("--"):
            name, equals, value = arg.partition("=")
            name = name.replace("_", "-")
            directory = name in DIRECTORIES and not equals
            if name in DIRECTORIES and value:
                value = _directory(value)
            out.append(ALIASES.get(name, name) + equals + value)
        else:
            out.append(_directory(arg) if directory else arg)
            directory = False
    return _pruned(out, command) + added + rest


def _directory(name: str) -> str:
    return "./tiny" if name == "tiny" and os.path.isdir(name) else name


def _pruned(args: list[str], command: str) -> list[str]:
    """The arguments with the options of token pruning as the policy "prune"."""
    out: list[str] = []
    knobs: dict[str, str] = {}
    enabled = False
    rest = iter(args)
    for arg in rest:
        name, equals, value = arg.partition("=")
        if name == "--enable-token-pruning":
            enabled = True
        elif name in PRUNING:
            knobs[PRUNING[name]] = value if equals else next(rest, "")
        else:
            out.append(arg)
    if not enabled:
        if knobs:
            raise UsageError(
                "--pruning-… options have no effect alone", "add --enable-token-pruning, or leave them out"
            )
        return args
    policy = ":".join(filter(None, ("prune", ",".join(f"{k}={v}" for k, v in knobs.items()))))
    return [*out, POLICY_OPTION.get(command, "--policy"), policy]
