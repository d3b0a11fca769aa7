"""The story of an instance, and events as they happen."""

import asyncio
import json

from tei_manager.domain.event import EventType
from tei_manager.domain.instance import EngineKind, Origin
from tei_manager.domain.spec import parse


async def created(door):
    spec = parse({"name": "one", "model_id": "a/b"}, default_engine=EngineKind.EMBEDDED)
    await door.fleet.create(spec, origin=Origin.API)


async def test_a_story_needs_an_instance_and_a_sane_limit(door):
    assert (await door("GET", "/instances/none/story")).code == "INSTANCE_NOT_FOUND"
    await created(door)
    for number in range(5):
        door.journal.note(EventType.STATUS, instance="one", before="starting", after=str(number))
    reply = await door("GET", "/instances/one/story?limit=2")
    assert reply.json["instance"] == "one"
    assert [event["to"] for event in reply.json["events"]] == ["3", "4"]
    assert list(reply.json["events"][0]) == [
        "seq", "timestamp", "type", "instance", "from", "to", "reason", "data",
    ]  # fmt: skip
    for bad in ("0", "x", "-1", "10001"):
        assert (await door("GET", f"/instances/one/story?limit={bad}")).status == 400


async def follow(door, path="/events", headers=None, *, after=()):
    """Everything that is sent until the journal ends; `after` are noted once the stream is open."""

    async def happen():
        await asyncio.sleep(0.01)
        for name in after:
            door.journal.note(EventType.CREATED, instance=name)
            await asyncio.sleep(0)
        await door.journal.close()

    ending = asyncio.create_task(happen())
    reply = await door("GET", path, headers=headers)
    await ending
    return reply


def frames(reply):
    found = []
    for block in reply.body.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if fields:
            found.append((fields["event"], int(fields["id"]), json.loads(fields["data"])))
    return found


async def test_events_come_as_they_happen(door):
    door.journal.note(EventType.CREATED, instance="before")
    reply = await follow(door, after=["a", "b"])
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert [(kind, number, data["instance"]) for kind, number, data in frames(reply)] == [
        ("instance.created", 2, "a"),
        ("instance.created", 3, "b"),
    ]


async def test_who_reconnects_misses_nothing(door):
    for name in "abc":
        door.journal.note(EventType.CREATED, instance=name)
    for path, headers in (("/events?since=1", None), ("/events", {"last-event-id": "1"})):
        seen = asyncio.create_task(door("GET", path, headers=headers, hang_up_after=0.02))
        await seen
    reply = await follow(door, "/events?since=1", after=["d"])
    assert [number for _, number, _ in frames(reply)] == [2, 3, 4]


async def test_a_gap_is_said(door):
    door.journal.note(EventType.CREATED, instance="a")
    reply = await follow(door, "/events?since=77", after=["b"])
    assert [(kind, number) for kind, number, _ in frames(reply)] == [("reset", 1), ("instance.created", 2)]
    assert (await door("GET", "/events", headers={"last-event-id": "x"})).status == 400
