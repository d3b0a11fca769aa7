"""A small HTTP/1.1 server on httptools: it starts in a tenth of the time of a general one.

Serves keep-alive, pipelined and chunked requests, `Expect: 100-continue`, streamed answers and a graceful stop; a
client that goes away cancels the handler of its request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import unquote

import httptools

_READ_AHEAD = 16  # requests of one connection that wait for their turn


@dataclass(slots=True)
class Request:
    """One request, its body read whole; `too_large` = the body went over the limit and was thrown away."""

    method: str
    path: str
    headers: dict[str, str]
    keep_alive: bool
    body: bytes = b""
    too_large: bool = False


@dataclass(slots=True)
class Response:
    """An answer: bytes, or an iterator of pieces that go out one by one.

    An iterator that raises ends the connection without the end mark of the body.
    """

    status: int = 200
    body: bytes | AsyncIterator[bytes] = b""
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Awaitable[Response]]


class HttpServer:
    """A handler behind any number of listening sockets."""

    def __init__(self, handler: Handler, *, body_limit: int) -> None:
        self.handler = handler
        self.body_limit = body_limit
        self.closing = False
        self.connections: set[_Connection] = set()
        self._listeners: list[asyncio.Server] = []

    async def listen(self, sock: object) -> None:
        """Accept connections on a bound socket, which from now on belongs to this server."""
        loop = asyncio.get_running_loop()
        self._listeners.append(await loop.create_server(lambda: _Connection(self), sock=sock, backlog=1024))  # type: ignore[call-overload]

    async def stop(self, within: float | None, last_words: Response) -> None:
        """Accept no more, let running requests finish; those left after `within` seconds get `last_words`."""
        self.closing = True
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections):
            connection.close_when_idle()
        if not await self._empty(within):
            for connection in list(self.connections):
                connection.cut(last_words)
            await self._empty(1.0)

    async def _empty(self, within: float | None) -> bool:
        waiting = [connection.closed for connection in self.connections]
        if not waiting:
            return True
        _, pending = await asyncio.wait(waiting, timeout=within)
        return not pending


class _Connection(asyncio.Protocol):
    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None
        self._last_words: Response | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._begin()

    def _begin(self) -> None:
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._size = 0

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._writable.set()
        if self._task:
            self._task.cancel()
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # no other protocol is spoken here: the request is answered as it is
        except httptools.HttpParserError:
            self._transport.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self._transport.close()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # httptools calls these

    def on_message_begin(self) -> None:
        self._begin()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._headers.get("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size <= self._server.body_limit:
            self._body.append(body)

    def on_message_complete(self) -> None:
        too_large = self._size > self._server.body_limit
        request = Request(
            self._parser.get_method().decode(),
            unquote(self._url.split(b"?", 1)[0].decode("latin-1")),
            self._headers,
            self._parser.should_keep_alive(),
            b"" if too_large else b"".join(self._body),
            too_large,
        )
        self._waiting.append(request)
        if len(self._waiting) > _READ_AHEAD:
            self._transport.pause_reading()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._serve())

    # the server calls these

    def close_when_idle(self) -> None:
        if self._task is None:
            self._transport.close()

    def cut(self, last_words: Response) -> None:
        self._last_words = last_words
        if self._task:
            self._task.cancel()

    async def _serve(self) -> None:
        """Answer the waiting requests, one after the other."""
        started = False
        try:
            while self._waiting:
                request = self._waiting.popleft()
                self._transport.resume_reading()
                started = False
                response = await self._server.handler(request)
                keep = request.keep_alive and not self._server.closing
                started = True
                await self._write(response, keep, head=request.method == "HEAD")
                if not keep:
                    break
        except asyncio.CancelledError:
            if self._last_words and not started:
                await self._write(self._last_words, False, head=False)
            self._transport.close()
        except Exception:  # a handler's answer broke off on purpose: so does the connection
            self._transport.close()
        finally:
            self._task = None
            if self._server.closing:
                self._transport.close()

    async def _write(self, response: Response, keep: bool, *, head: bool) -> None:
        whole = isinstance(response.body, bytes)
        lines = [f"HTTP/1.1 {response.status} {_reason(response.status)}"]
        lines += [f"{name}: {value}" for name, value in response.headers.items()]
        lines.append(f"content-length: {len(response.body)}" if whole else "transfer-encoding: chunked")  # type: ignore[arg-type]
        lines.append(f"connection: {'keep-alive' if keep else 'close'}")
        start = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        if isinstance(response.body, bytes):
            self._transport.write(start if head else start + response.body)
        else:
            self._transport.write(start)
            async for piece in response.body:
                self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await self._writable.wait()
            self._transport.write(b"0\r\n\r\n")
        await self._writable.wait()
        if not keep:
            self._transport.close()


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
