"""Log lines of the engines: facts of text-embeddings-router and ours, the error behind an end, secrets masked.

Facts are hints: the router's own INFO lines are off by default, and probes decide about readiness.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

LONGEST_ERROR = 1000


class Fact(StrEnum):
    DOWNLOADING = "downloading"  # value: the file
    DOWNLOADED = "downloaded"
    LOADING = "loading"
    DEVICE = "device"  # value: `Cuda(…)`, `Metal(…)` or `Cpu`
    WARMING = "warming"
    READY = "ready"
    PROTOCOL = "protocol"  # value: `http` or `grpc`
    MAX_INPUT_LENGTH = "max_input_length"
    MAX_BATCH_REQUESTS = "max_batch_requests"
    CPU_FALLBACK = "cpu_fallback"  # value: the line
    BOUND_WIDE = "bound_wide"  # value: the line
    LAST_ERROR = "last_error"  # value: the message


@dataclass(frozen=True, slots=True)
class LogFact:
    fact: Fact
    value: str = ""


_MESSAGES: tuple[tuple[re.Pattern[str], Fact], ...] = tuple(
    (re.compile(pattern), fact)
    for pattern, fact in (
        (r".*Using CPU instead.*", Fact.CPU_FALLBACK),
        (r".*Could not create backend.*", Fact.CPU_FALLBACK),
        (r"Downloading `(?P<value>[^`]+)`.*", Fact.DOWNLOADING),
        (r"Model artifacts downloaded in .*", Fact.DOWNLOADED),
        (r"Maximum number of tokens per request: (?P<value>\d+).*", Fact.MAX_INPUT_LENGTH),
        (r".*forcing `max_batch_requests=(?P<value>\d+)`.*", Fact.MAX_BATCH_REQUESTS),
        (r"Starting model backend.*", Fact.LOADING),
        (r"Starting .* model on (?P<value>\S.*)", Fact.DEVICE),
        (r"Warming up model.*", Fact.WARMING),
        (r"Starting (?P<value>HTTP|gRPC) server: .*", Fact.PROTOCOL),
        (r"Ready", Fact.READY),
        (r".*Invalid hostname, defaulting to 0\.0\.0\.0.*", Fact.BOUND_WIDE),
    )
)
_WHOLE_LINE = {Fact.CPU_FALLBACK, Fact.BOUND_WIDE}
# without JSON a message has no beginning, so only what cannot be misread counts
_IN_PLAIN_TEXT = {Fact.CPU_FALLBACK, Fact.DEVICE}

_ERROR_LINE = re.compile(r"error:", re.IGNORECASE)
# `(EngineCore pid=7) ERROR 09-28 15:47:24 [core.py:718] `, `ERROR:    `, `0.00.123.456 E `
_PREFIX = re.compile(
    r"(?:\(\w+(?: \w+=\d+)+\) *)?"
    r"(?:(?:CRITICAL|ERROR|WARNING|INFO|DEBUG):? +(?:\d\d-\d\d \d\d:\d\d:\d\d +)?(?:\[[^\]]*:\d+\] *)?)?"
    r"(?:\d+(?:\.\d+){3} [A-Z] )?"
)
_TROUBLE = re.compile(
    r"\berror\b|\w(?:Error|Exception)\b|\bfail(?:ed|ure)\b|couldn't|cannot|unable to|out of memory"
    r"|invalid argument|already in use",
    re.IGNORECASE,
)
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Exit|NotFound)\b")
_FOLLOWS = re.compile(r"engine core initialization failed|see root cause|failed to start", re.IGNORECASE)
_COMPLAINT = re.compile(r"^[\w.-]+(?: [\w-]+)?: error: ")
_PANIC_LINE = re.compile(r"thread '.*' (?:\(\d+\) )?panicked at ")
_CAUSE_NUMBER = re.compile(r"\d+: ")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
# `api_key: Some("…")` as Rust prints it, inside JSON with its quotes escaped once more; a quote within the key has
# one backslash more than the closing one. An end that is not found masks the rest of the line
_KEY = re.compile(r'\b((?:api_key|hf_token|hf_api_token): Some\((\\*)")(.*?)((?<!\\)\2"\)|$)', re.MULTILINE)


def read_line(line: str) -> LogFact | None:
    """What a line tells, None if nothing."""
    if (record := _record(line)) is None:
        return _plain_fact(_ANSI.sub("", line).strip())
    message = _message(record)
    for pattern, fact in _MESSAGES:
        if match := pattern.fullmatch(message):
            return _fact(fact, match)
    return LogFact(Fact.LAST_ERROR, mask(message)) if _is_error(record) else None


def last_error(tail: str) -> str | None:
    """The error that explains an end: the last JSON line of level ERROR, else the last one that starts `error:`.

    An anyhow chain is joined into one line; a panic counts where nothing else is found.
    """
    found = errors_in(tail)
    return next((_shortened(text) for text in (found.logged, found.printed, found.panic) if text), None)


@dataclass(frozen=True, slots=True)
class Errors:
    """The last error of each kind in a log."""

    logged: str | None = None
    printed: str | None = None
    panic: str | None = None
    first_printed: str | None = None


def errors_in(tail: str) -> Errors:
    lines = [_ANSI.sub("", line).rstrip() for line in mask(tail).splitlines()]
    logged = printed = panic = first = None
    for index, line in enumerate(lines):
        if (record := _record(line)) is not None:
            if _is_error(record):
                logged = mask(_message(record))
        elif _ERROR_LINE.match(line):
            printed = _chain(lines[index:])
            first = first or printed
        elif _PANIC_LINE.match(line):
            panic = " ".join([line, *lines[index + 1 : index + 2]]).strip()
    return Errors(logged, printed, panic, first)


def troubles(tail: str) -> tuple[str, ...]:
    """The lines of a program in Python or C++ that tell of something that went wrong, without what a logger put in
    front: time, level, file, process."""
    lines = (_PREFIX.sub("", _ANSI.sub("", line).strip()) for line in mask(tail).splitlines())
    return tuple(_shortened(line) for line in lines if _TROUBLE.search(line))


def python_error(tail: str) -> str | None:
    """The exception, or the complaint of argparse, that explains an end.

    vLLM's processes end one after the other, and the last one only says that another was first.
    """
    found = troubles(tail)
    raised = [line for line in found if _EXCEPTION.match(line) and not _FOLLOWS.search(line)]
    complaints = [line for line in found if _COMPLAINT.search(line)]
    return next((lines[-1] for lines in (complaints, raised, found) if lines), None)


def cpu_line(tail: str, *, pinned: bool) -> str | None:
    """The line that says the model went to the CPU, unless a later one says that it is on a GPU after all.

    For a `pinned` instance a plain start on the CPU counts, too.
    """
    found: str | None = None
    for line in tail.splitlines():
        fact = read_line(line)
        if fact is None:
            continue
        if fact.fact is Fact.CPU_FALLBACK:
            found = fact.value
        elif fact.fact is Fact.DEVICE:
            on_cpu = fact.value.startswith("Cpu")
            if not on_cpu:
                found = None
            elif pinned and found is None:
                found = _text_of(line)
    return found


def mask(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` with `secrets`, and keys that the router prints about itself, replaced by `***`."""
    text = _KEY.sub(r"\1***\4", text)
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return text


