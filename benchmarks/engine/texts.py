"""The texts that everybody embeds: made once, with their ids, and handed to all processes as one file."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.engine.plan import MIXED
from tei_engine.errors import RequestError
from tei_engine.tokenization.tokenizer import Piece, Tokenizer

SHORTEST_MIXED = 8
_SEED = 20240229
_TOKENS_OF_A_SET = 8192  # about half a second of a small encoder on two cores
_FEWEST, _MOST = 64, 256  # texts of a set; the fewest give each of 64 clients one of its own
_TRIES = 12
_COMMON = (
    "time year people way day man thing woman life child world school state family student group country "
    "problem hand part place case week company system program question work government number night point home "
    "water room mother area money story fact month lot right study book eye job word business issue side kind "
    "head house service friend father power hour game line end member law car city community name president "
    "team minute idea kid body information back parent face others level office door health person art war "
    "history party result change morning reason research girl guy moment air teacher force education foot boy "
    "age policy process music market sense nation plan college interest death experience effect use class "
    "control field the of and to in a is that it was for on are as with his they be at one have this from by "
    "not but what all were when we there can an your which their said if do will each about how up out them "
    "then she many some so these would other into has more her two like him see could no make than first been "
    "its who now my made over did down only find long little very after called just where most know get "
    "through much before also "
)
_WORDS = tuple(_COMMON.split())


@dataclass(frozen=True, slots=True)
class TextSet:
    """Texts of about the same number of tokens, or of many lengths; `ids` are theirs, special tokens included."""

    name: str
    texts: list[str]
    ids: list[list[int]]

    @property
    def mean_tokens(self) -> float:
        return sum(map(len, self.ids)) / len(self.ids)

    @property
    def label(self) -> int | str:
        """As results name it: the wanted number of tokens, or `mixed`."""
        return int(self.name) if self.name.isdigit() else self.name


@dataclass(frozen=True, slots=True)
class Workload:
    """What every process has to know. `dimension` is the length of a vector."""

    folder: str
    threads: int
    dimension: int
    sets: list[TextSet]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Workload:
        values = json.loads(path.read_text())
        return cls(**values | {"sets": [TextSet(**each) for each in values["sets"]]})

    def set(self, name: str) -> TextSet:
        return next(each for each in self.sets if each.name == name)


def make_sets(tokenizer: Tokenizer, lengths: Sequence[int], *, longest: int) -> list[TextSet]:
    """A set for each of `lengths`, and a mixed one; `longest` is the model's limit. The same on every call."""
    writer = _Writer(tokenizer, longest)
    sets = [writer.make(str(length), [length] * _count(length)) for length in lengths]
    return [*sets, writer.make(MIXED, mixed_lengths(max(lengths)))]


def mixed_lengths(longest: int) -> list[int]:
    """Lengths whose logarithms are spread evenly: many short texts, few long ones, in no order."""
    low = min(SHORTEST_MIXED, longest)
    lengths = [round(low * (longest / low) ** (place / (_MOST // 2 - 1))) for place in range(_MOST // 2)]
    random.Random(_SEED).shuffle(lengths)
    return lengths


def _count(length: int) -> int:
    return max(_FEWEST, min(_MOST, _TOKENS_OF_A_SET // length))


class _Writer:
    def __init__(self, tokenizer: Tokenizer, longest: int) -> None:
        self._tokenizer, self._longest = tokenizer, longest
        self._random = random.Random(_SEED)

    def make(self, name: str, lengths: Sequence[int]) -> TextSet:
        texts = [self._text(length) for length in lengths]
        return TextSet(name, texts, [self._ids(text) for text in texts])

    def _text(self, tokens: int) -> str:
        """A text of `tokens` tokens, or as near to it as whole words allow."""
        words = self._random.choices(_WORDS, k=max(1, tokens - 2))
        best = words
        for _ in range(_TRIES):
            count = len(self._ids(" ".join(words)))
            if abs(count - tokens) <= abs(len(self._ids(" ".join(best))) - tokens):
                best = words
            if count == tokens:
                break
            wanted = max(1, round(len(words) * tokens / count))
            if wanted == len(words):
                wanted = max(1, wanted + (1 if count < tokens else -1))
            added = self._random.choices(_WORDS, k=max(0, wanted - len(words)))
            words = [*words[:wanted], *added]
        return " ".join(best)

    def _ids(self, text: str) -> list[int]:
        [ids] = self._tokenizer.encode(
            [Piece(text=text, truncate=True)],
            max_length=self._longest,
            vocab_size=1,  # only looked at where ids are given
        )
        if isinstance(ids, RequestError):
            raise ids
        return ids
