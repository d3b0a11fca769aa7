"""No bytes on the HTTP port may crash or wedge the process, or be answered by a fault of ours."""

import contextlib
import http.client
import json
import random
import socket
import string
import struct
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.integration.engine.fuzzing import SLOWER, assert_well, bounded, rss

EXAMPLES = 60
PAYLOAD_LIMIT = 2_000_000
POSTS = (
    *("/", "/embed", "/embed_all", "/embed_sparse", "/predict", "/rerank", "/similarity", "/tokenize", "/decode"),
    *("/v1/embeddings", "/v1/rerank"),
)
MEMORY_MIB = 300
"""What the process may grow by while every test of this file runs: its caches, and some bodies of 2 MB."""


@pytest.fixture(scope="module")
def engine(launch, tiny_folder):
    process = launch("--model-id", str(tiny_folder("bert-mean")))
    process.wait_for("Ready")
    before = rss(process)
    yield process
    assert rss(process) - before < MEMORY_MIB


@pytest.fixture(scope="module")
def item(tiny_folder):
    return json.loads((tiny_folder("bert-mean") / "expected.json").read_text())["items"][0]


@pytest.fixture(autouse=True)
def still_well(engine, item):
    """After whatever a test did, the engine serves as before."""
    yield
    assert_well(engine, item)


class Caller:
    """Requests on a connection that is kept as long as the server keeps it."""

    def __init__(self, port):
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def __call__(self, method, path, body=None, headers=None):
        self._connection.request(method, path, body, headers or {"content-type": "application/json"})
        reply = self._connection.getresponse()
        return reply.status, reply.getheader("content-type", ""), reply.read()

    def close(self):
        self._connection.close()


@pytest.fixture
def call(engine):
    with contextlib.closing(Caller(engine.port)) as caller:
        yield caller


def assert_answer(answer):
    """An answer, or an error that says what is wrong and is not ours."""
    status, kind, body = answer
    assert status in (200, 400, 413, 415, 422, 424), answer
    if kind.startswith("application/json"):
        value = json.loads(body, parse_constant=pytest.fail)
        assert status == 200 or isinstance(value, dict)
        assert status == 200 or "internal error" not in (value.get("error") or value["message"])
    else:
        assert status in (400, 413, 415, 422)
        assert body.startswith((b"Failed to ", b"Expected request with"))


valid_bodies = st.sampled_from(
    [
        b'{"inputs": "hello", "truncate": true, "normalize": false, "dimensions": 3}',
        b'{"inputs": ["hello", [5, 6, 7]], "truncation_direction": "Left", "prompt_name": "query"}',
        b'{"inputs": {"source_sentence": "a", "sentences": ["b", "c"]}, "parameters": null}',
        b'{"query": "a", "texts": ["b", "c"], "documents": ["d", {"text": "e"}], "return_text": true}',
        b'{"input": ["hello"], "ids": [[5, 6]], "encoding_format": "base64", "user": "me"}',
    ]
)


@st.composite
def spoilt_bodies(draw):
    """A valid body in which some bytes were replaced, doubled or lost."""
    body = bytearray(draw(valid_bodies))
    for _ in range(draw(st.integers(1, 4))):
        first = draw(st.integers(0, len(body)))
        last = draw(st.integers(first, min(first + 9, len(body))))
        body[first:last] = draw(st.one_of(st.binary(max_size=6), st.just(bytes(body[first:last]) * 2)))
    return bytes(body)


numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([2**31, 2**32 - 1, 2**32, 2**63, 2**64, -1, 1e308, -0.0])
)
# surrogates too: written as escapes, they are legal JSON text that stands for no character
texts = st.text(st.characters(exclude_categories=()), max_size=40)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(
    [
        *("inputs", "input", "ids", "query", "texts", "documents", "parameters", "truncate", "normalize"),
        *("truncation_direction", "prompt_name", "dimensions", "raw_scores", "return_text", "top_n"),
        *("return_documents", "encoding_format", "add_special_tokens", "skip_special_tokens", "model", "user"),
    ]
)
bodies = st.one_of(
    st.binary(max_size=200),
    spoilt_bodies(),
    # Python writes NaN and Infinity as they stand, which is no JSON
    st.dictionaries(keys, values, min_size=1, max_size=5).map(lambda value: json.dumps(value).encode()),
    values.map(lambda value: json.dumps(value).encode()),
)


