"""What was counted of some calls."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figures:
    """Calls that are over. `seconds` is the sum over the `timed` ones, which were answered well.

    A difference of two of them is what was counted in between.
    """

    requests: int = 0
    failed: int = 0
    timed: int = 0
    seconds: float = 0.0

    @property
    def avg_latency_secs(self) -> float | None:
        """None as long as nothing was answered well."""
        return self.seconds / self.timed if self.timed else None

    @property
    def error_rate(self) -> float:
        """Failed of all, 0.0 to 1.0; 0.0 without any."""
        return self.failed / self.requests if self.requests else 0.0

    def __add__(self, other: Figures) -> Figures:
        return Figures(
            self.requests + other.requests,
            self.failed + other.failed,
            self.timed + other.timed,
            self.seconds + other.seconds,
        )

    def __sub__(self, other: Figures) -> Figures:
        """Never below zero: rounding must not make a negative latency."""
        return Figures(
            max(0, self.requests - other.requests),
            max(0, self.failed - other.failed),
            max(0, self.timed - other.timed),
            max(0.0, self.seconds - other.seconds),
        )
