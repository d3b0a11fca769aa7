"""Reading request bodies: the fields of TEI's JSON, with the answers of its framework to wrong ones."""

from __future__ import annotations

import hmac
from typing import Any

import orjson

from tei_manager.testing.engine.faults import Fault
from tei_manager.testing.engine.http_protocol import Request, Response
from tei_manager.testing.engine.imitation import Input

_JSON = {"content-type": "application/json"}
_DIRECTIONS = ("left", "Left", "right", "Right", None)


class Unreadable(Exception):
    """A request that the framework refuses before TEI sees it: status and plain text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def json(value: object, headers: dict[str, str] | None = None) -> Response:
    """A 200 with this value as JSON."""
    return Response(200, orjson.dumps(value), _JSON | (headers or {}))


def refusal(error: Fault, *, openai: bool) -> Response:
    """A fault in the words of the route's dialect."""
    body: dict[str, object]
    if openai:
        body = {"message": error.message, "code": error.status, "type": error.kind}
    else:
        body = {"error": error.message, "error_type": error.kind}
    retry = {"retry-after": "1"} if error.status in (429, 503) else {}
    return Response(error.status, orjson.dumps(body), _JSON | retry)


def authorized(request: Request, key: str | None) -> bool:
    """Whether the request carries the `--api-key`, if there is one."""
    given = request.headers.get("authorization", "")
    return key is None or hmac.compare_digest(given.encode("latin-1"), f"Bearer {key}".encode())


class Body:
    """The JSON object of a request; every reader raises Unreadable where the type is wrong."""

    def __init__(self, request: Request) -> None:
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if not (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))):
            raise Unreadable(415, "Expected request with `Content-Type: application/json`")
        if request.too_large:
            raise Unreadable(413, "Failed to buffer the request body: length limit exceeded")
        try:
            value = orjson.loads(request.body)
        except orjson.JSONDecodeError as error:
            raise Unreadable(400, f"Failed to parse the request body as JSON: {error}") from None
        if not isinstance(value, dict):
            raise _wrong("expected a map")
        self._fields = value
        if self._fields.get("truncation_direction") not in _DIRECTIONS:
            raise _wrong("truncation_direction: unknown variant")

    def required(self, name: str) -> Any:
        if name not in self._fields:
            raise _wrong(f"missing field `{name}`")
        return self._fields[name]

    def get(self, name: str) -> Any:
        return self._fields.get(name)

    def text(self, name: str) -> str:
        return str(self._typed(name, self.required(name), str, "a string"))

    def optional_text(self, name: str) -> str | None:
        return self._typed(name, value, str, "a string") if (value := self.get(name)) is not None else None

    def texts(self, name: str) -> list[str]:
        value = self.required(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise _wrong(f"{name}: expected a sequence of strings")
        return value

    def flag(self, name: str, default: bool) -> bool:
        return bool(self._typed(name, self._fields.get(name, default), bool, "a boolean"))

    def truncate(self, default: bool) -> bool:
        value = self.get("truncate")
        return default if value is None else self._typed("truncate", value, bool, "a boolean")

    def count(self, name: str) -> int | None:
        value = self.get(name)
        if value is None or _is_uint(value):
            return value  # type: ignore[no-any-return]
        raise _wrong(f"{name}: expected an unsigned integer")

    def inputs(self, name: str) -> tuple[list[Input], bool]:
        """The inputs, and whether they came as a batch: a text, ids (one input), or a list of both."""
        value = self.required(name)
        if isinstance(value, str):
            return [value], False
        if isinstance(value, list):
            if all(_is_uint(item) for item in value):
                return [value], False
            if all(isinstance(item, str) or _are_ids(item) for item in value):
                return value, True
        raise _wrong(f"{name}: data did not match any variant of untagged enum Input")

    def pairs(self) -> tuple[list[list[str]], bool]:
        """The inputs of `/predict`: a text, a text in a list, a pair, or a batch of such lists."""
        value = self.required("inputs")
        if isinstance(value, str):
            return [[value]], False
        if _is_single_or_pair(value):
            return [value], False
        if isinstance(value, list) and value and all(_is_single_or_pair(item) for item in value):
            return value, True
        raise _wrong("inputs: data did not match any variant of untagged enum PredictInput")

    @staticmethod
    def _typed(name: str, value: object, kind: type, words: str) -> Any:
        if not isinstance(value, kind):
            raise _wrong(f"{name}: expected {words}")
        return value


def _wrong(reason: str) -> Unreadable:
    return Unreadable(422, f"Failed to deserialize the JSON body into the target type: {reason}")


def _is_uint(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(_is_uint(item) for item in value)


def _is_single_or_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) in (1, 2) and all(isinstance(item, str) for item in value)
