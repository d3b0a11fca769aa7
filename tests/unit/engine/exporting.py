"""ONNX files as exporters publish them, made from the tiny models: other names, other types, fixed sizes."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from tei_engine.graph.heads import Pooling
from tei_engine.models.configuration import NativeConfiguration, read_configuration
from tei_engine.models.native import GraphChoice, build_native

INT32, INT64 = TensorProto.INT32, TensorProto.INT64
FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16


def exported(folder: Path, pooling: Pooling | None = None) -> onnx.ModelProto:
    """The graph of a tiny model with its weights inside."""
    configuration = read_configuration(folder, pooling=pooling)
    assert isinstance(configuration, NativeConfiguration)
    graph = build_native(folder, configuration, GraphChoice()).graph
    model = onnx.load_from_string(graph.model)
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        if tensor.name in graph.held:
            values = graph.held[tensor.name]
        else:
            path, size = graph.folder / place["location"], int(place["length"])
            values = np.fromfile(path, np.uint8, size, offset=int(place["offset"]))
        del tensor.external_data[:]
        tensor.data_location = TensorProto.DEFAULT
        tensor.raw_data = values.tobytes()
    return model


def give(model: onnx.ModelProto, names: Mapping[str, str], dtype: int = FLOAT) -> onnx.ModelProto:
    """Let the graph's outputs be values of the graph under new names: {new: value}, converted to `dtype`."""
    del model.graph.output[:]
    for new, value in names.items():
        model.graph.node.append(helper.make_node("Cast", [value], [new], to=dtype))
        model.graph.output.append(helper.make_tensor_value_info(new, dtype, None))
    return model


def take(
    model: onnx.ModelProto,
    *,
    dtype: int = INT64,
    shape: tuple[int | str, int | str] = ("batch", "tokens"),
    names: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Let the graph take inputs of this type and shape, renamed by {old: new}."""
    old = [one.name for one in model.graph.input]
    del model.graph.input[:]
    nodes = [helper.make_node("Cast", [f"given_{name}"], [name], to=INT64) for name in old]
    inputs = [helper.make_tensor_value_info((names or {}).get(name, name), dtype, shape) for name in old]
    if not names and dtype == INT64:
        model.graph.input.extend(inputs)
        return model
    # the public names move to the inputs, so what the nodes read gets others
    for node in model.graph.node:
        node.input[:] = [f"inner_{name}" if name in old else name for name in node.input]
    for node, one, name in zip(nodes, inputs, old, strict=True):
        node.input[0], node.output[0] = one.name, f"inner_{name}"
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    model.graph.input.extend(inputs)
    return model


def logits_by_token(model: onnx.ModelProto, bias: str) -> onnx.ModelProto:
    """The graph of a tiny splade model with its masked-LM logits as only output, those of padding included."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        first = made_by.get(node.input[-1]) if node.op_type == "Where" else None
        if first is not None and first.op_type == "Slice":  # padding becomes copies of the first token
            hidden = node.input[1]
            node.op_type = "Identity"
            node.input[:] = [hidden]
    highest = next(node for node in model.graph.node if node.op_type == "ReduceMax")
    model.graph.node.append(helper.make_node("Add", [highest.input[0], bias], ["with_bias"]))
    return give(model, {"logits": "with_bias"})


def written(folder: Path, target: Path, model: onnx.ModelProto | None, file: str = "onnx/model.onnx", **config):
    """A copy of a tiny model at `target` that has an ONNX file instead of weights, and `config` in its config."""
    shutil.copytree(folder, target)
    for weights in target.glob("model*.safetensors*"):
        weights.unlink()
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if model is not None:
        (target / file).parent.mkdir(exist_ok=True)
        onnx.save_model(model, target / file)
    return target


def linked(folder: Path, cache: Path) -> Path:
    """A hub's cache: every file of `folder` under `blobs` by another name, and the model made of links to them."""
    snapshot = cache / "snapshots" / "abc"
    (cache / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(folder.rglob("*"))):
        if path.is_file():
            link = snapshot / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            blob = cache / "blobs" / f"{number:040x}"
            shutil.copyfile(path, blob)
            up = [".."] * (len(link.relative_to(cache).parts) - 1)
            link.symlink_to(Path(*up, "blobs", blob.name))
    return snapshot
