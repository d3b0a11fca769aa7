"""Every kind of model over gRPC: the numbers of PyTorch, alone and in streams of mixed lengths."""

import json
import random

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.integration.engine.calling import channel_to, failure

from tei_manager.grpc.proto.tei.v1 import tei_pb2, tei_pb2_grpc


class Served:
    """One tiny model, its reference numbers, and stubs that speak to it."""

    def __init__(self, engine, channel, expected):
        self.engine, self.channel, self.expected = engine, channel, expected
        self.items = expected["items"]
        self.embed = tei_pb2_grpc.EmbedStub(channel)
        self.predict = tei_pb2_grpc.PredictStub(channel)
        self.rerank = tei_pb2_grpc.RerankStub(channel)

    def shuffled(self, times=3):
        """Every item several times, in an order that mixes lengths."""
        items = list(self.items) * times
        random.Random(11).shuffle(items)
        return items

    def health(self):
        stub = health_pb2_grpc.HealthStub(self.channel)
        names = ("", "tei.v1.Info", "tei.v1.Tokenize", "tei.v1.Embed", "tei.v1.Predict", "tei.v1.Rerank")
        serving = health_pb2.HealthCheckResponse.SERVING
        asked = ((name, health_pb2.HealthCheckRequest(service=name)) for name in names)
        return {name.rpartition(".")[2] for name, request in asked if stub.Check(request).status == serving}


@pytest.fixture(scope="module")
def served(request, launch, tiny_folder):
    """The model named first, with the arguments behind it."""
    name, *arguments = request.param
    folder = tiny_folder(name)
    expected = json.loads((folder / "expected.json").read_text())
    # some folders do not say how short the reference cut its texts
    engine = launch("--model-id", str(folder), "--max-batch-tokens", str(expected["max_length"]), *arguments)
    engine.wait_for("Ready")
    with channel_to(engine) as channel:
        yield Served(engine, channel, expected)
    engine.close()


def models(*each):
    return pytest.mark.parametrize("served", each, indirect=True, ids=lambda one: one[0])


embeddings = models(("bert-dense",), ("xlm-roberta-cls",), ("modernbert-mean",), ("nomic-bert-mean",))
splade_models = models(("bert-splade",), ("distilbert-splade", "--pooling", "splade"))
classifiers = models(("bert-classifier",), ("roberta-classifier",))
rerankers = models(
    ("bert-reranker", "--max-client-batch-size", "4"),
    ("xlm-roberta-reranker", "--max-client-batch-size", "4", "--auto-split"),
)


def check(answers, items, agrees):
    answers = list(answers)
    assert len(answers) == len(items)
    for answer, item in zip(answers, items, strict=True):
        agrees(answer, item)
        assert answer.metadata.compute_tokens == len(item["token_ids"])


COSTS = {
    "x-compute-type",
    "x-compute-time",
    "x-total-time",
    "x-compute-characters",
    "x-compute-tokens",
    "x-tokenization-time",
    "x-queue-time",
    "x-inference-time",
}


def check_edges(*calls):
    """Unary calls tell their cost before their answer; numbers that an enum does not have are refused."""
    for rpc, request in calls:
        answer, call = rpc.with_call(request, timeout=20)
        shown = dict(call.initial_metadata())
        assert shown.keys() >= COSTS
        assert shown["x-compute-type"] == "cpu+optimized"
        assert int(shown["x-compute-tokens"]) == answer.metadata.compute_tokens > 0
        assert int(shown["x-compute-characters"]) == answer.metadata.compute_chars > 0
        request.truncation_direction = 7
        error = ("INVALID_ARGUMENT", "Input validation error: unknown truncation direction 7")
        assert failure(lambda rpc=rpc, request=request: rpc(request, timeout=20)) == error


def by_message(message, field, **more):
    return lambda item: message(**{field: item["text"]}, truncate=True, **more)


@embeddings
def test_vectors(served):
    def agrees(answer, item):
        assert np.abs(np.array(answer.embeddings) - item["normalized"]).max() <= 5e-6

    message = by_message(tei_pb2.EmbedRequest, "inputs")
    check((served.embed.Embed(message(item), timeout=20) for item in served.items), served.items, agrees)
    mixed = served.shuffled()
    check(served.embed.EmbedStream(map(message, mixed), timeout=60), mixed, agrees)


