"""The control routes: parse, ask the fleet, render. Reads answer from the fleet's memory at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from starlette.datastructures import QueryParams
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tei_manager.domain import errors, spec
from tei_manager.domain.instance import EngineKind, Instance, Origin, Status
from tei_manager.kits import parsing
from tei_manager.ports.fleet import Degraded, Fleet
from tei_manager.ports.metrics import HttpMetrics
from tei_manager.surfaces.http import clock, query, wire
from tei_manager.surfaces.http.instance_json import shown
from tei_manager.surfaces.http.routing import Handler, route
from tei_manager.surfaces.http.settings import HttpSettings

PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_WAIT = parsing.Boolean()
_WAIT_SECS = parsing.Number(0, 3600, above=True)
_LINE = parsing.Integer()
_TAIL = parsing.Integer(0)
_FILTERS: Mapping[str, tuple[parsing.Shape[str], Callable[[Instance], str]]] = {
    "status": (parsing.Choice(*Status), lambda instance: instance.status),
    "engine": (parsing.Choice(*EngineKind), lambda instance: instance.spec.engine),
    "model_id": (spec.MODEL_ID, lambda instance: instance.spec.model_id),
}


class Control:
    """The handlers, by the fleet and the metrics they show."""

    def __init__(
        self, fleet: Fleet, metrics: HttpMetrics, settings: HttpSettings, *, now: Callable[[], float] = time.time
    ) -> None:
        self._fleet, self._metrics, self._settings, self._now = fleet, metrics, settings, now

    def routes(self) -> list[Route]:
        return [
            route("/health", GET=self.health),
            route("/health/live", GET=self.health),
            route("/ready", GET=self.ready),
            route("/health/ready", GET=self.ready),
            route("/metrics", GET=self.metrics),
            route("/instances", GET=self.index, POST=self.create),
            route("/instances/{name}", GET=self.show, DELETE=self.delete),
            route("/instances/{name}/start", POST=self._verb(self._fleet.start)),
            route("/instances/{name}/restart", POST=self._verb(self._fleet.restart)),
            route("/instances/{name}/stop", POST=self.stop),
            route("/instances/{name}/logs", GET=self.logs),
        ]

    async def health(self, scope: Scope, receive: Receive, send: Send) -> None:
        degraded = self._fleet.degraded
        reasons = ",".join(dict.fromkeys(each.reason for each in degraded))
        body = {
            "status": f"degraded:{reasons}" if reasons else "healthy",
            "timestamp": clock.text(self._now()),
            "degraded": [_degraded(each) for each in degraded],
            "warnings": [{"code": each.code, "message": each.message} for each in self._fleet.warnings],
        }
        await wire.answer_json(send, 200, body)

    async def ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        instances = self._fleet.instances()
        checks = {
            "state": self._fleet.is_reconciled,
            "http": True,
            "grpc": self._settings.has_grpc(),
            "draining": self._fleet.is_draining,
        }
        is_ready = not checks["draining"] and checks["state"] and checks["grpc"]
        body = {
            "ready": is_ready,
            "timestamp": clock.text(self._now()),
            "checks": checks,
            "instances": {
                "total": len(instances),
                "ready": sum(instance.status is Status.RUNNING for instance in instances),
            },
        }
        if not is_ready:
            refusal = errors.NotReady("The manager is not ready", retry_after=1)
            refusal.details = body
            raise refusal
        await wire.answer_json(send, 200, body)

    async def metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        await wire.answer(send, 200, self._metrics.text(), content_type=PROMETHEUS_TEXT)

    async def index(self, scope: Scope, receive: Receive, send: Send) -> None:
        params = QueryParams(scope["query_string"])
        chosen = self._fleet.instances()
        for name, (shape, value_of) in _FILTERS.items():
            if (wanted := query.param(params, name, shape)) is not None:
                chosen = tuple(instance for instance in chosen if value_of(instance) == wanted)
        now = self._now()
        await wire.answer_json(send, 200, [shown(instance, now=now) for instance in chosen])

    async def create(self, scope: Scope, receive: Receive, send: Send) -> None:
        wait, timeout_secs = _wait_params(scope)
        wire.check_content_type(scope, suffixes=False)
        body = await self._body(scope, receive)
        wanted = spec.parse(wire.read_object(body), default_engine=self._fleet.default_engine)
        instance = await self._fleet.create(wanted, origin=Origin.API)
        if wait and wanted.autostart:
            async with wire.cancelled_when_gone(receive):
                instance = await self._fleet.wait_running(instance.name, timeout_secs=timeout_secs)
        await self._answer(send, instance, 201, headers=(("location", f"/instances/{instance.name}"),))

    async def show(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(send, self._fleet.get(_name(scope)))

    async def delete(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._no_body(scope, receive)
        await self._fleet.delete(_name(scope))
        await wire.answer(send, 204)

    async def stop(self, scope: Scope, receive: Receive, send: Send) -> None:
        wait = query.param(QueryParams(scope["query_string"]), "wait", _WAIT)
        await self._no_body(scope, receive)
        instance = await self._fleet.stop(_name(scope), wait=wait is not False)
        await self._answer(send, instance)

    async def logs(self, scope: Scope, receive: Receive, send: Send) -> None:
        params = QueryParams(scope["query_string"])
        start, end = query.param(params, "start", _LINE), query.param(params, "end", _LINE)
        tail = query.param(params, "tail", _TAIL)
        if tail is not None and (start is not None or end is not None):
            raise errors.CallerError("tail: give tail, or start and end, not both")
        if query.param(params, "follow", _WAIT):
            raise errors.CallerError("follow: following a log is not offered by this version")
        cut = await self._fleet.logs(_name(scope), start=start, end=end, tail=tail)
        body = {"lines": cut.lines, "start": cut.start, "end": cut.end, "total_lines": cut.total}
        await wire.answer_json(send, 200, body)

    def _verb(self, act: Callable[[str], object]) -> Handler:
        async def handle(scope: Scope, receive: Receive, send: Send) -> None:
            wait, timeout_secs = _wait_params(scope)
            await self._no_body(scope, receive)
            name = _name(scope)
            instance: Instance = await act(name)  # type: ignore[misc]
            if wait:
                async with wire.cancelled_when_gone(receive):
                    instance = await self._fleet.wait_running(name, timeout_secs=timeout_secs)
            await self._answer(send, instance)

        return handle

    async def _answer(
        self, send: Send, instance: Instance, status: int = 200, *, headers: wire.Headers = ()
    ) -> None:
        await wire.answer_json(send, status, shown(instance, now=self._now()), headers=headers)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        return await wire.read_body(
            scope,
            receive,
            max_mb=self._settings.max_body_mb,
            idle_timeout_secs=self._settings.body_idle_timeout_secs,
        )

    async def _no_body(self, scope: Scope, receive: Receive) -> None:
        """Verbs need no body; one that is sent must be JSON all the same, so that no form can post it."""
        if await self._body(scope, receive):
            wire.check_content_type(scope, suffixes=False)


def _degraded(what: Degraded) -> dict[str, object]:
    since = None if what.since is None else clock.text(what.since)
    return {"reason": what.reason, "since": since, "device": None, "detail": what.detail}


def _name(scope: Scope) -> str:
    return str(scope["path_params"]["name"])


def _wait_params(scope: Scope) -> tuple[bool, float | None]:
    params = QueryParams(scope["query_string"])
    return bool(query.param(params, "wait", _WAIT)), query.param(params, "timeout_secs", _WAIT_SECS)
