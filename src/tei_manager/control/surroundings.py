"""What the engine descriptors are told about this machine."""

from __future__ import annotations

import asyncio
import os

from tei_manager.control.settings import Settings
from tei_manager.control.world import World
from tei_manager.domain.instance import EngineKind, InstanceSpec
from tei_manager.engines.base import Surroundings


async def look(spec: InstanceSpec, world: World, settings: Settings) -> Surroundings:
    """Gather what the launch of `spec` depends on: its program's version, the folder of its model."""
    programs = {EngineKind.TEI: settings.tei_program, EngineKind.EMBEDDED: settings.embedded_program}
    program = programs.get(spec.engine, "")
    source = settings.model_sources.get(spec.model_id, spec.model_id)
    is_pinned = spec.gpu_id is not None or bool(spec.gpu_ids)
    return Surroundings(
        host=settings.instance_host,
        program=program,
        version=await world.driver.version(program) if spec.engine is EngineKind.TEI else None,
        environ=world.environ,
        model_sources=settings.model_sources,
        resolved_model=await asyncio.to_thread(world.models.folder, source),
        model_cache_dir=settings.model_cache_dir,
        stop_grace_secs=settings.graceful_shutdown_timeout_secs,
        gpu_uuids=await asyncio.to_thread(world.gpus) if is_pinned else None,
        cpus=os.cpu_count(),
    )
