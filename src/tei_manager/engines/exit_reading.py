"""What the end of a process means: its text for people, its kind for the decision whether to start it again."""

from __future__ import annotations

import re

from tei_manager.domain.exits import ExitKind, ExitReason
from tei_manager.engines.log_reading import Errors, errors_in, last_error

_ASKED_TO_END = frozenset({1, 2, 15})  # HUP, INT, TERM: somebody wanted it gone
_PORT = re.compile(r"address already in use|could not bind|prometheus recorder", re.IGNORECASE)
_DOWNLOAD = re.compile(
    r"could not download|request error|error sending request|error trying to connect|dns error"
    r"|name resolution|connection (?:refused|reset|timed out)|max retries exceeded",
    re.IGNORECASE,
)
_RUST_PANIC = 101


def read_exit(code: int | None, signal: int | None, tail: str, *, was_ready: bool) -> ExitReason:
    """The end of text-embeddings-router or of our engine.

    What could be wrong with arguments, ports or the model has shown before an engine was ready; an end after that
    tells nothing about them.
    """
    errors = errors_in(tail)
    ended_by = _signal_of(code, signal)
    if ended_by is not None:
        kind = ExitKind.ENDED if ended_by in _ASKED_TO_END else ExitKind.CRASH
    elif code == _RUST_PANIC:
        kind = ExitKind.CRASH
    elif was_ready:
        kind = ExitKind.ENDED
    else:
        kind = {1: _failed_start(errors), 2: ExitKind.USAGE, 126: ExitKind.MISSING, 127: ExitKind.MISSING}.get(
            code or 0, ExitKind.ENDED
        )
    # clap names the mistake first and then prints how it is done right
    error = errors.first_printed if kind is ExitKind.USAGE and errors.first_printed else last_error(tail)
    return ExitReason(kind, _text(code, signal, error, was_ready=was_ready))


def read_command_exit(code: int | None, signal: int | None, tail: str, *, was_ready: bool) -> ExitReason:
    """The end of a program whose exit codes we do not know."""
    ended_by = _signal_of(code, signal)
    if ended_by is not None:
        kind = ExitKind.ENDED if ended_by in _ASKED_TO_END else ExitKind.CRASH
    elif not was_ready and code in (126, 127):
        kind = ExitKind.MISSING
    elif not was_ready and code and _PORT.search(_all(errors_in(tail))):
        kind = ExitKind.PORT
    else:
        kind = ExitKind.ENDED
    return ExitReason(kind, _text(code, signal, last_error(tail), was_ready=was_ready))


def _failed_start(errors: Errors) -> ExitKind:
    text = _all(errors)
    if _PORT.search(text):
        return ExitKind.PORT
    return ExitKind.DOWNLOAD if _DOWNLOAD.search(text) else ExitKind.MODEL


def _all(errors: Errors) -> str:
    # only errors: warnings like "Could not download `x`, trying `y`" are part of a good start
    return "\n".join(text for text in (errors.logged, errors.printed) if text)


def _signal_of(code: int | None, signal: int | None) -> int | None:
    """The signal behind an end; a shell or a container runtime reports one as 128 + signal."""
    if signal is not None:
        return abs(signal)
    if code is not None and code < 0:
        return -code
    return code - 128 if code is not None and 128 < code < 128 + 65 else None


def _text(code: int | None, signal: int | None, error: str | None, *, was_ready: bool) -> str:
    if signal is not None or (code is not None and code < 0):
        text = f"process killed by signal {_signal_of(code, signal)}"
    elif code is not None:
        text = f"process exited with code {code}"
    else:
        text = "process is gone, nobody saw how it ended"
    return ("" if was_ready else "exited during startup: ") + text + (f": {error}" if error else "")
