"""What every engine descriptor answers: how to run the program, how to see that it is ready, how to read its end.

Pure: texts and values in, texts and values out. `control` runs what is described here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol as Interface

from tei_manager.domain.instance import InstanceSpec, Ports, Protocol
from tei_manager.kits.parsing import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the manager knows about the place where an engine will run."""

    host: str  # address the engine binds
    program: str  # the binary, as found on PATH or configured (engine `command`: unused)
    version: str | None  # first line of `<program> --version`; None = could not be asked
    environ: Mapping[str, str]  # the manager's own environment
    model_sources: Mapping[str, str] = field(default_factory=dict)  # hub id -> folder or python: resource
    resolved_model: str | None = None  # folder of a mapped or python: model, for engines that need one
    model_cache_dir: str | None = None
    stop_grace_secs: float = 30.0  # TERM to KILL


@dataclass(frozen=True, slots=True)
class Launch:
    """One process to start: argv without a shell, and the whole environment of the child.

    `secrets` are values that must never be logged or shown.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    secrets: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an instance cannot be launched as specified."""

    problems: tuple[Problem, ...]


class Ask(StrEnum):
    """One question to a running engine."""

    HTTP_HEALTH = "http_health"  # GET `path` answers 2xx
    GRPC_INFO = "grpc_info"  # tei.v1.Info/Info answers OK
    HTTP_WARM_UP = "http_warm_up"  # one tiny real request over HTTP
    GRPC_WARM_UP = "grpc_warm_up"  # the same over gRPC


@dataclass(frozen=True, slots=True)
class Probe:
    """A question, and the port it goes to."""

    ask: Ask
    port: int
    path: str = "/health"


class ExitKind(StrEnum):
    """Why a process ended, as far as its engine's habits tell; decides whether starting again can help."""

    USAGE = "usage"  # our arguments: starting again cannot help
    MISSING = "missing"  # the program is not there
    PORT = "port"  # an address was in use: another port helps
    MODEL = "model"  # the model cannot be loaded: try once more, then give up
    DOWNLOAD = "download"  # the network: try again later
    CRASH = "crash"  # a panic or a signal
    ENDED = "ended"  # it ended by itself, nothing more is known


@dataclass(frozen=True, slots=True)
class ExitReason:
    kind: ExitKind
    text: str  # "process exited with code 1: Error: …"


class Engine(Interface):
    """One inference program. Stateless; one object serves all instances."""

    @property
    def has_second_port(self) -> bool:
        """Whether gRPC listens on a port of its own beside HTTP."""
        ...

    @property
    def has_metrics_port(self) -> bool:
        """Whether the program takes a port for its own metrics."""
        ...

    def check(self, spec: InstanceSpec) -> tuple[InstanceSpec, tuple[Problem, ...]]:
        """The spec with flags lifted out of `extra_args` into their fields, and what is wrong with it."""
        ...

    def launch(self, spec: InstanceSpec, ports: Ports, around: Surroundings) -> Launch | Refusal:
        """The process to start."""
        ...

    def readiness(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Sequence[tuple[Protocol, Probe]]:
        """Questions to ask in turn until one is answered; the first answer tells the protocol."""
        ...

    def warm_up(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Probe | None:
        """One real request before the first announcement; None where the engine's API is unknown."""
        ...

    def read_exit(self, code: int | None, signal: int | None, tail: str, *, was_ready: bool) -> ExitReason:
        """What an exit means. `tail` is the end of the log of this start."""
        ...
