"""Ready-made ONNX graphs against PyTorch's numbers, and against the graph built from the same weights."""

import json
import logging

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic
from tests.unit.engine.exporting import (
    FLOAT,
    FLOAT16,
    INT32,
    exported,
    give,
    linked,
    logits_by_token,
    take,
    written,
)
from tests.unit.engine.running import pooled, token_rows

from tei_engine.graph.heads import Pooling
from tei_engine.graph.outputs import Output
from tei_engine.models.configuration import read_configuration
from tei_engine.models.model import Batch, Model, Threads
from tei_engine.models.native import GraphChoice
from tei_engine.models.scores import normalised

THREADS = Threads(narrow=1, wide=2)


def load(folder, onnx_file=None, pooling=None, **choice):
    configuration = read_configuration(folder, pooling=pooling)
    return Model(folder, configuration, THREADS, GraphChoice(onnx_file, **choice))


def hidden(folder):
    return give(exported(folder), {"last_hidden_state": "token_embeddings"})


def texts_of(one):
    return [item["token_ids"] for item in one.expected["items"]]


def assert_normalised(model, one, tolerance=5e-6):
    """All texts together, through both sessions, are as expected."""
    wanted = np.array([item["normalized"] for item in one.expected["items"]])
    for wide in (False, True):
        assert np.abs(normalised(pooled(model, texts_of(one), wide=wide)) - wanted).max() <= tolerance


@pytest.mark.parametrize(
    "name", ["bert-mean", "bert-cls", "roberta-mean", "modernbert-cls", "mpnet-mean", "bert-dense"]
)
def test_token_level_graphs_are_pooled_here(tiny, tiny_folder, tmp_path, name):
    one = tiny(name)
    model = load(written(tiny_folder(name), tmp_path / name, hidden(tiny_folder(name))))
    assert model.file == "onnx/model.onnx"
    assert model.outputs == (Output.POOLED, Output.TOKENS)
    assert model.dimension == one.model.dimension
    model.warm_up(64, one.configuration.max_input_length)
    assert_normalised(model, one)
    for item in one.expected["items"]:
        [row] = pooled(model, [item["token_ids"]])
        assert np.abs(row - item["pooled"]).max() <= 2e-5
    for rows, item in zip(token_rows(model, texts_of(one)), one.expected["items"], strict=True):
        assert np.abs(rows[0] - item["last_hidden_state_first_token"]).max() <= 2e-5


@pytest.mark.parametrize("pooling", [Pooling.CLS, Pooling.LAST_TOKEN], ids=lambda one: one.value)
def test_pooling_that_is_asked_for_goes_before_the_graphs_own(tiny, tiny_folder, tmp_path, pooling):
    names = {"sentence_embedding": "pooled", "token_embeddings_": "token_embeddings"}
    folder = written(tiny_folder("bert-mean"), tmp_path / "m", give(exported(tiny_folder("bert-mean")), names))
    items = [item for item in tiny("bert-mean").expected["items"] if "other_poolings" in item]
    texts = [item["token_ids"] for item in items]
    own = pooled(load(folder), texts)
    asked = pooled(load(folder, pooling=pooling), texts)
    key = pooling.value.replace("_", "")
    assert np.abs(asked - [item["other_poolings"][key] for item in items]).max() <= 2e-5
    assert np.abs(own - [item["pooled"] for item in items]).max() <= 2e-5


def test_an_unknown_model_type_needs_no_more_than_a_graph(tiny, tiny_folder, tmp_path):
    folder = written(
        tiny_folder("bert-mean"), tmp_path / "m", hidden(tiny_folder("bert-mean")), model_type="gpt9-bert"
    )
    (folder / "sentence_bert_config.json").unlink()
    configuration = read_configuration(folder)
    assert configuration.obstacle.startswith("model type 'gpt9-bert' is not supported; supported are albert")
    assert configuration.max_input_length == 128
    assert configuration.prompts == tiny("bert-mean").configuration.prompts
    model = load(folder)
    assert (model.dimension, model.vocab_size, model.max_input_length) == (32, 520, 128)
    assert_normalised(model, tiny("bert-mean"))


@pytest.mark.parametrize(
    ("model_type", "longest"), [("roberta-prelayernorm", 125), ("camembert", 125), ("x", 128)]
)
def test_positions_that_begin_behind_the_padding_token(tiny_folder, tmp_path, model_type, longest):
    folder = written(tiny_folder("bert-mean"), tmp_path / "m", None, model_type=model_type, pad_token_id=2)
    (folder / "sentence_bert_config.json").unlink()
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": "mish"}))
    (folder / "model.onnx").touch()
    assert read_configuration(folder).max_input_length == longest


