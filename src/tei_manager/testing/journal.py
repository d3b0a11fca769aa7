"""A journal in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tei_manager.domain.event import Event, EventType
from tei_manager.kits.eventlog import EventLog


class MemoryJournal:
    """Implements `ports.journal.Journal`; `events` is all that was noted."""

    def __init__(self, now: Callable[[], float] = lambda: 0.0, *, keep: int = 1000) -> None:
        self._now = now
        self._log: EventLog[Event] = EventLog(keep=keep)
        self.events: list[Event] = []

    @property
    def last_seq(self) -> int:
        return self._log.last_seq

    @property
    def is_closed(self) -> bool:
        return self._log.is_closed

    def note(
        self,
        kind: EventType,
        *,
        instance: str | None = None,
        before: str | None = None,
        after: str | None = None,
        reason: str | None = None,
        data: Mapping[str, object] | None = None,
    ) -> None:
        event = Event(
            seq=self._log.last_seq + 1,
            timestamp=self._now(),
            type=kind,
            instance=instance,
            before=before,
            after=after,
            reason=reason,
            data=dict(data or {}),
        )
        self.events.append(event)
        self._log.add(event)

    def since(self, seq: int) -> tuple[Event, ...] | None:
        return self._log.since(seq)

    async def newer(self, seq: int, *, timeout_secs: float) -> bool:
        return await self._log.newer(seq, timeout_secs=timeout_secs)

    async def story(self, instance: str, *, limit: int) -> list[Event]:
        return [event for event in self.events if event.instance == instance][-limit:]

    async def close(self) -> None:
        """Nothing more will come."""
        self._log.close()
