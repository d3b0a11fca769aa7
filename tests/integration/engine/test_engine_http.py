"""Routes, errors, headers and metrics of a real process, row by row of the protocol."""

import contextlib
import http.client
import json
import re
import socket

import pytest


@pytest.fixture(scope="module")
def engine(launch, tiny_folder):
    process = launch("--model-id", str(tiny_folder("bert-mean")), "--max-client-batch-size", "4")
    process.wait_for("Ready")
    return process


@pytest.fixture(scope="module")
def guarded(launch, tiny_folder):
    process = launch(
        *("--model-id", str(tiny_folder("bert-mean")), "--api-key", "s3cret", "--max-concurrent-requests", "2"),
        *("--max-client-batch-size", "2", "--payload-limit", "1000", "--cors-allow-origin", "https://a.example"),
    )
    process.wait_for("Ready")
    return process


IV = "Input validation error: "
LONG = "word " * 200

NATIVE = [
    ("empty text", {"inputs": ""}, 400, "Empty", IV + "`inputs` cannot be empty"),
    ("empty list", {"inputs": []}, 400, "Empty", IV + "`inputs` cannot be empty"),
    ("too many inputs", {"inputs": ["a"] * 5}, 422, "Validation", "batch size 5 > maximum allowed batch size 4"),
    (
        "too many tokens",
        {"inputs": "a " * 70, "truncate": False},
        422,
        "Validation",
        IV + "`inputs` must have less than 64 tokens. Given: 72",
    ),
    (
        "too many characters",
        {"inputs": "a" * 16001, "truncate": False},
        422,
        "Validation",
        IV + "`inputs` must have less than 16000 characters. Given: 16001",
    ),
    ("dimensions 0", {"inputs": "a", "dimensions": 0}, 422, "Validation", IV + "`dimensions` should be positive"),
    (
        "dimensions above the model's",
        {"inputs": "a", "dimensions": 33},
        422,
        "Validation",
        IV + "`dimensions` should be smaller than the maximum embedding dimension.",
    ),
    (
        "unknown prompt",
        {"inputs": "a", "prompt_name": "nope"},
        422,
        "Validation",
        IV + "`default-prompt-name` is set to `nope` but it was not found in the Sentence Transformers prompts. "
        'Available prompts: ["query", "document"]',
    ),
    ("id beyond the vocabulary", {"inputs": [520]}, 422, "Validation", IV + "token id 520 is out of range"),
    (
        "ids beyond the limit",
        {"inputs": [5] * 65, "truncate": False},
        422,
        "Validation",
        IV + "`inputs` must have less than 64 tokens. Given: 65",
    ),
]


@pytest.mark.parametrize(
    ("body", "status", "kind", "message"), [row[1:] for row in NATIVE], ids=[row[0] for row in NATIVE]
)
def test_errors_of_native_and_openai_routes(engine, body, status, kind, message):
    reply = engine.post("/embed", body)
    assert (reply.status, reply.json) == (status, {"error": message, "error_type": kind})
    if not set(body) & {"truncate", "prompt_name"}:
        reply = engine.post("/v1/embeddings", {"input": body["inputs"], "dimensions": body.get("dimensions")})
        assert (reply.status, reply.json) == (status, {"message": message, "code": status, "type": kind})


def test_ranking_routes_of_others_are_refused_in_their_own_shape(engine):
    for path in ("/v1/rerank", "/v2/rerank"):
        reply = engine.post(path, {"query": "a", "documents": ["b"]})
        message = "Backend error: model is not a re-ranker model"
        assert (reply.status, reply.json) == (424, {"message": message, "code": 424, "type": "Backend"})


def test_a_batch_names_the_first_failing_row(engine):
    reply = engine.post("/embed", {"inputs": ["good", "a " * 70, "", "b " * 70], "truncate": False})
    assert (reply.status, reply.json["error_type"], reply.json["row"]) == (400, "Empty", 2)
    reply = engine.post("/embed", {"inputs": ["good", "a " * 70, "b " * 80], "truncate": False})
    assert (reply.status, reply.json["row"]) == (422, 1)
    assert reply.json["error"].endswith("Given: 72")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/predict", "Model is not a classifier model"),
        ("/rerank", "model is not a re-ranker model"),
        ("/embed_sparse", "Model is not an embedding model with SPLADE pooling"),
    ],
)
def test_routes_of_other_models(engine, path, message):
    reply = engine.post(path, {"inputs": "a", "query": "a", "texts": ["b"]})
    assert (reply.status, reply.json) == (424, {"error": f"Backend error: {message}", "error_type": "Backend"})