def check_bodies(call, path, examples):
    @bounded(examples)
    @given(bodies)
    def check(body):
        assert_answer(call("POST", path, body))

    check()


@pytest.mark.parametrize("path", POSTS)
def test_bodies_of_any_kind(call, path):
    check_bodies(call, path, EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("path", POSTS)
def test_many_bodies_of_any_kind(call, path):
    check_bodies(call, path, EXAMPLES * SLOWER)


header_values = st.text(string.printable.strip() + " \t", max_size=30)
content_types = st.one_of(
    header_values,
    st.sampled_from(
        [
            *("application/json; charset=utf-16", "application/json;charset=nonsense", "APPLICATION/JSON"),
            *("application/x-www-form-urlencoded", "multipart/form-data; boundary=", "text/plain", "+json", ";"),
        ]
    ),
)


@bounded(EXAMPLES)
@given(
    content_type=content_types,
    accept=header_values
    | st.sampled_from(["application/octet-stream;q=nan", "application/octet-stream;q=", "*/*"]),
    encoding=header_values | st.sampled_from(["gzip", "br, gzip"]),
    origin=header_values,
)
def check_headers(call, content_type, accept, encoding, origin):
    sent = {"content-type": content_type, "accept": accept, "content-encoding": encoding, "origin": origin}
    status, kind, body = call("POST", "/embed", b'{"inputs": "hello"}', sent)
    assert status in (200, 415)
    if kind == "application/octet-stream":
        assert len(body) == 32 * 4


def test_headers_of_any_kind(call):
    check_headers(call)


@bounded(EXAMPLES)
@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "QUERY", "get"]),
    path=st.text(string.printable.strip().replace("?", ""), max_size=30).map("/{}".format)
    | st.sampled_from(["/v1/models/", "/v1/models/%ff%00%zz", "//embed", "/embed/", "/../info", "/embed?a=b#c"]),
)
def check_paths(call, method, path):
    status, _, _ = call(method, path, b"{}")
    assert status in (200, 400, 404, 405, 422)


def test_methods_and_paths_of_any_kind(call):
    check_paths(call)


