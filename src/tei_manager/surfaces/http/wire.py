"""Reading bodies and sending answers: the few lines between a handler and ASGI."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson
from starlette.types import Message, Receive, Scope, Send

from tei_manager.surfaces.http.errors import Refused

JSON = "application/json"
MAX_NESTING = 128
Headers = Iterable[tuple[str, str]]


class ClientGone(Exception):
    """The caller hung up: there is nobody to answer."""


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that lower-case name."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None


async def answer(
    send: Send, status: int, body: bytes = b"", *, content_type: str = JSON, headers: Headers = ()
) -> None:
    """One whole answer."""
    if status != 204:
        headers = (*headers, ("content-length", str(len(body))))
    await begin(send, status, content_type=None if status == 204 else content_type, headers=headers)
    await send({"type": "http.response.body", "body": body})


async def begin(send: Send, status: int, *, content_type: str | None = JSON, headers: Headers = ()) -> None:
    """Status and headers; the body follows in parts."""
    if content_type is not None:
        headers = (*headers, ("content-type", content_type))
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": raw})


async def answer_json(send: Send, status: int, value: object, *, headers: Headers = ()) -> None:
    await answer(send, status, orjson.dumps(value), headers=headers)


def check_content_type(scope: Scope, *, suffixes: bool) -> None:
    """Refuse a body that is not UTF-8 JSON. `suffixes` admits `application/*+json`."""
    given = header(scope, b"content-type") or ""
    kind, *parameters = (part.strip().lower() for part in given.split(";"))
    is_json = kind == JSON or (suffixes and kind.startswith("application/") and kind.endswith("+json"))
    charsets = [part[8:].strip('"') for part in parameters if part.startswith("charset=")]
    if not is_json or any(charset not in ("utf-8", "utf8") for charset in charsets):
        raise Refused(
            "UNSUPPORTED_MEDIA_TYPE", "The body must be sent with Content-Type: application/json in UTF-8"
        )


async def read_body(scope: Scope, receive: Receive, *, max_mb: float, idle_timeout_secs: float) -> bytes:
    """The whole body, `Content-Encoding: gzip` undone. Counts while reading, so a lie about the length is seen."""
    limit = int(max_mb * 1024 * 1024)
    too_large = Refused("PAYLOAD_TOO_LARGE", f"The body is larger than {max_mb:g} MiB", headers=_CLOSE)
    if (declared := header(scope, b"content-length")) is not None and declared.isdigit() and int(declared) > limit:
        raise too_large
    encoding = (header(scope, b"content-encoding") or "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise Refused("UNSUPPORTED_MEDIA_TYPE", "Content-Encoding may be gzip or absent")
    chunks: list[bytes] = []
    size, more = 0, True
    while more:
        message = await _next(receive, idle_timeout_secs)
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise too_large
        chunks.append(chunk)
        more = message.get("more_body", False)
    body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    return _gunzip(body, limit, too_large) if encoding == "gzip" else body


async def _next(receive: Receive, idle_timeout_secs: float) -> Message:
    try:
        async with asyncio.timeout(idle_timeout_secs):
            return await receive()
    except TimeoutError:
        raise Refused("REQUEST_TIMEOUT", "The body stopped arriving", headers=_CLOSE) from None


def _gunzip(body: bytes, limit: int, too_large: Refused) -> bytes:
    inflater = zlib.decompressobj(wbits=31)
    try:
        plain = inflater.decompress(body, limit + 1)
    except zlib.error:
        raise Refused("INVALID_JSON", "The body is not gzip, as Content-Encoding says") from None
    if len(plain) > limit:
        raise too_large
    if not inflater.eof:
        raise Refused("INVALID_JSON", "The gzip body ends too early")
    return plain


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is. Refuses what another reader might understand differently."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        reason = "the body is empty" if not body else str(error).partition(": line")[0]
        raise Refused("INVALID_JSON", f"The body is not JSON: {reason}") from None
    if not isinstance(value, dict):
        raise Refused("INVALID_JSON", "The body must be a JSON object")
    if body.count(b"[") + body.count(b"{") > MAX_NESTING and _is_nested_deeper(value, MAX_NESTING):
        raise Refused("INVALID_JSON", f"The body is nested deeper than {MAX_NESTING} levels")
    return value


def _is_nested_deeper(value: object, limit: int) -> bool:
    level: list[Any] = [value]
    for _ in range(limit):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, Mapping) else parent)
            if isinstance(child, list | dict)
        ]
        if not level:
            return False
    return True


@asynccontextmanager
async def cancelled_when_gone(receive: Receive) -> AsyncIterator[None]:
    """Cancel the work inside as soon as the caller hangs up; then `ClientGone` is raised."""
    worker = asyncio.current_task()
    assert worker is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        worker.cancel()

    watcher = asyncio.create_task(watch(), name="client gone?")
    try:
        yield
    except BaseException:
        # whatever the cancelled work made of it
        if gone:
            worker.uncancel()
            raise ClientGone from None
        raise
    finally:
        watcher.cancel()


_CLOSE = (("connection", "close"),)
