"""What surrounds every gRPC call: the key, reflection, traces, pings."""

import socket
import struct

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tests.integration.engine.calling import channel_to, failure, wait_until

from tei_manager.grpc.proto.tei.v1 import tei_pb2, tei_pb2_grpc

KEY = ("authorization", "Bearer s3cret")
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def engine(launch, tiny_folder):
    process = launch(
        *("--model-id", str(tiny_folder("bert-mean")), "--api-key", "s3cret"), env={"LOG_LEVEL": "debug"}
    )
    process.wait_for("Ready")
    return process


@pytest.fixture(scope="module")
def channel(engine):
    with channel_to(engine) as channel:
        yield channel


# the published protocol, field numbers counted from 1; ? = optional, * = repeated
SERVICES = {
    "Info": "Info",
    "Embed": "Embed EmbedStream EmbedSparse EmbedSparseStream EmbedAll EmbedAllStream",
    "Predict": "Predict PredictPair PredictStream PredictPairStream",
    "Rerank": "Rerank RerankStream",
    "Tokenize": "Tokenize TokenizeStream Decode DecodeStream",
}
TEXT = "inputs:string truncate:bool"
MESSAGES = {
    "InfoRequest": "",
    "InfoResponse": "version:string sha:string? docker_label:string? model_id:string model_sha:string? "
    "model_dtype:string model_type:ModelType max_concurrent_requests:uint32 max_input_length:uint32 "
    "max_batch_tokens:uint32 max_batch_requests:uint32? max_client_batch_size:uint32 tokenization_workers:uint32",
    "Metadata": "compute_chars:uint32 compute_tokens:uint32 total_time_ns:uint64 tokenization_time_ns:uint64 "
    "queue_time_ns:uint64 inference_time_ns:uint64",
    "EmbedRequest": f"{TEXT} normalize:bool? truncation_direction:TruncationDirection prompt_name:string? "
    "dimensions:uint32?",
    "EmbedResponse": "embeddings:float* metadata:Metadata",
    "EmbedSparseRequest": f"{TEXT} truncation_direction:TruncationDirection prompt_name:string?",
    "SparseValue": "index:uint32 value:float",
    "EmbedSparseResponse": "sparse_embeddings:SparseValue* metadata:Metadata",
    "EmbedAllRequest": f"{TEXT} truncation_direction:TruncationDirection prompt_name:string?",
    "TokenEmbedding": "embeddings:float*",
    "EmbedAllResponse": "token_embeddings:TokenEmbedding* metadata:Metadata",
    "PredictRequest": f"{TEXT} raw_scores:bool truncation_direction:TruncationDirection",
    "PredictPairRequest": "inputs:string* truncate:bool raw_scores:bool truncation_direction:TruncationDirection",
    "Prediction": "score:float label:string",
    "PredictResponse": "predictions:Prediction* metadata:Metadata",
    "RerankRequest": "query:string texts:string* truncate:bool raw_scores:bool return_text:bool "
    "truncation_direction:TruncationDirection",
    "RerankStreamRequest": "query:string text:string truncate:bool raw_scores:bool return_text:bool "
    "truncation_direction:TruncationDirection",
    "Rank": "index:uint32 text:string? score:float",
    "RerankResponse": "ranks:Rank* metadata:Metadata",
    "EncodeRequest": "inputs:string add_special_tokens:bool prompt_name:string?",
    "SimpleToken": "id:uint32 text:string special:bool start:uint32? stop:uint32?",
    "EncodeResponse": "tokens:SimpleToken*",
    "DecodeRequest": "ids:uint32* skip_special_tokens:bool",
    "DecodeResponse": "text:string",
}
ENUMS = {
    "ModelType": ["MODEL_TYPE_EMBEDDING", "MODEL_TYPE_CLASSIFIER", "MODEL_TYPE_RERANKER"],
    "TruncationDirection": ["TRUNCATION_DIRECTION_RIGHT", "TRUNCATION_DIRECTION_LEFT"],
}

METHODS = [method for service in tei_pb2.DESCRIPTOR.services_by_name.values() for method in service.methods]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer other"),), (("authorization", "s3cret"),)])
def test_every_method_asks_for_the_key(channel, method, metadata):
    shape = (
        f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    )
    call = getattr(channel, shape)(f"/{method.containing_service.full_name}/{method.name}")
    given = iter([b""]) if method.client_streaming else b""

    def ask():
        answer = call(given, metadata=metadata, timeout=20)
        return list(answer) if method.server_streaming else answer

    assert failure(ask) == ("UNAUTHENTICATED", "No valid auth token")


def test_methods_that_are_not_there(channel):
    call = channel.unary_unary("/tei.v1.Embed/EmbedTwice")
    assert failure(lambda: call(b"", metadata=(KEY,), timeout=20))[0] == "UNIMPLEMENTED"


def test_bytes_that_are_no_message_harm_nobody(channel):
    call = channel.unary_unary("/tei.v1.Embed/Embed")
    assert failure(lambda: call(b"\xff\xff", metadata=(KEY,), timeout=20))[0] == "UNKNOWN"
    assert tei_pb2_grpc.EmbedStub(channel).Embed(tei_pb2.EmbedRequest(inputs="a"), metadata=(KEY,)).embeddings


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_describes_every_service(channel, version):
    database = ProtoReflectionDescriptorDatabase(renamed(channel, version))
    services = database.get_services()
    reflection = {f"grpc.reflection.{one}.ServerReflection" for one in ("v1", "v1alpha")}
    assert set(services) == {f"tei.v1.{name}" for name in SERVICES} | reflection | {"grpc.health.v1.Health"}
    pool = DescriptorPool(database)
    described = {name: [one.name for one in pool.FindServiceByName(name).methods] for name in services}
    assert {name: described[f"tei.v1.{name}"] for name in SERVICES} == {
        name: methods.split() for name, methods in SERVICES.items()
    }
    with pytest.raises(KeyError):
        database.FindFileContainingSymbol("tei.v1.Nothing")


