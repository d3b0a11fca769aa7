"""What a start of the manager makes of the state file and of the configuration's instances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tei_manager.domain import errors
from tei_manager.domain import spec as specs
from tei_manager.domain.instance import Desired, EngineKind, InstanceSpec, Origin
from tei_manager.policy import seeds
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
    if not auto_restore:
        records = {name: replace(record, desired=Desired.STOPPED) for name, record in records.items()}
    known = {
        name: seeds.Known(specs.as_values(record.spec), record.seed, record.origin)
        for name, record in records.items()
    }
    created: list[tuple[Mapping[str, object], InstanceSpec]] = []
    buried: list[Record] = []
    warnings: list[str] = []
    for action in seeds.compare(entries, known, state.deleted_seeds):
        try:
            match action:
                case seeds.Create(values):
                    created.append((values, specs.parse(values, default_engine=default_engine)))
                case seeds.Change(name, values, _, seed):
                    spec = specs.parse(values, default_engine=records[name].spec.engine)
                    records[name] = _changed(records[name], spec, dict(seed))
                case seeds.Remove(name):
                    buried.append(records.pop(name))
        except errors.InvalidSpec as error:
            warnings.append(f"configured instance skipped: {error}")
    named = {str(entry["name"]) for entry in entries}
    deleted = {name: values for name, values in state.deleted_seeds.items() if name in named}
    for name in (str(values["name"]) for values, _ in created):
        deleted.pop(name, None)
    if not auto_restore:
        # only seeds start by themselves then
        records = {
            name: replace(record, desired=Desired.RUNNING)
            if record.origin is Origin.CONFIG and record.spec.autostart
            else record
            for name, record in records.items()
        }
    return Plan(tuple(records.values()), tuple(created), tuple(buried), deleted, tuple(warnings))


def _changed(record: Record, spec: InstanceSpec, seed: dict[str, object]) -> Record:
    autostart = spec.autostart and not record.spec.autostart
    ports = record.ports
    if spec.port is not None and spec.port != ports.main:
        ports = replace(ports, main=spec.port)
    if spec.prometheus_port is not None and ports.metrics is not None:
        ports = replace(ports, metrics=spec.prometheus_port)
    desired = Desired.RUNNING if autostart else record.desired
    return replace(record, spec=spec, ports=ports, seed=seed, desired=desired)