@embeddings
def test_vectors_that_are_not_normalised(served):
    def agrees(answer, item):
        assert np.abs(np.array(answer.embeddings) - item["pooled"]).max() <= 2e-5

    message = by_message(tei_pb2.EmbedRequest, "inputs", normalize=False)
    check(served.embed.EmbedStream(map(message, served.items), timeout=60), served.items, agrees)


@embeddings
def test_token_vectors(served):
    def agrees(answer, item):
        assert len(answer.token_embeddings) == len(item["token_ids"])
        first = np.array(answer.token_embeddings[0].embeddings)
        assert np.abs(first - item["last_hidden_state_first_token"]).max() <= 2e-5

    message = by_message(tei_pb2.EmbedAllRequest, "inputs")
    check((served.embed.EmbedAll(message(item), timeout=20) for item in served.items), served.items, agrees)
    mixed = served.shuffled()
    check(served.embed.EmbedAllStream(map(message, mixed), timeout=60), mixed, agrees)


@embeddings
def test_prompts(served):
    for item in served.expected["prompt_items"]:
        request = tei_pb2.EmbedRequest(inputs=item["text"], prompt_name=item["prompt_name"], truncate=True)
        answer = served.embed.Embed(request, timeout=20)
        assert np.abs(np.array(answer.embeddings) - item["normalized"]).max() <= 5e-6


@embeddings
def test_edges_of_embeddings(served):
    check_edges(
        (served.embed.Embed, tei_pb2.EmbedRequest(inputs="a")),
        (served.embed.EmbedAll, tei_pb2.EmbedAllRequest(inputs="a")),
    )


@embeddings
def test_health_of_embeddings(served):
    assert served.health() == {"", "Info", "Tokenize", "Embed"}


@splade_models
def test_words(served):
    def agrees(answer, item):
        got = {word.index: word.value for word in answer.sparse_embeddings}
        assert list(got) == sorted(got)
        assert all(value > 0 for value in got.values())
        want = dict(item["sparse"])
        for index in got | want:
            assert got.get(index, 0) == pytest.approx(want.get(index, 0), abs=2e-5)

    message = by_message(tei_pb2.EmbedSparseRequest, "inputs")
    check((served.embed.EmbedSparse(message(item), timeout=20) for item in served.items), served.items, agrees)
    mixed = served.shuffled()
    check(served.embed.EmbedSparseStream(map(message, mixed), timeout=60), mixed, agrees)


@splade_models
def test_the_words_are_the_dense_vector_without_its_zeros(served):
    text = served.items[0]["text"]
    dense = served.embed.Embed(tei_pb2.EmbedRequest(inputs=text, normalize=False), timeout=20).embeddings
    words = served.embed.EmbedSparse(tei_pb2.EmbedSparseRequest(inputs=text), timeout=20).sparse_embeddings
    assert {word.index: word.value for word in words} == {i: value for i, value in enumerate(dense) if value}


@splade_models
def test_what_splade_models_cannot_do(served):
    no = "FAILED_PRECONDITION"
    text = served.items[0]["text"]
    assert failure(lambda: served.embed.Embed(tei_pb2.EmbedRequest(inputs=text), timeout=20)) == (
        no,
        "Backend error: `normalize` is not available for SPLADE models",
    )
    assert failure(lambda: served.embed.EmbedAll(tei_pb2.EmbedAllRequest(inputs=text), timeout=20)) == (
        no,
        "Backend error: `embed_all` is not available for SPLADE models",
    )


@splade_models
def test_edges_of_splade_models(served):
    check_edges((served.embed.EmbedSparse, tei_pb2.EmbedSparseRequest(inputs="a")))


@splade_models
def test_health_of_splade_models(served):
    assert served.health() == {"", "Info", "Tokenize", "Embed"}


@classifiers
@pytest.mark.parametrize(("raw", "key", "bound"), [(False, "scores", 1e-5), (True, "logits", 2e-5)])
def test_labels(served, raw, key, bound):
    names = served.expected["id2label"]

    def agrees(answer, item):
        given = [one.score for one in answer.predictions]
        assert given == sorted(given, reverse=True)
        got = {one.label: one.score for one in answer.predictions}
        want = {names[str(place)]: value for place, value in enumerate(item[key])}
        assert got == pytest.approx(want, abs=bound)

    items = served.items
    message = by_message(tei_pb2.PredictRequest, "inputs", raw_scores=raw)
    check((served.predict.Predict(message(item), timeout=20) for item in items), items, agrees)
    mixed = served.shuffled()
    check(served.predict.PredictStream(map(message, mixed), timeout=60), mixed, agrees)

    def alone(item):
        return tei_pb2.PredictPairRequest(inputs=[item["text"]], truncate=True, raw_scores=raw)

    check(served.predict.PredictPairStream(map(alone, mixed), timeout=60), mixed, agrees)


