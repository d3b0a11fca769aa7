"""The gRPC side of a real process."""

import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tei_manager.grpc.proto.tei.v1 import tei_pb2, tei_pb2_grpc


@pytest.fixture(scope="module")
def engine(launch, tiny_folder):
    process = launch(
        *("--model-id", str(tiny_folder("bert-mean")), "--api-key", "s3cret"),
        *("--max-concurrent-requests", "4", "--max-client-batch-size", "4"),
    )
    process.wait_for("Ready")
    return process


@pytest.fixture(scope="module")
def channel(engine):
    options = [("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_permit_without_calls", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{engine.grpc_port}", options=options) as channel:
        yield channel


KEY = (("authorization", "Bearer s3cret"),)


def test_info(channel):
    info = tei_pb2_grpc.InfoStub(channel).Info(tei_pb2.InfoRequest(), metadata=KEY, timeout=10)
    assert (info.version, info.max_input_length, info.max_concurrent_requests) == ("1.9.3", 64, 4)
    assert info.model_type == tei_pb2.MODEL_TYPE_EMBEDDING
    assert not info.HasField("max_batch_requests")


def test_embed_tells_its_cost_in_metadata(channel):
    call = tei_pb2_grpc.EmbedStub(channel).Embed.with_call
    answer, rpc = call(tei_pb2.EmbedRequest(inputs="hello"), metadata=KEY, timeout=10)
    assert len(answer.embeddings) == 32
    assert sum(value * value for value in answer.embeddings) == pytest.approx(1, abs=1e-5)
    shown = dict(rpc.initial_metadata())
    assert shown["x-compute-type"] == "cpu+optimized"
    assert int(shown["x-compute-tokens"]) == answer.metadata.compute_tokens
    assert answer.metadata.inference_time_ns > 0


def test_normalize_unset_means_true(channel):
    stub = tei_pb2_grpc.EmbedStub(channel)
    raw = stub.Embed(tei_pb2.EmbedRequest(inputs="hello", normalize=False), metadata=KEY, timeout=10)
    assert sum(value * value for value in raw.embeddings) != pytest.approx(1, abs=1e-3)


def failure(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code().name, caught.value.details()


def embed(channel, **fields):
    return tei_pb2_grpc.EmbedStub(channel).Embed(tei_pb2.EmbedRequest(**fields), metadata=KEY, timeout=10)


IV = "Input validation error: "


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"inputs": ""}, "INVALID_ARGUMENT", IV + "`inputs` cannot be empty"),
        (
            {"inputs": "a " * 70},
            "INVALID_ARGUMENT",
            IV + "`inputs` must have less than 64 tokens. Given: 72",
        ),
        ({"inputs": "a", "dimensions": 0}, "INVALID_ARGUMENT", IV + "`dimensions` should be positive"),
        (
            {"inputs": "a", "dimensions": 33},
            "INVALID_ARGUMENT",
            IV + "`dimensions` should be smaller than the maximum embedding dimension.",
        ),
        (
            {"inputs": "a" * 16_001},
            "INVALID_ARGUMENT",
            IV + "`inputs` must have less than 16000 characters. Given: 16001",
        ),
        (
            {"inputs": "a", "prompt_name": "nope"},
            "INVALID_ARGUMENT",
            IV
            + "`default-prompt-name` is set to `nope` but it was not found in the Sentence Transformers prompts. "
            'Available prompts: ["query", "document"]',
        ),
        ({"inputs": "a", "truncation_direction": 7}, "INVALID_ARGUMENT", IV + "unknown truncation direction 7"),
    ],
)
def test_errors(channel, fields, code, message):
    assert failure(lambda: embed(channel, **fields)) == (code, message)


def test_the_key_is_asked_for(channel):
    stub = tei_pb2_grpc.EmbedStub(channel)
    assert failure(lambda: stub.Embed(tei_pb2.EmbedRequest(inputs="a"), timeout=10)) == (
        "UNAUTHENTICATED",
        "No valid auth token",
    )
    stream = stub.EmbedStream(iter([tei_pb2.EmbedRequest(inputs="a")]), timeout=10)
    assert failure(lambda: list(stream))[0] == "UNAUTHENTICATED"


