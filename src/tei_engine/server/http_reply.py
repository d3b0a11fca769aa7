"""One HTTP request and one answer, as routes see them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from tei_engine.errors import RequestError
from tei_engine.server import error_table
from tei_engine.server.asking import Timings

Headers = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
TEXT = (b"content-type", b"text/plain; charset=utf-8")
HTML = (b"content-type", b"text/html; charset=utf-8")
PROMETHEUS = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")

OPENAI_PREFIXES = ("/v1/", "/v2/", "/embeddings")
"""Paths whose errors have OpenAI's shape."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer; `headers` come beside content-length."""

    status: int = 200
    body: bytes = b""
    headers: Headers = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Call:
    """One request as a route sees it."""

    path: str
    headers: Mapping[bytes, bytes]
    body: bytes = b""


Handler = Callable[[Call], Awaitable[Reply]]


def json_reply(value: Any, timings: Timings | None = None) -> Reply:
    """200 with `value`, float32 arrays included, and what it cost to compute."""
    headers = [JSON] if timings is None else [JSON, *cost(timings)]
    return Reply(200, orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), headers)


def cost(timings: Timings) -> Headers:
    """The `x-*` headers of a computed answer; durations are whole milliseconds."""
    total = str(round(timings.total * 1000)).encode()
    return [
        (b"x-compute-type", b"cpu+optimized"),
        (b"x-compute-time", total),
        (b"x-total-time", total),
        (b"x-compute-characters", str(timings.characters).encode()),
        (b"x-compute-tokens", str(timings.tokens).encode()),
        (b"x-tokenization-time", str(round(timings.tokenization * 1000)).encode()),
        (b"x-queue-time", str(round(timings.queue * 1000)).encode()),
        (b"x-inference-time", str(round(timings.inference * 1000)).encode()),
    ]


def error_reply(error: RequestError, path: str) -> Reply:
    """The error in the shape of the route that `path` names."""
    status = error_table.HTTP_STATUS[error.kind]
    is_openai = path.startswith(OPENAI_PREFIXES)
    body = error_table.openai_body(error) if is_openai else error_table.native_body(error)
    headers = [JSON]
    if status in error_table.RETRY_AFTER:
        headers.append((b"retry-after", b"1"))
    return Reply(status, orjson.dumps(body), headers)
