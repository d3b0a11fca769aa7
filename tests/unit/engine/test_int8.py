"""The int8 graphs of all native families: what is int8, how near it is, and that no row knows its neighbours."""

import logging
from functools import cache

import numpy as np
import onnx
import pytest

from tei_engine.errors import StartError
from tei_engine.graph.attention import FLOORS, activate
from tei_engine.graph.emit import Emitter
from tei_engine.graph.int8 import Int8Emitter, Map, levels_of, quantise, smoothing
from tei_engine.graph.session import Session
from tei_engine.graph.weights import Tensor, Weights
from tei_engine.models import int8
from tei_engine.models.model import Batch, Model, Threads
from tei_engine.models.native import GraphChoice, build_native
from tei_engine.models.probes import encode_probes
from tei_engine.models.scores import normalised

EMBEDDING = (
    "albert-mean",
    "bert-cls",
    "bert-dense",
    "bert-mean",
    "bert-mean-bf16",
    "bert-mean-sharded",
    "camembert-mean",
    "distilbert-mean",
    "electra-mean",
    "modernbert-cls",
    "modernbert-mean",
    "mpnet-mean",
    "nomic-bert-mean",
    "roberta-mean",
    "xlm-roberta-cls",
)
LABELLED = ("bert-classifier", "distilbert-classifier", "modernbert-reranker", "roberta-reranker")
SPLADE = ("bert-splade", "distilbert-splade")
INT8 = GraphChoice(int8=True)


@cache
def int8_model(loaded):
    return Model(loaded.folder, loaded.configuration, Threads(narrow=1, wide=2), INT8)


def batch_of(items):
    return Batch.of([item["token_ids"] for item in items], [item.get("token_type_ids") for item in items])


@pytest.mark.parametrize("name", [*EMBEDDING, *LABELLED, *SPLADE])
def test_an_answer_depends_on_no_other_text_of_its_batch(tiny, name):
    loaded = tiny(name)
    model = int8_model(loaded)
    items = loaded.expected["items"]
    alone = np.stack([model.run(batch_of([item]), model.outputs[:1])[0][0] for item in items])
    together = model.run(batch_of(items), model.outputs[:1])[0]
    backwards = model.run(batch_of(items[::-1]), model.outputs[:1], wide=True)[0][::-1]
    # float32 sums in another order: far below one step of an integer, which would be 1e-2
    assert np.abs(together - alone).max() <= 1e-6
    assert np.abs(backwards - alone).max() <= 1e-6


@pytest.mark.parametrize("name", EMBEDDING)
def test_vectors_are_near_the_reference(tiny, name):
    loaded = tiny(name)
    model = int8_model(loaded)
    items = loaded.expected["items"]
    vectors = normalised(model.run(batch_of(items), model.outputs[:1])[0])
    cosines = (vectors * np.array([item["normalized"] for item in items])).sum(axis=1)
    assert cosines.min() >= 0.99
    assert cosines.min() < 0.999999  # it is not the float32 graph
    assert model.cosine is not None
    assert 0.97 <= model.cosine.min <= model.cosine.mean < 0.999999


@pytest.mark.parametrize("name", LABELLED)
def test_labelled_models_say_no_cosine_and_keep_their_probabilities(tiny, name):
    loaded = tiny(name)
    model = int8_model(loaded)
    items = loaded.expected["items"]
    logits = model.run(batch_of(items), model.outputs[:1])[0]
    assert model.cosine is None
    assert 1e-6 < np.abs(logits - np.array([item["logits"] for item in items])).max() < 0.5


@pytest.mark.parametrize("name", ["bert-dense", "modernbert-cls", "albert-mean", "bert-classifier", "bert-splade"])
def test_only_the_maps_of_the_layers_are_int8(tiny, name):
    loaded = tiny(name)
    native = build_native(loaded.folder, loaded.configuration, INT8)
    exact = build_native(loaded.folder, loaded.configuration, GraphChoice())
    graph = onnx.load_from_string(native.graph.model).graph
    kinds = [node.op_type for node in graph.node]
    assert "DynamicQuantizeLinear" not in kinds
    assert kinds.count("QuantizeLinear") == 4 * loaded.configuration.sizes.layers
    whole = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    assert whole
    prefix = loaded.configuration.family.names.layer.split("{")[0]
    assert all(name.startswith(prefix) for name in whole)
    before = {node.op_type for node in onnx.load_from_string(exact.graph.model).graph.node}
    assert set(kinds) - before <= {
        "MatMulIntegerToFloat",
        "QuantizeLinear",
        "Abs",
        "ReduceMax",
        "Unsqueeze",
        "Expand",
        "Sub",
    }


