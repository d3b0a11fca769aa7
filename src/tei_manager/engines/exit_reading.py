"""What the end of a process means: its text for people, its kind for the decision whether to start it again."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tei_manager.domain.exits import ExitKind, ExitReason
from tei_manager.engines.log_reading import Errors, errors_in, last_error, python_error, troubles

_ASKED_TO_END = frozenset({1, 2, 15})  # HUP, INT, TERM: somebody wanted it gone
_PORT = re.compile(r"address already in use|could not bind|prometheus recorder", re.IGNORECASE)
_DOWNLOAD = re.compile(
    r"could not download|request error|error sending request|error trying to connect|dns error"
    r"|name resolution|connection (?:refused|reset|timed out)|max retries exceeded",
    re.IGNORECASE,
)
_RUST_PANIC = 101

# the same causes in the words of programs in Python and C++
_FOREIGN_PORT = re.compile(r"address already in use|EADDRINUSE|couldn't bind", re.IGNORECASE)
_MEMORY = re.compile(
    r"out of memory|OutOfMemory|free memory on device|no available memory for the cache"
    r"|(?:unable|failed) to allocate|bad_alloc",
    re.IGNORECASE,
)
_NO_SUCH_MODEL = re.compile(
    r"(?:Repository|Revision|Entry)NotFound|GatedRepo|not a valid model identifier|40[134] client error"
    r"|status:? 40[134]\b|HTTP(?: error)? 40[134]\b",
    re.IGNORECASE,
)
_FOREIGN_DOWNLOAD = re.compile(
    rf"{_DOWNLOAD.pattern}|ConnectionError|ConnectError|ReadTimeout|ConnectTimeout|couldn't connect to"
    r"|LocalEntryNotFound|HfHubHTTPError|curl_easy_perform|failed to download|download failed",
    re.IGNORECASE,
)
_LLAMACPP_USAGE = re.compile(r"invalid argument:|error while handling argument|unknown argument:", re.IGNORECASE)


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


def read_vllm_exit(code: int | None, signal: int | None, tail: str, *, was_ready: bool) -> ExitReason:
    """The end of vLLM: argparse ends with 2, everything else with a traceback and 1."""
    found = troubles(tail)
    return _foreign(code, signal, found, python_error(tail), is_usage=code == 2, was_ready=was_ready)


def read_llamacpp_exit(code: int | None, signal: int | None, tail: str, *, was_ready: bool) -> ExitReason:
    """The end of llama-server, which has one exit code: the first line of trouble is the cause of the others."""
    found = troubles(tail)
    is_usage = any(_LLAMACPP_USAGE.search(line) for line in found)
    return _foreign(code, signal, found, found[0] if found else None, is_usage=is_usage, was_ready=was_ready)


def _foreign(
    code: int | None,
    signal: int | None,
    found: Sequence[str],
    error: str | None,
    *,
    is_usage: bool,
    was_ready: bool,
) -> ExitReason:
    ended_by = _signal_of(code, signal)
    if ended_by is not None:
        kind = ExitKind.ENDED if ended_by in _ASKED_TO_END else ExitKind.CRASH
    elif was_ready or not code:
        kind = ExitKind.ENDED
    elif code in (126, 127):
        kind = ExitKind.MISSING
    elif is_usage:
        kind = ExitKind.USAGE
    else:
        kind = _foreign_start("\n".join(found)) if code == 1 else ExitKind.ENDED
    return ExitReason(kind, _text(code, signal, error, was_ready=was_ready))


def _foreign_start(text: str) -> ExitKind:
    if _FOREIGN_PORT.search(text):
        return ExitKind.PORT
    if _MEMORY.search(text):
        return ExitKind.CRASH  # somebody else may give memory back
    if _NO_SUCH_MODEL.search(text):
        return ExitKind.MODEL
    return ExitKind.DOWNLOAD if _FOREIGN_DOWNLOAD.search(text) else ExitKind.MODEL


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