def test_only_vectors_of_texts(tiny, tiny_folder, tmp_path):
    model = load(
        written(
            tiny_folder("bert-dense"),
            tmp_path / "m",
            give(exported(tiny_folder("bert-dense")), {"sentence_embedding": "pooled"}),
            "model.onnx",
        )
    )
    assert model.file == "model.onnx"
    assert model.outputs == (Output.POOLED,), "no vectors of tokens"
    assert_normalised(model, tiny("bert-dense"))  # the graph's own Dense modules, and no second ones


@pytest.mark.parametrize("name", ["bert-classifier", "bert-reranker", "roberta-reranker", "modernbert-classifier"])
def test_logits(tiny, tiny_folder, tmp_path, name):
    one = tiny(name)
    graph = take(exported(tiny_folder(name)), names={"token_type_ids": "input_type"})
    model = load(written(tiny_folder(name), tmp_path / name, graph))
    assert model.outputs == (Output.LOGITS,)
    assert model.takes_types == one.model.takes_types
    items = one.expected["items"]
    batch = Batch.of([item["token_ids"] for item in items], [item.get("token_type_ids") for item in items])
    for wide in (False, True):
        [logits] = model.run(batch, [Output.LOGITS], wide=wide)
        assert np.abs(logits - np.array([item["logits"] for item in items])).max() <= 2e-5


def test_a_classifier_that_is_not_built_here(tiny, tiny_folder, tmp_path):
    graph = exported(tiny_folder("bert-classifier"))
    changes = {"model_type": "deberta-v2", "architectures": ["DebertaV2ForSequenceClassification"]}
    model = load(written(tiny_folder("bert-classifier"), tmp_path / "m", graph, **changes))
    assert model.kind is tiny("bert-classifier").model.kind
    assert model.labels == tiny("bert-classifier").model.labels


@pytest.mark.parametrize("name", ["bert-splade", "distilbert-splade"])
def test_splade(tiny, tiny_folder, tmp_path, name):
    one = tiny(name)
    bias = {"bert-splade": "cls.predictions.bias", "distilbert-splade": "vocab_projector.bias"}[name]
    graph = logits_by_token(exported(tiny_folder(name), Pooling.SPLADE), bias)
    model = load(written(tiny_folder(name), tmp_path / name, graph), pooling=Pooling.SPLADE)
    assert model.outputs == (Output.SPARSE,)
    assert model.dimension == model.vocab_size
    [together] = model.run(Batch.of(texts_of(one)), [Output.SPARSE])
    for row, item in zip(together, one.expected["items"], strict=True):
        wanted = np.zeros(model.vocab_size, np.float32)
        wanted[[index for index, _ in item["sparse"]]] = [value for _, value in item["sparse"]]
        assert np.abs(row - wanted).max() <= 2e-5


def test_inputs_of_32_bits(tiny, tiny_folder, tmp_path):
    graph = take(hidden(tiny_folder("bert-mean")), dtype=INT32)
    assert_normalised(load(written(tiny_folder("bert-mean"), tmp_path / "m", graph)), tiny("bert-mean"))


@pytest.mark.parametrize("shape", [(1, "tokens"), (5, "tokens"), ("batch", 70), (1, 70), (5, 70)], ids=str)
def test_fixed_sizes_are_honoured(tiny, tiny_folder, tmp_path, shape):
    graph = take(hidden(tiny_folder("bert-mean")), shape=shape)
    model = load(written(tiny_folder("bert-mean"), tmp_path / "m", graph))
    limit = tiny("bert-mean").configuration.max_input_length
    assert model.max_input_length == min(limit, 70)
    model.warm_up(256, limit)
    assert_normalised(model, tiny("bert-mean"))
    together = token_rows(model, texts_of(tiny("bert-mean")))
    for rows, item in zip(together, tiny("bert-mean").expected["items"], strict=True):
        assert rows.shape == (len(item["token_ids"]), 32)
        assert np.abs(rows[0] - item["last_hidden_state_first_token"]).max() <= 2e-5
    if shape[1] == 70:
        with pytest.raises(ValueError, match="takes 70 tokens, not 71"):
            pooled(model, [[1] * 71])


def test_narrow_floats_are_widened(tiny, tiny_folder, tmp_path):
    graph = give(exported(tiny_folder("bert-mean")), {"last_hidden_state": "token_embeddings"}, FLOAT16)
    model = load(written(tiny_folder("bert-mean"), tmp_path / "m", graph))
    values = model.run(Batch.of(texts_of(tiny("bert-mean"))), [Output.TOKENS, Output.POOLED])
    assert [one.dtype for one in values] == [np.float32, np.float32]
    assert_normalised(model, tiny("bert-mean"), tolerance=1e-3)


