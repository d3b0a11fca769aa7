"""Keeps the state file in step with memory: serial, coalescing, and never the reason that a request fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from tei_manager.ports.store import State, Store

log = structlog.get_logger("tei_manager.control.keeper")

RETRY_SECS = 5.0


class Keeper:
    """Saves what `snapshot()` returns. One save runs at a time; callers that wait meanwhile share the next one."""

    def __init__(self, store: Store, snapshot: Callable[[], State]) -> None:
        self._store, self._snapshot = store, snapshot
        self._writing: asyncio.Task[None] | None = None
        self._asked = 0
        self._saved = 0
        self._failure: str | None = None

    @property
    def is_failing(self) -> bool:
        return self._failure is not None

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
            if self._failure is not None:
                await self.save()

    async def _save(self) -> None:
        covers = self._asked
        try:
            await self._store.save(self._snapshot())
        except (
            Exception
        ) as error:  # whatever it is: those who wait are answered, a full disk must not stop the fleet
            if self._failure is None:
                log.error("State could not be saved", error=str(error) or repr(error), retry_secs=RETRY_SECS)
            self._failure = str(error) or repr(error)
        else:
            if self._failure is not None:
                log.info("State saved again")
            self._failure = None
            log.debug("State saved")
        self._saved = covers
