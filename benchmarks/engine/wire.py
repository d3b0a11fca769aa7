"""As little HTTP/1.1 client as possible: requests built beforehand, answers counted and checked, never parsed."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.engine.meter import Meter
from benchmarks.stack import HOST
from benchmarks.worker import WorkerFailed

JSON, OCTETS = "application/json", "application/octet-stream"
ANSWER_WITHIN_SECS = 120.0
_OK = b"HTTP/1.1 200"
_LENGTH = b"\r\ncontent-length:"
_END = b"\r\n\r\n"
_FLOAT_BYTES = 4


class BadAnswer(WorkerFailed):
    """An answer that is not what was asked for: the whole measurement is worthless."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent, how much work it is, and how long its answer's body is at least and at most."""

    content: bytes
    texts: int
    tokens: int
    shortest: int
    longest: int


def embed_request(texts: Sequence[str], tokens: int, *, accept: str, dimension: int) -> Request:
    """`POST /embed` of one text as a string, of several as a list."""
    body = json.dumps({"inputs": texts[0] if len(texts) == 1 else list(texts), "truncate": True}).encode()
    head = (
        f"POST /embed HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\naccept: {accept}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    numbers = len(texts) * dimension
    exact = numbers * _FLOAT_BYTES
    # a number in JSON has at least a digit and a comma, and never more than 16 characters
    shortest, longest = (exact, exact) if accept == OCTETS else (2 * numbers, 17 * numbers + 2)
    return Request(head.encode() + body, len(texts), tokens, shortest, longest)


def whole_length(data: bytes, request: Request) -> int | None:
    """Length of head and body of the answer that `data` begins with; None while its head is not complete.

    Raises `BadAnswer` unless it is a 200 of the size that was to be expected.
    """
    end = data.find(_END)
    if end < 0:
        return None
    head = data[:end]
    if not head.startswith(_OK):
        raise BadAnswer(f"answered {data[:400]!r}")
    at = head.lower().find(_LENGTH)
    if at < 0:
        raise BadAnswer(f"an answer without its length: {head!r}")
    length = int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0])
    if not request.shortest <= length <= request.longest:
        raise BadAnswer(f"{length} bytes for {request.texts} texts, expected {request.shortest} or more")
    return end + len(_END) + length


class Line:
    """A kept-open connection for one request at a time, blocking: the shortest way to the server and back."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((HOST, port), timeout=ANSWER_WITHIN_SECS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def exchange(self, request: Request) -> None:
        """Send, and receive everything. Raises `BadAnswer`, or `OSError` if the connection fails or is late."""
        self._socket.sendall(request.content)
        data, whole = b"", None
        while whole is None or len(data) < whole:
            part = self._socket.recv(1 << 18)
            if not part:
                raise BadAnswer("the connection was closed before the answer's end")
            data += part
            if whole is None:
                whole = whole_length(data, request)

    def close(self) -> None:
        self._socket.close()


class Client(asyncio.Protocol):
    """One of many clients on one loop; as soon as it has an answer it sends the meter's next request."""

    def __init__(self, meter: Meter[Request], ended: asyncio.Future[None]) -> None:
        self._meter, self._ended = meter, ended
        self._transport: Any = None
        self._request: Request | None = None
        self._began = 0.0
        self._head = b""
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def start(self) -> None:
        self._send()

    def data_received(self, data: bytes) -> None:
        try:
            self._received(data)
        except BadAnswer as error:
            self._fail(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or BadAnswer("the connection was closed before the answer's end"))

    def _received(self, data: bytes) -> None:
        if self._request is None:
            raise BadAnswer(f"bytes that nobody asked for: {data[:400]!r}")
        if self._left == 0:
            data = self._head + data
            whole = whole_length(data, self._request)
            if whole is None:
                self._head = data
                return
            self._head, self._left = b"", whole
        self._left -= len(data)
        if self._left == 0:
            self._meter.answered(self._request, self._began)
            self._send()
        elif self._left < 0:
            raise BadAnswer("an answer that is longer than it says")

    def _send(self) -> None:
        self._request = self._meter.next()
        if self._request is None:
            if self._meter.is_over and not self._ended.done():
                self._ended.set_result(None)
            return
        self._began = self._meter.now()
        self._transport.write(self._request.content)

    def _fail(self, error: Exception) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)
