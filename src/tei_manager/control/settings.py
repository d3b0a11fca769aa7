"""What the control plane is told. Times are in seconds; the meaning of each is in the configuration reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tei_manager.policy import ports, restart


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    instance_host: str = "127.0.0.1"
    log_dir: str
    range: ports.Range = field(default_factory=ports.Range)
    reserved_ports: tuple[int, ...] = ()  # the manager's own
    max_instances: int | None = None
    tei_program: str = "text-embeddings-router"
    embedded_program: str = "tei-engine"
    vllm_command: tuple[str, ...] = ("vllm", "serve")
    llamacpp_program: str = "llama-server"
    model_sources: Mapping[str, str] = field(default_factory=dict)
    model_cache_dir: str | None = None
    model_roots: tuple[str, ...] = ()
    api_allow_command: bool = False
    health_check_interval_secs: float = 30.0
    health_check_timeout_secs: float = 5.0
    health_check_initial_delay_secs: float = 60.0
    max_failures_before_restart: int = 3
    startup_timeout_secs: float = 300.0
    startup_timeout_max_secs: float = 7200.0
    startup_probe_interval_secs: float = 0.25
    restart: restart.Limits = field(default_factory=restart.Limits)
    restart_reset_after_secs: float = 300.0
    graceful_shutdown_timeout_secs: float = 30.0
    drain_timeout_secs: float = 30.0
    auto_restore: bool = True
