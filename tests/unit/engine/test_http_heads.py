"""Clients that send too slowly, or heads without end."""

import asyncio
import contextlib
import gc
import socket
import struct
import weakref

import pytest
import uvicorn

from tei_engine.server import http_heads

HEAD = b"POST / HTTP/1.1\r\nhost: x\r\n"


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        yield


async def app(scope, receive, send):
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass
    if scope["path"] == "/slow":
        await asyncio.sleep(1.0)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
async def connect(monkeypatch):
    """Connections to a server that looks at them every 0.2 s and expects 100 bytes by then."""
    monkeypatch.setattr(http_heads, "PERIOD", 0.2)
    monkeypatch.setattr(http_heads, "SLOWEST", 500)
    config = uvicorn.Config(
        app, http=http_heads.BoundedHeads, ws="none", lifespan="off", log_config=None, access_log=False
    )
    server, opened = Server(config), []
    listening = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started:
        await asyncio.sleep(0.01)

    async def open_one():
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        opened.append(writer)
        return reader, writer

    yield open_one
    for writer in opened:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    server.should_exit = True
    await task


async def hung_up(reader):
    async with asyncio.timeout(3):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    return True


async def drip(writer, piece):
    with contextlib.suppress(ConnectionError):
        while not writer.is_closing():
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"", b""),
        (HEAD, b""),
        (HEAD, b"a: b\r\n"),
        (HEAD + b"content-length: 1000\r\n\r\n", b"x"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["silence", "half a head", "a trickling head", "a trickling body", "trickling chunks"],
)
async def test_a_client_that_trickles_is_hung_up_on(connect, start, piece):
    reader, writer = await connect()
    writer.write(start)
    dripping = asyncio.create_task(drip(writer, piece))
    assert await hung_up(reader)
    dripping.cancel()


async def test_trailers_without_end_are_hung_up_on(connect):
    reader, writer = await connect()
    writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n")
    with contextlib.suppress(ConnectionError):
        for _ in range(1000):
            writer.write(b"a: " + b"b" * 1000 + b"\r\n")
            await writer.drain()
    assert await hung_up(reader)


async def test_steady_senders_slow_answers_and_idle_connections_are_left_alone(connect):
    reader, writer = await connect()
    writer.write(HEAD + b"content-length: 2000\r\n\r\n")
    for _ in range(20):
        writer.write(b"x" * 100)
        await asyncio.sleep(0.04)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    await asyncio.sleep(0.6)
    writer.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_a_connection_that_is_reset_is_let_go_at_once(connect):
    """Its keep-alive timer would hold it for 75 s, and clients that give up can be many."""
    reader, writer = await connect()
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    [protocol] = [each for each in gc.get_objects() if isinstance(each, http_heads.BoundedHeads)]
    watched = weakref.ref(protocol)
    del protocol
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    async with asyncio.timeout(5):
        while watched() is not None:
            await asyncio.sleep(0.01)
            gc.collect()
