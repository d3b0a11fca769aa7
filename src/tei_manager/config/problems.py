"""What loading a configuration has to say: problems (all at once) and notices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tei_manager.domain import errors
from tei_manager.kits.parsing import Problem

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

Finding = tuple[str, Problem]
"""A problem and the origin of the value: `file:12`, `env:NAME`, `flag:--port`, `default`."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something odd that does not prevent a start. `code` is a stable upper-case word."""

    code: str
    message: str


class ConfigProblems(errors.CallerError):
    """A configuration that cannot be used. Holds every problem, in the order of the origins."""

    code = "INVALID_CONFIG"

    def __init__(self, problems: Sequence[Finding]) -> None:
        self.problems = tuple(problems)
        details = [
            {"origin": origin, "path": problem.path, "code": problem.code, "message": problem.message}
            for origin, problem in self.problems
        ]
        super().__init__("\n".join(self.lines()), details={"problems": details})

    def lines(self) -> list[str]:
        """One line per problem: `ORIGIN: KEY.PATH: reason`."""
        return [one_line(f"{origin}: {problem.path}: {problem.message}") for origin, problem in self.problems]


def one_line(text: str) -> str:
    """The text with control characters escaped, so that it stays one line and cannot steer a terminal."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", text)
