"""The Dense modules that sentence-transformers puts behind an encoder."""

from __future__ import annotations

from pathlib import Path

import orjson

from tei_engine.errors import StartError
from tei_engine.graph import heads
from tei_engine.graph.weights import Weights, read_header

_ACTIVATIONS = {"Tanh": True, "Identity": False}


def read_dense_modules(folders: tuple[Path, ...], *, hidden: int) -> tuple[heads.Dense, ...]:
    """The modules in `folders`, in order, behind vectors of size `hidden`.

    Raises StartError if their files are missing, say something new, or do not fit each other.
    """
    modules = tuple(_read(folder) for folder in folders)
    size = hidden
    for dense in modules:
        if dense.weight.shape[1] != size:
            raise StartError(f"a Dense module takes {dense.weight.shape[1]} values where {size} arrive")
        size = dense.weight.shape[0]
    return modules


def _read(folder: Path) -> heads.Dense:
    path = folder / "config.json"
    if not path.is_file():
        raise StartError(f"{path} not found: the model names a Dense module there")
    try:
        config = orjson.loads(path.read_bytes())
        into, out, bias = int(config["in_features"]), int(config["out_features"]), bool(config.get("bias", True))
        activation = str(config.get("activation_function", "Tanh")).rsplit(".", 1)[-1]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StartError(f"could not read {path}", repr(error)) from error
    if activation not in _ACTIVATIONS:
        raise StartError(f"{path}: activation {activation} is not supported (Tanh and Identity are)")
    weights_path = folder / "model.safetensors"
    if not weights_path.is_file():
        raise StartError(f"{weights_path} not found")
    weights = Weights({tensor.name: tensor for tensor in read_header(weights_path)})
    matrix = weights.find("linear.weight", (out, into))
    shift = weights.find("linear.bias", (out,)) if bias else None
    weights.check()
    assert matrix is not None
    return heads.Dense(matrix.read_float32(), shift.read_float32() if shift else None, _ACTIVATIONS[activation])
