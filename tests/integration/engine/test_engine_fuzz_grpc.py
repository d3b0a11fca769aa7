"""No bytes on the gRPC port may crash or wedge the process, or get a code that is not documented."""

import contextlib
import json
import random
from collections import Counter

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st
from tests.integration.engine.fuzzing import SLOWER, assert_well, bounded, rss

from tei_manager.grpc.proto.tei.v1 import tei_pb2, tei_pb2_grpc

EXAMPLES = 15
MODELS = {"embedding": "bert-mean", "reranker": "bert-reranker", "splade": "bert-splade"}
SERVING = {"embedding": "tei.v1.Embed", "reranker": "tei.v1.Rerank", "splade": "tei.v1.Embed"}
METHODS = [method for service in tei_pb2.DESCRIPTOR.services_by_name.values() for method in service.methods]
EMBED = next(method for method in METHODS if method.name == "Embed")
DECODE = next(method for method in METHODS if method.name == "Decode")

DOCUMENTED = {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"}
LARGEST = 31 * 2**20
"""Bytes of a text that is just taken."""

MEMORY_MIB = 800
"""What the process may grow by while every test of this file runs: some such texts, each held as bytes, as a
message and as text."""


@pytest.fixture(scope="module", params=MODELS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def engine(kind, launch, tiny_folder):
    process = launch("--model-id", str(tiny_folder(MODELS[kind])))
    process.wait_for("Ready")
    before = rss(process)
    yield process
    assert rss(process) - before < MEMORY_MIB


@pytest.fixture(scope="module")
def channel(engine):
    unbounded = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{engine.grpc_port}", options=unbounded) as channel:
        yield channel


@pytest.fixture
def call(channel):
    """Send messages of any bytes to a method; the name of the code, and its details."""

    def send(method, *messages, timeout=30):
        path = f"/{method.containing_service.full_name}/{method.name}"
        try:
            if method.server_streaming:
                answers = list(channel.stream_stream(path)(iter(messages), timeout=timeout))
            elif method.client_streaming:
                answers = [channel.stream_unary(path)(iter(messages), timeout=timeout)]
            else:
                answers = [channel.unary_unary(path)(messages[0], timeout=timeout)]
        except grpc.RpcError as error:
            return error.code().name, error.details()
        assert len(answers) == (len(messages) if method.server_streaming else 1)
        return "OK", ""

    return send


@pytest.fixture(autouse=True)
def still_well(request):
    """After whatever a test did, the engine serves as before."""
    yield
    if "engine" not in request.fixturenames:
        return
    engine, kind, tiny_folder = (request.getfixturevalue(name) for name in ("engine", "kind", "tiny_folder"))
    expected = json.loads((tiny_folder(MODELS[kind]) / "expected.json").read_text())["items"]
    assert_well(engine, expected[0] if kind == "embedding" else None)
    with grpc.insecure_channel(f"127.0.0.1:{engine.grpc_port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        assert check(health_pb2.HealthCheckRequest(service=SERVING[kind]), timeout=20).status == 1
        if kind == "embedding":
            request = tei_pb2.EmbedRequest(inputs=expected[0]["text"])
            answer = tei_pb2_grpc.EmbedStub(channel).Embed(request, timeout=20)
            assert list(answer.embeddings) == pytest.approx(expected[0]["normalized"], abs=5e-6)
        if kind == "reranker":
            query, text = expected[0]["pair"]
            request = tei_pb2.RerankRequest(query=query, texts=[text])
            [rank] = tei_pb2_grpc.RerankStub(channel).Rerank(request, timeout=20).ranks
            assert rank.score == pytest.approx(expected[0]["scores"][0], abs=1e-5)


VALUES = {
    FieldDescriptor.CPPTYPE_STRING: st.text(max_size=40) | st.sampled_from(["word " * 100, "\0", "\u0301" * 90]),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 40) | st.integers(0, 2**32 - 1),
    # numbers that the enum does not have as well: proto3 lets them through
    FieldDescriptor.CPPTYPE_ENUM: st.integers(0, 1) | st.integers(-(2**31), 2**31 - 1),
}


def messages_of(method):
    """Valid messages of the method's request, any of whose fields may be unset."""
    descriptor = method.input_type
    fields = {}
    for field in descriptor.fields:
        value = VALUES[field.cpp_type]
        fields[field.name] = st.none() | (st.lists(value, max_size=4) if field.is_repeated else value)

    def encode(values):
        kept = {name: value for name, value in values.items() if value is not None}
        return getattr(tei_pb2, descriptor.name)(**kept).SerializeToString()

    return st.fixed_dictionaries(fields).map(encode)


def check_valid(call, method, examples):
    seen = Counter()

    @bounded(examples)
    @given(st.lists(messages_of(method), min_size=1, max_size=4))
    def check(messages):
        code, details = call(method, *messages)
        seen[code] += 1
        assert code in DOCUMENTED, (code, details)
        assert "internal error" not in details

    check()
    return seen


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_valid_messages(call, method):
    assert check_valid(call, method, EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_many_valid_messages(call, method):
    check_valid(call, method, EXAMPLES * SLOWER)


def tagged(number, payload, wire=2):
    """A field in protobuf's encoding; wire type 2 is preceded by its length."""
    length, rest = b"", len(payload)
    while wire == 2 and (rest or not length):
        length += bytes([rest & 127 | (128 if rest > 127 else 0)])
        rest >>= 7
    return bytes([number << 3 | wire]) + length + payload


BROKEN = {
    "not UTF-8": tagged(1, b"\xff\xfe"),
    "a surrogate": tagged(1, b"\xed\xa0\x80"),
    "cut short": b"\x0a\x20hello",
    "a group without end": b"\x0b" * 50,
    "field 0": b"\x00\x00",
    "a number of eleven bytes": b"\x10" + b"\xff" * 11,
}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_bytes_that_are_no_message(call, method):
    """Before unary calls the library itself answers, with UNKNOWN; within streams it is we who do."""
    allowed = DOCUMENTED if method.client_streaming else DOCUMENTED | {"UNKNOWN"}
    noise = random.Random(11)
    good = tagged(1, b"hello")
    for broken in (*BROKEN.values(), *(noise.randbytes(noise.randrange(1, 60)) for _ in range(10))):
        for messages in ((broken,), (good, broken, good)):
            code, details = call(method, *messages)
            assert code in allowed, (code, details)
            assert code != "UNKNOWN" or "DecodeError" in details
            assert "internal error" not in details


@pytest.fixture
def embed(channel, kind):
    """Stubs of whatever this kind of model computes: (unary, stream, one message)."""
    if kind == "reranker":
        stub = tei_pb2_grpc.PredictStub(channel)
        return (
            stub.PredictPair,
            stub.PredictPairStream,
            tei_pb2.PredictPairRequest(inputs=["a b", "c"], truncate=True),
        )
    stub = tei_pb2_grpc.EmbedStub(channel)
    if kind == "splade":
        return stub.EmbedSparse, stub.EmbedSparseStream, tei_pb2.EmbedSparseRequest(inputs="a b", truncate=True)
    return stub.Embed, stub.EmbedStream, tei_pb2.EmbedRequest(inputs="a b", truncate=True)


def test_deadlines_that_pass_at_any_moment(embed):
    unary, stream, message = embed
    seen = Counter()
    for number in range(150):
        # up to 3 ms: before the call arrives, while it waits, while it runs, after it
        limit = (number % 30) / 10_000
        try:
            unary(message, timeout=limit)
            list(stream(iter([message] * 3), timeout=limit))
            seen["OK"] += 1
        except grpc.RpcError as error:
            seen[error.code().name] += 1
    assert set(seen) <= {"OK", "DEADLINE_EXCEEDED"}
    assert seen["DEADLINE_EXCEEDED"]


def test_calls_that_are_cancelled_at_any_moment(embed):
    unary, stream, message = embed
    moments = random.Random(17)
    for _ in range(60):
        answers = stream(iter(lambda: message, None), timeout=30)  # messages without end
        for _ in range(moments.randrange(5)):
            next(answers)
        answers.cancel()
        unary.future(message, timeout=30).cancel()
        done = stream(iter([message] * 20), timeout=30)
        next(done)
        del answers, done  # left alone in their middle, which cancels them too


def test_streams_whose_client_fails_in_the_middle(embed):
    _, stream, message = embed

    def failing():
        yield from [message] * 5
        raise ValueError("the client's own fault")

    for _ in range(10):
        with contextlib.suppress(grpc.RpcError):
            list(stream(failing(), timeout=30))


def test_messages_that_are_too_large(call):
    code, details = call(EMBED, tagged(1, b"x" * (33 * 2**20)))
    assert (code, "larger than max" in details) == ("RESOURCE_EXHAUSTED", True)


def test_messages_that_are_nearly_too_large(call):
    for method in METHODS:
        if method.client_streaming or not method.input_type.fields:
            continue
        code, details = call(method, tagged(1, b"x" * LARGEST) + tagged(2, b"\x01", wire=0))
        assert code in DOCUMENTED | {"UNKNOWN"}, details
    code, details = call(DECODE, tagged(1, b"\x05" * LARGEST))
    assert (code, "must have less than" in details) == ("INVALID_ARGUMENT", True)


def test_large_messages_do_not_pile_up(call, engine):
    """Refused or answered, nothing of them stays until a garbage collection."""
    message = tagged(1, b"x" * LARGEST)
    grown = []
    for _ in range(2):
        for _ in range(8):
            call(EMBED, message)
        grown.append(rss(engine))
    assert grown[1] - grown[0] < 4 * 31


def test_methods_that_do_not_exist_or_are_of_another_form(channel, embed):
    _, _, message = embed
    raw = message.SerializeToString()
    for path, code in (("/tei.v1.Embed/Nothing", "UNIMPLEMENTED"), ("/tei.v2.Embed/Embed", "UNIMPLEMENTED")):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(path)(raw, timeout=30)
        assert caught.value.code().name == code
    with contextlib.suppress(grpc.RpcError):  # three messages for a unary call
        list(channel.stream_stream("/tei.v1.Embed/Embed")(iter([raw] * 3), timeout=30))
    with contextlib.suppress(grpc.RpcError):  # one for a stream
        channel.unary_unary("/tei.v1.Embed/EmbedStream")(raw, timeout=30)


def test_metadata_that_is_too_large(channel):
    info = tei_pb2_grpc.InfoStub(channel).Info
    for size in (100, 15_000, 200_000):
        with contextlib.suppress(grpc.RpcError):
            info(tei_pb2.InfoRequest(), metadata=(("x-noise", "y" * size), ("x-bin", bytes(50))), timeout=30)
    assert info(tei_pb2.InfoRequest(), timeout=30).version
