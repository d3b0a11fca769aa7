"""What can be asked, and what the answer must be: one question knows both, whoever asks it and however."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import orjson

Made = TypeVar("Made")

JSON = "application/json"
FULL = 32
"""Inputs that a request may have."""

COSINE = 0.9999
SCORE = 1e-4
"""How far a score may be from the one that the same input had alone."""


class Fault(Exception):
    """An answer that is not what was asked for."""


@dataclass(frozen=True, slots=True)
class HttpQuestion:
    """One HTTP request of `inputs` inputs; `check` is given the body of an answer that has `status`."""

    name: str
    path: str
    body: bytes
    check: Callable[[bytes], None]
    inputs: int = 1
    status: int = 200
    method: str = "POST"
    content_type: str = JSON
    accept: str = "*/*"


@dataclass(frozen=True, slots=True)
class RpcQuestion:
    """One unary call, `Service.Method`; `check` is given the response. `code` other than OK = how it must fail."""

    name: str
    method: str
    request: Any
    check: Callable[[Any], None]
    inputs: int = 1
    code: str = "OK"


@dataclass(frozen=True, slots=True)
class StreamQuestion:
    """One stream of `requests`; `checks` are those of its answers, in order, before it ends with `code`."""

    name: str
    method: str
    requests: Sequence[Any]
    checks: Sequence[Callable[[Any], None]]
    code: str = "OK"


class Questions(Protocol):
    """What one kind of model is asked. Every question is drawn with the caller's generator."""

    def http(self, rng: random.Random) -> HttpQuestion: ...
    def large(self, rng: random.Random) -> HttpQuestion:
        """One with an answer of many kilobytes."""

    def batch(self, rng: random.Random) -> HttpQuestion:
        """One of as many inputs as a request may have."""

    def rpc(self, rng: random.Random) -> RpcQuestion: ...
    def stream(self, rng: random.Random) -> StreamQuestion: ...


class Table:
    """Ways to make something, each with how often it is drawn."""

    def __init__(self, *rows: tuple[float, Callable[[random.Random], Any]]) -> None:
        self._weights = [weight for weight, _ in rows]
        self._makers = [make for _, make in rows]

    def draw(self, rng: random.Random) -> Any:
        """What a maker makes, drawn by weight."""
        return rng.choices(self._makers, self._weights)[0](rng)


def post(name: str, path: str, body: Any, check: Callable[[bytes], None], **more: Any) -> HttpQuestion:
    """A question with a JSON body."""
    return HttpQuestion(name, path, orjson.dumps(body), check, **more)


def anything(_: object) -> None:
    """The check of an answer of which only the status counts."""


def check_vectors(rows: Any, wanted: np.ndarray) -> None:
    """Each row must be the unit vector `wanted` has in its place. Raises Fault."""
    given = np.asarray(rows, dtype=np.float32)
    if given.shape != wanted.shape:
        raise Fault(f"vectors of shape {given.shape}, expected {wanted.shape}")
    cosines = np.einsum("ij,ij->i", given, wanted)
    lengths = np.einsum("ij,ij->i", given, given)
    if not (cosines >= COSINE).all() or not (np.abs(lengths - 1) < 1e-3).all():
        row = int(np.argmin(cosines))
        found = f"cosine {cosines[row]:.5f} with its reference, length {lengths[row] ** 0.5:.5f}"
        raise Fault(f"row {row} of {len(given)}: {found}")


def check_scores(given: Any, wanted: Any) -> None:
    """Each score must be the one `wanted` has in its place. Raises Fault."""
    far = np.abs(np.asarray(given, dtype=np.float64) - np.asarray(wanted, dtype=np.float64))
    if far.size and not far.max() <= SCORE:
        raise Fault(f"a score is {far.max():.2g} from its reference")


def same(given: object, wanted: object, what: str) -> None:
    """Raise Fault unless both are equal."""
    if given != wanted:
        raise Fault(f"{what}: {str(given)[:200]}, expected {str(wanted)[:200]}")


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to length one."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
