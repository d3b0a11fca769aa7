"""Classifiers, rerankers and splade models against PyTorch, number by number."""

import json
import shutil
import struct
from math import erf

import numpy as np
import pytest
from tests.unit.engine.running import token_rows

from tei_engine.errors import StartError
from tei_engine.graph.heads import Pooling
from tei_engine.graph.outputs import Output
from tei_engine.graph.weights import read_weights
from tei_engine.models.configuration import read_configuration
from tei_engine.models.kinds import Kind
from tei_engine.models.model import Batch, Model, Threads
from tei_engine.models.scores import nonzero, probabilities
from tei_engine.tokenization.tokenizer import Piece

LABELLED = (
    "bert-classifier",
    "distilbert-classifier",
    "roberta-classifier",
    "modernbert-classifier",
    "bert-reranker",
    "roberta-reranker",
    "xlm-roberta-reranker",
    "modernbert-reranker",
)
SPLADE = ("bert-splade", "distilbert-splade")
TOLERANCE = 2e-5


def encoded(one):
    """All items of a folder through its tokenizer, cut to the length its reference was computed with."""
    pairs = [item.get("pair") or (item["text"], None) for item in one.expected["items"]]
    pieces = [Piece(text=text, pair=pair, truncate=True) for text, pair in pairs]
    longest = one.expected["max_length"]
    return one.tokenizer.encode_typed(pieces, max_length=longest, vocab_size=one.model.vocab_size)


def batch_of(answers):
    return Batch.of([answer.ids for answer in answers], [answer.types for answer in answers])


def dense(item, size):
    values = np.zeros(size, dtype=np.float32)
    for index, value in item["sparse"]:
        values[index] = value
    return values


@pytest.mark.parametrize("name", LABELLED + SPLADE)
def test_ids_and_types_are_equal(tiny, name):
    one = tiny(name)
    for answer, item in zip(encoded(one), one.expected["items"], strict=True):
        assert answer.ids == item["token_ids"]
        if "token_type_ids" in item:
            assert (answer.types or [0] * len(answer.ids)) == item["token_type_ids"]


@pytest.mark.parametrize("name", LABELLED)
def test_kind_and_labels_come_from_the_config(tiny, name):
    one = tiny(name)
    assert one.model.kind.value == one.expected["kind"]
    assert one.model.labels.id2label == one.expected["id2label"]
    assert one.model.labels.names == tuple(one.expected["id2label"].values())
    assert [one.model.labels.label2id[label] for label in one.model.labels.names] == list(
        range(len(one.model.labels.names))
    )
    assert one.model.dimension == len(one.model.labels.names)


@pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])
@pytest.mark.parametrize("name", LABELLED)
def test_logits_and_scores_of_single_inputs(tiny, name, wide):
    one = tiny(name)
    for answer, item in zip(encoded(one), one.expected["items"], strict=True):
        [logits] = one.model.run(batch_of([answer]), [Output.LOGITS], wide=wide)
        assert np.abs(logits[0] - item["logits"]).max() <= TOLERANCE
        assert np.abs(probabilities(logits)[0] - item["scores"]).max() <= 1e-5


@pytest.mark.parametrize("name", LABELLED)
def test_logits_do_not_depend_on_batch_mates(tiny, name):
    one = tiny(name)
    [logits] = one.model.run(batch_of(encoded(one)), [Output.LOGITS])
    for row, item in zip(logits, one.expected["items"], strict=True):
        assert np.abs(row - item["logits"]).max() <= TOLERANCE


@pytest.mark.parametrize("name", SPLADE)
def test_sparse_vectors(tiny, name):
    one = tiny(name)
    assert one.model.kind is Kind.SPLADE
    answers = encoded(one)
    [together] = one.model.run(batch_of(answers), [Output.SPARSE])
    for row, answer, item in zip(together, answers, one.expected["items"], strict=True):
        expected = dense(item, one.model.vocab_size)
        [alone] = one.model.run(batch_of([answer]), [Output.SPARSE])
        assert np.abs(alone[0] - expected).max() <= TOLERANCE
        assert np.abs(row - expected).max() <= TOLERANCE
        indices, values = nonzero(row)
        wanted = np.flatnonzero(expected > 1e-3)
        assert np.isin(wanted, indices).all()
        assert (values > 0).all()
        assert (np.diff(indices) > 0).all()


