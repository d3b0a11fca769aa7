"""Admission: one permit per input, held from before tokenising until the answer is written."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from tei_engine import errors


class Permits:
    """`limit` permits, `in_use` of them held. Belongs to one event loop; releasing never awaits."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_use = 0
        self._held: dict[int, int] = {}
        self._next = 0
        self._waiting: deque[tuple[int, asyncio.Future[int]]] = deque()

    def take_nowait(self, count: int) -> int | None:
        """Take `count` permits at once, returning the holder's number; None if they are not all free.

        Those who wait go first: nothing is taken past them.
        """
        if self._waiting or self.in_use + count > self.limit:
            return None
        return self._grant(count)

    async def take(self, count: int) -> int:
        """Wait in line for `count` permits (more than `limit` count as `limit`); returns the holder's number."""
        count = min(count, self.limit)
        holder = self.take_nowait(count)
        if holder is not None:
            return holder
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        place = (count, turn)
        self._waiting.append(place)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(turn.result())  # granted and cancelled in the same turn of the loop
            elif place in self._waiting:
                self._waiting.remove(place)
                self._wake()
            raise

    def release(self, holder: int) -> None:
        """Give back what `holder` took."""
        self.in_use -= self._held.pop(holder, 0)
        self._wake()

    @contextmanager
    def hold_nowait(self, count: int) -> Iterator[None]:
        """Hold `count` permits within the block. Raises RequestError Overloaded if they are not free."""
        holder = self.take_nowait(count)
        if holder is None:
            raise errors.overloaded()
        try:
            yield
        finally:
            self.release(holder)

    @asynccontextmanager
    async def hold(self, count: int) -> AsyncIterator[None]:
        """Hold `count` permits within the block, waiting for them."""
        holder = await self.take(count)
        try:
            yield
        finally:
            self.release(holder)

    def _grant(self, count: int) -> int:
        self._next += 1
        self._held[self._next] = count
        self.in_use += count
        return self._next

    def _wake(self) -> None:
        while self._waiting:
            count, turn = self._waiting[0]
            if turn.done():
                self._waiting.popleft()
            elif self.in_use + count <= self.limit:
                self._waiting.popleft()
                turn.set_result(self._grant(count))
            else:
                return
