"""Two texts in one input: how much of each is kept, and which special tokens stand around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

_PROBES = ("a", "1", "的")


@dataclass(frozen=True, slots=True)
class Frame:
    """The special tokens before, between and behind two texts, as (id, type), and the types of the texts.

    The library could put them there itself, but it would do so for every piece that truncation cuts off, and for
    each of the first text's with each of the second's.
    """

    before: tuple[tuple[int, int], ...]
    between: tuple[tuple[int, int], ...]
    behind: tuple[tuple[int, int], ...]
    types: tuple[int, int]

    @property
    def size(self) -> int:
        """How many special tokens there are."""
        return len(self.before) + len(self.between) + len(self.behind)

    def around(self, first: list[int], second: list[int]) -> tuple[list[int], list[int]]:
        """Ids and types of the whole input."""
        tokens = [
            *self.before,
            *((number, self.types[0]) for number in first),
            *self.between,
            *((number, self.types[1]) for number in second),
            *self.behind,
        ]
        return [number for number, _ in tokens], [kind for _, kind in tokens]


def read_frame(tokenizer: tokenizers.Tokenizer) -> Frame | None:
    """The frame that `tokenizer` puts around a pair; None if it cannot be told."""
    for probe in _PROBES:
        encoding = tokenizer.encode(probe, probe)
        places = encoding.sequence_ids
        if 0 not in places or 1 not in places:
            continue  # the probe left no token: normalised away
        start, end = places.index(0), len(places) - places[::-1].index(0)
        restart, finish = places.index(1), len(places) - places[::-1].index(1)
        if end > restart:
            return None
        tokens = list(zip(encoding.ids, encoding.type_ids, strict=True))
        return Frame(
            tuple(tokens[:start]),
            tuple(tokens[end:restart]),
            tuple(tokens[finish:]),
            (tokens[start][1], tokens[restart][1]),
        )
    return None


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of two texts to keep so that both fit into `room`: the longer is cut, or both to halves."""
    if first + second <= room:
        return first, second
    short, long = min(first, second), max(first, second)
    long = max(short, room - short)
    if short + long > room:
        short = room // 2
        long = room - short
    return (short, long) if first <= second else (long, short)
