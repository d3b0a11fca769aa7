"""Whether and when an instance that ended by itself is started again."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tei_manager.domain.exits import ExitKind, ExitReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds, and counts where 0 means no limit."""

    base_secs: float = 30.0
    max_secs: float = 900.0
    max_restarts: int = 0
    retry_first_start: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The automatic restarts since somebody last asked for a start, or since it last ran long enough."""

    restarts: int = 0
    model_failures: int = 0
    port_failures: int = 0

    def after(self, kind: ExitKind) -> Row:
        return replace(
            self,
            restarts=self.restarts + 1,
            model_failures=self.model_failures + (kind is ExitKind.MODEL),
            port_failures=self.port_failures + (kind is ExitKind.PORT),
        )


@dataclass(frozen=True, slots=True)
class Retry:
    """Start again after `delay_secs`, on other automatic ports if `fresh_ports`."""

    delay_secs: float
    fresh_ports: bool = False


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not start again. `detail` is what the instance shows."""

    text: str
    detail: str = "exited"


_PERMANENT = {ExitKind.USAGE, ExitKind.MISSING}
# endings that say nothing about what a second try would do; the first start decides
_UNCLASSIFIED = {ExitKind.ENDED, ExitKind.TIMEOUT}


def verdict(
    reason: ExitReason,
    row: Row,
    limits: Limits,
    *,
    ever_ready: bool,
    automatic_ports: bool,
    jitter: float,
) -> Retry | GiveUp:
    """Decide after an ending. `row` is the one before it; `jitter` is in -1..1 and moves the delay by 10 %."""
    if reason.kind in _PERMANENT or (reason.kind is ExitKind.MODEL and row.model_failures >= 1):
        return GiveUp(reason.text)
    if reason.kind is ExitKind.PORT and automatic_ports and row.port_failures == 0:
        return Retry(0.0, fresh_ports=True)
    if reason.kind in _UNCLASSIFIED and not ever_ready and not limits.retry_first_start:
        return GiveUp(reason.text, "timed_out" if reason.kind is ExitKind.TIMEOUT else "exited")
    if limits.max_restarts and row.restarts >= limits.max_restarts:
        return GiveUp(f"gave up after {row.restarts} restarts ({reason.text})", "gave_up")
    return Retry(delay(row.restarts, limits, jitter))


def delay(restarts: int, limits: Limits, jitter: float) -> float:
    """Seconds before the next automatic restart in a row: 0, base, 2·base, 4·base … up to the maximum."""
    if restarts == 0:
        return 0.0
    # the exponent is bounded so that a year of restarts stays a finite number
    return min(limits.max_secs, limits.base_secs * 2.0 ** min(restarts - 1, 40)) * (1 + 0.1 * jitter)
