"""The main verb: admit → resolve → split → (pick → call → settle) → join.

Vectors inside are contiguous float32 arrays; what a caller wants to see is made of them at the edge.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tei_manager.domain import errors
from tei_manager.domain.request import EmbedCall, Input
from tei_manager.domain.target import Endpoint
from tei_manager.ports.grpc_upstream import GrpcUpstream
from tei_manager.ports.http_upstream import HttpUpstream
from tei_manager.ports.metrics import HttpMetrics
from tei_manager.serving import faults
from tei_manager.serving.caller import Caller
from tei_manager.serving.providers.instances import Facts, Vectors
from tei_manager.serving.router import Router

OP = "embed"


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    request_timeout_secs: float = 600
    max_concurrency: int = 8  # parts of one request in flight
    max_part_bytes: int = 1_500_000  # of text: engines refuse bodies above 2 MB


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive inputs that go upstream in one call."""

    first: int
    inputs: Sequence[Input]


class Gateway:
    """One object serves all HTTP dialects. It touches permits, counters and one upstream; it asks no fleet.

    Without `grpc`, engines that speak gRPC only are refused as `OPERATION_NOT_SUPPORTED`.
    """

    def __init__(
        self,
        *,
        router: Router,
        http: HttpUpstream,
        metrics: HttpMetrics,
        grpc: GrpcUpstream | None = None,
        settings: GatewaySettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._router, self._pool, self._metrics = router, router.pool, metrics
        self._caller = Caller(http, grpc)
        self._pool.on_gone(self._caller.forget)
        self._settings, self._clock = settings or GatewaySettings(), clock

    async def embed(self, call: EmbedCall) -> Vectors:
        """Vectors for all inputs in their order, or one error: never a short answer.

        Raises `errors.UnknownTarget`, `errors.NotReady`, `errors.CallerError`, `errors.UpstreamError`.
        """
        deadline = self._clock() + self._settings.request_timeout_secs
        try:
            async with asyncio.timeout(self._settings.request_timeout_secs):
                candidates = self._router.resolve_any(call.target)
                facts = await self._facts(call, candidates)
                _admit(call, facts)
                parts = split(call.inputs, max_items=facts.max_batch, max_bytes=self._settings.max_part_bytes)
                answers = await self._all(call, parts, deadline)
                return join(answers)
        except TimeoutError:
            raise errors.UpstreamTimeout(f"'{call.target}' did not answer in time") from None

    async def _facts(self, call: EmbedCall, candidates: Sequence[Endpoint]) -> Facts:
        """What every candidate can take. One plain text needs no question: that is the warm path."""
        if len(call.inputs) == 1 and isinstance(call.inputs[0], str) and call.dimensions is None:
            return self._caller.known_facts(candidates[0]) or Facts()
        known = [await self._caller.facts(endpoint) for endpoint in candidates]
        smallest = min(known, key=lambda facts: facts.max_batch)
        return Facts(smallest.max_batch, known[0].does, known[0].vocabulary, known[0].dimensions)

    async def _all(self, call: EmbedCall, parts: Sequence[Part], deadline: float) -> list[Vectors]:
        """All parts, concurrently; the first final failure cancels the others and names its inputs."""
        if len(parts) == 1:
            return [await self._part(call, parts[0], deadline)]
        room = asyncio.Semaphore(self._settings.max_concurrency)

        async def one(part: Part) -> Vectors:
            async with room:
                try:
                    return await self._part(call, part, deadline)
                except errors.TeiManagerError as fault:
                    last = part.first + len(part.inputs) - 1
                    fault.args = (f"inputs {part.first}-{last}: {fault}",)
                    raise

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(part)) for part in parts]
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _part(self, call: EmbedCall, part: Part, deadline: float) -> Vectors:
        """One part on one endpoint; once more, elsewhere if there is an elsewhere, when that can help."""
        candidates = self._router.resolve_any(call.target)
        endpoint = self._pool.pick(candidates)
        try:
            return await self._call(endpoint, call, part, deadline)
        except (errors.UpstreamError, errors.Withdrawn) as fault:
            others = tuple(other for other in self._now(call) if other.uid != endpoint.uid)
            if fault.code in faults.AGAIN:
                others = others or (endpoint,)
            if not others or not (isinstance(fault, errors.Withdrawn) or fault.code in faults.ELSEWHERE):
                raise
            self._metrics.retried(endpoint.instance, fault.code.lower())
            return await self._call(self._pool.pick(others), call, part, deadline)

    async def _call(self, endpoint: Endpoint, call: EmbedCall, part: Part, deadline: float) -> Vectors:
        began, outcome = self._clock(), "cancelled"
        try:
            with self._pool.permit(endpoint) as permit:
                left = deadline - self._clock()
                vectors = await self._caller.embed(endpoint, call, part.inputs, timeout_secs=left)
                permit.succeeded()
            outcome = "ok"
            return vectors
        except errors.TeiManagerError as fault:
            outcome = fault.code.lower()
            raise
        finally:
            self._metrics.upstream(endpoint.instance, OP, outcome, self._clock() - began)

    def _now(self, call: EmbedCall) -> tuple[Endpoint, ...]:
        """Who could answer by now: the table may have changed since a call began."""
        try:
            return self._router.resolve_any(call.target)
        except (errors.UnknownTarget, errors.NotReady):
            return ()


def _admit(call: EmbedCall, facts: Facts) -> None:
    """Refuse what the engine is known to refuse, before anything is sent."""
    if facts.does not in (None, OP):
        raise errors.CallerError(
            f"'{call.target}' does not embed: its operation is {facts.does}", code="OPERATION_NOT_SUPPORTED"
        )
    if facts.dimensions is not None and call.dimensions is not None and call.dimensions > facts.dimensions:
        raise errors.CallerError(
            f"dimensions: '{call.target}' has {facts.dimensions} dimensions", code="INVALID_VALUE"
        )
    if facts.vocabulary is not None and any(
        max(each) >= facts.vocabulary for each in call.inputs if not isinstance(each, str)
    ):
        raise errors.CallerError(
            f"input: a token id is not in the vocabulary of '{call.target}'", code="INVALID_VALUE"
        )


def split(inputs: Sequence[Input], *, max_items: int, max_bytes: int) -> list[Part]:
    """Greedy, in order: 70 inputs at 32 a call are 32, 32 and 6. An input too large for a call goes alone."""
    parts: list[Part] = []
    first = size = 0
    for position, each in enumerate(inputs):
        weight = _weight(each)
        if position > first and (position - first >= max_items or size + weight > max_bytes):
            parts.append(Part(first, inputs[first:position]))
            first, size = position, 0
        size += weight
    parts.append(Part(first, inputs[first:]))
    return parts


def _weight(each: Input) -> int:
    if not isinstance(each, str):
        return 8 * len(each)
    return len(each) if each.isascii() else len(each.encode())


def join(answers: Sequence[Vectors]) -> Vectors:
    """The answers of all parts, in order. Token counts are known only if all are."""
    if len(answers) == 1:
        return answers[0]
    import numpy as np

    if len({answer.rows.shape[1] for answer in answers}) > 1:
        raise errors.UpstreamError("Vectors of different length came back", code="UPSTREAM_MALFORMED")
    counts = [answer.tokens for answer in answers]
    known = [count for count in counts if count is not None]
    return Vectors(
        np.concatenate([answer.rows for answer in answers]), sum(known) if len(known) == len(counts) else None
    )
