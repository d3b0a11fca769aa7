"""The loop whose time jumps."""

import asyncio
import time

import pytest

from tei_manager.testing import clock


def test_hours_pass_at_once_and_in_order() -> None:
    seen: list[tuple[float, str]] = []

    async def sleeper(name: str, secs: float) -> None:
        await asyncio.sleep(secs)
        seen.append((asyncio.get_running_loop().time() - 1000.0, name))

    async def story() -> None:
        await asyncio.gather(sleeper("late", 7200), sleeper("early", 30), sleeper("middle", 900.5))

    begun = time.monotonic()
    clock.run(story())
    assert [name for _, name in seen] == ["early", "middle", "late"]
    assert [when for when, _ in seen] == pytest.approx([30, 900.5, 7200])
    assert time.monotonic() - begun < 5


def test_limits_end_waits_at_their_time() -> None:
    async def story() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(300):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert clock.run(story()) == pytest.approx(1300)


def test_work_for_threads_takes_no_time_and_raises_where_it_is_awaited() -> None:
    async def story() -> None:
        assert await asyncio.to_thread(len, "four") == 4
        with pytest.raises(ValueError, match="invalid literal"):
            await asyncio.to_thread(int, "four")
        assert asyncio.get_running_loop().time() == 1000.0

    clock.run(story())


def test_waiting_for_nothing_is_an_error_not_a_hang() -> None:
    async def story() -> None:
        await asyncio.Event().wait()

    with pytest.raises(clock.NothingToWaitFor):
        clock.run(story())
