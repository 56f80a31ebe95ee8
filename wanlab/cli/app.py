"""The `wanlab` program: its commands, its exit codes, and how an error is shown.

Exit codes: 0 done, 1 failed, 2 usage, 3 part of a batch failed, 4 a stated threshold was missed, 130/143 stopped.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from wanlab import __version__
from wanlab.cli.compare import compare
from wanlab.cli.continuity import continuity
from wanlab.cli.generate import generate
from wanlab.cli.inspect import inspect
from wanlab.cli.render import complain
from wanlab.cli.report import report
from wanlab.errors import WanlabError

app = typer.Typer(
    name="wanlab",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The laboratory bench for video-diffusion sampling: what a trick on Wan2.2 does to quality, time consistency and cost.",
)
app.command()(generate)
app.command()(compare)
app.command()(continuity)
app.command()(report)
app.command()(inspect)


@app.callback()
def _version(
    version: bool = typer.Option(False, "--version", is_eager=True, help="Print the version and stop."),
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


# The names that the experiment guide's own scripts give to options; hidden in help, underscored or hyphenated.
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


def spelled(args: list[str]) -> list[str]:
    """Options under our names: `--frame_num 49` and `--frame-num=49` become `--frames 49` and `--frames=49`."""
    out: list[str] = []
    for i, arg in enumerate(args):
        if arg == "--":
            return out + args[i:]
        if arg.startswith("--"):
            name, equals, value = arg.partition("=")
            name = name.replace("_", "-")
            arg = ALIASES.get(name, name) + equals + value
        out.append(arg)
    return out


Misused: type[Exception] = typer.BadParameter.__mro__[2]  # click's ClickException, wherever this typer keeps click
GO_ON = "the same command goes on from the last finished step"


class Stopped(BaseException):
    """SIGTERM: unwinds like Ctrl-C, so that what is finished is kept."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped


def main(args: list[str] | None = None) -> NoReturn:
    """Run one command and exit."""
    signal.signal(signal.SIGTERM, _terminate)
    # Threads that wait by spinning for long starve each other where a core is shared, and waking one that sleeps costs
    # a small model a fifth of its time: spin briefly. Read when torch is first imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    given = sys.argv[1:] if args is None else args
    try:
        code = app(spelled(given) or ["--help"], prog_name="wanlab", standalone_mode=False)
        if code == 130:
            raise KeyboardInterrupt
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except WanlabError as error:
        if os.environ.get("WANLAB_DEBUG") == "1":
            raise
        complain(error.message, error.hint)
        sys.exit(error.exit_code)
    except Misused as error:  # an unknown option, a value of the wrong type
        context = getattr(error, "ctx", None)
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        complain(message, f"see {context.command_path if context else 'wanlab'} --help")
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        complain("stopped", GO_ON)
        sys.exit(130)
    except Stopped:
        complain("terminated", GO_ON)
        sys.exit(143)
    except BrokenPipeError:  # the reader of our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
