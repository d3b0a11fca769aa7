"""Background tasks and their owner."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from tei_manager.kits.nest import Nest

request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)


@pytest.fixture
def deaths() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def nest(deaths: list[tuple[str, str]]) -> Nest:
    return Nest(lambda name, error: deaths.append((name, str(error))))


async def test_the_owner_hears_of_a_crash_and_not_of_a_cancellation(
    nest: Nest, deaths: list[tuple[str, str]]
) -> None:
    async def crash() -> None:
        raise ValueError("broken")

    nest.start("bad", crash())
    nest.start("good", asyncio.sleep(60))
    await asyncio.sleep(0)
    await nest.close()
    assert deaths == [("bad", "broken")]
    assert "good" not in nest


async def test_starting_a_name_again_ends_the_task_that_held_it(nest: Nest) -> None:
    ended = asyncio.Event()

    async def first() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    nest.start("work", first())
    await asyncio.sleep(0)
    nest.start("work", asyncio.sleep(60))
    async with asyncio.timeout(1):
        await ended.wait()
    assert "work" in nest
    await nest.close()


async def test_work_does_not_carry_the_request_that_began_it(nest: Nest) -> None:
    seen: list[str | None] = []

    async def work() -> None:
        seen.append(request_id.get())

    request_id.set("of a caller long gone")
    nest.start("work", work())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert seen == [None]