def test_the_protocol_is_the_published_one(channel):
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    for name, fields in MESSAGES.items():
        shown = pool.FindMessageTypeByName(f"tei.v1.{name}").fields
        known = [spelled(field) for field in shown if (name, field.name) not in ADDED]
        assert known == fields.split(), name
        assert [field.number for field in shown] == list(range(1, len(shown) + 1))
    for name, values in ENUMS.items():
        assert [one.name for one in pool.FindEnumTypeByName(f"tei.v1.{name}").values] == values
        assert [one.number for one in pool.FindEnumTypeByName(f"tei.v1.{name}").values] == [*range(len(values))]


ADDED = {("EncodeResponse", "metadata"), ("DecodeResponse", "metadata")}
SCALARS = {2: "float", 4: "uint64", 8: "bool", 9: "string", 13: "uint32"}


def spelled(field):
    kind = field.message_type or field.enum_type
    optional = bool(field.containing_oneof) and not field.is_repeated
    many = "*" if field.is_repeated else "?" if optional else ""
    return f"{field.name}:{kind.name if kind else SCALARS[field.type]}{many}"


def renamed(channel, version):
    """A connection on which reflection's only published client, that of v1alpha, speaks to `version`."""

    class Renamed(grpc.Channel):
        def stream_stream(self, method, *arguments, **named):
            return channel.stream_stream(method.replace("v1alpha", version), *arguments, **named)

        unary_unary = unary_stream = stream_unary = subscribe = unsubscribe = close = None
        __enter__ = __exit__ = None

    return Renamed()


def test_reflection_is_asked_with_its_own_messages(channel):
    call = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    assert failure(lambda: list(call(iter([b"\xff\xff"]), timeout=20))) == (
        "INVALID_ARGUMENT",
        "not a ServerReflectionRequest",
    )
    [answer] = call(iter([b""]), timeout=20)
    assert reflection_pb2.ServerReflectionResponse.FromString(answer).error_response.error_code == 3


@pytest.fixture
def traces_of(engine):
    """Wait for `count` new log lines that begin with `start`, and give the traces they carry."""
    seen = len(engine.lines)

    def of(start, count):
        def found():
            return [line for line in engine.lines[seen:] if line["message"].startswith(start)]

        wait_until(lambda: len(found()) >= count)
        return [line.get("trace_id") for line in found()]

    return of


def test_lines_about_a_traced_call_carry_its_trace(traces_of, channel):
    stub = tei_pb2_grpc.EmbedStub(channel)
    request = tei_pb2.EmbedRequest(inputs="a")
    traced = (KEY, ("traceparent", TRACEPARENT))
    stub.Embed(request, metadata=traced, timeout=20)
    stub.Embed(request, metadata=(KEY,), timeout=20)
    stub.Embed(request, metadata=(KEY, ("traceparent", "00-nonsense")), timeout=20)
    assert traces_of("gRPC Embed OK", 3) == [TRACE, None, None]
    list(stub.EmbedStream(iter([request]), metadata=traced, timeout=20))
    assert traces_of("gRPC EmbedStream OK", 1) == [TRACE]


def test_lines_about_a_traced_request_carry_its_trace(traces_of, engine):
    key = {"authorization": "Bearer s3cret"}
    engine.post("/embed", {"inputs": "a"}, traceparent=TRACEPARENT, **key)
    engine.post("/embed", {"inputs": "a"}, **key)
    engine.post("/embed", {"inputs": "a"}, traceparent=TRACEPARENT.upper(), **key)
    assert traces_of("POST /embed 200", 3) == [TRACE, None, None]


def test_a_trace_does_not_pass_to_the_next_request_of_a_connection(traces_of, engine):
    """Requests sent at once, before the first is answered."""
    head = b"GET /info HTTP/1.1\r\nhost: a\r\nauthorization: Bearer s3cret\r\n"
    traced = head + b"traceparent: " + TRACEPARENT.encode() + b"\r\n\r\n"
    with socket.create_connection(("127.0.0.1", engine.port), timeout=20) as connection:
        connection.sendall(traced + head + b"\r\n" + traced)
        assert traces_of("GET /info", 3) == [TRACE, None, TRACE]


def test_frequent_pings_are_answered(engine):
    """HTTP/2 by hand: pings without a call, which servers may take for an attack."""
    ping, goaway, ack = 6, 7, 1
    with socket.create_connection(("127.0.0.1", engine.grpc_port), timeout=20) as connection:
        settings = struct.pack(">I", 0)[1:] + bytes([4, 0, 0, 0, 0, 0])
        frame = struct.pack(">I", 8)[1:] + bytes([ping, 0, 0, 0, 0, 0])
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
        stream = connection.makefile("rb")
        for number in range(20):
            connection.sendall(frame + number.to_bytes(8))
            while True:
                head = stream.read(9)
                body = stream.read(int.from_bytes(head[:3]))
                assert head[3] != goaway, body
                if head[3] == ping and head[4] & ack:
                    break
            assert int.from_bytes(body) == number
