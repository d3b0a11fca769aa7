"""Asking a running engine for what it knows of itself."""

from __future__ import annotations

from typing import Protocol

from tei_manager.engines.base import Page, Probe
from tei_manager.engines.metrics_reading import EngineInfo, EngineMetrics


class Inspector(Protocol):
    """Raises nothing for what the engine does: None = nothing that can be read came within `timeout_secs`."""

    async def metrics(
        self, host: str, page: Page, *, timeout_secs: float, key: str | None = None
    ) -> EngineMetrics | None:
        """What the engine has counted."""
        ...

    async def info(
        self, host: str, probe: Probe, *, timeout_secs: float, key: str | None = None
    ) -> EngineInfo | None:
        """What the engine says of itself, over the protocol of the question."""
        ...
