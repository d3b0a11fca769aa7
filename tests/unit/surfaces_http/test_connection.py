"""The HTTP door against clients that never finish, and against those that offer another protocol."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvicorn

from tei_manager.surfaces.http import connection

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
HEAD = b"POST / HTTP/1.1\r\nhost: x\r\n"


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body"):
            break
    if scope["path"] == "/slow":
        await asyncio.sleep(1.0)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def connect(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Connect]:
    """Connections to a real server that looks at them every 0.2 s and expects 100 bytes by then."""
    monkeypatch.setattr(connection, "LOOK_EVERY_SECS", 0.2)
    monkeypatch.setattr(connection, "SLOWEST_BYTES_PER_SEC", 500)
    config = uvicorn.Config(
        echo, http=connection.GuardedConnection, ws="none", lifespan="off", log_config=None, access_log=False
    )
    server, writers = Server(config), []
    listener = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)

    async def open_one() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writers.append(writer)
        return reader, writer

    yield open_one
    for writer in writers:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    server.should_exit = True
    await task


async def all_that_comes(reader: asyncio.StreamReader) -> bytes:
    """Everything until the server hangs up."""
    async with asyncio.timeout(5):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


@pytest.mark.parametrize(
    "start", [b"", HEAD, HEAD + b"content-length: 9\r\n\r\n", HEAD + b"transfer-encoding: chunked\r\n\r\n"]
)
async def test_a_client_that_falls_silent_in_the_middle_is_hung_up_on(connect: Connect, start: bytes) -> None:
    reader, writer = await connect()
    writer.write(start)
    assert await all_that_comes(reader) == b""


async def test_a_slow_answer_is_waited_for(connect: Connect) -> None:
    reader, writer = await connect()
    writer.write(b"GET /slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert (await all_that_comes(reader)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "start", [HEAD, HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n"], ids=["headers", "trailers"]
)
async def test_headers_and_trailers_have_an_end(connect: Connect, start: bytes) -> None:
    reader, writer = await connect()
    writer.write(start)
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < 8 * connection.HEAD_LIMIT_BYTES and not writer.is_closing():
            writer.write(b"a: " + b"b" * 4096 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0)
            sent += 4101
    assert b"200" not in await all_that_comes(reader)
    assert writer.is_closing() or reader.at_eof()


async def test_an_offer_of_http2_is_ignored_and_the_body_arrives(connect: Connect) -> None:
    reader, writer = await connect()
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAA\r\n"
    writer.write(HEAD + offer + b"content-length: 5\r\n\r\nhello")
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(5) == b"hello"
