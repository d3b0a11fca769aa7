"""The journal's file: what is noted is there for the next manager, whatever happened to the file meanwhile."""

import asyncio

import orjson
import pytest

from tei_manager.adapters.store.journal import FileJournal
from tei_manager.domain.event import EventType


@pytest.fixture
async def journal(tmp_path):
    made = []

    async def opened(**more):
        one = FileJournal(tmp_path / "journal.jsonl", now=lambda: 5.0, **more)
        await one.open()
        made.append(one)
        return one

    yield opened
    for one in made:
        await one.close()


def lines(tmp_path, name="journal.jsonl"):
    return [orjson.loads(line) for line in (tmp_path / name).read_bytes().splitlines()]


async def test_the_next_manager_goes_on_counting(journal, tmp_path):
    first = await journal()
    first.note(EventType.CREATED, instance="a", data={"model_id": "m"})
    first.note(EventType.STATUS, instance="a", before="starting", after="running")
    await first.close()
    second = await journal()
    assert second.last_seq == 2
    second.note(EventType.DELETED, instance="a")
    assert [event.seq for event in second.since(0)] == [1, 2, 3]
    told = await second.story("a", limit=10)
    assert [(event.type, event.before, event.after) for event in told] == [
        ("instance.created", None, None),
        ("instance.status", "starting", "running"),
        ("instance.deleted", None, None),
    ]
    assert told[0].timestamp == 5.0
    assert [line["seq"] for line in lines(tmp_path)] == [1, 2, 3]


async def test_a_story_is_one_instances_and_its_end(journal):
    one = await journal()
    for number in range(20):
        one.note(EventType.STATUS, instance="a" if number % 2 else "ab", data={"number": number})
    told = await one.story("a", limit=3)
    assert [event.data["number"] for event in told] == [15, 17, 19]
    assert await one.story("nobody", limit=3) == []


async def test_a_torn_line_costs_only_itself(journal, tmp_path):
    one = await journal()
    one.note(EventType.CREATED, instance="a")
    await one.close()
    with (tmp_path / "journal.jsonl").open("ab") as stream:
        stream.write(b'{"seq":2,"timest')
    second = await journal()
    second.note(EventType.DELETED, instance="a")
    assert [event.type for event in await second.story("a", limit=9)] == ["instance.created", "instance.deleted"]


async def test_the_file_is_bounded_and_nothing_recent_is_lost(journal, tmp_path):
    one = await journal(rotate_bytes=2000)
    for _ in range(100):
        one.note(EventType.STATUS, instance="a", reason="x" * 50)
        await one.story("a", limit=1)  # written one by one
    assert (tmp_path / "journal.jsonl").stat().st_size <= 2000
    assert (tmp_path / "journal.jsonl.1").stat().st_size <= 2000
    seqs = [event.seq for event in await one.story("a", limit=1000)]
    assert seqs == list(range(seqs[0], 101))
    await one.close()
    assert (await journal()).last_seq == 100


async def test_a_disk_that_cannot_be_written_costs_no_event(journal, tmp_path):
    (tmp_path / "journal.jsonl").mkdir()
    one = await journal()
    one.note(EventType.CREATED, instance="a")
    assert [event.type for event in await one.story("a", limit=9)] == ["instance.created"]
    (tmp_path / "journal.jsonl").rmdir()
    one.note(EventType.DELETED, instance="a")
    assert len(await one.story("a", limit=9)) == 2
    assert len(lines(tmp_path)) == 2


async def test_who_follows_hears_of_it_and_of_the_end(journal):
    one = await journal()
    assert await one.newer(0, timeout_secs=0.01) is False
    waiting = [asyncio.create_task(one.newer(0, timeout_secs=10)) for _ in range(3)]
    await asyncio.sleep(0)
    one.note(EventType.CREATED, instance="a")
    assert await asyncio.gather(*waiting) == [True] * 3
    assert one.since(1) == ()
    assert one.since(2) is None
    last = asyncio.create_task(one.newer(1, timeout_secs=10))
    await asyncio.sleep(0)
    one.finish()
    assert await last is True
    assert one.is_closed