SHAPES = [
    {},
    {"inputs": None},
    {"inputs": 5},
    {"inputs": ["a", 5]},
    {"inputs": [True]},
    {"inputs": [1.0]},
    {"inputs": [-1]},
    {"inputs": "a", "truncate": "yes"},
    {"inputs": "a", "normalize": None},
    {"inputs": "a", "dimensions": -1},
    {"inputs": "a", "dimensions": 1.5},
    {"inputs": "a", "truncation_direction": "up"},
    {"inputs": "a", "truncation_direction": None},
    {"inputs": "a", "prompt_name": 5},
    ["a"],
    "a",
]


@pytest.mark.parametrize("body", SHAPES, ids=json.dumps)
def test_json_of_another_shape(engine, body):
    reply = engine.post("/embed", body)
    assert reply.status == 422
    assert reply.headers["content-type"].startswith("text/plain")
    assert reply.body.startswith(b"Failed to deserialize the JSON body into the target type: ")


NOT_JSON = [
    b"",
    b"{",
    b'{"inputs": "a"} x',
    b'{"inputs": NaN}',
    b'{"inputs": "\xff"}',
    b'{"inputs": "\\ud800"}',
    b'{"inputs": ' + b"[" * 200 + b"]" * 200 + b"}",
]


@pytest.mark.parametrize("body", NOT_JSON, ids=lambda body: repr(body[:24]))
def test_bodies_that_are_not_json(engine, body):
    reply = engine.post("/embed", body)
    assert (reply.status, reply.body.startswith(b"Failed to parse the request body as JSON: ")) == (400, True)


def test_framework_errors_come_in_their_order(guarded, engine):
    key = {"authorization": "Bearer s3cret"}
    plain = {"content-type": "text/plain"}
    large = b"{" + b" " * 2000
    assert guarded.request("POST", "/embed", large, plain).status == 401
    assert guarded.request("POST", "/embed", large, plain | key).status == 415
    reply = guarded.request("POST", "/embed", large, key)
    assert (reply.status, reply.body) == (413, b"Failed to buffer the request body: length limit exceeded")
    assert guarded.request("POST", "/embed", b"{", key).status == 400
    assert guarded.request("POST", "/embed", b"{}", key).status == 422
    assert (
        engine.post("/embed", {"inputs": "a"}, content_type="application/vnd.x+json; charset=utf-8").status == 200
    )


