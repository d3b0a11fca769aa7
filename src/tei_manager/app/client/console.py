"""Where commands write: answers on one stream, everything else on the other."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True, slots=True)
class Console:
    """Two streams. `out` carries the answer and nothing else, so that it can be piped; `err` carries the rest."""

    out: TextIO
    err: TextIO

    @classmethod
    def standard(cls) -> Console:
        """The process's own streams, made unable to fail on a character they cannot encode."""
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        return cls(sys.stdout, sys.stderr)

    def line(self, text: str = "") -> None:
        """One line of the answer."""
        self.out.write(text + "\n")

    def note(self, text: str) -> None:
        """One line about the answer: progress, problems, hints."""
        self.out.flush()  # so that both streams on one terminal stay in order
        self.err.write(text + "\n")
        self.err.flush()

    def json(self, value: object, *, indent: int | None = 2) -> None:
        """The answer as one JSON document; ASCII, so that it is valid in every locale."""
        self.line(json.dumps(value, indent=indent))

    @property
    def width(self) -> int | None:
        """Columns of the terminal that shows the answer; None = not a terminal, nothing needs to fit."""
        return terminal_width(self.out)


def terminal_width(stream: TextIO) -> int | None:
    """Columns of the terminal behind a stream, None if there is none."""
    try:
        if not stream.isatty():
            return None
        # a terminal that does not know its size says 0
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return None
