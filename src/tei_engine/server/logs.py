"""Log lines in text-embeddings-router's shape, so that one parser reads both."""

from __future__ import annotations

import logging
import os
import traceback
from datetime import UTC, datetime

import orjson

from tei_engine.server import tracing

_LEVELS = {
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.DEBUG,
    "off": logging.CRITICAL + 1,
}
LOG = logging.getLogger("text_embeddings_router")
"""TEI's own target: lines that the log reader knows by their message."""

DEBUG = logging.DEBUG

_NAMES = {logging.WARNING: "WARN", logging.CRITICAL: "ERROR"}


def level_of(text: str | None) -> int:
    """The level named in LOG_LEVEL: a level, or a filter list whose bare level counts. INFO if there is none."""
    for part in (text or "").lower().split(","):
        if part.strip() in _LEVELS:
            return _LEVELS[part.strip()]
    return logging.INFO


class Lines(logging.Handler):
    """Writes each record as one line to a file descriptor; a closed pipe or full disk is nobody's end."""

    def __init__(self, *, json_output: bool, descriptor: int = 1) -> None:
        super().__init__()
        self._json = json_output
        self._descriptor = descriptor

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; never raises."""
        try:
            line = self._line(record) if self._json else self._plain(record)
            os.write(self._descriptor, line + b"\n")
        except OSError:
            pass  # nowhere to write to, and nobody to tell
        except Exception:
            self.handleError(record)

    @staticmethod
    def _line(record: logging.LogRecord) -> bytes:
        shown: dict[str, str | int] = {
            "timestamp": _timestamp(record),
            "level": _NAMES.get(record.levelno, record.levelname),
            "message": _message(record),
            "target": record.name.replace(".", "::"),
            "filename": "/".join(record.pathname.rsplit("/", 3)[1:]),
            "line_number": record.lineno,
        }
        if trace := tracing.trace_id():
            shown["trace_id"] = trace
        return orjson.dumps(shown)

    @staticmethod
    def _plain(record: logging.LogRecord) -> bytes:
        level = _NAMES.get(record.levelno, record.levelname)
        target = record.name.replace(".", "::")
        trace = tracing.trace_id()
        shown = f" trace_id={trace}" if trace else ""
        return f"{_timestamp(record)} {level:>5} {target}:{shown} {_message(record)}".encode(errors="replace")


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, tz=UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    if record.exc_info and record.exc_info[1] is not None:
        message += "\n" + "".join(traceback.format_exception(record.exc_info[1])).rstrip()
    # text that cannot be encoded would cost the whole line
    return message.encode(errors="replace").decode()


def set_up(*, json_output: bool, level: str | None) -> None:
    """Send every log record of the process through `Lines`."""
    root = logging.getLogger()
    root.handlers[:] = [Lines(json_output=json_output)]
    root.setLevel(logging.WARNING)
    for name in ("tei_engine", LOG.name):
        logging.getLogger(name).setLevel(level_of(level))


def log_traceback(error: BaseException) -> None:
    """Log where `error` came from."""
    LOG.error("%s", error, exc_info=error)
