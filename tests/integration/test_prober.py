"""Probes against real sockets: the testing engine, and peers that behave oddly."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from tei_manager.adapters.prober import EngineProber
from tei_manager.engines.base import Ask, Probe
from tei_manager.ports.prober import Seen

HOST = "127.0.0.1"
ALL = tuple(Ask)


@pytest.fixture
async def prober() -> AsyncIterator[EngineProber]:
    prober = EngineProber()
    yield prober
    await prober.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def engine(*flags: str) -> Iterator[tuple[int, int]]:
    """A running testing engine: its main and its second port."""
    port, grpc_port = free_port(), free_port()
    argv = [sys.executable, "-m", "tei_manager.testing.engine", "--port", str(port), "--hostname", HOST]
    argv += [flag.replace("GRPC_PORT", str(grpc_port)) for flag in flags]
    environment = {name: value for name, value in os.environ.items() if name == "PATH"}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield port, grpc_port
        finally:
            process.kill()


async def ready(prober: EngineProber, ask: Ask, port: int, key: str | None = None) -> Seen:
    """The first answer that is not about a start: refused until then, as nothing listens."""
    async with asyncio.timeout(20):
        while True:
            seen = await prober.ask(HOST, Probe(ask, port), timeout_secs=5, key=key)
            if not seen.refused:
                return seen
            assert not seen.ok
            assert seen.text == "connection refused"
            await asyncio.sleep(0.02)


async def test_an_engine_of_both_protocols(prober: EngineProber) -> None:
    with engine("--grpc-port", "GRPC_PORT") as (port, grpc_port):
        assert await ready(prober, Ask.HTTP_HEALTH, port) == Seen(True)
        assert await ready(prober, Ask.GRPC_INFO, grpc_port) == Seen(True)
        assert await prober.ask(HOST, Probe(Ask.HTTP_WARM_UP, port), timeout_secs=5) == Seen(True)
        assert await prober.ask(HOST, Probe(Ask.GRPC_WARM_UP, grpc_port), timeout_secs=5) == Seen(True)
        assert await prober.ask("0.0.0.0", Probe(Ask.HTTP_HEALTH, port, "/info"), timeout_secs=5) == Seen(True)
        seen = await prober.ask(HOST, Probe(Ask.HTTP_HEALTH, port, "/nowhere"), timeout_secs=5)
        assert (seen.ok, seen.caller_fault) == (False, True)
        assert seen.text.startswith("HTTP 404")
        # the wrong protocol on the right port
        seen = await prober.ask(HOST, Probe(Ask.HTTP_HEALTH, grpc_port), timeout_secs=5)
        assert not seen.ok
        assert seen.text in ("does not speak HTTP", "closed the connection without an answer")
        seen = await prober.ask(HOST, Probe(Ask.GRPC_INFO, port), timeout_secs=5)
        assert seen == Seen(False, "does not speak gRPC")
        prober.forget(HOST, port)
        assert await prober.ask(HOST, Probe(Ask.HTTP_HEALTH, port), timeout_secs=5) == Seen(True)


@pytest.mark.parametrize(
    "kind", [("--pooling", "splade"), ("--model-type", "classifier"), ("--model-type", "reranker")]
)
async def test_every_kind_of_model_can_be_warmed_up(prober: EngineProber, kind: tuple[str, str]) -> None:
    with engine("--grpc-port", "GRPC_PORT", *kind) as (port, grpc_port):
        await ready(prober, Ask.HTTP_HEALTH, port)
        assert await prober.ask(HOST, Probe(Ask.HTTP_WARM_UP, port), timeout_secs=5) == Seen(True)
        await ready(prober, Ask.GRPC_INFO, grpc_port)
        assert await prober.ask(HOST, Probe(Ask.GRPC_WARM_UP, grpc_port), timeout_secs=5) == Seen(True)


async def test_an_engine_that_answers_while_loading(prober: EngineProber) -> None:
    with engine("--grpc-port", "GRPC_PORT", "--ready-after", "60", "--loading-answers") as (port, grpc_port):
        assert await ready(prober, Ask.HTTP_HEALTH, port) == Seen(False, "model is loading")
        assert await ready(prober, Ask.GRPC_INFO, grpc_port) == Seen(False, "model is loading")


@pytest.mark.parametrize("status", [424, 422, 500])
async def test_what_counts_as_warm(prober: EngineProber, status: int) -> None:
    flags = ("--grpc-port", "GRPC_PORT", "--error-every", "1", "--error-status", str(status))
    with engine(*flags) as (port, grpc_port):
        await ready(prober, Ask.HTTP_HEALTH, port)
        await ready(prober, Ask.GRPC_INFO, grpc_port)
        for probe in (Probe(Ask.HTTP_WARM_UP, port), Probe(Ask.GRPC_WARM_UP, grpc_port)):
            seen = await prober.ask(HOST, probe, timeout_secs=5)
            assert (seen.ok, seen.caller_fault) == (False, status == 422)


async def test_the_key_is_shown(prober: EngineProber) -> None:
    with engine("--grpc-port", "GRPC_PORT", "--api-key", "secret") as (port, grpc_port):
        await ready(prober, Ask.HTTP_HEALTH, port, "secret")
        assert await ready(prober, Ask.GRPC_INFO, grpc_port, "secret") == Seen(True)
        for probe in (Probe(Ask.HTTP_WARM_UP, port), Probe(Ask.GRPC_WARM_UP, grpc_port)):
            assert await prober.ask(HOST, probe, timeout_secs=5, key="secret") == Seen(True)
            seen = await prober.ask(HOST, probe, timeout_secs=5, key="wrong")
            assert not seen.ok
            assert "secret" not in seen.text


async def test_an_engine_that_comes_late_is_seen_at_once(prober: EngineProber) -> None:
    """A refused gRPC channel must not make later questions wait."""
    with engine("--protocol", "grpc", "--ready-after", "1") as (port, _):
        assert await ready(prober, Ask.GRPC_INFO, port) == Seen(True)


# -- odd peers ----------------------------------------------------------------------------------------------------

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def peer(behave: Behaviour) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await behave(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def saying(*parts: bytes) -> Behaviour:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        for part in parts:
            writer.write(part)
            await writer.drain()

    return behave


@pytest.mark.parametrize("ask", ALL)
async def test_nothing_listens(prober: EngineProber, ask: Ask) -> None:
    seen = await prober.ask(HOST, Probe(ask, free_port()), timeout_secs=2)
    assert seen == Seen(False, "connection refused", refused=True)


@pytest.mark.parametrize("ask", ALL)
async def test_accepts_and_never_answers(prober: EngineProber, ask: Ask) -> None:
    over = asyncio.Event()

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()

    async with peer(silence) as port:
        loop = asyncio.get_running_loop()
        began = loop.time()
        seen = await prober.ask(HOST, Probe(ask, port), timeout_secs=0.3)
        assert seen == Seen(False, "no answer within 0.3s")
        assert loop.time() - began < 1.0
        over.set()


@pytest.mark.parametrize("ask", ALL)
@pytest.mark.parametrize("garbage", [b"", b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + b"\0" * 18, b"hello\n" * 100])
async def test_sends_garbage_or_closes(prober: EngineProber, ask: Ask, garbage: bytes) -> None:
    async with peer(saying(garbage)) as port:
        seen = await prober.ask(HOST, Probe(ask, port), timeout_secs=2)
    assert not seen.ok
    assert not seen.refused
    assert not seen.caller_fault
    assert seen.text
    if ask is Ask.HTTP_HEALTH:
        assert seen.text == ("does not speak HTTP" if garbage else "closed the connection without an answer")


def answer(status: str, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (answer("204 No Content", b""), Seen(True)),
        (answer("307 Temporary Redirect\r\nLocation: /x", b""), Seen(False, "HTTP 307")),
        (answer("503 Busy", b'{"error":"shutting down","error_type":"Unhealthy"}'), Seen(False, "shutting down")),
        (answer("503 Busy", b""), Seen(False, "HTTP 503")),
        (answer("500 Oops", b"a\nb"), Seen(False, "HTTP 500: a b")),
        (answer("400 Bad", b'{"error":{"message":"no"}}'), Seen(False, "HTTP 400: no", caller_fault=True)),
        (
            answer("424 F", b'{"message":"Backend error: CUDA is not well"}'),
            Seen(False, "HTTP 424: Backend error: CUDA is not well"),
        ),
        (answer("200 OK", b"x", 10), Seen(False, "broke off its answer")),
        (answer("200 OK", b"x" * (3 << 20)), Seen(True)),
    ],
)
async def test_http_answers(prober: EngineProber, reply: bytes, expected: Seen) -> None:
    async with peer(saying(reply)) as port:
        assert await prober.ask(HOST, Probe(Ask.HTTP_HEALTH, port, "/h?x=1"), timeout_secs=5) == expected


async def test_http_connections_are_kept_open(prober: EngineProber) -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async def until_eof(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await serve(reader, writer)

    async with peer(until_eof) as port:
        for _ in range(3):
            assert (await prober.ask(HOST, Probe(Ask.HTTP_HEALTH, port), timeout_secs=2)).ok
        assert connections == 1
        prober.forget(HOST, port)
        assert (await prober.ask(HOST, Probe(Ask.HTTP_HEALTH, port), timeout_secs=2)).ok
        assert connections == 2
        await prober.close()


async def test_no_proxy_is_asked(prober: EngineProber, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://{HOST}:9")
    async with peer(saying(answer("200 OK", b""))) as port:
        assert (await prober.ask(HOST, Probe(Ask.HTTP_HEALTH, port), timeout_secs=2)).ok


async def test_no_socket_is_left_open() -> None:
    def sockets() -> int:
        count = 0
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                count += str(entry.readlink()).startswith("socket:")
        return count

    if not Path("/proc/self/fd").exists():
        pytest.skip("looks at /proc")
    with engine("--grpc-port", "GRPC_PORT") as (port, grpc_port):
        warm = EngineProber()  # grpcio keeps sockets of its own from its first use on
        await ready(warm, Ask.GRPC_INFO, grpc_port)
        await ready(warm, Ask.HTTP_HEALTH, port)
        await warm.close()
        before = sockets()
        prober = EngineProber()
        for _ in range(3):
            assert (await prober.ask(HOST, Probe(Ask.GRPC_INFO, grpc_port), timeout_secs=5)).ok
            assert (await prober.ask(HOST, Probe(Ask.HTTP_HEALTH, port), timeout_secs=5)).ok
        await prober.close()
        async with asyncio.timeout(5):
            while sockets() > before:
                await asyncio.sleep(0.02)
