"""Streams in order, with backpressure, without leftovers."""

import asyncio
import gc
from contextlib import aclosing

import pytest

from tei_engine.server.grpc_streams import in_order


async def numbers(count):
    for number in range(count):
        yield number


async def test_answers_keep_the_order_of_requests():
    async def one(number):
        await asyncio.sleep(0.01 if number % 2 else 0)
        return number

    assert [answer async for answer in in_order(numbers(20), one, parallel=8)] == list(range(20))


async def test_no_more_is_read_than_may_be_in_flight():
    read = []

    async def requests():
        for number in range(100):
            read.append(number)
            yield number

    async def one(number):
        return number

    async with aclosing(in_order(requests(), one, parallel=4)) as answers:
        assert await anext(answers) == 0
        await asyncio.sleep(0.01)
        assert len(read) <= 6


async def test_a_second_failure_behind_the_first_is_nobodys_complaint():
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    async def one(number):
        await asyncio.sleep(0 if number else 0.01)
        raise ValueError(number)

    with pytest.raises(ValueError, match="0"):
        _ = [answer async for answer in in_order(numbers(5), one, parallel=8)]
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []


async def test_leaving_cancels_what_is_in_flight():
    cancelled = []

    async def one(number):
        if number == 0:
            return number
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise

    async with aclosing(in_order(numbers(4), one, parallel=8)) as answers:
        assert await anext(answers) == 0
        await asyncio.sleep(0)
    assert sorted(cancelled) == [1, 2, 3]
