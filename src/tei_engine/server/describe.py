"""What the engine says about itself: the body of `/info`, and the gauges."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tei_engine
from tei_engine.models.kinds import Kind
from tei_engine.server.metrics import resident_bytes
from tei_engine.server.service import Service

if TYPE_CHECKING:
    from tei_engine.models.configuration import Configuration
    from tei_engine.models.model import Model

_DTYPE = "float32"


def info(service: Service) -> dict[str, Any]:
    """The body of `GET /info`. Raises RequestError Unhealthy while the model is loading."""
    settings, loaded = service.settings, service.loaded
    return {
        "model_id": settings.model_id,
        "model_sha": loaded.model_sha,
        "model_dtype": _DTYPE,
        "served_model_name": settings.served_model_name,
        "model_type": _model_type(loaded.configuration),
        "max_concurrent_requests": settings.max_concurrent_requests,
        "max_input_length": loaded.configuration.max_input_length,
        "max_batch_tokens": settings.max_batch_tokens,
        "max_batch_requests": settings.max_batch_requests,
        "max_client_batch_size": settings.max_client_batch_size,
        "auto_truncate": settings.auto_truncate,
        "tokenization_workers": settings.tokenization_workers,
        "version": tei_engine.TEI_VERSION,
        "sha": None,
        "docker_label": f"tei-engine-{tei_engine.__version__}",
        "engine": engine(service),
    }


def _model_type(configuration: Configuration) -> dict[str, Any]:
    labels = configuration.labels
    if labels is None:
        return {"embedding": {"pooling": configuration.pooling.value}}
    return {configuration.kind.value: {"id2label": labels.id2label, "label2id": labels.label2id}}


def engine(service: Service) -> dict[str, Any]:
    """The `engine` object of `/info`, which `--dry-run` prints."""
    settings, loaded = service.settings, service.loaded
    model = loaded.pipeline.model
    return {
        "name": "tei-engine",
        "version": tei_engine.__version__,
        "backend": "onnx",
        "graph": "native" if model.file is None else "onnx",
        "file": model.file,
        "quantize": _quantize(model),
        "quantize_cosine": None if model.cosine is None else dataclasses.asdict(model.cosine),
        "embedding_dimension": model.dimension if model.kind is Kind.EMBEDDING else None,
        "vocab_size": model.vocab_size,
        "execution_providers": list(settings.execution_providers),
        "compute_workers": settings.compute_workers,
        "intra_op_threads": settings.intra_op_threads,
        "run_tokens": settings.run_tokens,
        "grpc_port": settings.grpc_port or None,
        "footprint": {
            "weights_bytes": model.weights_bytes,
            "rss_bytes": resident_bytes(),
            "peak_rss_bytes": peak_resident_bytes(),
        },
        "load_seconds": round(loaded.load_seconds, 3),
    }


def _quantize(model: Model) -> str:
    return "int8" if model.is_int8 else "none"  # what runs; a plain ready-made file may have had to do


def add_gauges(service: Service) -> None:
    """Register the gauges; those of the model read 0 until it is loaded."""
    metrics = service.metrics
    metrics.gauge("te_queue_size", "inputs waiting for a run", lambda: 0)
    metrics.gauge("tei_engine_permits_in_use", "inputs between admission and answer", lambda: 0)
    metrics.gauge("tei_engine_tokenizer_queue", "inputs waiting for a tokenizer thread", lambda: 0)
    metrics.gauge("tei_engine_weights_bytes", "bytes of the model's weights", lambda: 0)
    metrics.gauge("tei_engine_rss_bytes", "resident memory", resident_bytes)
    metrics.gauge("tei_engine_load_seconds", "seconds from start to ready", lambda: 0)
    _say_what_runs(service, service.settings.quantize)


def _say_what_runs(service: Service, quantize: str) -> None:
    labels = {"version": tei_engine.__version__, "model": service.settings.model_id, "quantize": quantize}
    service.metrics.gauge("tei_engine_info", "what runs here", lambda: 1, labels)


def fill_gauges(service: Service) -> None:
    """Point the gauges at the loaded model."""
    loaded, metrics = service.loaded, service.metrics
    pipeline = loaded.pipeline
    _say_what_runs(service, _quantize(pipeline.model))
    metrics.limit_input_length(loaded.configuration.max_input_length)
    metrics.gauge("te_queue_size", "inputs waiting for a run", lambda: pipeline.queue_size)
    metrics.gauge(
        "tei_engine_permits_in_use", "inputs between admission and answer", lambda: pipeline.permits.in_use
    )
    metrics.gauge(
        "tei_engine_tokenizer_queue",
        "inputs waiting for a tokenizer thread",
        lambda: pipeline.tokenizer_queue_size,
    )
    weights = pipeline.model.weights_bytes
    metrics.gauge("tei_engine_weights_bytes", "bytes of the model's weights", lambda: weights)
    metrics.gauge("tei_engine_load_seconds", "seconds from start to ready", lambda: loaded.load_seconds)


def peak_resident_bytes() -> int:
    """The highest resident memory of this process so far; 0 where /proc does not exist."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass  # not Linux
    return 0
