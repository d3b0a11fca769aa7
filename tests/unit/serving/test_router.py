"""What a routing resolves to, and what is said when it resolves to nothing."""

import asyncio
from typing import Any

import pytest

from tei_manager.domain import errors
from tei_manager.domain.instance import Desired, EngineKind, Instance, InstanceSpec, Ports, Protocol, Status
from tei_manager.domain.target import ByIndex, ByModel, ByName, Endpoint
from tei_manager.serving.router import Router


def instance(name: str, *, model: str = "org/m", status: Status = Status.RUNNING, **more: Any) -> Instance:
    spec = {key: more.pop(key) for key in ("aliases", "revision", "pooling") if key in more}
    return Instance(
        spec=InstanceSpec(name=name, model_id=model, **spec),
        ports=Ports(main=1),
        created_at=more.pop("created_at", 1.0),
        status=status,
        **more,
    )


def endpoint(of: Instance, uid: str | None = None) -> Endpoint:
    return Endpoint(
        instance=of.name,
        uid=uid or f"uid-{of.name}",
        host="127.0.0.1",
        http_port=None,
        grpc_port=1,
        protocol=Protocol.GRPC,
        engine=EngineKind.EMBEDDED,
        model_id=of.spec.model_id,
        revision=of.spec.revision,
        pooling=of.spec.pooling,
        aliases=of.spec.aliases,
    )


def router(*instances: Instance, ready: str = "") -> Router:
    made = Router()
    made.publish(tuple(instances))
    for each in instances:
        if each.name in ready.split():
            made.announce(endpoint(each))
    return made


def names(found: tuple[Endpoint, ...]) -> list[str]:
    return [each.instance for each in found]


def test_a_name_is_an_instance_else_an_alias() -> None:
    found = router(instance("a"), instance("b", aliases=("text",)), ready="a b")
    assert names(found.resolve(ByName("a"))) == ["a"]
    assert names(found.resolve(ByName("text"))) == ["b"]
    with pytest.raises(errors.UnknownInstance, match=r"^Instance 'x' not found$"):
        found.resolve(ByName("x"))


def test_a_model_id_is_an_alias_else_every_ready_instance_of_that_model() -> None:
    found = router(instance("a"), instance("b", model="org/n", aliases=("text",)), instance("c"), ready="a b c")
    assert names(found.resolve(ByModel("org/m"))) == ["a", "c"]
    assert names(found.resolve(ByModel("text"))) == ["b"]


def test_an_index_counts_stopped_instances_too() -> None:
    found = router(instance("a", status=Status.STOPPED), instance("b"), ready="b")
    assert names(found.resolve(ByIndex(1))) == ["b"]
    with pytest.raises(errors.NotReady, match=r"^Instance 'a' is not running \(status: stopped\)$"):
        found.resolve(ByIndex(0))
    with pytest.raises(errors.UnknownTarget, match=r"^Instance index 2 out of range \(2 instances\)$"):
        found.resolve(ByIndex(2))


def test_anything_is_a_name_then_an_alias_then_a_model() -> None:
    found = router(
        instance("org/m", model="org/x"),
        instance("b", model="org/y", aliases=("text",)),
        instance("c"),
        ready="org/m b c",
    )
    assert names(found.resolve_any("org/m")) == ["org/m"]
    assert names(found.resolve_any("text")) == ["b"]
    assert names(found.resolve_any("org/y")) == ["b"]
    with pytest.raises(errors.UnknownTarget) as caught:
        found.resolve_any("nothing")
    assert caught.value.code == "MODEL_NOT_FOUND"


@pytest.mark.parametrize(
    ("status", "last_error", "text", "soon"),
    [
        (Status.STOPPED, "old", "(status: stopped)", False),
        (Status.STARTING, None, "(status: starting)", True),
        (Status.STOPPING, None, "(status: stopping)", False),
        (Status.FAILED, "exit code 1: out of memory", "(status: failed): exit code 1: out of memory", False),
        (Status.RUNNING, None, "(status: starting)", True),  # not announced yet
    ],
)
def test_an_instance_that_does_not_run(status: Status, last_error: str, text: str, soon: bool) -> None:
    found = router(instance("a", status=status, last_error=last_error, aliases=("al",)))
    for routing in (ByName("a"), ByName("al"), ByModel("al"), ByIndex(0)):
        with pytest.raises(errors.NotReady) as caught:
            found.resolve(routing)
        assert str(caught.value) == f"Instance 'a' is not running {text}"
        assert (caught.value.retry_after is not None) == soon


def test_a_model_without_a_ready_instance() -> None:
    stopped = instance("s", status=Status.STOPPED, desired=Desired.STOPPED)
    found = router(stopped, instance("a", status=Status.STARTING), instance("b", status=Status.FAILED))
    with pytest.raises(errors.NotReady, match=r"^No ready instance for model 'org/m' \(a: starting, b: failed\)$"):
        found.resolve(ByModel("org/m"))
    for gone in (router(stopped), router()):
        with pytest.raises(errors.UnknownTarget, match=r"^No running instance for model 'org/m'$"):
            gone.resolve(ByModel("org/m"))


def test_instances_that_give_other_vectors_than_the_oldest_ready_one_are_left_out() -> None:
    old, other, same = instance("a", pooling="cls"), instance("b", pooling="mean"), instance("c", pooling="cls")
    found = router(old, other, same, ready="a b c")
    assert names(found.resolve(ByModel("org/m"))) == ["a", "c"]
    assert found.table.mixed == ("org/m",)
    assert names(router(old, other, same, ready="b c").resolve(ByModel("org/m"))) == ["b"]
    assert router(old, same, ready="a c").table.mixed == ()


async def test_a_withdrawn_endpoint_is_gone_at_once_and_the_next_process_takes_its_place() -> None:
    one = instance("a")
    found = router(one, ready="a")
    changed = asyncio.ensure_future(found.changed())
    await asyncio.sleep(0)
    assert await found.withdraw("uid-a", drain_secs=1) == 0
    await changed
    with pytest.raises(errors.NotReady):
        found.resolve(ByName("a"))
    found.announce(endpoint(one, "second"))
    assert found.resolve(ByName("a"))[0].uid == "second"
    assert await found.withdraw("uid-a", drain_secs=1) == 0
    assert found.resolve(ByName("a"))[0].uid == "second"


def test_a_reader_keeps_its_table() -> None:
    found = router(instance("a"), ready="a")
    before = found.table
    found.publish(())
    assert names(before.names["a"]) == ["a"]
    with pytest.raises(errors.UnknownInstance):
        found.resolve(ByName("a"))
