"""A request in parts: permits, order, the first error, nothing left behind."""

import asyncio

import pytest

from tei_engine import errors
from tei_engine.batching.jobs import Ask
from tei_engine.batching.permits import Permits
from tei_engine.server import splitting
from tei_engine.tokenization.tokenizer import Piece


class Pipeline:
    """Runs parts when they are told to; a part is known by its first id."""

    def __init__(self, permits=64):
        self.permits = Permits(permits)
        self.begun = []
        self.gates = {}

    async def run(self, ask):
        place = ask.pieces[0].ids[0]
        self.begun.append(place)
        result = await self.gates.setdefault(place, asyncio.get_running_loop().create_future())
        if isinstance(result, int):
            raise errors.invalid("wrong").at_row(result)
        return ask

    async def finish(self, place, row=None):
        """End the part that begins with `place`; `row` = with an error there."""
        while place not in self.begun:
            await asyncio.sleep(0)
        self.gates[place].set_result(row)
        await settle()


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


def asked(count):
    return Ask(tuple(Piece(ids=(number,)) for number in range(count)))


async def test_parts_come_back_in_order():
    one = Pipeline()
    task = asyncio.create_task(splitting.run_in_parts(one, asked(10), 4, wait=False))
    await settle()
    assert one.begun == [0, 4, 8]
    assert one.permits.in_use == 10
    for place in (8, 0, 4):
        await one.finish(place)
    parts = await task
    assert [[piece.ids[0] for piece in part.pieces] for part in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert one.permits.in_use == 0


async def test_no_more_than_four_parts_are_under_way():
    one = Pipeline()
    task = asyncio.create_task(splitting.run_in_parts(one, asked(40), 4, wait=False))
    await settle()
    assert one.begun == [0, 4, 8, 12]
    await one.finish(4)
    assert one.begun == [0, 4, 8, 12, 16]
    task.cancel()
    await asyncio.wait([task])
    await settle()
    assert one.permits.in_use == 0
    assert task.cancelled()


async def test_the_first_part_is_refused_where_there_are_no_permits():
    one = Pipeline(permits=8)
    with one.permits.hold_nowait(5), pytest.raises(errors.RequestError, match="Model is overloaded"):
        await splitting.run_in_parts(one, asked(10), 4, wait=False)
    assert one.begun == []
    assert one.permits.in_use == 0


async def test_later_parts_wait_for_permits():
    one = Pipeline(permits=5)
    task = asyncio.create_task(splitting.run_in_parts(one, asked(12), 4, wait=False))
    await settle()
    assert one.begun == [0]
    for place in (0, 4, 8):
        await one.finish(place)
    assert len(await task) == 3


async def test_all_parts_wait_where_the_caller_does():
    one = Pipeline(permits=8)
    holder = one.permits.take_nowait(5)
    task = asyncio.create_task(splitting.run_in_parts(one, asked(8), 4, wait=True))
    await settle()
    assert one.begun == []
    one.permits.release(holder)
    for place in (0, 4):
        await one.finish(place)
    assert len(await task) == 2


async def test_the_first_failing_row_is_named_though_a_later_one_fails_earlier():
    one = Pipeline()
    task = asyncio.create_task(splitting.run_in_parts(one, asked(40), 4, wait=False))
    await settle()
    await one.finish(12, row=3)
    assert not task.done()
    await one.finish(4, row=2)
    await one.finish(0)
    with pytest.raises(errors.RequestError) as caught:
        await task
    assert caught.value.row == 6
    assert one.begun == [0, 4, 8, 12], "nothing behind the failing part was begun"
    await settle()
    assert one.permits.in_use == 0