def test_a_chunked_body_is_limited_too(guarded):
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=10) as connection:
        connection.sendall(
            b"POST /embed HTTP/1.1\r\nhost: x\r\nauthorization: Bearer s3cret\r\n"
            b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        connection.sendall(b"400\r\n" + b" " * 0x400 + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_the_key_guards_all_but_health_and_metrics(guarded):
    assert guarded.get("/health").status == 200
    assert guarded.get("/metrics").status == 200
    reply = guarded.get("/info")
    assert (reply.status, reply.body) == (401, b"")
    assert guarded.get("/info", authorization="Bearer wrong").status == 401
    assert guarded.get("/info", authorization="Bearer s3cret").status == 200
    assert not any("s3cret" in line["message"] for line in guarded.lines)


def test_unknown_paths_and_methods(engine):
    reply = engine.get("/nowhere")
    assert (reply.status, reply.body) == (404, b"")
    assert engine.get("/embed").status == 405
    assert engine.request("DELETE", "/info").status == 405


def test_cors(engine, guarded):
    assert engine.get("/health", origin="https://b.example").headers["access-control-allow-origin"] == "*"
    reply = guarded.get("/health", origin="https://a.example")
    assert reply.headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-origin" not in guarded.get("/health", origin="https://b.example").headers
    assert engine.request("OPTIONS", "/embed").status == 200


def test_info(engine, tiny_folder):
    info = engine.get("/info").json
    folder = str(tiny_folder("bert-mean"))
    assert {key: info[key] for key in info if key != "engine"} == {
        "model_id": folder,
        "model_sha": None,
        "model_dtype": "float32",
        "served_model_name": folder,
        "model_type": {"embedding": {"pooling": "mean"}},
        "max_concurrent_requests": 512,
        "max_input_length": 64,
        "max_batch_tokens": 16384,
        "max_batch_requests": None,
        "max_client_batch_size": 4,
        "auto_truncate": True,
        "tokenization_workers": info["tokenization_workers"],
        "version": "1.9.3",
        "sha": None,
        "docker_label": "tei-engine-0.1.0",
    }
    assert info["engine"]["embedding_dimension"] == 32
    assert info["engine"]["grpc_port"] == engine.grpc_port


def test_models(engine):
    [model] = engine.get("/v1/models").json["data"]
    assert (model["object"], model["owned_by"]) == ("model", "tei-engine")
    assert engine.get(f"/v1/models/{model['id']}").json == model
    reply = engine.get("/v1/models/other")
    assert (reply.status, reply.json["code"], reply.json["type"]) == (404, 404, "NotFound")


@pytest.mark.parametrize("path", ["/health", "/", "/ping"])
def test_health_is_empty(engine, path):
    reply = engine.get(path)
    assert (reply.status, reply.body) == (200, b"")


def test_headers_tell_the_cost(engine):
    reply = engine.post("/embed", {"inputs": ["ab", [5, 6, 7]]})
    assert reply.headers["x-compute-type"] == "cpu+optimized"
    assert reply.headers["x-compute-characters"] == "5"
    for name in ("x-compute-time", "x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time"):
        assert reply.headers[name].isdigit()
    assert "x-compute-tokens" not in engine.post("/tokenize", {"inputs": "a"}).headers
    assert "x-compute-tokens" not in engine.post("/embed", {"inputs": ""}).headers


def test_ids_and_texts_may_be_mixed(engine, tiny_folder):
    expected = json.loads((tiny_folder("bert-mean") / "expected.json").read_text())["items"]
    item = expected[0]
    rows = engine.post("/embed", {"inputs": [item["text"], item["token_ids"]]}).json
    assert rows[0] == pytest.approx(rows[1], abs=1e-6)
    assert rows[0] == pytest.approx(item["normalized"], abs=5e-6)
    [row] = engine.post("/embed", {"inputs": item["text"], "normalize": False}).json
    assert row == pytest.approx(item["pooled"], abs=2e-5)
    assert len(engine.post("/embed", {"inputs": item["token_ids"]}).json) == 1


def test_prompts_are_put_before_texts_and_ids(engine):
    plain = engine.post("/embed", {"inputs": "query: hello"}).json
    prompted = engine.post("/embed", {"inputs": "hello", "prompt_name": "query"}).json
    assert prompted == plain
    ids = [token["id"] for token in engine.post("/tokenize", {"inputs": "hello"}).json[0]]
    assert engine.post("/embed", {"inputs": ids, "prompt_name": "query"}).json[0] == pytest.approx(
        plain[0], abs=1e-6
    )


def test_truncation_has_two_sides(engine):
    text = "alpha " * 60 + "omega " * 60
    right = engine.post("/embed", {"inputs": text}).json
    left = engine.post("/embed", {"inputs": text, "truncation_direction": "left"}).json
    assert left != right
    assert engine.post("/embed", {"inputs": text, "truncation_direction": "Left"}).json == left


def test_embed_all_gives_every_token(engine, tiny_folder):
    item = json.loads((tiny_folder("bert-mean") / "expected.json").read_text())["items"][0]
    [rows] = engine.post("/embed_all", {"inputs": item["text"]}).json
    assert len(rows) == len(item["token_ids"])
    assert rows[0] == pytest.approx(item["last_hidden_state_first_token"], abs=2e-5)


def test_tokenize_gives_byte_offsets_and_never_truncates(engine):
    text = "héllo 東京 test"
    [tokens] = engine.post("/tokenize", {"inputs": text}).json
    assert (tokens[0]["text"], tokens[0]["special"], tokens[0]["start"]) == ("[CLS]", True, None)
    raw = text.encode()
    for token in tokens[1:-1]:
        assert raw[token["start"] : token["stop"]].decode() == token["text"]
    bare = engine.post("/tokenize", {"inputs": [text], "add_special_tokens": False}).json[0]
    assert [token["id"] for token in bare] == [token["id"] for token in tokens[1:-1]]
    assert len(engine.post("/tokenize", {"inputs": LONG}).json[0]) > 64
    reply = engine.post("/tokenize", {"inputs": []})
    assert (reply.status, reply.json["error"]) == (400, "`inputs` cannot be empty")


def test_the_failing_row_is_named_where_nothing_is_embedded_too(engine):
    reply = engine.post("/tokenize", {"inputs": ["a", "", "b"]})
    assert (reply.status, reply.json["row"]) == (400, 1)
    assert "row" not in engine.post("/tokenize", {"inputs": ""}).json
    reply = engine.post("/tokenize", {"inputs": ["a", "b", "a" * (250 * 64 + 1)]})
    assert (reply.status, reply.json["row"]) == (422, 2)
    reply = engine.post("/decode", {"ids": [[5], []]})
    assert (reply.status, reply.json["row"]) == (400, 1)


def test_only_what_asks_the_model_is_counted(engine):
    def lines():
        text = engine.get("/metrics").body.decode()
        return [line for line in text.splitlines() if line.startswith(("te_request_count", "te_request_failure"))]

    before = lines()
    assert engine.post("/tokenize", {"inputs": "a"}).status == 200
    assert engine.post("/tokenize", {"inputs": 5}).status == 422
    assert engine.post("/decode", b"{").status == 400
    assert lines() == before


def test_decode(engine):
    ids = [token["id"] for token in engine.post("/tokenize", {"inputs": "hello world"}).json[0]]
    assert engine.post("/decode", {"ids": ids}).json == ["hello world"]
    assert engine.post("/decode", {"ids": [ids], "skip_special_tokens": False}).json == ["[CLS] hello world [SEP]"]
    reply = engine.post("/decode", {"ids": []})
    assert (reply.status, reply.json["error"]) == (400, IV + "`input_ids` cannot be empty")


def metric(engine, name):
    text = engine.get("/metrics").body.decode()
    match = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert match, name
    return float(match[1])


def test_every_request_counts_once(engine):
    names = (
        'te_request_count{method="single"}',
        'te_request_success{method="single"}',
        'te_request_count{method="batch"}',
        'te_request_success{method="batch"}',
        'te_request_failure{err="batch_size"}',
        "te_embed_count",
        "te_embed_success",
        "te_request_duration_count",
        "te_embed_inference_duration_count",
        "te_request_input_length_count",
    )
    before = [metric(engine, name) for name in names]
    engine.post("/embed", {"inputs": "one"})
    engine.post("/embed", {"inputs": ["one", "two", "three"]})
    engine.post("/embed", {"inputs": ["one"] * 5})
    after = [metric(engine, name) for name in names]
    assert [int(b - a) for a, b in zip(before, after, strict=True)] == [1, 1, 2, 1, 1, 4, 4, 2, 4, 4]


def test_all_series_are_there_from_the_start(engine):
    text = engine.get("/metrics").body.decode()
    for name in ("te_predict_count", "te_queue_size", "te_batch_next_size_bucket", "tei_engine_info"):
        assert re.search(rf"^{name}[ {{]", text, re.MULTILINE), name
    for err in ("overloaded", "dropped", "tokenization", "inference", "model_type", "missing_values"):
        assert f'te_request_failure{{err="{err}"}}' in text
    documented = set(re.findall(r"^# HELP (\S+)", text, re.MULTILINE))
    assert documented == set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))


