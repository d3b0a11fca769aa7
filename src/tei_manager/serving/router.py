"""Who can answer: one immutable table, replaced whole whenever the fleet changes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tei_manager.domain import errors
from tei_manager.domain.figures import Figures
from tei_manager.domain.instance import Desired, Instance, Status
from tei_manager.domain.target import ByIndex, ByModel, ByName, Endpoint, Routing
from tei_manager.serving.pool import Pool

RETRY_AFTER_SECS = 1.0
Candidates = tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A snapshot of what is registered and of what may be called.

    `by_alias` and `by_model` hold all instances meant by a text, oldest first; `names` and `models` what a text
    resolves to when that is not an error, so that a warm call is one lookup.
    """

    instances: tuple[Instance, ...]
    ready: Mapping[str, Endpoint]  # by name of the instance
    by_name: Mapping[str, Instance]
    by_alias: Mapping[str, tuple[Instance, ...]]
    by_model: Mapping[str, tuple[Instance, ...]]
    names: Mapping[str, Candidates]  # what ByName finds ready
    models: Mapping[str, Candidates]  # what ByModel finds ready
    mixed: tuple[str, ...]  # model ids whose ready instances do not all give equal vectors

    @staticmethod
    def build(instances: Sequence[Instance], endpoints: Iterable[Endpoint]) -> Table:
        by_name = {instance.name: instance for instance in instances}
        ready = {endpoint.instance: endpoint for endpoint in endpoints if endpoint.instance in by_name}
        by_alias: dict[str, tuple[Instance, ...]] = {}
        by_model: dict[str, tuple[Instance, ...]] = {}
        for instance in instances:
            for alias in instance.spec.aliases:
                by_alias[alias] = (*by_alias.get(alias, ()), instance)
            # a running process counts as what it was started with
            model = ready[instance.name].model_id if instance.name in ready else instance.spec.model_id
            by_model[model] = (*by_model.get(model, ()), instance)
        aliases, _ = _agreeing(by_alias, ready)
        models, mixed = _agreeing(by_model, ready)
        return Table(
            instances=tuple(instances),
            ready=MappingProxyType(ready),
            by_name=MappingProxyType(by_name),
            by_alias=MappingProxyType(by_alias),
            by_model=MappingProxyType(by_model),
            names=MappingProxyType(aliases | {name: (endpoint,) for name, endpoint in ready.items()}),
            models=MappingProxyType(models | aliases),
            mixed=mixed,
        )


def _agreeing(
    meant: Mapping[str, tuple[Instance, ...]], ready: Mapping[str, Endpoint]
) -> tuple[dict[str, Candidates], tuple[str, ...]]:
    """Per text the ready endpoints that give equal vectors: those that agree with the oldest one."""
    found: dict[str, Candidates] = {}
    mixed: list[str] = []
    for text, instances in meant.items():
        endpoints = [ready[instance.name] for instance in instances if instance.name in ready]
        if endpoints:
            oldest = endpoints[0]
            equal = tuple(each for each in endpoints if _vectors(each) == _vectors(oldest))
            found[text] = equal
            if len(equal) < len(endpoints):
                mixed.append(text)
    return found, tuple(sorted(mixed))


def _vectors(endpoint: Endpoint) -> tuple[str, str | None, str | None]:
    return endpoint.model_id, endpoint.revision, endpoint.pooling


