"""Where a call may go: what callers ask for, and what can answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from tei_manager.domain.instance import EngineKind, Protocol


@dataclass(frozen=True, slots=True)
class ByName:
    """An instance of exactly this name, else an alias."""

    name: str


@dataclass(frozen=True, slots=True)
class ByModel:
    """An alias, else any ready instance of this model id."""

    model_id: str


@dataclass(frozen=True, slots=True)
class ByIndex:
    """The n-th registered instance by (created_at, name), from 0, stopped ones included."""

    index: int


Routing = ByName | ByModel | ByIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An address ready to be called: one process of one instance.

    `uid` changes with every start, so a restarted instance never meets an old connection.
    """

    instance: str
    uid: str
    host: str
    http_port: int | None
    grpc_port: int | None
    protocol: Protocol
    engine: EngineKind
    model_id: str
    revision: str | None = None
    pooling: str | None = None
    aliases: tuple[str, ...] = ()
    max_concurrent_requests: int = 512
    key: str | None = field(default=None, repr=False)  # the engine's own API key

    @property
    def http_address(self) -> str | None:
        return f"{_bracketed(self.host)}:{self.http_port}" if self.http_port else None

    @property
    def grpc_address(self) -> str | None:
        return f"{_bracketed(self.host)}:{self.grpc_port}" if self.grpc_port else None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