def exchange(port, sent, *, half_close=False):
    """What the server says to bytes of any kind until it hangs up; our side is closed for good after them."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        answer = b""
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                answer += part
        return answer


HEAD = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
BODY = b'{"inputs": "hello"}'
WHOLE = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY
LAST = b"GET /ping HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"

HEADS = {
    "noise": b"\x00\xff\xfe\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": bytes.fromhex("16030100a5010000a10303") + bytes(150),
    "bytes in the path": b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
    "a length of 5000 digits": HEAD + b"content-length: " + b"9" * 5000 + b"\r\n\r\n",
    "a negative length": HEAD + b"content-length: -1\r\n\r\n",
    "two lengths": HEAD + b"content-length: 5\r\ncontent-length: 19\r\n\r\n" + BODY,
    "a length beside chunks": HEAD + b"content-length: 19\r\ntransfer-encoding: chunked\r\n\r\n" + BODY,
    "another encoding": HEAD + b"transfer-encoding: gzip\r\n\r\n" + BODY,
    "a chunk of no size": HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    "NUL in a header": b"GET /health HTTP/1.1\r\nhost: x\r\nx: a\x00b\r\n\r\n",
    "a folded header": b"GET /health HTTP/1.1\r\nhost: x\r\nx: a\r\n b\r\n\r\n",
    "CONNECT": b"CONNECT a:80 HTTP/1.1\r\nhost: x\r\n\r\n",
}


@pytest.mark.parametrize("sent", HEADS.values(), ids=HEADS)
def test_heads_that_are_no_heads(engine, sent):
    answer = exchange(engine.port, sent)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in answer


@bounded(EXAMPLES)
@given(st.binary(max_size=300) | st.binary(max_size=60).map(lambda part: HEAD + part + b"\r\n\r\n" + part))
def check_streams(port, sent):
    answer = exchange(port, sent, half_close=True)
    assert answer[9:12] in (b"", b"200", b"400", b"404", b"405", b"413", b"415", b"422"), answer


def test_streams_of_any_bytes(engine):
    check_streams(engine.port)


def test_requests_that_are_cut_short(engine):
    """At every byte: the head, the length, the body; and chunks that end in their middle."""
    for end in range(0, len(WHOLE), 7):
        exchange(engine.port, WHOLE[:end], half_close=True)
    chunked = HEAD + b"transfer-encoding: chunked\r\n\r\n8\r\n" + BODY[:8] + b"\r\n"
    for end in range(len(HEAD), len(chunked)):
        exchange(engine.port, chunked[:end], half_close=True)


def test_clients_that_hang_up_without_a_word(engine):
    for end in random.Random(3).sample(range(len(WHOLE) + 1), 30) + [len(WHOLE)] * 30:
        with socket.create_connection(("127.0.0.1", engine.port), timeout=10) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no end
            connection.sendall(WHOLE[:end])


def test_requests_that_do_not_wait_for_their_answers(engine):
    answer = exchange(engine.port, WHOLE * 50 + LAST)
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 51


def test_bodies_where_none_is_expected_are_passed_over(engine):
    refused = WHOLE.replace(b"/embed", b"/nowhere")
    answer = exchange(engine.port, refused + WHOLE.replace(b"POST /embed", b"GET /health") + LAST)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"404", b"200", b"200"]


def test_a_body_that_is_too_large_is_told_so_though_it_is_still_coming(engine, call):
    for size in (PAYLOAD_LIMIT + 1, 20_000_000):
        body = b'{"inputs": "' + b"x" * size + b'"}'
        assert call("POST", "/embed", body)[0] == 413
        assert call("POST", "/embed", BODY)[0] == 200  # on the same connection


def test_a_body_without_end_is_hung_up_on(engine):
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", engine.port), timeout=10) as connection:
        connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        with pytest.raises(ConnectionError):
            deque(map(connection.sendall, [chunk] * 200), maxlen=0)


LARGE = {
    "a word of 1 MB": {"inputs": "x" * 1_000_000},
    "a word of 1 MB that may not be cut": {"inputs": "x" * 1_000_000, "truncate": False},
    "ideographs": {"inputs": "東" * 300_000},
    "marks on one letter": {"inputs": "a" + "\u0301" * 300_000},
    "letters that become eighteen": {"inputs": "\ufdfa" * 300_000},
    "NUL": {"inputs": "\0" * 300_000},
    "blanks": {"inputs": " " * 1_000_000},
    "marks of models": {"inputs": "[CLS][SEP]<s></s><mask>" * 20_000},
    "32 long texts": {"inputs": ["word " * 10_000] * 32},
    "100000 empty texts": {"inputs": [""] * 100_000},
    "600000 ids": {"inputs": [5] * 600_000},
    "600000 ids and a prompt": {"inputs": [5] * 600_000, "prompt_name": "query"},
    "300000 lists": {"inputs": [[5]] * 300_000},
    "a long name": {"inputs": "a", "prompt_name": "p" * 1_000_000},
    "120000 keys": {f"key{number}": number for number in range(120_000)} | {"inputs": "a"},
    "lists in lists": b'{"inputs": ' + b"[" * 900_000 + b"]" * 900_000 + b"}",
    "objects in objects": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "a number of 1 MB": b'{"inputs": [' + b"9" * 1_000_000 + b"]}",
    "the same key 100000 times": b"{" + b'"inputs": "a",' * 100_000 + b'"inputs": "b"}',
}


@pytest.mark.parametrize("given_body", LARGE.values(), ids=LARGE)
def test_large_bodies(call, given_body):
    if isinstance(given_body, bytes):
        for path in ("/embed", "/tokenize", "/v1/embeddings"):
            assert_answer(call("POST", path, given_body))
        return
    value = given_body["inputs"]
    listed = value if isinstance(value, list) else [value]
    shapes = {
        "/embed": given_body,
        "/embed_all": given_body,
        "/v1/embeddings": {"input": value},
        "/tokenize": given_body,
        "/decode": {"ids": value},
        "/similarity": {"inputs": {"source_sentence": "a", "sentences": listed}},
        "/rerank": {"query": "a", "texts": listed},
    }
    for path, body in shapes.items():
        assert_answer(call("POST", path, json.dumps(body, ensure_ascii=False).encode()))
