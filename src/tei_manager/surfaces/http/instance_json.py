"""An instance as the control API shows it: every key, the seed's first, in the documented order."""

from __future__ import annotations

from tei_manager.domain.instance import Instance
from tei_manager.kits.masking import masked_args, masked_env
from tei_manager.surfaces.http import clock


def shown(instance: Instance, *, now: float) -> dict[str, object]:
    """The JSON object of one instance; `now` in seconds since the epoch."""
    spec, is_alive = instance.spec, instance.pid is not None
    started_at = instance.started_at if is_alive else None
    return {
        "name": spec.name,
        "model_id": spec.model_id,
        "port": instance.ports.main,
        "status": str(instance.status),
        "pid": instance.pid,
        "created_at": clock.text(instance.created_at),
        "uptime_secs": None if started_at is None else max(0, int(now - started_at)),
        "restarts": instance.restarts,
        "health_check_failures": instance.health_check_failures,
        "last_health_check": _time(instance.last_health_check),
        "gpu_id": spec.gpu_id,
        "prometheus_port": instance.ports.metrics,
        "last_error": instance.last_error,
        "detail": instance.detail,
        "desired": str(instance.desired),
        "engine": str(spec.engine),
        "driver": "subprocess",
        "protocol": str(instance.protocol),
        "grpc_port": instance.grpc_port,
        "revision": spec.revision,
        "dtype": spec.dtype,
        "pooling": spec.pooling,
        "max_batch_tokens": spec.max_batch_tokens,
        "max_concurrent_requests": spec.max_concurrent_requests,
        "gpu_ids": None if spec.gpu_ids is None else list(spec.gpu_ids),
        "extra_args": masked_args(spec.extra_args),
        "env": masked_env(spec.env),
        "log_level": spec.log_level,
        "aliases": list(spec.aliases),
        "autostart": spec.autostart,
        "startup_timeout_secs": spec.startup_timeout_secs,
        "command": None if spec.command is None else masked_args(spec.command),
        "health_path": spec.health_path,
        "started_at": _time(started_at),
        "origin": str(instance.origin),
    }


def _time(epoch_secs: float | None) -> str | None:
    return None if epoch_secs is None else clock.text(epoch_secs)
