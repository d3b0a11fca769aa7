"""all-MiniLM-L6-v2 served by a real process agrees with PyTorch, whatever the route and the company."""

import base64
import random
import struct

import grpc
import numpy as np
import pytest

from tei_manager.grpc.proto.tei.v1 import tei_pb2, tei_pb2_grpc


@pytest.fixture(scope="module")
def engine(launch, golden, minilm_arguments, a_free_port):
    process = launch(*minilm_arguments, "--prometheus-port", str(a_free_port()), "--max-client-batch-size", "64")
    process.wait_for("Ready")
    return process


@pytest.fixture(scope="module")
def channel(engine):
    with grpc.insecure_channel(f"127.0.0.1:{engine.grpc_port}") as channel:
        yield channel


def close_enough(vector, item):
    got, want = np.asarray(vector, dtype=np.float64), np.asarray(item["vec"])
    cosine = got @ want / (np.linalg.norm(got) * np.linalg.norm(want))
    return np.abs(got - want).max() <= 1e-3 and cosine >= 0.9999


@pytest.fixture(scope="module")
def shuffled(golden):
    """Every item, in an order that mixes lengths; the empty text goes in as ids."""
    items = list(golden["items"])
    random.Random(7).shuffle(items)
    return items


def as_input(item):
    return item["text"] or item["token_ids"]


def test_ids_of_texts_are_those_of_the_reference(engine, golden):
    for item in golden["items"]:
        if item["text"] and item["n_tokens_untruncated"] <= 256:
            reply = engine.post("/tokenize", {"inputs": item["text"]})
            assert [token["id"] for token in reply.json[0]] == item["token_ids"]


def test_single_texts_by_json(engine, golden):
    for item in golden["items"]:
        reply = engine.post("/embed", {"inputs": as_input(item)})
        assert reply.status == 200, reply.body
        assert int(reply.headers["x-compute-tokens"]) == len(item["token_ids"])
        assert close_enough(reply.json[0], item), item["text"][:40]


def test_a_shuffled_batch_by_json(engine, shuffled):
    rows = engine.post("/embed", {"inputs": [as_input(item) for item in shuffled]}).json
    assert all(close_enough(row, item) for row, item in zip(rows, shuffled, strict=True))


def test_a_shuffled_batch_by_binary(engine, shuffled):
    reply = engine.post(
        "/embed", {"inputs": [as_input(item) for item in shuffled]}, accept="application/octet-stream"
    )
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["x-embedding-dtype"] == "f32"
    assert reply.headers["x-embedding-shape"] == f"{len(shuffled)},384"
    rows = np.frombuffer(reply.body, dtype="<f4").reshape(len(shuffled), 384)
    assert all(close_enough(row, item) for row, item in zip(rows, shuffled, strict=True))


def test_a_shuffled_batch_by_openai_base64(engine, shuffled):
    inputs = [as_input(item) for item in shuffled]
    body = engine.post("/v1/embeddings", {"input": inputs, "model": "any", "encoding_format": "base64"}).json
    assert body["usage"]["prompt_tokens"] == sum(len(item["token_ids"]) for item in shuffled)
    for index, (row, item) in enumerate(zip(body["data"], shuffled, strict=True)):
        assert row["index"] == index
        raw = base64.b64decode(row["embedding"])
        assert close_enough(struct.unpack(f"<{len(raw) // 4}f", raw), item)


def test_openai_floats_equal_base64(engine, golden):
    text = golden["items"][0]["text"]
    floats = engine.post("/v1/embeddings", {"input": text}).json["data"][0]["embedding"]
    packed = engine.post("/embeddings", {"input": text, "encoding_format": "base64"}).json["data"][0]["embedding"]
    assert np.array_equal(np.asarray(floats, np.float32), np.frombuffer(base64.b64decode(packed), "<f4"))


def test_single_texts_by_grpc(channel, golden):
    stub = tei_pb2_grpc.EmbedStub(channel)
    for item in golden["items"]:
        if item["text"]:
            answer = stub.Embed(tei_pb2.EmbedRequest(inputs=item["text"], truncate=True), timeout=20)
            assert close_enough(answer.embeddings, item)
            assert answer.metadata.compute_tokens == len(item["token_ids"])


def test_a_stream_by_grpc_keeps_its_order(channel, shuffled):
    stub = tei_pb2_grpc.EmbedStub(channel)
    items = [item for item in shuffled if item["text"]] * 3
    requests = (tei_pb2.EmbedRequest(inputs=item["text"], truncate=True) for item in items)
    answers = list(stub.EmbedStream(requests, timeout=60))
    assert all(close_enough(answer.embeddings, item) for answer, item in zip(answers, items, strict=True))


def test_fewer_dimensions_are_cut_and_normalised_again(engine, channel, golden):
    item = golden["items"][0]
    want = np.asarray(item["vec"][:64]) / np.linalg.norm(item["vec"][:64])
    row = engine.post("/embed", {"inputs": item["text"], "dimensions": 64}).json[0]
    assert np.abs(np.asarray(row) - want).max() <= 1e-3
    request = tei_pb2.EmbedRequest(inputs=item["text"], dimensions=64)
    answer = tei_pb2_grpc.EmbedStub(channel).Embed(request, timeout=20)
    assert np.abs(np.asarray(answer.embeddings) - want).max() <= 1e-3


def test_the_weights_are_mapped_not_copied_twice(engine):
    footprint = engine.get("/info").json["engine"]["footprint"]
    assert footprint["weights_bytes"] == pytest.approx(90_261_504)
    assert footprint["rss_bytes"] < 2 * footprint["weights_bytes"] + 300 * 2**20


def test_the_start_is_quick_and_says_what_it_does(engine):
    messages = [line["message"] for line in engine.lines]
    for expected in ("Starting HTTP server: 127.0.0.1:", "Starting model backend", "Warming up model", "Ready"):
        assert any(message.startswith(expected) for message in messages)
    assert {"timestamp", "level", "message", "target", "filename", "line_number"} <= set(engine.lines[0])
