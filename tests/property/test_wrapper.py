"""The scan of wrappers agrees with the protobuf library, on what stubs write and on any bytes."""

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tei_manager.domain import errors
from tei_manager.domain.target import ByIndex, ByModel, ByName, Routing
from tei_manager.grpc.proto.multiplexer.v1 import tei_multiplexer_pb2 as mux_pb2
from tei_manager.grpc.proto.tei.v1 import tei_pb2
from tei_manager.surfaces.grpc import wrapper


def _reference() -> type:
    """A wrapper whose two fields are messages without fields: their bytes come back as unknown ones, merged."""
    file = descriptor_pb2.FileDescriptorProto(name="reference.proto", package="reference", syntax="proto3")
    file.message_type.add(name="Empty")
    message = file.message_type.add(name="Wrapper")
    for number, name in enumerate(("target", "request"), start=1):
        field = message.field.add(name=name, number=number, type=11, label=1, type_name=".reference.Empty")
        assert field.number == number
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("reference.Wrapper"))


Reference = _reference()
Empty = type(Reference().target)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out + bytes((value,)))


def field(number: int, wire: int, value: bytes) -> bytes:
    return varint(number << 3 | wire) + value


def delimited(number: int, value: bytes) -> bytes:
    return field(number, 2, varint(len(value)) + value)


texts = st.text(max_size=20)
numbers = st.integers(1, 20)
unknown = st.one_of(
    st.builds(lambda n, v: field(n, 0, varint(v)), numbers, st.integers(0, 2**64 - 1)),
    st.builds(lambda n, v: field(n, 1, v), numbers, st.binary(min_size=8, max_size=8)),
    st.builds(lambda n, v: field(n, 5, v), numbers, st.binary(min_size=4, max_size=4)),
    st.builds(delimited, st.integers(3, 20), st.binary(max_size=10)),
    st.builds(lambda n, v: field(n, 3, b"") + field(5, 0, varint(v)) + field(n, 4, b""), numbers, st.just(7)),
)
target_fields = st.one_of(
    st.builds(delimited, st.integers(1, 3), texts.map(str.encode)),
    st.builds(lambda n, v: field(n, 0, varint(v)), st.integers(1, 3), st.integers(0, 2**40)),
)
target_bytes = st.lists(target_fields | unknown, max_size=4).map(b"".join)
requests = st.builds(
    lambda text, truncate, normalize: tei_pb2.EmbedRequest(
        inputs=text, truncate=truncate, normalize=normalize
    ).SerializeToString(),
    texts,
    st.booleans(),
    st.none() | st.booleans(),
)
wrappers = st.lists(
    st.one_of(st.builds(delimited, st.just(1), target_bytes), st.builds(delimited, st.just(2), requests), unknown),
    max_size=6,
).map(b"".join)


def scanned(data: bytes) -> tuple[bytes | None, bytes | None] | None:
    try:
        return wrapper.scan(data)
    except wrapper.Malformed:
        return None


@given(wrappers)
def test_what_is_found_is_what_protobuf_finds(data: bytes) -> None:
    found = scanned(data)
    assert found is not None
    reference = Reference.FromString(data)
    for mine, name in zip(found, ("target", "request"), strict=True):
        assert (mine is not None) == reference.HasField(name)
        if mine is not None:
            # unknown fields are written back as they came, or in a canonical form: compare what they mean
            empty = getattr(reference, name).__class__
            assert empty.FromString(mine).SerializeToString() == getattr(reference, name).SerializeToString()


cut_wrappers = st.tuples(wrappers, st.integers(0, 60)).map(lambda pair: pair[0][: pair[1]])


@settings(max_examples=300)
@given(st.binary(max_size=40) | cut_wrappers)
@example(b"\x0a")
@example(b"\x0a\x80")
@example(b"\x0a\x00\x12")
@example(b"\x0b\x0c")
@example(b"\x0b\x14")
@example(b"\x00\x00")
@example(b"\x12\x85\x80\x80\x80\x00hello")
@example(b"\x8a\x80\x80\x80\x80\x00\x00")
def test_malformed_is_what_protobuf_refuses(data: bytes) -> None:
    """Nothing more and nothing less, where the reference also parses the two inner messages."""
    try:
        Reference.FromString(data)
        is_fine = True
    except DecodeError:
        is_fine = False
    found = scanned(data)
    if found is not None:
        inner_is_fine = all(_parses(value) for value in found if value is not None)
        assert is_fine == inner_is_fine
    else:
        assert not is_fine


def _parses(value: bytes) -> bool:
    try:
        Empty.FromString(value)
    except DecodeError:
        return False
    return True


@given(
    st.builds(mux_pb2.Target, instance_name=texts)
    | st.builds(mux_pb2.Target, model_id=texts)
    | st.builds(mux_pb2.Target, instance_index=st.integers(0, 2**32 - 1)),
    requests,
)
def test_the_published_numbering_routes_as_the_library_reads_it(target: mux_pb2.Target, request: bytes) -> None:
    wrapped = mux_pb2.EmbedRequest(target=target, request=tei_pb2.EmbedRequest.FromString(request))
    kind = target.WhichOneof("routing")
    expected: Routing = (
        ByName(target.instance_name)
        if kind == "instance_name"
        else ByModel(target.model_id)
        if kind == "model_id"
        else ByIndex(target.instance_index)
    )
    if expected in (ByName(""), ByModel("")):
        with pytest.raises(errors.CallerError, match="cannot be empty"):
            wrapper.read(wrapped.SerializeToString(), "embed")
        return
    assert wrapper.read(wrapped.SerializeToString(), "embed") == (expected, request)


@given(st.lists(st.tuples(st.sampled_from("nxiIm"), texts, st.integers(0, 2**33)), min_size=1, max_size=4))
def test_the_last_known_routing_field_wins_in_both_numberings(fields: list[tuple[str, str, int]]) -> None:
    data = b""
    expected: Routing | None = None
    for kind, text, number in fields:
        data += {
            "n": delimited(1, text.encode()),
            "x": delimited(2, text.encode()),
            "m": delimited(3, text.encode()),
            "i": field(2, 0, varint(number)),
            "I": field(3, 0, varint(number)),
        }[kind]
        expected = ByName(text) if kind == "n" else ByModel(text) if kind in "xm" else ByIndex(number % 2**32)
    assert wrapper.routing_of(data) == expected
