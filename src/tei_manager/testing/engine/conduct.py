"""What happens to an inference request besides its answer: the script's faults, permits and counters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tei_manager.testing.engine.command_line import Options
from tei_manager.testing.engine.faults import Fault, fault, scripted_fault
from tei_manager.testing.engine.imitation import Answer
from tei_manager.testing.engine.metrics import Metrics

T = TypeVar("T")
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Timed(Answer[T]):
    """An answer with the seconds it took."""

    seconds: float


class Conduct:
    """The state that all doors share: loading or ready, healthy or not, and the number of requests so far."""

    def __init__(self, options: Options, crash: Callable[[str], None]) -> None:
        self.options = options
        self.metrics = Metrics()
        self.ready = False
        self.healthy = True
        self.draining = False
        self._crash = crash
        self.arrived = 0  # inference requests so far
        self._permits = options.max_concurrent_requests
        self._freed = asyncio.Event()
        self._ballast: list[bytearray] = []

    def grow(self, mib: int) -> None:
        """Take so much memory and touch its pages."""
        if mib:
            # `* n` writes every byte; bytearray(n) would only reserve zero pages
            self._ballast.append(bytearray(b"\x01") * (mib * MIB))

    def refusal(self) -> Fault | None:
        """Why no request is served now, if so."""
        if not self.ready:
            return fault("Unhealthy", "model is loading")
        return None

    def ill(self) -> Fault | None:
        """What a probe is told, if not that all is well."""
        if not self.ready:
            return fault("Unhealthy", "model is loading")
        if self.draining:
            return fault("Unhealthy", "shutting down")
        return None if self.healthy else fault("Unhealthy", "unhealthy")

    @property
    def hangs(self) -> bool:
        """Whether inference answers no more."""
        limit = self.options.script.hang_after_requests
        return limit is not None and self.arrived > limit

    async def run(
        self,
        work: Callable[[], Answer[T]],
        *,
        inputs: int = 1,
        method: str = "single",
        family: str | None = None,
        waits: bool = False,
    ) -> Timed[T]:
        """Serve one inference request: count it, let the script have its way, then compute the answer.

        `family` (`embed`, `predict`, None) names the series that count the inputs; `waits` = the caller queues for
        permits instead of being refused. Raises the Fault that the caller is to be told.
        """
        metrics = self.metrics
        metrics.add("te_request_count", {"method": method})
        if family:
            metrics.add(f"te_{family}_count", amount=inputs)
        metrics.queue_size += inputs
        began = time.perf_counter()
        held = 0
        try:
            while self._permits < inputs:
                if not waits:
                    raise fault("Overloaded", "Model is overloaded")
                self._freed.clear()
                await self._freed.wait()
            self._permits -= inputs
            held = inputs
            await self._script()
            answer = work()
        except Fault as error:
            metrics.add("te_request_failure", {"err": error.label})
            raise
        except asyncio.CancelledError:
            metrics.add("te_request_failure", {"err": "dropped"})
            raise
        finally:
            self._permits += held
            self._freed.set()
            metrics.queue_size -= inputs
        seconds = time.perf_counter() - began
        self._succeeded(answer, inputs, method, family, seconds)
        return Timed(answer.value, answer.characters, answer.tokens, seconds)

    async def _script(self) -> None:
        script = self.options.script
        self.arrived += 1
        number = self.arrived
        self.grow(script.grow_mib_per_request)
        if script.crash_after_requests is not None and number > script.crash_after_requests:
            self._crash(f"scripted crash after {script.crash_after_requests} requests")
        if self.hangs:
            await asyncio.Event().wait()
        if script.answer_after:
            await asyncio.sleep(script.answer_after)
        if script.error_every and number % script.error_every == 0:
            raise scripted_fault(script.error_status, script.error_grpc_status)

    def _succeeded(self, answer: Answer[T], inputs: int, method: str, family: str | None, seconds: float) -> None:
        metrics = self.metrics
        metrics.add("te_request_success", {"method": method})
        metrics.observe("te_request_input_length", answer.tokens)
        metrics.observe("te_batch_next_size", inputs)
        metrics.observe("te_batch_next_tokens", answer.tokens)
        for name in ("request", family) if family else ("request",):
            metrics.observe(f"te_{name}_duration", seconds)
            metrics.observe(f"te_{name}_inference_duration", seconds)
            metrics.observe(f"te_{name}_queue_duration", 0.0)
            metrics.observe(f"te_{name}_tokenization_duration", 0.0)
        if family:
            metrics.add(f"te_{family}_success", amount=inputs)


def cost_headers(answer: Timed[T]) -> dict[str, str]:
    """The x-* headers of TEI: times in whole milliseconds, all of it inference."""
    milliseconds = str(int(answer.seconds * 1000))
    return {
        "x-compute-type": "cpu",
        "x-compute-time": milliseconds,
        "x-compute-characters": str(answer.characters),
        "x-compute-tokens": str(answer.tokens),
        "x-total-time": milliseconds,
        "x-tokenization-time": "0",
        "x-queue-time": "0",
        "x-inference-time": milliseconds,
    }
