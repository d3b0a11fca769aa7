"""OpenAI's dialect: `/v1/embeddings` and `/v1/models`. Parses and renders only; the gateway does the work."""

from __future__ import annotations

import asyncio
import binascii
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tei_manager.domain import errors
from tei_manager.domain.instance import Desired, Instance, Status
from tei_manager.domain.request import EmbedCall, Input, Truncate
from tei_manager.ports.fleet import Fleet
from tei_manager.serving.gateway import Gateway
from tei_manager.surfaces.http import wire
from tei_manager.surfaces.http.errors import Refused
from tei_manager.surfaces.http.layers import request_id_of
from tei_manager.surfaces.http.routing import route
from tei_manager.surfaces.http.settings import HttpSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OWNER = "tei-manager"
LARGE_BODY_BYTES = 256 * 1024
SLICE_BYTES = 64 * 1024  # of answer, encoded in well under 2 ms; other requests run between two of them
_STATUS = {
    Status.STOPPED: "unloaded",
    Status.STARTING: "loading",
    Status.RUNNING: "loaded",
    Status.STOPPING: "unloading",
    Status.FAILED: "failed",
}
_ENCODINGS = ("float", "base64")
# of all vendors; without prompts configured they make no difference to our own instances
_INPUT_TYPES = frozenset(
    [
        "query",
        "search_query",
        "retrieval_query",
        "retrieval.query",
        "document",
        "search_document",
        "passage",
        "retrieval_document",
        "retrieval.passage",
        "classification",
        "clustering",
        "separation",
        "similarity",
        "semantic_similarity",
        "text-matching",
    ]
)


