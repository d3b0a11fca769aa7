"""A bounded log in memory that many may follow, each at its own pace, without a queue of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class EventLog(Generic[Item]):
    """Items numbered from `first` on. Belongs to one event loop."""

    def __init__(self, *, keep: int, last_seq: int = 0) -> None:
        self._items: deque[Item] = deque(maxlen=keep)
        self.last_seq = last_seq
        self.is_closed = False
        self._newer = asyncio.Event()

    def add(self, item: Item) -> None:
        """Append the item numbered `last_seq` + 1."""
        self._items.append(item)
        self.last_seq += 1
        self._wake()

    def since(self, seq: int) -> tuple[Item, ...] | None:
        """Items numbered above `seq`; None if some are not kept any more, or `seq` is yet to come."""
        missing = self.last_seq - seq
        if missing < 0 or missing > len(self._items):
            return None
        return tuple(self._items)[len(self._items) - missing :]

    async def newer(self, seq: int, *, timeout_secs: float) -> bool:
        """Wait for an item above `seq`, or the end; False if the time is over first."""
        try:
            async with asyncio.timeout(timeout_secs):
                while self.last_seq <= seq and not self.is_closed:
                    await self._newer.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Nothing more will come."""
        self.is_closed = True
        self._wake()

    def _wake(self) -> None:
        self._newer.set()
        self._newer = asyncio.Event()