def test_a_connection_serves_many_requests(engine):
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=10)
    for _ in range(5):
        connection.request("POST", "/embed", b'{"inputs":"a"}', {"content-type": "application/json"})
        response = connection.getresponse()
        assert (response.status, len(response.read()) > 0) == (200, True)
    connection.close()


HOSTILE = [
    "x" * 16000,
    "\x00",
    "\u0301" * 500,
    "🤷🏽‍♀️" * 300,
    "\u202e\ufeff",
    "a\x00b",
    "<|endoftext|>[PAD][MASK]",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:8]))
def test_hostile_texts_are_just_texts(engine, text):
    assert engine.post("/embed", {"inputs": text}).status == 200


@pytest.mark.parametrize("line", [b"x-many: a\r\n", b"x" * 1000], ids=["many headers", "one endless header"])
def test_a_head_without_end_is_hung_up_on(engine, line):
    with socket.create_connection(("127.0.0.1", engine.port), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        with pytest.raises(ConnectionError):
            connection.sendall(line * (32 * 2**20 // len(line)))
    assert engine.get("/health").status == 200


def test_offers_of_other_protocols_are_ignored(engine):
    body = json.dumps({"inputs": "hello"}).encode()
    offer = {"Upgrade": "h2c", "Connection": "Upgrade, HTTP2-Settings", "HTTP2-Settings": "AAMAAABkAAQAAP__"}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", engine.port, timeout=10)) as connection:
        for _ in range(2):
            connection.request("POST", "/embed", body, offer | {"content-type": "application/json"})
            reply = connection.getresponse()
            assert (reply.status, len(json.loads(reply.read())[0])) == (200, 32)


def test_a_large_body_is_no_head(engine):
    assert engine.post("/embed", {"inputs": "a" * 1_000_000}).status == 200


def test_a_client_that_hangs_up_harms_nobody(engine):
    for cut in (b"POST /embed HTTP/1.1\r\ncontent-le", b"POST /embed HTTP/1.1\r\ncontent-length: 100\r\n\r\n{"):
        with socket.create_connection(("127.0.0.1", engine.port), timeout=10) as connection:
            connection.sendall(cut)
    body = json.dumps({"inputs": [LONG] * 4}).encode()
    head = (
        f"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    for _ in range(8):
        with socket.create_connection(("127.0.0.1", engine.port), timeout=10) as connection:
            connection.sendall(head.encode() + body)
    assert engine.post("/embed", {"inputs": "still here"}).status == 200
    assert engine.process.poll() is None
