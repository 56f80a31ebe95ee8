"""The errors a user meets: one line that says what is wrong, and one that says what to do next."""

from __future__ import annotations


class WanlabError(Exception):
    """Something foreseeable went wrong. Shown without a traceback.

    message  what is wrong and where, one line
    hint     what to do next, one line; empty when there is nothing useful to say
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[type[WanlabError], tuple[str, str]]:
        return type(self), (self.message, self.hint)


class UsageError(WanlabError):
    """What was asked for cannot be done as asked; found before any work began."""

    exit_code = 2
