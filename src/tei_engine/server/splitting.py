"""Running what was asked under permits; a request beyond the size of a client batch in parts of that size."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from tei_engine import errors
from tei_engine.batching.jobs import Ask, Job

if TYPE_CHECKING:
    from tei_engine.batching.pipeline import Pipeline

Value = TypeVar("Value")

LARGEST = 8192
"""Inputs of one request, however it is split."""

_AT_ONCE = 4  # parts under way: enough that no thread idles while one of them ends, too few to hold every permit


async def run(pipeline: Pipeline, ask: Ask, *, wait: bool) -> Job:
    """Run `ask` with a permit for each input. Raises RequestError with the row of the first failing input."""
    count = len(ask.pieces)
    if wait:
        async with pipeline.permits.hold(count):
            return await pipeline.run(replace(ask, bulk=True))
    with pipeline.permits.hold_nowait(count):
        return await pipeline.run(ask)


async def run_in_parts(pipeline: Pipeline, ask: Ask, size: int, *, wait: bool) -> list[Job]:
    """Run `ask` as parts of `size` inputs, which are returned in order.

    The first part is admitted or refused as any request; the others wait for permits. Raises RequestError with the
    row of the first failing input, in the whole request; what is behind it is not begun, or dropped.
    """
    room = asyncio.Semaphore(_AT_ONCE)
    has_failed = False

    async def part(start: int) -> Job:
        nonlocal has_failed
        async with room:
            if has_failed:  # in a part before this one: they enter in order
                raise asyncio.CancelledError
            chunk = replace(ask, pieces=ask.pieces[start : start + size])
            try:
                return await run(pipeline, chunk, wait=wait or start > 0)
            except errors.RequestError as error:
                has_failed = True
                raise (error if error.row is None else error.at_row(start + error.row)) from None

    return await all_of(part(start) for start in range(0, len(ask.pieces), size))


async def all_of(works: Iterable[Coroutine[Any, Any, Value]]) -> list[Value]:
    """What `works`, done side by side, return; raises what the first failing one raises, in the order given."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return [await task for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
