"""What runs beside a supervisor's mailbox: it takes time, and ends as an event."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from tei_manager.control import watch
from tei_manager.control.messages import Happened
from tei_manager.control.process import Process
from tei_manager.control.settings import Settings
from tei_manager.control.world import World
from tei_manager.domain.exits import ExitKind, ExitReason
from tei_manager.policy.lifecycle import Event

log = structlog.get_logger("tei_manager.control.work")


class Work:
    """Waits for one process at a time; `post` hands over what came of it."""

    def __init__(self, world: World, settings: Settings, post: Callable[[Happened], None]) -> None:
        self._world, self._settings, self._post = world, settings, post

    async def see_exit(self, process: Process, *, was_ready: Callable[[], bool]) -> None:
        reason = await process.ended(was_ready=was_ready)
        cause = "signal" if "killed by signal" in reason.text else "code"
        self._world.metrics.exited(process.spec.name, cause)
        self._post(Happened(event=Event.EXITED, uid=process.uid, reason=reason))

    async def see_ready(self, process: Process, stay: int, on_detail: Callable[[str], None]) -> None:
        """`stay` is the one in the state that is waiting: a limit that is over concerns no other."""
        seen = await watch.until_ready(process.subject, self._world, self._settings, on_detail)
        if isinstance(seen, watch.Ready):
            self._post(Happened(event=Event.HEALTHY, uid=process.uid, protocol=seen.protocol))
        else:
            reason = ExitReason(ExitKind.TIMEOUT, seen.text)
            self._post(Happened(event=Event.DUE, uid=process.uid, stay=stay, reason=reason))

    async def withdraw(self, process: Process) -> None:
        await self._world.frontdoor.withdraw(process.uid, drain_secs=0.0)

    async def drain(self, process: Process) -> None:
        cut = await self._world.frontdoor.withdraw(process.uid, drain_secs=self._settings.drain_timeout_secs)
        if cut:
            log.warning("Calls were cut", instance=process.spec.name, calls=cut)
        self._post(Happened(event=Event.DRAINED, uid=process.uid))

    async def stop(self, process: Process, on_stuck: Callable[[], None], *, after_secs: float = 0.0) -> None:
        if after_secs:
            await asyncio.sleep(after_secs)
        await process.stop(on_stuck=on_stuck)
        self._post(Happened(event=Event.EXITED, uid=process.uid))

    async def wait(self, delay_secs: float, stay: int) -> None:
        await asyncio.sleep(delay_secs)
        self._post(Happened(event=Event.DUE, stay=stay))
