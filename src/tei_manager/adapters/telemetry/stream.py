"""Writing log lines to a stream that may be closed, full or stuck: never raises, never blocks for long."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import stat
from typing import TextIO

# a pipe that is ready takes this much at once (PIPE_BUF)
_CHUNK = 4096
_PATIENCE_MS = 100


class StreamHandler(logging.Handler):
    """Writes each record as one line.

    A reader that stops reading costs one short wait; then lines are dropped until it reads again, and the first
    line after the gap is preceded by one that counts them.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream = stream
        self._fd = _descriptor(stream)
        self._poll: select.poll | None = None
        if self._fd is not None and not _is_file(self._fd):
            self._poll = select.poll()
            self._poll.register(self._fd, select.POLLOUT)
        self._dropped = 0
        self._torn = False  # the last line was cut by a stuck reader

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # a log line is never worth a failure
            line = self.format(record)
            if self._dropped and self._write(self._gap(record)):
                self._dropped = 0
            if self._dropped or not self._write(line):
                self._dropped += 1

    def handleError(self, record: logging.LogRecord) -> None:
        """Do nothing: there is no better place to complain to."""

    def _gap(self, record: logging.LogRecord) -> str:
        message = f"{self._dropped} log lines were dropped: nobody reads them"
        gap = logging.LogRecord(__name__, logging.WARNING, record.pathname, record.lineno, message, None, None)
        return self.format(gap)

    def _write(self, line: str) -> bool:
        if self.stream.closed:  # its number may belong to another file by now
            return False
        if self._fd is None:
            self.stream.write(line + "\n")
            self.stream.flush()
            return True
        prefix = b"\n" if self._torn else b""
        data = memoryview(prefix + line.encode("utf-8", "backslashreplace") + b"\n")
        sent = 0
        try:
            while sent < len(data):
                if self._poll is not None and not self._poll.poll(0 if self._dropped else _PATIENCE_MS):
                    self._torn = self._torn or sent > 0
                    return False
                sent += os.write(self._fd, data[sent : sent + _CHUNK] if self._poll else data[sent:])
        except OSError:  # closed, full disk, or a non-blocking stream without room
            self._torn = self._torn or sent > 0
            return False
        self._torn = False
        return True


def _descriptor(stream: TextIO) -> int | None:
    try:
        stream.flush()
        return stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None


def _is_file(descriptor: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        return False
