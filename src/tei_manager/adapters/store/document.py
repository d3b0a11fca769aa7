"""The state file's document: values of TOML in, `State` out, and back. No files here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from typing import Any

from tei_manager.domain import errors, spec
from tei_manager.domain.instance import Desired, EngineKind, Origin, Ports
from tei_manager.kits import parsing
from tei_manager.kits.parsing import Boolean, Choice, Field, Integer, MapOf, Number, Optional, Shape, Text
from tei_manager.ports.driver import Handle
from tei_manager.ports.store import Loaded, Record, State

VERSION = 1
UNKNOWN_KEY, ENTRY_SKIPPED, HANDLE_LOST = "STATE_UNKNOWN_KEY", "STATE_ENTRY_SKIPPED", "STATE_HANDLE_LOST"


class Unreadable(Exception):
    """The document as a whole is no state."""


class TooNew(Exception):
    """A later release wrote it; reading it here would lose what that release knows."""


class _Instant(Shape[float]):
    """Seconds since the epoch. The peer writes RFC 3339, as text or as TOML's own date."""

    expects = "seconds since the epoch or an RFC 3339 date"

    def read(self, value: object) -> float:
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                raise self.wrong_value() from None
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        return Number(0).read(value)


class _Anything(Shape[object]):
    def read(self, value: object) -> object:
        return value


_TABLE = MapOf(Text(longest=10_000), _Anything())
_PORTS = (
    Field("main", Integer(0, 65535), required=True),
    Field("grpc", Integer(0, 65535)),
    Field("metrics", Integer(0, 65535)),
)
_HANDLE = (
    Field("driver", Text(), required=True),
    Field("pid", Integer(1), required=True),
    Field("start_time", Integer(0), required=True),
    Field("boot_id", Text(), required=True),
    Field("nonce", Text(), required=True),
)
# what an entry holds beside the specification
_OWN = (
    Field("created_at", _Instant(), required=True),
    Field("desired", Choice(*Desired), str(Desired.RUNNING)),
    Field("origin", Choice(*Origin), str(Origin.API)),
    Field("restarts", Integer(0), 0),
    Field("ever_ready", Boolean(), False),
    Field("intent_nonce", Optional(Text())),
    Field("ports", _TABLE),
    Field("handle", _TABLE),
    Field("launched", Optional(Text())),
    Field("seed", _TABLE),
)
_OWN_NAMES = {entry.name for entry in _OWN}
_SPEC_NAMES = {entry.name for entry in spec.FIELDS}
_TOP_NAMES = {"version", "last_updated", "instances", "deleted_seeds"}


def encode(state: State, now: datetime) -> dict[str, object]:
    """The document of a state. None is written as an absent key, as TOML has no null."""
    return {
        "version": VERSION,
        "last_updated": now.replace(microsecond=0),
        "instances": [_encode_record(record) for record in state.records],
        "deleted_seeds": [
            {"name": name, "values": _without_none(values)} for name, values in state.deleted_seeds.items()
        ],
    }


def decode(document: Mapping[str, object], *, default_engine: EngineKind) -> Loaded:
    """The state in a document, ours or the peer's (which has no `version`).

    What cannot be used is left out with a warning. Raises `Unreadable` or `TooNew`.
    """
    version = document.get("version", VERSION)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise Unreadable(f"version is {parsing.shown(version)}")
    if version > VERSION:
        raise TooNew(f"version {version}")
    reader = _Reader(default_engine)
    for name in document:
        if name not in _TOP_NAMES:
            reader.warn(UNKNOWN_KEY, f"unknown key '{name}' is ignored")
    for table in _tables(document, "instances"):
        reader.take(table)
    seeds = reader.deleted_seeds(_tables(document, "deleted_seeds"))
    return Loaded(State(records=tuple(reader.records), deleted_seeds=seeds), tuple(reader.warnings))


def _tables(document: Mapping[str, object], name: str) -> list[object]:
    tables = document.get(name, [])
    if not isinstance(tables, list):
        raise Unreadable(f"{name} is no list of tables")
    return tables


