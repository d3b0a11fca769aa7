"""JSON bodies → values, with the framework's own errors: every field is checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from tei_engine.server.asking import Input, Options, Texts

_UINT = 2**32 - 1
_DEPTH = 128


class BodyError(Exception):
    """The body cannot be read. `status` 400 = not JSON, 422 = JSON of another shape; answered as plain text."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def shape_error(reason: str) -> BodyError:
    """JSON, but not what this route takes."""
    return BodyError(422, f"Failed to deserialize the JSON body into the target type: {reason}")


def read_object(body: bytes) -> Mapping[str, Any]:
    """The JSON object in `body`. Raises BodyError."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BodyError(400, f"Failed to parse the request body as JSON: {error}") from None
    # the depth can only be beyond the limit with that many brackets; strings may hold some too, hence the walk
    if body.count(b"[") + body.count(b"{") > _DEPTH and _depth_exceeds(value):
        raise BodyError(400, "Failed to parse the request body as JSON: recursion limit exceeded")
    return as_object(value)


def as_object(value: Any) -> Mapping[str, Any]:
    """`value`, if it is a JSON object. Raises BodyError."""
    if not isinstance(value, dict):
        raise shape_error("expected an object")
    return value


def _depth_exceeds(value: Any) -> bool:
    level = [value]
    for _ in range(_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (list, dict))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (list, dict))
        ]
        if not level:
            return False
    return True


def read_inputs(body: Mapping[str, Any], key: str) -> tuple[list[Input], bool]:
    """The inputs under `key`, and whether they form a batch: strings, one list of ids, or a list of both."""
    if key not in body:
        raise shape_error(f"missing field `{key}`")
    value = body[key]
    if isinstance(value, str):
        return [value], False
    if isinstance(value, list):
        if all(_is_uint(item) for item in value):
            return [tuple(value)], False
        inputs = [_one_input(item) for item in value]
        if all(item is not None for item in inputs):
            return [item for item in inputs if item is not None], True
    raise shape_error(f"{key}: data did not match any variant of untagged enum Input")


def _one_input(item: Any) -> Input | None:
    if isinstance(item, str):
        return item
    if isinstance(item, list) and all(_is_uint(number) for number in item):
        return tuple(item)
    return None


def _is_uint(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _UINT  # a bool is an int to Python, not to JSON


def read_flag(body: Mapping[str, Any], key: str, *, default: bool) -> bool:
    """A boolean that may be absent but not null."""
    value = body.get(key, default)
    if not isinstance(value, bool):
        raise shape_error(f"{key}: invalid type: expected a boolean")
    return value


def read_options(body: Mapping[str, Any]) -> Options:
    """Options of `/embed`."""
    return Options(
        truncate=_read_truncate(body),
        left=_read_direction(body),
        prompt_name=read_prompt_name(body),
        normalize=read_flag(body, "normalize", default=True),
        dimensions=read_dimensions(body),
    )


def read_text_options(body: Mapping[str, Any]) -> Options:
    """Options of routes that take texts, with a prompt before them."""
    return Options(truncate=_read_truncate(body), left=_read_direction(body), prompt_name=read_prompt_name(body))


def read_truncation(body: Mapping[str, Any]) -> Options:
    """Whether and where over-long inputs are cut."""
    return Options(truncate=_read_truncate(body), left=_read_direction(body))


def _read_truncate(body: Mapping[str, Any]) -> bool | None:
    truncate = body.get("truncate")
    if truncate is not None and not isinstance(truncate, bool):
        raise shape_error("truncate: invalid type: expected a boolean")
    return truncate


def read_prompt_name(body: Mapping[str, Any]) -> str | None:
    """The key `prompt_name`: a string, null or absent."""
    name = body.get("prompt_name")
    if name is not None and not isinstance(name, str):
        raise shape_error("prompt_name: invalid type: expected a string")
    return name


def _read_direction(body: Mapping[str, Any]) -> bool:
    value = body.get("truncation_direction", "right")
    if not isinstance(value, str) or value.lower() not in {"left", "right"} or value[1:] != value[1:].lower():
        raise shape_error(
            "truncation_direction: unknown variant, expected one of `Left`, `left`, `Right`, `right`"
        )
    return value.lower() == "left"


def read_dimensions(body: Mapping[str, Any]) -> int | None:
    """The key `dimensions`: an unsigned integer, null or absent."""
    value = body.get("dimensions")
    if value is not None and not _is_uint(value):
        raise shape_error("dimensions: invalid type: expected u32")
    return value if value is None else int(value)


def read_encoding_format(body: Mapping[str, Any]) -> str:
    """The key `encoding_format`: `float` or `base64`."""
    value = body.get("encoding_format", "float")
    if value not in ("float", "base64"):
        raise shape_error("encoding_format: unknown variant, expected `float` or `base64`")
    return str(value)


def check_unused_texts(body: Mapping[str, Any], *keys: str) -> None:
    """Keys that are ignored must still be strings or null."""
    for key in keys:
        if body.get(key) is not None and not isinstance(body[key], str):
            raise shape_error(f"{key}: invalid type: expected a string")


def read_texts(body: Mapping[str, Any], key: str) -> tuple[list[str], bool]:
    """A string, or a list of strings; and whether it was a list."""
    if key not in body:
        raise shape_error(f"missing field `{key}`")
    value = body[key]
    if isinstance(value, str):
        return [value], False
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value, True
    raise shape_error(f"{key}: expected a string or a list of strings")


def read_id_lists(body: Mapping[str, Any], key: str) -> tuple[list[list[int]], bool]:
    """One list of ids, or a list of such lists; and which of the two it was."""
    if key not in body:
        raise shape_error(f"missing field `{key}`")
    value = body[key]
    if isinstance(value, list) and all(_is_uint(item) for item in value):
        return [value], False
    if isinstance(value, list) and all(
        isinstance(ids, list) and all(_is_uint(item) for item in ids) for ids in value
    ):
        return value, True
    raise shape_error(f"{key}: data did not match any variant of untagged enum InputIds")


def read_text(body: Mapping[str, Any], key: str) -> str:
    """A string that must be there."""
    if key not in body:
        raise shape_error(f"missing field `{key}`")
    value = body[key]
    if not isinstance(value, str):
        raise shape_error(f"{key}: invalid type: expected a string")
    return value


def read_list_of_texts(body: Mapping[str, Any], key: str) -> list[str]:
    """A list of strings that must be there."""
    if key not in body:
        raise shape_error(f"missing field `{key}`")
    value = body[key]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise shape_error(f"{key}: invalid type: expected a list of strings")
    return value


def read_predict_inputs(body: Mapping[str, Any]) -> tuple[list[Texts], bool]:
    """A text, one or two texts in a list, or a list of such lists; and whether it was the last."""
    if "inputs" not in body:
        raise shape_error("missing field `inputs`")
    value = body["inputs"]
    if isinstance(value, str):
        return [(value,)], False
    if _is_texts(value):
        return [tuple(value)], False
    if isinstance(value, list) and value and all(_is_texts(item) for item in value):
        return [tuple(item) for item in value], True
    raise shape_error("inputs: expected a string, a list of one or two strings, or a list of such lists")


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= 2 and all(isinstance(item, str) for item in value)


def read_similarity(body: Mapping[str, Any]) -> tuple[str, list[str], Options]:
    """`/similarity`: the source sentence, the sentences, and the options under `parameters`."""
    inputs = body.get("inputs")
    if not isinstance(inputs, dict):
        raise shape_error("inputs: expected an object with `source_sentence` and `sentences`")
    parameters = body.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise shape_error("parameters: invalid type: expected an object")
    source, sentences = read_text(inputs, "source_sentence"), read_list_of_texts(inputs, "sentences")
    return source, sentences, read_text_options(parameters or {})


_DOCUMENTS = "documents: expected a list of strings or of objects with `text`"


def _document(item: Any) -> str:
    text = item.get("text") if isinstance(item, dict) else item
    if not isinstance(text, str):
        raise shape_error(_DOCUMENTS)
    return text


@dataclass(frozen=True, slots=True)
class Documents:
    """What `/v1/rerank` and `/v2/rerank` are asked."""

    query: str
    texts: list[str]
    top_n: int
    return_documents: bool


def read_documents(body: Mapping[str, Any]) -> Documents:
    """Documents are strings or objects with a `text`; keys of theirs that mean nothing here are ignored."""
    query = read_text(body, "query")
    check_unused_texts(body, "model")
    given = body.get("documents")
    if not isinstance(given, list):
        raise shape_error(_DOCUMENTS)
    texts = [_document(item) for item in given]
    top_n = body.get("top_n", len(texts) or 1)
    if not _is_uint(top_n) or top_n < 1:
        raise shape_error("top_n: invalid value: expected a positive integer")
    return Documents(query, texts, top_n, read_flag(body, "return_documents", default=False))


def read_instances(body: Mapping[str, Any]) -> list[Any]:
    """`/vertex`: bodies of other routes, not looked at yet."""
    instances = body.get("instances")
    if not isinstance(instances, list):
        raise shape_error("instances: expected a list")
    return instances


def f32(value: float) -> np.float32:
    """A float32 that came through Python's doubles: the JSON writer then knows its shortest decimal."""
    return np.float32(value)
