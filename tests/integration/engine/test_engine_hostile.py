"""Weights that are no numbers, texts that take long, and being told to stop in the middle of it all."""

import base64
import contextlib
import http.client
import json
import socket
import threading
import time

import grpc
import numpy as np
import psutil
import pytest
import tokenizers
from tests.integration.engine.fuzzing import assert_well, damaged

from tei_engine.tokenization.tokenizer import Piece, Tokenizer
from tei_manager.grpc.proto.tei.v1 import tei_pb2, tei_pb2_grpc

BAD, GOOD = "water", "the music of the forest"
VALUES = {"nan": np.nan, "inf": np.inf, "nearly inf": 3e38}


def ids_of(folder, text):
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def poison(launch, tiny_folder, tmp_path_factory):
    """Start a model whose vectors of the words of BAD, and of nothing else, are `value`."""

    def start(name, value):
        source = tiny_folder(name)
        rows = ids_of(source, BAD)
        assert not set(rows) & set(ids_of(source, f"{GOOD} warm up"))

        def spoil(words):
            words[rows] = value

        folder = damaged(source, tmp_path_factory.mktemp("poisoned") / name, {"word_embeddings.weight": spoil})
        process = launch("--model-id", str(folder))
        process.wait_for("Ready")
        return process

    return start


