"""The testing engine as real processes: what its documentation says of each switch."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tei_manager.grpc.proto.tei.v1 import tei_pb2 as pb
from tei_manager.grpc.proto.tei.v1 import tei_pb2_grpc as stubs
from tei_manager.testing import engine as rules

PROGRAM = [sys.executable, "-m", "tei_manager.testing.engine"]
LOCAL = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind((LOCAL, 0))
        return int(sock.getsockname()[1])


def environment(extra: dict[str, str]) -> dict[str, str]:
    foreign = ("TESTING_ENGINE_", "PORT", "API_KEY", "LOG_LEVEL", "CUDA_VISIBLE_DEVICES")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | extra


class Running:
    """One process; `output` is what it wrote so far, stdout and stderr together."""

    def __init__(self, log: Path, flags: tuple[str, ...], env: dict[str, str]) -> None:
        self.port, self.grpc_port = free_port(), free_port()
        flags = tuple(str(self.grpc_port) if flag == "GRPC" else flag for flag in flags)
        self.log = log
        self.began = time.monotonic()
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [*PROGRAM, "--port", str(self.port), "--json-output", *flags],
                env=environment(env),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str, within: float = 10.0) -> None:
        end = time.monotonic() + within
        while text not in self.output:
            assert time.monotonic() < end, self.output
            assert self.process.poll() is None, self.output
            time.sleep(0.01)

    def http(
        self, method: str, path: str, body: Any = None, port: int | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(LOCAL, port or self.port, timeout=10)
        with contextlib.closing(connection):
            data = None if body is None else json.dumps(body)
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, data, {"content-type": "application/json"} | named)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        status, _, data = self.http("POST", path, body, **headers)
        return status, json.loads(data) if data else None

    def metric(self, series: str) -> float:
        text = self.http("GET", "/metrics")[2].decode()
        found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
        assert found, text
        return float(found.group(1))

    def wait_for_queue(self, size: int) -> None:
        while self.metric("te_queue_size") < size:
            time.sleep(0.01)


class Starter:
    """Starts processes and ends them, at the latest when the stack closes."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder, self._stack, self._count = folder, stack, 0

    def __call__(self, *flags: str, ready: bool = True, **env: str) -> Running:
        self._count += 1
        running = Running(self._folder / f"engine-{self._count}.log", flags, env)
        self._stack.callback(running.process.wait, 5)
        self._stack.callback(running.process.kill)
        if ready:
            running.wait_for('"Ready"')
        return running

    def channel(self, port: int) -> grpc.Channel:
        return self._stack.enter_context(grpc.insecure_channel(f"{LOCAL}:{port}"))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    with contextlib.ExitStack() as stack:
        yield Starter(tmp_path, stack)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """Starts what several tests look at; the other processes end with their test."""
    with contextlib.ExitStack() as stack:
        yield Starter(tmp_path_factory.mktemp("engines"), stack)


@pytest.fixture(scope="module")
def plain(shared: Starter) -> Running:
    return shared("--grpc-port", "GRPC", "--model-id", "org/model", "--error-inputs", "poison")


@pytest.fixture(scope="module")
def channel(shared: Starter, plain: Running) -> grpc.Channel:
    return shared.channel(plain.grpc_port)


@pytest.fixture(scope="module")
def classifier(shared: Starter) -> Running:
    return shared("--grpc-port", "GRPC", "--model-type", "classifier")


