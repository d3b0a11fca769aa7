"""What the engine descriptors are told about this machine."""

from __future__ import annotations

import asyncio
import os

from tei_manager.control.settings import Settings
from tei_manager.control.world import World
from tei_manager.domain.instance import EngineKind, InstanceSpec
from tei_manager.domain.spec import split_quant
from tei_manager.engines.base import Surroundings


async def look(spec: InstanceSpec, world: World, settings: Settings) -> Surroundings:
    """Gather what the launch of `spec` depends on: its program's version, the folder of its model."""
    programs: dict[EngineKind, str | tuple[str, ...]] = {
        EngineKind.TEI: settings.tei_program,
        EngineKind.EMBEDDED: settings.embedded_program,
        EngineKind.VLLM: settings.vllm_command,
        EngineKind.LLAMACPP: settings.llamacpp_program,
    }
    folder, files = await asyncio.to_thread(_model, spec, world, settings)
    is_pinned = spec.gpu_id is not None or bool(spec.gpu_ids)
    return Surroundings(
        host=settings.instance_host,
        program=programs.get(spec.engine, ""),
        version=await _version(spec, world, settings),
        environ=world.environ,
        model_sources=settings.model_sources,
        resolved_model=folder,
        model_files=files,
        model_cache_dir=settings.model_cache_dir,
        stop_grace_secs=settings.graceful_shutdown_timeout_secs,
        gpu_uuids=await asyncio.to_thread(world.gpus) if is_pinned else None,
        cpus=os.cpu_count(),
    )


async def _version(spec: InstanceSpec, world: World, settings: Settings) -> str | None:
    if spec.engine is EngineKind.TEI:
        return await world.driver.version(settings.tei_program)
    # it may take seconds to say, and only the flags of pooling differ
    if spec.engine is EngineKind.VLLM and spec.pooling is not None:
        return await world.driver.version(settings.vllm_command[0])
    return None


def _model(spec: InstanceSpec, world: World, settings: Settings) -> tuple[str | None, tuple[str, ...]]:
    """The folder of the model, if it lies on this machine, and its files where the engine wants one of them."""
    model_id = split_quant(spec.model_id)[0]
    folder = world.models.folder(settings.model_sources.get(model_id, model_id))
    if folder is None or spec.engine is not EngineKind.LLAMACPP:
        return folder, ()
    return folder, world.models.files(folder, ".gguf")
