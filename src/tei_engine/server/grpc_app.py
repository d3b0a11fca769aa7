"""The gRPC listener: `tei.v1`, `grpc.health.v1` and reflection."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tei_engine.errors import StartError
from tei_engine.models.kinds import Kind
from tei_engine.server.grpc_schema import add_reflection
from tei_engine.server.grpc_services import servicers
from tei_engine.server.service import Service
from tei_manager.grpc.proto.tei.v1 import tei_pb2

_PARALLEL = 1024
_KINDS = {
    "tei.v1.Embed": (Kind.EMBEDDING, Kind.SPLADE),
    "tei.v1.Predict": (Kind.CLASSIFIER, Kind.RERANKER),
    "tei.v1.Rerank": (Kind.RERANKER,),
}
_OPTIONS = (
    ("grpc.so_reuseport", 0),  # with it a busy port would be shared, not refused
    ("grpc.max_receive_message_length", 32 * 1024 * 1024),
    ("grpc.max_send_message_length", -1),
    # callers may ping every 10 s, with or without a call in flight
    ("grpc.http2.min_ping_interval_without_data_ms", 9_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 9_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.absolute_max_metadata_size", 32 * 1024),
    ("grpc.http2.max_ping_strikes", 0),
)


async def start(service: Service, address: str, parallel: int = _PARALLEL) -> GrpcListener:
    """Listen on `address`. Raises StartError if it cannot be bound."""
    server = grpc.aio.server(options=_OPTIONS)
    checks = health.aio.HealthServicer()
    for register, servicer in servicers(service, parallel):
        register(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    add_reflection(server, tei_pb2, health_pb2)
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise StartError(f"could not bind {address}: Address already in use") from error
    await server.start()
    listener = GrpcListener(server, checks)
    await listener.show(ready=False)
    return listener


class GrpcListener:
    """The running server, and what its health service says."""

    def __init__(self, server: grpc.aio.Server, checks: health.aio.HealthServicer) -> None:
        self._server = server
        self._checks = checks

    async def show(self, *, ready: bool, kind: Kind | None = None) -> None:
        """Say what a model of `kind` serves; the process itself, Info and Tokenize are as long as it lives."""
        serving = health_pb2.HealthCheckResponse.SERVING
        idle = health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", "tei.v1.Info", "tei.v1.Tokenize"):
            await self._checks.set(name, serving)
        for name, kinds in _KINDS.items():
            await self._checks.set(name, serving if ready and kind in kinds else idle)

    async def drain(self, grace: float) -> None:
        """Refuse new calls and wait up to `grace` seconds for those in flight."""
        await self._checks.enter_graceful_shutdown()
        await self._server.stop(grace)
