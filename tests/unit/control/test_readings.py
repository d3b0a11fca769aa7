"""What is known of an engine and its work: real where it answers, never waited for long."""

import asyncio
from typing import Any

import pytest

from tei_manager.domain import errors
from tei_manager.domain.figures import Figures
from tei_manager.domain.instance import EngineKind, Status
from tei_manager.engines.base import Ask
from tei_manager.engines.metrics_reading import EngineInfo, EngineMetrics, Summary
from tei_manager.ports.fleet import Inspection
from tei_manager.ports.prober import Seen
from tei_manager.testing.plane import Plane

INFO = EngineInfo(version="1.9.3", model_type="embedding")


def counted(answered: int, secs: float = 0.0, **failures: int) -> EngineMetrics:
    return EngineMetrics(latency=Summary(secs, answered), failures=failures)


async def embedded(plane: Plane, name: str = "x", **fields: Any) -> None:
    await plane.running(name, engine=EngineKind.EMBEDDED, command=None, **fields)


async def inspected(plane: Plane, name: str = "x") -> tuple[Inspection, float]:
    """And how long it took."""
    began = plane.now
    return await plane.fleet.inspect(name), plane.now - began


async def test_the_engine_tells_what_it_is_and_what_it_did(plane: Plane) -> None:
    plane.prober.tells("x", INFO)
    await embedded(plane)
    assert await plane.fleet.inspect("x") == Inspection(INFO, Figures())
    plane.prober.counted["x"] = counted(10, 0.5, validation=2)
    assert (await plane.fleet.inspect("x")).figures == Figures(12, 2, 10, 0.5)


async def test_our_own_warm_up_is_not_a_request(plane: Plane) -> None:
    warming = asyncio.Event()
    ask = plane.prober.ask

    async def counting(host: str, probe: Any, **more: Any) -> Seen:
        seen = await ask(host, probe, **more)
        if probe.ask is Ask.GRPC_WARM_UP:  # as for a reranker: embed is refused first
            plane.prober.counted["x"] = counted(8, 3.0, model_type=1)
            warming.set()
        return seen

    plane.prober.counted["x"] = counted(7, 1.0)  # somebody called it before we came: it was adopted
    plane.prober.ask = counting  # type: ignore[method-assign]
    await embedded(plane)
    assert warming.is_set()
    assert (await plane.fleet.inspect("x")).figures == Figures(7, 0, 7, 1.0)
    plane.prober.counted["x"] = counted(10, 3.5, model_type=1)
    assert (await plane.fleet.inspect("x")).figures == Figures(9, 0, 9, 1.5)
    # it counts from zero: something in it began anew, and what we caused before is not in there
    plane.prober.counted["x"] = counted(2, 0.5)
    assert (await plane.fleet.inspect("x")).figures == Figures(2, 0, 2, 0.5)


async def test_a_stuck_engine_is_hardly_waited_for_and_its_last_figures_stand(plane: Plane) -> None:
    plane.prober.tells("x", INFO)
    await embedded(plane)
    plane.prober.counted["x"] = counted(10, 0.5)
    known = await plane.fleet.inspect("x")
    plane.prober.counted["x"] = counted(11, 0.6)
    plane.prober.takes("x", 3600)
    assert await inspected(plane) == (known, pytest.approx(0.05))
    # whoever asks next does not wait for the reading that hangs, and begins no other
    readings = plane.prober.readings
    assert await asyncio.gather(*(inspected(plane) for _ in range(50))) == [(known, 0)] * 50
    assert plane.prober.readings == readings


async def test_an_answer_that_came_too_late_is_there_for_the_next_one_who_asks(plane: Plane) -> None:
    await embedded(plane)
    plane.prober.counted["x"] = counted(10, 0.5)
    plane.prober.takes("x", 1)
    assert (await plane.fleet.inspect("x")).figures == Figures()
    await plane.settle(1)
    assert (await plane.fleet.inspect("x")).figures.requests == 10


async def test_those_who_ask_at_once_share_one_reading(plane: Plane) -> None:
    await embedded(plane)
    readings = plane.prober.readings
    plane.prober.takes("x", 0.02)
    plane.prober.counted["x"] = counted(10)
    told = await asyncio.gather(*(inspected(plane) for _ in range(50)))
    assert {(each.figures.requests, round(secs, 3)) for each, secs in told} == {(10, 0.02)}
    assert plane.prober.readings == readings + 1


async def test_our_own_doors_count_where_the_engine_cannot_be_read(plane: Plane) -> None:
    await embedded(plane)
    plane.prober.counted["x"] = None
    plane.frontdoor.begin_call("x").end()
    assert (await plane.fleet.inspect("x")).figures == Figures()  # what it told lately is better
    await plane.settle(61)
    assert (await plane.fleet.inspect("x")).figures.requests == 1
    plane.prober.counted["x"] = counted(5)
    assert (await plane.fleet.inspect("x")).figures.requests == 5


async def test_a_program_that_nobody_knows_is_counted_by_our_doors(plane: Plane) -> None:
    plane.prober.counted["x"] = None
    await plane.running("x")
    plane.frontdoor.begin_call("x").end()
    assert await plane.fleet.inspect("x") == Inspection(None, Figures(requests=1, timed=1))


async def test_a_new_process_begins_with_nothing(plane: Plane) -> None:
    plane.prober.tells("x", INFO)
    await embedded(plane)
    plane.prober.counted["x"] = counted(10, 0.5)
    plane.prober.takes("x", 3600)
    await plane.fleet.inspect("x")  # and a reading of the old process hangs
    plane.prober.takes("x", 0)
    plane.prober.counted["x"] = counted(0)
    plane.prober.tells("x", EngineInfo(version="2"))
    await plane.fleet.restart("x")
    await plane.until("x", Status.RUNNING)
    plane.prober.counted["x"] = counted(1)
    assert await plane.fleet.inspect("x") == Inspection(EngineInfo(version="2"), Figures(1, 0, 1))
    await plane.fleet.stop("x")
    assert await plane.fleet.inspect("x") == Inspection()
    await plane.fleet.delete("x")
    with pytest.raises(errors.UnknownInstance):
        await plane.fleet.inspect("x")


async def test_an_engine_that_starts_is_not_asked(plane: Plane) -> None:
    plane.prober.becomes_ready_after("x", 100)
    await plane.create("x", engine=EngineKind.EMBEDDED, command=None)
    await plane.settle(1)
    assert await inspected(plane) == (Inspection(), 0)
    assert plane.prober.readings == 0


async def test_a_page_that_hangs_does_not_hold_up_a_start(plane: Plane) -> None:
    async def hanging(*_: Any, timeout_secs: float, **__: Any) -> None:
        await asyncio.sleep(timeout_secs)

    plane.prober.metrics = plane.prober.info = hanging  # type: ignore[method-assign, assignment]
    began = plane.now
    await embedded(plane)
    assert plane.now - began < 1


async def test_why_the_last_probe_failed_is_told_until_one_passes(plane: Plane) -> None:
    await plane.running("x")
    assert plane.get("x").is_healthy
    plane.prober.says("x", Seen(False, "connection refused"))
    await plane.settle(30)
    now = plane.get("x")
    assert (now.status, now.is_healthy, now.probe_error) == (Status.RUNNING, False, "connection refused")
    plane.prober.says("x", Seen(True))
    await plane.settle(30)
    assert (plane.get("x").is_healthy, plane.get("x").probe_error) == (True, None)
