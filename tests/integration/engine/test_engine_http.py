"""Routes of a real process and what they mean; errors, headers and metrics have files of their own."""

import base64
import contextlib
import http.client
import json
import socket

import numpy as np
import pytest


@pytest.fixture(scope="module")
def engine(launch, tiny_folder):
    process = launch("--model-id", str(tiny_folder("bert-mean")), "--max-client-batch-size", "4")
    process.wait_for("Ready")
    return process


@pytest.fixture(scope="module")
def ranking(launch, tiny_folder):
    process = launch("--model-id", str(tiny_folder("bert-reranker")), "--served-model-name", "ranks")
    process.wait_for("Ready")
    return process


LONG = "word " * 200


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


def test_the_default_prompt_is_put_before_what_names_none(engine, launch, tiny_folder):
    prompted = launch("--model-id", str(tiny_folder("bert-mean")), "--default-prompt-name", "query")
    prompted.wait_for("Ready")
    expected = engine.post("/embed", {"inputs": ["query: hello", "passage: hello"]}).json
    assert prompted.post("/embed", {"inputs": "hello"}).json[0] == pytest.approx(expected[0], abs=1e-6)
    named = prompted.post("/embed", {"inputs": "hello", "prompt_name": "document"}).json
    assert named[0] == pytest.approx(expected[1], abs=1e-6)
    [one] = prompted.post("/v1/embeddings", {"input": "hello"}).json["data"]
    assert one["embedding"] == pytest.approx(expected[0], abs=1e-6)
    tokens = prompted.post("/tokenize", {"inputs": "hello"}).json[0]
    assert tokens == engine.post("/tokenize", {"inputs": "query: hello"}).json[0]


def test_vectors_are_cut_before_they_are_normalised(engine):
    [whole] = engine.post("/embed", {"inputs": "hello", "normalize": False}).json
    for size in (1, 5, 32):
        cut = np.array(whole[:size])
        [row] = engine.post("/embed", {"inputs": "hello", "dimensions": size}).json
        assert row == pytest.approx(cut / np.linalg.norm(cut), abs=1e-6)
        [raw] = engine.post("/embed", {"inputs": "hello", "dimensions": size, "normalize": False}).json
        assert raw == pytest.approx(cut, abs=1e-6)


def test_vectors_come_in_four_wrappings(engine):
    inputs = ["hello", [5, 6, 7], "world"]
    rows = engine.post("/embed", {"inputs": inputs, "dimensions": 9}).json
    reply = engine.post("/embed", {"inputs": inputs, "dimensions": 9}, accept="application/octet-stream")
    assert np.frombuffer(reply.body, "<f4").reshape(3, 9).tolist() == np.float32(rows).tolist()
    for encoding in ("float", "base64"):
        body = {"input": inputs, "dimensions": 9, "encoding_format": encoding, "model": "x", "user": "y"}
        shown = engine.post("/v1/embeddings", body).json
        assert (shown["object"], shown["model"]) == ("list", engine.get("/info").json["served_model_name"])
        for index, (one, row) in enumerate(zip(shown["data"], rows, strict=True)):
            assert (one["object"], one["index"]) == ("embedding", index)
            vector = one["embedding"]
            if encoding == "base64":
                vector = np.frombuffer(base64.b64decode(vector, validate=True), "<f4").tolist()
            assert vector == pytest.approx(row, abs=1e-7)


def test_similarity_is_the_cosine(engine):
    sentences = ["hello world", "good water", "hello"]
    body = {"inputs": {"source_sentence": "hello", "sentences": sentences}}
    source, *rows = np.array(engine.post("/embed", {"inputs": ["hello", *sentences]}).json)
    assert engine.post("/similarity", body).json == pytest.approx([row @ source for row in rows], abs=1e-6)
    assert engine.post("/similarity", body).json[2] == pytest.approx(1.0, abs=1e-6)
    source, *rows = np.array(engine.post("/embed", {"inputs": ["hello", *sentences], "prompt_name": "query"}).json)
    prompted = engine.post("/similarity", body | {"parameters": {"prompt_name": "query"}}).json
    assert prompted == pytest.approx([row @ source for row in rows], abs=1e-6)
    cut = {"inputs": {"source_sentence": "hello", "sentences": ["alpha " * 60 + "omega " * 60]}}
    sides = [
        engine.post("/similarity", cut | {"parameters": {"truncation_direction": side}}).json
        for side in ("left", "right")
    ]
    assert sides[0] != sides[1]
    assert engine.post("/similarity", cut | {"parameters": {"truncate": False}}).status == 422


