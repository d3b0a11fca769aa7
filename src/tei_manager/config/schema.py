"""Every key of the server's configuration, declared once.

`Config` is both the table of keys and the value that `load` returns. Where a key lies is where its attribute is:
`api_port` is `config.api_port`, `gateway.max_body_mb` is `config.gateway.max_body_mb`. Reading the file, the
environment and the flags, reporting unknown keys, `config show` and the reference page all derive from here.
"""

# ruff: noqa: RUF009 - key() and section() make fields, each with its own default
from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from tei_manager.config import paths
from tei_manager.config.shapes import HOST, HOSTS, MAYBE_TIME, ORIGINS, PORT, SOME_TIME, LogLevel, PathText
from tei_manager.domain import spec
from tei_manager.domain.instance import EngineKind, InstanceSpec
from tei_manager.kits.parsing import Boolean, Choice, Integer, ListOf, MapOf, Optional, Shape, Text

T = TypeVar("T")
PREFIX = "TEI_MANAGER_"
GENERAL_PREFIX = "TEI_MANAGER__"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Key:
    """One key. `spellings` are its paths in the file, the canonical one first."""

    name: str
    shape: Shape[object]
    default: object
    doc: str
    env: tuple[str, ...]
    # weaker variables that other programs own, best first, each with a path below its value
    borrowed: tuple[tuple[str, str], ...]
    flag: str | None
    spellings: tuple[tuple[str, ...], ...]
    needs_restart: bool
    computed: str | None  # the default in words, where it depends on the machine or on other keys

    @property
    def general_env(self) -> tuple[str, ...]:
        """The `TEI_MANAGER__A__B` names, one per spelling."""
        return tuple(general_name(path) for path in self.spellings)


def general_name(path: tuple[str, ...]) -> str:
    return GENERAL_PREFIX + "__".join(path).upper()


def key(
    shape: Shape[T],
    default: T,
    doc: str,
    *,
    env: tuple[str, ...] = (),
    borrowed: tuple[tuple[str, str], ...] = (),
    flag: str | None = None,
    also: tuple[str, ...] = (),
    restart: bool = False,
    computed: str | None = None,
    factory: Callable[[], T] | None = None,
) -> T:
    """Declare a key. `also` are further dotted spellings; `factory` makes the default where `computed` says so."""
    facts = {
        "shape": shape,
        "doc": doc,
        "env": env,
        "borrowed": borrowed,
        "flag": flag,
        "also": also,
        "needs_restart": restart,
        "computed": computed,
    }
    return dataclasses.field(default_factory=factory or (lambda: default), metadata=facts)


def section(kind: type[T], doc: str) -> T:
    """Declare a table of keys."""
    return dataclasses.field(default_factory=kind, metadata={"section": kind, "doc": doc})


def _state_file() -> Path:
    return paths.state_folder(os.environ) / "state.toml"