def test_other_kinds_of_model(channel):
    sparse = tei_pb2.EmbedSparseRequest(inputs="a")
    assert failure(lambda: tei_pb2_grpc.EmbedStub(channel).EmbedSparse(sparse, metadata=KEY, timeout=10)) == (
        "FAILED_PRECONDITION",
        "Backend error: Model is not an embedding model with SPLADE pooling",
    )
    stream = tei_pb2_grpc.EmbedStub(channel).EmbedSparseStream(iter([sparse]), metadata=KEY, timeout=10)
    assert failure(lambda: list(stream))[0] == "FAILED_PRECONDITION"
    rank = tei_pb2.RerankRequest(query="a", texts=["b"])
    stub = tei_pb2_grpc.RerankStub(channel)
    no_ranks = ("FAILED_PRECONDITION", "model is not a classifier model")
    assert failure(lambda: stub.Rerank(rank, metadata=KEY, timeout=10)) == no_ranks
    texts = iter([tei_pb2.RerankStreamRequest(query="a", text="b")])
    assert failure(lambda: stub.RerankStream(texts, metadata=KEY, timeout=10)) == no_ranks
    stub = tei_pb2_grpc.PredictStub(channel)
    no_classes = ("FAILED_PRECONDITION", "Backend error: Model is not a classifier model")
    single, pair = tei_pb2.PredictRequest(inputs="a"), tei_pb2.PredictPairRequest(inputs=["a"])
    assert failure(lambda: stub.Predict(single, metadata=KEY, timeout=10)) == no_classes
    assert failure(lambda: stub.PredictPair(pair, metadata=KEY, timeout=10)) == no_classes
    assert failure(lambda: list(stub.PredictStream(iter([single]), metadata=KEY, timeout=10))) == no_classes
    assert failure(lambda: stub.Predict(single, timeout=10))[0] == "UNAUTHENTICATED"


def test_both_sides_are_cut_as_over_http(engine, channel):
    text = " ".join(f"word{number}" for number in range(60))
    key = {"authorization": "Bearer s3cret"}
    for direction, number in (("right", 0), ("left", 1)):
        answer = embed(channel, inputs=text, truncate=True, truncation_direction=number)
        body = {"inputs": text, "truncate": True, "truncation_direction": direction}
        assert list(answer.embeddings) == pytest.approx(engine.post("/embed", body, **key).json[0], abs=1e-6)
    left = embed(channel, inputs=text, truncate=True, truncation_direction=1)
    right = embed(channel, inputs=text, truncate=True)
    assert list(left.embeddings) != pytest.approx(list(right.embeddings), abs=1e-3)


def test_dimensions(channel):
    answer = embed(channel, inputs="hello", dimensions=8)
    assert len(answer.embeddings) == 8
    assert sum(value * value for value in answer.embeddings) == pytest.approx(1, abs=1e-5)


def test_a_stream_longer_than_the_permits_waits_and_keeps_its_order(channel):
    stub = tei_pb2_grpc.EmbedStub(channel)
    texts = [f"{'word ' * (number % 9)}{number}" for number in range(200)]
    requests = (tei_pb2.EmbedRequest(inputs=text) for text in texts)
    streamed = [list(answer.embeddings) for answer in stub.EmbedStream(requests, metadata=KEY, timeout=30)]
    assert len(streamed) == 200
    for number in (0, 17, 199):
        alone = embed(channel, inputs=texts[number])
        assert streamed[number] == pytest.approx(list(alone.embeddings), abs=1e-6)


def test_a_failing_item_ends_the_stream(channel):
    stub = tei_pb2_grpc.EmbedStub(channel)
    requests = iter(
        [tei_pb2.EmbedRequest(inputs="a"), tei_pb2.EmbedRequest(inputs=""), tei_pb2.EmbedRequest(inputs="b")]
    )
    answers = stub.EmbedStream(requests, metadata=KEY, timeout=10)
    assert len(next(answers).embeddings) == 32
    assert failure(lambda: next(answers)) == ("INVALID_ARGUMENT", IV + "`inputs` cannot be empty")


def test_leaving_a_stream_gives_its_permits_back(channel):
    stub = tei_pb2_grpc.EmbedStub(channel)
    endless = (tei_pb2.EmbedRequest(inputs="a " * 50) for _ in iter(int, 1))
    answers = stub.EmbedStream(endless, metadata=KEY, timeout=30)
    next(answers)
    answers.cancel()
    stream = stub.EmbedStream(iter([tei_pb2.EmbedRequest(inputs="b")] * 8), metadata=KEY, timeout=20)
    assert len(list(stream)) == 8


