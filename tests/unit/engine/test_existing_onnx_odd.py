"""Ready-made graphs by hand: padding on the left, positions, graphs inside nodes, and all that is refused."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.unit.engine.exporting import FLOAT, INT64, exported, give, take, written
from tests.unit.engine.running import pooled, token_rows

from tei_engine.errors import StartError
from tei_engine.graph.heads import Pooling
from tei_engine.graph.outputs import Output
from tei_engine.graph.stored import read_stored
from tei_engine.models.batch import Batch
from tei_engine.models.configuration import read_configuration
from tei_engine.models.model import Model, Threads
from tei_engine.models.native import GraphChoice

ONE = Threads(narrow=1, wide=1)
WORDS = np.random.default_rng(1).normal(size=(520, 8)).astype(np.float32)
PLACES = np.random.default_rng(2).normal(size=(16, 8)).astype(np.float32)
TEXTS = [[5, 6, 7, 8], [9], [10, 11]]


def assembled(nodes, inputs, outputs, tensors=(), functions=()):
    """A graph of int64 inputs and float outputs."""
    graph = helper.make_graph(
        nodes,
        "by_hand",
        [helper.make_tensor_value_info(name, INT64, ["batch", "tokens"]) for name in inputs],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(values, name) for name, values in tensors],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ours", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)


def positional(*, last_column=False):
    """words[id] + places[position]; with `last_column` also that of the last column, padding or not."""
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["word"]),
        helper.make_node("Gather", ["places", "position_ids"], ["place"]),
        helper.make_node("Cast", ["attention_mask"], ["seen"], to=FLOAT),
        helper.make_node("Add", ["word", "place"], ["last_hidden_state"]),
    ]
    outputs = ["last_hidden_state"]
    if last_column:
        nodes.append(helper.make_node("Gather", ["last_hidden_state", "end"], ["sentence_embedding"], axis=1))
        outputs.append("sentence_embedding")
    tensors = [("words", WORDS), ("places", PLACES), ("end", np.array(-1))]
    return assembled(nodes, ["input_ids", "attention_mask", "position_ids"], outputs, tensors)


def load(folder, onnx_file=None, pooling=None, **choice):
    return Model(folder, read_configuration(folder, pooling=pooling), ONE, GraphChoice(onnx_file, **choice))


@pytest.fixture
def served(tiny_folder, tmp_path):
    """Load a graph as the model of a folder like bert-mean's."""

    def serve(graph, **config):
        return load(written(tiny_folder("bert-mean"), tmp_path / "m", graph, **config))

    return serve


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [0, 3])
@pytest.mark.parametrize("shape", [("batch", "tokens"), (2, 6)], ids=str)
def test_positions_count_real_tokens_on_either_side(tiny_folder, tmp_path, side, pad, shape):
    graph = take(positional(last_column=True), shape=shape)
    folder = written(tiny_folder("bert-mean"), tmp_path / "m", graph, pad_token_id=pad)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": side}))
    model = load(folder)
    expected = [WORDS[text] + PLACES[: len(text)] for text in TEXTS]
    for rows, wanted in zip(token_rows(model, TEXTS), expected, strict=True):
        assert rows == pytest.approx(wanted)
    assert pooled(load(folder, pooling=Pooling.MEAN), TEXTS) == pytest.approx(
        np.stack([e.mean(0) for e in expected])
    )
    assert pooled(load(folder, pooling=Pooling.CLS), TEXTS) == pytest.approx(np.stack([e[0] for e in expected]))
    last = np.stack([e[-1] for e in expected])
    assert pooled(load(folder, pooling=Pooling.LAST_TOKEN), TEXTS) == pytest.approx(last)
    # what is padded on the left has its last token in the last column; on the right, padding may stand there
    column = pooled(model, TEXTS)
    if side == "left":
        assert column == pytest.approx(last)
    else:
        assert column[1] == pytest.approx(WORDS[pad] + PLACES[0])


