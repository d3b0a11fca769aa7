"""How our own instances are asked for vectors, by engine. Pure: what was asked is written, what came is read."""

from __future__ import annotations

import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from tei_manager.domain.instance import EngineKind
from tei_manager.domain.request import EmbedCall, Input, Truncate
from tei_manager.domain.target import Endpoint
from tei_manager.ports.http_upstream import Answer, Wire
from tei_manager.serving import faults

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OCTETS = "application/octet-stream"
DEFAULT_BATCH = 32  # TEI's own default for --max-client-batch-size
OPENAI_BATCH = 256  # servers that only speak OpenAI's dialect do not report one
SPEAKS_OPENAI = frozenset({EngineKind.COMMAND, EngineKind.VLLM, EngineKind.LLAMACPP})
_TYPE = ("content-type", "application/json")


@dataclass(frozen=True, slots=True)
class Vectors:
    """Rows in the order of the inputs, contiguous float32. `tokens` None = the engine did not say."""

    rows: NDArray[np.float32]
    tokens: int | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What an engine says of itself. None = unknown."""

    max_batch: int = DEFAULT_BATCH
    does: str | None = None  # embed, classify, rerank, sparse
    vocabulary: int | None = None
    dimensions: int | None = None


_VLLM_CUT: Mapping[Truncate, Mapping[str, object]] = {
    Truncate.NONE: {},
    Truncate.END: {"truncate_prompt_tokens": -1},
    Truncate.START: {"truncate_prompt_tokens": -1, "truncation_side": "left"},
}

INFO = Wire("GET", "/info")


def info_of(answer: Answer, *, default_batch: int = DEFAULT_BATCH) -> Facts | None:
    """The facts in an answer to `INFO`; None if it holds none."""
    try:
        info = orjson.loads(answer.body) if answer.status == 200 else None
    except orjson.JSONDecodeError:
        return None
    if not isinstance(info, Mapping):
        return None
    engine = info.get("engine")
    engine = engine if isinstance(engine, Mapping) else {}
    return Facts(
        max_batch=_positive(info.get("max_client_batch_size")) or default_batch,
        does=_operation(info.get("model_type")),
        vocabulary=_positive(engine.get("vocab_size")),
        dimensions=_positive(engine.get("embedding_dimension")),
    )


def embed_request(
    endpoint: Endpoint, call: EmbedCall, inputs: Sequence[Input], *, wants_base64: bool = True
) -> Wire:
    """One batch of a call's inputs as this endpoint's engine wants it. Unset fields are omitted, never null."""
    size = {} if call.dimensions is None else {"dimensions": call.dimensions}
    if endpoint.engine in SPEAKS_OPENAI:
        encoding = {"encoding_format": "base64"} if wants_base64 else {}
        cut = _VLLM_CUT[call.truncate] if endpoint.engine is EngineKind.VLLM else {}
        body: dict[str, object] = {
            "model": endpoint.model_id,
            "input": _plain(inputs),
            **encoding,
            **size,
            **cut,
        }
        return Wire("POST", "/v1/embeddings", orjson.dumps(body), dict((_TYPE,)))
    # truncate is always said: left out, it would mean whatever this engine was started with
    body = {"inputs": _plain(inputs), "truncate": call.truncate is not Truncate.NONE, **size}
    if call.truncate is Truncate.START:
        body["truncation_direction"] = "Left"
    if not call.normalize:
        body["normalize"] = False
    accept = OCTETS if endpoint.engine is EngineKind.EMBEDDED else "application/json"
    return Wire("POST", "/embed", orjson.dumps(body), dict((_TYPE, ("accept", accept))))


def embed_answer(endpoint: Endpoint, answer: Answer, count: int) -> Vectors:
    """The vectors in an answer. What came is recognised by what it is, not by what was asked.

    Raises `errors.UpstreamRefused` for an error answer, `errors.UpstreamError` (UPSTREAM_MALFORMED) for nonsense.
    """
    if answer.status != 200:
        raise faults.read(endpoint.instance, answer)
    try:
        if answer.headers.get("content-type", "").startswith(OCTETS):
            rows, tokens = _from_octets(answer, count), None
        else:
            rows, tokens = _from_json(orjson.loads(answer.body), count)
    except (ValueError, TypeError, KeyError, binascii.Error) as error:
        raise faults.malformed(endpoint.instance, "something that is not vectors") from error
    check(endpoint, rows, count)
    if tokens is None:
        tokens = _count(answer.headers.get("x-compute-tokens"))
    return Vectors(rows, tokens)


def _plain(inputs: Sequence[Input]) -> Any:
    # one flat list of ids means one input to TEI: only a nested list is never misread
    return list(inputs) if len(inputs) > 1 or not isinstance(inputs[0], str) else inputs[0]


def _from_octets(answer: Answer, count: int) -> NDArray[np.float32]:
    import numpy as np

    if len(answer.body) % (4 * count):
        raise ValueError("not whole rows")
    return np.frombuffer(answer.body, dtype="<f4").reshape(count, -1)


def _from_json(value: Any, count: int) -> tuple[NDArray[np.float32], int | None]:
    if isinstance(value, list):  # TEI: bare rows
        return _array(value), None
    items = value["data"]
    rows: list[Any] = [None] * count
    for position, item in enumerate(items):
        rows[_place(item, position, rows)] = item["embedding"]
    usage = value.get("usage") or {}
    tokens = usage.get("prompt_tokens")
    if any(isinstance(row, str) for row in rows):
        return _from_base64(rows), _count(tokens)
    return _array(rows), _count(tokens)


def _place(item: Mapping[str, Any], position: int, rows: Sequence[Any]) -> int:
    place = item.get("index", position)
    if (
        isinstance(place, bool)
        or not isinstance(place, int)
        or not 0 <= place < len(rows)
        or rows[place] is not None
    ):
        raise ValueError("indexes are no permutation")
    return place


def _from_base64(rows: Sequence[Any]) -> NDArray[np.float32]:
    import numpy as np

    return np.stack([np.frombuffer(binascii.a2b_base64(row, strict_mode=True), dtype="<f4") for row in rows])


def _array(rows: list[Any]) -> NDArray[np.float32]:
    import numpy as np

    wide = np.array(rows)
    if wide.dtype.kind not in "fiu":  # texts, nulls, booleans
        raise ValueError("not numbers")
    with np.errstate(over="ignore"):
        return wide.astype(np.float32)


def check(endpoint: Endpoint, rows: NDArray[np.float32], count: int) -> None:
    """One finite row per input. Raises `errors.UpstreamError` (UPSTREAM_MALFORMED)."""
    import numpy as np

    if rows.ndim != 2 or rows.shape[0] != count or not rows.shape[1]:
        raise faults.malformed(endpoint.instance, f"vectors of shape {rows.shape} to {count} inputs")
    if not np.isfinite(rows).all():
        raise faults.malformed(endpoint.instance, "numbers that are not finite")


def _operation(model_type: object) -> str | None:
    if not isinstance(model_type, Mapping):
        return None
    if isinstance(embedding := model_type.get("embedding"), Mapping):
        return "sparse" if embedding.get("pooling") == "splade" else "embed"
    return "classify" if "classifier" in model_type else "rerank" if "reranker" in model_type else None


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _count(value: object) -> int | None:
    if isinstance(value, str):
        return int(value) if value.isdigit() else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
