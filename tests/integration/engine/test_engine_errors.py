"""What callers hear when something is wrong: the whole table of errors, row by row, in every shape."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

ENGINES = {
    "embedding": ("bert-mean", "--max-client-batch-size", "4"),
    "splade": ("bert-splade", "--max-client-batch-size", "4"),
    "classifier": ("bert-classifier", "--max-client-batch-size", "4", "--max-batch-tokens", "64"),
    "reranker": ("bert-reranker", "--max-client-batch-size", "4"),
    "prompted": ("bert-reranker", "--default-prompt", "query: "),
    "strict": ("bert-mean", "--auto-truncate", "false"),
}


@pytest.fixture(scope="module")
def engines(launch, tiny_folder):
    started = {
        name: launch("--model-id", str(tiny_folder(folder)), *flags) for name, (folder, *flags) in ENGINES.items()
    }
    for engine in started.values():
        engine.wait_for("Ready")
    return started


IV, BE = "Input validation error: ", "Backend error: "
EMPTY = IV + "`inputs` cannot be empty"
UNKNOWN = (
    IV + "`default-prompt-name` is set to `nope` but it was not found in the Sentence Transformers prompts. "
    'Available prompts: ["query", "document"]'
)
NONE = (
    IV
    + "`default-prompt-name` is set to `nope` but no prompts were found in the Sentence Transformers configuration"
)
POSITIVE = IV + "`dimensions` should be positive"
SMALLER = IV + "`dimensions` should be smaller than the maximum embedding dimension."
DUAL = IV + "`prompt_name` cannot be set with dual inputs"
NOT_EMBEDDING = BE + "Model is not an embedding model"
NOT_SPLADE = BE + "Model is not an embedding model with SPLADE pooling"
NOT_CLASSIFIER = BE + "Model is not a classifier model"
NOT_RERANKER = BE + "model is not a re-ranker model"
UNNORMALISED = BE + "`normalize` is not available for SPLADE models"
MANY = "batch size 5 > maximum allowed batch size 4"
STATUS = {"Empty": 400, "Validation": 422, "Tokenizer": 422, "Backend": 424, "Overloaded": 429, "Unhealthy": 503}


def tokens(given):
    return f"{IV}`inputs` must have less than 64 tokens. Given: {given}"


def characters(given):
    return f"{IV}`inputs` must have less than 16000 characters. Given: {given}"


@dataclass
class Case:
    """One request that fails; its path says which shape the error has."""

    engine: str
    path: str
    body: dict[str, Any]
    kind: str
    message: str
    row: int | None = None

    @property
    def status(self):
        return STATUS[self.kind]

    @property
    def expected(self):
        """The error's body: other APIs' routes have one of their own."""
        if self.path.startswith(("/v1/", "/v2/", "/embeddings")):
            shown = {"message": self.message, "code": self.status, "type": self.kind}
        else:
            shown = {"error": self.message, "error_type": self.kind}
        return shown if self.row is None else shown | {"row": self.row}


LONG = "a " * 70
CASES = [
    Case("embedding", "/embed", {"inputs": ""}, "Empty", EMPTY),
    Case("embedding", "/", {"inputs": ""}, "Empty", EMPTY),
    Case("embedding", "/embed", {"inputs": []}, "Empty", EMPTY),
    Case("embedding", "/embed", {"inputs": [[]]}, "Empty", EMPTY, 0),
    Case("embedding", "/embed", {"inputs": ["a", [], ""]}, "Empty", EMPTY, 1),
    # what is seen without tokenising is told first
    Case("embedding", "/embed", {"inputs": ["a", LONG, ""], "truncate": False}, "Empty", EMPTY, 2),
    Case("embedding", "/embed_all", {"inputs": ["a", ""]}, "Empty", EMPTY, 1),
    Case("embedding", "/v1/embeddings", {"input": ""}, "Empty", EMPTY),
    Case("embedding", "/v1/embeddings", {"input": ["a", ""]}, "Empty", EMPTY, 1),
    Case("embedding", "/embeddings", {"input": []}, "Empty", EMPTY),
    Case("splade", "/embed_sparse", {"inputs": ["a", ""]}, "Empty", EMPTY, 1),
    Case("classifier", "/predict", {"inputs": ""}, "Empty", EMPTY),
    Case("classifier", "/predict", {"inputs": ["", ""]}, "Empty", EMPTY),
    Case("classifier", "/predict", {"inputs": [["a"], ["", ""], [""]]}, "Empty", EMPTY, 1),
    Case("reranker", "/rerank", {"query": "", "texts": ["a", ""]}, "Empty", EMPTY, 1),
    Case("reranker", "/v1/rerank", {"query": "", "documents": ["a", ""]}, "Empty", EMPTY, 1),
    Case("reranker", "/rerank", {"query": "a", "texts": []}, "Empty", "`texts` cannot be empty"),
    Case("embedding", "/rerank", {"query": "a", "texts": []}, "Empty", "`texts` cannot be empty"),
    Case("reranker", "/v2/rerank", {"query": "a", "documents": []}, "Empty", "`texts` cannot be empty"),
    Case("embedding", "/tokenize", {"inputs": []}, "Empty", "`inputs` cannot be empty"),
    Case("embedding", "/tokenize", {"inputs": ""}, "Empty", EMPTY),
    Case("embedding", "/tokenize", {"inputs": ["a", ""]}, "Empty", EMPTY, 1),
    Case("embedding", "/decode", {"ids": []}, "Empty", IV + "`input_ids` cannot be empty"),
    Case("embedding", "/decode", {"ids": [[5], []]}, "Empty", IV + "`input_ids` cannot be empty", 1),
    Case(
        "embedding",
        "/similarity",
        {"inputs": {"source_sentence": "a", "sentences": []}},
        "Empty",
        "`inputs.sentences` cannot be empty",
    ),
    Case("embedding", "/similarity", {"inputs": {"source_sentence": "", "sentences": ["a"]}}, "Empty", EMPTY),
    Case(
        "embedding", "/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b", ""]}}, "Empty", EMPTY, 1
    ),
    Case("embedding", "/embed", {"inputs": ["a"] * 5}, "Validation", MANY),
    Case("embedding", "/embed_all", {"inputs": ["a"] * 5}, "Validation", MANY),
    Case("embedding", "/v1/embeddings", {"input": ["a"] * 5}, "Validation", MANY),
    Case("splade", "/embed_sparse", {"inputs": ["a"] * 5}, "Validation", MANY),
    Case("classifier", "/predict", {"inputs": [["a"]] * 5}, "Validation", MANY),
    Case("reranker", "/rerank", {"query": "a", "texts": ["b"] * 5}, "Validation", MANY),
    Case("reranker", "/v2/rerank", {"query": "a", "documents": ["b"] * 5}, "Validation", MANY),
    Case(
        "embedding",
        "/similarity",
        {"inputs": {"source_sentence": "a", "sentences": ["b"] * 4}},
        "Validation",
        MANY,
    ),
    Case("embedding", "/tokenize", {"inputs": ["a"] * 5}, "Validation", MANY),
    Case("embedding", "/decode", {"ids": [[5]] * 5}, "Validation", MANY),
    Case("embedding", "/vertex", {"instances": [{"inputs": "a"}] * 5}, "Validation", MANY),
    Case("embedding", "/embed", {"inputs": LONG, "truncate": False}, "Validation", tokens(72)),
    Case("embedding", "/embed", {"inputs": [5] * 65, "truncate": False}, "Validation", tokens(65)),
    Case(
        "embedding", "/embed", {"inputs": ["a", LONG, LONG + "a"], "truncate": False}, "Validation", tokens(72), 1
    ),
    Case("strict", "/v1/embeddings", {"input": ["a", LONG]}, "Validation", tokens(72), 1),
    Case("strict", "/embed", {"inputs": LONG, "truncate": None}, "Validation", tokens(72)),
    Case("classifier", "/predict", {"inputs": ["a", LONG], "truncate": False}, "Validation", tokens(74)),
    Case("embedding", "/embed", {"inputs": "a" * 16001, "truncate": False}, "Validation", characters(16001)),
    Case("embedding", "/tokenize", {"inputs": ["é", "é" * 16001]}, "Validation", characters(16001), 1),
    Case("embedding", "/embed", {"inputs": "a", "dimensions": 0}, "Validation", POSITIVE),
    Case("embedding", "/embed", {"inputs": "a", "dimensions": 33}, "Validation", SMALLER),
    Case("embedding", "/v1/embeddings", {"input": "a", "dimensions": 0}, "Validation", POSITIVE),
    Case("embedding", "/v1/embeddings", {"input": ["a"], "dimensions": 33}, "Validation", SMALLER),
    Case("embedding", "/embed", {"inputs": "a", "prompt_name": "nope"}, "Validation", UNKNOWN),
    Case("embedding", "/tokenize", {"inputs": ["a"], "prompt_name": "nope"}, "Validation", UNKNOWN),
    Case("classifier", "/tokenize", {"inputs": "a", "prompt_name": "nope"}, "Validation", NONE),
    Case("prompted", "/rerank", {"query": "a", "texts": ["b"]}, "Validation", DUAL, 0),
    Case("prompted", "/v1/rerank", {"query": "a", "documents": ["b"]}, "Validation", DUAL, 0),
    Case("prompted", "/predict", {"inputs": ["a", "b"]}, "Validation", DUAL),
    Case("prompted", "/predict", {"inputs": [["a"], ["a", "b"]]}, "Validation", DUAL, 1),
    Case("embedding", "/embed", {"inputs": [520]}, "Validation", IV + "token id 520 is out of range"),
    Case("embedding", "/embed", {"inputs": [2**32 - 1]}, "Validation", IV + "token id 4294967295 is out of range"),
    Case("embedding", "/embed", {"inputs": ["a", [5, 520]]}, "Validation", IV + "token id 520 is out of range", 1),
    Case(
        "embedding",
        "/embed",
        {"inputs": [520], "prompt_name": "query"},
        "Validation",
        IV + "token id 520 is out of range",
    ),
    Case("classifier", "/embed", {"inputs": "a"}, "Backend", NOT_EMBEDDING),
    Case("classifier", "/embed_all", {"inputs": "a"}, "Backend", NOT_EMBEDDING),
    Case("reranker", "/embed", {"inputs": ["a"]}, "Backend", NOT_EMBEDDING),
    Case("classifier", "/v1/embeddings", {"input": "a"}, "Backend", NOT_EMBEDDING),
    Case(
        "reranker",
        "/similarity",
        {"inputs": {"source_sentence": "a", "sentences": ["b"]}},
        "Backend",
        NOT_EMBEDDING,
    ),
    Case("classifier", "/embed_sparse", {"inputs": "a"}, "Backend", NOT_SPLADE),
    Case("embedding", "/embed_sparse", {"inputs": "a"}, "Backend", NOT_SPLADE),
    Case("embedding", "/predict", {"inputs": "a"}, "Backend", NOT_CLASSIFIER),
    Case("splade", "/predict", {"inputs": ["a", "b"]}, "Backend", NOT_CLASSIFIER),
    Case("embedding", "/rerank", {"query": "a", "texts": ["b"]}, "Backend", NOT_RERANKER),
    Case("classifier", "/rerank", {"query": "a", "texts": ["b"]}, "Backend", NOT_RERANKER),
    Case("classifier", "/v1/rerank", {"query": "a", "documents": ["b"]}, "Backend", NOT_RERANKER),
    Case("embedding", "/v2/rerank", {"query": "a", "documents": ["b"]}, "Backend", NOT_RERANKER),
    Case(
        "splade", "/embed_all", {"inputs": "a"}, "Backend", BE + "`embed_all` is not available for SPLADE models"
    ),
    Case("splade", "/embed", {"inputs": "a"}, "Backend", UNNORMALISED),
    Case("splade", "/v1/embeddings", {"input": "a"}, "Backend", UNNORMALISED),
    Case(
        "splade", "/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}, "Backend", UNNORMALISED
    ),
    Case(
        "embedding",
        "/vertex",
        {"instances": [{"inputs": "a"}, {"inputs": 5}]},
        "Validation",
        "Failed to deserialize the JSON body into the target type: "
        "inputs: data did not match any variant of untagged enum Input",
        1,
    ),
    Case(
        "embedding",
        "/vertex",
        {"instances": ["a"]},
        "Validation",
        "Failed to deserialize the JSON body into the target type: expected an object",
        0,
    ),
    Case("embedding", "/vertex", {"instances": [{"inputs": "a"}, {"inputs": ["a", ""]}]}, "Empty", EMPTY, 1),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.engine}{case.path}-{str(case.body)[:40]}")
def test_the_sentence_the_status_and_the_shape(engines, case):
    reply = engines[case.engine].post(case.path, case.body)
    assert (reply.status, reply.json) == (case.status, case.expected)
    assert reply.headers["content-type"] == "application/json"
    assert "retry-after" not in reply.headers


def test_the_limits_themselves_are_allowed(engines):
    engine = engines["embedding"]
    assert engine.post("/embed", {"inputs": [5] * 64, "truncate": False}).status == 200
    assert engine.post("/embed", {"inputs": "a " * 62, "truncate": False}).status == 200
    assert engine.post("/embed", {"inputs": "é" * 16000, "truncate": False}).status == 200
    assert engine.post("/embed", {"inputs": ["a"] * 4, "dimensions": 32}).status == 200
    assert engine.post("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"] * 3}}).status == 200
    assert engine.post("/embed", {"inputs": [519]}).status == 200
    assert engines["classifier"].post("/predict", {"inputs": ["", "a"]}).status == 200


OBJECT = [{}, ["a"], "a", None, 5]
INPUTS = [None, 5, ["a", 5], [True], [1.0], [-1], [2**32], ["a", None], [[["a"]]], {"a": 1}]
EMBED = [
    {"truncate": "yes"},
    {"truncate": 1},
    {"normalize": None},
    {"normalize": "true"},
    {"dimensions": -1},
    {"dimensions": 1.5},
    {"dimensions": 2**32},
    {"dimensions": True},
    {"truncation_direction": "up"},
    {"truncation_direction": "LEFT"},
    {"truncation_direction": None},
    {"prompt_name": 5},
]
RERANK = {"query": "a", "documents": ["b"]}
OTHER_SHAPES = [
    *(("embedding", "/embed", body) for body in OBJECT),
    *(("embedding", "/embed", {"inputs": value}) for value in INPUTS),
    *(("embedding", "/embed", {"inputs": "a"} | more) for more in EMBED),
    *(("splade", "/embed_sparse", {"inputs": value}) for value in INPUTS),
    *(("embedding", "/v1/embeddings", {"input": value}) for value in INPUTS),
    *(("embedding", "/v1/embeddings", {"input": "a", "encoding_format": value}) for value in (None, "hex", 5)),
    ("embedding", "/v1/embeddings", {"input": "a", "model": 5}),
    ("embedding", "/v1/embeddings", {"inputs": "a"}),
    *(
        ("classifier", "/predict", {"inputs": value})
        for value in ([], [[]], ["a", "b", "c"], [["a", "b", "c"]], [["a"], []], [["a"], "b"], [1], None, 5)
    ),
    ("classifier", "/predict", {"inputs": "a", "raw_scores": None}),
    *(("reranker", "/rerank", {"query": "a", "texts": value}) for value in (None, "b", [1], [None])),
    *(("reranker", "/rerank", {"query": value, "texts": ["b"]}) for value in (None, 5, ["a"])),
    ("reranker", "/rerank", {"texts": ["b"]}),
    ("reranker", "/rerank", {"query": "a", "texts": ["b"], "return_text": None}),
    *(("reranker", "/v1/rerank", RERANK | {"top_n": value}) for value in (0, -1, 1.0, "1", True, None)),
    *(
        ("reranker", "/v2/rerank", RERANK | {"documents": value})
        for value in (None, "b", [1], [{}], [{"text": 1}])
    ),
    ("reranker", "/v1/rerank", RERANK | {"return_documents": None}),
    ("reranker", "/v1/rerank", RERANK | {"model": 5}),
    *(("embedding", "/similarity", {"inputs": value}) for value in (None, "a", ["a"], {}, {"sentences": ["a"]})),
    ("embedding", "/similarity", {"inputs": {"source_sentence": "a", "sentences": "b"}}),
    ("embedding", "/similarity", {"inputs": {"source_sentence": None, "sentences": ["b"]}}),
    ("embedding", "/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": "b"}),
    ("embedding", "/tokenize", {"inputs": [5]}),
    ("embedding", "/tokenize", {"inputs": "a", "add_special_tokens": None}),
    *(("embedding", "/decode", {"ids": value}) for value in (None, 5, ["a"], [1, [2]], [[1], 2], [-1], [1.5])),
    *(("embedding", "/vertex", body) for body in ({}, {"instances": None}, {"instances": {"inputs": "a"}})),
]


@pytest.mark.parametrize(("engine", "path", "body"), OTHER_SHAPES, ids=lambda value: str(value)[:60])
def test_json_of_another_shape(engines, engine, path, body):
    reply = engines[engine].request("POST", path, json.dumps(body).encode())
    assert reply.status == 422
    assert reply.headers["content-type"].startswith("text/plain")
    assert reply.body.startswith(b"Failed to deserialize the JSON body into the target type: ")


NOT_JSON = [
    b"",
    b"{",
    b'{"inputs": "a"} x',
    b'{"inputs": NaN}',
    b'{"inputs": [1], "dimensions": Infinity}',
    b'{"inputs": "\xff"}',
    b'{"inputs": "\\ud800"}',
    b"{'inputs': 'a'}",
    b'{"inputs": ' + b"[" * 200 + b"]" * 200 + b"}",
]


@pytest.mark.parametrize("body", NOT_JSON, ids=lambda body: repr(body[:24]))
@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings", "/predict", "/similarity", "/tokenize"])
def test_bodies_that_are_not_json(engines, path, body):
    reply = engines["embedding"].post(path, body)
    assert (reply.status, reply.body.startswith(b"Failed to parse the request body as JSON: ")) == (400, True)
    assert reply.headers["content-type"].startswith("text/plain")


def test_null_stands_where_it_may(engines):
    engine = engines["embedding"]
    nothing = {"truncate": None, "prompt_name": None, "dimensions": None}
    assert engine.post("/embed", {"inputs": "a"} | nothing).status == 200
    assert (
        engine.post("/v1/embeddings", {"input": "a", "model": None, "user": None, "dimensions": None}).status
        == 200
    )
    body = {"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": None}
    assert engine.post("/similarity", body).status == 200
    assert engine.post("/similarity", body | {"parameters": {"truncate": None, "prompt_name": None}}).status == 200


def test_keys_that_mean_nothing_are_ignored(engines):
    assert engines["embedding"].post("/embed", {"inputs": "a", "x": [{}]}).status == 200
    assert engines["embedding"].post("/v1/embeddings", {"input": "a", "x": 1}).status == 200
    assert engines["classifier"].post("/predict", {"inputs": "a", "prompt_name": 5}).status == 200
    assert engines["reranker"].post("/rerank", {"query": "a", "texts": ["b"], "top_n": 0}).status == 200
