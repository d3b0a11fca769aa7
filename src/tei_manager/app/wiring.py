"""Everything connected to everything: the one module that sees every floor."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from starlette.types import ASGIApp

from tei_manager.adapters import gpus, log_files
from tei_manager.adapters.drivers.subprocess import SubprocessDriver
from tei_manager.adapters.host_ports import is_bindable
from tei_manager.adapters.model_folders import ModelFolders
from tei_manager.adapters.prober import EngineProber
from tei_manager.adapters.store.journal import FileJournal
from tei_manager.adapters.store.lock import StateLock
from tei_manager.adapters.store.toml_state import TomlStore
from tei_manager.adapters.telemetry.grpc_metrics import PrometheusGrpcMetrics
from tei_manager.adapters.telemetry.prometheus import PrometheusMetrics, new_registry
from tei_manager.adapters.upstream.grpc import GrpcUpstreams
from tei_manager.adapters.upstream.http import HttpUpstreams
from tei_manager.config.load import Loaded
from tei_manager.config.schema import Config
from tei_manager.control.fleet import Fleet
from tei_manager.control.settings import Settings
from tei_manager.control.world import World
from tei_manager.domain.instance import EngineKind
from tei_manager.engines import catalog
from tei_manager.policy import ports, restart
from tei_manager.serving.gateway import Gateway, GatewaySettings
from tei_manager.serving.router import Router
from tei_manager.surfaces.grpc.server import GrpcDoor, GrpcDoorSettings
from tei_manager.surfaces.http.asgi import build_app
from tei_manager.surfaces.http.settings import HttpSettings

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class App:
    """What `lifespan` starts and ends."""

    fleet: Fleet
    http_app: ASGIApp
    grpc_door: GrpcDoor | None
    lock: contextlib.AbstractContextManager[object]
    driver: SubprocessDriver
    store: TomlStore
    journal: FileJournal
    prober: EngineProber
    http_upstreams: HttpUpstreams
    grpc_upstreams: GrpcUpstreams

    async def close(self) -> None:
        """Let go of every connection."""
        await self.prober.close()
        await self.http_upstreams.close()
        await self.grpc_upstreams.close()
        await self.driver.close()
        await self.store.close()
        await self.journal.close()


def build(loaded: Loaded) -> App:
    """Connect the parts; starts nothing and opens no file but the lock's when it is entered."""
    config = loaded.config
    registry = new_registry()
    grpc_metrics = PrometheusGrpcMetrics(registry)
    metrics = PrometheusMetrics(
        registry,
        version=version("tei-manager"),
        on_delete=grpc_metrics.end_gauges,
        on_purge=grpc_metrics.forget,
    )
    router = Router()
    prober = EngineProber()
    http_upstreams = HttpUpstreams(connect_timeout_secs=config.grpc_connect_timeout_secs)
    grpc_upstreams = GrpcUpstreams(
        connect_timeout_secs=config.grpc_connect_timeout_secs,
        max_message_bytes=config.grpc_max_message_size_mb * MIB,
        metrics=grpc_metrics,
    )
    driver = SubprocessDriver()
    store = TomlStore(config.state_file, default_engine=default_engine(config))
    journal = FileJournal(config.state_file.parent / "journal.jsonl")
    world = World(
        engines=catalog.ENGINES,
        driver=driver,
        prober=prober,
        inspector=prober,
        frontdoor=router,
        store=store,
        logs=log_files,
        models=ModelFolders(),
        metrics=metrics,
        journal=journal,
        port_is_free=is_bindable,
        environ=os.environ,
        gpus=gpus.uuids,
    )
    fleet = Fleet(world, control_settings(config), seeds=loaded.entries)
    metrics.watch(fleet.instances)
    gateway = Gateway(
        router=router,
        http=http_upstreams,
        grpc=grpc_upstreams,
        metrics=metrics,
        settings=GatewaySettings(request_timeout_secs=config.gateway.request_timeout_secs),
    )
    grpc_door = None
    if config.grpc_enabled:
        grpc_door = GrpcDoor(router, grpc_upstreams, grpc_settings(config), grpc_metrics)
    return App(
        fleet=fleet,
        http_app=build_app(fleet, gateway, metrics, journal, http_settings(config)),
        grpc_door=grpc_door,
        lock=StateLock(config.state_file.parent),
        driver=driver,
        store=store,
        journal=journal,
        prober=prober,
        http_upstreams=http_upstreams,
        grpc_upstreams=grpc_upstreams,
    )


def control_settings(config: Config) -> Settings:
    return Settings(
        instance_host=config.instance_host,
        log_dir=str(config.log_dir),
        range=ports.Range(
            start=config.instance_port_start,
            end=config.instance_port_end,
            metrics_start=config.prometheus_port_start,
        ),
        reserved_ports=(config.api_port, config.grpc_port),
        max_instances=config.max_instances,
        tei_program=config.tei_binary_path,
        embedded_program=embedded_program(os.environ),
        vllm_command=config.vllm_command,
        llamacpp_program=config.llamacpp_binary_path,
        model_sources=config.model_sources,
        model_cache_dir=str(config.model_cache_dir),
        model_roots=tuple(str(root) for root in config.model_roots),
        api_allow_command=config.api_allow_command,
        health_check_interval_secs=config.health_check_interval_secs,
        health_check_timeout_secs=config.health_check_timeout_secs,
        health_check_initial_delay_secs=config.health_check_initial_delay_secs,
        max_failures_before_restart=config.max_failures_before_restart,
        startup_timeout_secs=config.startup_timeout_secs,
        startup_timeout_max_secs=config.startup_timeout_max_secs,
        restart=restart.Limits(
            base_secs=config.restart_backoff_base_secs,
            max_secs=config.restart_backoff_max_secs,
            max_restarts=config.max_restarts,
            retry_first_start=config.retry_first_start,
        ),
        restart_reset_after_secs=config.restart_reset_after_secs,
        graceful_shutdown_timeout_secs=config.graceful_shutdown_timeout_secs,
        drain_timeout_secs=config.drain_timeout_secs,
        auto_restore=config.auto_restore_on_restart,
    )


def http_settings(config: Config) -> HttpSettings:
    return HttpSettings(
        is_loopback=is_loopback(config.host),
        allowed_hosts=config.allowed_hosts,
        cors_origins=config.cors_origins,
        max_body_mb=config.max_body_mb,
        gateway_max_body_mb=config.gateway.max_body_mb,
        max_inputs=config.embeddings.max_inputs,
    )


def grpc_settings(config: Config) -> GrpcDoorSettings:
    return GrpcDoorSettings(
        max_message_bytes=config.grpc_max_message_size_mb * MIB,
        max_parallel_streams=config.grpc_max_parallel_streams,
        request_timeout_secs=config.grpc_request_timeout_secs,
        default_target=config.grpc_default_target,
    )


def default_engine(config: Config) -> EngineKind:
    """`tei` where its binary is found, else `embedded`."""
    return EngineKind.TEI if shutil.which(config.tei_binary_path) else EngineKind.EMBEDDED


def embedded_program(environ: Mapping[str, str]) -> str:
    """`tei-engine` of this installation: beside our interpreter, else from PATH."""
    beside = Path(sys.executable).with_name("tei-engine")
    return str(beside) if beside.exists() else shutil.which("tei-engine", path=environ.get("PATH")) or "tei-engine"


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
