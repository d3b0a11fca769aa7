"""HuggingFace text-embeddings-router."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tei_manager.domain.exits import ExitReason
from tei_manager.domain.instance import InstanceSpec, Ports, Protocol
from tei_manager.engines import devices, environment, exit_reading, flag_tables
from tei_manager.engines.base import Ask, Launch, Page, Probe, Refusal, Surroundings
from tei_manager.engines.flags import Merged, Table, emit, merge
from tei_manager.engines.metrics_reading import read_metrics
from tei_manager.engines.version import Version, is_known, is_supported, parse_version
from tei_manager.kits.parsing import Problem

DEFAULT_CLIENT_BATCH = 32
_METRICS_FLAG = Version(1, 7, 1)
_SERVED_NAME = Version(1, 9, 0)


class Tei:
    """One binary speaks either HTTP or gRPC, on one port; which one was decided when it was built."""

    has_second_port = False
    has_metrics_port = True

    def check(
        self, spec: InstanceSpec, around: Surroundings | None = None
    ) -> tuple[InstanceSpec, tuple[Problem, ...]]:
        version = parse_version(around.version) if around else None
        spec, problems = absorb(spec, flag_tables.ROUTER, version, strict=is_known(version))
        if around is not None:
            problems += _too_old(version) + model_problems(spec, around) + devices.variables(spec, around)[1]
        return spec, problems

    def launch(self, spec: InstanceSpec, ports: Ports, around: Surroundings) -> Launch | Refusal:
        spec, problems = self.check(spec, around)
        if problems:
            return Refusal(problems)
        version = parse_version(around.version)
        given = merge(spec.extra_args, flag_tables.ROUTER, version, strict=is_known(version))
        model = model_for_folders(spec, around)
        argv = [*program(around), *router_flags(spec, ports, around, given, model)]
        warnings = [*_version_warnings(around.version, version, spec), *given.warnings]
        # an unreadable version gets it, too: without it the program binds 9000, which is our own API's port
        if version is None or version >= _METRICS_FLAG:
            argv += emit("prometheus-port", str(metrics_port(spec, ports)))
        if (
            model != spec.model_id
            and version
            and version >= _SERVED_NAME
            and given.value("served-model-name") is None
        ):
            argv += emit("served-model-name", spec.model_id)
        elif source_missing(spec, around):
            warnings.append(f"{around.model_sources[spec.model_id]} is not there: '{spec.model_id}' is asked for")
        own = {"TOKENIZATION_WORKERS": str(environment.MOST_TOKENIZERS)} if many_cpus(around) else {}
        if around.run_dir:
            own["UDS_PATH"] = f"{around.run_dir.rstrip('/')}/{spec.name}.sock"
        return finished(argv, spec, around, given, own, warnings)

    def readiness(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Sequence[tuple[Protocol, Probe]]:
        spoken = spec.protocol or protocol
        http = (Protocol.HTTP, Probe(Ask.HTTP_HEALTH, ports.main))
        grpc = (Protocol.GRPC, Probe(Ask.GRPC_INFO, ports.main))
        if spoken is Protocol.BOTH:
            return ((Protocol.BOTH, http[1]),)
        return {Protocol.HTTP: (http,), Protocol.GRPC: (grpc,)}.get(spoken, (http, grpc))

    def liveness(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Probe:
        # neither touches the compute thread; /health waits behind running batches
        if (spec.protocol or protocol) is Protocol.GRPC:
            return Probe(Ask.GRPC_INFO, ports.main)
        return Probe(Ask.HTTP_HEALTH, ports.main, "/info")

    def warm_up(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Probe | None:
        spoken = spec.protocol or protocol
        if spoken is Protocol.UNKNOWN:
            return None
        if spoken is Protocol.GRPC:
            return Probe(Ask.GRPC_WARM_UP, ports.main)
        return Probe(Ask.HTTP_WARM_UP, ports.main, "/embed")

    def metrics(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Page | None:
        spoken = spec.protocol or protocol
        if spoken is Protocol.UNKNOWN:
            return None
        if spoken is Protocol.GRPC:
            return Page(ports.metrics, "/", read_metrics) if ports.metrics else None
        return Page(ports.main, "/metrics", read_metrics)

    def info(self, spec: InstanceSpec, ports: Ports, protocol: Protocol) -> Probe | None:
        spoken = spec.protocol or protocol
        return None if spoken is Protocol.UNKNOWN else self.liveness(spec, ports, protocol)

    def read_exit(self, code: int | None, signal: int | None, tail: str, *, was_ready: bool) -> ExitReason:
        return exit_reading.read_exit(code, signal, tail, was_ready=was_ready)


def absorb(
    spec: InstanceSpec, table: Table, version: Version | None, *, strict: bool
) -> tuple[InstanceSpec, tuple[Problem, ...]]:
    """The spec with lifted flags in their fields and secrets in `env`, and what is wrong with its flags."""
    given = merge(spec.extra_args, table, version, strict=strict)
    problems = list(given.problems)
    changes: dict[str, Any] = {}
    for name, value in given.lifted.items():
        if getattr(spec, name) in (None, value):
            changes[name] = value
        else:
            text = f"'{name}' has another value than the flag in extra_args: {getattr(spec, name)}"
            problems.append(Problem(name, "DUPLICATE_FLAG", text))
    for name, value in {**given.env, **given.secrets}.items():
        if spec.env.get(name, value) != value:
            text = "has another value than the flag in extra_args"
            problems.append(Problem(f"env.{name}", "DUPLICATE_FLAG", text))
    problems += [
        Problem(f"env.{flag.variable}", "INVALID_CONFIG", "must not be empty: the engine would refuse every call")
        for flag in table.flags.values()
        if flag.name == "api-key" and spec.env.get(flag.variable) == ""
    ]
    if problems:
        return spec, tuple(problems)
    if given.secrets:
        changes["env"] = {**spec.env, **given.secrets}
    if changes:
        changes["extra_args"] = tuple(token for item in given.kept for token in item.tokens)
    return (spec.with_(**changes) if changes else spec), ()


def router_flags(
    spec: InstanceSpec, ports: Ports, around: Surroundings, given: Merged, model: str
) -> tuple[str, ...]:
    """The flags that are always ours, up to the metrics port."""
    batch = given.value("max-client-batch-size") or spec.env.get("MAX_CLIENT_BATCH_SIZE", "")
    # fewer permits than one client batch needs would refuse every such batch for ever
    permits = max(spec.max_concurrent_requests, int(batch) if batch.isdecimal() else DEFAULT_CLIENT_BATCH)
    flags: list[tuple[str, str | None]] = [
        ("model-id", model),
        ("hostname", around.host),
        ("port", str(ports.main)),
        ("max-batch-tokens", str(spec.max_batch_tokens)),
        ("max-concurrent-requests", str(permits)),
        ("json-output", None),
    ]
    flags += [(name, value) for name in ("revision", "dtype", "pooling") if (value := getattr(spec, name))]
    return tuple(token for name, value in flags for token in emit(name, value))


def finished(
    argv: Sequence[str],
    spec: InstanceSpec,
    around: Surroundings,
    given: Merged,
    own: Mapping[str, str],
    warnings: Sequence[str],
) -> Launch:
    """The launch, once everything but the user's flags and the environment is on `argv`."""
    device_variables, _ = devices.variables(spec, around)
    env = environment.for_router(around, own, given.env, device_variables, spec.env)
    env["LOG_LEVEL"] = environment.log_level(
        spec.env.get("LOG_LEVEL") or spec.log_level, has_key=bool(env.get("API_KEY"))
    )
    rest = (token for item in given.rest for token in item.emitted())
    return Launch((*argv, *rest), env, environment.secrets_in(env), tuple(warnings))


