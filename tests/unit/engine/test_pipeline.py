"""The pipeline with a model that misbehaves on command."""

import asyncio
import threading
import time

import numpy as np
import pytest

from tei_engine import errors
from tei_engine.batching import compute
from tei_engine.batching.jobs import Ask
from tei_engine.batching.pipeline import Pipeline, Sizing
from tei_engine.graph.outputs import Output
from tei_engine.tokenization.tokenizer import Piece


class Model:
    """Vectors that tell their text: [number of tokens, first token, 0]. Ids ask for mischief."""

    NAN, RAISE, BLOCK = 66, 77, 88
    vocab_size = 520
    dimension = 3
    has_wide = True

    def __init__(self):
        self.runs = []
        self.gate = threading.Event()
        self.blocked = threading.Event()

    outputs = (Output.POOLED, Output.TOKENS)

    def run(self, batch, wanted, *, wide=False):
        lengths = batch.mask.sum(axis=1).tolist()
        if wanted == (Output.TOKENS,):
            return [np.ones((*batch.ids.shape, 2), dtype=np.float32)]
        self.runs.append((wide, lengths))
        first = batch.ids[:, 0].tolist()
        if self.BLOCK in first:
            self.blocked.set()
            assert self.gate.wait(10)
        if self.RAISE in first:
            raise RuntimeError("boom")
        rows = np.array([[length, number, 0] for length, number in zip(lengths, first, strict=True)], np.float32)
        rows[[number == self.NAN for number in first]] = np.nan
        return [rows]


class Observer:
    def __init__(self):
        self.begun, self.done = 0, []

    def saw_job(self, job):
        self.begun += len(job.entries)

    def saw_run(self, outcome):
        pass

    def saw_entry(self, entry):
        self.done.append(entry.ids)


@pytest.fixture
async def pipeline(tiny):
    made = []

    def make(**more):
        sizing = {
            "max_concurrent_requests": 64,
            "run_tokens": 64,
            "max_batch_tokens": 16384,
            "max_batch_requests": None,
            "max_input_length": 64,
            "tokenization_workers": 1,
            "compute_workers": 2,
        }
        made.append(Pipeline(Model(), tiny("bert-mean").tokenizer, Sizing(**sizing | more), Observer()))
        return made[-1]

    yield make
    for one in made:
        one.model.gate.set()
        one.close()


def ids(*rows):
    return tuple(Piece(ids=tuple(row)) for row in rows)


def raw(*rows, **more):
    return Ask(ids(*rows), normalize=False, **more)


async def test_rows_come_back_in_their_order(pipeline):
    job = await pipeline().run(raw([5] * 9, [6] * 3, [7] * 60, [8]))
    assert job.rows.tolist() == [[9, 5, 0], [3, 6, 0], [60, 7, 0], [1, 8, 0]]


async def test_vectors_are_cut_and_normalised_as_asked(pipeline):
    one = pipeline()
    whole = (await one.run(Ask(ids([4] * 3)))).rows
    assert whole[0] == pytest.approx([0.6, 0.8, 0])
    assert (await one.run(Ask(ids([4] * 3), dimensions=1))).rows.tolist() == [[1.0]]
    assert (await one.run(Ask(ids([0] * 3), dimensions=2))).rows.tolist() == [[1.0, 0.0]]
    tokens = (await one.run(Ask(ids([4] * 3, [5]), want=Output.TOKENS))).tokens
    assert [rows.shape for rows in tokens.values()] == [(3, 2), (1, 2)]


async def test_a_lone_run_is_wide(pipeline):
    one = pipeline()
    await one.run(raw([5] * 40))
    assert one.model.runs == [(True, [40])]


async def test_a_lone_short_run_does_not_wake_all_cores(pipeline, monkeypatch):
    monkeypatch.setattr(compute, "_WARM_SECONDS", 10.0)
    one = pipeline()
    for _ in range(3):
        await one.run(raw([5] * 9))
    assert one.model.runs == [(False, [9]), (True, [9]), (True, [9])]


