"""How the instances are: one, all of them, and what one is and does. Reads, answered whatever an engine does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from starlette.datastructures import QueryParams
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tei_manager.domain import errors
from tei_manager.domain.figures import Figures
from tei_manager.domain.instance import Desired, Instance
from tei_manager.engines.metrics_reading import EngineInfo
from tei_manager.kits import parsing
from tei_manager.ports.fleet import Fleet, Inspection
from tei_manager.surfaces.http import clock, query, wire
from tei_manager.surfaces.http.routing import route

RETRY_AFTER_SECS = 1.0
_STRICT = parsing.Boolean()


class Health:
    """The routes of health. With `strict` an ill answer is a 503, for probers that look at the status only."""

    def __init__(self, fleet: Fleet, *, now: Callable[[], float] = time.time) -> None:
        self._fleet, self._now = fleet, now

    def routes(self) -> list[Route]:
        return [
            route("/health/all", GET=self.all),
            route("/instances/{name}/health", GET=self.one),
            route("/instances/{name}/info", GET=self.info),
        ]

    async def all(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Every instance that is wanted: one that a person stopped is neither well nor ill."""
        strict, now = _is_strict(scope), self._now()
        wanted = [each for each in self._fleet.instances() if each.desired is Desired.RUNNING]
        status = _overall(wanted)
        ill = sum(not each.is_healthy for each in wanted)
        body = {
            "timestamp": clock.text(now),
            "total_instances": len(wanted),
            "healthy_count": len(wanted) - ill,
            "unhealthy_count": ill,
            "overall_status": status,
            "instances": [{"name": each.name, **_health(each, now)} for each in wanted],
        }
        if strict and status in ("critical", "down"):
            text = f"{ill} of {len(wanted)} instances are unhealthy"
            raise _unhealthy("FLEET_UNHEALTHY", text, body)
        await wire.answer_json(send, 200, body)

    async def one(self, scope: Scope, receive: Receive, send: Send) -> None:
        strict, instance = _is_strict(scope), self._fleet.get(_name(scope))
        body = {"instance": instance.name, **_health(instance, self._now())}
        if strict and not instance.is_healthy:
            text = f"Instance '{instance.name}' is unhealthy: {body['error']}"
            raise _unhealthy("INSTANCE_UNHEALTHY", text, body)
        await wire.answer_json(send, 200, body)

    async def info(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = _name(scope)
        inspection = await self._fleet.inspect(name)
        await wire.answer_json(send, 200, _info(self._fleet.get(name), inspection, self._now()))


def _name(scope: Scope) -> str:
    return str(scope["path_params"]["name"])


def _is_strict(scope: Scope) -> bool:
    return bool(query.param(QueryParams(scope["query_string"]), "strict", _STRICT))


def _overall(instances: Sequence[Instance]) -> str:
    ill = sum(not each.is_healthy for each in instances)
    if not ill:
        return "healthy"
    if ill == len(instances):
        return "down"
    return "critical" if 2 * ill > len(instances) else "degraded"


def _health(instance: Instance, now: float) -> dict[str, object]:
    checks = _checks(instance) | {"uptime_seconds": _uptime(instance, now)}
    return checks if instance.is_healthy else checks | {"error": _error(instance)}


def _checks(instance: Instance) -> dict[str, object]:
    last = instance.last_health_check
    return {
        "healthy": instance.is_healthy,
        "last_check": None if last is None else clock.text(last),
        "consecutive_failures": instance.health_check_failures,
    }


def _error(instance: Instance) -> str:
    """Why it is not healthy: what ended it says more than the probes that failed before."""
    if why := instance.last_error or instance.probe_error:
        return why
    return f"not running (status: {instance.status}" + (f", {instance.detail})" if instance.detail else ")")


def _uptime(instance: Instance, now: float) -> int:
    if instance.pid is None or instance.started_at is None:
        return 0
    return max(0, int(now - instance.started_at))


def _info(instance: Instance, inspection: Inspection, now: float) -> dict[str, object]:
    spec = instance.spec
    return {
        "name": spec.name,
        "model_id": spec.model_id,
        "port": instance.ports.main,
        "prometheus_port": instance.ports.metrics,
        "gpu_id": spec.gpu_id,
        "status": str(instance.status),
        "pid": instance.pid,
        "uptime_seconds": _uptime(instance, now),
        "created_at": clock.text(instance.created_at),
        "health": _checks(instance),
        "config": {
            "max_batch_tokens": spec.max_batch_tokens,
            "max_concurrent_requests": spec.max_concurrent_requests,
            "pooling": spec.pooling,
        },
        "metrics": _metrics(inspection.figures),
        "engine": {"kind": str(spec.engine), **_engine(inspection.info or EngineInfo())},
    }


def _metrics(figures: Figures) -> dict[str, object]:
    latency = figures.avg_latency_secs
    return {
        "total_requests": figures.requests,
        "avg_latency_ms": None if latency is None else round(latency * 1000, 3),
        "error_rate": round(figures.error_rate, 6),
    }


def _engine(info: EngineInfo) -> dict[str, object]:
    return {
        "version": info.version,
        "model_type": info.model_type,
        "model_sha": info.model_sha,
        "model_dtype": info.model_dtype,
        "max_input_length": info.max_input_length,
    }


def _unhealthy(code: str, text: str, details: dict[str, object]) -> errors.NotReady:
    refusal = errors.NotReady(text, code=code, retry_after=RETRY_AFTER_SECS)
    refusal.details = details
    return refusal
