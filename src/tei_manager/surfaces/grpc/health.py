"""grpc.health.v1: what serves, by the names of the contract."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from tei_manager.domain.target import Endpoint
from tei_manager.serving.router import Router
from tei_manager.surfaces.grpc.methods import MULTIPLEXER, NATIVE

SERVICE = "grpc.health.v1.Health"
_Context = grpc.aio.ServicerContext[Any, Any]


class Health:
    """Check and Watch over the router's table. A watcher hears of a change when the table is replaced."""

    def __init__(self, router: Router, is_serving: Callable[[], bool]) -> None:
        self._router, self._is_serving = router, is_serving
        self._told = asyncio.Event()
        self.handlers = {
            f"/{SERVICE}/Check": grpc.unary_unary_rpc_method_handler(
                self._check,
                request_deserializer=health_pb2.HealthCheckRequest.FromString,
                response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
            ),
            f"/{SERVICE}/Watch": grpc.unary_stream_rpc_method_handler(
                self._watch,
                request_deserializer=health_pb2.HealthCheckRequest.FromString,
                response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
            ),
        }

    def status(self, name: str) -> int:
        """SERVING, NOT_SERVING or, for a name that means nothing, SERVICE_UNKNOWN."""
        if not self._is_known(name):
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        return (
            health_pb2.HealthCheckResponse.SERVING
            if self._is_serving() and self._can_serve(name)
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )

    def close(self) -> None:
        """Tell watchers that we no longer serve, and end their calls."""
        self._told.set()

    def _is_known(self, name: str) -> bool:
        kind, _, rest = name.partition("/")
        table = self._router.table
        if kind == "instance" and rest:
            return rest in table.by_name
        if kind == "model" and rest:
            return rest in table.by_model
        return name in ("", MULTIPLEXER, *NATIVE)

    def _can_serve(self, name: str) -> bool:
        kind, _, rest = name.partition("/")
        table = self._router.table
        if kind == "instance" and rest:
            return rest in table.ready
        if kind == "model" and rest:
            return bool(table.models.get(rest))
        return name in ("", MULTIPLEXER) or any(_speaks(endpoint) for endpoint in table.ready.values())

    async def _check(
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> health_pb2.HealthCheckResponse:
        status = self.status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Unknown service '{request.service}'")
        return health_pb2.HealthCheckResponse(status=status)

    async def _watch(self, request: health_pb2.HealthCheckRequest, context: _Context) -> None:
        before: int | None = None
        while True:
            changed = asyncio.ensure_future(self._router.changed())
            ended = asyncio.ensure_future(self._told.wait())
            try:
                if (now := self.status(request.service)) != before:
                    before = now
                    await context.write(health_pb2.HealthCheckResponse(status=now))
                if self._told.is_set():
                    return
                await asyncio.wait((changed, ended), return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
                ended.cancel()


def _speaks(endpoint: Endpoint) -> bool:
    return endpoint.grpc_port is not None
