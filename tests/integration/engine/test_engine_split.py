"""`--auto-split`: a batch above the limit is one request to its caller, and many to the engine."""

import threading

import numpy as np
import pytest
from tests.integration.engine.damage import poisoned
from tests.integration.engine.scraping import scrape, wait_until

SPLIT = ("--max-client-batch-size", "4", "--auto-split")
WORDS = ("ever", "every", "with", "water", "again", "token", "capital", "good", "light", "open", "well")


def serve(launch, folder, *flags):
    engine = launch("--model-id", str(folder), *flags)
    engine.wait_for("Ready")
    return engine


@pytest.fixture(scope="module")
def embedding(launch, tiny_folder):
    return serve(launch, tiny_folder("bert-mean"), *SPLIT)


@pytest.fixture(scope="module")
def reranker(launch, tiny_folder):
    return serve(launch, tiny_folder("bert-reranker"), *SPLIT)


def texts(count):
    """Different texts of different lengths."""
    return [" ".join([WORDS[n % 11], WORDS[n // 11 % 11], *["well"] * (n % 17)]) for n in range(count)]


def test_answers_keep_the_order_of_inputs(embedding):
    inputs = texts(103)
    rows = np.array(embedding.post("/embed", {"inputs": inputs}).json)
    assert rows.shape == (103, 32)
    apart = [embedding.post("/embed", {"inputs": inputs[at : at + 4]}).json for at in range(0, 103, 4)]
    assert np.abs(rows - np.concatenate(apart)).max() <= 1e-6
    data = embedding.post("/v1/embeddings", {"input": inputs}).json["data"]
    assert [one["index"] for one in data] == list(range(103))
    assert np.abs(rows - [one["embedding"] for one in data]).max() <= 1e-6
    per_token = embedding.post("/embed_all", {"inputs": inputs}).json
    tokens = embedding.post("/tokenize", {"inputs": inputs}).json
    assert [len(vectors) for vectors in per_token] == [len(one) for one in tokens]


def test_scores_and_sparse_vectors_keep_it_too(reranker, launch, tiny_folder):
    inputs = texts(50)
    ranks = reranker.post("/rerank", {"query": "good water", "texts": inputs}).json
    scores = [rank["score"] for rank in ranks]
    assert scores == sorted(scores, reverse=True)
    assert sorted(rank["index"] for rank in ranks) == list(range(50))
    pairs = [["good water", text] for text in inputs]
    predicted = [row[0]["score"] for row in reranker.post("/predict", {"inputs": pairs}).json]
    for rank in ranks:
        assert rank["score"] == pytest.approx(predicted[rank["index"]], abs=1e-6)
    splade = serve(launch, tiny_folder("bert-splade"), *SPLIT)
    together = splade.post("/embed_sparse", {"inputs": inputs}).json
    for text, words in list(zip(inputs, together, strict=True))[::7]:
        [alone] = splade.post("/embed_sparse", {"inputs": text}).json
        assert [word["index"] for word in words] == [word["index"] for word in alone]
        assert [word["value"] for word in words] == pytest.approx([word["value"] for word in alone], abs=2e-5)


def test_it_counts_as_one_request_and_costs_the_sum(embedding):
    before = scrape(embedding)
    reply = embedding.post("/embed", {"inputs": ["ab", [5, 6, 7]] * 10})
    after = scrape(embedding)
    assert reply.headers["x-compute-characters"] == str(5 * 10)
    assert reply.headers["x-compute-tokens"] == str(
        10 * 3 + 10 * len(embedding.post("/tokenize", {"inputs": "ab"}).json[0])
    )
    grown = {name: after[name] - before[name] for name in after}
    assert grown['te_request_count{method="batch"}'] == grown['te_request_success{method="batch"}'] == 1
    assert grown["te_request_duration_count"] == 1
    assert grown["te_embed_count"] == grown["te_embed_success"] == 20


def test_rows_of_errors_are_counted_over_all_parts(embedding):
    long = "a " * 70
    reply = embedding.post("/embed", {"inputs": ["a"] * 17 + ["", long], "truncate": False})
    assert (reply.status, reply.json["error_type"], reply.json["row"]) == (400, "Empty", 17)
    for rows in ([17], [2, 17], [38, 5, 21], [3, 4], [0, 39]):
        inputs = [long if row in rows else "a" for row in range(40)]
        reply = embedding.post("/embed", {"inputs": inputs, "truncate": False})
        assert (reply.status, reply.json["row"]) == (422, min(rows))
        reply = embedding.post("/embed", {"inputs": [[520] if row in rows else "a" for row in range(40)]})
        assert (reply.status, reply.json["row"]) == (422, min(rows))
    assert scrape(embedding)["tei_engine_permits_in_use"] == 0


def test_the_first_of_several_failing_rows_is_named_whatever_runs_first(launch, tiny_folder, tmp_path):
    folder = poisoned(tiny_folder("bert-reranker"), tmp_path / "m", "position_embeddings.weight", 80)
    engine = serve(launch, folder, *SPLIT)
    for _ in range(5):
        # the short ones run together and at once, the long ones, which fail, one by one
        pairs = [["a", "b " * 90 if row in (9, 11, 30) else "b"] for row in range(40)]
        reply = engine.post("/predict", {"inputs": pairs})
        assert (reply.status, reply.json) == (424, {"error": "score is NaN", "error_type": "Backend", "row": 9})
    assert scrape(engine)["tei_engine_permits_in_use"] == 0


def test_there_is_a_last_input(embedding):
    assert len(embedding.post("/embed", {"inputs": [[5]] * 8192}).json) == 8192
    for path, body in (
        ("/embed", {"inputs": [[5]] * 8193}),
        ("/tokenize", {"inputs": ["a"] * 8193}),
        ("/decode", {"ids": [[5]] * 8193}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"] * 8192}}),
        ("/vertex", {"instances": [{"inputs": "a"}] * 8193}),
    ):
        reply = embedding.post(path, body)
        expected = {"error": "batch size 8193 > maximum allowed batch size 8192", "error_type": "Validation"}
        assert (reply.status, reply.json) == (422, expected)


def test_others_are_served_meanwhile(launch, tiny_folder):
    """Parts wait for permits, but leave some to those who cannot wait."""
    engine = serve(launch, tiny_folder("bert-mean"), *SPLIT, "--max-concurrent-requests", "16")
    answers = []
    large = {"inputs": ["a " * 60] * 8192}
    thread = threading.Thread(target=lambda: answers.append(engine.post("/embed", large)))
    thread.start()
    wait_until(engine, lambda found: found["tei_engine_permits_in_use"] > 4)
    for _ in range(20):
        assert engine.post("/embed", {"inputs": ["a", "b"]}).status == 200
    assert not answers, "the large request is still on its way"
    thread.join(60)
    assert len(answers[0].json) == 8192
    assert scrape(engine)["tei_engine_permits_in_use"] == 0


def test_only_its_first_part_may_be_refused(launch, tiny_folder):
    engine = serve(launch, tiny_folder("bert-mean"), *SPLIT, "--max-concurrent-requests", "4")
    first = []
    large = {"inputs": ["a " * 60] * 6000}
    thread = threading.Thread(target=lambda: first.append(engine.post("/embed", large)))
    thread.start()
    wait_until(engine, lambda found: found["tei_engine_permits_in_use"] == 4)
    assert engine.post("/embed", {"inputs": ["a"] * 5}).status == 429
    assert not first, "the large request is still on its way"
    thread.join(60)
    assert first[0].status == 200
    # alone it is served, although it never gets all its permits at once
    assert engine.post("/embed", {"inputs": ["a"] * 400}).status == 200
    found = scrape(engine)
    assert found['te_request_failure{err="overloaded"}'] == 1
    assert found["tei_engine_permits_in_use"] == 0
