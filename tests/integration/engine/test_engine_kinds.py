"""Every tiny model behind a real server: alone, and as one shuffled batch, against PyTorch."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

FOLDERS = sorted((Path(__file__).parents[2] / "fixtures" / "tiny_models").iterdir())
EXPECTED = {folder.name: json.loads((folder / "expected.json").read_text()) for folder in FOLDERS}
NAMES = {
    kind: [name for name, one in EXPECTED.items() if one["kind"] == kind]
    for kind in ("embedding", "splade", "classifier", "reranker")
}
NORMALISED, VALUES, SCORES = 5e-6, 2e-5, 1e-5


class Served:
    """One model, what it is expected to answer, and an engine that serves it."""

    def __init__(self, name, launch):
        self.expected = EXPECTED[name]
        self.items = self.expected["items"]
        arguments = ["--model-id", str(FOLDERS[0].with_name(name)), "--max-client-batch-size", "64"]
        if self.expected["kind"] != "embedding":  # their folders do not say where the reference was cut
            arguments += ["--max-batch-tokens", str(self.expected["max_length"])]
        if name == "distilbert-splade":
            arguments += ["--pooling", "splade"]
        self.engine = launch(*arguments)
        self.engine.wait_for("Ready")

    def ask(self, path, **body):
        reply = self.engine.post(path, body)
        assert reply.status == 200, reply.body
        return reply.json

    def shuffled(self):
        """The items in another order, and the same one every time."""
        return random.Random(7).sample(self.items, len(self.items))


@pytest.fixture(scope="module")
def served(request, launch):
    """One engine at a time: the tests of a model run together, then its engine ends."""
    one = Served(request.param, launch)
    yield one
    one.engine.close()


def of(*kinds):
    return pytest.mark.parametrize("served", [name for kind in kinds for name in NAMES[kind]], indirect=True)


def near(given, wanted, tolerance):
    difference = np.abs(np.asarray(given, np.float64) - np.asarray(wanted, np.float64))
    assert difference.max() <= tolerance, difference.max()


def logits_of(predictions, expected):
    """Predictions in the order of the labels; they come by falling score."""
    scores = [one["score"] for one in predictions]
    assert scores == sorted(scores, reverse=True)
    by_label = {one["label"]: one["score"] for one in predictions}
    return [by_label[expected["id2label"][str(number)]] for number in range(len(scores))]


def texts_of(item):
    return item.get("pair") or [item["text"]]


def test_there_are_models_of_every_kind():
    assert {kind: bool(names) for kind, names in NAMES.items()} == dict.fromkeys(NAMES, True)


@of("embedding")
def test_vectors_of_each_text_alone(served):
    for item in served.items:
        near(served.ask("/embed", inputs=item["text"]), [item["normalized"]], NORMALISED)
    for item in served.items[:3]:
        near(served.ask("/embed", inputs=item["text"], normalize=False), [item["pooled"]], VALUES)
        [tokens] = served.ask("/embed_all", inputs=item["text"])
        assert len(tokens) == len(item["token_ids"])
        near(tokens[0], item["last_hidden_state_first_token"], VALUES)


@of("embedding")
def test_vectors_of_a_shuffled_batch_of_texts_and_ids(served):
    items = served.shuffled() * 2
    inputs = [item["text"] if place % 2 else item["token_ids"] for place, item in enumerate(items)]
    near(served.ask("/embed", inputs=inputs), [item["normalized"] for item in items], NORMALISED)
    near(served.ask("/embed", inputs=inputs, normalize=False), [item["pooled"] for item in items], VALUES)
    rows = [row["embedding"] for row in served.ask("/v1/embeddings", input=inputs)["data"]]
    near(rows, [item["normalized"] for item in items], NORMALISED)


@of("embedding")
def test_prompts_and_cut_vectors(served):
    for item in served.expected["prompt_items"]:
        rows = served.ask("/embed", inputs=item["text"], prompt_name=item["prompt_name"])
        near(rows, [item["normalized"]], NORMALISED)
    whole = np.array(served.items[0]["pooled"])
    cut = whole[:7] / np.linalg.norm(whole[:7])
    near(served.ask("/embed", inputs=served.items[0]["text"], dimensions=7), [cut], NORMALISED)


@of("embedding", "splade", "classifier", "reranker")
def test_inputs_end_where_the_reference_was_cut(served):
    info = served.engine.get("/info").json
    assert info["max_input_length"] == served.expected["max_length"]
    kind = served.expected["kind"]
    shown = info["model_type"]
    if kind in ("embedding", "splade"):
        pooling = served.expected.get("pooling", "splade")
        assert shown == {"embedding": {"pooling": pooling}}
        width = None if kind == "splade" else len(served.items[0]["pooled"])
        assert info["engine"]["embedding_dimension"] == width
    else:
        labels = served.expected["id2label"]
        assert shown == {kind: {"id2label": labels, "label2id": {name: int(n) for n, name in labels.items()}}}


@of("embedding", "splade", "classifier", "reranker")
def test_numbers_are_the_shortest_decimals_of_their_float32(served):
    path, body = {
        "embedding": ("/embed", {"inputs": served.items[0].get("text")}),
        "splade": ("/embed_sparse", {"inputs": served.items[0].get("text")}),
        "classifier": ("/predict", {"inputs": served.items[0].get("text")}),
        "reranker": ("/rerank", {"query": "a", "texts": ["b", "c"]}),
    }[served.expected["kind"]]
    numbers = re.findall(rb"-?\d+\.\d+(?:e-?\d+)?", served.engine.post(path, body).body)
    assert numbers
    for number in map(bytes.decode, numbers):
        assert float(number) == float(str(np.float32(number))), number


def check_sparse(given, item, size):
    rows = np.zeros((2, size))
    for row, words in enumerate((given, [{"index": i, "value": v} for i, v in item["sparse"]])):
        indices = [word["index"] for word in words]
        assert indices == sorted(set(indices))
        rows[row, indices] = [word["value"] for word in words]
    near(rows[0], rows[1], VALUES)
    assert all(word["value"] > 0 for word in given)


@of("splade")
def test_sparse_vectors_alone_and_shuffled(served):
    size = served.engine.get("/info").json["engine"]["vocab_size"]
    for item in served.items:
        [given] = served.ask("/embed_sparse", inputs=item["text"])
        check_sparse(given, item, size)
    items = served.shuffled() * 2
    inputs = [item["text"] if place % 2 else item["token_ids"] for place, item in enumerate(items)]
    for given, item in zip(served.ask("/embed_sparse", inputs=inputs), items, strict=True):
        check_sparse(given, item, size)


@of("splade")
def test_sparse_vectors_with_their_zeros(served):
    text = served.items[0]["text"]
    size = served.engine.get("/info").json["engine"]["vocab_size"]
    [row] = served.ask("/embed", inputs=text, normalize=False)
    expected = np.zeros(size)
    expected[[index for index, _ in served.items[0]["sparse"]]] = [v for _, v in served.items[0]["sparse"]]
    near(row, expected, VALUES)
    assert served.ask("/embed", inputs=[text], normalize=False, dimensions=100) == [row[:100]]


@of("classifier", "reranker")
def test_logits_and_scores_of_each_input_alone(served):
    for item in served.items:
        raw = served.ask("/predict", inputs=texts_of(item), raw_scores=True)
        near(logits_of(raw, served.expected), item["logits"], VALUES)
        scores = served.ask("/predict", inputs=texts_of(item))
        near(logits_of(scores, served.expected), item["scores"], SCORES)


@of("classifier", "reranker")
def test_logits_and_scores_of_a_shuffled_batch(served):
    items = served.shuffled() * 2
    inputs = [texts_of(item) for item in items]
    for key, raw, tolerance in (("logits", True, VALUES), ("scores", False, SCORES)):
        rows = served.ask("/predict", inputs=inputs, raw_scores=raw)
        for row, item in zip(rows, items, strict=True):
            near(logits_of(row, served.expected), item[key], tolerance)


@of("reranker")
def test_ranks(served):
    for item in served.items:
        query, text = item["pair"]
        [rank] = served.ask("/rerank", query=query, texts=[text], raw_scores=True)
        near(rank["score"], item["logits"][0], VALUES)
    texts = [item["pair"][1] for item in served.items]
    query = served.items[0]["pair"][0]
    alone = [served.ask("/rerank", query=query, texts=[text])[0]["score"] for text in texts]
    ranks = served.ask("/rerank", query=query, texts=texts, return_text=True)
    near([rank["score"] for rank in ranks], sorted(alone, reverse=True), 1e-6)
    assert sorted(rank["index"] for rank in ranks) == list(range(len(texts)))
    assert all(rank["text"] == texts[rank["index"]] for rank in ranks)
    for rank in ranks:
        near(rank["score"], alone[rank["index"]], 1e-6)