@classifiers
def test_pairs_are_read_together(served):
    def ask(*texts):
        return served.predict.PredictPair(tei_pb2.PredictPairRequest(inputs=texts), timeout=20)

    first, second = "the ferry", "a frozen river"
    http = served.engine.post("/predict", {"inputs": [first, second]}).json
    shown = [(one.label, one.score) for one in ask(first, second).predictions]
    assert shown == [(one["label"], pytest.approx(one["score"], abs=1e-6)) for one in http]
    assert ask(first, second).metadata.compute_tokens > ask(first).metadata.compute_tokens


@classifiers
@pytest.mark.parametrize("texts", [[], ["a", "b", "c"]])
def test_one_text_or_two(served, texts):
    request = tei_pb2.PredictPairRequest(inputs=texts)
    error = ("INVALID_ARGUMENT", f"`inputs` must have a single or two elements. Given: {len(texts)}")
    assert failure(lambda: served.predict.PredictPair(request, timeout=20)) == error
    assert failure(lambda: list(served.predict.PredictPairStream(iter([request]), timeout=20))) == error


@classifiers
def test_empty_pairs(served):
    request = tei_pb2.PredictPairRequest(inputs=["", ""])
    error = ("INVALID_ARGUMENT", "Input validation error: `inputs` cannot be empty")
    assert failure(lambda: served.predict.PredictPair(request, timeout=20)) == error


@classifiers
def test_what_classifiers_cannot_do(served):
    embed = tei_pb2.EmbedRequest(inputs="a")
    assert failure(lambda: served.embed.Embed(embed, timeout=20)) == (
        "FAILED_PRECONDITION",
        "Backend error: Model is not an embedding model",
    )
    error = ("FAILED_PRECONDITION", "model is not a re-ranker model")
    assert failure(lambda: served.rerank.Rerank(tei_pb2.RerankRequest(query="a"), timeout=20)) == error
    stream = iter([tei_pb2.RerankStreamRequest(query="a", text="b")])
    assert failure(lambda: served.rerank.RerankStream(stream, timeout=20)) == error


@classifiers
def test_edges_of_classifiers(served):
    check_edges(
        (served.predict.Predict, tei_pb2.PredictRequest(inputs="a")),
        (served.predict.PredictPair, tei_pb2.PredictPairRequest(inputs=["a", "b"])),
    )


@classifiers
def test_health_of_classifiers(served):
    assert served.health() == {"", "Info", "Tokenize", "Predict"}


@classifiers
def test_info_of_classifiers(served):
    info = tei_pb2_grpc.InfoStub(served.channel).Info(tei_pb2.InfoRequest(), timeout=20)
    assert MessageToDict(info)["modelType"] == "MODEL_TYPE_CLASSIFIER"


@rerankers
@pytest.mark.parametrize(("raw", "key", "bound"), [(False, "scores", 1e-5), (True, "logits", 2e-5)])
def test_scores(served, raw, key, bound):
    for item in served.items:
        want = pytest.approx(item[key][0], abs=bound)
        query, text = item["pair"]
        rank = tei_pb2.RerankRequest(query=query, texts=[text], truncate=True, raw_scores=raw)
        answer = served.rerank.Rerank(rank, timeout=20)
        assert [(one.index, one.score, one.HasField("text")) for one in answer.ranks] == [(0, want, False)]
        assert answer.metadata.compute_tokens == len(item["token_ids"])
        pair = tei_pb2.PredictPairRequest(inputs=item["pair"], truncate=True, raw_scores=raw)
        [label] = served.predict.PredictPair(pair, timeout=20).predictions
        assert (label.label, label.score) == (served.expected["id2label"]["0"], want)


