"""How gRPC calls are made: politely, and in every way in which a caller can go away."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc
from tests.soak.http_manners import HOST, Done
from tests.soak.questions import Fault, Questions, RpcQuestion, StreamQuestion, Table
from tests.soak.tally import Flight, Tally

from tei_manager.grpc.proto.tei.v1 import tei_pb2_grpc

_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))
_WITHIN = 60.0
_CHANNELS = 3
_ALL = 2**31
_NOT_SENT = "Internal error from Core"


class RpcManners:
    """Makes calls over a few channels, and over channels of their own that it closes under them."""

    def __init__(self, port: int, questions: Questions, tally: Tally) -> None:
        self._address = f"{HOST}:{port}"
        self._channels = [self._channel() for _ in range(_CHANNELS)]
        self._questions = questions
        self._tally = tally
        rows: tuple[tuple[float, Callable[[random.Random], Awaitable[Done]]], ...] = (
            (50, self._politely),
            (10, self._stream_politely),
            (4, self._cancelled),
            (4, self._expired),
            (4, self._stream_left),
            (3, self._stream_expired),
            (1, self._channel_closed),
        )
        self._table = Table(*((weight, lambda rng, send=send: send(rng)) for weight, send in rows))

    def _channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self._address, options=_OPTIONS)

    async def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            await channel.close()

    async def send(self, rng: random.Random) -> Done:
        """Make one call, one way or another. Raises Fault, and what the client library raises."""
        return await self._table.draw(rng)

    def _stub(self, rng: random.Random, method: str) -> Callable[..., Any]:
        return _method(rng.choice(self._channels), method)

    async def _politely(self, rng: random.Random) -> Done:
        question = self._questions.rpc(rng)
        with self._tally.flight(question.inputs) as flight:
            code, answer = await _outcome(self._stub(rng, question.method)(question.request, timeout=_WITHIN))
        return question.name, self._judge(question, flight, code, answer)

    def _judge(self, question: RpcQuestion, flight: Flight, code: str, answer: Any) -> str:
        if code == "RESOURCE_EXHAUSTED" and question.inputs:
            self._tally.check_overload(flight)
            return "overloaded"
        if code != question.code:
            raise Fault(f"{question.method} ended {code}, expected {question.code}: {answer}")
        if code != "OK":
            return "refused"
        question.check(answer)
        if question.inputs:
            self._tally.confirm(1)
        return "answered"

    async def _cancelled(self, rng: random.Random) -> Done:
        question = self._questions.rpc(rng)
        with self._tally.flight(question.inputs) as flight:
            flight.is_given_up = True
            call = self._stub(rng, question.method)(question.request, timeout=_WITHIN)
            await asyncio.sleep(rng.choice((0.0, rng.uniform(0, 0.02))))
            call.cancel()
            with suppress(asyncio.CancelledError):
                await _outcome(call)
        return "rpc:cancelled", "given up"

    async def _expired(self, rng: random.Random) -> Done:
        """A deadline of a few milliseconds: the right answer, or the one status that says so."""
        question = self._questions.rpc(rng)
        with self._tally.flight(question.inputs) as flight:
            call = self._stub(rng, question.method)(question.request, timeout=rng.uniform(0.0005, 0.01))
            code, answer = await _outcome(call)
            if code == "DEADLINE_EXCEEDED":
                flight.is_given_up = True
                return "rpc:expired", "expired"
        return "rpc:expired", self._judge(question, flight, code, answer)

    async def _stream_politely(self, rng: random.Random) -> Done:
        question = self._questions.stream(rng)
        with self._tally.flight(len(question.requests)) as flight:
            flight.is_given_up = question.code != "OK"
            call = self._stub(rng, question.method)(_paced(rng, question), timeout=_WITHIN)
            try:
                count, code, details = await self._read(call, question, _ALL), "OK", ""
            except grpc.aio.AioRpcError as error:
                count, code, details = 0, error.code().name, error.details() or ""
            except _CutOff:  # as it must be where a message cannot be answered
                count, code, details = 0, question.code if question.code != "OK" else "unknown", "cut off"
        if code != question.code:
            raise Fault(f"{question.name} ended {code}, expected {question.code}: {details}")
        if code == "OK" and count != len(question.checks):
            raise Fault(f"{question.name}: {count} answers to {len(question.checks)} messages")
        return question.name, "answered" if code == "OK" else "refused"

    async def _read(self, call: Any, question: StreamQuestion, most: int) -> int:
        """Check the first `most` answers, or all that come; returns how many.

        Raises Fault, AioRpcError, and _CutOff if the call ended while we were still sending.
        """
        count = 0
        try:
            async for answer in call:
                if count == len(question.checks):
                    raise Fault(f"{question.name}: more than {count} answers")
                question.checks[count](answer)
                count += 1
                if _computes(question):
                    self._tally.confirm(1)
                if count == most:
                    break
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.INTERNAL and error.details() == _NOT_SENT:
                raise _CutOff from None
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise _CutOff from None
        return count

    async def _stream_left(self, rng: random.Random) -> Done:
        """Read some answers, then cancel; sometimes before the first, or while messages are still being sent."""
        question = self._questions.stream(rng)
        with self._tally.flight(len(question.requests)) as flight:
            flight.is_given_up = True
            call = self._stub(rng, question.method)(_paced(rng, question), timeout=_WITHIN)
            enough = rng.randint(0, len(question.requests))
            if enough:
                with _allowing(question.code):
                    await self._read(call, question, enough)
            else:
                await asyncio.sleep(rng.uniform(0, 0.01))
            call.cancel()
            await _ended(call)
        return "rpc:stream-left", "given up"

    async def _stream_expired(self, rng: random.Random) -> Done:
        question = self._questions.stream(rng)
        with self._tally.flight(len(question.requests)) as flight:
            flight.is_given_up = True
            call = self._stub(rng, question.method)(_paced(rng, question), timeout=rng.uniform(0.001, 0.03))
            with _allowing(question.code, "DEADLINE_EXCEEDED"):
                await self._read(call, question, _ALL)
            await _ended(call)
        return "rpc:stream-expired", "expired"

    async def _channel_closed(self, rng: random.Random) -> Done:
        """A channel of its own, closed with calls and a stream under way."""
        channel = self._channel()
        stream = self._questions.stream(rng)
        questions = [self._questions.rpc(rng) for _ in range(3)]
        inputs = len(stream.requests) + sum(question.inputs for question in questions)
        with self._tally.flight(inputs) as flight:
            flight.is_given_up = True
            await channel.channel_ready()
            calls = [
                _method(channel, question.method)(question.request, timeout=_WITHIN) for question in questions
            ]
            calls.append(_method(channel, stream.method)(_paced(rng, stream), timeout=_WITHIN))
            await asyncio.sleep(rng.uniform(0, 0.02))
            await channel.close(None)
            for call in calls:
                await _ended(call)
        return "rpc:channel-closed", "given up"


def _method(channel: grpc.aio.Channel, method: str) -> Callable[..., Any]:
    """`Service.Method` of `tei.v1` on `channel`."""
    service, _, name = method.partition(".")
    return getattr(getattr(tei_pb2_grpc, f"{service}Stub")(channel), name)  # type: ignore[no-any-return]


async def _outcome(call: Any) -> tuple[str, Any]:
    """The name of the status, and the response, or the details of the error."""
    try:
        return "OK", await call
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details()


@contextmanager
def _allowing(*codes: str) -> Iterator[None]:
    """Let a call end with one of `codes`. Raises Fault for any other."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        if error.code().name not in codes:
            raise Fault(f"a stream ended {error.code().name}: {error.details()}") from None
    except _CutOff:
        if codes == ("OK",):
            raise Fault("a stream was cut off") from None


class _CutOff(Exception):
    """The call ended before all messages were sent.

    The client library then forgets the status: it says INTERNAL, or cancels the call itself.
    """


async def _ended(call: Any) -> None:
    """Wait until the library has done with `call`, however it ended."""
    with suppress(asyncio.CancelledError, grpc.RpcError):
        await call.code()


async def _paced(rng: random.Random, question: StreamQuestion) -> AsyncIterator[Any]:
    """The messages of a stream, in every other stream with pauses between them."""
    pause = rng.choice((0.0, 0.002))
    for request in question.requests:
        if pause:
            await asyncio.sleep(pause)
        yield request


def _computes(question: StreamQuestion) -> bool:
    return not question.method.startswith("Tokenize.")