def once(*flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    full = environment(env)
    return subprocess.run([*PROGRAM, *flags], env=full, capture_output=True, text=True, timeout=10, check=False)


def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


# command line (a word with `=` in front of `|` is a variable) -> start of the line that says why not
REFUSED = """
--port 1 --port=2                  | the argument '--port <PORT>' cannot be used multiple times
-p 1 --port 2                      | the argument '--port <PORT>' cannot be used multiple times
--json-output --json-output        | the argument '--json-output' cannot be used multiple times
--x                                | unexpected argument '--x' found
word                               | unexpected argument 'word' found
--port                             | a value is required for '--port <PORT>' but none was supplied
--revision -x                      | a value is required for '--revision <REVISION>' but none was supplied
--port x                           | invalid value 'x' for '--port <PORT>': invalid digit found in string
PORT=                              | invalid value '' for '--port <PORT>': cannot parse integer from empty string
--dtype int8                       | invalid value 'int8' for '--dtype <DTYPE>'
--ready-after -1                   | a value is required for '--ready-after <READY_AFTER>' but none was supplied
--ready-after=soon                 | invalid value 'soon' for --ready-after: not a number of seconds ≥ 0
TESTING_ENGINE_GROW_MIB=x          | invalid value 'x' for TESTING_ENGINE_GROW_MIB: not a whole number
TESTING_ENGINE_EXIT_CODE=-900      | invalid value '-900' for TESTING_ENGINE_EXIT_CODE: neither an exit code
TESTING_ENGINE_REDY=1              | unknown script variable TESTING_ENGINE_REDY
--protocol both                    | --protocol both needs --grpc-port
"""


@pytest.mark.parametrize("row", REFUSED.strip().splitlines())
def test_a_bad_command_line_exits_2_with_one_clear_line(row: str) -> None:
    words, reason = (part.strip() for part in row.split("|"))
    env = dict(word.split("=", 1) for word in words.split() if not word.startswith("-") and "=" in word)
    done = once(*(word for word in words.split() if word.startswith("-") or "=" not in word), **env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0].startswith(f"error: {reason}")


def test_version_and_help() -> None:
    assert once("--version").stdout == "text-embeddings-router 1.9.3\n"
    text = "tei-engine 0.1.0 (text-embeddings-router 1.8.2)"
    assert once("--version", TESTING_ENGINE_VERSION_TEXT=text).stdout == f"{text}\n"
    assert "TESTING_ENGINE_READY_AFTER" in once("--help").stdout


def test_every_flag_of_tei_and_tei_engine_is_accepted(start: Starter) -> None:
    running = start(
        *("--model-id", "org/model", "--hostname", LOCAL, "--revision", "abc", "--dtype", "float16"),
        *("--max-batch-tokens", "1000", "--max-concurrent-requests", "7", "--pooling", "last-token"),
        *("--prometheus-port", "0", "--max-client-batch-size", "4", "--auto-truncate", "false"),
        *("--cors-allow-origin", "a", "--cors-allow-origin", "b", "--disable-spans", "--hf-token", "t"),
        *("--model-source", "a=b", "--model-source", "c=d", "--drain-timeout", "28", "--compute-workers", "2"),
        *("--intra-op-threads", "1", "--execution-providers", "CPUExecutionProvider", "--offline"),
        *("--served-model-name", "named", "--tokenization-workers", "2", "--payload-limit", "1000"),
    )
    info = json.loads(running.http("GET", "/info")[2])
    assert info["model_type"] == {"embedding": {"pooling": "last_token"}}
    names = ("model_id", "model_sha", "model_dtype", "served_model_name", "version", "auto_truncate")
    assert [info[name] for name in names] == ["org/model", "abc", "float16", "named", "1.9.3", False]
    limits = ("max_batch_tokens", "max_concurrent_requests", "max_client_batch_size")
    assert [info[name] for name in limits] == [1000, 7, 4]
    assert running.http("POST", "/embed", {"inputs": "a " * 490 + "b" * 100})[0] == 413
    assert running.post("/embed", {"inputs": ["a"] * 5}) == (
        422,
        {"error": "batch size 5 > maximum allowed batch size 4", "error_type": "Validation"},
    )


def test_the_same_vector_through_every_door(plain: Running, channel: grpc.Channel) -> None:
    text = "déjà vu"
    expected = rules.vector(text, 8)
    assert sum(value * value for value in expected) == pytest.approx(1.0, abs=1e-6)
    assert plain.post("/embed", {"inputs": text}) == (200, [expected])
    assert plain.post("/embed", {"inputs": ["a", text]})[1][1] == expected
    assert plain.post("/v1/embeddings", {"input": text})[1]["data"][0]["embedding"] == expected
    coded = plain.post("/v1/embeddings", {"input": [text], "encoding_format": "base64"})[1]
    assert list(struct.unpack("<8f", base64.b64decode(coded["data"][0]["embedding"]))) == expected
    binary = {"accept": "application/octet-stream"}
    status, headers, data = plain.http("POST", "/embed", {"inputs": [text, "b"]}, **binary)
    assert (status, headers["x-embedding-shape"], headers["x-embedding-dtype"]) == (200, "2,8", "f32")
    assert list(struct.unpack("<16f", data)) == expected + rules.vector("b", 8)
    embed = stubs.EmbedStub(channel)
    assert list(embed.Embed(pb.EmbedRequest(inputs=text)).embeddings) == expected
    stream = embed.EmbedStream(iter([pb.EmbedRequest(inputs=word) for word in (text, "b")]))
    assert [list(answer.embeddings) for answer in stream] == [expected, rules.vector("b", 8)]


def test_raw_and_shorter_vectors(plain: Running, channel: grpc.Channel) -> None:
    assert plain.post("/embed", {"inputs": "a", "normalize": False})[1] == [rules.raw_vector("a", 8)]
    assert plain.post("/embed", {"inputs": "a", "dimensions": 3})[1] == [rules.vector("a", 3)]
    answer = stubs.EmbedStub(channel).Embed(pb.EmbedRequest(inputs="a", normalize=False, dimensions=3))
    assert list(answer.embeddings) == rules.raw_vector("a", 3)
    status, body = plain.post("/embed", {"inputs": "a", "dimensions": 9})
    assert (status, body["error_type"]) == (422, "Validation")


def test_costs_are_reported(plain: Running, channel: grpc.Channel) -> None:
    _, headers, _ = plain.http("POST", "/embed", {"inputs": ["one two", "three"]})
    assert (headers["x-compute-characters"], headers["x-compute-tokens"]) == ("12", "7")
    answer, call = stubs.EmbedStub(channel).Embed.with_call(pb.EmbedRequest(inputs="one two"))
    assert dict(call.initial_metadata())["x-compute-tokens"] == "4"
    assert (answer.metadata.compute_chars, answer.metadata.compute_tokens) == (7, 4)
    assert plain.post("/v1/embeddings", {"input": "one two"})[1]["usage"]["total_tokens"] == 4


def test_tokenize_and_decode(plain: Running, channel: grpc.Channel) -> None:
    rows = plain.post("/tokenize", {"inputs": "né vu"})[1]
    assert [token["text"] for token in rows[0]] == ["[CLS]", "né", "vu", "[SEP]"]
    assert (rows[0][2]["start"], rows[0][2]["stop"], rows[0][0]["start"]) == (4, 6, None)
    assert rows[0][1]["id"] == rules.token_id("né")
    ids = [token["id"] for token in rows[0]]
    assert plain.post("/decode", {"ids": ids})[1] == ["né vu"]
    assert plain.post("/embed", {"inputs": ids})[1] == [rules.vector("né vu", 8)]
    stub = stubs.TokenizeStub(channel)
    assert [t.id for t in stub.Tokenize(pb.EncodeRequest(inputs="né vu")).tokens] == ids[1:3]
    assert stub.Decode(pb.DecodeRequest(ids=ids)).text == "[CLS] né vu [SEP]"
    requests = [pb.DecodeRequest(ids=ids, skip_special_tokens=True)]
    assert [answer.text for answer in stub.DecodeStream(iter(requests))] == ["né vu"]
    encoded = stub.TokenizeStream(iter([pb.EncodeRequest(inputs="a", add_special_tokens=True)]))
    assert [len(answer.tokens) for answer in encoded] == [3]


def test_embed_all_and_sparse(start: Starter, plain: Running, channel: grpc.Channel) -> None:
    splade = start("--grpc-port", "GRPC", "--pooling", "splade")
    expected = [rules.raw_vector(word, 8) for word in ("[CLS]", "a", "[SEP]")]
    assert plain.post("/embed_all", {"inputs": "a"})[1] == [expected]
    answer = stubs.EmbedStub(channel).EmbedAll(pb.EmbedAllRequest(inputs="a"))
    assert [list(row.embeddings) for row in answer.token_embeddings] == expected
    text = "some words of a text"
    pairs = [{"index": index, "value": value} for index, value in rules.sparse_vector(text)]
    assert len(pairs) == 5
    assert splade.post("/embed_sparse", {"inputs": text})[1] == [pairs]
    sparse = stubs.EmbedStub(start.channel(splade.grpc_port))
    asked = pb.EmbedSparseRequest(inputs=text)
    for found in (sparse.EmbedSparse(asked), *sparse.EmbedSparseStream(iter([asked]))):
        assert [{"index": v.index, "value": v.value} for v in found.sparse_embeddings] == pairs
    assert refused(lambda: sparse.Embed(pb.EmbedRequest(inputs="a")))[0] is grpc.StatusCode.FAILED_PRECONDITION


def test_predict(start: Starter, classifier: Running) -> None:
    scores = rules.softmax(rules.class_logits("good"))
    status, body = classifier.post("/predict", {"inputs": "good"})
    assert status == 200
    assert {row["label"]: row["score"] for row in body} == {f"LABEL_{i}": s for i, s in enumerate(scores)}
    assert [row["score"] for row in body] == sorted(scores, reverse=True)
    batch = classifier.post("/predict", {"inputs": [["good"], ["a", "b"]], "raw_scores": True})[1]
    assert batch[1][0]["score"] == max(rules.class_logits("a", "b"))
    stub = stubs.PredictStub(start.channel(classifier.grpc_port))
    pair = pb.PredictPairRequest(inputs=["a", "b"], raw_scores=True)
    assert stub.PredictPair(pair).predictions[0].score == batch[1][0]["score"]
    streamed = list(stub.PredictStream(iter([pb.PredictRequest(inputs="good")] * 2)))
    assert [answer.predictions[0].score for answer in streamed] == [body[0]["score"]] * 2
    code, text = refused(lambda: stub.PredictPair(pb.PredictPairRequest(inputs=["a"] * 3)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text == "`inputs` must have a single or two elements. Given: 3"


def test_rerank(start: Starter) -> None:
    reranker = start("--grpc-port", "GRPC", "--model-type", "reranker")
    texts = ["x", "y", "z", "x"]
    scores = [rules.sigmoid(rules.rank_logit("q", text)) for text in texts]
    order = sorted(range(4), key=lambda i: (-scores[i], -i))
    body = reranker.post("/rerank", {"query": "q", "texts": texts, "return_text": True})[1]
    assert body == [{"index": i, "score": scores[i], "text": texts[i]} for i in order]
    cohere = reranker.post("/v1/rerank", {"query": "q", "documents": [{"text": "x"}, "y"], "top_n": 1})[1]
    assert [row["index"] for row in cohere["results"]] == [0 if scores[0] > scores[1] else 1]
    stub = stubs.RerankStub(start.channel(reranker.grpc_port))
    unary = stub.Rerank(pb.RerankRequest(query="q", texts=texts))
    assert [(rank.index, rank.score) for rank in unary.ranks] == [(i, scores[i]) for i in order]
    messages = [pb.RerankStreamRequest(query="q", text=text, return_text=True) for text in texts]
    streamed = stub.RerankStream(iter(messages))
    assert [(rank.index, rank.text) for rank in streamed.ranks] == [(i, texts[i]) for i in order]
    assert refused(lambda: stub.RerankStream(iter([])))[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_the_wrong_model_type(start: Starter, plain: Running, channel: grpc.Channel, classifier: Running) -> None:
    def text(running: Running, path: str, body: dict[str, Any]) -> tuple[int, str]:
        status, answer = running.post(path, body)
        return status, answer["error"]

    assert text(plain, "/predict", {"inputs": "a"}) == (424, "Backend error: Model is not a classifier model")
    rerank = {"query": "q", "texts": ["a"]}
    assert text(plain, "/rerank", rerank) == (424, "Backend error: model is not a re-ranker model")
    sparse = "Backend error: Model is not an embedding model with SPLADE pooling"
    assert text(plain, "/embed_sparse", {"inputs": "a"}) == (424, sparse)
    assert text(classifier, "/embed", {"inputs": "a"}) == (424, "Backend error: Model is not an embedding model")
    code, words = refused(lambda: stubs.RerankStub(channel).Rerank(pb.RerankRequest(query="q", texts=["a"])))
    assert (code, words) == (grpc.StatusCode.FAILED_PRECONDITION, "model is not a classifier model")
    info = stubs.InfoStub(start.channel(classifier.grpc_port)).Info(pb.InfoRequest())
    assert info.model_type == pb.MODEL_TYPE_CLASSIFIER


def test_validation(plain: Running, channel: grpc.Channel) -> None:
    empty = "Input validation error: `inputs` cannot be empty"
    assert plain.post("/embed", {"inputs": ""}) == (400, {"error": empty, "error_type": "Empty"})
    assert plain.post("/v1/embeddings", {"input": ""}) == (400, {"message": empty, "code": 400, "type": "Empty"})
    embed = stubs.EmbedStub(channel).Embed
    assert refused(lambda: embed(pb.EmbedRequest(inputs=""))) == (grpc.StatusCode.INVALID_ARGUMENT, empty)
    assert plain.post("/embed", {"inputs": ["a"] * 33})[0] == 422
    assert plain.post("/embed", {"inputs": ["a", "poison b"]})[0] == 422
    assert refused(lambda: embed(pb.EmbedRequest(inputs="poison")))[0] is grpc.StatusCode.INVALID_ARGUMENT
    long = "w " * 600
    assert plain.post("/embed", {"inputs": long})[0] == 200
    status, body = plain.post("/embed", {"inputs": long, "truncate": False})
    assert status == 422
    assert body["error"] == "Input validation error: `inputs` must have less than 512 tokens. Given: 602"
    assert refused(lambda: embed(pb.EmbedRequest(inputs=long)))[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_the_framework_refuses_malformed_requests(plain: Running) -> None:
    assert plain.http("POST", "/embed", {"inputs": "a"}, content_type="text/plain")[0] == 415
    assert plain.http("POST", "/embed", {"input": "a"})[0] == 422
    assert plain.http("POST", "/embed", [1])[0] == 422
    assert plain.http("POST", "/embed", {"inputs": [1, "a", None]})[0] == 422
    assert plain.http("GET", "/embed")[0] == 405
    assert plain.http("GET", "/nothing")[0] == 404
    assert plain.http("HEAD", "/health")[0] == 200


def test_the_http_server_speaks_the_finer_points_of_http(plain: Running) -> None:
    body = b'{"inputs":"a"}'
    head = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    sized = head + b"content-length: %d\r\n" % len(body)
    chunked = head + b"transfer-encoding: chunked\r\n\r\n5\r\n" + body[:5] + b"\r\n9\r\n" + body[5:]
    pipelined = sized + b"\r\n" + body + chunked + b"\r\n0\r\n\r\n" + sized + b"connection: close\r\n\r\n" + body
    with socket.create_connection((LOCAL, plain.port), timeout=5) as sock:
        sock.sendall(pipelined)
        assert b"".join(iter(lambda: sock.recv(65536), b"")).count(b"HTTP/1.1 200 OK") == 3
    with socket.create_connection((LOCAL, plain.port), timeout=5) as sock:
        sock.sendall(sized + b"expect: 100-continue\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 100 Continue")
        sock.sendall(body)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK")
    with socket.create_connection((LOCAL, plain.port), timeout=5) as sock:
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 400")


def test_chat(plain: Running) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    words = rules.chat_words("hello", 4)
    whole = plain.post("/v1/chat/completions", body)[1]
    assert whole["choices"][0]["message"]["content"] == " ".join(words)
    assert whole["usage"] == {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}
    choice = plain.post("/v1/completions", {"prompt": "hello", "max_tokens": 2})[1]["choices"][0]
    assert choice == {"index": 0, "text": " ".join(words[:2]), "finish_reason": "length"}
    asked = body | {"stream": True, "stream_options": {"include_usage": True}}
    _, headers, data = plain.http("POST", "/v1/chat/completions", asked)
    events = [line.removeprefix("data: ") for line in data.decode().split("\n\n") if line]
    assert headers["content-type"] == "text/event-stream"
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    assert text == " ".join(words)
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == 4
    assert json.loads(plain.http("GET", "/v1/models")[2])["data"][0]["id"] == "org/model"


def test_a_scripted_chat_stream_is_slow_and_dies(start: Starter) -> None:
    running = start("--chat-chunks", "9", "--chat-chunk-every", "0.05", "--chat-die-after", "3")
    began = time.monotonic()
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
    with pytest.raises(http.client.IncompleteRead) as broken:
        running.http("POST", "/v1/chat/completions", body)
    assert broken.value.partial.count(b"data: ") == 3
    assert time.monotonic() - began >= 0.15
    assert running.http("GET", "/health")[0] == 200


def test_the_metrics_count(start: Starter) -> None:
    running = start("--error-inputs", "poison")
    assert running.metric('te_request_count{method="single"}') == 0
    running.post("/embed", {"inputs": "one two"})
    running.post("/embed", {"inputs": ["a", "b", "c"]})
    running.post("/embed", {"inputs": "poison"})
    assert running.metric('te_request_count{method="single"}') == 2
    assert running.metric('te_request_success{method="single"}') == 1
    assert running.metric('te_request_success{method="batch"}') == 1
    assert running.metric('te_request_failure{err="validation"}') == 1
    assert (running.metric("te_embed_count"), running.metric("te_embed_success")) == (5, 4)
    assert running.metric("te_batch_next_tokens_sum") == 4 + 9
    assert running.metric('te_request_duration_bucket{le="+Inf"}') == 2
    assert running.metric("te_queue_size") == 0


def test_an_api_key_guards_all_but_health_and_metrics(start: Starter) -> None:
    running = start("--grpc-port", "GRPC", API_KEY="k")
    assert running.http("POST", "/embed", {"inputs": "a"})[0] == 401
    assert running.http("GET", "/info")[0] == 401
    assert running.http("POST", "/embed", {"inputs": "a"}, authorization="Bearer k")[0] == 200
    assert running.http("GET", "/health")[0] == running.http("GET", "/metrics")[0] == 200
    info = stubs.InfoStub(start.channel(running.grpc_port)).Info
    assert refused(lambda: info(pb.InfoRequest())) == (grpc.StatusCode.UNAUTHENTICATED, "No valid auth token")
    assert info(pb.InfoRequest(), metadata=[("authorization", "Bearer k")]).version == "1.9.3"


def test_nothing_listens_before_ready(start: Starter) -> None:
    running = start("--ready-after", "0.4", ready=False)
    running.wait_for("Warming up model")
    with pytest.raises(ConnectionRefusedError):
        running.http("GET", "/health")
    running.wait_for('"Ready"')
    assert time.monotonic() - running.began >= 0.4
    assert running.http("GET", "/health")[::2] == (200, b"")


def test_a_signal_while_loading_kills_at_once(start: Starter) -> None:
    running = start(ready=False, TESTING_ENGINE_READY_AFTER="30")
    running.wait_for("Warming up model")
    running.process.terminate()
    assert running.process.wait(2) == -signal.SIGTERM


def test_loading_answers(start: Starter) -> None:
    running = start("--loading-answers", "--ready-after", "0.6", "--grpc-port", "GRPC", ready=False)
    running.wait_for("Warming up model")
    status, headers, body = running.http("GET", "/health")
    assert (status, headers["retry-after"]) == (503, "1")
    assert json.loads(body) == {"error": "model is loading", "error_type": "Unhealthy"}
    assert running.http("GET", "/metrics")[0] == 200
    channel = start.channel(running.grpc_port)
    code, text = refused(lambda: stubs.EmbedStub(channel).Embed(pb.EmbedRequest(inputs="a")))
    assert (code, text) == (grpc.StatusCode.UNAVAILABLE, "model is loading")
    check = health_pb2_grpc.HealthStub(channel).Check
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert check(health_pb2.HealthCheckRequest(service="tei.v1.Embed")).status == not_serving
    running.wait_for('"Ready"')
    assert check(health_pb2.HealthCheckRequest(service="tei.v1.Embed")).status == serving
    assert check(health_pb2.HealthCheckRequest(service="tei.v1.Rerank")).status == not_serving
    assert list(stubs.EmbedStub(channel).Embed(pb.EmbedRequest(inputs="a")).embeddings)


def test_a_stop_while_loading_with_answers_is_graceful(start: Starter) -> None:
    running = start("--loading-answers", "--ready-after", "30", ready=False)
    running.wait_for("Starting HTTP server")
    running.process.terminate()
    assert running.process.wait(2) == 0


def test_fail_with() -> None:
    for flags, code in (([], 1), (["--exit-code", "-9"], -signal.SIGKILL)):
        done = once("--fail-with", "no such model", "--port", "0", *flags)
        assert (done.returncode, done.stderr) == (code, "Error: no such model\n")


@pytest.mark.parametrize("code", [0, 7, -signal.SIGSEGV])
def test_crash_after(start: Starter, code: int) -> None:
    running = start("--crash-after", "0.3", "--exit-code", str(int(code)))
    assert running.http("GET", "/health")[0] == 200
    assert running.process.wait(3) == code
    assert "scripted crash" in running.output


def test_crash_after_requests(start: Starter) -> None:
    running = start(TESTING_ENGINE_CRASH_AFTER_REQUESTS="2", TESTING_ENGINE_EXIT_CODE="134")
    for _ in range(2):
        assert running.http("GET", "/health")[0] == 200
        assert running.post("/embed", {"inputs": "a"})[0] == 200
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        running.post("/embed", {"inputs": "a"})
    assert running.process.wait(2) == 134


def test_a_graceful_stop_finishes_what_was_accepted(start: Starter) -> None:
    running = start("--answer-after", "0.4", "--grpc-port", "GRPC")
    embed = stubs.EmbedStub(start.channel(running.grpc_port)).Embed
    with ThreadPoolExecutor(2) as pool:
        http_call = pool.submit(running.post, "/embed", {"inputs": "a"})
        grpc_call = pool.submit(embed, pb.EmbedRequest(inputs="b"))
        running.wait_for_queue(2)
        running.process.terminate()
        time.sleep(0.15)
        with pytest.raises(ConnectionRefusedError):
            running.http("GET", "/health")
        assert http_call.result() == (200, [rules.vector("a", 8)])
        assert list(grpc_call.result().embeddings) == rules.vector("b", 8)
    assert running.process.wait(2) == 0


def test_drain_timeout_cuts_off_what_hangs(start: Starter) -> None:
    running = start("--hang-after-requests", "0", "--drain-timeout", "0.2")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(running.post, "/embed", {"inputs": "a"})
        running.wait_for_queue(1)
        running.process.terminate()
        assert call.result() == (503, {"error": "shutting down", "error_type": "Unhealthy"})
    assert running.process.wait(2) == 0


def test_sigint_stops_and_stop_takes(start: Starter) -> None:
    running = start("--stop-takes", "0.3")
    began = time.monotonic()
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(3) == 0
    assert time.monotonic() - began >= 0.3


def test_a_second_signal_ends_at_once(start: Starter) -> None:
    running = start("--stop-takes", "30")
    running.process.terminate()
    time.sleep(0.1)
    assert running.process.poll() is None
    running.process.terminate()
    assert running.process.wait(2) == 0


def test_ignore_sigterm(start: Starter) -> None:
    running = start("--ignore-sigterm")
    running.process.terminate()
    time.sleep(0.2)
    assert running.http("GET", "/health")[0] == 200
    running.process.kill()
    assert running.process.wait(2) == -signal.SIGKILL


def test_hang_after_requests(start: Starter) -> None:
    running = start("--hang-after-requests", "1", "--grpc-port", "GRPC")
    assert running.post("/embed", {"inputs": "a"})[0] == 200
    stub = stubs.EmbedStub(start.channel(running.grpc_port))
    code, _ = refused(lambda: stub.Embed(pb.EmbedRequest(inputs="a"), timeout=0.3))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert running.http("GET", "/info")[0] == 200
    connection = http.client.HTTPConnection(LOCAL, running.port, timeout=0.2)
    with contextlib.closing(connection):
        connection.request("GET", "/health")
        with pytest.raises(TimeoutError):
            connection.getresponse()
    assert running.metric('te_request_failure{err="dropped"}') == 1


def test_unhealthy_after(start: Starter) -> None:
    running = start("--unhealthy-after", "0", "--grpc-port", "GRPC")
    while running.http("GET", "/health")[0] == 200:
        time.sleep(0.01)
    assert running.http("GET", "/health")[0] == running.http("GET", "/info")[0] == 503
    info = stubs.InfoStub(start.channel(running.grpc_port)).Info
    code, text = refused(lambda: info(pb.InfoRequest()))
    assert (code, text) == (grpc.StatusCode.UNAVAILABLE, "unhealthy")
    assert running.post("/embed", {"inputs": "a"})[0] == 200


def test_error_every(start: Starter) -> None:
    running = start("--error-every", "2", "--error-status", "503", "--grpc-port", "GRPC")
    assert [running.post("/embed", {"inputs": "a"})[0] for _ in range(4)] == [200, 503, 200, 503]
    stub = stubs.EmbedStub(start.channel(running.grpc_port))
    stub.Embed(pb.EmbedRequest(inputs="a"))
    code, text = refused(lambda: stub.Embed(pb.EmbedRequest(inputs="a")))
    assert (code, text) == (grpc.StatusCode.UNAVAILABLE, "scripted error")
    stream = stub.EmbedStream(iter([pb.EmbedRequest(inputs=word) for word in "abc"]))
    assert list(next(stream).embeddings) == rules.vector("a", 8)
    assert refused(lambda: next(stream))[0] is grpc.StatusCode.UNAVAILABLE
    running = start("--error-every", "1", "--error-grpc-status", "DATA_LOSS", "--protocol", "grpc")
    stub = stubs.EmbedStub(start.channel(running.port))
    assert refused(lambda: stub.Embed(pb.EmbedRequest(inputs="a")))[0] is grpc.StatusCode.DATA_LOSS


def test_permits(start: Starter) -> None:
    running = start("--max-concurrent-requests", "2", "--answer-after", "0.3", "--grpc-port", "GRPC")
    stub = stubs.EmbedStub(start.channel(running.grpc_port))
    began = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(running.post, "/embed", {"inputs": "a"}) for _ in range(3)]
        results = [call.result() for call in calls]
    assert sorted(status for status, _ in results) == [200, 200, 429]
    assert (429, {"error": "Model is overloaded", "error_type": "Overloaded"}) in results
    assert 0.3 <= time.monotonic() - began < 0.9
    # messages of a stream wait for permits instead, and are worked on side by side
    began = time.monotonic()
    assert len(list(stub.EmbedStream(iter([pb.EmbedRequest(inputs="a")] * 4)))) == 4
    assert 0.6 <= time.monotonic() - began < 1.1


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads resident memory from /proc")
def test_growth_is_resident(start: Starter) -> None:
    def resident(running: Running) -> float:
        pages = int(Path(f"/proc/{running.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    small, large = start(), start("--grow-mib", "64", "--grow-mib-per-request", "16")
    base = resident(large)
    assert 60 < base - resident(small) < 75
    for _ in range(2):
        large.post("/embed", {"inputs": "a"})
    assert 30 < resident(large) - base < 40


def test_a_busy_port_ends_the_start() -> None:
    with socket.socket() as sock:
        sock.bind((LOCAL, 0))
        sock.listen()
        port = str(sock.getsockname()[1])
        for flags in (f"--port {port}", f"--port {port} --protocol grpc", f"--port 0 --grpc-port {port}"):
            done = once(*flags.split())
            assert done.returncode == 1
            assert done.stderr.startswith(f"Error: Could not bind TCP Listener on {LOCAL}:{port}\n")
            assert "Address already in use" in done.stderr
        done = once("--port", "0", "--prometheus-port", port)
        assert (done.returncode, "prometheus recorder" in done.stderr) == (1, True)


def test_the_grpc_build_has_grpc_on_its_port_and_metrics_beside(start: Starter) -> None:
    metrics = free_port()
    running = start("--protocol", "grpc", "--prometheus-port", str(metrics), "--dimensions", "3")
    channel = start.channel(running.port)
    assert len(stubs.EmbedStub(channel).Embed(pb.EmbedRequest(inputs="a")).embeddings) == 3
    assert b'te_request_count{method="single"} 1' in running.http("GET", "/", port=metrics)[2]
    assert running.http("GET", "/health", port=metrics)[2] == b"OK"
    assert f"Starting gRPC server: {LOCAL}:{running.port}" in running.output
    assert health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status == 1


def test_log_lines(start: Starter) -> None:
    running = start("--log-lines", "3", "--cpu-fallback", "--prometheus-port", "0")
    lines = [json.loads(line) for line in running.output.splitlines()]
    assert all(set(line) == {"timestamp", "level", "message", "target"} for line in lines)
    assert "|".join(line["message"] for line in lines) == (
        "Starting model backend|Using CPU instead|Starting Bert model on Cpu|noise 0|noise 1|noise 2"
        f"|Warming up model|Starting HTTP server: {LOCAL}:{running.port}|Ready"
    )
    quiet = start(ready=False, LOG_LEVEL="info,text_embeddings_router=warn", CUDA_VISIBLE_DEVICES="0")
    quiet.wait_for("on Cuda(")
    quiet.process.kill()
    quiet.process.wait()
    assert "Starting model backend" not in quiet.output


def test_dump_tells_how_it_was_started(start: Starter, tmp_path: Path) -> None:
    target = tmp_path / "dump.json"
    running = start("--dump", str(target), "--model-id", "m", MARK="here")
    facts = json.loads(target.read_text())
    pid = running.process.pid
    assert (facts["pid"], facts["pgid"], facts["sid"]) == (pid, pid, pid)
    assert facts["argv"][1:4] == ["--port", str(running.port), "--json-output"]
    assert (facts["env"]["MARK"], facts["cwd"]) == ("here", str(Path.cwd()))
    assert set(facts["fds"]) == {"0", "1", "2"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dump.json", running.log.name]


def test_it_starts_fast(start: Starter) -> None:
    # the least of three, since other work may share the cores
    assert min(time.monotonic() - start("--grpc-port", "GRPC").began for _ in range(3)) < 0.6


def test_every_switch_is_documented() -> None:
    from tei_manager.testing.engine.script import environment_name, switches

    page = (Path(__file__).parents[2] / "docs/reference/testing-engine.md").read_text()
    for name in switches():
        assert f"`--{name}" in page
        assert f"`{environment_name(name).removeprefix('TESTING_ENGINE_')}`" in page
