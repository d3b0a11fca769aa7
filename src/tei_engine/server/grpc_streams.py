"""Streams of requests → streams of responses, in order and with backpressure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

Message = TypeVar("Message")
Response = TypeVar("Response")


async def in_order(
    requests: AsyncIterator[Message], one: Callable[[Message], Awaitable[Response]], *, parallel: int
) -> AsyncGenerator[Response, None]:
    """`one` of each request, results in request order, at most `parallel` at a time.

    Requests are not read while that many are in flight, which is the caller's backpressure. An error, or leaving
    the iteration, cancels what is in flight.
    """
    pending: asyncio.Queue[asyncio.Future[Response] | None] = asyncio.Queue()
    room = asyncio.Semaphore(parallel)
    started: set[asyncio.Future[Response]] = set()

    def forget(task: asyncio.Future[Response]) -> None:
        started.discard(task)
        if not task.cancelled():
            task.exception()  # behind an earlier failure nobody asks for it, which asyncio would complain about

    async def read() -> None:
        try:
            async for request in requests:
                await room.acquire()
                task = asyncio.ensure_future(one(request))
                started.add(task)
                task.add_done_callback(forget)
                pending.put_nowait(task)
        finally:
            pending.put_nowait(None)

    reader = asyncio.create_task(read(), name="stream-reader")
    try:
        while (task := await pending.get()) is not None:
            yield await task
            room.release()
        await reader
    finally:
        rest: list[asyncio.Future[Any]] = [reader, *started]
        for unfinished in rest:
            unfinished.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
