"""Ending a piece of work from outside with an error of our choice."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class Cuttable:
    """A block of the current task that somebody else can end: `with Cuttable() as block: ...`.

    `cut(error)` makes the block raise `error` at its next wait, once. A cancellation from elsewhere stays what it
    is. Entering and leaving never wait, so nothing that is counted by it can leak.
    """

    __slots__ = ("_before", "_error", "_task")

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._before = 0
        self._error: BaseException | None = None

    def cut(self, error: BaseException) -> None:
        if self._task is not None and self._error is None:
            self._error = error
            self._task.cancel()

    def __enter__(self) -> Self:
        task = self._task = asyncio.current_task()
        self._before = task.cancelling() if task is not None else 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if self._error is None or task is None:
            return
        # our own request to cancel is taken back; if it was the only one, the task lives on with our error
        if task.uncancel() <= self._before and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise self._error from error
