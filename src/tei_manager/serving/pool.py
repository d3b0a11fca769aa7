"""The endpoints that may be called, and who is calling them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from tei_manager.domain import errors
from tei_manager.domain.figures import Figures
from tei_manager.domain.target import Endpoint
from tei_manager.serving import cutting


class _Slot:
    """One announced endpoint. `held` is who calls it now; the rest is counted of calls that are over."""

    __slots__ = (
        "answered",
        "answered_secs",
        "ended",
        "endpoint",
        "held",
        "is_closed",
        "is_empty",
        "last_success",
        "picked",
    )

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.held: set[Permit] = set()
        self.is_closed = False
        self.is_empty = asyncio.Event()  # meaningful once closed
        self.picked = 0
        self.last_success: float | None = None
        self.ended = self.answered = 0
        self.answered_secs = 0.0


class Permit(cutting.Cuttable):
    """The right to call one endpoint, for as long as the `with` block runs.

    When the endpoint is withdrawn and its drain time is over, the block is ended with `errors.Withdrawn`. Enter it
    in the task that makes the call, by `with` or `async with`: neither waits.
    """

    __slots__ = ("_began", "_clock", "_pool", "_slot")

    def __init__(self, pool: Pool, slot: _Slot, clock: Callable[[], float]) -> None:
        super().__init__()
        self._pool, self._slot, self._clock = pool, slot, clock
        self._began = 0.0

    @property
    def endpoint(self) -> Endpoint:
        return self._slot.endpoint

    def succeeded(self) -> None:
        """The engine answered: it is alive. To be said once, when its whole answer is there."""
        slot = self._slot
        now = slot.last_success = self._clock()
        slot.answered += 1
        slot.answered_secs += now - self._began

    def __enter__(self) -> Self:
        if self._slot.is_closed:
            raise _closing(self._slot.endpoint)
        self._slot.held.add(self)
        self._began = self._clock()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._slot.held.discard(self)
        self._slot.ended += 1
        if self._slot.is_closed and not self._slot.held:
            self._pool._emptied(self._slot)
        super().__exit__(kind, error, trace)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


class Pool:
    """Permits of both doors together. Belongs to one event loop; nothing here waits but `withdraw`."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._slots: dict[str, _Slot] = {}
        self._picks = 0
        self._on_gone: list[Callable[[str], None]] = []

    def on_gone(self, callback: Callable[[str], None]) -> None:
        """Call `callback(uid)` when an endpoint is gone for good, to close its connections."""
        self._on_gone.append(callback)

    def announce(self, endpoint: Endpoint) -> None:
        """From now on permits are given for it. Announcing again replaces its description."""
        slot = self._slots.get(endpoint.uid)
        if slot is None or slot.is_closed:
            self._slots[endpoint.uid] = _Slot(endpoint)
        else:
            slot.endpoint = endpoint

    async def withdraw(self, uid: str, *, drain_secs: float) -> int:
        """Give no more permits and wait until none is held, at most `drain_secs`; then cut what is left.

        Returns how many were cut. A second, less patient withdrawal ends the first one, too.
        """
        if (slot := self._slots.get(uid)) is None:
            return 0
        slot.is_closed = True
        if slot.held and drain_secs > 0:
            try:
                async with asyncio.timeout(drain_secs):
                    await slot.is_empty.wait()
            except TimeoutError:
                pass
        left = tuple(slot.held)
        for permit in left:
            permit.cut(errors.Withdrawn(slot.endpoint.instance))
        self._emptied(slot)
        return len(left)

    def permit(self, endpoint: Endpoint) -> Permit:
        """A permit to be entered at once. Raises `errors.NotReady` if the endpoint is withdrawn."""
        if (slot := self._slots.get(endpoint.uid)) is None or slot.is_closed:
            raise _closing(endpoint)
        return Permit(self, slot, self._clock)

    def pick(self, candidates: Iterable[Endpoint]) -> Endpoint:
        """The one with the fewest calls in flight; of equals the one picked longest ago.

        Raises `errors.NotReady` if all of them are withdrawn, or there are none.
        """
        best: _Slot | None = None
        for endpoint in candidates:
            slot = self._slots.get(endpoint.uid)
            if slot is None or slot.is_closed:
                continue
            if best is None or (len(slot.held), slot.picked) < (len(best.held), best.picked):
                best = slot
        if best is None:
            raise errors.NotReady("No endpoint is ready", retry_after=1.0)
        self._picks += 1
        best.picked = self._picks
        return best.endpoint

    def in_flight(self, uid: str) -> int:
        slot = self._slots.get(uid)
        return len(slot.held) if slot is not None else 0

    def last_success(self, uid: str) -> float | None:
        """Clock time of the last call that ended well there."""
        slot = self._slots.get(uid)
        return slot.last_success if slot is not None else None

    def figures(self, uid: str) -> Figures:
        """The calls that ended there, of both doors; a stream is one call. Nothing once it is withdrawn."""
        if (slot := self._slots.get(uid)) is None:
            return Figures()
        return Figures(slot.ended, slot.ended - slot.answered, slot.answered, slot.answered_secs)

    def _emptied(self, slot: _Slot) -> None:
        slot.is_empty.set()
        uid = slot.endpoint.uid
        if self._slots.get(uid) is slot:
            del self._slots[uid]
            for callback in self._on_gone:
                callback(uid)


def _closing(endpoint: Endpoint) -> errors.NotReady:
    return errors.NotReady(f"Instance '{endpoint.instance}' is not running (status: stopping)", retry_after=1.0)
