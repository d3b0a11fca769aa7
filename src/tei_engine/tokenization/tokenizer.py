"""One model's tokenizer under TEI's rules: limits, truncation, pairs, byte offsets."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# the library would otherwise start a thread per core for a batch, and those cores belong to the model
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tokenizers

from tei_engine import errors
from tei_engine.tokenization import pairs

CHARACTERS_PER_TOKEN = 250
"""TEI's bound on the length of a text: so many characters per token of the model's limit; of ids to decode too."""

Text = str | tuple[str, str]
"""One text, or two that the model is to compare."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One input before tokenising: `text` (its prompt already in front), or `ids` used as given.

    `pair` is the second of two texts that the model is to compare. `prompt` is only looked at for ids: they are
    decoded, the prompt is put in front, the result encoded again.
    """

    text: str | None = None
    pair: str | None = None
    ids: tuple[int, ...] | None = None
    prompt: str | None = None
    truncate: bool = False
    left: bool = False


@dataclass(frozen=True, slots=True)
class Encoded:
    """The ids of one input, and the type of each token; None = all of type 0."""

    ids: list[int]
    types: list[int] | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """One token as `/tokenize` shows it; `start` and `stop` are UTF-8 byte offsets, None for special tokens."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Tokenizer:
    """Encodes inputs to ids of at most `max_length` tokens, special ones included. Threads may share it."""

    def __init__(self, folder: Path) -> None:
        """Read `folder`/tokenizer.json. Its own padding and truncation are dropped: files ship with both set.

        Raises StartError if the file is missing or not a tokenizer.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise errors.StartError(f"tokenizer.json not found in {folder}")
        try:
            self._inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for anything it cannot read
            raise errors.StartError(f"could not read {path}", str(error)) from error
        self._inner.no_padding()
        self._inner.no_truncation()
        self._added = self._inner.num_special_tokens_to_add(False)
        try:
            with _guard():
                self._frame = pairs.read_frame(self._inner)
        except errors.RequestError:  # that is for those to hear who ask for pairs
            self._frame = None
        self._specials = frozenset(
            number for number, token in self._inner.get_added_tokens_decoder().items() if token.special
        )

    def encode(
        self, pieces: Sequence[Piece], *, max_length: int, vocab_size: int
    ) -> list[list[int] | errors.RequestError]:
        """Token ids per piece in order, or the error that this piece alone gets."""
        answers = self.encode_typed(pieces, max_length=max_length, vocab_size=vocab_size)
        return [answer if isinstance(answer, errors.RequestError) else answer.ids for answer in answers]

    def encode_typed(
        self, pieces: Sequence[Piece], *, max_length: int, vocab_size: int
    ) -> list[Encoded | errors.RequestError]:
        """As `encode`, with the types of the tokens, which only pairs have."""
        answers: list[Encoded | errors.RequestError] = [Encoded([]) for _ in pieces]
        texts: list[Text] = []
        rows: list[int] = []
        for row, piece in enumerate(pieces):
            try:
                if piece.ids is not None and piece.prompt is None:
                    answers[row] = Encoded(_checked_ids(piece, piece.ids, max_length, vocab_size))
                else:
                    texts.append(self._bounded(self._text(piece, max_length, vocab_size), piece, max_length))
                    rows.append(row)
            except errors.RequestError as error:
                answers[row] = errors.let_go(error)
        for row, encoded in zip(rows, self._encode_texts(texts), strict=True):
            answers[row] = encoded if isinstance(encoded, errors.RequestError) else _typed(encoded, pieces[row])
        for row, text in zip(rows, texts, strict=True):
            answer = answers[row]
            if isinstance(answer, Encoded) and len(answer.ids) > max_length:
                answers[row] = self._cut(text, pieces[row], max_length, len(answer.ids))
        return answers

    def tokens(self, text: str, *, add_special_tokens: bool, max_length: int) -> list[Token]:
        """Every token of `text`, never truncated. Raises RequestError beyond the character limit."""
        _check_characters(len(text), max_length)
        encoding = self._guarded(text, add_special_tokens)
        # the library counts characters, the protocol bytes; a run of ASCII needs no table
        places = None if text.isascii() else _byte_offsets(text)
        raw = text.encode()
        shown = []
        for number, token, (start, stop), special in zip(
            encoding.ids, encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True
        ):
            if special:
                shown.append(Token(number, token, True, None, None))
                continue
            first, last = (start, stop) if places is None else (places[start], places[stop])
            literal = raw[first:last].decode(errors="replace")
            shown.append(Token(number, literal, number in self._specials, first, last))
        return shown

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool, max_length: int) -> str:
        """The text of `ids`. Raises RequestError if they are too many, or the library cannot decode them."""
        limit = CHARACTERS_PER_TOKEN * max_length
        if len(ids) > limit:
            raise errors.invalid_input(f"`input_ids` must have less than {limit} ids. Given: {len(ids)}")
        # a batch of one: the library's `decode` keeps every other thread of the process from running
        with _guard():
            [text] = self._inner.decode_batch([list(ids)], skip_special_tokens=skip_special_tokens)
            return str(text)

    def _text(self, piece: Piece, max_length: int, vocab_size: int) -> Text:
        if piece.pair is not None:
            return piece.text or "", piece.pair
        if piece.ids is not None:
            _check_range(piece.ids, vocab_size)
            kept = piece.ids
            if piece.truncate:
                kept = kept[_kept(CHARACTERS_PER_TOKEN * max_length, left=piece.left)]
            return (piece.prompt or "") + self.decode(kept, skip_special_tokens=True, max_length=max_length)
        return piece.text or ""

    @staticmethod
    def _bounded(text: Text, piece: Piece, max_length: int) -> Text:
        limit = CHARACTERS_PER_TOKEN * max_length
        length = len(text) if isinstance(text, str) else sum(map(len, text))
        if length <= limit:
            return text
        if not piece.truncate:
            _check_characters(length, max_length)
        kept = _kept(limit, left=piece.left)
        return text[kept] if isinstance(text, str) else (text[0][kept], text[1][kept])

    def _encode_texts(self, texts: list[Text]) -> Iterable[tokenizers.Encoding | errors.RequestError]:
        if not texts:
            return []
        try:
            with _guard():
                encoded: list[tokenizers.Encoding] = self._inner.encode_batch_fast(texts)
                return encoded
        except errors.RequestError:  # one text spoils the call: find which, so that the others are served
            answers: list[tokenizers.Encoding | errors.RequestError] = []
            for text in texts:
                try:
                    answers.append(self._guarded(text, True))
                except errors.RequestError as error:
                    answers.append(errors.let_go(error))
            return answers

    def _guarded(self, text: Text, add_special_tokens: bool) -> tokenizers.Encoding:
        # a batch of one: the library's `encode` keeps every other thread of the process from running
        with _guard():
            [encoded] = self._inner.encode_batch([text], add_special_tokens=add_special_tokens)
            return encoded

    def _cut(self, text: Text, piece: Piece, max_length: int, length: int) -> Encoded | errors.RequestError:
        """The ids of an over-long text: its own tokens are cut, then the special ones put around them."""
        if not piece.truncate:
            return too_many_tokens(length, max_length)
        try:
            if not isinstance(text, str):
                return self._cut_pair(text, piece, max_length)
            with _guard():
                [encoding] = self._inner.encode_batch_fast([text], add_special_tokens=False)
                encoding.truncate(max(0, max_length - self._added), direction="left" if piece.left else "right")
                return _typed(self._inner.post_process(encoding), piece)
        except errors.RequestError as error:
            return errors.let_go(error)

    def _cut_pair(self, texts: tuple[str, str], piece: Piece, max_length: int) -> Encoded:
        if self._frame is None:
            raise errors.tokenizer(ValueError("its frame of pairs could not be read"))
        ids = [self._guarded(text, False).ids for text in texts]
        sizes = pairs.longest_first(len(ids[0]), len(ids[1]), max(0, max_length - self._frame.size))
        first, second = (
            part[len(part) - size :] if piece.left else part[:size] for part, size in zip(ids, sizes, strict=True)
        )
        return Encoded(*self._frame.around(first, second))


def _typed(encoding: tokenizers.Encoding, piece: Piece) -> Encoded:
    types = encoding.type_ids if piece.pair is not None else []
    return Encoded(encoding.ids, types if any(types) else None)


def too_many_tokens(given: int, max_length: int) -> errors.RequestError:
    """TEI's sentence; the limit itself is allowed in spite of its "less than"."""
    return errors.invalid_input(f"`inputs` must have less than {max_length} tokens. Given: {given}")


