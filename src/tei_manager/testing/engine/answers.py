"""What the testing engine answers: pure functions of the texts, through every door the same.

The one source of numbers is `raw_vector`: block k of a text is SHA-256(SHA-256(text in UTF-8) ‖ k as 4 bytes,
big-endian), k = 0, 1, 2 …; every 4 bytes of the blocks, read as a big-endian unsigned integer u, give the value
u / 2³¹ - 1, which lies in [-1, 1).
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from dataclasses import dataclass

CLS, SEP = 101, 102
_SPECIAL = {CLS: "[CLS]", SEP: "[SEP]"}
_FIRST_WORD_ID = 1000
SPARSE_SIZE = 30522  # of the vocabulary that sparse indices come from
VOCABULARY = _FIRST_WORD_ID + (1 << 24)
LABELS = 3  # of the classifier
_words: dict[int, str] = {}  # ids this process has given out: what `decode` reads


@dataclass(frozen=True, slots=True)
class Token:
    """One word of a text; offsets are UTF-8 bytes, None for the specials around the text."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


def raw_vector(text: str, dimensions: int) -> list[float]:
    """The values of the text before normalisation, as float32; a shorter vector is the start of a longer one."""
    seed = hashlib.sha256(text.encode()).digest()
    blocks = -(-dimensions * 4 // 32)
    stream = b"".join(hashlib.sha256(seed + struct.pack(">I", k)).digest() for k in range(blocks))
    return _float32([u / 2**31 - 1 for u in struct.unpack(f">{dimensions}I", stream[: dimensions * 4])])


def vector(text: str, dimensions: int) -> list[float]:
    """The unit vector of the text: `raw_vector` divided by its length, as float32.

    Every door answers exactly these numbers: JSON, base64, binary and gRPC compare equal with `==`. Because a
    shorter raw vector is the start of a longer one, `vector(text, n)` is also the answer to `dimensions: n`.
    """
    raw = raw_vector(text, dimensions)
    length = math.sqrt(math.fsum(value * value for value in raw))
    return _float32([value / length for value in raw])


def sparse_vector(text: str) -> list[tuple[int, float]]:
    """(index, value) of each distinct word, index ascending: index = token id mod 30522, value in (0, 2)."""
    values = {token_id(word) % SPARSE_SIZE: 1.0 + raw_vector(word, 1)[0] for word in text.split()}
    return [(index, _float32([value])[0]) for index, value in sorted(values.items()) if value > 0]


def class_logits(text: str, pair: str | None = None) -> list[float]:
    """Logits of LABEL_0, LABEL_1, LABEL_2: four times the raw vector of the text, a pair joined by a newline."""
    return _float32([4 * value for value in raw_vector(text if pair is None else f"{text}\n{pair}", LABELS)])


def rank_logit(query: str, text: str) -> float:
    """The re-ranker's logit: four times the first raw value of query, newline, text."""
    return 4 * raw_vector(f"{query}\n{text}", 1)[0]


def sigmoid(logit: float) -> float:
    """The score of a single logit, as float32."""
    return _float32([1 / (1 + math.exp(-logit))])[0]


def softmax(logits: list[float]) -> list[float]:
    """The scores of several logits, as float32."""
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    return _float32([weight / sum(weights) for weight in weights])


def chat_words(prompt: str, count: int) -> list[str]:
    """The words of a chat answer: four hexadecimal digits of the prompt's raw vector each."""
    values = raw_vector(prompt, max(count, 1))[:count]
    return [f"{int((value + 1) * 32767.5):04x}" for value in values]


def token_id(word: str) -> int:
    """1000 + the first three bytes of the word's SHA-256, big-endian."""
    return _FIRST_WORD_ID + int.from_bytes(hashlib.sha256(word.encode()).digest()[:3], "big")


def tokenize(text: str, *, specials: bool = True) -> list[Token]:
    """The words of the text between white space, with [CLS] before and [SEP] after them if `specials`."""
    tokens = []
    for match in re.finditer(r"\S+", text):
        word = match.group()
        number = token_id(word)
        _words.setdefault(number, word)
        start = len(text[: match.start()].encode())
        tokens.append(Token(number, word, False, start, start + len(word.encode())))
    if specials:
        first, last = (Token(number, _SPECIAL[number], True, None, None) for number in (CLS, SEP))
        return [first, *tokens, last]
    return tokens


def decode(ids: list[int], *, skip_specials: bool = True) -> str:
    """The words behind the ids, joined by one space; `[id]` for an id that this process never gave out."""
    kept = (number for number in ids if not (skip_specials and number in _SPECIAL))
    return " ".join(_SPECIAL.get(number) or _words.get(number) or f"[{number}]" for number in kept)


def little_endian(values: list[float]) -> bytes:
    """The values as float32, little-endian, one after the other."""
    return struct.pack(f"<{len(values)}f", *values)


def _float32(values: list[float]) -> list[float]:
    return list(struct.unpack(f"<{len(values)}f", struct.pack(f"<{len(values)}f", *values)))
