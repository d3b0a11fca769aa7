"""Keeps the state file in step with memory: serial, coalescing, and never the reason that a request fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from tei_manager.ports.fleet import Degraded
from tei_manager.ports.store import State, Store

log = structlog.get_logger("tei_manager.control.keeper")

RETRY_SECS = 5.0


class Keeper:
    """Saves what `snapshot()` returns. One save runs at a time; callers that wait meanwhile share the next one.

    `now` is seconds since the epoch, to tell since when saving fails.
    """

    def __init__(self, store: Store, snapshot: Callable[[], State], now: Callable[[], float]) -> None:
        self._store, self._snapshot, self._now = store, snapshot, now
        self._writing: asyncio.Task[None] | None = None
        self._asked = 0
        self._saved = 0
        self.failing: Degraded | None = None  # the last save failed, and since when they do

    async def save(self) -> None:
        """Return when a snapshot at least as new as this call is durable, or could not be saved.

        A failed save is logged and repeated by `run`; memory rules until then.
        """
        self._asked += 1
        mine = self._asked
        while self._saved < mine:
            if self._writing is None or self._writing.done():
                self._writing = asyncio.create_task(self._save(), name="save state")
            # a caller who goes away takes nothing from the others
            await asyncio.shield(self._writing)

    async def run(self) -> None:
        """Repeat failed saves until cancelled."""
        while True:
            await asyncio.sleep(RETRY_SECS)
            if self.failing is not None:
                await self.save()

    async def _save(self) -> None:
        covers = self._asked
        try:
            await self._store.save(self._snapshot())
        except (
            Exception
        ) as error:  # whatever it is: those who wait are answered, a full disk must not stop the fleet
            text = str(error) or repr(error)
            if self.failing is None:
                log.error("State could not be saved", error=text, retry_secs=RETRY_SECS)
            self.failing = Degraded("state-save", self.failing.since if self.failing else self._now(), text)
        else:
            if self.failing is not None:
                log.info("State saved again")
            self.failing = None
            log.debug("State saved")
        self._saved = covers