@dataclass(slots=True)
class _Reader:
    default_engine: EngineKind
    records: list[Record] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)

    def warn(self, code: str, message: str) -> None:
        self.warnings.append((code, message))

    def take(self, table: object) -> None:
        name = table.get("name") if isinstance(table, Mapping) else None
        label = f"instance {parsing.shown(name)}"
        if not isinstance(table, Mapping):
            self.warn(ENTRY_SKIPPED, f"{label} is skipped: expected a table")
            return
        try:
            record = self._record(table, label)
            if any(other.spec.name.lower() == record.spec.name.lower() for other in self.records):
                raise Unreadable("its name is used by an entry before it")
        except (Unreadable, errors.InvalidSpec) as error:
            self.warn(ENTRY_SKIPPED, f"{label} is skipped: {error}")
        else:
            self.records.append(record)

    def _record(self, table: Mapping[str, object], label: str) -> Record:
        values = {name: value for name, value in table.items() if name in _SPEC_NAMES}
        for name in table:
            if name not in _SPEC_NAMES | _OWN_NAMES:
                self.warn(UNKNOWN_KEY, f"{label}: unknown key '{name}' is ignored")
        read = spec.parse(values, default_engine=self.default_engine)
        own = _read(_OWN, {name: value for name, value in table.items() if name in _OWN_NAMES})
        handle, nonce = self._handle(own["handle"], label)
        return Record(
            spec=read,
            ports=_ports(own["ports"], read.port, read.prometheus_port),
            created_at=own["created_at"],
            desired=Desired(own["desired"]),
            origin=Origin(own["origin"]),
            restarts=own["restarts"],
            ever_ready=own["ever_ready"],
            intent_nonce=own["intent_nonce"] or nonce,
            handle=handle,
            launched=own["launched"],
            seed=None if own["seed"] is None else dict(own["seed"]),
        )

    def _handle(self, table: Mapping[str, object] | None, label: str) -> tuple[Handle | None, str | None]:
        """The handle, or the nonce of one that is damaged: its process can then still be searched for."""
        if table is None:
            return None, None
        try:
            read = _read(_HANDLE, {entry.name: table[entry.name] for entry in _HANDLE if entry.name in table})
        except Unreadable as error:
            self.warn(HANDLE_LOST, f"{label}: its process may not be found again: handle.{error}")
            nonce = table.get("nonce")
            return None, nonce if isinstance(nonce, str) else None
        ticks = read.pop("start_time")
        return Handle(start_ticks=ticks, **read), None

    def deleted_seeds(self, tables: list[object]) -> dict[str, dict[str, object]]:
        seeds = {}
        for table in tables:
            name = table.get("name") if isinstance(table, Mapping) else None
            values = table.get("values", {}) if isinstance(table, Mapping) else None
            if isinstance(name, str) and isinstance(values, dict):
                seeds[name] = values
            else:
                self.warn(
                    ENTRY_SKIPPED, f"deleted seed {parsing.shown(name)} is skipped: expected name and values"
                )
        return seeds


def _read(fields: tuple[Field, ...], values: Mapping[str, object]) -> dict[str, Any]:
    read, problems = parsing.read_record(fields, values)
    if problems:
        raise Unreadable(f"{problems[0].path}: {problems[0].message}")
    return read


def _ports(table: Mapping[str, object] | None, port: int | None, metrics: int | None) -> Ports:
    if table is not None:
        return Ports(**_read(_PORTS, table))
    if port is None:  # the peer writes the port it has chosen, we write `ports`
        raise Unreadable("port: is required")
    return Ports(main=port, metrics=metrics)


def _encode_record(record: Record) -> dict[str, object]:
    values = spec.as_values(record.spec)
    ports = {"main": record.ports.main, "grpc": record.ports.grpc, "metrics": record.ports.metrics}
    values |= {
        "created_at": record.created_at,
        "desired": str(record.desired),
        "origin": str(record.origin),
        "restarts": record.restarts,
        "ever_ready": record.ever_ready,
        "intent_nonce": record.intent_nonce,
        "ports": ports,
        "handle": _encode_handle(record.handle) if record.handle else None,
        "launched": record.launched,
        "seed": record.seed,
    }
    return _without_none(values)


def _encode_handle(handle: Handle) -> dict[str, object]:
    return {
        "driver": handle.driver,
        "pid": handle.pid,
        "start_time": handle.start_ticks,
        "boot_id": handle.boot_id,
        "nonce": handle.nonce,
    }


def _without_none(values: Mapping[str, object]) -> dict[str, object]:
    return {name: _plain(value) for name, value in values.items() if value is not None}


def _plain(value: object) -> object:
    """What TOML can say: tables without null, lists, and texts for everything unforeseen."""
    if isinstance(value, Mapping):
        return _without_none(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value if item is not None]
    if isinstance(value, str | bool | int | float | datetime | date | time):
        return value
    return str(value)
