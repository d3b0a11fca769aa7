"""One format for all log lines: our own (structlog or standard) and those of uvicorn, grpc and asyncio."""

from __future__ import annotations

import logging
import math
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import orjson
import structlog
from structlog.typing import EventDict, WrappedLogger

from tei_manager.adapters.telemetry import levels
from tei_manager.adapters.telemetry.stream import StreamHandler
from tei_manager.kits.masking import MASK, is_secret

LEVEL_NAMES = {levels.TRACE: "TRACE", 10: "DEBUG", 20: "INFO", 30: "WARN", 40: "ERROR", 50: "ERROR"}

# bound with structlog.contextvars, shown beside the fields and not among them
CONTEXT_KEYS = ("request_id", "trace_id", "span_id")
_FIELDS = "tei_manager_fields"
_STANDARD = {*logging.makeLogRecord({}).__dict__, "message", "asctime", "color_message", "taskName", _FIELDS}
_DEEPEST = 8
_COLOURS = {"TRACE": "\x1b[2m", "DEBUG": "\x1b[34m", "INFO": "\x1b[32m", "WARN": "\x1b[33m", "ERROR": "\x1b[31m"}
_RESET = "\x1b[0m"

# loggers whose levels the last `configure` set
_set_by_us: set[str] = set()


def configure(
    level: str = "info", fmt: Literal["json", "pretty"] | str = "json", stream: TextIO | None = None
) -> None:
    """Log everything to `stream` (default: standard output) in one format. May be called again.

    `level` is a text of `levels.parse` (raises ValueError). After this no log call raises or blocks for long,
    whatever becomes of the stream.
    """
    chosen = levels.parse(level)
    stream = stream if stream is not None else sys.stdout
    handler = StreamHandler(stream)
    handler.setFormatter(JsonLines() if fmt == "json" else Pretty(colours=_is_terminal(stream)))

    root = logging.getLogger()
    for old in list(root.handlers):
        # ours of an earlier call, and what logging.basicConfig leaves; subclasses belong to others
        if isinstance(old, StreamHandler) or type(old) is logging.StreamHandler:
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(chosen.general)
    for name in _set_by_us - chosen.loggers.keys():
        logging.getLogger(name).setLevel(logging.NOTSET)
    _set_by_us.clear()
    _set_by_us.update(chosen.loggers)
    for name, number in chosen.loggers.items():
        logging.getLogger(name).setLevel(number)
    logging.addLevelName(levels.TRACE, "TRACE")
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            _hand_over,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def _hand_over(_logger: WrappedLogger, _method: str, event: EventDict) -> Mapping[str, Any]:
    """The last processor: arguments for the standard logger. Fields travel whole, so no name can collide."""
    facts = {name: event.pop(name) for name in ("exc_info", "stack_info") if name in event}
    message = event.pop("event", "")
    return {"msg": message, "extra": {_FIELDS: dict(event)}, "stacklevel": event.pop("stacklevel", 1), **facts}


def entry(record: logging.LogRecord) -> dict[str, object]:
    """A record as the JSON line has it."""
    try:
        message = record.getMessage()
    except Exception:  # somebody's arguments do not fit their text
        message = str(record.msg)
    given = getattr(record, _FIELDS, None)
    if given is None:
        given = {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
    context = structlog.contextvars.get_contextvars()
    fields: dict[str, object] = {"message": message}
    for name, value in {**context, **given}.items():
        if name not in CONTEXT_KEYS:
            fields["message_" if name == "message" else name] = clean(name, value)
    if exception := _exception(record):
        fields["exception"] = exception
    if record.stack_info:
        fields["stack"] = record.stack_info
    instant = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    line: dict[str, object] = {
        "timestamp": instant.replace("+00:00", "Z"),
        "level": LEVEL_NAMES.get(record.levelno, record.levelname.upper()),
        "fields": fields,
        "target": record.name,
    }
    for name in CONTEXT_KEYS:
        if (value := given.get(name, context.get(name))) is not None:
            line[name] = str(value)
    return line


def clean(name: str, value: object, depth: int = 0) -> object:
    """A value that JSON can carry: numbers stay numbers, secrets are masked by the name of their field."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**64 else str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping) and depth < _DEEPEST:
        return {str(key): clean(str(key), item, depth + 1) for key, item in value.items()}
    if is_secret(name):
        return MASK
    if isinstance(value, list | tuple | set | frozenset) and depth < _DEEPEST:
        return [clean(name, item, depth + 1) for item in value]
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"


def _exception(record: logging.LogRecord) -> str | None:
    if not record.exc_info or record.exc_info[0] is None:
        return record.exc_text
    return "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")


def _plain_text(value: object) -> object:
    """Text that UTF-8 can carry, for the rare value with lone surrogates (odd file names)."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_plain_text(key): _plain_text(item) for key, item in value.items()}
    return [_plain_text(item) for item in value] if isinstance(value, list) else value


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = entry(record)
        try:
            return orjson.dumps(line).decode()
        except TypeError:
            return orjson.dumps(_plain_text(line)).decode()


class Pretty(logging.Formatter):
    """Short lines for people: time, level, logger, message, fields; exceptions below."""

    def __init__(self, *, colours: bool) -> None:
        super().__init__()
        self.colours = colours

    def format(self, record: logging.LogRecord) -> str:
        line = entry(record)
        fields = dict(line["fields"])  # type: ignore[call-overload]  # entry makes it a dict
        message, below = fields.pop("message"), [fields.pop(name, None) for name in ("exception", "stack")]
        fields |= {name: line[name] for name in CONTEXT_KEYS if name in line}
        facts = "".join(f" {name}={_short(value)}" for name, value in fields.items())
        level, instant = str(line["level"]), str(line["timestamp"])[11:23]
        if self.colours:
            level_text = f"{_COLOURS.get(level, '')}{level:<5}{_RESET}"
            text = f"\x1b[2m{instant}{_RESET} {level_text} {message}\x1b[2m{facts}  {line['target']}{_RESET}"
        else:
            text = f"{instant} {level:<5} {message}{facts}  {line['target']}"
        return "\n".join([text, *(str(part) for part in below if part)])


def _short(value: object) -> str:
    if isinstance(value, str) and value and not set(value) & set(" \t\n\"'="):
        return value
    return orjson.dumps(_plain_text(value)).decode()


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (ValueError, AttributeError):
        return False