def test_types_matter_and_default_to_zero(tiny):
    one = tiny("bert-reranker")
    assert one.model.takes_types
    [answer, *_] = encoded(one)
    batch = batch_of([answer])
    [right] = one.model.run(batch, [Output.LOGITS])
    [bare] = one.model.run(Batch(batch.ids, batch.mask), [Output.LOGITS])
    [zeros] = one.model.run(Batch(batch.ids, batch.mask, np.zeros_like(batch.ids)), [Output.LOGITS])
    assert np.abs(right - bare).max() > 1e-3
    assert bare == zeros
    assert not tiny("roberta-reranker").model.takes_types


@pytest.mark.parametrize("name", ["bert-classifier", "bert-reranker", "modernbert-reranker", "bert-splade"])
def test_every_kind_warms_up(tiny, name):
    tiny(name).model.warm_up(64, 64)


def test_the_kind_is_told_by_head_and_pooling(tiny_folder):
    splade = tiny_folder("distilbert-splade")
    assert read_configuration(splade).kind is Kind.EMBEDDING, "nothing in the folder says splade"
    assert read_configuration(splade, pooling=Pooling.SPLADE).kind is Kind.SPLADE
    assert read_configuration(tiny_folder("bert-splade")).kind is Kind.SPLADE
    assert read_configuration(tiny_folder("bert-splade"), pooling=Pooling.MEAN).kind is Kind.EMBEDDING
    with pytest.raises(StartError, match=r"config\.json names BertModel"):
        read_configuration(tiny_folder("bert-mean"), pooling=Pooling.SPLADE)
    reranker = read_configuration(tiny_folder("modernbert-reranker"), pooling=Pooling.CLS)
    assert reranker.pooling is Pooling.MEAN, "as its head pools"
    assert reranker.warnings


def changed(tiny_folder, tmp_path, name, **more):
    folder = shutil.copytree(tiny_folder(name), tmp_path / name)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    return folder


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "bert-classifier",
            {"architectures": ["BertForTokenClassification"]},
            "BertForTokenClassification is not",
        ),
        (
            "mpnet-mean",
            {"architectures": ["MPNetForSequenceClassification"]},
            "sequence classification is, for bert",
        ),
        ("modernbert-classifier", {"classifier_pooling": "max"}, "classifier_pooling 'max'"),
        ("modernbert-classifier", {"classifier_activation": "mish"}, "activation 'mish'"),
        ("bert-classifier", {"id2label": {}}, "id2label is {}"),
    ],
)
def test_heads_that_are_not_built_are_refused(tiny_folder, tmp_path, name, changes, message):
    with pytest.raises(StartError, match=message):
        read_configuration(changed(tiny_folder, tmp_path, name, **changes))


def test_splade_needs_a_vocabulary_head_of_ours(tiny_folder, tmp_path):
    folder = changed(tiny_folder, tmp_path, "electra-mean", architectures=["ElectraForMaskedLM"])
    with pytest.raises(StartError, match="ElectraForMaskedLM is not supported; splade pooling is, for bert"):
        read_configuration(folder, pooling=Pooling.SPLADE)


def test_other_splade_poolings_are_refused(tiny_folder, tmp_path):
    folder = changed(tiny_folder, tmp_path, "bert-splade")
    (folder / "1_SpladePooling" / "config.json").write_text('{"pooling_strategy": "sum"}')
    with pytest.raises(StartError, match="pooling_strategy 'sum' is not supported"):
        read_configuration(folder)


def test_labels_without_names(tiny_folder, tmp_path):
    folder = changed(tiny_folder, tmp_path, "bert-classifier", id2label={"0": "a", "7": "b"}, label2id=None)
    assert read_configuration(folder).labels.names == ("a", "LABEL_1")
    folder = changed(tiny_folder, tmp_path, "roberta-classifier", id2label=None, num_labels=4, label2id=None)
    labels = read_configuration(folder).labels
    assert labels.names == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")
    assert labels.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2, "LABEL_3": 3}


