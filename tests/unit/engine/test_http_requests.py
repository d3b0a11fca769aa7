"""JSON bodies: what is one input, what is a batch, what is neither."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tei_engine.server import http_requests
from tei_engine.server.http_requests import BodyError

NUMBERS = st.integers(0, 2**32 - 1)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**33) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=6,
)


def read(value):
    return http_requests.read_inputs(http_requests.read_object(json.dumps({"inputs": value}).encode()), "inputs")


@given(st.lists(NUMBERS, max_size=5))
def test_a_list_of_ids_is_one_input(ids):
    assert read(ids) == ([tuple(ids)], False)


@given(st.lists(st.text(max_size=4) | st.lists(NUMBERS, max_size=3), min_size=1, max_size=5))
def test_texts_and_lists_of_ids_may_be_mixed(inputs):
    assert read(inputs) == ([one if isinstance(one, str) else tuple(one) for one in inputs], True)


@given(ANYTHING)
def test_anything_is_read_or_refused(value):
    """Whatever comes: inputs of the right types, or the framework's error."""
    readers = {
        "inputs": http_requests.read_inputs,
        "texts": http_requests.read_texts,
        "ids": http_requests.read_id_lists,
    }
    for key, reader in readers.items():
        try:
            inputs, _ = reader({key: value}, key)
        except BodyError:
            continue
        for one in inputs:
            assert isinstance(one, str) or all(type(number) is int and 0 <= number < 2**32 for number in one)


@given(ANYTHING)
def test_predict_takes_one_or_two_texts(value):
    try:
        inputs, batch = http_requests.read_predict_inputs({"inputs": value})
    except BodyError:
        return
    assert all(1 <= len(texts) <= 2 and all(isinstance(text, str) for text in texts) for texts in inputs)
    assert batch or len(inputs) == 1
    # a list of two texts is one pair; lists in it are what makes a batch
    assert batch == (isinstance(value, list) and isinstance(value[0], list))


@pytest.mark.parametrize(
    ("given", "top_n"), [({}, 2), ({"top_n": 1}, 1), ({"top_n": 5}, 5), ({"top_n": 2**32 - 1}, 2**32 - 1)]
)
def test_all_documents_are_ranked_unless_fewer_are_asked_for(given, top_n):
    body = {"query": "a", "documents": ["b", {"text": "c", "id": 1}]} | given
    asked = http_requests.read_documents(body)
    assert (asked.texts, asked.top_n, asked.return_documents) == (["b", "c"], top_n, False)
