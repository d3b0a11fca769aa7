"""Which answers count, and in how much time: the clock of one figure of the load generator."""

from __future__ import annotations

import itertools
import resource
import time
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

from benchmarks.engine.quantiles import quantile_ms

_WARM_UP = 8  # answers, and at least one for each client
_FEWEST = 10  # answers that make a figure: a slow model's window is prolonged until it has them
_BEGIN_SECS = 0.003  # after the last of them: answers of one run arrive together, and would be cut apart


class Work(Protocol):
    """What one request asks for."""

    @property
    def texts(self) -> int: ...
    @property
    def tokens(self) -> int: ...


Asked = TypeVar("Asked", bound=Work)


class Meter(Generic[Asked]):
    """Hands out requests in turn and times their answers.

    With one text per request the clients' answers flow evenly once each of them has had one: a window of `secs` is
    counted from then on. Larger requests are finished in any order, so that work hides in those under way: there
    clients begin no new one after `secs`, and everything counts from the first request to the last answer.
    """

    def __init__(self, requests: Sequence[Asked], *, clients: int, secs: float, is_whole: bool) -> None:
        self._requests = itertools.cycle(requests)
        self._clients, self._secs, self._is_whole = clients, secs, is_whole
        self._warm_up = max(_WARM_UP, clients)
        self._from = self._until = float("inf")
        self._cpu_from = self._cpu_until = 0.0
        self._last = 0.0
        self._has_begun = self._has_ended = False
        self._open = self._sent = 0
        self._taken: list[float] = []
        self._texts = self._tokens = 0

    now = staticmethod(time.perf_counter)

    @property
    def is_over(self) -> bool:
        """Whether every request has been answered and no new one will be handed out."""
        return self._open == 0 and self.now() >= self._until

    def next(self) -> Asked | None:
        """The next request to send; None once the time is over."""
        if self._is_whole and self._from == float("inf"):
            self._begin(self.now())
        if self.now() >= self._until and self._sent >= self._clients:
            return None
        self._open += 1
        self._sent += 1
        return next(self._requests)

    def answered(self, request: Asked, began: float) -> None:
        """The answer to a request that was sent at `began` (`now`) is complete."""
        now = self.now()
        self._open -= 1
        self._last = now
        if self._warm_up > 0 and not self._is_whole:
            self._warm_up -= 1
            if self._warm_up == 0:
                self._begin(now + _BEGIN_SECS)
            return
        if now < self._from:
            return
        if not self._has_begun:
            self._has_begun, self._cpu_from = True, _cpu_secs()
        while now > self._until and len(self._taken) < _FEWEST and not self._is_whole:
            self._until += self._secs
        if self._is_whole or now <= self._until:
            self._taken.append(now - began)
            self._texts += request.texts
            self._tokens += request.tokens
        if not self._has_ended and now > self._until and not self._is_whole:
            self._has_ended, self._cpu_until = True, _cpu_secs()

    def result(self) -> dict[str, Any]:
        """Rates, quantiles of the answers' times, and how much of one core this process used."""
        end = self._last if self._is_whole else self._until
        secs = end - self._from
        if not self._taken:
            raise RuntimeError("no answer within the time")
        cpu = (self._cpu_until if self._has_ended else _cpu_secs()) - self._cpu_from
        return {
            "texts_per_s": self._texts / secs,
            "tokens_per_s": self._tokens / secs,
            "p50_ms": quantile_ms(self._taken, 0.5),
            "p99_ms": quantile_ms(self._taken, 0.99),
            "answers": len(self._taken),
            "generator_cores": cpu / secs,
        }

    def _begin(self, now: float) -> None:
        self._from, self._until = now, now + self._secs
        if self._is_whole:
            self._has_begun, self._cpu_from = True, _cpu_secs()


def _cpu_secs() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
