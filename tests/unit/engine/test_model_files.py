"""Weights, configuration files and where models are found."""

import json
import shutil
import struct
import sys

import numpy as np
import pytest
from tests.unit.engine.running import token_rows

from tei_engine.errors import StartError
from tei_engine.graph.attention import relative_buckets
from tei_engine.graph.emit import Emitter
from tei_engine.graph.heads import Pooling
from tei_engine.graph.outputs import Output
from tei_engine.graph.session import Session
from tei_engine.graph.weights import Weights, canonical, read_header, read_weights
from tei_engine.models.configuration import read_configuration
from tei_engine.models.finding import find_in_package, find_model
from tei_engine.models.hub import HubOptions
from tei_engine.models.model import Batch
from tei_engine.models.scores import normalised

OFFLINE = HubOptions(offline=True)


def safetensors(path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234", "truncated: tensor w ends at"),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234", "has 4 bytes, its shape needs 8"),
        ({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}, b"", "tensor w has -4 bytes"),
        ({"w": {"dtype": "X1", "shape": [1], "data_offsets": [0, 1]}}, b"1", "unknown type X1"),
        ({"w": {"shape": [1]}}, b"", "tensor w is malformed"),
        (b"not json", b"", "its header is not JSON"),
        (b"[1, 2]", b"", "its header is not JSON"),
    ],
)
def test_malformed_safetensors_are_named(tmp_path, header, data, message):
    with pytest.raises(StartError, match=message):
        read_header(safetensors(tmp_path / "model.safetensors", header, data))


def test_a_header_longer_than_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(StartError, match="not a safetensors file"):
        read_header(path)


@pytest.mark.parametrize("index", [{"weight_map": {"w": "../w.safetensors"}}, {"weight_map": {"w": "w"}}, {}, []])
def test_a_wrong_shard_index(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(StartError):
        read_weights(tmp_path)


def test_names_are_made_canonical():
    assert canonical("bert.embeddings.LayerNorm.gamma", ("bert.",)) == "embeddings.LayerNorm.weight"
    assert canonical("roberta.x.LayerNorm.beta", ("roberta.",)) == "x.LayerNorm.bias"
    assert canonical("encoder.bert.x", ("bert.",)) == "encoder.bert.x"


def test_bfloat16_and_half_are_widened_exactly(tiny_folder):
    whole = read_weights(tiny_folder("bert-mean")).tensors
    for name, step in (("bert-mean-f16", 2**-10), ("bert-mean-bf16", 2**-7)):
        for key, tensor in read_weights(tiny_folder(name)).tensors.items():
            narrow, wide = tensor.read_float32(), whole[key].read_float32()
            assert np.abs(narrow - wide).max() <= step * np.abs(wide).max()


def test_relative_buckets():
    distances = np.array([-200, -128, -16, -8, -7, -1, 0, 1, 7, 8, 16, 127, 200])
    assert relative_buckets(distances).tolist() == [15, 15, 10, 8, 7, 1, 0, 17, 23, 24, 26, 31, 31]


def test_denormal_vectors_become_no_infinities():
    assert np.isfinite(normalised(np.full((1, 3), 1e-44, dtype=np.float32))).all()


def test_a_zero_vector_stays_zero_and_large_ones_do_not_overflow():
    rows = np.array([[0, 0], [3, 4], [3e30, 4e30]], dtype=np.float32)
    assert normalised(rows) == pytest.approx(np.array([[0, 0], [0.6, 0.8], [0.6, 0.8]]))


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder("bert-mean"), tmp_path / "model")


def change(path, **more):
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def test_the_limit_without_a_sentence_config_is_the_position_table(folder):
    (folder / "sentence_bert_config.json").unlink()
    assert read_configuration(folder).max_input_length == 128
    shutil.copy(folder / "config.json", folder / "sentence_roberta_config.json")
    change(folder / "sentence_roberta_config.json", max_seq_length=77)
    assert read_configuration(folder).max_input_length == 77


def test_a_limit_beyond_the_position_table_is_cut(folder):
    change(folder / "sentence_bert_config.json", max_seq_length=4096)
    configuration = read_configuration(folder)
    assert configuration.max_input_length == 128
    assert configuration.warnings


def test_pooling_without_a_config_is_cls_for_berts(folder):
    shutil.rmtree(folder / "1_Pooling")
    configuration = read_configuration(folder)
    assert configuration.pooling is Pooling.CLS
    assert configuration.warnings
    assert read_configuration(folder, pooling=Pooling.MEAN).pooling is Pooling.MEAN


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling_mode_mean_tokens": False}, "names no pooling mode"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode": "weightedmean"}, "names no pooling mode"),
    ],
)
def test_other_pooling_modes_are_refused(folder, changes, message):
    change(folder / "1_Pooling" / "config.json", **changes)
    with pytest.raises(StartError, match=message):
        read_configuration(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "mish"}, "activation 'mish' is not supported"),
        ({"hidden_size": None}, "config.json has no hidden_size"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"num_attention_heads": 5}, "not a multiple"),
        ({"model_type": ["bert"]}, "model type"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
    ],
)
def test_configs_that_make_no_sense(folder, changes, message):
    change(folder / "config.json", **changes)
    with pytest.raises(StartError, match=message):
        read_configuration(folder)


