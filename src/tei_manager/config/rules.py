"""Rules between keys: ports that must differ, ranges that must fit, listeners that need `insecure`."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping

from tei_manager.config.problems import Finding, Notice
from tei_manager.config.schema import INSTANCES, Config
from tei_manager.domain import spec as domain_spec
from tei_manager.domain.instance import EngineKind
from tei_manager.engines import catalog
from tei_manager.kits.parsing import Problem


def check(config: Config, origins: Mapping[str, str], broken: set[str]) -> list[Finding]:
    """All problems between values. Keys in `broken` were refused before: rules about them are silent."""
    problems: list[Problem] = []
    for needed, rule in _RULES:
        if not broken & set(needed):
            problems += rule(config)
    return [(origins.get(problem.path, origins.get(INSTANCES, "default")), problem) for problem in problems]


def notices(config: Config) -> list[Notice]:
    found = []
    if config.insecure:
        found.append(
            Notice("AUTH_DISABLED", "insecure = true: whoever reaches the listeners can start and stop anything")
        )
    room = config.instance_port_end - config.instance_port_start
    if config.max_instances is not None and config.max_instances <= room < 2 * config.max_instances:
        found.append(
            Notice(
                "PORT_RANGE_SMALL",
                f"instance_port_start to instance_port_end holds {room} ports: too few for max_instances ="
                f" {config.max_instances} instances with two ports each, which embedded engines need",
            )
        )
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a listener on `host`. Names other than localhost are not resolved."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listeners(config: Config) -> Iterator[tuple[str, str]]:
    yield "host", config.host
    if config.grpc_enabled and config.grpc_host != config.host:
        yield "grpc_host", config.grpc_host


def _exposed(config: Config) -> Iterator[Problem]:
    for name, host in _listeners(config):
        if not config.insecure and not is_loopback(host):
            yield Problem(
                name,
                "INSECURE",
                f"'{host}' is not a loopback address and there is no authentication: use 127.0.0.1,"
                " or set insecure = true (--insecure) to serve everybody who reaches it",
            )


def _manager_ports(config: Config) -> Iterator[tuple[str, int]]:
    yield "api_port", config.api_port
    if config.grpc_enabled:
        yield "grpc_port", config.grpc_port


def _ports_differ(config: Config) -> Iterator[Problem]:
    if config.grpc_enabled and config.api_port == config.grpc_port:
        yield Problem("grpc_port", "PORT_CONFLICT", f"port {config.grpc_port} is also api_port: they must differ")


def _ranges(config: Config) -> Iterator[Problem]:
    start, end, most = config.instance_port_start, config.instance_port_end, config.max_instances
    if end <= start:
        yield Problem(
            "instance_port_end", "INVALID_PORT", f"{end} must be greater than instance_port_start = {start}"
        )
    elif most is not None:
        has_embedded = any(entry.get("engine") == "embedded" for entry in config.instances)
        needed = most * 2 if has_embedded else most
        if end - start < needed:
            each = ", two for each because of embedded engines" if has_embedded else ""
            yield Problem(
                "instance_port_end",
                "INVALID_PORT",
                f"{start} to {end} holds {end - start} ports, max_instances = {most} needs {needed}{each}:"
                f" set it to {start + needed} or more",
            )


def _names(config: Config) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, entry in enumerate(config.instances):
        name = str(entry["name"])
        earlier = first.setdefault(name.lower(), index)
        if earlier != index:
            other = config.instances[earlier]["name"]
            same = "" if other == name else f" ('{other}'; names are compared without case)"
            yield Problem(
                f"instances[{index}].name",
                "INSTANCE_EXISTS",
                f"'{name}' is already the name of instances[{earlier}]{same}",
            )


def _instance_ports(config: Config) -> Iterator[Problem]:
    taken = {port: name for name, port in _manager_ports(config)}
    for index, entry in enumerate(config.instances):
        for name in ("port", "prometheus_port"):
            port = entry.get(name)
            if not isinstance(port, int) or port == 0:
                continue
            path = f"instances[{index}].{name}"
            if port in taken:
                yield Problem(path, "PORT_CONFLICT", f"port {port} is already {taken[port]}")
            else:
                taken[port] = path


def _engine_flags(config: Config) -> Iterator[Problem]:
    """What an engine refuses whatever its version. Entries that name no engine are checked when it is known."""
    for index, entry in enumerate(config.instances):
        if entry.get("engine"):
            checked = domain_spec.parse(entry, default_engine=EngineKind.EMBEDDED)
            _, problems = catalog.ENGINES[checked.engine].check(checked)
            yield from (problem.below(f"instances[{index}]") for problem in problems)


_RULES = (
    (("host", "grpc_host", "grpc_enabled", "insecure"), _exposed),
    (("api_port", "grpc_port", "grpc_enabled"), _ports_differ),
    (("instance_port_start", "instance_port_end", "max_instances", INSTANCES), _ranges),
    ((INSTANCES,), _names),
    ((INSTANCES, "api_port", "grpc_port", "grpc_enabled"), _instance_ports),
    ((INSTANCES,), _engine_flags),
)
