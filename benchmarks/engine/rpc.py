"""The gRPC clients: bytes in and out, on one channel, as the clients of one program are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio

from benchmarks.callers import CHANNEL_OPTIONS
from benchmarks.engine.meter import Meter
from benchmarks.engine.wire import ANSWER_WITHIN_SECS, BadAnswer
from benchmarks.stack import HOST
from tei_manager.grpc import create_request

_FLOAT_BYTES = 4
_SPARE_BYTES = 1024  # what an answer may have beside its vector


@dataclass(frozen=True, slots=True)
class Call:
    """`Embed` of one text; of several, one `EmbedStream` with a message for each."""

    messages: tuple[bytes, ...]
    tokens: int
    vector_bytes: int

    @property
    def texts(self) -> int:
        return len(self.messages)

    def check(self, answer: bytes) -> None:
        """Raises `BadAnswer` unless there is room for one vector and no more."""
        if not self.vector_bytes <= len(answer) <= self.vector_bytes + _SPARE_BYTES:
            raise BadAnswer(f"{len(answer)} bytes for a vector of {self.vector_bytes}")


def embed_call(texts: Sequence[str], tokens: int, *, dimension: int) -> Call:
    messages = tuple(create_request(text).request.SerializeToString() for text in texts)
    return Call(messages, tokens, dimension * _FLOAT_BYTES)


async def run_clients(meter: Meter[Call], *, clients: int, port: int) -> None:
    """Until the meter hands out no more. Raises a group with the first `BadAnswer` or `grpc.RpcError`."""
    async with grpc.aio.insecure_channel(f"{HOST}:{port}", options=CHANNEL_OPTIONS) as channel:
        unary: Any = channel.unary_unary("/tei.v1.Embed/Embed")
        stream: Any = channel.stream_stream("/tei.v1.Embed/EmbedStream")

        async def client() -> None:
            while (call := meter.next()) is not None:
                began = meter.now()
                if call.texts == 1:
                    call.check(await unary(call.messages[0], timeout=ANSWER_WITHIN_SECS))
                else:
                    await _in_stream(stream, call)
                meter.answered(call, began)

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())


async def _in_stream(stream: Any, call: Call) -> None:
    answers = 0
    async for answer in stream(iter(call.messages), timeout=ANSWER_WITHIN_SECS):
        call.check(answer)
        answers += 1
    if answers != call.texts:
        raise BadAnswer(f"{answers} answers to {call.texts} messages")