def test_the_weights_that_are_reported_are_those_that_are_used(tiny):
    loaded = tiny("bert-mean")
    exact = build_native(loaded.folder, loaded.configuration, GraphChoice()).graph
    graph = build_native(loaded.folder, loaded.configuration, INT8).graph
    listed = onnx.load_from_string(graph.model).graph.initializer
    external = [{entry.key: entry.value for entry in tensor.external_data} for tensor in listed]
    assert graph.weights_bytes == sum(int(place.get("length", 0)) for place in external)
    assert graph.weights_bytes < exact.weights_bytes


def test_layers_that_share_weights_share_their_int8(tiny):
    loaded = tiny("albert-mean")
    graph = build_native(loaded.folder, loaded.configuration, INT8).graph
    maps = [name for name in graph.held if name.endswith(".int8")]
    assert loaded.configuration.sizes.layers == 2
    assert len(maps) == 6


class OneMap:
    """A graph of a single linear map over rows of a table, picked by `input_ids`."""

    def __init__(self, tmp_path, table, matrix, shift, *, floor=None, levels=127, peaks=None):
        file = tmp_path / "map"
        file.write_bytes(matrix.tobytes() + shift.tobytes())
        out, into = matrix.shape
        tensors = {
            "map.weight": Tensor("map.weight", "F32", (out, into), file, 0, matrix.nbytes),
            "map.bias": Tensor("map.bias", "F32", (out,), file, matrix.nbytes, shift.nbytes),
        }
        shape = Map(out, into, bias=True, floor=floor)
        given = {} if peaks is None else {"map": peaks}
        self.arrays = quantise(Weights(tensors), {"map": shape}, given, levels)
        emitter = Int8Emitter(Weights({}), self.arrays)
        rows = emitter.op("Gather", emitter.values("table", table), "input_ids")
        rows = emitter.op("Reshape", rows, emitter.ints(-1, into))
        answer = emitter.project(rows, "map", out=out, into=into, floor=floor)
        outputs = ((emitter.rename(answer, "answer"), ("rows", out)),)
        self._session = Session(emitter.finish(("input_ids",), outputs), threads=1)

    def run(self, *rows):
        return self._session.run({"input_ids": np.array([rows], dtype=np.int64)}, ["answer"])[0]


@pytest.fixture
def random():
    return np.random.default_rng(5)


def floats(random, *shape):
    return random.normal(size=shape).astype(np.float32)


def test_a_map_is_what_float32_gives_within_rounding(tmp_path, random):
    table, matrix, shift = floats(random, 7, 64), floats(random, 24, 64), floats(random, 24)
    table[3] *= 1000  # a loud neighbour
    small = OneMap(tmp_path, table, matrix, shift)
    exact = table @ matrix.T + shift
    answer = small.run(*range(7))
    scales = np.abs(table).max(axis=1, keepdims=True)
    assert np.abs((answer - exact) / scales).max() < 0.15
    assert np.abs(answer - exact).max() > 1e-4
    for row in range(7):
        assert np.array_equal(small.run(row)[0], answer[row])


def test_values_above_a_floor_have_twice_the_levels(tmp_path, random):
    pre = floats(random, 50, 64)
    emitter = Emitter(Weights({}))
    rows = emitter.op("Reshape", emitter.op("Gather", emitter.values("t", pre), "input_ids"), emitter.ints(-1, 64))
    outputs = ((emitter.rename(activate(emitter, rows, "gelu"), "gelu"), ("rows", 64)),)
    session = Session(emitter.finish(("input_ids",), outputs), threads=1)
    [table] = session.run({"input_ids": np.arange(50, dtype=np.int64)[None]}, ["gelu"])
    matrix, shift = floats(random, 24, 64), floats(random, 24)
    exact = table @ matrix.T + shift
    plain = OneMap(tmp_path, table, matrix, shift, levels=127).run(*range(50))
    floored = OneMap(tmp_path, table, matrix, shift, levels=127, floor=FLOORS["gelu"]).run(*range(50))
    assert np.abs(floored - exact).mean() < 0.9 * np.abs(plain - exact).mean()


@pytest.mark.parametrize("activation", sorted(FLOORS))
def test_no_activation_goes_below_its_floor(activation):
    values = np.linspace(-12, 12, 48_001, dtype=np.float32)[:, None]
    emitter = Emitter(Weights({}))
    rows = emitter.op(
        "Reshape", emitter.op("Gather", emitter.values("t", values), "input_ids"), emitter.ints(-1, 1)
    )
    outputs = ((emitter.rename(activate(emitter, rows, activation), "y"), ("rows", 1)),)
    session = Session(emitter.finish(("input_ids",), outputs), threads=1)
    [answer] = session.run({"input_ids": np.arange(len(values), dtype=np.int64)[None]}, ["y"])
    assert FLOORS[activation] - 2e-7 <= answer.min() <= FLOORS[activation] + 2e-4


