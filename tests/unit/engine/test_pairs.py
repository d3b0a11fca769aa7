"""Two texts in one input, cut as the tokenizer library itself would cut them."""

import random

import pytest
import tokenizers

from tei_engine import errors
from tei_engine.tokenization.pairs import longest_first, read_frame
from tei_engine.tokenization.tokenizer import Piece

NAMES = ("bert-reranker", "roberta-reranker", "xlm-roberta-reranker", "modernbert-reranker", "albert-mean")


def library(folder):
    """The library's own tokenizer of a folder, without what the file says of padding."""
    inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.no_padding()
    return inner


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("name", NAMES)
def test_pairs_are_cut_longest_first(tiny, name, left):
    one = tiny(name)
    reference = library(one.folder)
    chance = random.Random(7)
    words = ["the", "river", "ferry", "of", "Paris", "über", "naïve", "東京", "1234", ",", "-"]
    for _ in range(60):
        texts = [" ".join(chance.choices(words, k=chance.choice([0, 1, 3, 20]))) for _ in range(2)]
        longest = chance.randint(5, 40)
        reference.enable_truncation(longest, strategy="longest_first", direction="left" if left else "right")
        expected = reference.encode(*texts)
        piece = Piece(text=texts[0], pair=texts[1], truncate=True, left=left)
        [answer] = one.tokenizer.encode_typed([piece], max_length=longest, vocab_size=one.model.vocab_size)
        assert answer.ids == expected.ids
        assert (answer.types or [0] * len(answer.ids)) == expected.type_ids


@pytest.mark.parametrize("name", NAMES)
def test_the_frame_is_the_librarys(tiny, name):
    inner = library(tiny(name).folder)
    frame = read_frame(inner)
    assert frame is not None
    assert frame.size == inner.num_special_tokens_to_add(True)
    texts = ("the river", "of Paris, 1234")
    whole = inner.encode(*texts)
    parts = (inner.encode(text, add_special_tokens=False).ids for text in texts)
    assert frame.around(*parts) == (whole.ids, whole.type_ids)


@pytest.mark.parametrize(
    ("sizes", "room", "kept"),
    [
        ((3, 4), 7, (3, 4)),
        ((3, 40), 20, (3, 17)),
        ((40, 3), 20, (17, 3)),
        ((40, 50), 21, (10, 11)),
        ((50, 40), 21, (11, 10)),
        ((40, 40), 0, (0, 0)),
    ],
)
def test_the_longer_text_is_cut(sizes, room, kept):
    assert longest_first(*sizes, room) == kept


def test_pairs_that_may_not_be_cut_are_refused(tiny):
    one = tiny("bert-reranker").tokenizer
    pieces = [
        Piece(text="a " * 8, pair="b " * 5),
        Piece(text="a " * 8, pair="b " * 6),
        Piece(text="a" * 2000, pair="b" * 2001),
        Piece(text="a" * 2000, pair="b" * 2001, truncate=True),
        Piece(text="a"),
    ]
    fits, over, long, cut, single = one.encode_typed(pieces, max_length=16, vocab_size=500)
    assert len(fits.ids) == 16
    assert isinstance(over, errors.RequestError)
    assert str(over) == "Input validation error: `inputs` must have less than 16 tokens. Given: 17"
    assert "less than 4000 characters. Given: 4001" in str(long)
    assert len(cut.ids) <= 16
    assert single.types is None
    assert one.encode(pieces[:1], max_length=16, vocab_size=500) == [fits.ids]


def test_two_endless_texts_take_no_endless_time(tiny):
    """The library would build the frame around every piece of one text with every piece of the other."""
    one = tiny("bert-reranker").tokenizer
    piece = Piece(text="a " * 60_000, pair="b " * 60_000, truncate=True)
    [answer] = one.encode_typed([piece], max_length=512, vocab_size=500)
    assert len(answer.ids) == 512
