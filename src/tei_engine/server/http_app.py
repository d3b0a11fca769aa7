"""The HTTP listener as a plain ASGI application: a table of routes, and what surrounds each of them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from tei_engine import errors
from tei_engine.batching.jobs import Want
from tei_engine.server import describe, error_table, http_requests
from tei_engine.server.http_requests import BodyError
from tei_engine.server.service import Answer, Options, Phase, Service, internal_error

_log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_JSON = (b"content-type", b"application/json")
_TEXT = (b"content-type", b"text/plain; charset=utf-8")
_PROMETHEUS = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
_OPENAI_PREFIXES = ("/v1/", "/v2/", "/embeddings")
_UNCOUNTED = ("/tokenize", "/decode")
"""Routes that need no model, which is what `te_request_count` counts."""

_NUMPY = orjson.OPT_SERIALIZE_NUMPY


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


class HttpApp:
    """The ASGI application. Every request gets exactly one reply, unless its connection is gone."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._settings = service.settings
        embed, openai = self._embed, self._openai
        rerank = self._refuse("model is not a re-ranker model")
        self._routes: dict[str, dict[str, Handler]] = {
            "/": {"GET": self._health, "POST": embed},
            "/health": {"GET": self._health},
            "/ping": {"GET": self._health},
            "/metrics": {"GET": self._metrics},
            "/info": {"GET": self._info},
            "/v1/models": {"GET": self._models},
            "/embed": {"POST": embed},
            "/invocations": {"POST": embed},
            "/embed_all": {"POST": self._embed_all},
            "/embed_sparse": {"POST": self._refuse("Model is not an embedding model with SPLADE pooling")},
            "/predict": {"POST": self._refuse("Model is not a classifier model")},
            "/rerank": {"POST": rerank},
            "/v1/rerank": {"POST": rerank},
            "/v2/rerank": {"POST": rerank},
            "/embeddings": {"POST": openai},
            "/v1/embeddings": {"POST": openai},
            "/tokenize": {"POST": self._tokenize},
            "/decode": {"POST": self._decode},
        }
        self._unguarded = {self._health, self._metrics}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI 3)."""
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        method, path, headers = scope["method"], scope["path"], dict(scope["headers"])
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
            return Reply(error.status, error.message.encode(), [_TEXT])
        except errors.RequestError as error:
            return _error_reply(error, call.path)
        except Exception as error:  # a fault of ours costs one answer, not the process
            return _error_reply(internal_error(error), call.path)

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
        if handler not in self._unguarded:
            self._check_key(headers)
            if self._service.phase is Phase.LOADING:
                raise _Refused(_error_reply(errors.unhealthy(Phase.LOADING.value), path))
            if method == "POST" and not _is_json(headers.get(b"content-type", b"")):
                text = b"Expected request with `Content-Type: application/json`"
                raise _Refused(Reply(415, text, [_TEXT]))
        return handler

    def _check_key(self, headers: Mapping[bytes, bytes]) -> None:
        key = self._settings.api_key
        if key is not None:
            expected = b"Bearer " + key.encode()
            if not hmac.compare_digest(headers.get(b"authorization", b""), expected):
                raise _Refused(Reply(401))

    async def _read_body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        limit = self._settings.payload_limit
        too_long = Reply(413, b"Failed to buffer the request body: length limit exceeded", [_TEXT, _CLOSE])
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

    async def _health(self, call: Call) -> Reply:
        self._service.check_health()
        return Reply()

    async def _metrics(self, call: Call) -> Reply:
        return Reply(body=self._service.metrics.render(), headers=[_PROMETHEUS])

    async def _info(self, call: Call) -> Reply:
        return _json(describe.info(self._service))

    async def _models(self, call: Call) -> Reply:
        return _json({"object": "list", "data": [self._model_object()]})

    async def _model(self, call: Call) -> Reply:
        name = call.path.removeprefix("/v1/models/")
        if name in (self._settings.served_model_name, self._settings.model_id):
            return _json(self._model_object())
        body = {"message": f"model {name} is not served here", "code": 404, "type": "NotFound"}
        return Reply(404, orjson.dumps(body), [_JSON])

    def _model_object(self) -> dict[str, Any]:
        return {
            "id": self._settings.served_model_name,
            "object": "model",
            "created": self._service.started,
            "owned_by": "tei-engine",
            "root": self._settings.model_id,
        }

    async def _embed(self, call: Call) -> Reply:
        body = http_requests.read_object(call.body)
        inputs, batch = http_requests.read_inputs(body, "inputs")
        answer = await self._service.embed(inputs, http_requests.read_options(body), batch=batch)
        if _prefers_binary(call.headers.get(b"accept", b"")):
            rows, size = answer.vectors.shape
            headers = [
                (b"content-type", b"application/octet-stream"),
                (b"x-embedding-shape", f"{rows},{size}".encode()),
                (b"x-embedding-dtype", b"f32"),
            ]
            return Reply(200, answer.vectors.astype("<f4", copy=False).tobytes(), headers + _cost(answer))
        return Reply(200, orjson.dumps(answer.vectors, option=_NUMPY), [_JSON, *_cost(answer)])

    async def _embed_all(self, call: Call) -> Reply:
        body = http_requests.read_object(call.body)
        inputs, batch = http_requests.read_inputs(body, "inputs")
        options = http_requests.read_options({**body, "normalize": True, "dimensions": None})
        answer = await self._service.embed(inputs, options, batch=batch, want=Want.TOKENS)
        return Reply(200, orjson.dumps(list(answer.tokens), option=_NUMPY), [_JSON, *_cost(answer)])

    async def _openai(self, call: Call) -> Reply:
        body = http_requests.read_object(call.body)
        inputs, batch = http_requests.read_inputs(body, "input")
        encoding = http_requests.read_encoding_format(body)
        http_requests.check_unused_texts(body, "model", "user")
        options = Options(dimensions=http_requests.read_dimensions(body))
        answer = await self._service.embed(inputs, options, batch=batch)
        rows: Any = answer.vectors
        if encoding == "base64":
            rows = [base64.b64encode(row.astype("<f4", copy=False).tobytes()).decode() for row in answer.vectors]
        used = answer.timings.tokens
        shown = {
            "object": "list",
            "data": [{"object": "embedding", "embedding": row, "index": index} for index, row in enumerate(rows)],
            "model": self._settings.served_model_name,
            "usage": {"prompt_tokens": used, "total_tokens": used},
        }
        return Reply(200, orjson.dumps(shown, option=_NUMPY), [_JSON, *_cost(answer)])

    async def _tokenize(self, call: Call) -> Reply:
        body = http_requests.read_object(call.body)
        texts, batch = http_requests.read_texts(body, "inputs")
        name = http_requests.read_options({"prompt_name": body.get("prompt_name")}).prompt_name
        special = http_requests.read_flag(body, "add_special_tokens", default=True)
        return _json(
            await self._service.tokenize(texts, batch=batch, add_special_tokens=special, prompt_name=name)
        )

    async def _decode(self, call: Call) -> Reply:
        body = http_requests.read_object(call.body)
        ids, batch = http_requests.read_id_lists(body, "ids")
        skip = http_requests.read_flag(body, "skip_special_tokens", default=True)
        return _json(await self._service.decode(ids, batch=batch, skip_special_tokens=skip))

    def _refuse(self, message: str) -> Handler:
        """A route of another kind of model."""

        async def handler(call: Call) -> Reply:
            http_requests.read_object(call.body)
            self._service.count_refused("model_type")
            raise errors.backend(message, label="model_type")

        return handler


class MetricsApp:
    """The separate metrics listener: `GET /health` → `OK`, every other path the metrics."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI 3)."""
        if scope["type"] != "http":
            return
        body = b"OK" if scope["path"] == "/health" else self._service.metrics.render()
        headers = [_PROMETHEUS, (b"content-length", str(len(body)).encode())]
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


