"""What the gRPC door counts. Every method returns at once and never raises."""

from __future__ import annotations

from typing import Protocol


class GrpcMetrics(Protocol):
    """`method` is in snake_case; `instance` is a registered name or `unknown`, never a caller's text."""

    def connected(self, instance: str) -> None:
        """A connection to an engine was opened."""
        ...

    def began(self, instance: str, method: str, *, is_stream: bool) -> None:
        """An engine call begins, a repeated one included."""
        ...

    def left(self, instance: str, *, is_stream: bool) -> None:
        """That engine call is over."""
        ...

    def retried(self, instance: str) -> None:
        """A call is given up at `instance` and made again elsewhere."""
        ...

    def ended(self, instance: str, method: str, code: str, secs: float, *, own_secs: float | None = None) -> None:
        """A caller's call ended with the gRPC code of that name. `own_secs`: the part of a unary call that was not
        spent in the engine; None for streams."""
        ...


class NoMetrics:
    """Counts nothing."""

    def connected(self, instance: str) -> None:
        pass

    def began(self, instance: str, method: str, *, is_stream: bool) -> None:
        pass

    def left(self, instance: str, *, is_stream: bool) -> None:
        pass

    def retried(self, instance: str) -> None:
        pass

    def ended(self, instance: str, method: str, code: str, secs: float, *, own_secs: float | None = None) -> None:
        pass