def numbers_in(reply):
    """Every number of an answer, however it is written."""
    if reply.headers["content-type"] == "application/octet-stream":
        return list(np.frombuffer(reply.body, "<f4"))
    found = []

    def walk(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for one in value:
                walk(one)
        if isinstance(value, float):
            found.append(value)

    # Python reads NaN and Infinity as they stand, which no other JSON reader does
    whole = json.loads(reply.body, parse_constant=lambda name: pytest.fail(f"{name} in {reply.body[:200]}"))
    walk(whole)
    if isinstance(whole, dict) and whole.get("object") == "list":
        packed = [row["embedding"] for row in whole["data"] if isinstance(row["embedding"], str)]
        found += [number for row in packed for number in np.frombuffer(base64.b64decode(row), "<f4")]
    return found


def assert_no_nan_leaves(engine, asked, message, *, overflows):
    """`asked`: (path, body with BAD in it, headers). Each is refused with `message`, or its numbers are finite."""
    for path, body, headers in asked:
        reply = engine.post(path, body, **headers)
        assert np.isfinite(numbers_in(reply)).all()
        if reply.status != 200:
            assert message in (reply.json.get("error") or reply.json["message"])
        assert reply.status == (200 if overflows else 424), (path, reply.body)


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_no_nan_leaves_an_embedding_model(poison, tiny_folder, value):
    engine = poison("bert-mean", value)
    # so large a number is lost in the first norm, whose scale it sets: what comes out is wrong but finite
    overflows = value == VALUES["nearly inf"]
    asked = [
        ("/embed", {"inputs": BAD}, {}),
        ("/embed", {"inputs": BAD, "normalize": False, "dimensions": 7}, {}),
        ("/embed", {"inputs": [GOOD, BAD]}, {"accept": "application/octet-stream"}),
        ("/embed_all", {"inputs": [GOOD, BAD]}, {}),
        ("/similarity", {"inputs": {"source_sentence": GOOD, "sentences": [GOOD, BAD]}}, {}),
        ("/v1/embeddings", {"input": [BAD, GOOD]}, {}),
        ("/v1/embeddings", {"input": [BAD, GOOD], "encoding_format": "base64"}, {}),
    ]
    assert_no_nan_leaves(engine, asked, "embedding is NaN", overflows=overflows)
    with grpc.insecure_channel(f"127.0.0.1:{engine.grpc_port}") as channel:
        stub = tei_pb2_grpc.EmbedStub(channel)
        calls = (
            lambda: [stub.Embed(tei_pb2.EmbedRequest(inputs=BAD), timeout=20)],
            lambda: stub.EmbedAll(tei_pb2.EmbedAllRequest(inputs=BAD), timeout=20).token_embeddings,
            lambda: list(stub.EmbedStream(iter([tei_pb2.EmbedRequest(inputs=BAD)]), timeout=20)),
        )
        for call in calls:
            assert_grpc_refused_or_finite(call, "embedding is NaN", overflows=overflows)
    # who came together with them, or comes after them, is served
    item = json.loads((tiny_folder("bert-mean") / "expected.json").read_text())["items"][0]
    replies = in_parallel(
        lambda number: engine.post("/embed", {"inputs": BAD if number % 2 else item["text"]}), count=24
    )
    for number, reply in enumerate(replies):
        if number % 2 == 0:
            assert reply.json[0] == pytest.approx(item["normalized"], abs=5e-6)
        else:
            assert reply.status == (200 if overflows else 424)
    assert_well(engine, item)


def assert_grpc_refused_or_finite(call, message, *, overflows):
    if overflows:
        assert all(np.isfinite(one.embeddings).all() for one in call())
        return
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert (caught.value.code().name, message in caught.value.details()) == ("FAILED_PRECONDITION", True)


def in_parallel(ask, count):
    replies = [None] * count
    threads = [
        threading.Thread(target=lambda number=number: replies.__setitem__(number, ask(number)))
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return replies


@pytest.mark.parametrize("name", ["bert-classifier", "bert-reranker"])
def test_no_nan_leaves_a_model_with_scores(poison, name):
    engine = poison(name, np.nan)
    asked = [
        ("/predict", {"inputs": BAD}, {}),
        ("/predict", {"inputs": [[GOOD], [GOOD, BAD]], "raw_scores": True}, {}),
    ]
    stub_name, requests = "PredictStub", [("Predict", tei_pb2.PredictRequest(inputs=BAD))]
    if name == "bert-reranker":
        asked += [
            ("/rerank", {"query": GOOD, "texts": [GOOD, BAD]}, {}),
            ("/rerank", {"query": BAD, "texts": [GOOD], "raw_scores": True}, {}),
            ("/v1/rerank", {"query": GOOD, "documents": [GOOD, BAD], "top_n": 1}, {}),
        ]
        stub_name, requests = "RerankStub", [("Rerank", tei_pb2.RerankRequest(query=GOOD, texts=[GOOD, BAD]))]
    assert_no_nan_leaves(engine, asked, "score is NaN", overflows=False)
    with grpc.insecure_channel(f"127.0.0.1:{engine.grpc_port}") as channel:
        for method, request in requests:
            with pytest.raises(grpc.RpcError) as caught:
                getattr(getattr(tei_pb2_grpc, stub_name)(channel), method)(request, timeout=20)
            assert (caught.value.code().name, caught.value.details()) == ("FAILED_PRECONDITION", "score is NaN")
    assert engine.post("/predict", {"inputs": GOOD}).status == 200
    assert_well(engine)


def overflowing(weights):
    """Edits of a DistilBERT after which, in its last layer, one unit of some tokens becomes infinite."""

    def steep(values):
        values[0], values[0, 1] = 0.0, 1e4

    def late(values):
        values[0] = -2e4

    def large(values):
        values[:, 0] = 1e38

    last = "transformer.layer.2.ffn"
    return {f"{last}.lin1.weight": steep, f"{last}.lin1.bias": late, f"{last}.lin2.weight": large}


def test_splade_does_not_forget_a_token_that_is_no_number(launch, tiny_folder, tmp_path):
    """A maximum over tokens drops NaN. Serving the same weights as token vectors says which texts have one."""
    folder = damaged(tiny_folder("distilbert-splade"), tmp_path / "overflowing", overflowing("last"))
    sparse = launch("--model-id", str(folder), "--pooling", "splade")
    tokens = launch("--model-id", str(folder), "--pooling", "cls")
    sparse.wait_for("Ready")
    tokens.wait_for("Ready")
    seen = set()
    for first in range(30, 230):
        body = {"inputs": [2, first, first + 1, first + 40, 3]}
        reply = sparse.post("/embed_sparse", body)
        assert reply.status == tokens.post("/embed_all", body).status, body
        assert np.isfinite(numbers_in(reply)).all()
        seen.add(reply.status)
    assert seen == {200, 424}


class Ticker(threading.Thread):
    """A thread that wants to run every millisecond, and notes for how long it could not."""

    def __init__(self):
        super().__init__(daemon=True)
        self.longest = 0.0
        self._done = threading.Event()

    def run(self):
        last = time.perf_counter()
        while not self._done.wait(0.001):
            now = time.perf_counter()
            self.longest = max(self.longest, now - last)
            last = now

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self.join()


SLOW_TEXTS = {
    "letters that become eighteen": ("xlm-roberta-cls", "\ufdfa" * 20_000),
    "many words": ("bert-mean", "word " * 100_000),
}


@pytest.mark.parametrize(("name", "text"), SLOW_TEXTS.values(), ids=SLOW_TEXTS)
def test_a_long_text_does_not_stop_the_other_threads(tiny_folder, name, text):
    """Not while it is cut, nor while ids become a text: the event loop must have its turns."""
    tokenizer = Tokenizer(tiny_folder(name))
    longest = len(text)  # so that it is cut at the tokens, not at the characters

    def cut():
        [ids] = tokenizer.encode([Piece(text=text, truncate=True)], max_length=longest // 4, vocab_size=600)
        assert len(ids) == longest // 4

    works = (cut, lambda: tokenizer.decode([5] * 400_000, skip_special_tokens=True, max_length=longest))
    for work in works:
        shares = []
        for _ in range(3):  # a busy machine may take turns away, too
            with Ticker() as ticker:
                began = time.perf_counter()
                work()
                took = time.perf_counter() - began
            shares.append(ticker.longest / took)
        assert min(shares) < 0.6, shares


def test_the_others_are_served_while_long_texts_are_read(launch, tiny_folder):
    engine = launch("--model-id", str(tiny_folder("xlm-roberta-cls")))
    engine.wait_for("Ready")
    long = json.dumps({"inputs": ["\ufdfa" * 20_000] * 4}).encode()
    thread = threading.Thread(target=lambda: engine.post("/embed", long))
    thread.start()
    served = 0
    while thread.is_alive():
        assert engine.get("/health").status == 200
        served += 1
    assert served
    assert_well(engine)


TEXTS = ["short", "a text of some words " * 10]


def load_http(engine, answered, stopped):
    """Ask until the listener is gone; the statuses that came."""
    statuses = []
    body = json.dumps({"inputs": TEXTS}).encode()
    while not stopped.is_set():
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", engine.port, timeout=30)) as connection:
            try:
                while True:
                    connection.request("POST", "/embed", body, {"content-type": "application/json"})
                    reply = connection.getresponse()
                    reply.read()
                    statuses.append(reply.status)
                    answered.release()
            except (ConnectionError, http.client.HTTPException):
                if engine.process.poll() is not None or stopped.wait(0.01):
                    return statuses
    return statuses


def load_grpc(engine, answered, stopped):
    """A stream without end; the code with which it ended."""
    request = tei_pb2.EmbedRequest(inputs=TEXTS[1], truncate=True)
    with grpc.insecure_channel(f"127.0.0.1:{engine.grpc_port}") as channel:
        answers = tei_pb2_grpc.EmbedStub(channel).EmbedStream(iter(lambda: request, None), timeout=300)
        try:
            for _ in answers:
                answered.release()
                if stopped.is_set():
                    break
        except grpc.RpcError as error:
            return [error.code().name]
    return []


def run_load(engine, answers):
    """Clients of both ports; returns when each had so many answers, with what collects their results."""
    stopped, results = threading.Event(), {}
    threads, counters = [], []
    for number, load in enumerate((load_http, load_http, load_http, load_grpc)):
        counters.append(threading.Semaphore(0))
        threads.append(
            threading.Thread(
                target=lambda number=number, load=load, counter=counters[-1]: results.__setitem__(
                    number, load(engine, counter, stopped)
                )
            )
        )
        threads[-1].start()
    for counter in counters:
        for _ in range(answers):
            assert counter.acquire(timeout=30)

    def collect():
        stopped.set()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        return results

    return collect


def assert_gone(engine, children):
    """No process, no listener, no word on stderr."""
    assert not [child for child in children if child.is_running()]
    for port in (engine.port, engine.grpc_port):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert "Traceback" not in engine.stderr()


@pytest.fixture(params=["tiny", "minilm"])
def arguments(request, tiny_folder):
    if request.param == "tiny":
        return ("--model-id", str(tiny_folder("bert-mean")))
    request.getfixturevalue("golden")  # skips where the model's package is absent
    return request.getfixturevalue("minilm_arguments")


@pytest.mark.parametrize("line", ["Starting HTTP server", "Starting model backend", "Warming up model", "Ready"])
def test_being_told_to_stop_while_starting(launch, arguments, line):
    engine = launch(*arguments)
    engine.wait_for(line)
    children = psutil.Process(engine.process.pid).children(recursive=True)
    began = time.monotonic()
    assert engine.stop() == 0
    assert time.monotonic() - began < 10
    assert_gone(engine, children)


@pytest.mark.parametrize("answers", [1, 20])
def test_being_told_to_stop_under_load(launch, arguments, answers):
    engine = launch(*arguments, env={"GRPC_MAX_PARALLEL_STREAM_REQUESTS": "16"})
    engine.wait_for("Ready")
    collect = run_load(engine, answers)
    children = psutil.Process(engine.process.pid).children(recursive=True)
    began = time.monotonic()
    assert engine.stop(timeout=40) == 0
    took = time.monotonic() - began
    results = collect()
    assert took < 20
    assert_gone(engine, children)
    for number in range(3):
        assert set(results[number]) <= {200, 503}
        assert 200 in results[number]
    assert results[3] in ([], ["UNAVAILABLE"], ["CANCELLED"]), results[3]
    assert not [line for line in engine.lines if line["level"] == "ERROR"]


def test_being_told_to_stop_twice_under_load_ends_it_at_once(launch, arguments):
    engine = launch(*arguments, "--drain-timeout", "60", env={"GRPC_MAX_PARALLEL_STREAM_REQUESTS": "16"})
    engine.wait_for("Ready")
    collect = run_load(engine, 3)
    with socket.create_connection(("127.0.0.1", engine.port), timeout=10) as connection:
        connection.sendall(
            b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n"
        )
        engine.get("/health")  # the bytes before it have been read: a request that never comes is waited for
        engine.process.terminate()
        engine.wait_for("Shutting down")
        began = time.monotonic()
        assert engine.stop() == 0
        assert time.monotonic() - began < 5
    collect()
