"""What the control plane tells the data plane. The data plane never asks back while a call waits."""

from __future__ import annotations

from typing import Protocol

from tei_manager.domain.figures import Figures
from tei_manager.domain.instance import Instance
from tei_manager.domain.target import Endpoint


class FrontDoor(Protocol):
    def publish(self, instances: tuple[Instance, ...]) -> None:
        """Replace what is known of all registered instances, sorted by (created_at, name)."""
        ...

    def announce(self, endpoint: Endpoint) -> None:
        """From now on calls may go there."""
        ...

    async def withdraw(self, uid: str, *, drain_secs: float) -> int:
        """Close an endpoint to new calls and wait until none is in flight, at most `drain_secs`.

        Returns the number of calls that were still in flight then; they are cut. Unknown uid: 0, at once.
        """
        ...

    def last_success(self, uid: str) -> float | None:
        """Monotonic time of the last call that ended well there."""
        ...

    def figures(self, uid: str) -> Figures:
        """The calls that ended there since it was announced; nothing for an unknown uid."""
        ...
