"""What an engine says of itself and of its work: read when somebody asks, kept, and never waited for long."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from tei_manager.control.settings import Settings
from tei_manager.control.world import World
from tei_manager.domain.figures import Figures
from tei_manager.domain.instance import InstanceSpec, Ports, Protocol
from tei_manager.engines import catalog
from tei_manager.engines.metrics_reading import EngineInfo

PATIENCE_SECS = 0.05  # of those who ask; an engine next door answers within a few milliseconds, or is busy
READ_SECS = 2.0  # of a reading: an answer that is too late for one who asked is there for the next
WARM_UP_SECS = 0.4  # of each of the two readings around a warm-up, which must not hold up the start
KEPT_SECS = 60.0  # after that, what our own doors counted says more than what the engine said once


class Readings:
    """The readings of one process, one at a time. What our own warm-up calls caused is left out of its figures."""

    def __init__(self, spec: InstanceSpec, ports: Ports, world: World, settings: Settings) -> None:
        self._spec, self._ports, self._world, self._settings = spec, ports, world, settings
        self.info: EngineInfo | None = None
        self._counted = Figures()  # by the engine, all of it
        self._ours = Figures()
        self._read_at: float | None = None  # when `_counted` was read
        self._began = 0.0
        self._done = asyncio.Event()  # no reading for somebody who asks runs
        self._done.set()

    @property
    def figures(self) -> Figures | None:
        """What the engine counted, without our own calls; None if it was not readable for a while."""
        if self._read_at is None or asyncio.get_running_loop().time() - self._read_at > KEPT_SECS:
            return None
        return self._counted - self._ours

    async def look(self, protocol: Protocol, start: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        """Begin a reading unless one runs, with `start` as a task, and wait for it: no longer than `PATIENCE_SECS`
        after it began, so that only the first who asks a stuck engine waits at all."""
        if self._done.is_set():
            self._done.clear()
            self._began = asyncio.get_running_loop().time()
            start(self._look(protocol))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._began + PATIENCE_SECS):
                await self._done.wait()

    @contextlib.asynccontextmanager
    async def left_out(self, protocol: Protocol) -> AsyncIterator[None]:
        """What the engine counts during the block is ours. A process we adopt has counted others' calls before."""
        was_read, before = await self._read(protocol, WARM_UP_SECS), self._counted
        yield
        if was_read and await self._read(protocol, WARM_UP_SECS):
            self._ours += self._counted - before

    async def _look(self, protocol: Protocol) -> None:
        try:
            await self._read(protocol, READ_SECS)
        finally:
            self._done.set()

    async def _read(self, protocol: Protocol, timeout_secs: float) -> bool:
        """Ask for the metrics and, until the engine has told, what it is; False if the metrics were not read."""
        counted, _ = await asyncio.gather(
            self._metrics(protocol, timeout_secs), self._learn(protocol, timeout_secs)
        )
        if counted is None:
            return False
        if counted.requests < self._counted.requests:
            self._ours = Figures()  # what counts there began anew, without us
        self._counted, self._read_at = counted, asyncio.get_running_loop().time()
        return True

    async def _metrics(self, protocol: Protocol, timeout_secs: float) -> Figures | None:
        page = self._world.engines[self._spec.engine].metrics(self._spec, self._ports, protocol)
        if page is None:
            return None
        metrics = await self._world.inspector.metrics(
            self._settings.instance_host, page, timeout_secs=timeout_secs, key=catalog.api_key(self._spec)
        )
        return None if metrics is None else metrics.figures

    async def _learn(self, protocol: Protocol, timeout_secs: float) -> None:
        if self.info is not None:
            return
        probe = self._world.engines[self._spec.engine].info(self._spec, self._ports, protocol)
        if probe is not None:
            self.info = await self._world.inspector.info(
                self._settings.instance_host, probe, timeout_secs=timeout_secs, key=catalog.api_key(self._spec)
            )
