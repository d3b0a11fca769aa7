"""Headers: what an answer cost, who may read it, and where neither is told."""

import pytest

COST = (
    "x-compute-type",
    "x-compute-time",
    "x-total-time",
    "x-compute-characters",
    "x-compute-tokens",
    "x-tokenization-time",
    "x-queue-time",
    "x-inference-time",
)
FOLDERS = ("bert-mean", "bert-splade", "bert-classifier", "bert-reranker")
ORIGIN = "https://a.example"


@pytest.fixture(scope="module")
def engines(launch, tiny_folder):
    started = {
        name: launch("--model-id", str(tiny_folder(name)), "--cors-allow-origin", ORIGIN, "--auto-split")
        for name in FOLDERS
    }
    for engine in started.values():
        engine.wait_for("Ready")
    return started


SIMILAR = {"inputs": {"source_sentence": "héllo", "sentences": ["ab", "c"]}}
COSTING = [
    # (folder, path, body, characters, the texts and ids whose tokens are counted)
    ("bert-mean", "/embed", {"inputs": "héllo"}, 5, ["héllo"]),
    ("bert-mean", "/", {"inputs": "héllo"}, 5, ["héllo"]),
    ("bert-mean", "/invocations", {"inputs": ["ab", "🤷🏽"]}, 4, ["ab", "🤷🏽"]),
    ("bert-mean", "/embed", {"inputs": [5, 6, 7]}, 3, [[5, 6, 7]]),
    ("bert-mean", "/embed", {"inputs": ["ab", [5, 6, 7]]}, 5, ["ab", [5, 6, 7]]),
    ("bert-mean", "/embed", {"inputs": "ab", "prompt_name": "query"}, 2, ["query: ab"]),
    ("bert-mean", "/embed_all", {"inputs": ["ab", "c"]}, 3, ["ab", "c"]),
    ("bert-mean", "/v1/embeddings", {"input": ["ab", "c"]}, 3, ["ab", "c"]),
    ("bert-mean", "/embeddings", {"input": "ab", "encoding_format": "base64"}, 2, ["ab"]),
    ("bert-mean", "/similarity", SIMILAR, 8, ["héllo", "ab", "c"]),
    ("bert-splade", "/embed_sparse", {"inputs": ["ab", "c"]}, 3, ["ab", "c"]),
    ("bert-splade", "/", {"inputs": "ab"}, 2, ["ab"]),
    ("bert-splade", "/embed", {"inputs": "ab", "normalize": False}, 2, ["ab"]),
    ("bert-classifier", "/predict", {"inputs": "ab"}, 2, ["ab"]),
    ("bert-classifier", "/", {"inputs": [["ab"], ["c"]]}, 3, ["ab", "c"]),
    ("bert-classifier", "/predict", {"inputs": ["ab", "c"]}, 3, [("ab", "c")]),
    ("bert-reranker", "/rerank", {"query": "héllo", "texts": ["ab", "c"]}, 13, [("héllo", "ab"), ("héllo", "c")]),
    ("bert-reranker", "/", {"query": "a", "texts": ["b"] * 40}, 80, [("a", "b")] * 40),
    ("bert-reranker", "/v1/rerank", {"query": "héllo", "documents": ["ab"]}, 7, [("héllo", "ab")]),
    ("bert-reranker", "/v2/rerank", {"query": "a", "documents": [{"text": "b"}]}, 2, [("a", "b")]),
]


def tokens_of(engine, value):
    """How many tokens one input has; [CLS] and [SEP]s are added to texts and pairs, nothing to ids."""
    if isinstance(value, list):
        return len(value)
    texts = [value] if isinstance(value, str) else list(value)
    bare = engine.post("/tokenize", {"inputs": texts, "add_special_tokens": False}).json
    return sum(map(len, bare)) + len(texts) + 1


@pytest.mark.parametrize(
    ("folder", "path", "body", "characters", "inputs"), COSTING, ids=lambda value: str(value)[:40]
)
def test_what_an_answer_cost(engines, folder, path, body, characters, inputs):
    engine = engines[folder]
    reply = engine.post(path, body)
    assert reply.status == 200
    shown = {name: reply.headers[name] for name in COST}
    assert shown["x-compute-type"] == "cpu+optimized"
    assert shown["x-compute-characters"] == str(characters)
    expected = sum(tokens_of(engine, value) for value in inputs)
    assert shown["x-compute-tokens"] == str(expected)
    times = {name: int(value) for name, value in shown.items() if name.endswith("-time")}
    assert times["x-compute-time"] == times["x-total-time"]
    # each part is a mean over the inputs, and rounded: half a millisecond may appear from nowhere
    assert max(times.values()) <= times["x-total-time"] + 1
    if path in ("/v1/embeddings", "/embeddings", "/v1/rerank", "/v2/rerank"):
        assert reply.json["usage"] == {"prompt_tokens": expected, "total_tokens": expected}


