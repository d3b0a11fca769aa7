"""Which files of a model's repository are needed, by what it lists and what its JSON files say."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from tei_engine.errors import StartError
from tei_engine.graph import families, sizes
from tei_engine.models import kinds, onnx_files

ALWAYS = ("config.json", "tokenizer.json")
FIRST = ("config.json", "modules.json")
"""They say which others are needed."""
DECIDING = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
"""Files that a model need not have, but that change what is computed where it has them."""
INDEX = "model.safetensors.index.json"

_SINGLE = "model.safetensors"
_PLAIN_GRAPH = "onnx/model.onnx"
_OPTIONAL = re.compile(
    r"modules\.json|tokenizer_config\.json|config_sentence_transformers\.json|sentence_[\w-]+_config\.json"
    r"|1_Pooling/config\.json"
)
_LARGEST_SPLIT = 64 * 1024 * 1024
"""Bytes. A larger graph file holds its weights itself; reading it only to make sure would take seconds."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of a model will be used: a graph by its name, int8, a Dense module other than in modules.json."""

    onnx_file: str | None = None
    int8: bool = False
    dense_path: str | None = None


class LackingError(Exception):
    """`names` are needed and not there; the message is one line for a person."""

    def __init__(self, names: Collection[str], message: str | None = None) -> None:
        super().__init__(message or f"it lacks {', '.join(names)}")
        self.names = list(names)


def small_files(names: Collection[str], folder: Path, wanted: Wanted) -> list[str]:
    """The files of `names` to fetch, but for the weights. `folder` holds those of `FIRST` that exist.

    Raises LackingError if a needed one is not among `names`.
    """
    modules = _module_files(folder, wanted)
    needed = [*ALWAYS, *(name for name, is_needed in modules.items() if is_needed)]
    if lacking := [name for name in needed if name not in names]:
        raise LackingError(lacking)
    others = sorted(name for name in names if name in modules or _OPTIONAL.fullmatch(name))
    return list(dict.fromkeys([*needed, *others]))


def weight_files(names: Collection[str], config: Any, wanted: Wanted) -> list[str]:
    """The weights to fetch of `names`: one graph behind its data, one safetensors file, or the index of several.

    A file comes after those it needs: where it is, they are. Raises LackingError if there is nothing to use.
    """
    graph = _graph(names, config, wanted)
    if graph is not None:
        return [*onnx_files.siblings(graph, names), graph]
    return [_SINGLE if _SINGLE in names else INDEX]


def missing_files(folder: Path, wanted: Wanted) -> list[str]:
    """Names of files that the snapshot `folder` lacks and no model does without."""
    return [*(name for name in ALWAYS if not (folder / name).is_file()), *missing_weights(folder, wanted)]


def missing_modules(folder: Path, wanted: Wanted) -> list[str]:
    """Names of the files of modules that `folder` lacks."""
    return [name for name in _module_files(folder, wanted) if not (folder / name).is_file()]


def missing_weights(folder: Path, wanted: Wanted) -> list[str]:
    """Names of the weights that `folder` lacks; none if it holds some that would be used."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    try:
        graph = _graph(names, read_json(folder / "config.json"), wanted)
    except LackingError as error:
        return error.names
    if graph is not None:
        return [name for name in _external_files(folder, graph) if name not in names]
    return [] if _SINGLE in names else [name for name in shards(folder) if name not in names]


def shards(folder: Path) -> list[str]:
    """The files that the index of `folder` names; one that makes no sense is left to the reader of weights."""
    index = read_json(folder / INDEX)
    try:
        names = {str(name) for name in index["weight_map"].values()}
    except (KeyError, TypeError, AttributeError):
        return []
    return sorted(name for name in names if PurePosixPath(name).name == name)


def read_json(path: Path) -> Any:
    """What the file holds; None if it is absent or not JSON, which whoever needs it says better."""
    try:
        return orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _graph(names: Collection[str], config: Any, wanted: Wanted) -> str | None:
    """The ready-made graph of `names` to use; None = the graph is built from safetensors."""
    if wanted.onnx_file is not None:
        name = str(PurePosixPath(wanted.onnx_file))
        if name not in names:
            raise LackingError([name])
        return name
    obstacle = _obstacle(config)
    is_native = obstacle is None and (_SINGLE in names or INDEX in names)
    graph = onnx_files.pick(names, int8=wanted.int8, is_native=is_native)
    if graph is None and not is_native:
        if obstacle is None:
            raise LackingError(
                [_SINGLE], f"it lacks {_SINGLE}, and a ready-made graph: model.onnx or {_PLAIN_GRAPH}"
            )
        raise LackingError([_PLAIN_GRAPH], f"{obstacle}; nor is there a graph: model.onnx or {_PLAIN_GRAPH}")
    return graph


def _obstacle(config: Any) -> str | None:
    """Why no graph can be built from the weights of a model with this config.json, so far as it says."""
    if config is None:
        return None
    config = config if isinstance(config, dict) else {}
    try:
        family = families.family_of(config)
        sizes.read_sizes(config, family)
        if kinds.is_classifier(config):
            kinds.read_classification(config, family, kinds.read_labels(config))
    except StartError as error:
        return str(error)
    return None


def _module_files(folder: Path, wanted: Wanted) -> dict[str, bool]:
    """The files of the modules in modules.json, and whether the model is of no use without them."""
    try:
        entries = [
            (str(one["type"]).rsplit(".", 1)[-1], str(one["path"]))
            for one in read_json(folder / "modules.json") or ()
        ]
    except (KeyError, TypeError):
        entries = []
    found = {}
    for kind, place in entries:
        if kind in {"Pooling", "SpladePooling"}:
            found[_inside(place, "config.json")] = kind == "Pooling"
    dense = (
        [place for kind, place in entries if kind == "Dense"] if wanted.dense_path is None else [wanted.dense_path]
    )
    for place in dense:
        found |= {_inside(place, "config.json"): True, _inside(place, _SINGLE): True}
    # a place outside the model is refused when modules.json is read
    return {name: needed for name, needed in found.items() if not {"/", ".."} & set(PurePosixPath(name).parts)}


def _inside(place: str, name: str) -> str:
    return str(PurePosixPath(place) / name)


def _external_files(folder: Path, graph: str) -> list[str]:
    """The files in which `graph` keeps its weights, by their names in `folder`."""
    path = folder / graph
    if path.stat().st_size > _LARGEST_SPLIT:
        return []
    import onnx

    try:
        tensors = onnx.load_model(path, load_external_data=False).graph.initializer
    except Exception:  # protobuf's own; whoever loads the graph says what is wrong with it
        return []
    places = {
        entry.value
        for tensor in tensors
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sorted(str(PurePosixPath(graph).parent / place) for place in places)
