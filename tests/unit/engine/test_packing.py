"""Packing: what a run may hold, and that nobody is lost or left waiting."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tei_engine.batching.packing import CHUNK, Lanes, Limits


@dataclass(eq=False)
class Item:
    length: int
    job: str
    has_priority: bool = False
    queued_at: float = 0.0
    passed_over: int = 0


def items(lengths, job="j", **more):
    return [Item(length, job, **more) for length in lengths]


entries = st.builds(
    Item,
    length=st.integers(1, 300),
    job=st.sampled_from("abcdefgh"),
    has_priority=st.booleans(),
    queued_at=st.floats(0, 100),
)
limits = st.builds(Limits, tokens=st.integers(16, 512), entries=st.none() | st.integers(1, 20))


@given(queue=st.lists(entries, max_size=120), limits=limits, now=st.floats(0, 200), idle=st.integers(1, 8))
def test_runs_respect_their_limits_and_lose_nobody(queue, limits, now, idle):
    lanes = Lanes(limits)
    lanes.push(queue)
    served = []
    while len(lanes):
        run = lanes.take(now=now, mean_run=0.01, idle=idle)
        assert run, "entries are queued, so there is a run"
        longest = max(item.length for item in run)
        assert len(run) == 1 or longest * len(run) <= limits.tokens
        assert len(run) == 1 or longest * len(run) <= 1.25 * sum(item.length for item in run)
        assert limits.entries is None or len(run) <= limits.entries
        served += run
    assert sorted(map(id, served)) == sorted(map(id, queue))
    assert lanes.take(now=now, mean_run=0.01) == []


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40), rounds=st.integers(10, 60))
def test_nobody_starves_while_others_keep_coming(lengths, rounds):
    """An entry whose length fits nobody is served while a like-minded crowd arrives without end."""
    lanes = Lanes(Limits(256))
    odd = Item(300, "odd")
    lanes.push([*items(lengths[:8], "early"), odd])
    for number in range(rounds):
        lanes.push(items([20] * 12, f"late-{number}"))
        lanes.push([Item(8, f"priority-{number}", has_priority=True)])
        if odd in lanes.take(now=float(number), mean_run=1000.0):
            return
    # the early ones, then the odd one, each behind at most three priority runs
    assert rounds < 4 * 10


def test_the_nearest_lengths_are_chosen():
    lanes = Lanes(Limits(256))
    lanes.push(items([60, 250, 12, 61, 13, 59, 11, 60]))
    assert sorted(item.length for item in lanes.take(now=0, mean_run=1)) == [59, 60, 60, 61]


def test_the_oldest_opens_the_run_unless_one_was_passed_over_too_often():
    lanes = Lanes(Limits(100))
    first, second = items([90, 50])
    lanes.push([first, second])
    second.passed_over = 8
    assert lanes.take(now=0, mean_run=1) == [second]
    assert lanes.take(now=0, mean_run=1) == [first]


def test_being_overtaken_is_counted():
    lanes = Lanes(Limits(100))
    first, middle, last = items([30, 80, 30])
    lanes.push([first, middle, last])
    assert lanes.take(now=0, mean_run=1) == [first, last]
    assert (middle.passed_over, last.passed_over) == (1, 0)


def test_priority_goes_first_and_takes_like_lengths_along():
    lanes = Lanes(Limits(100))
    bulk = items([12, 90, 11], "bulk")
    lanes.push(bulk)
    short = Item(12, "single", has_priority=True)
    lanes.push([short])
    assert lanes.take(now=0, mean_run=1) == [short, bulk[0], bulk[2]]


def test_at_most_three_priority_runs_in_a_row_while_bulk_waits():
    lanes = Lanes(Limits(10))
    lanes.push([Item(10, f"p{n}", has_priority=True) for n in range(8)])
    lanes.push(items([9] * 2, "bulk"))
    order = ["p" if lanes.take(now=0, mean_run=1)[0].has_priority else "b" for _ in range(10)]
    assert "".join(order) == "pppbpppbpp"


def test_a_short_request_waits_for_one_overdue_bulk_run_at_most():
    lanes = Lanes(Limits(10))
    lanes.push(items([9] * 6, "bulk", queued_at=0.0))
    lanes.push([Item(10, f"p{n}", has_priority=True, queued_at=99.0) for n in range(3)])
    order = ["p" if lanes.take(now=100.0, mean_run=0.1)[0].has_priority else "b" for _ in range(6)]
    assert "".join(order) == "bpbpbp"


def test_a_large_batch_does_not_stand_ahead_of_everyone():
    lanes = Lanes(Limits(100))
    lanes.push(items([100] * 200, "large"))
    lanes.push(items([100], "small"))
    order = [lanes.take(now=0, mean_run=1000)[0].job for _ in range(CHUNK + 2)]
    assert "small" in order


def test_removing_a_job_leaves_the_others():
    lanes = Lanes(Limits(100))
    lanes.push(items([10] * 100, "gone"))
    stays = items([10], "stays")
    lanes.push(stays)
    assert len(lanes.remove(lambda item: item.job == "gone")) == 100
    assert len(lanes) == 1
    assert lanes.take(now=0, mean_run=1) == stays


@pytest.mark.parametrize("length", [257, 10_000])
def test_an_entry_above_the_budget_runs_alone(length):
    lanes = Lanes(Limits(256))
    lanes.push(items([length, 10, length]))
    assert [item.length for item in lanes.take(now=0, mean_run=1)] == [length]


def test_idle_threads_share_a_short_queue():
    lanes = Lanes(Limits(256))
    lanes.push([item for number in range(7) for item in items([12], f"job-{number}")])
    shares = [len(lanes.take(now=0, mean_run=0.01, idle=idle)) for idle in (3, 2, 1)]
    assert shares == [2, 2, 3]


def test_a_long_queue_is_not_cut_smaller():
    lanes = Lanes(Limits(256))
    lanes.push([item for number in range(60) for item in items([60], f"job-{number}")])
    assert [len(lanes.take(now=0, mean_run=0.01, idle=2)) for _ in range(3)] == [4, 4, 4]
