"""What happened in the manager, as the journal keeps it and `/events` sends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class EventType(StrEnum):
    CREATED = "instance.created"
    CHANGED = "instance.changed"
    DELETED = "instance.deleted"
    STATUS = "instance.status"
    PROBE_FAILED = "instance.probe_failed"
    RESTARTED = "instance.restarted"
    ADOPTED = "instance.adopted"
    BURIED = "instance.buried"
    STATE_RECOVERED = "state.recovered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """`seq` counts from 1 and never repeats; `timestamp` is seconds since the epoch."""

    seq: int
    timestamp: float
    type: str
    instance: str | None = None
    before: str | None = None
    after: str | None = None
    reason: str | None = None
    data: Mapping[str, object] = field(default_factory=dict)
