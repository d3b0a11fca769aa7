"""What a creation checks. A refused one leaves no trace."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tei_manager.domain import errors
from tei_manager.domain.instance import EngineKind, Origin, Status
from tei_manager.policy.ports import Range
from tei_manager.testing.plane import Plane, spec


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    plane = Plane(
        range=Range(start=8080, end=8084, metrics_start=9100), reserved_ports=(9000, 9001), max_instances=3
    )
    await plane.open()
    plane.taken.add(8090)
    await plane.running("one", port=8080, aliases=("first", "shared"), model_id="org/model")
    yield plane
    await plane.close()


CONFLICTS: list[tuple[dict[str, Any], str, str]] = [
    ({"name": "one"}, "INSTANCE_EXISTS", "Instance 'one' already exists"),
    ({"name": "ONE"}, "INSTANCE_EXISTS", "Instance 'ONE' already exists"),
    ({"name": "first"}, "ALIAS_CONFLICT", "'first' or its model id is an alias of instance 'one'"),
    ({"name": "x", "aliases": ("one",)}, "ALIAS_CONFLICT", "Alias 'one' already belongs to instance 'one'"),
    ({"name": "x", "aliases": ("org/model",)}, "ALIAS_CONFLICT", "Alias 'org/model' already belongs"),
    ({"name": "x", "aliases": ("shared",)}, "ALIAS_CONFLICT", "Alias 'shared' already belongs to instance 'one'"),
    ({"name": "x", "model_id": "first"}, "ALIAS_CONFLICT", "'x' or its model id is an alias"),
    ({"name": "x", "port": 8080}, "PORT_CONFLICT", "Port 8080 already in use by instance 'one'"),
    ({"name": "x", "port": 9000}, "PORT_CONFLICT", "Port 9000 already reserved by the manager"),
    ({"name": "x", "port": 8090}, "PORT_CONFLICT", "Port 8090 already in use by another process"),
    ({"name": "x", "prometheus_port": 8080}, "PORT_CONFLICT", "Port 8080 already in use by instance 'one'"),
    ({"name": "x", "port": 8070, "prometheus_port": 8070}, "PORT_CONFLICT", "Port 8070 is given twice"),
]


@pytest.mark.parametrize(("fields", "code", "text"), CONFLICTS)
async def test_a_conflict_registers_nothing_and_leaks_no_port(
    plane: Plane, fields: dict[str, Any], code: str, text: str
) -> None:
    saved = len(plane.store.saved)
    with pytest.raises(errors.Conflict, match=text) as caught:
        await plane.create(**fields)
    assert caught.value.code == code
    assert [each.name for each in plane.fleet.instances()] == ["one"]
    assert len(plane.store.saved) == saved
    assert len(plane.driver.orders) == 1
    # every other port of the range can still be had
    for port, name in ((8081, "a"), (8082, "b")):
        await plane.create(name, port=port)


async def test_the_same_model_may_share_an_alias(plane: Plane) -> None:
    await plane.running("two", aliases=("shared",), model_id="org/model")


async def test_an_explicit_metrics_port_is_refused_like_any_other(plane: Plane) -> None:
    await plane.create("e", engine=EngineKind.EMBEDDED, command=None, prometheus_port=9150)
    with pytest.raises(errors.Conflict, match="Port 9150 already in use by instance 'e'"):
        await plane.create("f", port=9150)


async def test_no_more_instances_than_allowed(plane: Plane) -> None:
    await plane.create("two")
    await plane.create("three", autostart=False)
    with pytest.raises(errors.CapacityError, match=r"Maximum instance count \(3\) reached") as caught:
        await plane.create("four")
    assert caught.value.code == "MAX_INSTANCES_REACHED"
    await plane.fleet.delete("three")
    await plane.create("four")


async def test_an_exhausted_range_registers_nothing(plane: Plane) -> None:
    plane.taken |= {8081, 8082, 8083}
    with pytest.raises(errors.CapacityError) as caught:
        await plane.create("two")
    assert caught.value.code == "PORT_ALLOCATION_FAILED"
    assert [each.name for each in plane.fleet.instances()] == ["one"]
    plane.taken.clear()
    assert (await plane.create("two")).ports.main == 8081


async def test_an_engine_without_room_for_its_second_port_keeps_none(plane: Plane) -> None:
    plane.taken |= {8082, 8083}
    with pytest.raises(errors.CapacityError):
        await plane.create("two", engine=EngineKind.EMBEDDED, command=None)
    assert (await plane.create("three", port=8081)).ports.main == 8081


async def test_of_two_at_once_one_gets_the_name(plane: Plane) -> None:
    results = await asyncio.gather(plane.create("x"), plane.create("x"), return_exceptions=True)
    assert sorted(isinstance(result, errors.Conflict) for result in results) == [False, True]
    assert len(plane.fleet.instances()) == 2


async def test_what_the_engine_refuses_is_not_registered(plane: Plane) -> None:
    with pytest.raises(errors.InvalidSpec):
        await plane.fleet.create(spec("x", command=None), origin=Origin.CONFIG)
    assert len(plane.fleet.instances()) == 1


async def test_programs_and_folders_over_rest_need_permission() -> None:
    plane = Plane(api_allow_command=False)
    await plane.open()
    await plane.create("file", origin=Origin.CONFIG)
    with pytest.raises(errors.Forbidden):
        await plane.create("x")
    with pytest.raises(errors.InvalidSpec, match="must lie in one of model_roots"):
        await plane.create("x", engine=EngineKind.EMBEDDED, command=None, model_id="/etc")


async def test_without_autostart_it_is_registered_and_left_alone(plane: Plane) -> None:
    created = await plane.create("x", autostart=False)
    assert (created.status, created.pid) == (Status.STOPPED, None)
    await plane.settle(100)
    assert plane.living("x") == []


async def test_instances_are_listed_in_the_order_of_their_creation(plane: Plane) -> None:
    await plane.settle(1)
    await plane.create("b")
    await plane.settle(1)
    await plane.create("a")
    assert [each.name for each in plane.fleet.instances()] == ["one", "b", "a"]
    assert plane.frontdoor.published == plane.fleet.instances()