async def test_an_entry_that_fails_fails_alone(pipeline):
    one = pipeline(compute_workers=1)
    blocker = asyncio.create_task(one.run(raw([Model.BLOCK])))
    await asyncio.to_thread(one.model.blocked.wait, 10)
    good = [asyncio.create_task(one.run(raw([5, 5]))) for _ in range(3)]
    bad = asyncio.create_task(one.run(raw([Model.RAISE, 5])))
    nan = asyncio.create_task(one.run(raw([Model.NAN, 5])))
    while one.queue_size < 5:
        await asyncio.sleep(0.001)
    one.model.gate.set()
    assert [(await task).rows.tolist() for task in good] == [[[2, 5, 0]]] * 3
    with pytest.raises(errors.RequestError, match="Backend error: boom"):
        await bad
    with pytest.raises(errors.RequestError, match="Backend error: embedding is NaN"):
        await nan
    await blocker
    assert [2] * 5 in [lengths for _, lengths in one.model.runs], "they shared one run at first"


async def test_the_first_failing_row_is_named(pipeline):
    with pytest.raises(errors.RequestError) as caught:
        await pipeline().run(raw([5], [5, 5], [Model.NAN]))
    assert caught.value.row == 2


async def test_a_later_failure_waits_for_the_rows_before_it(pipeline):
    """The failing row that is named does not depend on which run ends first."""
    one = pipeline(compute_workers=2)
    rows = [[Model.BLOCK] * 40, [5], [Model.NAN] * 20, [6] * 50, [Model.NAN]]
    task = asyncio.create_task(one.run(raw(*rows)))
    await asyncio.to_thread(one.model.blocked.wait, 10)
    while not any(1 in lengths for _, lengths in one.model.runs):  # the last row, beside the blocked run
        await asyncio.sleep(0.001)
    assert not task.done()
    one.model.gate.set()
    with pytest.raises(errors.RequestError) as caught:
        await task
    assert caught.value.row == 2
    assert one.queue_size == one.tokenizer_queue_size == 0


async def test_rows_behind_a_failing_one_are_not_computed(pipeline):
    one = pipeline(compute_workers=1)
    blocker = asyncio.create_task(one.run(raw([Model.BLOCK])))
    await asyncio.to_thread(one.model.blocked.wait, 10)
    bad = asyncio.create_task(one.run(Ask((*ids([5] * 9), Piece(ids=(520,)), *ids([6] * 13)))))
    while one.queue_size < 1:
        await asyncio.sleep(0.001)
    one.model.gate.set()
    with pytest.raises(errors.RequestError, match="token id 520 is out of range") as caught:
        await bad
    await blocker
    assert caught.value.row == 1
    lengths = [length for _, run in one.model.runs for length in run]
    assert 9 in lengths
    assert 13 not in lengths


async def test_inputs_are_counted_when_they_begin_and_when_they_are_done(pipeline):
    one = pipeline()
    await one.run(raw([5], [6, 6]))
    with pytest.raises(errors.RequestError):
        await one.run(raw([7], [Model.NAN, 8]))
    observer = one._observer
    assert observer.begun == 4
    assert sorted(observer.done) == [[5], [6, 6], [7]]


async def test_after_a_failure_a_self_test_decides_about_health(pipeline):
    one = pipeline()
    with pytest.raises(errors.RequestError):
        await one.run(raw([Model.RAISE]))
    deadline = time.monotonic() + 5
    while not one.is_healthy:  # asks for the self-test, which succeeds
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


async def test_cancelled_requests_are_not_computed(pipeline):
    one = pipeline(compute_workers=1)
    blocker = asyncio.create_task(one.run(raw([Model.BLOCK])))
    await asyncio.to_thread(one.model.blocked.wait, 10)
    waiting = asyncio.create_task(one.run(raw([5] * 7, [6] * 7)))
    while one.queue_size < 2:
        await asyncio.sleep(0.001)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert one.queue_size == 0
    one.model.gate.set()
    await blocker
    assert not any(7 in lengths for _, lengths in one.model.runs)


async def test_expired_requests_are_not_computed(pipeline):
    one = pipeline()
    with pytest.raises(errors.RequestError) as caught:
        await one.run(raw([5] * 7, deadline=time.monotonic() - 1))
    assert caught.value.kind is errors.ErrorKind.DEADLINE
    assert one.model.runs == []


