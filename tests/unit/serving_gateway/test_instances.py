"""What each engine is sent, and how its answers and errors are read."""

import base64

import numpy as np
import orjson
import pytest

from tei_manager.domain.instance import EngineKind, Protocol
from tei_manager.domain.request import EmbedCall, Truncate
from tei_manager.domain.target import Endpoint
from tei_manager.grpc.proto.tei.v1 import tei_pb2
from tei_manager.ports.http_upstream import Answer
from tei_manager.serving import faults
from tei_manager.serving.providers import instances, tei_grpc

LONG = "Input validation error: `inputs` must have less than 512 tokens. Given: 600"


def endpoint(engine):
    return Endpoint(
        instance="a",
        uid="u",
        host="127.0.0.1",
        http_port=1,
        grpc_port=None,
        protocol=Protocol.HTTP,
        engine=engine,
        model_id="org/m",
    )


TEI, EMBEDDED, COMMAND, VLLM, LLAMACPP = (
    endpoint(EngineKind(kind)) for kind in ("tei", "embedded", "command", "vllm", "llamacpp")
)


@pytest.mark.parametrize(
    ("where", "inputs", "dimensions", "path", "body"),
    [
        (TEI, ["x"], None, "/embed", {"inputs": "x", "truncate": False}),
        (TEI, ["x", "y"], 4, "/embed", {"inputs": ["x", "y"], "truncate": False, "dimensions": 4}),
        (EMBEDDED, [[1, 2]], None, "/embed", {"inputs": [[1, 2]], "truncate": False}),
        (
            COMMAND,
            ["x"],
            None,
            "/v1/embeddings",
            {"model": "org/m", "input": "x", "encoding_format": "base64"},
        ),
        (
            VLLM,
            ["x", "y"],
            4,
            "/v1/embeddings",
            {"model": "org/m", "input": ["x", "y"], "encoding_format": "base64", "dimensions": 4},
        ),
        (
            LLAMACPP,
            [[1, 2]],
            None,
            "/v1/embeddings",
            {"model": "org/m", "input": [[1, 2]], "encoding_format": "base64"},
        ),
    ],
)
def test_what_is_sent(where, inputs, dimensions, path, body):
    wire = instances.embed_request(where, call(dimensions=dimensions), inputs)
    assert (wire.method, wire.path, orjson.loads(wire.body)) == ("POST", path, body)
    assert wire.headers["content-type"] == "application/json"


def call(**fields):
    return EmbedCall(target="m", inputs=["x"], **fields)


def test_only_the_embedded_engine_is_asked_for_bytes():
    assert instances.embed_request(EMBEDDED, call(), ["x"]).headers["accept"] == "application/octet-stream"
    assert instances.embed_request(TEI, call(), ["x"]).headers["accept"] == "application/json"


@pytest.mark.parametrize(
    ("where", "truncate", "sent"),
    [
        (VLLM, Truncate.NONE, {}),
        (VLLM, Truncate.END, {"truncate_prompt_tokens": -1}),
        (VLLM, Truncate.START, {"truncate_prompt_tokens": -1, "truncation_side": "left"}),
        (LLAMACPP, Truncate.END, {}),
    ],
)
def test_only_vllm_is_told_to_cut_in_openais_dialect(where, truncate, sent):
    wire = instances.embed_request(where, call(truncate=truncate, normalize=False), ["x"], wants_base64=False)
    assert orjson.loads(wire.body) == {"model": "org/m", "input": "x", **sent}


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({"truncate": Truncate.END}, {"truncate": True}),
        ({"truncate": Truncate.START}, {"truncate": True, "truncation_direction": "Left"}),
        ({"normalize": False}, {"truncate": False, "normalize": False}),
    ],
)
def test_how_an_input_is_cut_and_normalised_is_said(fields, sent):
    wire = instances.embed_request(TEI, call(**fields), ["x"])
    assert orjson.loads(wire.body) == {"inputs": "x", **sent}
    message = tei_pb2.EmbedRequest.FromString(tei_grpc.embed_request(call(**fields), "x"))
    assert (message.truncate, message.normalize) == (sent["truncate"], sent.get("normalize", True))
    assert message.HasField("normalize")
    assert message.truncation_direction == (sent.get("truncation_direction") == "Left")


@pytest.mark.parametrize(
    ("status", "text", "code"),
    [
        (3, "Input validation error: `inputs` cannot be empty", "UPSTREAM_REJECTED"),
        (3, LONG, "CONTEXT_LENGTH_EXCEEDED"),
        (4, "", "UPSTREAM_TIMEOUT"),
        (8, "Model is overloaded", "UPSTREAM_RATE_LIMITED"),
        (9, "Backend error: Model is not an embedding model", "OPERATION_NOT_SUPPORTED"),
        (9, "tokenizer error x", "UPSTREAM_REJECTED"),
        (9, "Backend error: x", "UPSTREAM_ERROR"),
        (12, "", "OPERATION_NOT_SUPPORTED"),
        (14, "unhealthy", "UPSTREAM_ERROR"),
        (16, "No valid auth token", "UPSTREAM_AUTH_FAILED"),
    ],
)
def test_what_a_grpc_status_means(status, text, code):
    assert faults.read_status("a", status, text).code == code


