"""Reading the multiplexer's messages at their top level only: the wrapped request is never decoded.

Every wrapper is `{Target target = 1; <tei.v1 message> request = 2}`. Repeated fields are joined in order, which is
what protobuf's merging does to their bytes; unknown fields are dropped.
"""

from __future__ import annotations

from functools import lru_cache

from tei_manager.domain import errors
from tei_manager.domain.target import ByIndex, ByModel, ByName, Routing

_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)
_TARGET_TAG, _REQUEST_TAG = 0x0A, 0x12  # fields 1 and 2, length-delimited
_DEPTH = 100
_CACHED_BYTES = 256


class Malformed(errors.CallerError):
    def __init__(self) -> None:
        super().__init__("Malformed request")


def read(data: bytes, word: str | None) -> tuple[Routing, bytes]:
    """Routing and inner request of a unary call or of a stream's first message.

    `word` is what a missing inner request is called; None: the wrapper has none, and it is empty. Raises
    `errors.CallerError`, checks in the order of the contract.
    """
    target, request = scan(data)
    if target is None:
        raise errors.CallerError("Missing target")
    return _routing(target), _request(request, word)


def read_next(data: bytes, word: str | None, pinned: Routing) -> bytes:
    """The inner request of a later message of a stream that goes where `pinned` says."""
    target, request = scan(data)
    if target is not None and _routing(target) != pinned:
        raise errors.CallerError("Target changed within the stream")
    return _request(request, word)


def scan(data: bytes) -> tuple[bytes | None, bytes | None]:
    """The bytes of fields 1 and 2, None where absent. Raises `Malformed`."""
    # what every generated stub writes for a short target: 0a <length> <target> 12 <length> <request>
    size = len(data)
    if size > 2 and data[0] == _TARGET_TAG and (length := data[1]) < 0x80:
        end = 2 + length
        if end + 1 < size and data[end] == _REQUEST_TAG:
            announced, begin = _varint(data, end + 1)
            if begin + announced == size:
                return data[2:end], data[begin:]
    return _scan(data)


def _scan(data: bytes) -> tuple[bytes | None, bytes | None]:
    target: bytes | None = None
    request: bytes | None = None
    at = 0
    while at < len(data):
        tag, at = _tag(data, at)
        if tag in (_TARGET_TAG, _REQUEST_TAG):
            value, at = _bytes(data, at)
            if tag == _TARGET_TAG:
                target = value if target is None else target + value
            else:
                request = value if request is None else request + value
        else:
            at = _skip(data, at, tag, _DEPTH)
    return target, request


def _request(request: bytes | None, word: str | None) -> bytes:
    if word is None:
        return b""
    if request is None:
        raise errors.CallerError(f"Missing {word} request")
    return request


def _routing(target: bytes) -> Routing:
    routing = _routing_cached(target) if len(target) <= _CACHED_BYTES else routing_of(target)
    if routing is None:
        raise errors.CallerError("No routing specified")
    if isinstance(routing, ByName) and not routing.name:
        raise errors.CallerError("Instance name cannot be empty")
    if isinstance(routing, ByModel) and not routing.model_id:
        raise errors.CallerError("Model id cannot be empty")
    return routing


def routing_of(target: bytes) -> Routing | None:
    """The last known routing field of a `Target`, in the published or in the early numbering, told apart by wire
    type. None: it has none. Raises `Malformed`."""
    found: Routing | None = None
    at = 0
    while at < len(target):
        tag, at = _tag(target, at)
        field, wire = tag >> 3, tag & 7
        if wire == _BYTES and field in (1, 2, 3):
            value, at = _bytes(target, at)
            try:
                text = value.decode()
            except UnicodeDecodeError:
                raise Malformed from None
            found = ByName(text) if field == 1 else ByModel(text)
        elif wire == _VARINT and field in (2, 3):
            number, at = _varint(target, at)
            found = ByIndex(number & 0xFFFFFFFF)
        else:
            at = _skip(target, at, tag, _DEPTH)
    return found


_routing_cached = lru_cache(maxsize=1024)(routing_of)


def _tag(data: bytes, at: int) -> tuple[int, int]:
    begin = at
    tag, at = _varint(data, at)
    if tag >> 3 == 0 or tag > 0xFFFFFFFF or at - begin > 5:
        raise Malformed
    return tag, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    try:
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise Malformed
    except IndexError:
        raise Malformed from None
    if value > 0xFFFFFFFFFFFFFFFF:
        raise Malformed
    return value, at


def _bytes(data: bytes, at: int) -> tuple[bytes, int]:
    length, at = _varint(data, at)
    end = at + length
    if end > len(data):
        raise Malformed
    return data[at:end], end


def _skip(data: bytes, at: int, tag: int, depth: int) -> int:
    """Where the value of an unknown field ends."""
    wire = tag & 7
    if wire == _VARINT:
        return _varint(data, at)[1]
    if wire == _BYTES:
        return _bytes(data, at)[1]
    if wire in (_FIXED64, _FIXED32):
        end = at + (8 if wire == _FIXED64 else 4)
        if end > len(data):
            raise Malformed
        return end
    if wire == _GROUP and depth:
        while True:
            inner, at = _tag(data, at)
            if inner & 7 == _GROUP_END:
                if inner >> 3 != tag >> 3:
                    raise Malformed
                return at
            at = _skip(data, at, inner, depth - 1)
    raise Malformed