def test_embed_all_tokenize_and_decode(channel):
    tokens = tei_pb2_grpc.TokenizeStub(channel)
    bare = tokens.Tokenize(tei_pb2.EncodeRequest(inputs="hello world"), metadata=KEY, timeout=10).tokens
    assert not any(token.special for token in bare)
    whole = tokens.Tokenize(
        tei_pb2.EncodeRequest(inputs="hello world", add_special_tokens=True), metadata=KEY, timeout=10
    ).tokens
    assert len(whole) == len(bare) + 2
    assert not whole[0].HasField("start")
    text = tokens.Decode(tei_pb2.DecodeRequest(ids=[token.id for token in bare]), metadata=KEY, timeout=10).text
    assert text == "hello world"
    ids = [token.id for token in whole]
    full = tokens.Decode(tei_pb2.DecodeRequest(ids=ids), metadata=KEY, timeout=10).text
    assert full == f"{whole[0].text} hello world {whole[-1].text}"
    short = tei_pb2.DecodeRequest(ids=ids, skip_special_tokens=True)
    assert tokens.Decode(short, metadata=KEY, timeout=10).text == "hello world"
    texts = ["hello", "world", "hello world"]
    encodes = iter([tei_pb2.EncodeRequest(inputs=text) for text in texts])
    streamed = list(tokens.TokenizeStream(encodes, metadata=KEY, timeout=10))
    decodes = iter([tei_pb2.DecodeRequest(ids=[token.id for token in one.tokens]) for one in streamed])
    assert [one.text for one in tokens.DecodeStream(decodes, metadata=KEY, timeout=10)] == texts
    rows = tei_pb2_grpc.EmbedStub(channel).EmbedAll(
        tei_pb2.EmbedAllRequest(inputs="hello world"), metadata=KEY, timeout=10
    )
    assert len(rows.token_embeddings) == len(whole)


def test_a_long_error_still_arrives(channel):
    code, details = failure(lambda: embed(channel, inputs="a", prompt_name="p" * 100_000))
    assert code == "INVALID_ARGUMENT"
    assert details.startswith(IV + "`default-prompt-name` is set to `ppp")


def test_a_deadline_that_passes(engine, channel):
    stub = tei_pb2_grpc.EmbedStub(channel)
    endless = (tei_pb2.EmbedRequest(inputs="a " * 50) for _ in iter(int, 1))
    answers = stub.EmbedStream(endless, metadata=KEY, timeout=0.5)
    with pytest.raises(grpc.RpcError) as caught:
        list(answers)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    deadline = time.monotonic() + 10
    while b"\ntei_engine_permits_in_use 0\n" not in engine.get("/metrics").body:
        assert time.monotonic() < deadline


def test_each_call_has_a_line_in_the_log(launch, tiny_folder):
    engine = launch("--model-id", str(tiny_folder("bert-mean")), env={"LOG_LEVEL": "debug"})
    engine.wait_for("Ready")
    with grpc.insecure_channel(f"127.0.0.1:{engine.grpc_port}") as channel:
        stub = tei_pb2_grpc.EmbedStub(channel)
        stub.Embed(tei_pb2.EmbedRequest(inputs="secret words"), timeout=10)
        failure(lambda: stub.Embed(tei_pb2.EmbedRequest(inputs=""), timeout=10))
        list(stub.EmbedStream(iter([tei_pb2.EmbedRequest(inputs="secret words")]), timeout=10))
    assert engine.wait_for("gRPC Embed OK")["level"] == "DEBUG"
    engine.wait_for("gRPC Embed INVALID_ARGUMENT")
    engine.wait_for("gRPC EmbedStream OK")
    assert not any("secret" in line["message"] for line in engine.lines)


def test_health_needs_no_key(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    names = {
        "": 1,
        "tei.v1.Info": 1,
        "tei.v1.Tokenize": 1,
        "tei.v1.Embed": 1,
        "tei.v1.Predict": 2,
        "tei.v1.Rerank": 2,
    }
    for name, status in names.items():
        assert stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status == status, name
    code, _ = failure(lambda: stub.Check(health_pb2.HealthCheckRequest(service="other"), timeout=10))
    assert code == "NOT_FOUND"
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="tei.v1.Embed"), timeout=10)
    assert next(iter(watch)).status == 1
    watch.cancel()


def test_large_messages_are_taken_up_to_the_limit(channel):
    assert failure(lambda: embed(channel, inputs="a" * (33 * 2**20)))[0] == "RESOURCE_EXHAUSTED"
    assert len(embed(channel, inputs="a " * 2**20, truncate=True).embeddings) == 32