class OpenAi:
    def __init__(self, fleet: Fleet, gateway: Gateway, settings: HttpSettings) -> None:
        self._fleet, self._gateway, self._settings = fleet, gateway, settings

    def routes(self) -> list[Route]:
        return [
            route("/v1/embeddings", POST=self.embeddings),
            route("/openai/v1/embeddings", POST=self.embeddings),
            route("/v1/models", GET=self.models),
            route("/openai/models", GET=self.models),
            route("/v1/models/{id:path}", GET=self.model),
        ]

    async def embeddings(self, scope: Scope, receive: Receive, send: Send) -> None:
        wire.check_content_type(scope, suffixes=True)
        body = await wire.read_body(
            scope,
            receive,
            max_mb=self._settings.gateway_max_body_mb,
            idle_timeout_secs=self._settings.body_idle_timeout_secs,
        )
        request_id = request_id_of(scope)

        def understood() -> tuple[EmbedCall, bool]:
            fields = wire.read_object(body)
            return _call(fields, request_id, self._settings.max_inputs), _encoding(fields) == "base64"

        # millions of token ids take a second to check: nobody else waits for it
        is_large = len(body) > LARGE_BODY_BYTES
        call, is_base64 = await asyncio.to_thread(understood) if is_large else understood()
        async with wire.cancelled_when_gone(receive):
            try:
                answer = await self._gateway.embed(call)
            except errors.TeiManagerError as fault:
                raise _with_param(fault) from None
        tokens, is_estimated = answer.tokens, answer.tokens is None
        if tokens is None:
            tokens = sum(math.ceil(len(each) / 4) if isinstance(each, str) else len(each) for each in call.inputs)
        head = {"id": request_id, "object": "list"}
        tail = {"model": call.target, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
        pieces = _pieces(orjson.dumps(head), answer.rows, orjson.dumps(tail), is_base64=is_base64)
        await _send_sliced(send, pieces, headers=(("x-usage", "estimated"),) if is_estimated else ())

    async def models(self, scope: Scope, receive: Receive, send: Send) -> None:
        targets = self._targets()
        await wire.answer_json(send, 200, {"object": "list", "data": [targets[each] for each in sorted(targets)]})

    async def model(self, scope: Scope, receive: Receive, send: Send) -> None:
        wanted = scope["path_params"]["id"]
        if (found := self._targets().get(wanted)) is None:
            raise errors.UnknownTarget(f"The model '{wanted}' does not exist")
        await wire.answer_json(send, 200, found)

    def _targets(self) -> Mapping[str, Mapping[str, object]]:
        """Every name a caller may ask for: of instances that answer, or are meant to."""
        targets: dict[str, Mapping[str, object]] = {}
        # several instances may share a name: one that runs speaks for them
        for instance in sorted(self._fleet.instances(), key=lambda each: each.status is not Status.RUNNING):
            if instance.status is Status.RUNNING or instance.desired is Desired.RUNNING:
                for name in (instance.name, *instance.spec.aliases, instance.spec.model_id):
                    targets.setdefault(name, _model(name, instance))
        return targets


def _model(name: str, instance: Instance) -> Mapping[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": int(instance.created_at),
        "owned_by": OWNER,
        "root": instance.spec.model_id,
        "status": {
            "value": "backoff" if instance.detail == "backoff" else _STATUS[instance.status],
            "since": None,
            "expires_at": None,
            "eta_secs": None,
        },
        "aliases": list(instance.spec.aliases),
    }


def _call(fields: Mapping[str, Any], request_id: str, max_inputs: int) -> EmbedCall:
    """What is asked, or the first thing that is wrong with it. An explicit null is an absent field."""
    target = fields.get("model")
    if not isinstance(target, str) or not target:
        raise Refused("MISSING_REQUIRED_PARAMETER", "you must provide a model parameter", param="model")
    inputs = _inputs(fields.get("input"))
    if len(inputs) > max_inputs:
        raise Refused(
            "ARRAY_ABOVE_MAX_LENGTH",
            f"'input' has {len(inputs)} items, at most {max_inputs} are allowed",
            param="input",
        )
    _encoding(fields)
    _refuse_what_would_change_the_answer(fields)
    return EmbedCall(
        target=target,
        inputs=inputs,
        dimensions=_dimensions(fields),
        truncate=_truncate(fields),
        normalize=_flag(fields, "normalized", default=True),
        request_id=request_id,
    )


def _inputs(value: object) -> Sequence[Input]:
    if value is None:
        raise Refused("MISSING_REQUIRED_PARAMETER", "you must provide an input parameter", param="input")
    if isinstance(value, str):
        value = [value]
    elif isinstance(value, list) and value and all(map(_is_id, value)):
        value = [value]  # one flat list of ids is one input
    if isinstance(value, list) and value:
        if all(isinstance(each, str) and each for each in value):
            return value
        if all(isinstance(each, list) and each and all(map(_is_id, each)) for each in value):
            return value
    raise Refused(
        "INVALID_VALUE",
        "'input' must be a text, a list of texts, a list of token ids or a list of lists of token ids; none empty",
        param="input",
    )


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**32


def _encoding(fields: Mapping[str, Any]) -> str:
    encoding = fields.get("encoding_format")
    if encoding is None:
        return "float"
    if encoding not in _ENCODINGS:
        raise Refused("INVALID_VALUE", "'encoding_format' must be 'float' or 'base64'", param="encoding_format")
    return str(encoding)


def _dimensions(fields: Mapping[str, Any]) -> int | None:
    for name in ("dimensions", "output_dimension"):
        if (value := fields.get(name)) is not None:
            if type(value) is not int or not 1 <= value < 2**32:
                raise Refused("INVALID_VALUE", f"'{name}' must be an integer of at least 1", param=name)
            return value
    return None


def _truncate(fields: Mapping[str, Any]) -> Truncate:
    """The words of all clients that use this path: `truncate`, `truncation`, `truncate_prompt_tokens`."""
    if (word := fields.get("truncate")) is not None and not isinstance(word, bool):
        try:
            return Truncate(str(word).lower())
        except ValueError:
            text = "'truncate' must be true, false, NONE, START or END"
            raise Refused("INVALID_VALUE", text, param="truncate") from None
    if (limit := fields.get("truncate_prompt_tokens")) not in (None, -1):
        text = f"'truncate_prompt_tokens' may be -1 only, not {limit!r:.20}"
        raise Refused("UNSUPPORTED_PARAMETER", text, param="truncate_prompt_tokens")
    is_cut = _flag(fields, "truncate") or _flag(fields, "truncation") or limit is not None
    return Truncate.END if is_cut else Truncate.NONE


def _flag(fields: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    if (value := fields.get(name)) is None:
        return default
    if not isinstance(value, bool):
        raise Refused("INVALID_VALUE", f"'{name}' must be true or false", param=name)
    return value


def _refuse_what_would_change_the_answer(fields: Mapping[str, Any]) -> None:
    """Unknown fields are dropped, but not those that ask for another kind of vector."""
    for name in ("output_dtype", "embedding_type"):
        if fields.get(name) not in (None, *_ENCODINGS):
            raise Refused("UNSUPPORTED_PARAMETER", f"'{name}' may be float only", param=name)
    if fields.get("late_chunking"):
        raise Refused("UNSUPPORTED_PARAMETER", "'late_chunking' is not offered", param="late_chunking")
    for name in ("input_type", "task"):
        word = fields.get(name)
        if word is not None and (not isinstance(word, str) or word.lower() not in _INPUT_TYPES):
            raise Refused("UNSUPPORTED_INPUT_TYPE", f"'{name}' is not one that is known", param=name)


def _with_param(fault: errors.TeiManagerError) -> errors.TeiManagerError:
    """The same fault, told which field of this dialect it is about."""
    text = str(fault)
    param = None
    if fault.code in ("MODEL_NOT_FOUND", "INSTANCE_NOT_FOUND", "OPERATION_NOT_SUPPORTED"):
        param = "model"
    elif fault.code == "INVALID_VALUE":
        param = text.partition(":")[0]
    elif fault.code in ("UPSTREAM_REJECTED", "CONTEXT_LENGTH_EXCEEDED"):
        param = "dimensions" if "`dimensions`" in text else "input"
    fault.param = param  # type: ignore[attr-defined]
    return fault


def _pieces(head: bytes, rows: NDArray[np.float32], tail: bytes, *, is_base64: bool) -> Iterator[bytes]:
    """The answer, piece by piece: one item each. Floats are the shortest that read back the same float32."""
    yield head[:-1] + b',"data":['
    for index, row in enumerate(rows):
        comma = b"," if index else b""
        if is_base64:
            vector = b'"' + binascii.b2a_base64(row.astype("<f4", copy=False).tobytes(), newline=False) + b'"'
        else:
            vector = orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)
        yield b'%b{"object":"embedding","index":%d,"embedding":%b}' % (comma, index, vector)
    yield b"]," + tail[1:]


async def _send_sliced(send: Send, pieces: Iterator[bytes], *, headers: wire.Headers) -> None:
    """A small answer whole, a large one in slices, so that nobody waits for its encoding."""
    buffer: list[bytes] = []
    size, has_begun = 0, False
    for piece in pieces:
        buffer.append(piece)
        size += len(piece)
        if size >= SLICE_BYTES:
            if not has_begun:
                await wire.begin(send, 200, headers=headers)
                has_begun = True
            await send({"type": "http.response.body", "body": b"".join(buffer), "more_body": True})
            await asyncio.sleep(0)
            buffer, size = [], 0
    if not has_begun:
        return await wire.answer(send, 200, b"".join(buffer), headers=headers)
    await send({"type": "http.response.body", "body": b"".join(buffer)})
    return None