def test_one_path_answers_as_the_model_can(engine, ranking, launch, tiny_folder):
    body = {"query": "a", "texts": ["b", "c"]}
    similar = {"inputs": {"source_sentence": "a", "sentences": ["b"]}}
    others = {name: launch("--model-id", str(tiny_folder(name))) for name in ("bert-splade", "bert-classifier")}
    asked = launch("--model-id", str(tiny_folder("bert-mean")), env={"TASK": "sentence-similarity"})
    for one in (*others.values(), asked):
        one.wait_for("Ready")
    for one, route, sent in (
        (engine, "/embed", {"inputs": ["a", "b"], "dimensions": 3}),
        (ranking, "/rerank", body | {"return_text": True}),
        (others["bert-splade"], "/embed_sparse", {"inputs": "a"}),
        (others["bert-classifier"], "/predict", {"inputs": "a", "raw_scores": True}),
        (asked, "/similarity", similar),
    ):
        expected = one.post(route, sent)
        assert expected.status == 200
        for path in ("/", "/invocations"):
            assert one.post(path, sent).json == expected.json
        assert one.post("/vertex", {"instances": []}).json == {"predictions": []}
        if one is not asked:
            assert one.post("/vertex", {"instances": [sent, sent]}).json == {"predictions": [expected.json] * 2}


def test_ranks_in_the_shape_of_others(ranking):
    texts = ["good water", "open light", "capital", "token"]
    ranks = ranking.post("/rerank", {"query": "water", "texts": texts}).json
    body = {"query": "water", "documents": texts, "model": "any", "max_tokens_per_doc": 5, "rank_fields": ["a"]}
    for version in ("1", "2"):
        shown = ranking.post(f"/v{version}/rerank", body).json
        assert set(shown) == {"id", "model", "results", "usage", "meta"}
        assert shown["model"] == "ranks"
        assert shown["meta"] == {"api_version": {"version": version}, "billed_units": {"search_units": 1}}
        assert shown["results"] == [
            {"index": rank["index"], "relevance_score": pytest.approx(rank["score"], abs=1e-6)} for rank in ranks
        ]
    objects = [{"text": texts[0], "title": "x"}, texts[1], {"text": texts[2]}, {"text": texts[3], "id": 5}]
    shown = ranking.post(
        "/v1/rerank", {"query": "water", "documents": objects, "return_documents": True, "top_n": 2}
    )
    assert [one["index"] for one in shown.json["results"]] == [rank["index"] for rank in ranks[:2]]
    assert [one["document"] for one in shown.json["results"]] == [{"text": texts[r["index"]]} for r in ranks[:2]]
    assert len(ranking.post("/v2/rerank", body | {"top_n": 99}).json["results"]) == 4
    ids = {ranking.post("/v1/rerank", body).json["id"] for _ in range(3)}
    assert len(ids) == 3


def test_equal_scores_come_with_the_later_text_first(ranking):
    ranks = ranking.post("/rerank", {"query": "water", "texts": ["good"] * 6 + ["open light"] * 6}).json
    keys = [(rank["score"], rank["index"]) for rank in ranks]
    assert keys == sorted(keys, reverse=True)
    assert len({score for score, _ in keys}) < len(keys), "some are equal"


def test_pairs_are_cut_on_the_side_that_is_asked_for(ranking):
    long = "alpha " * 60 + "omega " * 60
    scores = {
        side: ranking.post("/predict", {"inputs": ["water", long], "truncation_direction": side}).json[0]["score"]
        for side in ("left", "right", "Right")
    }
    assert scores["left"] != scores["right"] == scores["Right"]
    body = {"query": "water", "texts": [long], "truncation_direction": "Left"}
    assert ranking.post("/rerank", body).json[0]["score"] == pytest.approx(scores["left"], abs=1e-6)
    assert ranking.post("/rerank", body | {"truncate": False}).status == 422


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


def test_decode(engine):
    ids = [token["id"] for token in engine.post("/tokenize", {"inputs": "hello world"}).json[0]]
    assert engine.post("/decode", {"ids": ids}).json == ["hello world"]
    assert engine.post("/decode", {"ids": [ids], "skip_special_tokens": False}).json == ["[CLS] hello world [SEP]"]
    reply = engine.post("/decode", {"ids": []})
    assert (reply.status, reply.json["error"]) == (400, "Input validation error: `input_ids` cannot be empty")


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
