"""Clients of other projects, as they are published, against real engines."""

import asyncio
import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import openai
import pytest

ROOT = Path(__file__).parents[3]
CLIENTS = ROOT / "tests" / "clients"
OTHERS = ROOT / ".venv-clients" / "bin" / "python"
KEY = "s3cret"


@pytest.fixture(scope="module")
def others():
    """The interpreter of the environment in which other projects' clients are installed."""
    if not OTHERS.exists():
        pytest.skip("no .venv-clients: `make .venv-clients/.synced` makes it")
    return OTHERS


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a client as a program of its own, far from the settings of whoever runs the tests."""
    home = tmp_path_factory.mktemp("home")

    def with_arguments(python, script, *arguments, given, **env):
        quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "LANGSMITH_TRACING": "false"}
        kept = {"HOME": str(home), "PATH": os.environ["PATH"]}
        done = subprocess.run(
            [python, CLIENTS / script, *arguments],
            input=json.dumps(given),
            env=kept | quiet | env,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return with_arguments


class Engines:
    """Started together, waited for one by one."""

    def __init__(self, launch, tiny_folder, minilm_arguments):
        def tiny(name, *more, **named):
            return launch("--model-id", str(tiny_folder(name)), *more, **named)

        self._started = {
            "minilm": launch(*minilm_arguments, "--api-key", KEY, "--served-model-name", "mini"),
            "narrow": tiny("bert-mean", "--max-concurrent-requests", "2", "--max-client-batch-size", "2"),
            "similarity": tiny("bert-mean", env={"TASK": "sentence-similarity"}),
            "classifier": tiny("roberta-classifier", "--api-key", KEY),
            "reranker": tiny("bert-reranker", "--api-key", KEY),
            "splade": tiny("bert-splade", "--api-key", KEY),
        }

    def __getitem__(self, name):
        self._started[name].wait_for("Ready", 60)
        return self._started[name]

    def url(self, name):
        return f"http://127.0.0.1:{self[name].port}"


@pytest.fixture(scope="module")
def engines(launch, tiny_folder, minilm_arguments, golden):
    return Engines(launch, tiny_folder, minilm_arguments)


@pytest.fixture(scope="module")
def items(golden):
    """Texts that every client passes on as they are: some strip them, or turn line breaks into spaces."""
    return [
        item for item in golden["items"] if item["text"].strip() == item["text"] > "" and "\n" not in item["text"]
    ]


def agree(vectors, items):
    assert len(vectors) == len(items)
    assert np.abs(np.array(vectors) - [item["vec"] for item in items]).max() <= 1e-3


@pytest.fixture
def client(engines):
    with openai.OpenAI(base_url=engines.url("minilm") + "/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_openai_vectors(client, items):
    texts = [item["text"] for item in items]
    answer = client.embeddings.create(model="mini", input=texts)  # asks for base64 and unpacks it
    agree([one.embedding for one in answer.data], items)
    assert [one.index for one in answer.data] == list(range(len(items)))
    assert answer.model == "mini"
    tokens = sum(len(item["token_ids"]) for item in items)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)
    floats = client.embeddings.create(model="mini", input=texts, encoding_format="float")
    assert np.array_equal(
        np.array([one.embedding for one in floats.data], dtype=np.float32),
        np.array([one.embedding for one in answer.data], dtype=np.float32),
    )
    raw = client.embeddings.create(model="mini", input=texts[0], encoding_format="base64").data[0].embedding
    assert isinstance(raw, str)
    agree([np.frombuffer(base64.b64decode(raw), "<f4")], items[:1])


def test_openai_ids(client, items):
    ids = [item["token_ids"] for item in items]
    agree([one.embedding for one in client.embeddings.create(model="mini", input=ids).data], items)
    agree([client.embeddings.create(model="mini", input=ids[0]).data[0].embedding], items[:1])


def test_openai_dimensions(client, items):
    answer = client.embeddings.create(model="mini", input=items[0]["text"], dimensions=64, user="me")
    want = np.array(items[0]["vec"][:64])
    assert np.abs(answer.data[0].embedding - want / np.linalg.norm(want)).max() <= 1e-3


def test_openai_models(client):
    assert [model.id for model in client.models.list()] == ["mini"]
    assert client.models.retrieve("mini").owned_by == "tei-engine"
    assert client.models.retrieve("sentence-transformers/all-MiniLM-L6-v2").id == "mini"
    with pytest.raises(openai.NotFoundError, match="model gpt-4 is not served here"):
        client.models.retrieve("gpt-4")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input": ""}, openai.BadRequestError, "`inputs` cannot be empty"),
        ({"input": ["a"] * 33}, openai.UnprocessableEntityError, "batch size 33 > maximum allowed batch size 32"),
        ({"input": "a", "dimensions": 385}, openai.UnprocessableEntityError, "smaller than the maximum"),
        ({"input": [[1, 999_999]]}, openai.UnprocessableEntityError, "token id 999999 is out of range"),
        ({"input": 7}, openai.UnprocessableEntityError, "did not match"),
    ],
)
def test_openai_errors(client, arguments, error, message):
    with pytest.raises(error) as caught:
        client.embeddings.create(model="mini", **arguments)
    assert message in str(caught.value.body)  # plain text does not get into the exception's own message


def test_openai_with_a_wrong_key(client):
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="other").embeddings.create(model="mini", input="a")


async def test_openai_with_many_at_once(engines, items):
    async with openai.AsyncOpenAI(base_url=engines.url("minilm") + "/v1", api_key=KEY, max_retries=0) as client:
        asked = (client.embeddings.create(model="mini", input=item["text"]) for item in items)
        answers = await asyncio.gather(*asked)
    agree([answer.data[0].embedding for answer in answers], items)


async def test_openai_with_too_many_at_once(engines):
    url = engines.url("narrow") + "/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        asked = (client.embeddings.create(model="any", input=["river " * 50] * 2) for _ in range(50))
        answers = await asyncio.gather(*asked, return_exceptions=True)
    refused = [one for one in answers if isinstance(one, openai.RateLimitError)]
    assert refused
    assert len(refused) < len(answers)
    assert refused[0].response.headers["retry-after"] == "1"
    assert refused[0].body["message"] == "Model is overloaded"


def test_langchain(engines, run, others, items):
    texts = [item["text"] for item in items]
    key = {"HUGGINGFACEHUB_API_TOKEN": KEY}
    answers = run(others, "langchain_client.py", engines.url("minilm"), given=texts, **key)
    for name in ("documents", "async documents"):
        agree(answers[name], items)
    for name in ("query", "async query"):
        agree([answers[name]], items[:1])


def test_llama_index(engines, run, others, items):
    texts = [item["text"] for item in items]
    answers = run(others, "llama_index_client.py", engines.url("minilm"), KEY, given=texts)
    for name in ("documents", "async documents"):
        agree(answers[name], items)
    for name in ("document", "query", "async query"):
        agree([answers[name]], items[:1])


@pytest.fixture(scope="module", params=["1", "2"])
def hub_client(request, run):
    """`InferenceClient` of the hub's library, by its major version."""
    python = Path(sys.executable) if request.param == "2" else request.getfixturevalue("others")

    def call(url, *calls):
        answer = run(python, "hub_client.py", url, KEY, given=calls)
        assert answer["version"].split(".")[0] == request.param
        return answer["answers"]

    return call


