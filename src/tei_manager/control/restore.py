"""What a start of the manager makes of the state file and of the configuration's instances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tei_manager.domain import errors
from tei_manager.domain import spec as specs
from tei_manager.domain.instance import Desired, EngineKind, InstanceSpec, Origin, Ports
from tei_manager.policy import names, seeds
from tei_manager.ports.driver import Driver, Found, Gone, Handle
from tei_manager.ports.fleet import Warning
from tei_manager.ports.store import Record, State


@dataclass(frozen=True, slots=True)
class Recovered:
    """A process that is alive and ours, or what to tell the operator about one that may be."""

    handle: Handle | None = None
    warning: Warning | None = None


async def recover(record: Record, driver: Driver) -> Recovered:
    """Look for the process of a saved instance."""
    if record.handle is None:
        if record.intent_nonce is None:
            return Recovered()
        return Recovered(await driver.find(record.intent_nonce))
    match await driver.recover(record.handle):
        case Found(handle):
            return Recovered(handle)
        case Gone():
            return Recovered()
        case unverified:
            text = f"instance '{record.spec.name}': pid {unverified.pid} may be its process, left alone"
            return Recovered(warning=Warning("ORPHAN_UNVERIFIED", text))


@dataclass(frozen=True, slots=True)
class Plan:
    """Instances to restore as they are, to create from the file, and to end because the file dropped them."""

    records: tuple[Record, ...]
    created: tuple[tuple[Mapping[str, object], InstanceSpec], ...]
    buried: tuple[Record, ...]
    deleted_seeds: dict[str, dict[str, object]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def plan(
    state: State,
    entries: Sequence[Mapping[str, object]],
    *,
    default_engine: EngineKind,
    auto_restore: bool,
) -> Plan:
    """Merge the saved instances with the configured ones. Pure."""
    records = {record.spec.name: record for record in state.records}
    if not auto_restore:  # only seeds start by themselves then
        records = {
            name: record if record.origin is Origin.CONFIG else replace(record, desired=Desired.STOPPED)
            for name, record in records.items()
        }
    known = {
        name: seeds.Known(specs.as_values(record.spec), record.seed, record.origin)
        for name, record in records.items()
    }
    actions = seeds.compare(entries, known, state.deleted_seeds)
    buried = [records.pop(action.name) for action in actions if isinstance(action, seeds.Remove)]
    created: list[tuple[Mapping[str, object], InstanceSpec]] = []
    before: dict[str, Record] = {}
    warnings: list[str] = []
    for action in actions:
        try:
            match action:
                case seeds.Create(values):
                    created.append((values, specs.parse(values, default_engine=default_engine)))
                case seeds.Change(name, values, _, seed):
                    spec = specs.parse(values, default_engine=records[name].spec.engine)
                    before[name], records[name] = records[name], _changed(records[name], spec, dict(seed))
        except errors.InvalidSpec as error:
            warnings.append(f"configured instance skipped: {error}")
    warnings += _take_back(records, before)
    named = {str(entry["name"]) for entry in entries}
    deleted = {name: values for name, values in state.deleted_seeds.items() if name in named}
    for name in (str(values["name"]) for values, _ in created):
        deleted.pop(name, None)
    return Plan(tuple(records.values()), tuple(created), tuple(buried), deleted, tuple(warnings))


def _take_back(records: dict[str, Record], before: dict[str, Record]) -> list[str]:
    """Undo changes by which an instance would take what another one has; returns what to tell the operator."""
    warnings: list[str] = []
    while True:
        for name in before:
            others = [record for record in records.values() if record.spec.name != name]
            try:
                _check(records[name].spec, others)
            except errors.Conflict as error:
                warnings.append(f"change of configured instance '{name}' skipped: {error}")
                records[name] = before.pop(name)
                break  # others were compared with what it would have been
        else:
            return warnings


def _check(spec: InstanceSpec, others: Sequence[Record]) -> None:
    """Raises `errors.Conflict` if another instance has a name, an alias or a port of this one."""
    names.check(spec, (other.spec for other in others))
    for other in others:
        for port in (spec.port, spec.prometheus_port):
            if port and port in other.ports.all:
                raise errors.Conflict(
                    f"Port {port} already in use by instance '{other.spec.name}'", code="PORT_CONFLICT"
                )


def _changed(record: Record, spec: InstanceSpec, seed: dict[str, object]) -> Record:
    autostart = spec.autostart and not record.spec.autostart
    ports = record.ports
    if spec.port is not None and spec.port != ports.main:
        # another one is found for what had this port so far
        grpc = None if ports.grpc == spec.port else ports.grpc
        metrics = None if ports.metrics == spec.port else ports.metrics
        ports = Ports(main=spec.port, grpc=grpc, metrics=metrics)
    if spec.prometheus_port is not None and ports.metrics is not None:
        ports = replace(ports, metrics=spec.prometheus_port)
    desired = Desired.RUNNING if autostart else record.desired
    return replace(record, spec=spec, ports=ports, seed=seed, desired=desired)