def test_padding_is_the_models_own_token(served):
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["last_hidden_state"]),
        helper.make_node("ReduceSum", ["last_hidden_state", "axis"], ["sentence_embedding"], keepdims=0),
        helper.make_node("Cast", ["attention_mask"], ["seen"], to=FLOAT),
    ]
    tensors = [("words", WORDS), ("axis", np.array([1]))]
    graph = assembled(nodes, ["input_ids", "attention_mask"], ["sentence_embedding"], tensors)
    model = served(graph, pad_token_id=7)
    assert pooled(model, TEXTS)[1] == pytest.approx(WORDS[9] + 3 * WORDS[7], abs=1e-5)


def test_a_graph_without_a_mask_sees_no_padding(served):
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axis"], ["sentence_embedding"], keepdims=0),
    ]
    graph = assembled(nodes, ["input_ids"], ["sentence_embedding"], [("words", WORDS), ("axis", np.array([1]))])
    assert pooled(served(graph), TEXTS) == pytest.approx(np.stack([WORDS[t].sum(0) for t in TEXTS]), abs=1e-5)


def branch(name, values):
    constant = helper.make_node("Constant", [], [f"{name}_out"], value=numpy_helper.from_array(values, name))
    return helper.make_graph([constant], name, [], [helper.make_tensor_value_info(f"{name}_out", FLOAT, None)])


def branching():
    """Two branches that hold one table each; the first is taken where the mask has a 1."""
    nodes = [
        helper.make_node("ReduceMax", ["attention_mask"], ["highest"], keepdims=0),
        helper.make_node("Cast", ["highest"], ["any"], to=TensorProto.BOOL),
        helper.make_node(
            "If", ["any"], ["table"], then_branch=branch("a", WORDS), else_branch=branch("b", -WORDS)
        ),
        helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"]),
    ]
    return assembled(nodes, ["input_ids", "attention_mask"], ["last_hidden_state"])


def test_weights_of_branches_may_lie_outside_too(tiny_folder, tmp_path):
    folder = written(tiny_folder("bert-mean"), tmp_path / "m", None)
    onnx.save_model(
        branching(), folder / "model.onnx", save_as_external_data=True, size_threshold=0, convert_attribute=True
    )
    assert len(list(folder.glob("*"))) > len(list(tiny_folder("bert-mean").glob("*")))
    model = load(folder)
    assert pooled(model, TEXTS) == pytest.approx(np.stack([WORDS[text].mean(0) for text in TEXTS]), abs=1e-6)


def dynamic_in_branch():
    body = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    inner = helper.make_graph(body, "a", [], [helper.make_tensor_value_info("y", FLOAT, None)])
    for node in inner.node:
        node.input[:] = ["word" if name == "x" else name for name in node.input]
    return helper.make_node(
        "If", ["any"], ["last_hidden_state"], then_branch=inner, else_branch=branch("b", WORDS)
    )


def dynamic_in_function():
    body = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    return helper.make_function("ours", "Rough", ["x"], ["y"], body, [helper.make_opsetid("", 17)])


@pytest.mark.parametrize("where", ["branch", "function"])
def test_run_quantisation_is_found_wherever_it_hides(served, where):
    functions = [dynamic_in_function()] if where == "function" else []
    last = (
        helper.make_node("Rough", ["word"], ["last_hidden_state"], domain="ours")
        if functions
        else dynamic_in_branch()
    )
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["word"]),
        helper.make_node("ReduceMax", ["attention_mask"], ["highest"], keepdims=0),
        helper.make_node("Cast", ["highest"], ["any"], to=TensorProto.BOOL),
        last,
    ]
    names = ["input_ids", "attention_mask"]
    model = served(assembled(nodes, names, ["last_hidden_state"], [("words", WORDS)], functions))
    together = token_rows(model, TEXTS)
    for text, rows in zip(TEXTS, together, strict=True):
        assert (rows == token_rows(model, [text])[0]).all()


