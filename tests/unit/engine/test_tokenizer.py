"""Limits, truncation and offsets."""

import pytest

from tei_engine import errors
from tei_engine.tokenization.tokenizer import Piece, Tokenizer


@pytest.fixture
def bert(tiny):
    return tiny("bert-mean").tokenizer


def encode(tokenizer, *pieces, limit=16, vocab=520):
    return tokenizer.encode(pieces, max_length=limit, vocab_size=vocab)


def test_the_files_own_padding_and_truncation_are_dropped(bert):
    [short, long] = encode(bert, Piece(text="a"), Piece(text="a " * 40), limit=64)
    assert len(short) == 3
    assert len(long) == 42


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_truncation_keeps_the_special_tokens(bert, left):
    text = "a b c d e f g h i j k l m n o p q r s t"
    [whole] = encode(bert, Piece(text=text), limit=64)
    [cut] = encode(bert, Piece(text=text, truncate=True, left=left))
    kept = whole[1:-1][-14:] if left else whole[1:-1][:14]
    assert cut == [whole[0], *kept, whole[-1]]


def test_the_limit_itself_is_allowed(bert):
    [fits] = encode(bert, Piece(text="a " * 14))
    assert len(fits) == 16
    [over] = encode(bert, Piece(text="a " * 15))
    assert isinstance(over, errors.RequestError)
    assert str(over) == "Input validation error: `inputs` must have less than 16 tokens. Given: 17"


def test_characters_are_limited_before_anything_is_tokenised(bert):
    [fits, over, cut] = encode(
        bert, Piece(text="é" * 4000), Piece(text="é" * 4001), Piece(text="é" * 4001, truncate=True)
    )
    assert isinstance(fits, list)
    assert str(over) == "Input validation error: `inputs` must have less than 4000 characters. Given: 4001"
    assert cut == fits


def test_one_bad_piece_fails_alone(bert):
    answers = encode(bert, Piece(text="a"), Piece(ids=(520,)), Piece(text="a " * 30), Piece(ids=(1, 2)))
    assert [isinstance(answer, errors.RequestError) for answer in answers] == [False, True, True, False]
    assert answers[3] == [1, 2]


def test_ids_are_cut_on_either_side(bert):
    ids = tuple(range(100, 120))
    assert encode(bert, Piece(ids=ids, truncate=True)) == [list(ids[:16])]
    assert encode(bert, Piece(ids=ids, truncate=True, left=True)) == [list(ids[-16:])]


def test_byte_offsets_of_byte_level_tokens(tiny):
    tokenizer = tiny("roberta-mean").tokenizer
    text = "naïve 東京 🤷"
    tokens = tokenizer.tokens(text, add_special_tokens=True, max_length=64)
    raw = text.encode()
    assert tokens[0].special
    assert tokens[0].start is None
    covered = max(token.stop for token in tokens if token.stop is not None)
    assert covered == len(raw)


def test_a_tokenizer_that_cannot_be_read(tmp_path):
    with pytest.raises(errors.StartError, match=r"tokenizer\.json not found"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(errors.StartError, match="could not read"):
        Tokenizer(tmp_path)
