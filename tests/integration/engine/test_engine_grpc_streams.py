"""Streams and permits over gRPC: order, backpressure, waiting, refusal, deadlines, cancellation."""

import itertools
import threading
import time

import grpc
import pytest
from tests.integration.engine.calling import channel_to, endless, failure, metrics, wait_until

from tei_manager.grpc.proto.tei.v1 import tei_pb2, tei_pb2_grpc

LONG = "river " * 28


@pytest.fixture(scope="module")
def engine(launch, tiny_folder):
    """So few permits that a stream always waits for one."""
    process = launch(
        *("--model-id", str(tiny_folder("bert-mean"))),
        *("--max-concurrent-requests", "16", "--max-client-batch-size", "16"),
    )
    process.wait_for("Ready")
    return process


@pytest.fixture(scope="module")
def narrow(launch, tiny_folder):
    """Eight permits, one of them out of reach of those who wait, and three messages of a stream at a time."""
    process = launch(
        *("--model-id", str(tiny_folder("bert-reranker")), "--max-batch-tokens", "64"),
        *("--max-concurrent-requests", "8", "--max-client-batch-size", "8"),
        env={"GRPC_MAX_PARALLEL_STREAM_REQUESTS": "3"},
    )
    process.wait_for("Ready")
    return process


@pytest.fixture(scope="module")
def slow(launch, golden, minilm_arguments):
    process = launch(*minilm_arguments)
    process.wait_for("Ready")
    return process


def all_calm(engine):
    shown = metrics(engine)
    names = ("tei_engine_permits_in_use", "te_queue_size", "tei_engine_tokenizer_queue")
    return not any(shown[name] for name in names)


def test_a_long_stream_keeps_its_order_and_lets_others_through(engine):
    texts = [f"{'word ' * (number % 9)}{number}" for number in range(10_000)]
    answers = []
    is_over = threading.Event()

    def stream():
        try:
            with channel_to(engine) as channel:
                requests = (tei_pb2.EmbedRequest(inputs=text) for text in texts)
                for answer in tei_pb2_grpc.EmbedStub(channel).EmbedStream(requests, timeout=100):
                    answers.append(answer.embeddings)
        finally:
            is_over.set()

    with channel_to(engine) as channel:
        stub = tei_pb2_grpc.EmbedStub(channel)
        streaming = threading.Thread(target=stream)
        streaming.start()
        between = 0
        while not is_over.is_set():
            stub.Embed(tei_pb2.EmbedRequest(inputs="me too"), timeout=60)  # a refusal would be raised here
            between += 1
        streaming.join()
        assert len(answers) == len(texts)
        assert between > 10
        for number in (0, 4999, 9999):
            alone = stub.Embed(tei_pb2.EmbedRequest(inputs=texts[number]), timeout=20).embeddings
            assert list(answers[number]) == pytest.approx(list(alone), abs=1e-6)


def test_a_stream_of_nothing_ends_well(engine):
    with channel_to(engine) as channel:
        assert list(tei_pb2_grpc.EmbedStub(channel).EmbedStream(iter([]), timeout=20)) == []


def test_streams_carry_their_costs_in_messages_only(engine):
    with channel_to(engine) as channel:
        call = tei_pb2_grpc.EmbedStub(channel).EmbedStream(iter([tei_pb2.EmbedRequest(inputs="a")]), timeout=20)
        assert next(call).metadata.compute_chars == 1
        assert not [key for key, _ in call.initial_metadata() if key.startswith("x-")]


def test_who_does_not_read_is_not_read(engine):
    """Token vectors that nobody fetches fill the connection's window; then requests stay with the caller."""
    texts = (LONG[: 100 + number % 50] for number in itertools.count())
    requests = (tei_pb2.EmbedAllRequest(inputs=text) for text in texts)
    with channel_to(engine, ("grpc.http2.bdp_probe", 0)) as channel:
        before = metrics(engine)["te_embed_count"]
        answers = tei_pb2_grpc.EmbedStub(channel).EmbedAllStream(requests, timeout=60)
        computed = [0.0]
        while computed[-1] == 0 or computed[-1] != computed[-2]:  # until nothing moves any more
            time.sleep(0.5)
            computed.append(metrics(engine)["te_embed_count"] - before)
        assert computed[-1] < 500, "the engine goes on computing what nobody reads"
        later = [next(answers).metadata.compute_chars for _ in range(int(computed[-1]) + 50)]
        assert later == [100 + number % 50 for number in range(len(later))]
        answers.cancel()
    wait_until(lambda: all_calm(engine))


def dropped_and_computed(engine):
    shown = metrics(engine)
    return shown['te_request_failure{err="dropped"}'], shown["te_embed_success"]


