"""Where the hub's cache is, and what is missing in it."""

import shutil

import onnx
import pytest
from onnx import TensorProto, helper

from tei_engine.errors import StartError
from tei_engine.models.finding import find_model
from tei_engine.models.hub import HubOptions
from tei_engine.models.hub_cache import ModelCache, default_cache
from tei_engine.models.hub_files import Wanted, missing_files, missing_modules

COMMIT = "ab" * 20


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"HF_HUB_CACHE": "/1", "HUGGINGFACE_HUB_CACHE": "/2", "HF_HOME": "/3", "XDG_CACHE_HOME": "/4"}, "/1"),
        ({"HF_HUB_CACHE": "", "HUGGINGFACE_HUB_CACHE": "/2", "HF_HOME": "/3", "XDG_CACHE_HOME": "/4"}, "/2"),
        ({"HF_HOME": "/3", "XDG_CACHE_HOME": "/4"}, "/3/hub"),
        ({"XDG_CACHE_HOME": "/4"}, "/4/huggingface/hub"),
        ({}, "/home/of/me/.cache/huggingface/hub"),
        ({"HF_HUB_CACHE": "~/models"}, "/home/of/me/models"),
        ({"HF_HOME": "$PLACE/hf", "PLACE": "/5"}, "/5/hf/hub"),
    ],
)
def test_the_folder_of_the_cache(monkeypatch, variables, folder):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/of/me")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(default_cache()) == folder


@pytest.fixture
def place(tmp_path):
    return ModelCache(tmp_path / "hub", "acme/tiny")


@pytest.fixture
def snapshot(place, tiny_folder):
    """A cache that holds bert-mean as branch main."""
    folder = place.folder_of(COMMIT)
    shutil.copytree(tiny_folder("bert-mean"), folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    place.write_ref("main", COMMIT)
    return folder


def test_the_hub_cache_is_read_by_branch_and_commit(place, snapshot):
    options = HubOptions(cache=str(place.cache), offline=True)
    for revision in (None, "main", COMMIT):
        found = find_model("acme/tiny", sources={}, revision=revision, hub_options=options)
        assert (found.folder, found.sha) == (snapshot, COMMIT)
    assert place.snapshot("other") is None
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "1_Pooling" / "config.json").unlink()
    with pytest.raises(StartError, match=r"missing tokenizer\.json, 1_Pooling/config\.json"):
        find_model("acme/tiny", sources={}, revision=None, hub_options=options)


@pytest.mark.parametrize("text", ["../../elsewhere", "", "ab" * 19])
def test_a_branch_that_leads_nowhere(place, snapshot, text):
    (place.root / "refs" / "main").write_text(text)
    assert place.snapshot("main") is None


def graph_with_data(path, *places):
    """An ONNX file whose weights lie in other files."""
    tensors = []
    for number, place in enumerate(places):
        tensor = TensorProto(name=f"w{number}", data_type=TensorProto.FLOAT, dims=[1])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=place)
        tensors.append(tensor)
    path.parent.mkdir(exist_ok=True)
    onnx.save_model(helper.make_model(helper.make_graph([], "g", [], [], tensors)), path)


def test_a_graph_is_complete_with_its_data(snapshot):
    (snapshot / "model.safetensors").unlink()
    assert missing_files(snapshot, Wanted()) == ["model.safetensors"]
    graph_with_data(snapshot / "onnx" / "model.onnx", "model.onnx_data", "model.onnx_data", "more.data")
    assert missing_files(snapshot, Wanted()) == ["onnx/model.onnx_data", "onnx/more.data"]
    (snapshot / "onnx" / "model.onnx_data").touch()
    (snapshot / "onnx" / "more.data").touch()
    assert missing_files(snapshot, Wanted()) == []
    (snapshot / "onnx" / "model.onnx").write_bytes(b"not a graph at all")
    assert missing_files(snapshot, Wanted()) == [], "that is for whoever loads it to say"


def test_which_graph_is_missing_depends_on_what_is_wanted(snapshot):
    other = Wanted(onnx_file="./onnx/other.onnx")
    assert missing_files(snapshot, other) == ["onnx/other.onnx"]
    graph_with_data(snapshot / "onnx" / "other.onnx", "gone.data")
    assert missing_files(snapshot, other) == ["onnx/gone.data"]
    assert missing_files(snapshot, Wanted()) == []
    assert missing_files(snapshot, Wanted(int8=True)) == [], "it can be quantised here"
    graph_with_data(snapshot / "onnx" / "model_quantized.onnx", "gone.data")
    assert missing_files(snapshot, Wanted(int8=True)) == ["onnx/gone.data"]


def test_safetensors_of_a_type_that_is_not_built_do_not_count(snapshot):
    (snapshot / "config.json").write_text('{"model_type": "deberta-v2"}')
    assert missing_files(snapshot, Wanted()) == ["onnx/model.onnx"]
    graph_with_data(snapshot / "model.onnx")
    assert missing_files(snapshot, Wanted()) == []


def test_shards_that_are_missing(snapshot, tiny_folder):
    (snapshot / "model.safetensors").unlink()
    folder = tiny_folder("bert-mean-sharded")
    for name in ("model.safetensors.index.json", "model-00002-of-00002.safetensors"):
        shutil.copy(folder / name, snapshot / name)
    assert missing_files(snapshot, Wanted()) == ["model-00001-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("modules", "missing"),
    [
        ('[{"type": "x.Dense", "path": "2_Dense"}]', ["2_Dense/config.json", "2_Dense/model.safetensors"]),
        ('[{"type": "x.Dense", "path": "../2_Dense"}, {"type": "x.Pooling", "path": "/"}]', []),
        ('[{"type": "x.Dense", "path": "a/../../2_Dense"}]', []),
        ('[{"type": "x.Pooling", "path": ""}, {"type": "x.Transformer", "path": "0_T"}]', []),
        ('[{"path": ""}]', []),
        ("5", []),
        ("not json", []),
    ],
)
def test_files_of_modules(snapshot, modules, missing):
    (snapshot / "modules.json").write_text(modules)
    assert missing_modules(snapshot, Wanted()) == missing
