"""Vectors from builds of TEI that speak gRPC only. Pure: messages are written and read, nothing is sent."""

from __future__ import annotations

from collections.abc import Sequence

from tei_manager.domain.request import EmbedCall, Truncate
from tei_manager.domain.target import Endpoint
from tei_manager.grpc.proto.tei.v1 import tei_pb2
from tei_manager.serving import faults
from tei_manager.serving.providers import instances
from tei_manager.serving.providers.instances import Vectors

EMBED, EMBED_STREAM = "/tei.v1.Embed/Embed", "/tei.v1.Embed/EmbedStream"
DECODE = "/tei.v1.Tokenize/Decode"
MAX_BATCH = 256  # texts of one stream: it has no limit of its own, so large requests still spread


def embed_request(call: EmbedCall, text: str) -> bytes:
    """One message. Everything is said: unset fields mean different things in different versions."""
    is_left = call.truncate is Truncate.START
    message = tei_pb2.EmbedRequest(
        inputs=text,
        truncate=call.truncate is not Truncate.NONE,
        normalize=call.normalize,
        truncation_direction=(
            tei_pb2.TRUNCATION_DIRECTION_LEFT if is_left else tei_pb2.TRUNCATION_DIRECTION_RIGHT
        ),
    )
    if call.dimensions is not None:
        message.dimensions = call.dimensions
    return message.SerializeToString()


def decode_request(ids: Sequence[int]) -> bytes:
    """This protocol takes texts only, so ids are turned back first."""
    return tei_pb2.DecodeRequest(ids=ids, skip_special_tokens=True).SerializeToString()


def decode_answer(endpoint: Endpoint, body: bytes) -> str:
    try:
        return tei_pb2.DecodeResponse.FromString(body).text
    except ValueError as error:
        raise faults.malformed(endpoint.instance, "something that is not a text") from error


def embed_answers(endpoint: Endpoint, bodies: Sequence[bytes], count: int) -> Vectors:
    """The vectors in the answers to `count` messages. Raises `errors.UpstreamError` (UPSTREAM_MALFORMED)."""
    import numpy as np

    try:
        answers = [tei_pb2.EmbedResponse.FromString(body) for body in bodies]
        rows = np.array([answer.embeddings for answer in answers], dtype=np.float32)
    except ValueError as error:  # protobuf's DecodeError is one; so are rows of different length
        raise faults.malformed(endpoint.instance, "something that is not vectors") from error
    instances.check(endpoint, rows, count)
    return Vectors(rows, sum(answer.metadata.compute_tokens for answer in answers))
