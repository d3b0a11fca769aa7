"""Where desired state is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from tei_manager.domain.instance import Desired, InstanceSpec, Origin, Ports
from tei_manager.ports.driver import Handle


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One instance as the state file keeps it."""

    spec: InstanceSpec
    ports: Ports
    created_at: float
    desired: Desired
    origin: Origin
    restarts: int = 0
    ever_ready: bool = False
    intent_nonce: str | None = None  # a start was about to happen; its handle may have been lost
    handle: Handle | None = None
    launched: str | None = None  # digest of the specification that `handle` runs with
    seed: dict[str, object] | None = None  # the file's values last applied


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    records: tuple[Record, ...] = ()
    deleted_seeds: dict[str, dict[str, object]] = field(
        default_factory=dict
    )  # name -> file values it was deleted with


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read, and what the operator should know about it: (warning code, message)."""

    state: State
    warnings: tuple[tuple[str, str], ...] = ()


class Store(Protocol):
    async def load(self) -> Loaded:
        """Read the state. Raises `errors.StateError` if it is unreadable and no backup helps."""
        ...

    async def save(self, state: State) -> None:
        """Make `state` durable. Raises OSError; the earlier version then stands."""
        ...