def test_a_number_of_labels_that_the_weights_do_not_have(tiny_folder, tmp_path):
    folder = changed(tiny_folder, tmp_path, "bert-classifier", id2label={"0": "a", "1": "b"})
    with pytest.raises(StartError, match=r"tensor classifier\.weight has shape \[3, 48\], expected \[2, 48\]"):
        Model(folder, read_configuration(folder), Threads(narrow=1, wide=1))


@pytest.mark.parametrize("is_tied", [True, False])
def test_robertas_vocabulary_head(tiny, tiny_folder, tmp_path, is_tied):
    """No published reference is at hand: numpy computes the head from the encoder's proven token vectors."""
    folder = changed(
        tiny_folder,
        tmp_path,
        "roberta-mean",
        architectures=["RobertaForMaskedLM"],
        tie_word_embeddings=is_tied,
        hidden_act="gelu_new",  # the encoder's; the head always has the exact form
    )
    encoder = Model(folder, read_configuration(folder), Threads(narrow=1, wide=1))
    stored = read_weights(folder, ("roberta.",)).tensors
    decoder = stored["embeddings.word_embeddings.weight"].read_float32()
    texts = [item["token_ids"] for item in tiny("roberta-mean").expected["items"][:6]]
    hidden_rows = token_rows(encoder, texts)
    random = np.random.default_rng(5)
    hidden, vocab = encoder.dimension, encoder.vocab_size
    head = {
        "lm_head.dense.weight": random.normal(0, 0.3, (hidden, hidden)),
        "lm_head.dense.bias": random.normal(0, 0.1, hidden),
        "lm_head.layer_norm.weight": 1 + random.normal(0, 0.1, hidden),
        "lm_head.layer_norm.bias": random.normal(0, 0.1, hidden),
        ("lm_head.bias" if is_tied else "lm_head.decoder.bias"): random.normal(-1, 0.5, vocab),
    }
    if not is_tied:
        head["lm_head.decoder.weight"] = random.normal(0, 0.3, (vocab, hidden))
    head = {name: values.astype(np.float32) for name, values in head.items()}
    write(
        folder / "model.safetensors",
        {f"roberta.{name}": tensor.read_float32() for name, tensor in stored.items()} | head,
    )

    model = Model(folder, read_configuration(folder, pooling=Pooling.SPLADE), Threads(narrow=1, wide=1))
    [sparse] = model.run(Batch.of(texts), [Output.SPARSE])
    if not is_tied:
        decoder = head["lm_head.decoder.weight"]
    bias = head["lm_head.bias" if is_tied else "lm_head.decoder.bias"]
    for row, rows in zip(sparse, hidden_rows, strict=True):
        inner = rows.astype(np.float64) @ head["lm_head.dense.weight"].T + head["lm_head.dense.bias"]
        inner = inner * 0.5 * (1 + np.vectorize(erf)(inner / np.sqrt(2)))
        inner = (inner - inner.mean(axis=1, keepdims=True)) / np.sqrt(inner.var(axis=1, keepdims=True) + 1e-5)
        inner = inner * head["lm_head.layer_norm.weight"] + head["lm_head.layer_norm.bias"]
        expected = np.log1p(np.maximum(inner @ decoder.T + bias, 0)).max(axis=0)
        assert np.abs(row - expected).max() <= TOLERANCE
        assert (expected > 0).any()
        assert (expected == 0).any()


def write(path, tensors):
    header, at = {}, 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": values.shape, "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"".join(v.tobytes() for v in tensors.values()))


def test_probabilities_neither_overflow_nor_hide_what_is_no_number():
    one = np.array([[-1e9], [-2], [0], [2], [1e9], [np.nan]], dtype=np.float32)
    assert probabilities(one)[:5, 0] == pytest.approx([0, 0.1192029, 0.5, 0.8807971, 1])
    assert np.isnan(probabilities(one)[5]).all()
    many = np.array([[1e9, 0, -1e9], [1, 1, 1], [-1e30, -1e30, 0]], dtype=np.float32)
    assert probabilities(many) == pytest.approx(np.array([[1, 0, 0], [1 / 3] * 3, [0, 0, 1]]))
