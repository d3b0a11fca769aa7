"""Which metadata passes through, and what is added."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable
from functools import lru_cache

from tei_manager.ports.grpc_upstream import Metadata

REQUEST_ID, INSTANCE = "x-request-id", "x-tei-instance"
TARGET_INSTANCE, TARGET_MODEL = "x-tei-instance", "x-tei-model"

_STRIPPED = frozenset(
    (
        "authorization",
        "x-api-key",
        "cookie",
        "forwarded",
        "host",
        "te",
        "connection",
        "keep-alive",
        "transfer-encoding",
        "upgrade",
        "content-type",
        "content-length",
        "user-agent",
    )
)
_STRIPPED_PREFIXES = ("x-ssl-", "x-forwarded-", "x-tei-", "proxy-", "grpc-", ":")
_OUTWARD_TOO = "grpc-status-details-bin"
_REQUEST_ID_FORM = re.compile(r"[A-Za-z0-9._-]{1,128}")


@lru_cache(maxsize=1024)
def _passes(key: str) -> bool:
    return key not in _STRIPPED and not key.startswith(_STRIPPED_PREFIXES)


def inward(given: Iterable[tuple[str, str | bytes]]) -> tuple[Metadata, str]:
    """What goes on to the engine, with the request id it carries: the caller's if it has the form of one."""
    request_id = ""
    passed: list[tuple[str, str | bytes]] = []
    for key, value in given:
        if key == REQUEST_ID:
            if not request_id and isinstance(value, str) and _REQUEST_ID_FORM.fullmatch(value):
                request_id = value
        elif _passes(key):
            passed.append((key, value))
    request_id = request_id or new_request_id()
    passed.append((REQUEST_ID, request_id))
    return tuple(passed), request_id


def outward(given: Metadata) -> Metadata:
    """What of an engine's metadata goes on to the caller."""
    return tuple((key, value) for key, value in given if _passes(key) or key == _OUTWARD_TOO)


def opening(given: Metadata, instance: str, request_id: str) -> Metadata:
    """The initial metadata of an answer."""
    passed = [(key, value) for key, value in given if _passes(key) and key != REQUEST_ID]
    return (*passed, (INSTANCE, instance), (REQUEST_ID, request_id))


def new_request_id() -> str:
    """A UUID of version 7: its text sorts by time."""
    chance = secrets.randbits(74)
    bits = time.time_ns() // 1_000_000 << 80 | 0x7 << 76 | chance >> 62 << 64 | 0b10 << 62 | chance & (1 << 62) - 1
    text = f"{bits:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
