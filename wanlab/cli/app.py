"""The `wanlab` program: its commands, its exit codes, and how an error is shown.

Exit codes: 0 done, 1 failed, 2 usage, 3 part of a batch failed, 4 a stated threshold was missed, 130/143 stopped.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand

from wanlab import __version__
from wanlab.cli import render, stopping
from wanlab.cli.calibrate import calibrate
from wanlab.cli.compare import compare
from wanlab.cli.continuity import continuity
from wanlab.cli.generate import generate
from wanlab.cli.inspect import inspect
from wanlab.cli.methods import methods
from wanlab.cli.report import report
from wanlab.cli.spelling import spelled
from wanlab.errors import WanlabError
from wanlab.spec.parallel import processes
from wanlab.study.text import in_words

GO_ON = "the same command goes on from the last finished step"
Misused: type[Exception] = typer.BadParameter.__mro__[2]  # click's ClickException, wherever this typer keeps click


class Command(TyperCommand):
    """A command whose help is plain text, its options by group and their names whole at any width."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                kind = "Arguments" if param.param_type_name == "argument" else "Options"
                groups.setdefault(getattr(param, "rich_help_panel", None) or kind, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


app = typer.Typer(
    name="wanlab",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="The laboratory bench for video-diffusion sampling: what a trick on Wan2.2 does to quality, time consistency "
    "and cost.",
)
for command in (generate, compare, continuity, calibrate, report, inspect, methods):
    app.command(cls=Command, short_help=(command.__doc__ or "").partition("\n")[0])(command)


def _print_version(version: bool) -> None:
    if version:
        render.write(f"{__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_print_version, help="Print the version and stop."
    ),
) -> None:
    pass


def main(args: list[str] | None = None) -> NoReturn:
    """Run one command and exit."""
    try:
        stopping.install()
        # Threads that wait by spinning for long starve each other where a core is shared, and waking one that sleeps
        # costs a small model a fifth of its time: spin briefly. Read when torch is first imported.
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
        code = join() or _run(sys.argv[1:] if args is None else args)
        stopping.end()
    except (KeyboardInterrupt, stopping.Stopped):
        stopping.end()
        terminated = stopping.received() == signal.SIGTERM
        render.complain("terminated" if terminated else "stopped", GO_ON)
        code = 143 if terminated else 130
    except Exception:
        if processes() == 1:
            raise
        traceback.print_exc()
        code = 1
    leave(code)


def join() -> int:
    """Meet the other processes that torchrun started for a command, and on all but the first one do what that says. An
    exit code where they cannot meet."""
    if processes() == 1:
        return 0
    from wanlab.engine import ranks

    try:
        place = ranks.join()
        if place.rank:
            from wanlab.engine.run.follow import follow

            follow(place)
    except WanlabError as error:
        return _say(error)
    return 0


def leave(code: int) -> NoReturn:
    """End the program, and the other ranks with it."""
    ranks = sys.modules.get("wanlab.engine.ranks")
    if ranks is not None and ranks.here().size > 1:
        ranks.quit(code)
    sys.exit(code)


def _run(args: list[str]) -> int:
    """Run one command: its exit code. What a user can do something about is said in one line."""
    try:
        render.prepare()
        code = app(spelled(args) or ["--help"], prog_name="wanlab", standalone_mode=False)
        if code == 130 or stopping.received() == signal.SIGTERM:  # ctrl-c may be a command's proper end (--watch)
            raise KeyboardInterrupt
        render.write("")  # what others wrote may not have left yet
        return code if isinstance(code, int) else 0
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        if stopping.received():  # a library made an error of its own of the signal
            raise KeyboardInterrupt from None
        return _say(error)


def _say(error: Exception) -> int:
    """Say an error that can be foreseen in one line, and give its exit code; raise any other again."""
    if isinstance(error, WanlabError):
        if os.environ.get("WANLAB_DEBUG") == "1":
            raise error
        render.complain(error.message, error.hint)
        return error.exit_code
    if isinstance(error, Misused):  # an unknown option, a value of the wrong type
        context = getattr(error, "ctx", None)
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        render.complain(message, f"see {context.command_path if context else 'wanlab'} --help")
        return 2
    if isinstance(error, BrokenPipeError):  # the reader of our output has enough
        render.give_up_stdout()
        return 0
    if isinstance(error, OSError):
        render.complain(*in_words(error))
        return 1
    if isinstance(error, MemoryError):
        render.complain("out of memory", "use fewer frames, a smaller size, or --dtype bfloat16")
        return 1
    raise error
