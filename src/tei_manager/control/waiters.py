"""Waiting for something to become true that changes in steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Waiters:
    """Whoever changes things calls `wake` after each step."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    async def until(self, predicate: Callable[[], bool], *, timeout_secs: float) -> bool:
        """Wait until `predicate` held after some step; False if the time is over first."""
        if predicate():
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (predicate, future)
        self._waiting.append(waiter)
        try:
            await asyncio.wait_for(future, timeout_secs)
        except TimeoutError:
            return predicate()
        finally:
            self._waiting.remove(waiter)
        return True

    def wake(self) -> None:
        for predicate, future in tuple(self._waiting):
            if not future.done() and predicate():
                future.set_result(None)