def _record(line: str) -> Mapping[str, object] | None:
    if not line.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _message(record: Mapping[str, object]) -> str:
    fields = record.get("fields")
    message = record.get("message", fields.get("message") if isinstance(fields, dict) else None)
    return message if isinstance(message, str) else ""


def _is_error(record: Mapping[str, object]) -> bool:
    return str(record.get("level")).upper() == "ERROR" and bool(_message(record).strip())


def _fact(fact: Fact, match: re.Match[str]) -> LogFact:
    if fact in _WHOLE_LINE:
        return LogFact(fact, mask(match.string))
    value = match.groupdict().get("value") or ""
    return LogFact(fact, value.lower() if fact is Fact.PROTOCOL else value)


def _plain_fact(text: str) -> LogFact | None:
    if _ERROR_LINE.match(text):
        return LogFact(Fact.LAST_ERROR, mask(text))
    for pattern, fact in _MESSAGES:
        if fact in _IN_PLAIN_TEXT and (match := pattern.search(text)):
            return _fact(fact, match)
    return None


def _text_of(line: str) -> str:
    record = _record(line)
    return mask(_message(record) if record is not None else line.strip())


def _chain(lines: list[str]) -> str:
    """An `error:` line with the causes below it: `Error: a: b: c`."""
    parts = [lines[0].strip()]
    rest = [line for line in lines[1:4] if line.strip()]
    if rest and rest[0].strip().lower() == "caused by:":
        start = lines.index(rest[0], 1) + 1
        for line in lines[start:]:
            if not line.startswith((" ", "\t")):
                break
            parts.append(_CAUSE_NUMBER.sub("", line.strip(), count=1))
    return ": ".join(part.rstrip(":") for part in parts)


def _shortened(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= LONGEST_ERROR else flat[: LONGEST_ERROR - 1] + "…"