async def test_abort_answers_everybody(pipeline):
    one = pipeline(compute_workers=1)
    tasks = [asyncio.create_task(one.run(raw([Model.BLOCK]))), asyncio.create_task(one.run(raw([5])))]
    await asyncio.to_thread(one.model.blocked.wait, 10)
    await asyncio.sleep(0)
    one.abort()
    for task in tasks:
        with pytest.raises(errors.RequestError, match="shutting down"):
            await task


async def test_after_a_failure_the_self_test_comes_without_being_asked_for(pipeline):
    one = pipeline(compute_workers=1)
    with pytest.raises(errors.RequestError):
        await one.run(raw([Model.RAISE]))
    deadline = time.monotonic() + 5
    while one.model.runs[-1] != (False, [1]):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)
    assert (await one.run(raw([5, 5]))).rows.tolist() == [[2, 5, 0]]  # by the same thread, so after the test
    assert one.is_healthy


async def test_who_still_waits_for_permits_is_not_begun_after_an_abort(pipeline):
    one = pipeline(max_concurrent_requests=1)

    async def patient():
        async with one.permits.hold(1):
            return await one.run(raw([5]))

    tasks = [asyncio.create_task(patient()) for _ in range(3)]
    async with one.permits.hold(1):
        await asyncio.sleep(0)
        one.abort()
    for task in tasks:
        with pytest.raises(errors.RequestError, match="shutting down"):
            await task
    assert one.model.runs == []
    assert one.permits.in_use == 0


async def test_a_panic_of_the_tokenizer_ends_no_thread(pipeline, monkeypatch):
    """Its library panics with something that is no Exception."""
    one = pipeline()

    class Panic(BaseException):
        pass

    class Inner:
        def __getattr__(self, name):
            raise Panic("index out of bounds")

    whole = one.tokenizer._inner
    monkeypatch.setattr(one.tokenizer, "_inner", Inner())
    for _ in range(2):
        with pytest.raises(errors.RequestError, match="tokenizer error index out of bounds") as caught:
            await one.run(Ask((Piece(text="hello"),)))
        assert caught.value.kind is errors.ErrorKind.TOKENIZER
    with pytest.raises(errors.RequestError, match="tokenizer error"):
        await one.call(lambda: one.tokenizer.decode([5], skip_special_tokens=True, max_length=64))
    monkeypatch.setattr(one.tokenizer, "_inner", whole)
    assert len((await one.run(Ask((Piece(text="hello"),)))).rows) == 1


async def test_a_fault_in_the_tokenizer_fails_one_input(pipeline, monkeypatch):
    one = pipeline()
    whole = one.tokenizer.encode_typed

    def encode(pieces, **more):
        if any(piece.text == "bad" for piece in pieces):
            raise ValueError("boom")
        return whole(pieces, **more)

    monkeypatch.setattr(one.tokenizer, "encode_typed", encode)
    texts = ["good", "bad", "well", "bad", "open"]
    tasks = [asyncio.create_task(one.run(Ask((Piece(text=text),)))) for text in texts]
    for text, task in zip(texts, tasks, strict=True):
        if text == "bad":
            with pytest.raises(errors.RequestError, match="tokenizer error boom"):
                await task
        else:
            assert len((await task).rows) == 1


async def test_many_requests_at_once_all_get_their_own_answer(pipeline):
    one = pipeline()
    lengths = [1 + (number * 37) % 64 for number in range(300)]
    jobs = await asyncio.gather(*(one.run(raw([number % 60 + 1] * n)) for number, n in enumerate(lengths)))
    for number, (job, length) in enumerate(zip(jobs, lengths, strict=True)):
        assert job.rows.tolist() == [[length, number % 60 + 1, 0]]
    for _, run in one.model.runs:
        assert max(run) * len(run) <= 64


async def test_among_others_no_run_takes_all_cores(pipeline):
    one = pipeline()
    await asyncio.gather(*(one.run(raw([number] * 9)) for number in range(1, 6)))
    one.model.runs.clear()
    await one.run(raw([5] * 9))  # alone, but only just
    assert one.model.runs == [(False, [9])]