def test_hub_client_embeds(engines, hub_client, items):
    text = items[0]["text"]
    options = {"normalize": True, "truncate": True, "truncation_direction": "left", "dimensions": 64}
    one, many, cut, missing, empty = hub_client(
        engines.url("minilm"),
        ("feature_extraction", {"text": text}),
        ("feature_extraction", {"text": [item["text"] for item in items]}),
        ("feature_extraction", {"text": text, **options}),
        ("feature_extraction", {"text": text, "prompt_name": "query"}),
        ("feature_extraction", {"text": ""}),
    )
    agree(one["rows"], items[:1])
    agree(many["rows"], items)
    want = np.array(items[0]["vec"][:64])
    assert np.abs(cut["rows"] - want / np.linalg.norm(want)).max() <= 1e-3
    assert missing["status"] == 422
    assert "no prompts were found" in missing["message"]
    assert empty["status"] == 400
    assert "`inputs` cannot be empty" in empty["message"]


def test_hub_client_compares_sentences(engines, hub_client):
    source, others = "a river", ["a river", "a frozen river", "bananas"]
    [cosines] = hub_client(
        engines.url("similarity"), ("sentence_similarity", {"sentence": source, "other_sentences": others})
    )
    rows = np.array(engines["similarity"].post("/embed", {"inputs": [source, *others]}).json)
    assert cosines == pytest.approx(list(rows[1:] @ rows[0]), abs=1e-5)