def _kept(limit: int, *, left: bool) -> slice:
    return slice(-limit, None) if left else slice(limit)


def _check_characters(given: int, max_length: int) -> None:
    limit = CHARACTERS_PER_TOKEN * max_length
    if given > limit:
        raise errors.invalid_input(f"`inputs` must have less than {limit} characters. Given: {given}")


def _check_range(ids: Sequence[int], vocab_size: int) -> None:
    highest = max(ids)
    if highest >= vocab_size:
        raise errors.invalid_input(f"token id {highest} is out of range")


def _checked_ids(piece: Piece, ids: tuple[int, ...], max_length: int, vocab_size: int) -> list[int]:
    _check_range(ids, vocab_size)
    if len(ids) <= max_length:
        return list(ids)
    if not piece.truncate:
        raise too_many_tokens(len(ids), max_length)
    return list(ids[-max_length:] if piece.left else ids[:max_length])


@contextmanager
def _guard() -> Iterator[None]:
    """Whatever the library raises becomes this input's error; its panics, which are no `Exception`, too."""
    try:
        yield
    except BaseException as error:
        raise errors.tokenizer(error) from error


def _byte_offsets(text: str) -> list[int]:
    """`places[i]` = the byte at which character i of `text` begins; one entry more for its end."""
    places = [0]
    at = 0
    for character in text:
        code = ord(character)
        at += 1 if code < 0x80 else 2 if code < 0x800 else 3 if code < 0x10000 else 4
        places.append(at)
    return places
