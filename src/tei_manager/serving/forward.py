"""From a routing to an answer: resolve, pick, take a permit, call, once more elsewhere when that can help."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from tei_manager.domain import errors
from tei_manager.domain.target import Endpoint, Routing
from tei_manager.ports.grpc_metrics import GrpcMetrics
from tei_manager.ports.grpc_upstream import (
    UNAVAILABLE,
    EngineStatus,
    GrpcAnswer,
    GrpcStream,
    GrpcUpstream,
    Metadata,
    Unreachable,
)
from tei_manager.serving.providers import instances
from tei_manager.serving.router import Router

UNRESOLVED = "unknown"


class Call:
    """One caller's call, and what became of it. `deadline` is on the forwarder's clock."""

    __slots__ = ("deadline", "engine_secs", "instance", "metadata", "method", "path", "payload", "routing")

    def __init__(
        self,
        *,
        method: str,
        path: str,
        routing: Routing,
        payload: bytes,
        metadata: Metadata,
        deadline: float | None,
    ) -> None:
        self.method, self.path, self.routing, self.payload = method, path, routing, payload
        self.metadata, self.deadline = metadata, deadline
        self.instance = UNRESOLVED
        self.engine_secs = 0.0


class Forwarder:
    def __init__(
        self,
        router: Router,
        upstream: GrpcUpstream,
        metrics: GrpcMetrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._router, self._pool, self._upstream = router, router.pool, upstream
        self._metrics, self._clock = metrics, clock

    async def unary(self, call: Call) -> GrpcAnswer:
        """Make a unary call. Raises what `Router.resolve` and `GrpcUpstream.unary` raise, `errors.Unsupported`,
        and `errors.Withdrawn` when the instance is stopped meanwhile."""
        endpoint = self._pool.pick(_speaking(self._router.resolve(call.routing)))
        try:
            return await self._unary(call, endpoint)
        except (Unreachable, EngineStatus) as fault:
            other = self._other(call, endpoint, fault)
        return await self._unary(call, other)

    async def stream(self, call: Call, use: Callable[[GrpcStream, Endpoint], Awaitable[None]]) -> None:
        """Begin a streaming call and hand it to `use` once it exists at the engine; raises as `unary` does."""
        endpoint = self._pool.pick(_speaking(self._router.resolve(call.routing)))
        try:
            return await self._stream(call, endpoint, use)
        except _NothingSent as unsent:
            other = self._other(call, endpoint, unsent.fault)
        try:
            return await self._stream(call, other, use)
        except _NothingSent as unsent:
            raise unsent.fault from None

    async def _unary(self, call: Call, endpoint: Endpoint) -> GrpcAnswer:
        call.instance = endpoint.instance
        with self._pool.permit(endpoint) as permit:
            began = self._clock()
            self._metrics.began(endpoint.instance, call.method, is_stream=False)
            try:
                answer = await self._upstream.unary(
                    endpoint,
                    call.path,
                    call.payload,
                    metadata=call.metadata,
                    timeout_secs=None if call.deadline is None else call.deadline - began,
                )
            finally:
                call.engine_secs += self._clock() - began
                self._metrics.left(endpoint.instance, is_stream=False)
            permit.succeeded()
            return answer

    async def _stream(
        self, call: Call, endpoint: Endpoint, use: Callable[[GrpcStream, Endpoint], Awaitable[None]]
    ) -> None:
        call.instance = endpoint.instance
        with self._pool.permit(endpoint) as permit:
            timeout = None if call.deadline is None else call.deadline - self._clock()
            if timeout is not None and timeout <= 0:
                raise errors.UpstreamTimeout("Request timeout")
            self._metrics.began(endpoint.instance, call.method, is_stream=True)
            stream = self._upstream.stream(endpoint, call.path, metadata=call.metadata, timeout_secs=timeout)
            try:
                try:
                    await stream.connected()
                except (Unreachable, EngineStatus) as fault:
                    raise _NothingSent(fault) from None
                await use(stream, endpoint)
            finally:
                stream.cancel()
                self._metrics.left(endpoint.instance, is_stream=True)
            permit.succeeded()

    def _other(self, call: Call, tried: Endpoint, fault: Unreachable | EngineStatus) -> Endpoint:
        """Another process that may answer instead. Raises `fault` if repeating is not allowed, or cannot help."""
        if fault.is_answered or (isinstance(fault, EngineStatus) and fault.status != UNAVAILABLE):
            raise fault
        if call.deadline is not None and call.deadline <= self._clock():
            raise fault
        try:
            # the table may have changed since the call began
            others = [each for each in _speaking(self._router.resolve(call.routing)) if each.uid != tried.uid]
            other = self._pool.pick(others)
        except errors.TeiManagerError:
            raise fault from None
        self._metrics.retried(tried.instance)
        return other


class _NothingSent(Exception):
    def __init__(self, fault: Unreachable | EngineStatus) -> None:
        super().__init__(str(fault))
        self.fault = fault


def _speaking(candidates: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    """Those of `candidates` that speak gRPC. Raises `errors.Unsupported` if none does."""
    if len(candidates) == 1 and candidates[0].grpc_port:
        return candidates
    speaking = tuple(endpoint for endpoint in candidates if endpoint.grpc_port)
    if not speaking:
        first = candidates[0]
        reason = (
            "does not speak tei.v1"
            if first.engine in instances.SPEAKS_OPENAI
            else "speaks HTTP only, which the gRPC multiplexer cannot forward to"
        )
        raise errors.Unsupported(f"Instance '{first.instance}' {reason}")
    return speaking
