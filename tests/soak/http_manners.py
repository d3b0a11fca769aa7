"""How HTTP requests are sent: politely, and in every way in which a client can go away."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
from tests.soak.questions import Fault, HttpQuestion, Questions, Table
from tests.soak.tally import Flight, Tally

HOST = "127.0.0.1"
_FLOOD = 12

Done = tuple[str, str]
"""What was asked and what became of it."""


class HttpManners:
    """Sends questions over keep-alive connections, and over connections of their own that it ends badly."""

    def __init__(self, port: int, session: aiohttp.ClientSession, questions: Questions, tally: Tally) -> None:
        self._port = port
        self._session = session
        self._questions = questions
        self._tally = tally
        rows: tuple[tuple[float, Callable[[random.Random], Awaitable[Done]]], ...] = (
            (100, self._politely),
            (5, self._cancelled),
            (2, self._before_the_body),
            (2, self._within_the_body),
            (4, self._after_the_body),
            (2, self._within_the_answer),
            (2, self._half_closed),
            (2, self._in_pieces),
            (2, self._pipelined),
            (1, self._too_large),
            (0.1, self._flood),
        )
        self._table = Table(*((weight, lambda rng, send=send: send(rng)) for weight, send in rows))

    async def send(self, rng: random.Random) -> Done:
        """Send one question, one way or another. Raises Fault, and what the client library raises."""
        return await self._table.draw(rng)

    async def _politely(self, rng: random.Random) -> Done:
        return await self._ask(self._questions.http(rng))

    async def _ask(self, question: HttpQuestion) -> Done:
        headers = {"accept": question.accept} | ({"content-type": question.content_type} if question.body else {})
        with self._tally.flight(question.inputs) as flight:
            async with self._session.request(
                question.method, question.path, data=question.body, headers=headers
            ) as response:
                status, raw = response.status, await response.read()
        return question.name, self._judge(question, flight, status, raw)

    def _judge(self, question: HttpQuestion, flight: Flight, status: int, raw: bytes) -> str:
        if status == 429 and question.inputs:
            self._tally.check_overload(flight)
            return "overloaded"
        if status != question.status:
            raise Fault(f"{question.path} answered {status}, expected {question.status}: {raw[:200]!r}")
        question.check(raw)
        if status == 200 and question.inputs:
            self._tally.confirm(1)
        return "answered" if status == 200 else "refused"

    async def _cancelled(self, rng: random.Random) -> Done:
        """The client library's own way: the task ends, the connection is closed."""
        try:
            async with asyncio.timeout(rng.uniform(0.0005, 0.03)):
                return await self._ask(self._questions.http(rng))
        except TimeoutError:
            return "http:cancelled", "given up"

    async def _before_the_body(self, rng: random.Random) -> Done:
        async with self._raw(rng) as (_, writer):
            question = self._questions.http(rng)
            writer.write(_head(question))
            await _a_moment(rng)
        return "http:closed-before-body", "given up"

    async def _within_the_body(self, rng: random.Random) -> Done:
        async with self._raw(rng) as (_, writer):
            question = self._questions.large(rng)
            writer.write(_head(question) + question.body[: rng.randrange(len(question.body))])
            await _a_moment(rng)
        return "http:closed-within-body", "given up"

    async def _after_the_body(self, rng: random.Random) -> Done:
        question = self._questions.http(rng)
        with self._tally.flight(question.inputs) as flight:
            async with self._raw(rng) as (_, writer):
                writer.write(_head(question) + question.body)
                await _a_moment(rng)
            flight.is_given_up = True
        return "http:closed-after-body", "given up"

    async def _within_the_answer(self, rng: random.Random) -> Done:
        question = self._questions.large(rng)
        with self._tally.flight(question.inputs) as flight:
            async with self._raw(rng) as (reader, writer):
                writer.write(_head(question) + question.body)
                if not await reader.read(rng.randint(1, 30_000)):
                    raise Fault("the connection was closed without an answer")
            flight.is_given_up = True
        return "http:closed-within-answer", "given up"

    async def _half_closed(self, rng: random.Random) -> Done:
        """Says that nothing more will come, and listens: the engine may answer, or take it for a goodbye."""
        question = self._questions.http(rng)
        with self._tally.flight(question.inputs) as flight:
            async with self._raw(rng) as (reader, writer):
                writer.write(_head(question) + question.body)
                writer.write_eof()
                raw = await reader.read()
            flight.is_given_up = True
            if raw:
                status, body = _parsed(raw)
                self._judge(question, flight, status, body)
        return "http:half-closed", "given up"

    async def _in_pieces(self, rng: random.Random) -> Done:
        question = self._questions.http(rng)
        raw = _head(question) + question.body
        with self._tally.flight(question.inputs) as flight:
            async with self._raw(rng) as (reader, writer):
                first, second = sorted((rng.randrange(len(raw)), rng.randrange(len(raw))))
                for piece in (raw[:first], raw[first:second], raw[second:]):
                    writer.write(piece)
                    await asyncio.sleep(0.002)
                status, body = await _answer(reader)
        return "http:in-pieces", self._judge(question, flight, status, body)

    async def _pipelined(self, rng: random.Random) -> Done:
        """Two requests at once on one connection: two answers, in order."""
        questions = [self._questions.http(rng) for _ in range(2)]
        with self._tally.flight(sum(question.inputs for question in questions)) as flight:
            async with self._raw(rng) as (reader, writer):
                writer.write(b"".join(_head(question) + question.body for question in questions))
                answers = [await _answer(reader) for _ in questions]
        outcomes = [
            self._judge(question, flight, *answer) for question, answer in zip(questions, answers, strict=True)
        ]
        return "http:pipelined", outcomes[-1]

    async def _too_large(self, rng: random.Random) -> Done:
        """A body beyond the payload limit is refused before it is sent."""
        async with self._raw(rng) as (reader, writer):
            writer.write(_head(self._questions.large(rng), length=3_000_000))
            status, raw = await _answer(reader)
        if status != 413:
            raise Fault(f"a body of 3 MB was answered {status}: {raw[:200]!r}")
        return "http:too-large", "refused"

    async def _flood(self, rng: random.Random) -> Done:
        """More inputs at once than there may be permits: each request is answered, or refused as a whole."""
        done = await asyncio.gather(*(self._ask(self._questions.batch(rng)) for _ in range(_FLOOD)))
        return "http:flood", "overloaded" if ("overloaded" in {outcome for _, outcome in done}) else "answered"

    @asynccontextmanager
    async def _raw(self, rng: random.Random) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection of its own; every other one is ended by a reset instead of an orderly close."""
        reader, writer = await asyncio.open_connection(HOST, self._port, limit=2**20)
        try:
            yield reader, writer
        finally:
            if rng.random() < 0.5:
                held = writer.get_extra_info("socket")
                held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


async def _a_moment(rng: random.Random) -> None:
    """Between nothing and the time of a few runs."""
    await asyncio.sleep(rng.choice((0.0, 0.001, rng.uniform(0, 0.03))))


def _head(question: HttpQuestion, length: int | None = None) -> bytes:
    size = len(question.body) if length is None else length
    return (
        f"{question.method} {question.path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: {question.content_type}\r\n"
        f"accept: {question.accept}\r\ncontent-length: {size}\r\n\r\n"
    ).encode()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of the next answer. Raises Fault if the connection ends first."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        return _status(head), await reader.readexactly(_length(head))
    except asyncio.IncompleteReadError as error:
        raise Fault(f"the connection was closed after {error.partial[:200]!r}") from None


def _parsed(raw: bytes) -> tuple[int, bytes]:
    """Status and body of a whole answer. Raises Fault if something is missing."""
    head, _, body = raw.partition(b"\r\n\r\n")
    if len(body) != _length(head):
        raise Fault(f"an answer of {_length(head)} bytes ended after {len(body)}")
    return _status(head), body


def _status(head: bytes) -> int:
    return int(head.split(b" ", 2)[1])


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    raise Fault(f"an answer without its length: {head[:200]!r}")