@pytest.mark.parametrize("floor", [None, -0.1701])
def test_rows_of_zeros_and_of_nan(tmp_path, random, floor):
    table = np.abs(floats(random, 3, 64))
    table[1] = 0 if floor is None else floor
    table[2] = np.nan
    matrix, shift = floats(random, 24, 64), floats(random, 24)
    answer = OneMap(tmp_path, table, matrix, shift, floor=floor).run(0, 1, 2)
    assert np.isfinite(answer[0]).all()
    assert np.allclose(answer[1], table[1] @ matrix.T + shift, atol=0.05)
    assert np.isnan(answer[2]).all()


def test_outlying_columns_are_tamed(tmp_path, random):
    table, matrix, shift = floats(random, 40, 64), floats(random, 24, 64), floats(random, 24)
    table[:, 7] *= 40
    matrix[:, 7] /= 40
    exact = table @ matrix.T + shift
    rough = OneMap(tmp_path, table, matrix, shift).run(*range(40))
    smooth = OneMap(tmp_path, table, matrix, shift, peaks=np.abs(table).max(axis=0)).run(*range(40))
    assert np.abs(smooth - exact).mean() < 0.5 * np.abs(rough - exact).mean()


def test_smoothing_leaves_all_but_outliers_alone():
    peaks = np.array([0.0, 1.0, 2.0, 2.0, 200.0], dtype=np.float32)
    assert smoothing(peaks) == pytest.approx([1, 1, 1, 1, 100**0.7])
    assert (smoothing(np.zeros(4, dtype=np.float32)) == 1).all()


def test_an_output_channel_without_weights_stays_its_bias(tmp_path, random):
    matrix, shift = floats(random, 24, 64), floats(random, 24)
    matrix[5] = 0
    answer = OneMap(tmp_path, floats(random, 2, 64), matrix, shift).run(0, 1)
    assert (answer[:, 5] == shift[5]).all()


@pytest.mark.parametrize(
    ("cpu", "levels"),
    [({"avx512_vnni", "avx512", "avx2"}, 127), ({"avx512", "avx2"}, 64), ({"avx2"}, 64), ({"arm64"}, 127)],
)
def test_processors_that_saturate_get_fewer_levels(cpu, levels):
    assert levels_of(cpu) == levels


def test_the_fewer_levels_cannot_saturate(tmp_path, random):
    levels = levels_of({"avx2"})
    arrays = OneMap(
        tmp_path, floats(random, 1, 64), floats(random, 24, 64), floats(random, 24), levels=levels
    ).arrays
    weights = arrays["map.int8"].astype(int)  # [into, out]; two neighbours of a column are added in 16 bits
    assert np.abs(weights).max() == levels
    assert 255 * np.abs(weights[0::2] + 0).max() + 255 * np.abs(weights[1::2]).max() <= np.iinfo(np.int16).max


def test_int8_that_is_too_far_off_is_refused_unless_forced(tiny, monkeypatch, caplog):
    loaded = tiny("bert-mean")
    monkeypatch.setattr(int8, "levels_of", lambda cpu: 2)
    with pytest.raises(
        StartError, match=r"int8 changes this model too much: cosine min 0\.\d+ mean 0\.\d+; needed are"
    ):
        build_native(loaded.folder, loaded.configuration, INT8)
    monkeypatch.setenv(int8.FORCE, "1")
    with caplog.at_level(logging.WARNING):
        cosine = build_native(loaded.folder, loaded.configuration, INT8).cosine
    assert cosine.mean < 0.99
    assert "served because TEI_ENGINE_QUANTIZE_FORCE=1" in caplog.text


def test_a_refused_model_is_refused_from_the_cache_too(tiny, tmp_path, monkeypatch):
    loaded = tiny("bert-reranker")
    monkeypatch.setattr(int8, "levels_of", lambda cpu: 1)
    for _ in range(2):
        with pytest.raises(StartError, match="probabilities min"):
            build_native(loaded.folder, loaded.configuration, GraphChoice(int8=True, cache=tmp_path))


def test_probes_are_many_and_of_all_lengths(tiny):
    for name in ("bert-mean", "modernbert-mean", "roberta-reranker"):
        loaded = tiny(name)
        probes = encode_probes(loaded.tokenizer, loaded.configuration)
        lengths = [len(probe.ids) for probe in probes]
        assert len(probes) >= 32
        assert max(lengths) == loaded.configuration.max_input_length
        assert min(lengths) <= 12
