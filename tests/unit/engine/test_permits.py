"""Permits: all at once or not at all, waiting in line, nothing lost to cancellation."""

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tei_engine import errors
from tei_engine.batching.permits import Permits


async def test_all_at_once_or_not_at_all():
    permits = Permits(4)
    with permits.hold_nowait(3):
        assert permits.in_use == 3
        with pytest.raises(errors.RequestError, match="Model is overloaded"), permits.hold_nowait(2):
            pass
        assert permits.in_use == 3
    assert permits.in_use == 0


async def test_waiting_keeps_its_place_in_line():
    permits = Permits(2)
    first = permits.take_nowait(2)
    large = asyncio.create_task(permits.take(2))
    small = asyncio.create_task(permits.take(1))
    await asyncio.sleep(0)
    assert permits.take_nowait(1) is None
    permits.release(first)
    assert permits.take_nowait(1) is None  # not past those who wait
    await large
    assert not small.done()
    permits.release(large.result())
    await small


async def test_waiting_leaves_a_reserve_that_nobody_waits_for():
    permits = Permits(16)
    streams = [asyncio.create_task(permits.take(1)) for _ in range(20)]
    await asyncio.sleep(0)
    assert permits.in_use == 14
    quick = permits.take_nowait(2)
    assert quick is not None
    assert permits.take_nowait(1) is None
    permits.release(streams[0].result())  # goes to the next in line, not to the quick ones
    assert permits.take_nowait(1) is None
    await asyncio.sleep(0)
    assert sum(task.done() for task in streams) == 15
    permits.release(quick)
    assert sum(task.done() for task in streams) == 15  # the reserve stays what it is
    assert permits.take_nowait(2) is not None
    for task in streams:
        task.cancel()
    await asyncio.wait(streams)


async def test_waiting_is_not_overtaken_for_ever():
    permits = Permits(16)
    holders = [permits.take_nowait(1) for _ in range(16)]
    waiting = asyncio.create_task(permits.take(4))
    await asyncio.sleep(0)
    for holder in holders[:6]:  # each release is followed at once by somebody who wants it
        permits.release(holder)
        permits.take_nowait(1)
    await asyncio.wait_for(waiting, 1)
    permits.release(waiting.result())


async def test_more_than_there_are_means_all_of_them():
    permits = Permits(2)
    async with permits.hold(5):
        assert permits.in_use == 2


async def test_cancelling_the_first_in_line_lets_the_next_go():
    permits = Permits(2)
    holder = permits.take_nowait(1)
    large = asyncio.create_task(permits.take(2))
    small = asyncio.create_task(permits.take(1))
    await asyncio.sleep(0)
    large.cancel()
    await asyncio.wait([large])
    await asyncio.wait_for(small, 1)
    permits.release(small.result())
    permits.release(holder)
    assert permits.in_use == 0


@given(
    steps=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.booleans()), max_size=30),
    limit=st.integers(1, 4),
)
def test_cancellation_at_any_moment_loses_no_permit(steps, limit):
    """Holders come, wait a few turns and leave or are cancelled; in the end every permit is back."""

    async def scenario():
        permits = Permits(limit)

        async def holder(count, turns):
            async with permits.hold(count):
                assert permits.in_use <= limit
                for _ in range(turns):
                    await asyncio.sleep(0)

        tasks = []
        for count, turns, cancel in steps:
            tasks.append(asyncio.create_task(holder(count, turns)))
            for _ in range(turns):
                await asyncio.sleep(0)
            if cancel:
                tasks[len(tasks) // 2].cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait_for(task, 5)
        assert permits.in_use == 0

    asyncio.run(scenario())
