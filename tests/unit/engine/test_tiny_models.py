"""Every native family against PyTorch, number by number."""

import numpy as np
import pytest
from tests.unit.engine.running import pooled, token_rows

from tei_engine.graph.heads import Pooling
from tei_engine.models.configuration import read_configuration
from tei_engine.models.model import Model, Threads
from tei_engine.models.scores import normalised
from tei_engine.tokenization.tokenizer import Piece

NAMES = (
    "bert-mean",
    "bert-cls",
    "roberta-mean",
    "xlm-roberta-cls",
    "camembert-mean",
    "distilbert-mean",
    "mpnet-mean",
    "bert-dense",
    "bert-mean-f16",
    "bert-mean-bf16",
    "bert-mean-sharded",
    "bert-mean-legacy-names",
    "modernbert-cls",
    "modernbert-mean",
    "nomic-bert-mean",
    "nomic-bert-mean-hubconfig",
    "albert-mean",
    "electra-mean",
)


@pytest.fixture(params=NAMES)
def model(request, tiny):
    return tiny(request.param)


def ids_of(model, items):
    pieces = [Piece(text=item["text"], truncate=True) for item in items]
    longest = model.configuration.max_input_length
    return model.tokenizer.encode(pieces, max_length=longest, vocab_size=model.model.vocab_size)


def test_the_input_limit_is_derived_from_the_files(model):
    assert model.configuration.max_input_length == model.expected["max_length"]


def test_token_ids_are_equal(model):
    items = model.expected["items"]
    assert ids_of(model, items) == [item["token_ids"] for item in items]


@pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])
def test_vectors_of_single_texts(model, wide):
    for item in model.expected["items"]:
        [row] = pooled(model.model, [item["token_ids"]], wide=wide)
        assert np.abs(row - item["pooled"]).max() <= 2e-5
        assert np.abs(normalised(row[None])[0] - item["normalized"]).max() <= 5e-6


def test_vectors_do_not_depend_on_batch_mates(model):
    items = model.expected["items"]
    together = normalised(pooled(model.model, [item["token_ids"] for item in items]))
    for row, item in zip(together, items, strict=True):
        assert np.abs(row - item["normalized"]).max() <= 5e-6


def test_token_vectors_have_no_padding(model):
    items = model.expected["items"]
    for rows, item in zip(token_rows(model.model, [item["token_ids"] for item in items]), items, strict=True):
        assert rows.shape == (len(item["token_ids"]), model.configuration.sizes.hidden)
        assert np.abs(rows[0] - item["last_hidden_state_first_token"]).max() <= 2e-5


def test_prompts_come_from_the_model(model):
    items = model.expected["prompt_items"]
    assert items
    for item in items:
        text = model.configuration.prompts[item["prompt_name"]] + item["text"]
        [ids] = ids_of(model, [{"text": text}])
        assert ids == item["token_ids"]
        [row] = pooled(model.model, [ids])
        assert np.abs(normalised(row[None])[0] - item["normalized"]).max() <= 5e-6


@pytest.mark.parametrize("pooling", ["cls", "lasttoken"])
def test_pooling_can_be_chosen(tiny_folder, tiny, pooling):
    folder = tiny_folder("bert-mean")
    chosen = {"cls": Pooling.CLS, "lasttoken": Pooling.LAST_TOKEN}[pooling]
    model = Model(folder, read_configuration(folder, pooling=chosen), Threads(narrow=1, wide=1))
    items = [item for item in tiny("bert-mean").expected["items"] if "other_poolings" in item]
    assert items
    together = pooled(model, [item["token_ids"] for item in items])
    for row, item in zip(together, items, strict=True):
        assert np.abs(row - item["other_poolings"][pooling]).max() <= 2e-5