class Router:
    """What both doors ask, and what the control plane tells: implements `ports.frontdoor.FrontDoor`.

    `table` is never changed in place, so a reader may keep it across a wait.
    """

    def __init__(self, pool: Pool | None = None) -> None:
        self.pool = pool or Pool()
        self.table = Table.build((), ())
        self._announced: dict[str, Endpoint] = {}  # by uid
        self._changed = asyncio.Event()

    # -- what the control plane tells -------------------------------------------------------------------------

    def publish(self, instances: tuple[Instance, ...]) -> None:
        self._replace(instances)

    def announce(self, endpoint: Endpoint) -> None:
        self.pool.announce(endpoint)
        self._announced[endpoint.uid] = endpoint
        self._replace(self.table.instances)

    async def withdraw(self, uid: str, *, drain_secs: float) -> int:
        if self._announced.pop(uid, None) is not None:
            self._replace(self.table.instances)
        return await self.pool.withdraw(uid, drain_secs=drain_secs)

    def last_success(self, uid: str) -> float | None:
        return self.pool.last_success(uid)

    def figures(self, uid: str) -> Figures:
        return self.pool.figures(uid)

    # -- what the doors ask -----------------------------------------------------------------------------------

    async def changed(self) -> None:
        """Return when the table was replaced at least once since this call."""
        await self._changed.wait()

    def resolve(self, routing: Routing) -> Candidates:
        """The ready endpoints that may answer, never none.

        Raises `errors.UnknownInstance`, `errors.UnknownTarget` or `errors.NotReady`, each with its final text.
        """
        table = self.table
        match routing:
            case ByName(name):
                return table.names.get(name) or _unready_name(table, name)
            case ByModel(model):
                return table.models.get(model) or _unready_model(table, model)
            case ByIndex(index):
                if index >= len(table.instances):
                    raise errors.UnknownTarget(
                        f"Instance index {index} out of range ({len(table.instances)} instances)",
                        code="INSTANCE_NOT_FOUND",
                    )
                instance = table.instances[index]
                return table.names.get(instance.name) or _unready_name(table, instance.name)

    def resolve_any(self, text: str) -> Candidates:
        """What a text means where a caller may say anything: an instance's name, an alias or a model id, in this
        order. Raises as `resolve` does; a text that means nothing is an `errors.UnknownTarget`."""
        table = self.table
        if text in table.by_name or text in table.by_alias:
            return self.resolve(ByName(text))
        if text in table.by_model:
            return self.resolve(ByModel(text))
        raise errors.UnknownTarget(f"Model '{text}' not found")

    def _replace(self, instances: Sequence[Instance]) -> None:
        self.table = Table.build(instances, self._announced.values())
        self._changed.set()
        self._changed = asyncio.Event()


def _unready_name(table: Table, name: str) -> Candidates:
    if (instance := table.by_name.get(name)) is not None:
        raise _not_running(instance)
    if (meant := table.by_alias.get(name)) is not None:
        raise _none_ready(name, meant)
    raise errors.UnknownInstance(name)


def _unready_model(table: Table, model: str) -> Candidates:
    if (meant := table.by_alias.get(model)) is not None:
        raise _none_ready(model, meant)
    raise _no_model(model, table.by_model.get(model, ()))


def _none_ready(alias: str, meant: tuple[Instance, ...]) -> errors.TeiManagerError:
    return _not_running(meant[0]) if len(meant) == 1 else _no_model(alias, meant)


def _not_running(instance: Instance) -> errors.NotReady:
    status = _seen(instance)
    text = f"Instance '{instance.name}' is not running (status: {status})"
    if status is Status.FAILED and instance.last_error:
        text += f": {instance.last_error}"
    return errors.NotReady(text, retry_after=RETRY_AFTER_SECS if status is Status.STARTING else None)


def _no_model(model: str, meant: tuple[Instance, ...]) -> errors.TeiManagerError:
    wanted = [instance for instance in meant if instance.desired is Desired.RUNNING]
    if not wanted:
        return errors.UnknownTarget(f"No running instance for model '{model}'")
    states = ", ".join(f"{instance.name}: {_seen(instance)}" for instance in wanted)
    soon = any(_seen(instance) is Status.STARTING for instance in wanted)
    return errors.NotReady(
        f"No ready instance for model '{model}' ({states})", retry_after=RETRY_AFTER_SECS if soon else None
    )


def _seen(instance: Instance) -> Status:
    """The status to show for an instance that cannot be called.

    A picture that says "running" is older than the withdrawal, or than the announcement to come: it is on its way.
    """
    return Status.STARTING if instance.status is Status.RUNNING else instance.status
