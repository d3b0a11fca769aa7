"""The line numbers of keys in a TOML text, which the standard parser does not keep.

The text has been parsed before, so the scanner trusts it to be valid. Keys inside inline tables and arrays are
found at the line of the key that holds them.
"""

from __future__ import annotations

import bisect
import re
import tomllib
from collections.abc import Sequence

Step = str | int

_BLANK = re.compile(r"(?:\s|#[^\n]*)*")
_PART = re.compile(r"\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*'|[A-Za-z0-9_-]+")
_SPACE = re.compile(r"[ \t]*")
_DOT = re.compile(r"[ \t]*\.[ \t]*")
_REST_OF_LINE = re.compile(r"[^\n]*")
_TOKEN = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'
    r"|'''.*?'{3,5}"
    r"|\"(?:[^\"\\\n]|\\.)*\""
    r"|'[^'\n]*'"
    r"|\#[^\n]*"
    r"|[^\"'\[\]{}\#\n]+"
    r"|.",
    re.DOTALL,
)


class Lines:
    """Finds the line of a key path; array tables are steps of their index: `("instances", 0, "port")`."""

    def __init__(self, text: str) -> None:
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._found: dict[tuple[Step, ...], int] = {}
        self._counts: dict[tuple[Step, ...], int] = {}
        self._scan(text)

    def of(self, path: Sequence[Step]) -> int | None:
        """The line of the key, else that of the nearest key or table around it."""
        steps = tuple(path)
        while steps:
            if (line := self._found.get(steps)) is not None:
                return line
            steps = steps[:-1]
        return None

    def _scan(self, text: str) -> None:
        at, table = 0, ()  # type: tuple[int, tuple[Step, ...]]
        while (at := _end(_BLANK, text, at)) < len(text):
            line = bisect.bisect_right(self._starts, at)
            if text.startswith("[[", at):
                names, at = _dotted(text, at + 2)
                array = self._inside(names)
                index = self._counts[array] = self._counts.get(array, -1) + 1
                table = (*array, index)
                self._note(array, line)
                self._note(table, line)
                at = _end(_REST_OF_LINE, text, at)
            elif text[at] == "[":
                names, at = _dotted(text, at + 1)
                table = self._entered(self._inside(names))
                self._note(table, line)
                at = _end(_REST_OF_LINE, text, at)
            else:
                names, at = _dotted(text, at)
                for depth in range(1, len(names) + 1):
                    self._note((*table, *names[:depth]), line)
                at = _value_end(text, at)

    def _note(self, path: tuple[Step, ...], line: int) -> None:
        self._found.setdefault(path, line)

    def _inside(self, names: Sequence[str]) -> tuple[Step, ...]:
        """The path of a header: a table below an array of tables belongs to its last entry."""
        path: tuple[Step, ...] = ()
        for name in names:
            path = (*self._entered(path), name)
        return path

    def _entered(self, path: tuple[Step, ...]) -> tuple[Step, ...]:
        return (*path, self._counts[path]) if path in self._counts else path


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _dotted(text: str, at: int) -> tuple[list[str], int]:
    names: list[str] = []
    at = _end(_SPACE, text, at)
    while match := _PART.match(text, at):
        names.append(_plain(match.group()))
        at = match.end()
        if not (dot := _DOT.match(text, at)):
            break
        at = dot.end()
    return names, at


def _plain(part: str) -> str:
    if part[0] not in "\"'":
        return part
    try:
        return next(iter(tomllib.loads(f"{part} = 0")))
    except ValueError:
        return part[1:-1]


def _value_end(text: str, at: int) -> int:
    depth = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        assert match is not None  # the last alternative takes anything
        piece, at = match.group(), match.end()
        if piece in "[{":
            depth += 1
        elif piece in "]}":
            depth -= 1
        elif piece == "\n" and depth <= 0:
            break
    return at
