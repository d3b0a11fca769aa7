"""How each column calls: the same client, the same bytes on every call, another address and another wrapping."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, Self

import grpc.aio
import httptools

from benchmarks.cases import Case, text
from tei_manager.grpc import create_request
from tei_manager.grpc.proto.tei.v1 import tei_pb2

CALL_TIMEOUT_SECS = 30.0
CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    # both columns on connections of their own
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 40 << 20),
)
Vectors = list[list[float]]


class Column(Protocol):
    """One side of the comparison. `sent` counts the calls that were made."""

    sent: int

    async def vectors(self) -> Vectors:
        """One call, with its answer decoded."""

    async def block(self, samples: int) -> list[float]:
        """Seconds of so many samples, one after the other. A first one, which opens connections, is left out."""

    async def close(self) -> None: ...


class GrpcColumn:
    """Calls of `Embed` or `EmbedStream`; through the multiplexer if `target` is given. Bytes in and out."""

    def __init__(self, case: Case, address: str, target: str | None) -> None:
        self.sent = 0
        self._case = case
        requests = [create_request(text(case.words, i), target) for i in range(case.width)]
        service = "tei.v1.Embed" if target is None else "tei_multiplexer.v1.TeiMultiplexer"
        self._messages = [(each.request if target is None else each).SerializeToString() for each in requests]
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._unary: Any = self._channel.unary_unary(f"/{service}/Embed")
        self._stream: Any = self._channel.stream_stream(f"/{service}/EmbedStream")
        self._sample: Callable[[], Awaitable[Sequence[bytes]]] = {
            "unary": self._one,
            "concurrent": self._at_once,
            "stream": self._in_stream,
        }[case.kind]

    async def vectors(self) -> Vectors:
        return [list(tei_pb2.EmbedResponse.FromString(each).embeddings) for each in await self._sample()]

    async def block(self, samples: int) -> list[float]:
        await self._sample()
        taken = []
        for _ in range(samples):
            began = time.perf_counter()
            await self._sample()
            taken.append(time.perf_counter() - began)
        return taken

    async def close(self) -> None:
        await self._channel.close()

    async def _one(self) -> Sequence[bytes]:
        self.sent += 1
        return (await self._unary(self._messages[0], timeout=CALL_TIMEOUT_SECS),)

    async def _at_once(self) -> Sequence[bytes]:
        self.sent += self._case.width
        calls = [self._unary(message, timeout=CALL_TIMEOUT_SECS) for message in self._messages]
        answers: list[bytes] = await asyncio.gather(*calls)
        return answers

    async def _in_stream(self) -> Sequence[bytes]:
        self.sent += 1
        call = self._stream(iter(self._messages), timeout=CALL_TIMEOUT_SECS)
        answers = [answer async for answer in call]
        if len(answers) != self._case.width:
            raise RuntimeError(f"{len(answers)} answers to {self._case.width} messages")
        return answers


class HttpColumn:
    """POST /embed of TEI directly; POST /v1/embeddings of the manager if `target` is given."""

    def __init__(self, case: Case, address: str, target: str | None) -> None:
        self.sent = 0
        self._case = case
        host, _, port = address.rpartition(":")
        self._host, self._port, self._is_product = host, int(port), target is not None
        texts = [text(case.words, i) for i in range(case.texts)]
        inputs = texts if case.texts > 1 else texts[0]
        body = json.dumps(
            {"inputs": inputs, "truncate": True}
            if target is None
            else {"model": target, "input": inputs, "encoding_format": case.encoding, "truncate": True}
        ).encode()
        path = "/embed" if target is None else "/v1/embeddings"
        self._request = (
            f"POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n"
            f"accept: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode() + body

    async def vectors(self) -> Vectors:
        async with await self._connect() as connection:
            answer = json.loads(await self._post(connection))
        rows = [item["embedding"] for item in answer["data"]] if self._is_product else answer
        return [_unpacked(row) if isinstance(row, str) else row for row in rows]

    async def block(self, samples: int) -> list[float]:
        share = max(1, samples // self._case.width)
        # servers close connections that were idle while the other column ran
        connections = [await self._connect() for _ in range(self._case.width)]
        try:
            await asyncio.gather(*map(self._post, connections))
            taken = await asyncio.gather(*(self._client(each, share) for each in connections))
        finally:
            for each in connections:
                each.close()
        return [secs for client in taken for secs in client]

    async def close(self) -> None:
        """Connections live for one block."""

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._host, self._port)
        return connection

    async def _client(self, connection: Connection, requests: int) -> list[float]:
        taken = []
        for _ in range(requests):
            began = time.perf_counter()
            await self._post(connection)
            taken.append(time.perf_counter() - began)
        return taken

    async def _post(self, connection: Connection) -> bytes:
        self.sent += 1
        return await connection.exchange(self._request)


class Connection(asyncio.Protocol):
    """One kept-open HTTP/1.1 connection with one request at a time: as little client as possible."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._answer: asyncio.Future[bytes] | None = None
        self._transport: Any = None

    async def exchange(self, request: bytes) -> bytes:
        """The body of the answer. Raises `RuntimeError` unless the status is 200."""
        self._parts = []
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("closed before the answer"))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        assert self._answer is not None
        status, body = self._parser.get_status_code(), b"".join(self._parts)
        if self._answer.done():
            return
        if status == 200:
            self._answer.set_result(body)
        else:
            self._answer.set_exception(RuntimeError(f"answered {status}: {body[:300]!r}"))


def _unpacked(row: str) -> list[float]:
    content = base64.b64decode(row)
    return list(struct.unpack(f"<{len(content) // 4}f", content))