def program(around: Surroundings) -> tuple[str, ...]:
    return (around.program,) if isinstance(around.program, str) else around.program


def metrics_port(spec: InstanceSpec, ports: Ports) -> int:
    """0 = none: the program has no switch for it, but takes any free port then."""
    return ports.metrics if ports.metrics is not None else spec.prometheus_port or 0


def model_for_folders(spec: InstanceSpec, around: Surroundings) -> str:
    """The model as programs need it that know hub ids and folders only."""
    is_elsewhere = spec.model_id.startswith("python:") or spec.model_id in around.model_sources
    return around.resolved_model if is_elsewhere and around.resolved_model else spec.model_id


def model_problems(spec: InstanceSpec, around: Surroundings) -> tuple[Problem, ...]:
    if spec.model_id.startswith("python:") and around.resolved_model is None:
        text = f"'{spec.model_id}' is not there: the package is not installed, or has no such folder"
        return (Problem("model_id", "INVALID_MODEL_ID", text),)
    return ()


def source_missing(spec: InstanceSpec, around: Surroundings) -> bool:
    return spec.model_id in around.model_sources and around.resolved_model is None


def many_cpus(around: Surroundings) -> bool:
    return around.cpus is not None and around.cpus > environment.MOST_TOKENIZERS


def _too_old(version: Version | None) -> tuple[Problem, ...]:
    if is_supported(version):
        return ()
    return (Problem("engine", "INVALID_CONFIG", f"TEI {version} is not supported (need 1.7 to 1.9)"),)


def _version_warnings(text: str | None, version: Version | None, spec: InstanceSpec) -> list[str]:
    if version is None:
        return [f"the version of TEI could not be read from {text!r}: flags cannot be checked"]
    if not is_known(version):
        return [f"TEI {version} is newer than 1.9: unknown flags are passed on"]
    if version < _METRICS_FLAG and spec.prometheus_port is not None:
        return [f"TEI {version} has no --prometheus-port: its metrics port is always 9000"]
    return []
