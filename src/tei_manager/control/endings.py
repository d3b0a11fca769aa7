"""Judging how runs of an instance ended: the row of its automatic restarts."""

from __future__ import annotations

from collections.abc import Callable

from tei_manager.control.settings import Settings
from tei_manager.domain.exits import ExitReason
from tei_manager.policy import restart
from tei_manager.ports.store import Record


class Endings:
    """`retry` is the last verdict: start again after a while, or None, because that would not help."""

    def __init__(self, settings: Settings, jitter: Callable[[], float]) -> None:
        self._settings, self._jitter = settings, jitter
        self._row = restart.Row()
        self.retry: restart.Retry | None = None
        self.last_error: str | None = None
        self._detail: str | None = None
        self._fresh_ports = False

    @property
    def detail(self) -> str | None:
        """What an instance shows after the last verdict."""
        return "backoff" if self.retry else self._detail

    def begin_anew(self) -> None:
        """A person's word ends the row."""
        self._row = restart.Row()

    def begin_start(self) -> None:
        """A new start clears what was said of the last ending."""
        self.retry, self.last_error = None, None

    def take_fresh_ports(self) -> bool:
        """Whether the start that begins now should be on other automatic ports. Says so once."""
        fresh, self._fresh_ports = self._fresh_ports, False
        return fresh

    def judge(self, reason: ExitReason, record: Record, *, ran_secs: float) -> None:
        """`ran_secs`: how long it had been running well, 0 if it was not."""
        if ran_secs >= self._settings.restart_reset_after_secs:
            self._row = restart.Row()
        verdict = restart.verdict(
            reason,
            self._row,
            self._settings.restart,
            ever_ready=record.ever_ready,
            automatic_ports=record.spec.port is None,
            jitter=self._jitter(),
        )
        self._row = self._row.after(reason.kind)
        if isinstance(verdict, restart.GiveUp):
            self.retry, self.last_error, self._detail = None, verdict.text, verdict.detail
        else:
            self.retry, self.last_error, self._fresh_ports = verdict, reason.text, verdict.fresh_ports