def test_a_graph_that_quantises_whole_runs_gets_one_text_at_a_time(tiny, tiny_folder, tmp_path, caplog):
    folder = written(tiny_folder("bert-mean"), tmp_path / "m", hidden(tiny_folder("bert-mean")))
    plain, quantised = folder / "onnx" / "model.onnx", folder / "onnx" / "model_quantized.onnx"
    quantize_dynamic(plain, quantised, weight_type=QuantType.QInt8)
    caplog.clear()
    texts = texts_of(tiny("bert-mean"))
    batch = Batch.of(texts)
    # such a graph by itself: a text's vectors depend on the texts beside it
    bare = onnxruntime.InferenceSession(quantised)
    [beside] = bare.run(None, {"input_ids": batch.ids, "attention_mask": batch.mask})
    [single] = bare.run(None, {"input_ids": batch.ids[:1], "attention_mask": batch.mask[:1]})
    assert np.abs(beside[0] - single[0])[: len(texts[0])].max() > 1e-3

    model = load(folder, int8=True)
    assert model.file == "onnx/model_quantized.onnx"
    assert model.cosine is None
    together = normalised(pooled(model, texts))
    for row, text in zip(together, texts, strict=True):
        assert np.abs(row - normalised(pooled(model, [text]))[0]).max() <= 1e-6
    exact = np.array([item["normalized"] for item in tiny("bert-mean").expected["items"]])
    assert ((together * exact).sum(axis=1) > 0.98).all()
    assert load(folder).file == "onnx/model.onnx"
    assert not caplog.records
    quantised.unlink()
    assert load(folder, int8=True).file == "onnx/model.onnx"
    assert "onnx/model.onnx is not quantised" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


@pytest.mark.parametrize("all_of_it", [True, False], ids=["every tensor outside", "large tensors outside"])
@pytest.mark.parametrize("is_linked", [True, False], ids=["links", "files"])
def test_weights_beside_the_graph(tiny, tiny_folder, tmp_path, is_linked, all_of_it):
    folder = written(tiny_folder("bert-mean"), tmp_path / "m", None)
    (folder / "onnx").mkdir()
    onnx.save_model(
        hidden(tiny_folder("bert-mean")),
        folder / "onnx" / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=0 if all_of_it else 4096,
    )
    inside = load(written(tiny_folder("bert-mean"), tmp_path / "i", hidden(tiny_folder("bert-mean"))))
    model = load(linked(folder, tmp_path / "cache") if is_linked else folder)
    assert_normalised(model, tiny("bert-mean"))
    assert model.weights_bytes == inside.weights_bytes
    assert model.weights_bytes == pytest.approx(tiny("bert-mean").model.weights_bytes, rel=0.02)


def test_native_goes_before_a_plain_graph(tiny, tiny_folder, tmp_path):
    folder = written(tiny_folder("bert-mean"), tmp_path / "m", hidden(tiny_folder("bert-mean")))
    (folder / "model.safetensors").write_bytes((tiny_folder("bert-mean") / "model.safetensors").read_bytes())
    assert load(folder).file is None
    assert load(folder, "onnx/model.onnx").file == "onnx/model.onnx"
    assert load(folder, "./onnx//model.onnx").file == "onnx/model.onnx"
    built = load(folder, int8=True)
    assert (built.file, built.cosine is None) == (None, False), "the plain file is no better than what is built"
    (folder / "onnx" / "model.onnx").rename(folder / "onnx" / "model_int8.onnx")
    assert load(folder, int8=True).file == "onnx/model_int8.onnx"
    assert load(folder).file is None
    assert_normalised(load(folder, "onnx/model_int8.onnx"), tiny("bert-mean"))


def test_an_obstacle_to_building_leads_to_the_graph(tiny, tiny_folder, tmp_path):
    folder = written(
        tiny_folder("bert-mean"),
        tmp_path / "m",
        hidden(tiny_folder("bert-mean")),
        position_embedding_type="relative_key",
    )
    (folder / "model.safetensors").write_bytes((tiny_folder("bert-mean") / "model.safetensors").read_bytes())
    model = load(folder)
    assert model.file == "onnx/model.onnx"
    assert_normalised(model, tiny("bert-mean"))


def test_values_of_64_bits(tiny, tiny_folder, tmp_path):
    graph = give(exported(tiny_folder("bert-mean")), {"whatever": "token_embeddings"}, onnx.TensorProto.DOUBLE)
    give_also = onnx.helper.make_tensor_value_info("pooled", FLOAT, None)
    graph.graph.output.append(give_also)  # two-dimensional, and not known: the only output by token is used
    model = load(written(tiny_folder("bert-mean"), tmp_path / "m", graph))
    assert_normalised(model, tiny("bert-mean"))
