"""State in memory. tests/contract/test_store.py runs on it and on the real one."""

from __future__ import annotations

import asyncio

from tei_manager.ports.store import Loaded, State


class MemoryStore:
    """Implements `ports.store.Store`.

    `state` is what a restarted manager would load, `saved` every version that was saved, oldest first. While
    `failure` is set, saving raises it.
    """

    def __init__(self, state: State | None = None, *, warnings: tuple[tuple[str, str], ...] = ()) -> None:
        self.state = state or State()
        self.saved: list[State] = []
        self.failure: OSError | None = None
        self.save_secs = 0.0
        self._warnings = warnings
        self._lock = asyncio.Lock()

    async def load(self) -> Loaded:
        return Loaded(self.state, self._warnings)

    async def save(self, state: State) -> None:
        async with self._lock:
            await asyncio.sleep(self.save_secs)
            if self.failure is not None:
                raise self.failure
            self.state = state
            self.saved.append(state)

    async def close(self) -> None:
        """Nothing is kept open."""
