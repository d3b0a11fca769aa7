"""Asking a running engine whether it is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tei_manager.engines.base import Probe


@dataclass(frozen=True, slots=True)
class Seen:
    """The answer to a probe.

    `refused`: nothing listens there, which while starting is no failure.
    `caller_fault`: the engine answered that our question was wrong, so it does answer.
    """

    ok: bool
    text: str = ""
    refused: bool = False
    caller_fault: bool = False


class Prober(Protocol):
    async def ask(self, host: str, probe: Probe, *, timeout_secs: float, key: str | None = None) -> Seen:
        """Ask one question. Never raises for what the engine does; a timeout is an answer, too."""
        ...
