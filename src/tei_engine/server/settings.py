"""The parsed command line as one frozen value, with what depends on the machine filled in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tei_engine.server import flags


@dataclass(frozen=True, slots=True)
class Settings:
    """Fields are named after their flags. `warnings` are said once, when the log is open."""

    model_id: str
    revision: str | None
    hostname: str
    port: int
    grpc_port: int
    prometheus_port: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_concurrent_requests: int
    max_client_batch_size: int
    run_tokens: int
    tokenization_workers: int
    compute_workers: int
    intra_op_threads: int
    auto_split: bool
    quantize: str
    onnx_file: str | None
    pooling: str | None
    dtype: str
    dense_path: str | None
    auto_truncate: bool
    default_prompt: str | None
    default_prompt_name: str | None
    served_model_name: str
    api_key: str | None
    hf_token: str | None
    huggingface_hub_cache: str | None
    offline: bool
    model_sources: Mapping[str, str]
    is_similarity: bool
    """Whether `/` answers as `/similarity` (environment `TASK`)."""
    execution_providers: tuple[str, ...]
    payload_limit: int
    cors_allow_origin: tuple[str, ...]
    drain_timeout: int
    json_output: bool
    dry_run: bool
    warnings: tuple[str, ...]


def read_settings(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Settings from arguments and environment. Raises `flags.UsageError`."""
    values = flags.parse(argv, environ)
    warnings = _adjust(values)
    cores = usable_cores()
    offline = values["offline"] or any(
        environ.get(name, "").lower() in {"1", "true", "yes", "on"}
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )
    taken = {name: values[name] for name in Settings.__slots__ if name in values}
    return Settings(
        **taken
        | {
            "tokenization_workers": values["tokenization_workers"] or (1 if cores <= 4 else 2),
            "compute_workers": values["compute_workers"] or cores,
            "intra_op_threads": values["intra_op_threads"] or cores,
            "hf_token": values["hf_token"] or values["hf_api_token"],
            "served_model_name": values["served_model_name"] or values["model_id"],
            "offline": offline,
            "is_similarity": environ.get("TASK") == "sentence-similarity",
            "model_sources": dict(text.partition("=")[::2] for text in values["model_source"]),
            "execution_providers": tuple(values["execution_providers"].split(",")),
            "warnings": tuple(warnings),
        }
    )


def _adjust(values: dict[str, Any]) -> list[str]:
    warnings = []
    most = values["max_client_batch_size"]
    if values["max_concurrent_requests"] < most:
        warnings.append(f"--max-concurrent-requests is raised to --max-client-batch-size: {most}")
        values["max_concurrent_requests"] = most
    if values["dtype"] != "float32":
        warnings.append(f"--dtype {values['dtype']}: computing in float32")
    if values["otlp_endpoint"]:
        warnings.append("--otlp-endpoint is accepted and unused: no traces are sent")
    return warnings


def usable_cores() -> int:
    """Cores this process may use: its affinity, cut by a cgroup quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, -(-int(quota) // int(period))))
    except (OSError, ValueError):
        pass  # no cgroup v2 here: affinity is all there is
    return cores