@pytest.mark.parametrize(
    "modules",
    [
        [{"type": "x.WordWeights", "path": ""}],
        [{"type": "x.Dense", "path": "../2_Dense"}],
        [{"type": "x.Dense", "path": "/2_Dense"}],
        [{"path": ""}],
        {},
        5,
    ],
    ids=str,
)
def test_modules_that_are_not_understood_are_refused_not_ignored(folder, modules):
    (folder / "modules.json").write_text(json.dumps(modules))
    if modules == {}:
        read_configuration(folder)
    else:
        with pytest.raises(StartError):
            read_configuration(folder)


def test_models_in_packages_are_found_without_importing(tmp_path, monkeypatch):
    package = tmp_path / "model_in_a_package"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_in_package("model_in_a_package/weights") == package / "weights"
    assert "model_in_a_package" not in sys.modules
    with pytest.raises(StartError, match="package model_in_a_package has no folder other"):
        find_in_package("model_in_a_package/other")
    for wrong in ("model_in_a_package/../x", "a.b/c", "", "model_in_a_package//etc"):
        with pytest.raises(StartError):
            find_in_package(wrong)


def test_a_mapped_id_whose_source_is_gone_falls_back_to_the_hub(folder):
    sources = {"acme/here": str(folder), "acme/gone": "/no/such/folder"}
    found = find_model("acme/here", sources=sources, revision="abc", hub_options=OFFLINE)
    assert (found.folder, found.sha) == (folder, None)
    with pytest.raises(StartError, match="there is no network"):
        find_model("acme/gone", sources=sources, revision=None, hub_options=OFFLINE)


@pytest.fixture
def change_config(tiny_folder, tmp_path):
    """A copy of a tiny model with other things in its config.json."""

    def make(name, **more):
        folder = shutil.copytree(tiny_folder(name), tmp_path / name)
        change(folder / "config.json", **more)
        return folder

    return make


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("modernbert-mean", {"layer_types": ["full_attention"]}, r"expected a list of 3"),
        ("modernbert-mean", {"layer_types": ["linear_attention"] * 3}, "layer type 'linear_attention'"),
        ("modernbert-mean", {"local_attention": None}, r"config\.json has no local_attention"),
        (
            "modernbert-mean",
            {"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1e4}}},
            "rope_type 'yarn'",
        ),
        ("modernbert-cls", {"global_rope_theta": "big"}, "base of rotary positions is 'big'"),
        ("nomic-bert-mean-hubconfig", {"moe_every_n_layers": 2, "num_experts": 8}, "mixtures of experts"),
        ("nomic-bert-mean-hubconfig", {"rotary_scaling_factor": 2}, "rotary_scaling_factor 2"),
        ("nomic-bert-mean-hubconfig", {"prenorm": True}, "prenorm True"),
        ("nomic-bert-mean-hubconfig", {"activation_function": "glu"}, "activation 'glu'"),
        ("nomic-bert-mean", {"head_dim": 16}, "head_dim 16"),
        ("albert-mean", {"inner_group_num": 2}, "inner_group_num 2"),
    ],
)
def test_encoders_that_are_not_built_are_refused(change_config, name, changes, message):
    with pytest.raises(StartError, match=message):
        read_configuration(change_config(name, **changes))


def test_both_spellings_of_modernbert_say_the_same(change_config):
    new = read_configuration(change_config("modernbert-mean")).sizes.rotary
    folder = change_config(
        "modernbert-cls", num_hidden_layers=3, global_attn_every_n_layers=3, global_rope_theta=160000.0
    )
    assert read_configuration(folder).sizes.rotary == new
    assert new.windows == (None, 8, 8)
    assert new.bases == (160000.0, 10000.0, 10000.0)


def test_rotary_positions_end_nowhere(change_config):
    folder = change_config("nomic-bert-mean-hubconfig")
    change(folder / "sentence_bert_config.json", max_seq_length=1000)
    configuration = read_configuration(folder)
    assert (configuration.max_input_length, configuration.warnings) == (1000, ())
    (folder / "sentence_bert_config.json").unlink()
    assert read_configuration(folder).max_input_length == 128, "max_trained_positions before n_positions"


def test_sine_and_cosine_of_far_positions_are_exact():
    """Rotations are computed in the graph, so its functions must hold for large angles."""
    emitter = Emitter(Weights({}))
    angles = emitter.op("Mul", emitter.op("Cast", "input_ids", to=1), emitter.scalar(0.7))
    shape = ("batch", "tokens")
    outputs = [(emitter.rename(emitter.op(kind, angles), kind), shape) for kind in ("Cos", "Sin")]
    session = Session(emitter.finish(("input_ids",), outputs), threads=1)
    numbers = np.arange(200_000)[None]
    exact = (numbers.astype(np.float32) * np.float32(0.7)).astype(np.float64)
    cos, sin = session.run({"input_ids": numbers}, ["Cos", "Sin"])
    assert np.abs(cos - np.cos(exact)).max() <= 1e-6
    assert np.abs(sin - np.sin(exact)).max() <= 1e-6


def test_a_window_hides_nothing_but_what_is_too_far(tiny):
    """Padding sees, in local layers, padding only; that must not become NaN, nor reach a real token."""
    model = tiny("modernbert-mean").model
    alone, [beside, _] = token_rows(model, [[5, 6, 7]])[0], token_rows(model, [[5, 6, 7], [8] * 96])
    assert np.abs(beside - alone).max() <= 2e-5
    [padded] = model.run(Batch.of([[5, 6, 7], [8] * 96]), [Output.TOKENS])
    assert np.isfinite(padded).all()