def identity(outputs, *, shape=("batch", "tokens"), name="input_ids", kind=INT64):
    """A graph that answers with {name: dimensions}."""
    nodes = [helper.make_node("Cast", [name], ["ids"], to=FLOAT)]
    for output, dimensions in outputs.items():
        if dimensions == 2:
            nodes.append(helper.make_node("Identity", ["ids"], [output]))
        else:
            nodes.append(helper.make_node("Unsqueeze", ["ids", "axis"], [output]))
    graph = assembled(nodes, [name], outputs, [("axis", np.array([2]))])
    del graph.graph.input[:]
    graph.graph.input.append(helper.make_tensor_value_info(name, kind, shape))
    return graph


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (identity({"x": 3}, name="pixel_values"), "input pixel_values is not supported; known are input_ids, att"),
        (identity({"x": 3}, name="past_key_values.0.key"), r"input past_key_values\.0\.key is not supported"),
        (identity({"x": 3}, name="attention_mask"), "no input input_ids"),
        (identity({"x": 3}, kind=FLOAT), r"input input_ids is a tensor\(float\) of 2 dim"),
        (identity({"x": 3}, shape=("a", "b", "c")), "of 3 dimensions, expected 32- or 64-bit integers"),
        (identity({"pooler_output": 2, "other": 2}), r'^Unknown output keys: \["pooler_output", "other"\]$'),
        (identity({"a": 3, "b": 3}), r'^Unknown output keys: \["a", "b"\]$'),
        (identity({"sentence_embedding": 3, "last_hidden_state": 2, "x": 3}), "Unknown output keys"),
    ],
    ids=lambda one: one if isinstance(one, str) else "graph",
)
def test_graphs_that_are_not_understood(served, graph, message):
    with pytest.raises(StartError, match=message):
        served(graph)


def test_inputs_that_disagree(served):
    graph = take(positional(), shape=(4, "tokens"))
    graph.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(StartError, match=r"different fixed numbers of texts: \[2, 4\]"):
        served(graph)


def test_a_graph_whose_first_run_fails(served):
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["rows"]),
        helper.make_node("Reshape", ["rows", "shape"], ["last_hidden_state"]),
    ]
    tensors = [("words", WORDS), ("shape", np.array([7, 11, 13]))]
    with pytest.raises(StartError, match="failed its first run") as caught:
        served(assembled(nodes, ["input_ids"], ["last_hidden_state"], tensors))
    assert "Reshape" in caught.value.causes[0]


def test_pooling_needs_vectors_of_tokens(tiny_folder, tmp_path):
    folder = written(tiny_folder("bert-mean"), tmp_path / "m", identity({"sentence_embedding": 2}))
    assert load(folder).outputs == (Output.POOLED,)
    with pytest.raises(StartError, match="Unknown output keys") as caught:
        load(folder, pooling=Pooling.MEAN)
    assert caught.value.causes == ("onnx/model.onnx has no token vectors",)


@pytest.mark.parametrize(
    ("name", "output", "changes", "message"),
    [
        ("bert-classifier", "scores", {}, r'Unknown output keys: \["scores"\]'),
        ("bert-classifier", "logits", {"id2label": {"0": "a"}}, "gives 3 logits, config.json names 1 labels"),
        ("bert-splade", "logits", {}, r'Unknown output keys: \["logits"\]'),  # by text, not by token
    ],
)
def test_heads_must_fit(tiny_folder, tmp_path, name, output, changes, message):
    folder = tiny_folder(name)
    pooling = Pooling.SPLADE if "splade" in name else None
    graph = exported(folder, pooling)
    if graph.graph.output[0].name != output:
        graph = give(graph, {output: graph.graph.output[0].name})
    with pytest.raises(StartError, match=message):
        load(written(folder, tmp_path / "m", graph, **changes), pooling=pooling)


@pytest.mark.parametrize("name", ["/etc/model.onnx", "../model.onnx", "onnx/../../m/model.onnx"])
def test_a_file_outside_the_folder_is_refused(tiny_folder, tmp_path, name):
    folder = written(tiny_folder("bert-mean"), tmp_path / "m", positional(), "model.onnx")
    with pytest.raises(StartError, match=r"--onnx-file .* is outside the model's folder"):
        load(folder, name)


