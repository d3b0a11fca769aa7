"""An event loop whose time jumps: hours of timers pass at once, always in the same order.

    async def backoff() -> None:
        await asyncio.sleep(900)

    clock.run(backoff())            # returns at once

Whenever nothing is ready, time moves to the next timer. Work for threads is done in the loop itself, so nothing
ever waits for the real world; files may be read and written, sockets may not be waited for.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class NothingToWaitFor(Exception):
    """Every task waits and no timer runs: without time this would hang for ever."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` begins at 1000 s, so that 0 is never mistaken for now."""

    def __init__(self) -> None:
        self._now = 1000.0
        super().__init__(_Jumping(self._advance))

    def time(self) -> float:
        return self._now

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        done: asyncio.Future[T] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done

    def _advance(self, secs: float) -> None:
        self._now += secs


class _Jumping(selectors.DefaultSelector):
    """Advances the clock where another selector would wait."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        super().__init__()
        self._advance_by = advance

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events and timeout is None:
            raise NothingToWaitFor("every task waits and no timer runs")
        if not events and timeout:
            self._advance_by(timeout)
        return events


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in a virtual loop of its own, as `asyncio.run` would in a real one."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
