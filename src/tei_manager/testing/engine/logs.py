"""TEI's log lines: JSON objects or plain text on stdout, filtered as LOG_LEVEL says."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import orjson

ROUTER = "text_embeddings_router"
ENGINE = "text_embeddings_backend_candle"
SELF = "testing_engine"
_LEVELS = {"trace": 0, "debug": 1, "info": 2, "warn": 3, "error": 4, "off": 5}


class Log:
    """Writes one line per message; a closed or full stdout is no reason to end."""

    def __init__(self, json: bool, level: str) -> None:
        self._json = json
        self._default, self._targets = _filter(level)

    def info(self, message: str, target: str = ROUTER) -> None:
        self._write("INFO", message, target)

    def warn(self, message: str, target: str = ROUTER) -> None:
        self._write("WARN", message, target)

    def error(self, message: str, target: str = SELF) -> None:
        self._write("ERROR", message, target)

    def _write(self, level: str, message: str, target: str) -> None:
        if _LEVELS[level.lower()] < self._threshold(target):
            return
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if self._json:
            line = orjson.dumps({"timestamp": now, "level": level, "message": message, "target": target})
        else:
            line = f"{now} {level:>5} {target}: {message}".encode()
        put(1, line + b"\n")

    def _threshold(self, target: str) -> int:
        """The level of the longest entry that begins the target, else the bare one."""
        fitting = [name for name in self._targets if target == name or target.startswith(name + "::")]
        return self._targets[max(fitting, key=len)] if fitting else self._default


def put(descriptor: int, data: bytes) -> None:
    """Write straight to the descriptor: no buffer to flush, so that a line written before a crash is there."""
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:
        return  # as an engine does: a closed pipe or a full disk does not end it


def _filter(level: str) -> tuple[int, dict[str, int]]:
    default, targets = _LEVELS["info"], {}
    for part in level.lower().split(","):
        name, equals, value = part.strip().rpartition("=")
        if value in _LEVELS and equals:
            targets[name] = _LEVELS[value]
        elif value in _LEVELS:
            default = _LEVELS[value]
    return default, targets
