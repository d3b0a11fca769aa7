"""A door on a real socket before engines that do as they are told, all in the test's own loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tei_manager.adapters.telemetry.grpc_metrics import PrometheusGrpcMetrics
from tei_manager.adapters.upstream.grpc import GrpcUpstreams
from tei_manager.domain.instance import EngineKind, Instance, InstanceSpec, Ports, Protocol, Status
from tei_manager.domain.target import Endpoint
from tei_manager.serving.router import Router
from tei_manager.surfaces.grpc.server import GrpcDoor, GrpcDoorSettings

Behaviour = Callable[[Any], Awaitable[None]]


class ScriptedEngine:
    """Every call is a `Visit` that a behaviour answers by hand; `visits` keeps them all."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.visits: list[Visit] = []
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])
        self.server.add_generic_rpc_handlers((self._Handlers(self),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    class _Handlers(grpc.GenericRpcHandler):
        def __init__(self, engine: ScriptedEngine) -> None:
            self._engine = engine

        def service(self, details: grpc.HandlerCallDetails) -> Any:
            async def handle(_: object, context: Any) -> None:
                visit = Visit(details.method, context)
                self._engine.visits.append(visit)
                try:
                    await self._engine.behaviour(visit)
                except asyncio.CancelledError:
                    visit.cancelled.set()
                    raise

            return grpc.stream_stream_rpc_method_handler(handle)


class Visit:
    def __init__(self, path: str, context: Any) -> None:
        self.path, self.context = path, context
        self.metadata = {key: value for key, value in context.invocation_metadata()}
        self.received: list[bytes] = []
        self.cancelled = asyncio.Event()

    async def read(self) -> bytes | None:
        message = await self.context.read()
        if message is grpc.aio.EOF:
            return None
        self.received.append(message)
        return message  # type: ignore[no-any-return]


async def echo(visit: Visit) -> None:
    while (message := await visit.read()) is not None:
        await visit.context.write(message)


class World:
    """What a test plays with: engines by name, the router they are announced to, and a channel to the door."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        metrics = PrometheusGrpcMetrics(self.registry)
        self.router = Router()
        self.upstreams = GrpcUpstreams(connect_timeout_secs=1.0, max_message_bytes=200_000, metrics=metrics)
        self.settings: dict[str, Any] = {"max_message_bytes": 200_000}
        self._metrics = metrics
        self._ends: list[Callable[[], Awaitable[object]]] = []
        self.instances: dict[str, Instance] = {}
        self.door: GrpcDoor
        self.channel: grpc.aio.Channel
        self.port = 0

    async def open(self, **settings: Any) -> World:
        self.door = GrpcDoor(
            self.router, self.upstreams, GrpcDoorSettings(**{**self.settings, **settings}), self._metrics
        )
        self.port = await self.door.bind("127.0.0.1", 0)
        await self.door.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}")
        return self

    async def engine(self, name: str, behaviour: Behaviour = echo, **more: Any) -> ScriptedEngine:
        made = ScriptedEngine(behaviour)
        await made.server.start()
        self._ends.append(lambda: made.server.stop(0))
        self.announce(name, made.port, **more)
        return made

    def register(self, name: str, *, status: Status = Status.RUNNING, model: str = "org/m", **more: Any) -> None:
        spec = InstanceSpec(
            name=name,
            model_id=model,
            aliases=more.pop("aliases", ()),
            engine=more.pop("engine", EngineKind.EMBEDDED),
        )
        self.instances[name] = Instance(
            spec=spec, ports=Ports(main=1), created_at=float(len(self.instances)), status=status, **more
        )
        self.router.publish(tuple(self.instances.values()))

    def announce(self, name: str, port: int | None, **more: Any) -> None:
        self.register(name, **more)
        spec = self.instances[name].spec
        self.router.announce(
            Endpoint(
                instance=name,
                uid=f"uid-{name}",
                host="127.0.0.1",
                http_port=None if port else 1,
                grpc_port=port,
                protocol=Protocol.GRPC if port else Protocol.HTTP,
                engine=spec.engine,
                model_id=spec.model_id,
                aliases=spec.aliases,
            )
        )

    def metric(self, series: str) -> float:
        for line in generate_latest(self.registry).decode().splitlines():
            if line.startswith(series + " "):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    async def close(self) -> None:
        await self.channel.close()
        await self.door.stop(0)
        await self.upstreams.close()
        for end in self._ends:
            await end()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    await made.open()
    yield made
    await made.close()
