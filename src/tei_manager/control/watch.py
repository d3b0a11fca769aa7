"""Watching one process: until it answers, and then whether it still does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from tei_manager.control.readings import Readings
from tei_manager.control.settings import Settings
from tei_manager.control.world import World
from tei_manager.domain.instance import InstanceSpec, Ports, Protocol
from tei_manager.engines import catalog
from tei_manager.engines.base import Probe
from tei_manager.ports.prober import Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The process that is watched."""

    spec: InstanceSpec
    ports: Ports
    uid: str
    log_path: str
    spawned_at: float  # monotonic
    readings: Readings


@dataclass(frozen=True, slots=True)
class Ready:
    protocol: Protocol


@dataclass(frozen=True, slots=True)
class Stalled:
    text: str


async def until_ready(
    subject: Subject, world: World, settings: Settings, on_detail: Callable[[str], None]
) -> Ready | Stalled:
    """Ask again and again until the engine answers a real request, or nothing has moved for too long.

    Progress is anything that tells a slow start from a dead one: log bytes, another answer to a probe.
    """
    loop = asyncio.get_running_loop()
    limit = subject.spec.startup_timeout_secs or settings.startup_timeout_secs
    moved_at, last, log_size = loop.time(), "not asked yet", -1
    protocol = subject.spec.protocol or Protocol.UNKNOWN
    while True:
        protocol, seen = await _ready_once(subject, world, settings, protocol)
        if seen.ok:
            on_detail("warming")
            seen = await _warm_up(subject, world, settings, protocol)
            if seen.ok or seen.caller_fault:
                return Ready(protocol)
        size = await asyncio.to_thread(world.logs.size, subject.log_path)
        if size != log_size or seen.text != last:
            moved_at, log_size, last = loop.time(), size, seen.text
            on_detail("spawning" if seen.refused else "loading")
        if loop.time() - moved_at > limit:
            return Stalled(f"did not become ready within {limit:g}s (last check: {last})")
        if loop.time() - subject.spawned_at > settings.startup_timeout_max_secs:
            return Stalled(
                f"did not become ready within {settings.startup_timeout_max_secs:g}s (last check: {last})"
            )
        await asyncio.sleep(settings.startup_probe_interval_secs)


async def ask_alive(subject: Subject, world: World, settings: Settings, protocol: Protocol) -> Seen:
    """One liveness question, within `health_check_timeout_secs`."""
    probe = world.engines[subject.spec.engine].liveness(subject.spec, subject.ports, protocol)
    return await _ask(subject, world, settings, probe, settings.health_check_timeout_secs)


async def _ready_once(
    subject: Subject, world: World, settings: Settings, protocol: Protocol
) -> tuple[Protocol, Seen]:
    engine = world.engines[subject.spec.engine]
    seen = Seen(False, "nothing to ask")
    for speaks, probe in engine.readiness(subject.spec, subject.ports, protocol):
        seen = await _ask(subject, world, settings, probe, settings.health_check_timeout_secs)
        if seen.ok:
            return speaks, seen
    return protocol, seen


async def _warm_up(subject: Subject, world: World, settings: Settings, protocol: Protocol) -> Seen:
    engine = world.engines[subject.spec.engine]
    if (probe := engine.warm_up(subject.spec, subject.ports, protocol)) is None:
        return Seen(True)
    async with subject.readings.left_out(protocol):
        # the first real request may compile and page in: it gets the time a slow answer needs, not a probe's
        return await _ask(subject, world, settings, probe, max(60.0, settings.health_check_timeout_secs))


async def _ask(subject: Subject, world: World, settings: Settings, probe: Probe, timeout_secs: float) -> Seen:
    return await world.prober.ask(
        settings.instance_host, probe, timeout_secs=timeout_secs, key=catalog.api_key(subject.spec)
    )
