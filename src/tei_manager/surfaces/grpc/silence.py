"""How long an engine may be silent while it owes an answer."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from tei_manager.domain import errors


class Silence:
    """A limit on waiting for the next answer of a stream: `async with Silence(secs, answers_once=...) as silence`.

    The clock runs only while we wait for the engine and it owes something: an answer per message, or, if it
    answers once, that answer after the last message. A slow caller is no silence. 0 = no limit. When time is over,
    the block ends with `errors.UpstreamTimeout`.
    """

    def __init__(self, secs: float, *, answers_once: bool) -> None:
        self._secs, self._answers_once = secs, answers_once
        self._owed = 0
        self._all_sent = self._is_waiting = False
        self._limit = asyncio.timeout(None)

    def sent(self) -> None:
        """One more message went to the engine."""
        if not self._answers_once:
            self._owed += 1
        self._start()

    def all_sent(self) -> None:
        """No more messages will come: the end of the call is owed."""
        self._all_sent = True
        self._start()

    def waiting(self) -> None:
        """From now on we wait for the engine."""
        self._is_waiting = True
        self._start()

    def answered(self) -> None:
        """The engine said something; we do not wait for it until `waiting` is called again."""
        self._is_waiting = False
        self._owed = max(0, self._owed - 1)
        if self._limit.when() is not None:
            self._limit.reschedule(None)

    def _start(self) -> None:
        if self._secs and self._is_waiting and (self._owed or self._all_sent) and self._limit.when() is None:
            self._limit.reschedule(asyncio.get_running_loop().time() + self._secs)

    async def __aenter__(self) -> Self:
        await self._limit.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._limit.__aexit__(kind, error, trace)
        except TimeoutError:
            raise errors.UpstreamTimeout("Request timeout") from None
