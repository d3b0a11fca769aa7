"""aiohttp behind its port, against a raw socket that does what it is told."""

import asyncio
import contextlib

import pytest

from tei_manager.adapters.upstream.http import HttpUpstreams
from tei_manager.domain import errors
from tei_manager.domain.instance import EngineKind, Protocol
from tei_manager.domain.target import Endpoint
from tei_manager.ports.http_upstream import Wire

EMBED = Wire("POST", "/embed", b'{"inputs":"x"}', {"content-type": "application/json"})


class RawServer:
    """Answers every request on every connection with `answer`; None = hangs, b"" = closes."""

    def __init__(self):
        self.answer, self.requests, self.connections, self.closed = b"", [], 0, asyncio.Event()

    async def __call__(self, reader, writer):
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                body = await reader.readexactly(int(length[0].partition(b":")[2])) if length else b""
                self.requests.append((head, body))
                if self.answer is None:
                    await reader.read()
                    break
                writer.write(self.answer)
                await writer.drain()
                if b"Content-Length" not in self.answer:
                    break
        self.closed.set()
        writer.close()


def endpoint(port, uid="u"):
    return Endpoint(
        instance="a",
        uid=uid,
        host="127.0.0.1",
        http_port=port,
        grpc_port=None,
        protocol=Protocol.HTTP,
        engine=EngineKind.TEI,
        model_id="m",
    )


@pytest.fixture
async def server():
    raw = RawServer()
    listener = await asyncio.start_server(raw, "127.0.0.1", 0)
    raw.port = listener.sockets[0].getsockname()[1]
    yield raw
    listener.close()


@pytest.fixture
async def upstream():
    upstream = HttpUpstreams(connect_timeout_secs=1, max_answer_bytes=1000)
    yield upstream
    await upstream.close()


def ok(body=b"[[1.0]]", extra=b""):
    return b"HTTP/1.1 200 OK\r\nX-Compute-Tokens: 3\r\n%bContent-Length: %d\r\n\r\n%b" % (extra, len(body), body)


async def test_one_connection_is_kept_and_the_request_carries_nothing_extra(server, upstream):
    server.answer = ok()
    for _ in range(3):
        answer = await upstream.send(endpoint(server.port), EMBED, timeout_secs=5)
    assert (answer.status, answer.body, answer.headers["x-compute-tokens"]) == (200, b"[[1.0]]", "3")
    assert server.connections == 1
    head, body = server.requests[0]
    names = {line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:] if line}
    assert names == {b"host", b"content-type", b"content-length"}
    assert body == EMBED.body


async def test_proxies_of_the_environment_are_ignored(server, upstream, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    server.answer = ok()
    assert (await upstream.send(endpoint(server.port), EMBED, timeout_secs=5)).status == 200


async def test_redirects_are_not_followed(server, upstream):
    server.answer = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    assert (await upstream.send(endpoint(server.port), EMBED, timeout_secs=5)).status == 302


async def test_each_uid_has_connections_of_its_own_and_they_close_with_it(server, upstream):
    server.answer = ok()
    await upstream.send(endpoint(server.port, "one"), EMBED, timeout_secs=5)
    await upstream.send(endpoint(server.port, "two"), EMBED, timeout_secs=5)
    assert server.connections == 2
    upstream.forget("one")
    upstream.forget("one")
    await asyncio.wait_for(server.closed.wait(), 2)


async def test_nobody_listens(upstream):
    with pytest.raises(errors.UpstreamError) as caught:
        await upstream.send(endpoint(1), EMBED, timeout_secs=5)
    assert caught.value.code == "UPSTREAM_UNREACHABLE"
    assert "127.0.0.1" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", "UPSTREAM_DIED"),
        (b"HTTP/1.1 200 OK\r\nContent-Len", "UPSTREAM_DIED"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "UPSTREAM_DIED"),
        (b"no http at all\r\n\r\n", "UPSTREAM_MALFORMED"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n", "UPSTREAM_MALFORMED"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 1001, "UPSTREAM_MALFORMED"),
    ],
)
async def test_answers_that_break_off_or_are_none(server, upstream, answer, code):
    server.answer = answer
    with pytest.raises(errors.UpstreamError) as caught:
        await upstream.send(endpoint(server.port), EMBED, timeout_secs=5)
    assert caught.value.code == code


async def test_an_answer_that_does_not_come(server, upstream):
    server.answer = None
    with pytest.raises(errors.UpstreamTimeout):
        await upstream.send(endpoint(server.port), EMBED, timeout_secs=0.05)
    await asyncio.wait_for(server.closed.wait(), 2)


async def test_a_cancelled_call_closes_its_connection(server, upstream):
    server.answer = None
    call = asyncio.create_task(upstream.send(endpoint(server.port), EMBED, timeout_secs=5))
    while not server.requests:
        await asyncio.sleep(0.005)
    call.cancel()
    await asyncio.wait_for(server.closed.wait(), 2)
