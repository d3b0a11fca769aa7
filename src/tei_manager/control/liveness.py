"""Whether a running process still answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from tei_manager.control import watch
from tei_manager.control.process import Process
from tei_manager.control.settings import Settings
from tei_manager.control.world import World
from tei_manager.domain.event import EventType
from tei_manager.domain.exits import ExitKind, ExitReason
from tei_manager.domain.instance import Protocol

log = structlog.get_logger("tei_manager.control.liveness")


class Liveness:
    """What the probes of one instance have shown."""

    def __init__(self, world: World, settings: Settings) -> None:
        self._world, self._settings = world, settings
        self.failures = 0  # in a row
        self.last_check: float | None = None
        self.error: str | None = None  # why the last one failed

    def begin(self) -> None:
        """A new run begins: nothing has failed yet."""
        self.failures, self.error = 0, None

    def passed(self) -> None:
        """It answered just now."""
        self.failures, self.last_check, self.error = 0, self._world.now(), None

    async def until_dead(self, process: Process, protocol: Protocol, on_check: Callable[[], None]) -> ExitReason:
        """Ask every interval; returns once it has failed so often that it must be started again."""
        loop, settings, metrics = asyncio.get_running_loop(), self._settings, self._world.metrics
        name, limit = process.spec.name, settings.max_failures_before_restart
        round_began = due = loop.time()
        while True:
            # by the clock, not after the last answer: slow probes must not make the rounds longer
            due = max(due + settings.health_check_interval_secs, loop.time())
            await asyncio.sleep(due - loop.time())
            asked_at = loop.time()
            seen = await watch.ask_alive(process.subject, self._world, settings, protocol)
            metrics.probed(name, loop.time() - asked_at)
            served, last_round, round_began = (
                self._world.frontdoor.last_success(process.uid),
                round_began,
                asked_at,
            )
            if seen.ok or (served is not None and served > last_round):
                # busy is not dead: an engine that finished a call since the last round is alive
                self.passed()
                on_check()
                continue
            self.failures, self.last_check, self.error = self.failures + 1, self._world.now(), seen.text
            metrics.probe_failed(name)
            self._world.journal.note(
                EventType.PROBE_FAILED, instance=name, reason=seen.text, data={"failures": self.failures}
            )
            log.warning("Health check failed", instance=name, failures=self.failures, reason=seen.text)
            on_check()
            settled = loop.time() - process.spawned_at >= settings.health_check_initial_delay_secs
            if limit and self.failures >= limit and settled:
                return ExitReason(ExitKind.UNHEALTHY, f"failed {self.failures} health checks: {seen.text}")
