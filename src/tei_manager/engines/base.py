"""What every engine descriptor answers: how to run the program, how to see that it is ready, how to read its end.

Pure: texts and values in, texts and values out. `control` runs what is described here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol as Interface

from tei_manager.domain.exits import ExitKind as ExitKind
from tei_manager.domain.exits import ExitReason as ExitReason
from tei_manager.domain.instance import InstanceSpec, Ports, Protocol
from tei_manager.engines.metrics_reading import EngineMetrics
from tei_manager.kits.parsing import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the manager knows about the place where an engine will run."""

    host: str  # address the engine binds
    # the binary, as found on PATH or configured, or the first items of argv (engine `command`: unused)
    program: str | tuple[str, ...]
    version: str | None  # first line of `<program> --version`; None = could not be asked, or nothing depends on it
    environ: Mapping[str, str]  # the manager's own environment
    model_sources: Mapping[str, str] = field(default_factory=dict)  # hub id -> folder or python: resource
    resolved_model: str | None = None  # folder of a mapped or python: model, for engines that need one
    model_files: tuple[str, ...] = ()  # names of the GGUF files in `resolved_model`, for engines that need one
    model_cache_dir: str | None = None
    stop_grace_secs: float = 30.0  # TERM to KILL
    gpu_uuids: tuple[str, ...] | None = None  # of every device, in PCI bus order; None = could not be asked
    cpus: int | None = None  # of the host
    cpu_threads: int | None = None  # `engines.cpu_threads`
    run_dir: str | None = None  # folder for sockets


@dataclass(frozen=True, slots=True)
class Launch:
    """One process to start: argv without a shell, and the whole environment of the child, but for uid and nonce.

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
    OPENAI_WARM_UP = "openai_warm_up"  # the same in OpenAI's dialect, to `model`


@dataclass(frozen=True, slots=True)
class Probe:
    """A question, and the port it goes to."""

    ask: Ask
    port: int
    path: str = "/health"
    model: str | None = None  # as the engine knows it, where the question names one


@dataclass(frozen=True, slots=True)
class Page:
    """A page of metrics that an engine serves over HTTP. `read` answers None for one that tells nothing."""

    port: int
    path: str
    read: Callable[[str], EngineMetrics | None]


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

    def check(
        self, spec: InstanceSpec, around: Surroundings | None = None
    ) -> tuple[InstanceSpec, tuple[Problem, ...]]:
        """The spec with flags lifted out of `extra_args` into their fields, and what is wrong with it.

        Secrets move from `extra_args` to `env`. Without `around`, what depends on the program's version or on the
        devices of this machine is left to `launch`. Checking twice equals checking once.
        """
        ...

    def launch(self, spec: InstanceSpec, ports: Ports, around: Surroundings) -> Launch | Refusal:
        """The process to start."""
        ...

    def readiness(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Sequence[tuple[Protocol, Probe]]:
        """Questions to ask in turn until one is answered; the first answer tells the protocol."""
        ...

    def liveness(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Probe:
        """The question that tells a living engine from a stuck one without waiting behind its work."""
        ...

    def warm_up(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Probe | None:
        """One real request before the first announcement; None where the engine's API is unknown."""
        ...

    def metrics(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Page | None:
        """Where a running engine counts its work; None where nobody can read it."""
        ...

    def info(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Probe | None:
        """The question that a running engine answers with what it is; None where its API is unknown."""
        ...

    def read_exit(self, code: int | None, signal: int | None, tail: str, *, was_ready: bool) -> ExitReason:
        """What an exit means. `tail` is the end of the log of this start."""
        ...
