"""One call as the doors hand it to the data plane: parsed, checked, free of any dialect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

Input = str | Sequence[int]  # a text, or the ids of one text


class Truncate(StrEnum):
    """What becomes of an input that is too long: refused, or cut at its start or end."""

    NONE = "none"
    START = "start"
    END = "end"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedCall:
    """Vectors wanted for `inputs`, in their order. `dimensions` None = as many as the model gives."""

    target: str
    inputs: Sequence[Input]
    dimensions: int | None = None
    truncate: Truncate = Truncate.NONE
    normalize: bool = True
    request_id: str | None = None
