"""What reaches a supervisor's mailbox, and what a supervisor may ask of the fleet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tei_manager.domain.exits import ExitReason
from tei_manager.domain.instance import Ports, Protocol
from tei_manager.policy.lifecycle import Event
from tei_manager.ports.store import Record


class Verb(StrEnum):
    START = "start"
    STOP = "stop"
    RESTART = "restart"
    SHUT_DOWN = "shut_down"  # stop without touching what is desired


@dataclass(frozen=True, slots=True)
class Told:
    """A verb; `heard` is done when its first step was taken."""

    verb: Verb
    heard: asyncio.Future[None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """An event from work that ran beside. It counts only for the process, or the stay in a state, it came from."""

    event: Event
    uid: str | None = None
    stay: int | None = None
    reason: ExitReason | None = None
    protocol: Protocol | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """What a supervisor may ask of the fleet."""

    changed: Callable[[], None]  # its picture is another one now
    save: Callable[[], Coroutine[Any, Any, None]]
    rebook: Callable[[Record], Ports]  # other automatic ports
    blocked: Callable[[Ports], int | None]  # the first of these ports that a foreign process holds