def _log_dir() -> Path:
    return paths.state_folder(os.environ) / "logs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    max_body_mb: int = key(Integer(1, 4096), 32, "Largest request body of the serving routes, in MiB.")
    request_timeout_secs: float = key(SOME_TIME, 600.0, "Longest time of one serving request from its admission.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    max_inputs: int = key(Integer(1, 1_000_000), 2048, "Most inputs in one embeddings request.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The effective configuration. All values are checked, all paths absolute; `Config()` has the defaults."""

    host: str = key(
        HOST,
        "127.0.0.1",
        "Address of the HTTP listener. Anything but loopback needs `insecure` while there is no authentication.",
        env=("TEI_MANAGER_HOST",),
        flag="--host",
        restart=True,
    )
    api_port: int = key(
        PORT,
        9000,
        "Port of the HTTP listener.",
        env=("TEI_MANAGER_API_PORT",),
        flag="--port",
        also=("server.port",),
        restart=True,
    )
    max_body_mb: int = key(Integer(1, 4096), 2, "Largest request body of the control routes, in MiB.")
    allowed_hosts: tuple[str, ...] = key(
        HOSTS,
        (),
        "Names besides IP addresses and `localhost` that the `Host` header may have on a loopback listener.",
    )
    cors_origins: tuple[str, ...] = key(
        ORIGINS, (), "Origins of web pages that may call the API, each like `https://app.example.org`."
    )
    insecure: bool = key(
        Boolean(),
        False,
        "Allow listening on other addresses than loopback without authentication.",
        env=("TEI_MANAGER_INSECURE",),
        flag="--insecure",
        restart=True,
    )

    grpc_enabled: bool = key(
        Boolean(), True, "Whether the gRPC multiplexer runs.", env=("TEI_MANAGER_GRPC_ENABLED",), restart=True
    )
    grpc_host: str = key(
        HOST, "127.0.0.1", "Address of the gRPC listener.", restart=True, computed="the value of `host`"
    )
    grpc_port: int = key(
        PORT,
        9001,
        "Port of the gRPC listener.",
        env=("TEI_MANAGER_GRPC_PORT",),
        flag="--grpc-port",
        also=("grpc.multiplexer_port",),
        restart=True,
    )
    grpc_max_parallel_streams: int = key(
        Integer(1, 65535),
        1024,
        "Most calls in flight on one gRPC connection.",
        env=("TEI_MANAGER_GRPC_MAX_STREAMS",),
        restart=True,
    )
    grpc_max_message_size_mb: int = key(Integer(1, 1024), 40, "Largest gRPC message, in MiB.", restart=True)
    grpc_request_timeout_secs: float = key(
        MAYBE_TIME, 30.0, "Longest time an engine may take for a unary or Arrow call; 0 = no limit."
    )
    grpc_connect_timeout_secs: float = key(SOME_TIME, 5.0, "Longest time of connecting to an engine.")
    grpc_default_target: str = key(
        Text(r"([A-Za-z0-9][A-Za-z0-9._:/-]{0,127})?", "an instance name or alias, or an empty text"),
        "",
        "Instance or alias that serves gRPC calls which name none; empty = such calls are refused.",
    )

    state_file: Path = key(
        PathText(),
        Path(),
        "The file that remembers the instances; its folder also holds the lock and the journal.",
        env=("TEI_MANAGER_STATE_FILE",),
        restart=True,
        computed="`state.toml` in the user's state folder of `tei-manager`",
        factory=_state_file,
    )
    auto_restore_on_restart: bool = key(
        Boolean(),
        True,
        "Start the remembered instances again; otherwise only those of the file start.",
        env=("TEI_MANAGER_AUTO_RESTORE",),
    )

    log_level: str = key(
        LogLevel(),
        "info",
        "`trace`, `debug`, `info`, `warn` or `error`, or a comma list with `logger=LEVEL` parts.",
        env=("TEI_MANAGER_LOG_LEVEL",),
        borrowed=(("LOG_LEVEL", ""), ("RUST_LOG", "")),
        flag="--log-level",
    )
    log_format: str = key(
        Choice("json", "pretty"),
        "json",
        "`json` (one object a line) or `pretty` (for people).",
        env=("TEI_MANAGER_LOG_FORMAT",),
        flag="--log-format",
    )
    log_dir: Path = key(
        PathText(),
        Path(),
        "Folder of the instances' logs, `<name>.log` each.",
        env=("TEI_MANAGER_LOG_DIR",),
        restart=True,
        computed="`logs` in the user's state folder of `tei-manager`",
        factory=_log_dir,
    )

    health_check_interval_secs: float = key(
        SOME_TIME, 30.0, "Time between liveness probes.", env=("TEI_MANAGER_HEALTH_CHECK_INTERVAL",)
    )
    health_check_timeout_secs: float = key(SOME_TIME, 5.0, "Longest time of one probe.")
    health_check_initial_delay_secs: float = key(
        MAYBE_TIME,
        60.0,
        "Time after the start of a process in which failed probes do not lead to a restart.",
        env=("TEI_MANAGER_HEALTH_CHECK_INITIAL_DELAY",),
    )
    max_failures_before_restart: int = key(
        Integer(0, 1_000_000), 3, "Failed probes in a row before a restart; 0 = never restart for failed probes."
    )
    startup_timeout_secs: float = key(SOME_TIME, 300.0, "How long a start may show no progress.")
    startup_timeout_max_secs: float = key(SOME_TIME, 7200.0, "Longest time of a start, with progress or not.")
    retry_first_start: bool = key(
        Boolean(), False, "Try again when an instance that was never ready fails for an unknown reason."
    )
    restart_backoff_base_secs: float = key(
        MAYBE_TIME, 30.0, "Delay of the second automatic restart in a row; it doubles with each further one."
    )
    restart_backoff_max_secs: float = key(MAYBE_TIME, 900.0, "Longest delay of an automatic restart.")
    restart_reset_after_secs: float = key(
        MAYBE_TIME, 300.0, "Unbroken running time after which the count of restarts in a row starts anew."
    )
    max_restarts: int = key(
        Integer(0, 1_000_000), 0, "Automatic restarts in a row before an instance is given up; 0 = never."
    )
    graceful_shutdown_timeout_secs: float = key(
        MAYBE_TIME, 30.0, "Time between asking an engine to end and killing it."
    )
    drain_timeout_secs: float = key(
        MAYBE_TIME, 30.0, "Longest wait for calls in flight at a stop and at shutdown."
    )

    max_instances: int | None = key(Optional(Integer(1, 32768)), None, "Most instances.", computed="no limit")
    instance_host: str = key(HOST, "127.0.0.1", "Address on which engines listen.")
    instance_port_start: int = key(PORT, 8080, "First automatic port of instances.")
    instance_port_end: int = key(
        Integer(1024, 65536, code="INVALID_PORT"),
        8180,
        "End of the automatic ports, itself not used. Engines that speak HTTP and gRPC need two each.",
    )
    prometheus_port_start: int = key(
        Integer(1024, 64536, code="INVALID_PORT"),
        9100,
        "First automatic port of the engines' own metrics, in a window of 1000.",
    )

    tei_binary_path: str = key(
        Text(r"[^\0]+", "a program name or path"),
        "text-embeddings-router",
        "The TEI program; looked up on PATH if it has no slash.",
        env=("TEI_BINARY_PATH",),
    )
    vllm_command: tuple[str, ...] = key(
        ListOf(Text(r"[^\0]+", "a text that is not empty"), longest=64, shortest=1),
        ("vllm", "serve"),
        "The vLLM program and its first arguments; the program is looked up on PATH if it has no slash.",
    )
    llamacpp_binary_path: str = key(
        Text(r"[^\0]+", "a program name or path"),
        "llama-server",
        "The server program of llama.cpp; looked up on PATH if it has no slash.",
    )
    model_cache_dir: Path = key(
        PathText(),
        Path(),
        "Folder of the hub cache, used by all engines that download.",
        borrowed=(("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")),
        computed="`$XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`",
        factory=lambda: paths.model_cache(os.environ),
    )
    model_roots: tuple[Path, ...] = key(
        ListOf(PathText()),
        (),
        "Folders in which a local model given over REST must lie. A path in the file is its own permission.",
    )
    api_allow_command: bool = key(Boolean(), False, "Whether REST may create instances of engine `command`.")

    gateway: Gateway = section(Gateway, "The serving routes.")
    embeddings: Embeddings = section(Embeddings, "Embeddings requests.")

    model_sources: Mapping[str, str] = key(
        MapOf(spec.HUB_ID, spec.MODEL_SOURCE),
        {},
        'Hub ids that are served from elsewhere: `"org/name" = "/folder"` or `"python:PACKAGE/folder"`.',
    )
    instances: tuple[Mapping[str, object], ...] = dataclasses.field(
        default=(), metadata={"doc": "Instances to run: an array of tables. As they were written; see `specs`."}
    )

    def specs(self, default_engine: EngineKind) -> tuple[InstanceSpec, ...]:
        """The checked specifications of `instances`; those that name no engine get `default_engine`."""
        return tuple(spec.parse(entry, default_engine=default_engine) for entry in self.instances)


_IN_SERVER_TABLE = {"host", "api_port", "cors_origins", "allowed_hosts", "max_body_mb"}
INSTANCES = "instances"


def _spellings(name: str, also: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    table, _, rest = name.partition("_")
    paths: list[tuple[str, ...]] = [tuple(name.split("."))]
    if table == "grpc":
        paths += [(table, rest), (table, name)]
    elif table == "log":
        paths.append((table, rest))
    elif name in _IN_SERVER_TABLE:
        paths.append(("server", name))
    return (*paths, *(tuple(path.split(".")) for path in also))


def _keys(kind: type, prefix: str = "") -> Iterator[Key]:
    for entry in dataclasses.fields(kind):
        facts = entry.metadata
        if "section" in facts:
            yield from _keys(facts["section"], f"{prefix}{entry.name}.")
        elif "shape" in facts:
            assert entry.default_factory is not dataclasses.MISSING
            yield Key(
                name=prefix + entry.name,
                shape=facts["shape"],
                default=None if facts["computed"] else entry.default_factory(),
                doc=facts["doc"],
                env=facts["env"],
                borrowed=facts["borrowed"],
                flag=facts["flag"],
                spellings=_spellings(prefix + entry.name, facts["also"]),
                needs_restart=facts["needs_restart"],
                computed=facts["computed"],
            )


KEYS: tuple[Key, ...] = tuple(_keys(Config))
BY_NAME: Mapping[str, Key] = {entry.name: entry for entry in KEYS}
BY_PATH: Mapping[tuple[str, ...], Key] = {path: entry for entry in KEYS for path in entry.spellings}
TABLES: frozenset[tuple[str, ...]] = frozenset(path[:-1] for path in BY_PATH if len(path) > 1)


def build(values: Mapping[str, object]) -> Config:
    """The configuration from checked values by canonical name; missing ones keep their default."""
    return cast(Config, _build(Config, values, ""))


def _build(kind: type, values: Mapping[str, object], prefix: str) -> object:
    arguments: dict[str, object] = {}
    for entry in dataclasses.fields(kind):
        name = prefix + entry.name
        if "section" in entry.metadata:
            arguments[entry.name] = _build(entry.metadata["section"], values, name + ".")
        elif name in values:
            arguments[entry.name] = values[name]
    return cast(object, kind(**arguments))


def value_of(config: Config, name: str) -> object:
    """The value of a key by its canonical name."""
    found: object = config
    for part in name.split("."):
        found = getattr(found, part)
    return found
