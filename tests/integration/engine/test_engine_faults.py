"""What fails inside, or at the door: numbers that are none, unknown tokens, no permits, no model, no key."""

import contextlib
import socket
import threading

import pytest
from tests.integration.engine.damage import poisoned, with_word, without_unknown
from tests.integration.engine.scraping import scrape, wait_until

LONG = "a " * 90
NAN = {"error": "Backend error: embedding is NaN", "error_type": "Backend"}


def serve(launch, folder, *flags):
    engine = launch("--model-id", str(folder), *flags)
    engine.wait_for("Ready")
    return engine


def first_id(engine, word):
    [tokens] = engine.post("/tokenize", {"inputs": word, "add_special_tokens": False}).json
    [token] = tokens
    return token["id"]


@pytest.fixture(scope="module")
def bert(launch, tiny_folder):
    """An engine in which nothing is wrong."""
    return serve(launch, tiny_folder("bert-mean"))


@pytest.fixture(scope="module")
def sick(bert, launch, tiny_folder, tmp_path_factory):
    """Its vectors of texts with the word "water" are not numbers; those with "beyond" cannot be computed."""
    folder = poisoned(
        tiny_folder("bert-mean"),
        tmp_path_factory.mktemp("sick") / "nan",
        "word_embeddings.weight",
        first_id(bert, "water"),
    )
    return serve(launch, with_word(folder, folder.with_name("both"), "beyond", 520))


