"""Shapes of outside values and the problems they report."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tei_manager.kits import parsing
from tei_manager.kits.parsing import (
    Boolean,
    Choice,
    Either,
    Field,
    Integer,
    ListOf,
    MapOf,
    Number,
    Optional,
    Rejected,
    Text,
    read_record,
)


@pytest.mark.parametrize("value", [True, False, "1", 1.0, None, [1]])
def test_only_whole_numbers_are_integers(value: object) -> None:
    with pytest.raises(Rejected) as refusal:
        Integer(0, 10).read(value)
    assert refusal.value.code == "INVALID_TYPE"


@given(st.integers(), st.integers(0, 100), st.integers(0, 100))
def test_bounds_of_integers_are_inclusive(value: int, low: int, span: int) -> None:
    shape = Integer(low, low + span)
    if low <= value <= low + span:
        assert shape.read(value) == shape.read_text(str(value)) == value
    else:
        with pytest.raises(Rejected):
            shape.read(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
def test_numbers_are_finite_and_in_bounds(value: float) -> None:
    with pytest.raises(Rejected):
        Number(0).read(value)


@pytest.mark.parametrize(("text", "value"), [("on", True), ("NO", False), (" 1 ", True), ("false", False)])
def test_words_for_booleans(text: str, value: bool) -> None:
    assert Boolean().read_text(text) is value


def test_a_choice_knows_other_spellings_of_its_words() -> None:
    shape = Choice("last-token", "mean", aliases={"last_token": "last-token"})
    assert shape.read("last_token") == "last-token"
    with pytest.raises(Rejected, match="one of last-token, mean"):
        shape.read("max")


def test_either_takes_the_first_that_fits_and_names_all_it_would_take() -> None:
    shape = Either[object](Integer(1, 5), Text(r"GPU-\w+", "a UUID"))
    assert shape.read(3) == 3
    assert shape.read("GPU-a") == "GPU-a"
    with pytest.raises(Rejected, match="an integer 1-5 or a UUID") as refusal:
        shape.read(None)
    assert refusal.value.code == "INVALID_TYPE"


def test_a_text_has_no_nul_and_an_end() -> None:
    for value in ("a\0b", "a" * 11):
        with pytest.raises(Rejected):
            Text(longest=10).read(value)


FIELDS = (
    Field("name", Text(r"[a-z]+", "letters", code="INVALID_INSTANCE_NAME"), required=True),
    Field("port", Optional(Integer(1, 9, code="INVALID_PORT"))),
    Field("env", MapOf(Text(r"[A-Z]+", "upper case"), Text()), {}, is_secret=True),
    Field("args", ListOf(Text(), longest=2), ()),
)


def test_every_problem_of_a_record_is_reported() -> None:
    values, problems = read_record(FIELDS, {"prot": 1, "port": 10, "args": ["a", "b", "c"]})
    assert [(each.path, each.code) for each in problems] == [
        ("prot", "UNKNOWN_FIELD"),
        ("port", "INVALID_PORT"),
        ("args", "VALIDATION_ERROR"),
        ("name", "MISSING_FIELD"),
    ]
    assert problems[0].nearest == "port"
    assert "got 10" in problems[1].message
    assert values == {"name": None, "port": None, "env": {}, "args": ()}


def test_a_problem_in_a_table_names_its_key_and_no_secret() -> None:
    _, (problem,) = read_record(FIELDS, {"name": "a", "env": {"OK": "hidden", "bad": "hidden"}})
    assert problem.path == "env.bad"
    assert "hidden" not in problem.message


@pytest.mark.parametrize(
    ("word", "guess"), [("prot", "port"), ("api_prt", "api_port"), ("zzzz", None), ("x", None), ("portt", "port")]
)
def test_the_nearest_word_is_suggested_if_it_is_near(word: str, guess: str | None) -> None:
    assert parsing.nearest(word, ["port", "api_port", "name"]) == guess


@given(st.text(max_size=8), st.text(max_size=8))
def test_edit_distance_is_a_distance(left: str, right: str) -> None:
    distance = parsing.edits(left, right)
    assert distance == parsing.edits(right, left)
    assert (distance == 0) == (left == right)
    assert abs(len(left) - len(right)) <= distance <= max(len(left), len(right))
