"""The HTTP listener as a plain ASGI application: a table of routes, and what surrounds each of them."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from tei_engine import errors
from tei_engine.server import tracing
from tei_engine.server.http_compatible import CompatibleRoutes
from tei_engine.server.http_native import NativeRoutes
from tei_engine.server.http_operations import Operations
from tei_engine.server.http_reply import PROMETHEUS, TEXT, Call, Handler, Headers, Reply, error_reply
from tei_engine.server.http_requests import BodyError
from tei_engine.server.service import Phase, Service

_log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_UNCOUNTED = ("/tokenize", "/decode")
"""Routes that need no model, which is what `te_request_count` counts."""


class HttpApp:
    """The ASGI application. Every request gets exactly one reply, unless its connection is gone."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._settings = service.settings
        native, compatible, operations = NativeRoutes(service), CompatibleRoutes(service), Operations(service)
        self._routes: dict[str, dict[str, Handler]] = native.table()
        for path, handlers in (compatible.table() | operations.table()).items():
            self._routes.setdefault(path, {}).update(handlers)
        self._model = compatible.model
        self._open = operations.open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI 3)."""
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        method, path, headers = scope["method"], scope["path"], dict(scope["headers"])
        tracing.follow(headers.get(b"traceparent"))
        watch: asyncio.Task[None] | None = None
        try:
            handler = self._admit(method, path, headers)
            with self._service.in_flight():
                body = b""
                if method == "POST":
                    body = await self._read_body(headers, receive)
                    watch = _watch_for_disconnect(receive)
                try:
                    reply = await self._guarded(handler, Call(path, headers, body))
                finally:
                    if watch is not None:
                        watch.cancel()  # the connection also "disconnects" when its answer is complete
                await self._send(reply, headers, send)
        except _Refused as refused:
            reply = refused.reply
            await self._send(reply, headers, send)
        except _Gone:
            return
        except asyncio.CancelledError:
            if watch is not None and watch.done() and not watch.cancelled():
                return  # the client has gone: its entries are dropped, and there is nobody to answer
            raise
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s %s %d %.1f ms", method, path, reply.status, (time.perf_counter() - began) * 1000)

    async def _guarded(self, handler: Handler, call: Call) -> Reply:
        """The handler's reply, or the one its error stands for."""
        try:
            return await handler(call)
        except BodyError as error:
            if call.path not in _UNCOUNTED:
                self._service.count_refused("validation")
            return Reply(error.status, error.message.encode(), [TEXT])
        except errors.RequestError as error:
            errors.let_go(error)
            return error_reply(error, call.path)
        except Exception as error:  # a fault of ours costs one answer, not the process
            return error_reply(errors.internal(error), call.path)

    def _admit(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> Handler:
        """The handler of a route that may be entered now; anything else is refused."""
        handlers = self._routes.get(path)
        if handlers is None and path.startswith("/v1/models/"):
            handlers = {"GET": self._model}
        if handlers is None:
            raise _Refused(Reply(404))
        if method == "OPTIONS":
            raise _Refused(Reply(200, headers=_PREFLIGHT))
        method = "GET" if method == "HEAD" and "GET" in handlers else method
        handler = handlers.get(method)
        if handler is None:
            raise _Refused(Reply(405, headers=[(b"allow", ",".join(handlers).encode())]))
        if handler not in self._open:
            self._check_key(headers)
            if self._service.phase is Phase.LOADING:
                raise _Refused(error_reply(errors.unhealthy(Phase.LOADING.value), path))
            if method == "POST" and not _is_json(headers.get(b"content-type", b"")):
                text = b"Expected request with `Content-Type: application/json`"
                raise _Refused(Reply(415, text, [TEXT]))
        return handler

    def _check_key(self, headers: Mapping[bytes, bytes]) -> None:
        key = self._settings.api_key
        if key is not None:
            expected = b"Bearer " + key.encode()
            if not hmac.compare_digest(headers.get(b"authorization", b""), expected):
                raise _Refused(Reply(401))

    async def _read_body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        limit = self._settings.payload_limit
        # not closed: a client that is still sending would see a reset instead of this answer
        too_long = Reply(413, b"Failed to buffer the request body: length limit exceeded", [TEXT])
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > limit:
            raise _Refused(too_long)
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise _Refused(too_long)
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _send(self, reply: Reply, headers: Mapping[bytes, bytes], send: Send) -> None:
        shown = [*reply.headers, (b"content-length", str(len(reply.body)).encode())]
        origin = headers.get(b"origin")
        if origin is not None:
            allowed = self._settings.cors_allow_origin
            if not allowed:
                shown.append((b"access-control-allow-origin", b"*"))
            elif origin.decode("latin-1") in allowed:
                shown += [(b"access-control-allow-origin", origin), (b"vary", b"origin")]
        if self._service.phase is Phase.DRAINING and _CLOSE not in shown:
            shown.append(_CLOSE)
        with contextlib.suppress(OSError):  # the connection may close between any two lines
            await send({"type": "http.response.start", "status": reply.status, "headers": shown})
            await send({"type": "http.response.body", "body": reply.body})


class MetricsApp:
    """The separate metrics listener: `GET /health` → `OK`, every other path the metrics."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI 3)."""
        if scope["type"] != "http":
            return
        body = b"OK" if scope["path"] == "/health" else self._service.metrics.render()
        headers = [PROMETHEUS, (b"content-length", str(len(body)).encode())]
        with contextlib.suppress(OSError):
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})


class _Gone(Exception):
    """The client hung up before its request was complete."""


class _Refused(Exception):
    """A request that gets its reply before any handler sees it."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


_CLOSE = (b"connection", b"close")
_PREFLIGHT: Headers = [
    (b"access-control-allow-methods", b"GET,POST"),
    (b"access-control-allow-headers", b"content-type,authorization"),
]


def _watch_for_disconnect(receive: Receive) -> asyncio.Task[None]:
    """Cancel the calling task when its client goes away."""
    caller = asyncio.current_task()
    assert caller is not None

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        caller.cancel()

    return asyncio.create_task(watch(), name="disconnect-watch")


def _is_json(content_type: bytes) -> bool:
    kind = content_type.partition(b";")[0].strip().lower()
    return kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json"))