@pytest.mark.parametrize(("timeout", "code"), [(60, "CANCELLED"), (0.2, "DEADLINE_EXCEEDED")])
def test_what_a_stream_had_queued_is_dropped_when_it_ends_early(slow, timeout, code):
    dropped, computed = dropped_and_computed(slow)
    with channel_to(slow) as channel:
        requests = itertools.repeat(tei_pb2.EmbedRequest(inputs="river " * 250), 1000)
        answers = tei_pb2_grpc.EmbedStub(channel).EmbedStream(requests, timeout=timeout)
        if code == "CANCELLED":
            next(answers)
            answers.cancel()
        assert failure(lambda: list(answers))[0] == code
        wait_until(lambda: dropped_and_computed(slow)[0] > dropped and all_calm(slow))
    assert dropped_and_computed(slow)[1] - computed < 1000


def test_no_more_messages_of_a_stream_are_in_flight_than_allowed(narrow):
    with channel_to(narrow) as channel:
        requests = endless(tei_pb2.PredictRequest(inputs=LONG))
        answers = tei_pb2_grpc.PredictStub(channel).PredictStream(requests, timeout=60)
        seen = []
        for _ in range(40):
            next(answers)
            seen.append(metrics(narrow)["tei_engine_permits_in_use"])
        answers.cancel()
    assert 1 <= max(seen) <= 3


def test_unary_calls_are_refused_and_rankings_wait(narrow):
    """Four streams of three hold and await more than all permits there are for those who wait."""
    with channel_to(narrow) as channel:
        predict, rerank = tei_pb2_grpc.PredictStub(channel), tei_pb2_grpc.RerankStub(channel)
        streams = [
            predict.PredictStream(endless(tei_pb2.PredictRequest(inputs=LONG)), timeout=60) for _ in range(4)
        ]
        readers = [threading.Thread(target=read_until_cancelled, args=(stream,)) for stream in streams]
        for reader in readers:
            reader.start()
        pair = tei_pb2.PredictPairRequest(inputs=["a", "b"])
        many = [predict.PredictPair.future(pair, timeout=30) for _ in range(40)]
        codes = [one.code() for one in many]
        ranks = rerank.Rerank(tei_pb2.RerankRequest(query="a", texts=["b"] * 8), timeout=30).ranks
        for stream in streams:
            stream.cancel()
        for reader in readers:
            reader.join()
        assert len(ranks) == 8
        assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        refused = next(one for one in many if one.code() is grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert refused.details() == "Model is overloaded"
        wait_until(lambda: all_calm(narrow))
        assert predict.PredictPair(pair, timeout=20).predictions


def read_until_cancelled(stream):
    with pytest.raises(grpc.RpcError) as caught:
        list(stream)
    assert caught.value.code() is grpc.StatusCode.CANCELLED


def test_answers_may_be_larger_than_requests(narrow):
    texts = [letter * 2**21 for letter in "abcdefgh"]
    request = tei_pb2.RerankRequest(query="a", texts=texts, truncate=True, return_text=True)
    sizes = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with channel_to(narrow, *sizes) as channel:
        ranks = tei_pb2_grpc.RerankStub(channel).Rerank(request, timeout=30).ranks
    assert sorted(rank.text[0] for rank in ranks) == list("abcdefgh")
    assert {len(rank.text) for rank in ranks} == {2**21}


def test_every_message_counts_once(narrow):
    def counts():
        shown = metrics(narrow)
        return [
            sum(value for name, value in shown.items() if name.startswith(f"te_request_{kind}{{"))
            for kind in ("count", "success", "failure")
        ]

    before = counts()
    with channel_to(narrow) as channel:
        predict, rerank = tei_pb2_grpc.PredictStub(channel), tei_pb2_grpc.RerankStub(channel)
        predict.PredictPair(tei_pb2.PredictPairRequest(inputs=["a", "b"]), timeout=20)
        refused = [
            lambda: predict.PredictPair(tei_pb2.PredictPairRequest(), timeout=20),
            lambda: predict.Predict(tei_pb2.PredictRequest(), timeout=20),
            lambda: predict.Predict(tei_pb2.PredictRequest(inputs="a", truncation_direction=7), timeout=20),
            lambda: rerank.Rerank(tei_pb2.RerankRequest(query="a", texts=["b"] * 9), timeout=20),
            lambda: rerank.RerankStream(iter([]), timeout=20),
        ]
        assert {failure(call)[0] for call in refused} == {"INVALID_ARGUMENT"}
        list(predict.PredictStream(iter([tei_pb2.PredictRequest(inputs="a")] * 3), timeout=20))
    assert [after - first for first, after in zip(before, counts(), strict=True)] == [9, 4, 5]