def at_once(engine, requests):
    """Replies to requests that are sent side by side, so that they share runs."""
    replies = {}
    threads = [
        threading.Thread(target=lambda place=place, one=one: replies.update({place: engine.post(*one)}))
        for place, one in enumerate(requests)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [replies[place] for place in range(len(requests))]


def test_vectors_that_are_not_numbers(sick, bert):
    assert (reply := sick.post("/embed", {"inputs": "open water"})).status == 424
    assert reply.json == NAN
    reply = sick.post("/embed", {"inputs": ["good", "water", "light", "water"]})
    assert (reply.status, reply.json) == (424, NAN | {"row": 1})
    reply = sick.post("/embed", {"inputs": ["water"], "normalize": False})
    assert (reply.status, reply.json) == (424, NAN | {"row": 0})
    reply = sick.post("/embed_all", {"inputs": ["good", "water"]})
    assert (reply.status, reply.json) == (424, NAN | {"row": 1})
    reply = sick.post("/v1/embeddings", {"input": ["good", "water"]})
    shown = {"message": NAN["error"], "code": 424, "type": "Backend", "row": 1}
    assert (reply.status, reply.json) == (424, shown)
    body = {"inputs": {"source_sentence": "good", "sentences": ["light", "water"]}}
    assert sick.post("/similarity", body).json == NAN | {"row": 1}
    good = {"inputs": ["good", "light"]}
    assert sick.post("/embed", good).json == bert.post("/embed", good).json


def test_requests_beside_a_failing_one_are_served(sick, bert):
    words = ["water", "good", "beyond", "light"] * 6
    replies = at_once(sick, [("/embed", {"inputs": word}) for word in words])
    expected = {word: bert.post("/embed", {"inputs": word}).json[0] for word in ("good", "light")}
    for word, reply in zip(words, replies, strict=True):
        if word in expected:
            assert reply.status == 200
            assert reply.json[0] == pytest.approx(expected[word], abs=1e-6)
        else:
            assert (reply.status, reply.json["error_type"]) == (424, "Backend")
            assert (reply.json == NAN) == (word == "water")


def test_what_the_runtime_refuses_is_told_in_its_words(sick):
    before = scrape(sick)
    reply = sick.post("/embed", {"inputs": ["good", "beyond", "water"]})
    assert (reply.status, reply.json["error_type"], reply.json["row"]) == (424, "Backend", 1)
    assert reply.json["error"].startswith("Backend error: ")
    assert "indices element out of data bounds" in reply.json["error"]
    after = scrape(sick)
    name = 'te_request_failure{err="inference"}'
    assert after[name] - before[name] == 1
    # after a failed run a self-test decides whether it was the model's fault
    wait_until(sick, lambda _: sick.get("/health").status == 200)


def test_scores_that_are_not_numbers(launch, tiny_folder, tmp_path):
    # the warm-up's texts have 64 tokens: positions behind them are only reached by longer ones
    folder = poisoned(tiny_folder("bert-reranker"), tmp_path / "m", "position_embeddings.weight", 80)
    engine = serve(launch, folder)
    for path, body in (
        ("/predict", {"inputs": [["a", "b"], ["a", LONG]]}),
        ("/rerank", {"query": "a", "texts": ["b", LONG]}),
    ):
        reply = engine.post(path, body)
        assert (reply.status, reply.json) == (424, {"error": "score is NaN", "error_type": "Backend", "row": 1})
    reply = engine.post("/v1/rerank", {"query": "a", "documents": ["b", LONG]})
    shown = {"message": "score is NaN", "code": 424, "type": "Backend", "row": 1}
    assert (reply.status, reply.json) == (424, shown)
    assert engine.post("/predict", {"inputs": [["a", "b"], ["a", "c"]]}).status == 200
    assert scrape(engine)['te_request_failure{err="missing_values"}'] == 3


def test_sparse_vectors_that_are_not_numbers(launch, tiny_folder, tmp_path):
    folder = poisoned(tiny_folder("distilbert-splade"), tmp_path / "m", "position_embeddings.weight", 80)
    engine = serve(launch, folder, "--pooling", "splade")
    reply = engine.post("/embed_sparse", {"inputs": ["a", "b", LONG]})
    assert (reply.status, reply.json) == (424, NAN | {"row": 2})
    assert engine.post("/embed_sparse", {"inputs": ["a", "b"]}).status == 200


def test_texts_that_the_tokenizer_cannot_take(launch, tiny_folder, tmp_path):
    engine = serve(launch, without_unknown(tiny_folder("bert-mean"), tmp_path / "m"))
    message = "tokenizer error WordPiece error: Missing [UNK] token from the vocabulary"
    expected = {"error": message, "error_type": "Tokenizer"}
    assert (reply := engine.post("/embed", {"inputs": "東"})).status == 422
    assert reply.json == expected
    assert engine.post("/embed", {"inputs": ["good", "東", ""]}).json["row"] == 2  # seen before it is tokenised
    assert engine.post("/embed", {"inputs": ["good", "東", "light"]}).json == expected | {"row": 1}
    assert engine.post("/tokenize", {"inputs": ["good", "東"]}).json == expected | {"row": 1}
    reply = engine.post("/v1/embeddings", {"input": "東"})
    assert reply.json == {"message": message, "code": 422, "type": "Tokenizer"}
    replies = at_once(engine, [("/embed", {"inputs": text}) for text in ["good", "東"] * 8])
    assert [reply.status for reply in replies] == [200, 422] * 8
    assert scrape(engine)['te_request_failure{err="tokenization"}'] == 3 + 8


def test_no_permits_left(launch, tiny_folder):
    """A large request in parts leaves no permit to others while its parts wait for their turn."""
    engine = serve(
        launch,
        tiny_folder("bert-reranker"),
        *("--max-concurrent-requests", "4", "--max-client-batch-size", "4", "--auto-split"),
    )
    held = []
    large = {"query": "a " * 40, "texts": ["b " * 40] * 3000}
    thread = threading.Thread(target=lambda: held.append(engine.post("/rerank", large)))
    thread.start()
    wait_until(engine, lambda found: found["tei_engine_permits_in_use"] == 4)
    reply = engine.post("/rerank", {"query": "a", "texts": ["b"]})
    assert (reply.status, reply.headers["retry-after"]) == (429, "1")
    assert reply.json == {"error": "Model is overloaded", "error_type": "Overloaded"}
    reply = engine.post("/v2/rerank", {"query": "a", "documents": ["b"]})
    assert (reply.status, reply.headers["retry-after"]) == (429, "1")
    assert reply.json == {"message": "Model is overloaded", "code": 429, "type": "Overloaded"}
    assert engine.post("/tokenize", {"inputs": "a"}).status == 200
    assert engine.get("/health").status == 200
    assert not held, "the large request is still on its way"
    thread.join(60)
    assert held[0].status == 200
    found = scrape(engine)
    assert found['te_request_failure{err="overloaded"}'] == 2
    assert found["tei_engine_permits_in_use"] == 0
    assert engine.post("/rerank", {"query": "a", "texts": ["b"]}).status == 200


def test_a_model_that_is_still_loading(launch, tmp_path):
    with contextlib.ExitStack() as opened:
        silent_hub = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        silent_hub.settimeout(20)
        engine = launch(
            *("--model-id", "acme/slow", "--huggingface-hub-cache", str(tmp_path), "--api-key", "s3cret"),
            env={"HF_ENDPOINT": f"http://127.0.0.1:{silent_hub.getsockname()[1]}"},
        )
        opened.enter_context(silent_hub.accept()[0])  # the engine asks, and will get no answer
        key = {"authorization": "Bearer s3cret"}
        native = {"error": "model is loading", "error_type": "Unhealthy"}
        for method, path in (("GET", "/health"), ("GET", "/"), ("GET", "/info"), ("POST", "/embed")):
            reply = engine.request(method, path, headers=key)
            assert (reply.status, reply.json, reply.headers["retry-after"]) == (503, native, "1")
        reply = engine.request("POST", "/v1/embeddings", b"{", key)
        shown = {"message": "model is loading", "code": 503, "type": "Unhealthy"}
        assert (reply.status, reply.json, reply.headers["retry-after"]) == (503, shown, "1")
        assert engine.post("/embed", {"inputs": "a"}).status == 401
        found = scrape(engine)
        assert found["te_request_duration_count"] == found["te_queue_size"] == found["te_embed_count"] == 0
        assert engine.stop() == 0


@pytest.fixture(scope="module")
def guarded(launch, tiny_folder):
    return serve(launch, tiny_folder("bert-mean"), "--api-key", "s3cret", "--payload-limit", "1000")


def test_framework_errors_come_in_their_order(guarded, bert):
    key = {"authorization": "Bearer s3cret"}
    plain = {"content-type": "text/plain"}
    large = b"{" + b" " * 2000
    reply = guarded.request("POST", "/embed", large, plain)
    assert (reply.status, reply.body) == (401, b"")
    reply = guarded.request("POST", "/embed", large, plain | key)
    assert (reply.status, reply.body) == (415, b"Expected request with `Content-Type: application/json`")
    reply = guarded.request("POST", "/embed", large, key)
    assert (reply.status, reply.body) == (413, b"Failed to buffer the request body: length limit exceeded")
    for status, body in ((400, b"{"), (422, b"{}"), (400, b'{"inputs": ""}'), (200, b'{"inputs": "a"}')):
        assert guarded.request("POST", "/embed", body, key).status == status
    for kind in ("application/vnd.x+json; charset=utf-8", "Application/JSON", "application/json;charset=utf-8"):
        assert bert.post("/embed", {"inputs": "a"}, content_type=kind).status == 200
    for kind in ("text/json", "application/jsonx", "application/x-ndjson", ""):
        assert bert.post("/embed", {"inputs": "a"}, content_type=kind).status == 415


def test_a_chunked_body_is_limited_too(guarded):
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=10) as connection:
        connection.sendall(
            b"POST /embed HTTP/1.1\r\nhost: x\r\nauthorization: Bearer s3cret\r\n"
            b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        connection.sendall(b"400\r\n" + b" " * 0x400 + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_the_key_guards_all_but_health_and_metrics(guarded):
    for path in ("/health", "/", "/ping", "/metrics"):
        assert guarded.get(path).status == 200
    for given in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "s3cret"},
        {"authorization": "Bearer "},
    ):
        reply = guarded.get("/info", **given)
        assert (reply.status, reply.body) == (401, b"")
        for path in ("/embed", "/tokenize", "/v1/embeddings", "/vertex"):
            assert guarded.post(path, {"inputs": "a"}, **given).status == 401
    assert guarded.get("/info", authorization="Bearer s3cret").status == 200
    assert not any("s3cret" in line["message"] for line in guarded.lines)


def test_unknown_paths_and_methods(bert):
    for path in ("/nowhere", "/embed/", "/v1", "/v3/rerank", "/Embed", "//embed"):
        for method in ("GET", "POST"):
            reply = bert.request(method, path)
            assert (reply.status, reply.body) == (404, b"")
    for path in ("/embed", "/v1/embeddings", "/rerank", "/vertex"):
        reply = bert.get(path)
        assert (reply.status, reply.headers["allow"]) == (405, "POST")
    for method in ("DELETE", "PUT", "POST"):
        assert bert.request(method, "/info").status == 405
    assert bert.request("POST", "/v1/models/x").status == 405
    reply = bert.request("HEAD", "/health")
    assert (reply.status, reply.body) == (200, b"")
