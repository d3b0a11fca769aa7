"""Query parameters → values."""

from __future__ import annotations

from typing import TypeVar

from starlette.datastructures import QueryParams

from tei_manager.domain import errors
from tei_manager.kits import parsing

T = TypeVar("T")


def param(query: QueryParams, name: str, shape: parsing.Shape[T]) -> T | None:
    """A query parameter, None if absent. Raises `errors.CallerError` naming it."""
    if (text := query.get(name)) is None:
        return None
    try:
        return shape.read_text(text)
    except parsing.Rejected as refusal:
        raise errors.CallerError(f"{name}: {refusal}, got {parsing.shown(text)}") from None
