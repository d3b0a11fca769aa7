"""Shapes of values that only the configuration has."""

from __future__ import annotations

from pathlib import Path

from tei_manager.adapters.telemetry import levels
from tei_manager.kits.parsing import Integer, ListOf, Number, Rejected, Shape, Text

A_YEAR = 31_536_000.0

PORT = Integer(1024, 65535, code="INVALID_PORT")
HOST = Text(r"[A-Za-z0-9_.:%-]{1,253}", "an IP address or a host name")
ORIGIN = Text(r"[a-z][a-z0-9+.-]*://[^/\s?#*]+", "an origin like 'https://app.example.org'", longest=512)
SOME_TIME = Number(0, A_YEAR, above=True)
MAYBE_TIME = Number(0, A_YEAR)
HOSTS = ListOf(HOST)
ORIGINS = ListOf(ORIGIN)


class PathText(Shape[Path]):
    """A path as it was written; `paths.expand` makes it absolute."""

    expects = "a path"
    inner = Text(r"[^\0]+", "a path")

    def read(self, value: object) -> Path:
        return Path(self.inner.read(value))


class LogLevel(Shape[str]):
    """A level text, kept as it was written."""

    expects = levels.EXPECTS

    def read(self, value: object) -> str:
        if not isinstance(value, str):
            raise self.wrong_type()
        try:
            levels.parse(value)
        except ValueError as fault:
            raise Rejected(self.code, str(fault)) from None
        return value