def test_floats_and_base64_are_told_apart_by_what_they_are():
    row = np.array([0.1, -2.0], dtype="<f4")
    text = base64.b64encode(row.tobytes()).decode()
    for vector in (row.tolist(), text):
        data = [{"index": 1, "embedding": vector}, {"index": 0, "embedding": vector}]
        body = orjson.dumps({"data": data, "usage": {"prompt_tokens": 5, "total_tokens": 5}})
        read = instances.embed_answer(COMMAND, Answer(200, {}, body), 2)
        assert read.rows.tolist() == [row.tolist()] * 2
        assert read.tokens == 5


def test_rows_are_put_where_their_index_says():
    data = [{"index": 1, "embedding": [1.0]}, {"index": 0, "embedding": [0.0]}]
    read = instances.embed_answer(COMMAND, Answer(200, {}, orjson.dumps({"data": data})), 2)
    assert read.rows[:, 0].tolist() == [0.0, 1.0]
    assert read.tokens is None


def test_what_info_tells():
    body = {
        "max_client_batch_size": 8,
        "model_type": {"embedding": {"pooling": "splade"}},
        "engine": {"vocab_size": 30522, "embedding_dimension": 384},
    }
    facts = instances.info_of(Answer(200, {}, orjson.dumps(body)))
    assert facts == instances.Facts(max_batch=8, does="sparse", vocabulary=30522, dimensions=384)
    assert instances.info_of(Answer(200, {}, b"{}")) == instances.Facts(max_batch=32)
    assert instances.info_of(Answer(503, {}, b"{}")) is None
    assert instances.info_of(Answer(200, {}, b"<html>")) is None


def tei(kind, text="x"):
    return orjson.dumps({"error": text, "error_type": kind})


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, tei("Empty"), "UPSTREAM_REJECTED"),
        (422, tei("Validation"), "UPSTREAM_REJECTED"),
        (413, tei("Validation"), "UPSTREAM_REJECTED"),  # up to 1.8.3
        (422, tei("Validation", LONG), "CONTEXT_LENGTH_EXCEEDED"),
        (422, tei("Tokenizer"), "UPSTREAM_REJECTED"),
        (429, tei("Overloaded"), "UPSTREAM_RATE_LIMITED"),
        (424, tei("Backend", "Backend error: Model is not an embedding model"), "OPERATION_NOT_SUPPORTED"),
        (424, tei("Backend", "Backend error: out of memory"), "UPSTREAM_ERROR"),
        (503, tei("Unhealthy"), "UPSTREAM_ERROR"),
        (400, orjson.dumps({"message": LONG, "code": 413, "type": "Validation"}), "CONTEXT_LENGTH_EXCEEDED"),
        (400, b'{"error":{"message":"maximum context length is 8","code":400}}', "CONTEXT_LENGTH_EXCEEDED"),
        (429, b"", "UPSTREAM_RATE_LIMITED"),
        (401, b"", "UPSTREAM_AUTH_FAILED"),
        (403, b"", "UPSTREAM_AUTH_FAILED"),
        (404, b'{"error":{"message":"The model does not exist"}}', "MODEL_NOT_FOUND"),
        (404, b"", "OPERATION_NOT_SUPPORTED"),
        (408, b"", "UPSTREAM_ERROR"),
        (418, b"[1]", "UPSTREAM_REJECTED"),
        (500, b"<html>", "UPSTREAM_ERROR"),
        (302, b"", "UPSTREAM_MALFORMED"),
    ],
)
def test_what_an_error_answer_means(status, body, code):
    fault = faults.read("a", Answer(status, {}, body))
    assert (fault.code, fault.status) == (code, status)
    assert str(fault)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see http://10.0.0.1:8080/x for more", "see … for more"),
        ("connect to 127.0.0.1:8080 failed", "connect to … failed"),
        ("cannot open /var/lib/models/x.bin", "cannot open …"),
        ("bad key Bearer abc and hf_abcdefghijk", "bad key … and …"),
        (LONG, LONG),
        ("two\nlines", "two lines"),
    ],
)
def test_addresses_files_and_credentials_are_not_relayed(text, shown):
    assert faults.redacted(text) == shown


def test_a_long_text_is_shortened():
    assert len(faults.redacted("x" * 1000)) == 500
