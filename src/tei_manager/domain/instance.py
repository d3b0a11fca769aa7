"""An instance: what is wanted (`InstanceSpec`, `Desired`) and what is seen (`Instance`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum


class EngineKind(StrEnum):
    """The inference programs we know how to drive."""

    EMBEDDED = "embedded"
    TEI = "tei"
    VLLM = "vllm"
    LLAMACPP = "llamacpp"
    COMMAND = "command"


class Protocol(StrEnum):
    """What a running engine speaks; UNKNOWN until it was seen."""

    HTTP = "http"
    GRPC = "grpc"
    BOTH = "both"
    UNKNOWN = "unknown"


class Status(StrEnum):
    """The life of an instance as callers see it; the finer states are in `policy.lifecycle`."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FAILED = "failed"


class Desired(StrEnum):
    """The level a person or the configuration asked for. A shutdown of the manager does not change it."""

    RUNNING = "running"
    STOPPED = "stopped"


class Origin(StrEnum):
    API = "api"
    CONFIG = "config"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSpec:
    """What somebody wants to run. Values are checked by `domain.spec`; times are in seconds."""

    name: str
    model_id: str
    revision: str | None = None
    port: int | None = None  # None = automatic
    engine: EngineKind = EngineKind.EMBEDDED
    max_batch_tokens: int = 16384
    max_concurrent_requests: int = 512
    pooling: str | None = None
    dtype: str | None = None
    gpu_id: int | str | None = None
    gpu_ids: tuple[int | str, ...] | None = None  # () = CPU only
    prometheus_port: int | None = None  # None = automatic, 0 = none
    extra_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    startup_timeout_secs: float | None = None
    log_level: str | None = None
    protocol: Protocol | None = None  # None = found out
    aliases: tuple[str, ...] = ()
    autostart: bool = True
    command: tuple[str, ...] | None = None
    health_path: str | None = None

    def with_(self, **changes: object) -> InstanceSpec:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The ports of one instance, booked from its creation to its deletion. None = has none."""

    main: int
    grpc: int | None = None  # a second port, for engines that speak gRPC beside HTTP
    metrics: int | None = None  # the engine's own metrics port; 0 = passed as "none"

    @property
    def all(self) -> tuple[int, ...]:
        return tuple(port for port in (self.main, self.grpc, self.metrics) if port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A frozen picture of one instance: safe to hand to anybody, old the moment it is made.

    Instants are seconds since the epoch.
    """

    spec: InstanceSpec
    ports: Ports
    created_at: float
    desired: Desired = Desired.RUNNING
    origin: Origin = Origin.API
    status: Status = Status.STOPPED
    detail: str | None = None
    pid: int | None = None
    uid: str | None = None  # one per process: changes with every start
    started_at: float | None = None
    protocol: Protocol = Protocol.UNKNOWN
    restarts: int = 0
    health_check_failures: int = 0
    last_health_check: float | None = None
    probe_error: str | None = None  # why the last liveness probe of this process failed; None = it passed
    last_error: str | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def is_healthy(self) -> bool:
        """It runs, and its last liveness probe passed."""
        return self.status is Status.RUNNING and not self.health_check_failures

    @property
    def grpc_port(self) -> int | None:
        """Where this instance speaks gRPC, as far as is known."""
        if self.protocol is Protocol.HTTP:
            return None
        if self.ports.grpc is not None:
            return self.ports.grpc
        return None if self.protocol is Protocol.UNKNOWN else self.ports.main
