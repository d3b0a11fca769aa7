"""The ports through which the control plane acts, in one value."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tei_manager.domain.instance import EngineKind
from tei_manager.engines.base import Engine
from tei_manager.ports.driver import Driver
from tei_manager.ports.fleet import LogSlice
from tei_manager.ports.frontdoor import FrontDoor
from tei_manager.ports.inspector import Inspector
from tei_manager.ports.journal import Journal
from tei_manager.ports.metrics import ControlMetrics
from tei_manager.ports.prober import Prober
from tei_manager.ports.store import Store


class LogFiles(Protocol):
    """Bounded reads of instance logs. Methods block on the disk: call them in a thread."""

    def size(self, path: str) -> int: ...

    def tail(self, path: str, *, max_bytes: int = 16384, since_offset: int = 0) -> str: ...

    def read_slice(
        self, path: str, *, start: int | None = None, end: int | None = None, tail: int | None = None
    ) -> LogSlice: ...


class Models(Protocol):
    """Where models lie on this machine. Methods block on the disk: call them in a thread."""

    def folder(self, source: str) -> str | None:
        """The folder of a `python:` resource or of a path, None if it is not there."""
        ...

    def files(self, folder: str, suffix: str) -> tuple[str, ...]:
        """Names of the files in `folder`, and one level below, that end with `suffix`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    engines: Mapping[EngineKind, Engine]
    driver: Driver
    prober: Prober
    inspector: Inspector
    frontdoor: FrontDoor
    store: Store
    logs: LogFiles
    models: Models
    metrics: ControlMetrics
    journal: Journal
    port_is_free: Callable[[str, int], bool]
    environ: Mapping[str, str]
    gpus: Callable[[], tuple[str, ...] | None] = lambda: None  # UUIDs in PCI order; blocks; None = cannot be asked
    now: Callable[[], float] = time.time
    jitter: Callable[[], float] = field(default=lambda: random.uniform(-1.0, 1.0))  # noqa: S311 - not a secret