def test_hub_client_classifies(engines, hub_client, tiny_folder):
    expected = json.loads((tiny_folder("roberta-classifier") / "expected.json").read_text())
    item = expected["items"][0]
    [best] = hub_client(engines.url("classifier"), ("text_classification", {"text": item["text"], "top_k": 3}))
    place = int(np.argmax(item["scores"]))
    score = pytest.approx(item["scores"][place], abs=1e-5)
    assert best == {"label": expected["id2label"][str(place)], "score": score}


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    """What a user of another project compiles from the .proto file, in its own place."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    folder = tmp_path_factory.mktemp("stubs")
    source = ROOT / "src" / "tei_manager" / "grpc" / "proto"
    out = (f"--python_out={folder}", f"--grpc_python_out={folder}", f"-I{source}", "tei/v1/tei.proto")
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *out], check=True, timeout=60)
    return folder


@pytest.fixture(scope="module")
def grpc_client(run, engines, stubs):
    def call(name, *calls):
        target = f"127.0.0.1:{engines[name].grpc_port}"
        return run(Path(sys.executable), "grpc_client.py", str(stubs), target, KEY, given=calls)

    return call


def test_grpc_stubs_embed(grpc_client, items):
    requests = [{"inputs": item["text"], "truncate": True} for item in items]
    [info], one, many, [tokens], [text] = grpc_client(
        "minilm",
        ("Info", "Info", [{}]),
        ("Embed", "Embed", requests[:1]),
        ("Embed", "EmbedStream", requests),
        ("Tokenize", "Tokenize", [{"inputs": items[0]["text"], "add_special_tokens": True}]),
        ("Tokenize", "Decode", [{"ids": items[0]["token_ids"], "skip_special_tokens": True}]),
    )
    assert (info["version"], info["max_input_length"]) == ("1.9.3", 256)
    agree([answer["embeddings"] for answer in one], items[:1])
    agree([answer["embeddings"] for answer in many], items)
    assert [token["id"] for token in tokens["tokens"]] == items[0]["token_ids"]
    assert text["text"] == items[0]["text"].lower()


def test_grpc_stubs_score(grpc_client, tiny_folder):
    def items_of(name):
        return json.loads((tiny_folder(name) / "expected.json").read_text())["items"]

    item = items_of("bert-splade")[0]
    [[sparse]] = grpc_client("splade", ("Embed", "EmbedSparse", [{"inputs": item["text"]}]))
    words = [(one["index"], one["value"]) for one in sparse["sparse_embeddings"]]
    assert words == [(index, pytest.approx(value, abs=2e-5)) for index, value in item["sparse"]]

    item = items_of("roberta-classifier")[0]
    [[labels]] = grpc_client("classifier", ("Predict", "Predict", [{"inputs": item["text"]}]))
    scores = [one["score"] for one in labels["predictions"]]
    assert scores == pytest.approx(sorted(item["scores"], reverse=True), abs=1e-5)

    pairs = items_of("bert-reranker")[:2]
    query, texts = pairs[0]["pair"][0], [item["pair"][1] for item in pairs]
    [[ranks], [streamed]] = grpc_client(
        "reranker",
        ("Rerank", "Rerank", [{"query": query, "texts": texts}]),
        ("Rerank", "RerankStream", [{"query": query, "text": text} for text in texts]),
    )
    want = {place: pytest.approx(item["scores"][0], abs=1e-5) for place, item in enumerate(pairs)}
    for answer in (ranks, streamed):
        assert {rank.get("index", 0): rank["score"] for rank in answer["ranks"]} == want
