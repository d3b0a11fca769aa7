"""A front door without requests: it records what it is told, and holds calls in flight as asked.

door = FakeFrontDoor()
call = door.begin_call("bge")       # a withdrawal waits for it
call.end()
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from tei_manager.domain.figures import Figures
from tei_manager.domain.instance import Instance
from tei_manager.domain.target import Endpoint


@dataclass(eq=False, slots=True)
class Call:
    """One call in flight. `is_cut`: a withdrawal did not wait for it any longer."""

    slot: _Slot
    began: float
    is_cut: bool = False

    def end(self) -> None:
        """It ended well."""
        self.slot.calls.discard(self)
        now = self.slot.last_success = asyncio.get_running_loop().time()
        self.slot.figures += Figures(requests=1, timed=1, seconds=now - self.began)
        if not self.slot.calls:
            self.slot.is_empty.set()


@dataclass(eq=False, slots=True)
class _Slot:
    endpoint: Endpoint
    calls: set[Call] = field(default_factory=set)
    last_success: float | None = None
    figures: Figures = field(default_factory=Figures)
    is_empty: asyncio.Event = field(default_factory=asyncio.Event)


class FakeFrontDoor:
    """Implements `ports.frontdoor.FrontDoor`. `events` are ("announce" | "withdraw", instance) in order."""

    def __init__(self) -> None:
        self.published: tuple[Instance, ...] = ()
        self.events: list[tuple[str, str]] = []
        self.failure: Exception | None = None  # raised by `announce` while it is set
        self._slots: dict[str, _Slot] = {}

    @property
    def endpoints(self) -> dict[str, Endpoint]:
        """What may be called now, by uid."""
        return {uid: slot.endpoint for uid, slot in self._slots.items()}

    def begin_call(self, name: str) -> Call:
        slot = next(slot for slot in self._slots.values() if slot.endpoint.instance == name)
        call = Call(slot, asyncio.get_running_loop().time())
        slot.calls.add(call)
        slot.is_empty.clear()
        return call

    def publish(self, instances: tuple[Instance, ...]) -> None:
        self.published = instances

    def announce(self, endpoint: Endpoint) -> None:
        if self.failure is not None:
            raise self.failure
        self.events.append(("announce", endpoint.instance))
        self._slots[endpoint.uid] = _Slot(endpoint)

    async def withdraw(self, uid: str, *, drain_secs: float) -> int:
        if (slot := self._slots.pop(uid, None)) is None:
            return 0
        self.events.append(("withdraw", slot.endpoint.instance))
        if slot.calls and drain_secs > 0:
            try:
                async with asyncio.timeout(drain_secs):
                    await slot.is_empty.wait()
            except TimeoutError:
                pass
        for call in slot.calls:
            call.is_cut = True
        return len(slot.calls)

    def last_success(self, uid: str) -> float | None:
        slot = self._slots.get(uid)
        return slot.last_success if slot is not None else None

    def figures(self, uid: str) -> Figures:
        slot = self._slots.get(uid)
        return slot.figures if slot is not None else Figures()