@rerankers
@pytest.mark.parametrize(("first", "key", "bound"), [(False, "scores", 1e-5), (True, "logits", 2e-5)])
def test_the_first_message_of_a_stream_decides(served, first, key, bound):
    mixed = served.shuffled()
    said = [first, *[not first] * (len(mixed) - 1)]
    requests = (
        tei_pb2.RerankStreamRequest(
            query=item["pair"][0], text=item["pair"][1], truncate=True, raw_scores=word, return_text=word
        )
        for item, word in zip(mixed, said, strict=True)
    )
    answer, call = served.rerank.RerankStream.with_call(requests, timeout=60)
    assert sorted(rank.index for rank in answer.ranks) == list(range(len(mixed)))
    scores = [rank.score for rank in answer.ranks]
    assert scores == sorted(scores, reverse=True)
    for rank in answer.ranks:
        item = mixed[rank.index]
        assert rank.score == pytest.approx(item[key][0], abs=bound)
        assert rank.HasField("text") is first
        assert rank.text == (item["pair"][1] if first else "")
    total = sum(len(item["token_ids"]) for item in mixed)
    assert answer.metadata.compute_tokens == total
    assert dict(call.initial_metadata())["x-compute-tokens"] == str(total)


@rerankers
def test_an_empty_stream_ends(served):
    error = ("INVALID_ARGUMENT", "`texts` cannot be empty")
    assert failure(lambda: served.rerank.RerankStream(iter([]), timeout=20)) == error
    assert failure(lambda: served.rerank.Rerank(tei_pb2.RerankRequest(query="a"), timeout=20)) == error


@rerankers
def test_a_failing_item_ends_the_stream(served):
    texts = [("a", "b"), ("", ""), ("a", "c")]
    requests = (tei_pb2.RerankStreamRequest(query=query, text=text) for query, text in texts)
    assert failure(lambda: served.rerank.RerankStream(requests, timeout=20)) == (
        "INVALID_ARGUMENT",
        "Input validation error: `inputs` cannot be empty",
    )


@rerankers
def test_of_equal_scores_the_later_text_comes_first(served):
    request = tei_pb2.RerankRequest(query="river", texts=["ice", "ferry", "ice", "ferry"], return_text=True)
    ranks = served.rerank.Rerank(request, timeout=20).ranks
    scores = [(rank.score, rank.index) for rank in ranks]
    assert scores == sorted(scores, reverse=True)
    assert all(rank.text == request.texts[rank.index] for rank in ranks)


@rerankers
def test_the_limit_of_a_batch(served):
    splits = served.engine.get("/info").json["model_id"].endswith("xlm-roberta-reranker")
    most = 8192 if splits else 4
    request = tei_pb2.RerankRequest(query="a", texts=["b"] * (most + 1))
    error = ("INVALID_ARGUMENT", f"batch size {most + 1} > maximum allowed batch size {most}")
    assert failure(lambda: served.rerank.Rerank(request, timeout=20)) == error
    count = 1500 if splits else 4  # more than there are permits
    texts = [f"{'word ' * (number % 5)}{number}" for number in range(count)]
    answer = served.rerank.Rerank(tei_pb2.RerankRequest(query="word", texts=texts), timeout=60)
    assert sorted(rank.index for rank in answer.ranks) == list(range(count))
    for rank in answer.ranks[:: max(1, count // 4)]:
        alone = tei_pb2.RerankRequest(query="word", texts=[texts[rank.index]])
        assert rank.score == pytest.approx(served.rerank.Rerank(alone, timeout=20).ranks[0].score, abs=1e-6)


@rerankers
def test_what_rerankers_cannot_do(served):
    embed = tei_pb2.EmbedSparseRequest(inputs="a")
    assert failure(lambda: served.embed.EmbedSparse(embed, timeout=20)) == (
        "FAILED_PRECONDITION",
        "Backend error: Model is not an embedding model with SPLADE pooling",
    )


@rerankers
def test_edges_of_rerankers(served):
    check_edges((served.rerank.Rerank, tei_pb2.RerankRequest(query="a", texts=["b"])))
    odd = iter([tei_pb2.RerankStreamRequest(query="a", text="b", truncation_direction=7)])
    assert failure(lambda: served.rerank.RerankStream(odd, timeout=20))[0] == "INVALID_ARGUMENT"


@rerankers
def test_health_of_rerankers(served):
    assert served.health() == {"", "Info", "Tokenize", "Predict", "Rerank"}
