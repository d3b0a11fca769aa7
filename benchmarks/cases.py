"""What is measured: the rows of the tables, as plain values that travel to the load generator as JSON."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

Kind = Literal["unary", "concurrent", "stream", "http"]
Encoding = Literal["float", "base64"]

TEXT_SIZES = (("short", 2), ("medium", 50), ("long", 200), ("extra-long", 400))
WIDTHS = (5, 10, 20)
QUERY_WORDS = 12
MOST_WARM_UP = 200
_SENTENCE = (
    "the engine reads a sentence and gives a vector that stands near the vectors of sentences which mean about "
    "the same while other texts lie far away so a search finds what people asked for even when no word is equal"
)
_WORDS = tuple(_SENTENCE.split())


@dataclass(frozen=True, slots=True)
class Case:
    """One row. A sample is the wall time of one call, of `width` calls at once (`concurrent`), of one stream of
    `width` messages (`stream`), or of one request of one of `width` clients (`http`)."""

    kind: Kind
    label: str
    samples: int  # of each column
    budget_secs: float  # after which no further block begins
    words: int = QUERY_WORDS
    width: int = 1
    texts: int = 1  # of one HTTP request
    encoding: Encoding = "float"

    @property
    def warm_up(self) -> int:
        """Samples that are made and forgotten, for each column."""
        return max(1, min(self.samples, MOST_WARM_UP // (self.width * self.texts)))


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured of one engine."""

    calls: int
    budget_secs: float
    is_full: bool = False
    has_large_batches: bool = True  # 8 clients with 32 texts each keep a real model busy for a second

    def batches(self, width: int) -> int:
        """How many batches of `width` calls: 100 are the fewest whose median is worth printing."""
        return self.calls if self.is_full else max(self.calls // width, min(self.calls, 100))


def text(words: int, number: int = 0) -> str:
    """A text of so many words; another number gives another text."""
    return " ".join(_WORDS[(number * 7 + i) % len(_WORDS)] for i in range(words))


def grpc_cases(effort: Effort) -> Iterator[Case]:
    for label, words in TEXT_SIZES:
        yield Case("unary", label, effort.calls, effort.budget_secs, words=words)
    for width in WIDTHS:
        yield Case("concurrent", str(width), effort.batches(width), effort.budget_secs, width=width)
    for width in WIDTHS:
        yield Case("stream", str(width), effort.batches(width), effort.budget_secs, width=width)


def http_cases(effort: Effort) -> Iterator[Case]:
    for texts, encoding, clients in itertools.product((1, 32), ("float", "base64"), (1, 8)):
        if texts > 1 and clients > 1 and not effort.has_large_batches:
            continue
        label = f"{texts} text{'s' * (texts > 1)}, {encoding}, {clients} client{'s' * (clients > 1)}"
        samples = effort.calls if texts == 1 else effort.batches(10)
        yield Case(
            "http",
            label,
            samples,
            effort.budget_secs,
            width=clients,
            texts=texts,
            encoding=cast("Encoding", encoding),
        )