def _prefers_binary(accept: bytes) -> bool:
    """Whether `application/octet-stream` is named and liked better than JSON; `*/*` means JSON."""
    if b"application/octet-stream" not in accept:
        return False
    liking = {}
    for part in accept.decode("latin-1").lower().split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        quality = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
        try:
            liking[kind] = float(quality)
        except ValueError:
            liking[kind] = 0.0
    json = max(
        liking.get("application/json", 0.0), liking.get("application/*", 0.0) / 2, liking.get("*/*", 0.0) / 2
    )
    return liking.get("application/octet-stream", 0.0) > json


def _cost(answer: Answer) -> Headers:
    """The `x-*` headers of a computed answer; durations are whole milliseconds."""
    timings = answer.timings
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


def _json(value: Any) -> Reply:
    return Reply(200, orjson.dumps(value), [_JSON])


def _error_reply(error: errors.RequestError, path: str) -> Reply:
    status = error_table.HTTP_STATUS[error.kind]
    is_openai = path.startswith(_OPENAI_PREFIXES)
    body = error_table.openai_body(error) if is_openai else error_table.native_body(error)
    headers = [_JSON]
    if status in error_table.RETRY_AFTER:
        headers.append((b"retry-after", b"1"))
    return Reply(status, orjson.dumps(body), headers)
