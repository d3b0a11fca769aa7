"""Background tasks with an owner that hears them die."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any


class Nest:
    """Named tasks of one owner. Starting a name again cancels the task that held it.

    `on_crash(name, error)` is called for every task that ends with an exception; cancellation is silent.
    """

    def __init__(self, on_crash: Callable[[str, BaseException], None]) -> None:
        self._on_crash = on_crash
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._ending: set[asyncio.Task[Any]] = set()

    def start(self, name: str, work: Coroutine[Any, Any, Any]) -> None:
        self.cancel(name)
        # not in the caller's context: work outlives the request that began it and must not log its id for ever
        task = asyncio.create_task(work, name=name, context=contextvars.Context())
        self._tasks[name] = task
        task.add_done_callback(lambda done: self._ended(name, done))

    def cancel(self, *names: str) -> None:
        """Ask tasks to end; a task that cancels its own name is left alone."""
        for name in names:
            task = self._tasks.get(name)
            if task is not None and task is not asyncio.current_task():
                self._ending.add(task)
                del self._tasks[name]
                task.cancel()

    def __contains__(self, name: str) -> bool:
        return name in self._tasks

    async def close(self) -> None:
        """Cancel everything and wait for it."""
        self.cancel(*self._tasks)
        if self._ending:
            await asyncio.gather(*self._ending, return_exceptions=True)

    def _ended(self, name: str, task: asyncio.Task[Any]) -> None:
        self._ending.discard(task)
        if self._tasks.get(name) is task:
            del self._tasks[name]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_crash(name, error)
