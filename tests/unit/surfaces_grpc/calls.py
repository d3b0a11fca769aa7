"""Calls through the door as a client without stubs makes them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
import grpc.aio
import pytest

from tei_manager.grpc.proto.multiplexer.v1 import tei_multiplexer_pb2 as mux

MUX = "/tei_multiplexer.v1.TeiMultiplexer/"
EMBED, EMBED_STREAM, RERANK_STREAM = MUX + "Embed", MUX + "EmbedStream", MUX + "RerankStream"


def to(name: str = "", payload: bytes = b"payload", **target: Any) -> bytes:
    made = mux.Target(**target) if target else mux.Target(instance_name=name)
    text = made.SerializeToString()
    return b"\x0a" + bytes((len(text),)) + text + wrapped(payload)


def wrapped(payload: bytes) -> bytes:
    size, length = len(payload), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return b"\x12" + bytes(length) + payload


async def unary(world: Any, message: bytes, path: str = EMBED, **more: Any) -> bytes:
    answer: bytes = await world.channel.unary_unary(path)(message, timeout=more.pop("timeout", 5), **more)
    return answer


async def refused(awaitable: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value.code().name, caught.value.details() or ""


async def streamed(world: Any, *messages: bytes, path: str = EMBED_STREAM) -> tuple[list[bytes], str, str]:
    """All answers, then code and text of the status.

    By the client for threads: that of asyncio hides a status that comes while it writes.
    """

    def run() -> tuple[list[bytes], str, str]:
        answers: list[bytes] = []
        with grpc.insecure_channel(f"127.0.0.1:{world.port}") as channel:
            call = channel.stream_stream(path)(iter(messages), timeout=5)
            with contextlib.suppress(grpc.RpcError):
                answers.extend(call)
            return answers, call.code().name, call.details()

    return await asyncio.to_thread(run)
