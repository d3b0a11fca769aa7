"""The gRPC listener: one port, HTTP/2, every service of the multiplexer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from tei_manager.domain import errors
from tei_manager.ports.grpc_metrics import GrpcMetrics, NoMetrics
from tei_manager.ports.grpc_upstream import GrpcUpstream
from tei_manager.serving.forward import Forwarder
from tei_manager.serving.router import Router
from tei_manager.surfaces.grpc.health import Health
from tei_manager.surfaces.grpc.multiplexer import Multiplexer

METADATA_BYTES = 16 * 1024
_IDENTITY_AND_GZIP = 0b101
# after the calls are cut their statuses still have to reach the callers
_LAST_WORDS_SECS = 1.0


class CannotListen(errors.TeiManagerError):
    """The address cannot be listened on. The manager must not run without its door."""

    code = "IO_ERROR"


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcDoorSettings:
    """`request_timeout_secs`: of unary calls, and of an engine's silence in streams; 0 = none."""

    max_parallel_streams: int = 1024
    max_message_bytes: int = 40 * 1024 * 1024
    request_timeout_secs: float = 30.0
    default_target: str = ""


class GrpcDoor:
    """`bind`, `start`, `stop`, in this order, each once. Construct it inside the running event loop."""

    def __init__(
        self,
        router: Router,
        upstream: GrpcUpstream,
        settings: GrpcDoorSettings | None = None,
        metrics: GrpcMetrics | None = None,
    ) -> None:
        settings = settings or GrpcDoorSettings()
        metrics = metrics or NoMetrics()
        self._upstream = upstream
        self._multiplexer = Multiplexer(
            router,
            Forwarder(router, upstream, metrics),
            metrics,
            request_timeout_secs=settings.request_timeout_secs,
            default_target=settings.default_target,
        )
        self._health = Health(router, lambda: not self._multiplexer.is_draining)
        router.pool.on_gone(upstream.forget)
        self._server = grpc.aio.server(options=_server_options(settings))
        self._server.add_generic_rpc_handlers(
            (_Handlers({**self._multiplexer.handlers, **self._health.handlers}),)
        )

    async def bind(self, host: str, port: int) -> int:
        """Take the address; callers may connect, and wait until `start`. Port 0 = any free one.

        Returns the port. Raises `CannotListen`.
        """
        try:
            return self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError as error:
            raise CannotListen(f"Cannot listen on {host}:{port} for gRPC: is the port in use?") from error

    async def start(self) -> None:
        await self._server.start()

    async def stop(self, drain_secs: float) -> int:
        """Refuse new calls, let those in flight finish for at most `drain_secs`, cut the rest; then close.

        Returns how many were cut; their callers get UNAVAILABLE.
        """
        draining = asyncio.create_task(self._multiplexer.drain(drain_secs), name="drain gRPC calls")
        await asyncio.sleep(0)  # from here on new calls are refused
        self._health.close()
        # connections are told at once to begin no more calls
        closing = asyncio.create_task(self._server.stop(drain_secs + _LAST_WORDS_SECS), name="close gRPC door")
        cut = await draining
        await closing
        return cut


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.get(handler_call_details.method)


def _server_options(settings: GrpcDoorSettings) -> list[tuple[str, int]]:
    return [
        # a second listener on the same port must fail instead of taking half of the connections
        ("grpc.so_reuseport", 0),
        ("grpc.max_concurrent_streams", settings.max_parallel_streams),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES),
        ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_AND_GZIP),
        # callers may ping every 10 s, with calls or without; a little earlier is not punished
        ("grpc.http2.min_ping_interval_without_data_ms", 9_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.max_pings_without_data", 0),
    ]
