"""Ctrl-C and SIGTERM: unwind once, so that what is finished is kept; a second one, or one at the end, ends at once.

An exception raised where Python ignores it (an at-fork hook, `__del__`) would lose the signal: it is raised again.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

AGAIN = 0.02  # seconds after which a signal that was ignored is raised again


class Stopped(BaseException):
    """A signal asked for the end."""


_previous: Callable[[Any], Any] = sys.__unraisablehook__
_received = 0  # the signal being obeyed
_ending = False  # nothing is left to be unwound


def install() -> None:
    """Obey SIGINT and SIGTERM from now on."""
    global _received, _ending, _previous
    if _ending:  # of a command before, in this process
        _received, _ending = 0, False
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # of a job that a shell made deaf to ctrl-c
            signal.signal(number, _handle)
    signal.signal(signal.SIGALRM, _raise_again)
    if sys.unraisablehook is not _unraisable:
        _previous, sys.unraisablehook = sys.unraisablehook, _unraisable


def received() -> int:
    """The signal being obeyed, 0 for none."""
    return _received


def end() -> None:
    """From now on a signal ends the program at once: there is nothing to unwind."""
    global _ending
    _ending = True


def quit() -> NoReturn:
    """End as the signal being obeyed asks for, with nothing to unwind."""
    os.write(2, b"wanlab: terminated\n" if _received == signal.SIGTERM else b"wanlab: stopped\n")
    os._exit(128 + _received)


def _handle(number: int, frame: FrameType | None) -> None:
    global _received
    if _received or _ending:
        if sys.__stderr__ is not None and sys.__stderr__.isatty():
            os.write(2, b"\x1b[?25h\n")  # the cursor, which a progress bar hides
        os._exit(128 + number)
    _received = number
    _raise(number)


def _raise(number: int) -> NoReturn:
    raise KeyboardInterrupt if number == signal.SIGINT else Stopped


def _raise_again(number: int, frame: FrameType | None) -> None:
    if _received and not _ending:
        _raise(_received)


def _unraisable(ignored: Any) -> None:
    """Called with every exception that Python has to ignore."""
    if _received and not _ending and issubclass(ignored.exc_type, (Stopped, KeyboardInterrupt)):
        signal.setitimer(signal.ITIMER_REAL, AGAIN)
    else:
        _previous(ignored)