def test_truncated_inputs_cost_what_is_computed(engines):
    reply = engines["bert-mean"].post("/embed", {"inputs": "a " * 200})
    assert (reply.headers["x-compute-tokens"], reply.headers["x-compute-characters"]) == ("64", "400")
    assert engines["bert-mean"].post("/v1/embeddings", {"input": "a " * 200}).json["usage"]["prompt_tokens"] == 64


def test_binary_answers_tell_their_cost_too(engines):
    reply = engines["bert-mean"].post("/embed", {"inputs": ["ab", "c"]}, accept="application/octet-stream")
    assert reply.headers["content-type"] == "application/octet-stream"
    assert (reply.headers["x-embedding-shape"], reply.headers["x-embedding-dtype"]) == ("2,32", "f32")
    assert reply.headers["x-compute-characters"] == "3"
    assert len(reply.body) == 2 * 32 * 4
    reply = engines["bert-mean"].post("/embed", {"inputs": ""}, accept="application/octet-stream")
    assert (reply.status, reply.headers["content-type"]) == (400, "application/json")


FREE = [
    ("bert-mean", "POST", "/tokenize", {"inputs": "a"}, 200),
    ("bert-mean", "POST", "/decode", {"ids": [5]}, 200),
    ("bert-mean", "POST", "/vertex", {"instances": [{"inputs": "a"}]}, 200),
    ("bert-mean", "GET", "/info", None, 200),
    ("bert-mean", "GET", "/health", None, 200),
    ("bert-mean", "GET", "/metrics", None, 200),
    ("bert-mean", "GET", "/v1/models", None, 200),
    ("bert-mean", "POST", "/embed", {"inputs": ""}, 400),
    ("bert-mean", "POST", "/embed", {}, 422),
    ("bert-mean", "POST", "/predict", {"inputs": "a"}, 424),
    ("bert-mean", "POST", "/v1/embeddings", {"input": [""]}, 400),
    ("bert-mean", "POST", "/nowhere", {}, 404),
    ("bert-reranker", "POST", "/rerank", {"query": "a", "texts": []}, 400),
]


@pytest.mark.parametrize(("folder", "method", "path", "body", "status"), FREE, ids=lambda value: str(value)[:40])
def test_what_costs_nothing_says_nothing(engines, folder, method, path, body, status):
    reply = engines[folder].request(method, path, body)
    assert reply.status == status
    assert [name for name in reply.headers if name.lower().startswith("x-")] == []


def test_only_the_listed_origin_may_read(engines):
    engine = engines["bert-mean"]
    for path, body in (("/embed", {"inputs": "a"}), ("/embed", {}), ("/embed", {"inputs": ""})):
        reply = engine.post(path, body, origin=ORIGIN)
        assert (reply.headers["access-control-allow-origin"], reply.headers["vary"]) == (ORIGIN, "origin")
        assert "access-control-allow-origin" not in engine.post(path, body, origin="https://b.example").headers
        assert "access-control-allow-origin" not in engine.post(path, body).headers


def test_a_preflight_is_answered(engines, launch, tiny_folder):
    asked = {"origin": ORIGIN, "access-control-request-method": "POST"}
    for path in ("/embed", "/v1/embeddings", "/health", "/vertex"):
        reply = engines["bert-mean"].request("OPTIONS", path, headers=asked)
        assert (reply.status, reply.body) == (200, b"")
        assert reply.headers["access-control-allow-origin"] == ORIGIN
        assert set(reply.headers["access-control-allow-methods"].split(",")) == {"GET", "POST"}
        shown = set(reply.headers["access-control-allow-headers"].split(","))
        assert shown == {"content-type", "authorization"}
    open_to_all = launch("--model-id", str(tiny_folder("bert-mean")), "--api-key", "s3cret")
    open_to_all.wait_for("Ready")
    reply = open_to_all.request("OPTIONS", "/embed", headers=asked)  # browsers send it without the key
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, "*")
    reply = open_to_all.post("/embed", {"inputs": "a"}, origin="https://b.example")
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (401, "*")


@pytest.mark.parametrize(
    "given", ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "not a trace", "ff-00-00-00", ""]
)
def test_a_trace_of_the_caller_is_welcome(engines, given):
    for path, body in (("/embed", {"inputs": "a"}), ("/tokenize", {"inputs": "a"})):
        assert engines["bert-mean"].post(path, body, traceparent=given).status == 200
    assert engines["bert-mean"].get("/health", traceparent=given).status == 200
