"""Quantiles of measured seconds."""

from __future__ import annotations

from collections.abc import Sequence


def quantile_ms(secs: Sequence[float], share: float) -> float:
    """The smallest of `secs`, in milliseconds, that at least `share` of them do not exceed."""
    ordered = sorted(secs)
    return 1e3 * ordered[min(len(ordered) - 1, int(len(ordered) * share))]
