"""Admission: one permit per input, held from before tokenising until the answer is written."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from tei_engine import errors

_SHARE = 8
"""One permit in so many stays out of reach of those who wait, so that a stream cannot shut everybody else out."""


class Permits:
    """`limit` permits, `in_use` of them held. Belongs to one event loop; releasing never awaits.

    Who waits (streams, large requests) has all but `reserve` permits, in the order of arrival. Who cannot wait
    takes what is free, but goes past those who wait only into the reserve: neither can shut out the other.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_use = 0
        self.reserve = limit // _SHARE
        self._held: dict[int, int] = {}
        self._from_reserve: dict[int, int] = {}
        self._next = 0
        self._waiting: deque[tuple[int, asyncio.Future[int]]] = deque()

    def take_nowait(self, count: int) -> int | None:
        """Take `count` permits at once, returning the holder's number; None if they are not all free."""
        if self.in_use + count > self.limit:
            return None
        if not self._waiting:
            return self._grant(count)
        if sum(self._from_reserve.values()) + count > self.reserve:
            return None
        holder = self._grant(count)
        self._from_reserve[holder] = count
        return holder

    async def take(self, count: int) -> int:
        """Wait in line for `count` permits, or for all beside the reserve; returns the holder's number."""
        count = min(count, self.limit - self.reserve)
        if not self._waiting and self._has_room(count):
            return self._grant(count)
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
        self._from_reserve.pop(holder, None)
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

    def _has_room(self, count: int) -> bool:
        shared = self.in_use - sum(self._from_reserve.values())
        return shared + count <= self.limit - self.reserve

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
            elif self._has_room(count):
                self._waiting.popleft()
                turn.set_result(self._grant(count))
            else:
                return
