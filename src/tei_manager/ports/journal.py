"""Where events are kept, and how those who follow them hear of new ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tei_manager.domain.event import Event, EventType


class Journal(Protocol):
    """Belongs to the event loop. `note` returns at once and never raises: a full disk costs events, not verbs."""

    @property
    def last_seq(self) -> int:
        """The number of the newest event, 0 before the first."""
        ...

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will come: who follows may go."""
        ...

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
        """Add an event."""
        ...

    def since(self, seq: int) -> tuple[Event, ...] | None:
        """The events after `seq`, oldest first; None if some of them are no longer (or were never) at hand."""
        ...

    async def newer(self, seq: int, *, timeout_secs: float) -> bool:
        """Wait until there is an event after `seq`, or the journal is closed; False if the time is over first."""
        ...

    async def story(self, instance: str, *, limit: int) -> list[Event]:
        """The last `limit` events of `instance`, oldest first, those of earlier runs of the manager included."""
        ...
