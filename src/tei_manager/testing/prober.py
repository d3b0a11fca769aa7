"""A prober that asks the processes of a `FakeMachine`.

    prober = FakeProber(machine)
    prober.says("bge", Seen(False, "503"), Seen(True))            # then always the last one
    prober.says("bge", Seen(True), about=Ask.HTTP_WARM_UP)
    prober.becomes_ready_after("bge", 120)                        # seconds from the first question to each process
    prober.tells("bge", info=EngineInfo(version="1.9.3"))
    prober.counted["bge"] = EngineMetrics(latency=Summary(0.5, 10))  # None = its page cannot be read

A port on which no process listens refuses. An instance of which nothing was said answers well.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from tei_manager.engines.base import Ask, Page, Probe
from tei_manager.engines.metrics_reading import EngineInfo, EngineMetrics
from tei_manager.ports.prober import Seen
from tei_manager.testing.driver import FakeMachine, FakeProcess

WELL = Seen(True)
REFUSED = Seen(False, "connection refused", refused=True)


@dataclass(slots=True)
class _Engine:
    """How the processes of one instance answer."""

    answers: dict[Ask | None, deque[Seen]] = field(default_factory=dict)
    ready_after: float = 0.0
    takes_secs: float = 0.0
    info: EngineInfo | None = None


class FakeProber:
    """Implements `ports.prober.Prober` and `ports.inspector.Inspector`.

    `asked` is every question of a probe that met a process: (instance, probe); `readings` counts pages that were
    asked for.
    """

    def __init__(self, machine: FakeMachine) -> None:
        self.asked: list[tuple[str, Probe]] = []
        self.counted: dict[str, EngineMetrics | None] = {}
        self.readings = 0
        self._machine = machine
        self._engines: dict[str, _Engine] = {}
        self._first_asked: dict[str, float] = {}

    def says(self, name: str, *seen: Seen, about: Ask | None = None) -> None:
        """From now on give these answers in turn, the last one for ever; `about` one kind of question only."""
        self._engine(name).answers[about] = deque(seen)

    def becomes_ready_after(self, name: str, secs: float) -> None:
        """Refuse for so long after the first question to each new process."""
        self._engine(name).ready_after = secs

    def takes(self, name: str, secs: float) -> None:
        """Answer only after so long; a timeout before that is the answer then."""
        self._engine(name).takes_secs = secs

    def tells(self, name: str, info: EngineInfo | None) -> None:
        """What it says of itself from now on."""
        self._engine(name).info = info

    async def metrics(
        self, host: str, page: Page, *, timeout_secs: float, key: str | None = None
    ) -> EngineMetrics | None:
        self.readings += 1
        name = await self._answering(page.port, timeout_secs)
        return None if name is None else self.counted.get(name, EngineMetrics())

    async def info(
        self, host: str, probe: Probe, *, timeout_secs: float, key: str | None = None
    ) -> EngineInfo | None:
        name = await self._answering(probe.port, timeout_secs)
        return None if name is None else self._engine(name).info

    async def _answering(self, port: int, timeout_secs: float) -> str | None:
        """The instance behind a port, when it would answer; None if it does not in time."""
        if (process := self._listener(port)) is None:
            return None
        name = process.order.name
        takes_secs = self._engine(name).takes_secs
        await asyncio.sleep(min(takes_secs, timeout_secs))
        return name if takes_secs <= timeout_secs and process.is_alive else None

    async def ask(self, host: str, probe: Probe, *, timeout_secs: float, key: str | None = None) -> Seen:
        if (process := self._listener(probe.port)) is None:
            return REFUSED
        name, engine = process.order.name, self._engine(process.order.name)
        self.asked.append((name, probe))
        now = asyncio.get_running_loop().time()
        if now - self._first_asked.setdefault(process.handle.nonce, now) < engine.ready_after:
            return REFUSED
        if engine.takes_secs > timeout_secs:
            await asyncio.sleep(timeout_secs)
            return Seen(False, f"no answer within {timeout_secs:g}s")
        await asyncio.sleep(engine.takes_secs)
        if not process.is_alive:
            return Seen(False, "connection reset")
        answers = engine.answers.get(probe.ask) or engine.answers.get(None)
        if not answers:
            return WELL
        return answers.popleft() if len(answers) > 1 else answers[0]

    def _engine(self, name: str) -> _Engine:
        return self._engines.setdefault(name, _Engine())

    def _listener(self, port: int) -> FakeProcess | None:
        living = (process for process in self._machine.living() if process.is_alive)
        return next((process for process in living if str(port) in process.order.argv), None)
