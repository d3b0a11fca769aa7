"""The middleware, one function per layer: each takes the app inside it and returns the app around it."""

from __future__ import annotations

import ipaddress
import re
import secrets
import time
from collections.abc import Callable
from http import HTTPStatus

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tei_manager.ports.metrics import HttpMetrics
from tei_manager.surfaces.http import errors, routing, wire
from tei_manager.surfaces.http.errors import Refused
from tei_manager.surfaces.http.settings import HttpSettings

log = structlog.get_logger("tei_manager.http")

Layer = Callable[[ASGIApp], ASGIApp]
CLIENT_GONE = 499  # nobody sees this status but the metrics and the log
MAX_HEAD_BYTES = 64 * 1024
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_EXPOSED = "x-request-id, retry-after, retry-after-ms"
_KEY = "tei_manager.request_id"


def request_id_of(scope: Scope) -> str:
    """The id of this request: the caller's if it is well formed, else a new one."""
    if (known := scope.get(_KEY)) is None:
        given = wire.header(scope, b"x-request-id") or ""
        known = scope[_KEY] = given if _REQUEST_ID.fullmatch(given) else _uuid7()
    return str(known)


def guard(app: ASGIApp) -> ASGIApp:
    """Paths and headers that two readers could understand differently go no further."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        if (refusal := _head_problem(scope)) is not None:
            identified = _with_headers(send, {"x-request-id": request_id_of(scope)})
            return await _tell(refusal, scope, identified)
        path = scope["path"]
        if len(path) > 1 and path.endswith("/"):
            scope = {**scope, "path": path[:-1], "raw_path": None}
        return await app(scope, receive, send)

    return guarded


def request_id(app: ASGIApp) -> ASGIApp:
    """`X-Request-ID` on every answer and in every log line of the request."""

    async def identified(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        known = request_id_of(scope)
        with structlog.contextvars.bound_contextvars(request_id=known):
            return await app(scope, receive, _with_headers(send, {"x-request-id": known}))

    return identified


def access(metrics: HttpMetrics) -> Layer:
    """Count and time every request; one debug line each."""

    def layer(app: ASGIApp) -> ASGIApp:
        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                return await app(scope, receive, send)
            began, status = time.perf_counter(), CLIENT_GONE

            async def noting(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await app(scope, receive, noting)
            finally:
                secs = time.perf_counter() - began
                route = routing.label(scope)
                metrics.http(route, status, secs)
                log.debug("Request", method=scope["method"], route=route, status=status, ms=round(secs * 1e3, 3))

        return counted

    return layer


def errors_told(app: ASGIApp) -> ASGIApp:
    """An exception becomes an answer in the dialect of its path. What is not ours is logged, never shown."""

    async def telling(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        has_begun = False

        async def noting(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await app(scope, receive, noting)
        except wire.ClientGone:
            return None
        except Exception as error:
            if errors.status_of(error) == HTTPStatus.INTERNAL_SERVER_ERROR:
                log.exception("Request failed", route=routing.label(scope))
            if has_begun:
                raise  # the answer cannot be taken back: the server cuts the connection
            await _tell(error, scope, send)
        return None

    return telling


def drain_gate(is_draining: Callable[[], bool]) -> Layer:
    """While draining only questions are answered."""

    def layer(app: ASGIApp) -> ASGIApp:
        async def gated(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["method"] not in _SAFE_METHODS and is_draining():
                raise Refused("SHUTTING_DOWN", "The manager is shutting down", retry_after=1)
            await app(scope, receive, send)

        return gated

    return layer


def host_and_origin(settings: HttpSettings) -> Layer:
    """No web page may drive a manager it merely can reach: control_api §10, browser safety."""
    hosts = {host.lower() for host in settings.allowed_hosts} | {"localhost"}
    origins = frozenset(settings.cors_origins)

    def layer(app: ASGIApp) -> ASGIApp:
        async def checked(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                return await app(scope, receive, send)
            host = wire.header(scope, b"host")
            if settings.is_loopback and host is not None and not _is_plain_host(host, hosts):
                raise Refused("HOST_NOT_ALLOWED", "This Host is not allowed; see allowed_hosts")
            origin = wire.header(scope, b"origin")
            if origin is None:
                return await app(scope, receive, send)
            if origin not in origins:
                raise Refused("ORIGIN_NOT_ALLOWED", "This Origin is not allowed; see cors_origins")
            send = _with_headers(
                send,
                {
                    "access-control-allow-origin": origin,
                    "access-control-expose-headers": _EXPOSED,
                    "vary": "Origin",
                },
            )
            if scope["method"] == "OPTIONS" and wire.header(scope, b"access-control-request-method"):
                asked = wire.header(scope, b"access-control-request-headers") or "content-type"
                return await wire.answer(
                    send,
                    204,
                    headers=(
                        ("access-control-allow-methods", "GET, POST, PATCH, DELETE"),
                        ("access-control-allow-headers", asked),
                        ("access-control-max-age", "600"),
                    ),
                )
            return await app(scope, receive, send)

        return checked

    return layer


def _head_problem(scope: Scope) -> Refused | None:
    headers = scope["headers"]
    raw_path: bytes = scope.get("raw_path") or b""
    size = len(raw_path) + len(scope["query_string"]) + sum(len(name) + len(value) + 4 for name, value in headers)
    if size > MAX_HEAD_BYTES:
        return Refused("HEADERS_TOO_LARGE", "The request line and headers are larger than 64 KiB")
    names = [name for name, _ in headers]
    if names.count(b"content-length") + names.count(b"transfer-encoding") > 1:
        return Refused("INVALID_PATH", "The length of the body is given twice", headers=(("connection", "close"),))
    if (hosts := names.count(b"host")) > 1 or (hosts == 0 and scope["http_version"] == "1.1"):
        return Refused(
            "INVALID_PATH", "The Host header is missing or given twice", headers=(("connection", "close"),)
        )
    path: str = scope["path"]
    segments = path.split("/")[1:]
    if segments and segments[-1] == "":
        segments.pop()
    is_odd = (
        not path.startswith("/")
        or any(segment in ("", ".", "..") for segment in segments)
        or any(char in "\\%\ufffd" or ord(char) < 32 or ord(char) == 127 for char in path)
    )
    return Refused("INVALID_PATH", "The path has an empty, relative or undecodable part") if is_odd else None


def _is_plain_host(host: str, allowed: set[str]) -> bool:
    if host.startswith("["):
        name = host[1:].partition("]")[0]
    else:
        name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
    if name.lower() in allowed or host.lower() in allowed:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _tell(error: BaseException, scope: Scope, send: Send) -> None:
    rendered = errors.render(error, errors.dialect_of(scope["path"]), request_id_of(scope))
    await wire.answer(send, rendered.status, rendered.body, headers=rendered.headers)


def _with_headers(send: Send, headers: dict[str, str]) -> Send:
    async def adding(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return adding


def _uuid7() -> str:
    """A new id whose text sorts by time."""
    bits = time.time_ns() // 1_000_000 << 80 | 0x7 << 76 | secrets.randbits(12) << 64
    text = f"{bits | 0b10 << 62 | secrets.randbits(62):032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
