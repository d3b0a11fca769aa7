"""How a command ends badly: text for stderr and an exit code."""

from __future__ import annotations

from collections.abc import Sequence


class CommandFailed(Exception):
    """A command cannot do what was asked. `lines` go to stderr as they are."""

    exit_code = 1

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class WrongUsage(CommandFailed):
    """The command line itself is wrong."""

    exit_code = 2


class Unreachable(CommandFailed):
    """Nothing answered at the URL, or not in time, or not in HTTP."""


class ErrorAnswer(CommandFailed):
    """The manager answered with an error; shown as `CODE: text` and one line for each further problem."""

    def __init__(self, status: int, code: str, text: str, problems: Sequence[str] = ()) -> None:
        super().__init__(f"{code}: {text}", *(f"  {problem}" for problem in problems))
        self.status, self.code, self.text = status, code, text
