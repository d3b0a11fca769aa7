"""What one sees while a model loads, always beside the answer and never in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TextIO

from tei_manager.app.client import table

ERASE = "\r\x1b[K"
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
ASCII_SPINNER = "|/-\\"


class Progress:
    """The state of one instance over time.

    `width` None: the stream is no terminal, and each change of state becomes one line. Else one line is
    redrawn at every `show` and wiped at the end. `clock` gives seconds; time counts from `begin`.
    """

    def __init__(self, stream: TextIO, *, width: int | None, clock: Callable[[], float]) -> None:
        self._stream, self._width, self._clock = stream, width, clock
        encoding = (stream.encoding or "utf-8").lower().replace("-", "")
        self._spinner = SPINNER if encoding == "utf8" else ASCII_SPINNER
        self._began = clock()
        self._frame = 0
        self._seen: str | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wipe()

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._began

    def begin(self) -> None:
        """Start counting anew, for the next instance."""
        self._began, self._seen = self._clock(), None

    def show(self, instance: Mapping[str, object]) -> None:
        """Draw the present state of an instance object."""
        state = f"{instance.get('name')}: {table.status(instance)}"
        if instance.get("last_error") and instance.get("status") != "running":
            state += f": {instance['last_error']}"
        state = table.clean(state)
        if self._width is not None:
            mark = self._spinner[self._frame % len(self._spinner)]
            self._frame += 1
            seconds = f" {self.elapsed_s:.1f}s"
            # one column stays free: a full line would wrap, and a wrapped line cannot be redrawn
            room = max(self._width - len(seconds) - 3, 1)
            self._write(f"{ERASE}{mark} {table.cut(state, room)}{seconds}")
        elif state != self._seen:
            self._write(f"{state} ({self.elapsed_s:.1f}s)\n")
        self._seen = state

    def wipe(self) -> None:
        """Leave an empty line behind, if one was drawn."""
        if self._width is not None and self._seen is not None:
            self._write(ERASE)
            self._seen = None

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