def test_what_was_looked_for_is_listed(tiny_folder, tmp_path):
    folder = written(tiny_folder("bert-mean"), tmp_path / "m", positional(), "onnx/model_O4.onnx")
    with pytest.raises(StartError, match=r"^--onnx-file onnx/model_O5\.onnx not found in /"):
        load(folder, "onnx/model_O5.onnx")
    with pytest.raises(StartError) as caught:
        load(folder)
    listed = "no model.safetensors, model.safetensors.index.json, model.onnx, onnx/model.onnx in"
    assert str(caught.value) == f"{listed} {folder}"
    with pytest.raises(StartError, match=r"no .*onnx/model_quantized\.onnx, .*onnx/model_int8\.onnx"):
        load(folder, int8=True)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "gpt9"}))
    with pytest.raises(StartError) as caught:
        load(folder)
    assert str(caught.value).startswith("model type 'gpt9' is not supported; supported are albert, bert")
    assert str(caught.value).endswith(f"; nor is there a graph: no model.onnx, onnx/model.onnx in {folder}")
    assert load(folder, "onnx/model_O4.onnx").file == "onnx/model_O4.onnx"
    (folder / "onnx" / "model_O4.onnx").unlink()
    with pytest.raises(StartError, match="model type 'gpt9' is not supported; supported are albert, bert"):
        read_configuration(folder)


def outside(folder: Path, **place: str) -> Path:
    """Save `positional` with all its weights outside, and `place` instead of what the file says about one."""
    path = folder / "model.onnx"
    onnx.save_model(positional(), path, save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    model = onnx.load_model(path, load_external_data=False)
    words = next(tensor for tensor in model.graph.initializer if tensor.name == "words")
    for entry in words.external_data:
        entry.value = place.get(entry.key, entry.value)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"location": "gone.data"}, r"gone\.data not found: the graph's weights lie there \(tensor words\)"),
        ({"location": "../model.onnx_data"}, "tensor words lies outside the model's folder"),
        ({"location": "/etc/passwd"}, "tensor words lies outside the model's folder"),
        ({"location": ""}, "tensor words lies outside the model's folder"),
        ({"offset": "10000"}, r"model\.onnx_data is truncated: tensor words ends at byte 26640 of"),
        ({"offset": "-8"}, "truncated"),
        ({"offset": "x"}, "tensor words lies nowhere"),
        ({"length": "1024"}, "ONNX Runtime could not load"),
        ({"length": "99999"}, "truncated"),
    ],
    ids=str,
)
def test_weights_that_are_not_where_the_graph_says(tmp_path, tiny_folder, place, message):
    folder = written(tiny_folder("bert-mean"), tmp_path / "m", None)
    outside(folder, **place)
    with pytest.raises(StartError, match=message):
        load(folder)


def test_an_empty_file_of_weights(tmp_path):
    path = outside(tmp_path)
    (tmp_path / "model.onnx_data").write_bytes(b"")
    with pytest.raises(StartError, match="is truncated"):
        read_stored(path)


def test_damaged_graphs_are_refused(tmp_path):
    path = tmp_path / "model.onnx"
    whole = positional().SerializeToString()
    for content in (b"", b"\x00", b"\xff" * 100, b"version https://git-lfs", whole[:-1], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(StartError, match="is not an ONNX graph"):
            read_stored(path)
    for end in range(1, len(whole) - 1, 61):
        path.write_bytes(whole[:end])
        with pytest.raises(StartError, match="is not an ONNX graph"):
            read_stored(path)


def test_weights_are_held_once_and_unharmed(tmp_path):
    """Each comes out as it went in, wherever in the file it stands; what is small stays in the graph."""
    random = np.random.default_rng(3)
    kinds = (np.float32, np.float16, np.float64, np.int8, np.uint8, np.int32, np.int64)
    tensors = [(f"large{n}", random.integers(0, 100, 1100 + n).astype(kind)) for n, kind in enumerate(kinds)]
    tensors += [("small", np.arange(3)), ("flags", random.integers(0, 2, 2000).astype(bool))]
    nodes = [helper.make_node("Identity", ["input_ids"], ["y"])]
    path = tmp_path / "model.onnx"
    onnx.save_model(assembled(nodes, ["input_ids"], ["y"], tensors), path)
    stored = read_stored(path)
    assert set(stored.graph.held) == {name for name, _ in tensors if name.startswith("large")}
    for name, values in tensors:
        if name in stored.graph.held:
            held = stored.graph.held[name]
            assert held.dtype == values.dtype
            assert held.flags.aligned
            assert (held == values).all()
    assert len(stored.graph.model) < 2000 + 2000, "the flags and little else"
    assert stored.graph.weights_bytes == sum(values.nbytes for _, values in tensors)
    assert not stored.quantises_runs


def test_batches_have_lengths():
    assert Batch.of(TEXTS).lengths.tolist() == [4, 1, 2]
