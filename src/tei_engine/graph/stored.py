"""A ready-made graph: its nodes read into memory, its weights left in their files, for all sessions together.

ONNX Runtime copies weights that stand inside the graph's own file once per session, and refuses files beside it
that are links out of the folder, as all files of a hub's cache are. So the weights are taken out of the graph and
given to every session as arrays: mapped where they lie aligned, else read once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from tei_engine.errors import StartError
from tei_engine.graph.arrays import Array
from tei_engine.graph.emit import Graph

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # field numbers of onnx.proto: in ModelProto, GraphProto, TensorProto
_LARGE = 1024
"""Bytes. Smaller tensors stay in the graph: they are shapes and scales, which the optimiser looks at."""
_DTYPES: dict[int, np.dtype[Any]] = {
    onnx.TensorProto.FLOAT: np.dtype("<f4"),
    onnx.TensorProto.FLOAT16: np.dtype("<f2"),
    onnx.TensorProto.DOUBLE: np.dtype("<f8"),
    onnx.TensorProto.INT8: np.dtype("i1"),
    onnx.TensorProto.UINT8: np.dtype("u1"),
    onnx.TensorProto.INT32: np.dtype("<i4"),
    onnx.TensorProto.INT64: np.dtype("<i8"),
}
"""Types that numpy and ONNX Runtime both know; tensors of others stay in the graph."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A graph as its exporter made it, apart from where its weights lie."""

    graph: Graph
    quantises_runs: bool
    """Whether it quantises by the extremes of a whole run, so that its texts change each other's answers."""


def read_stored(path: Path) -> Stored:
    """Read the graph at `path`.

    Raises StartError if it is not an ONNX graph, or if a file with its weights is missing, too short, or not in
    its folder.
    """
    try:
        model, held = _split(np.memmap(path, np.uint8, "r").data)
    except (OSError, ValueError, DecodeError) as error:
        raise StartError(f"{path} is not an ONNX graph, or damaged", str(error)) from error
    if not model.graph.node:
        raise StartError(f"{path} is not an ONNX graph: it has no nodes")
    files = _Files(path.parent)
    for tensor in model.graph.initializer:
        if tensor.name not in held and _is_external(tensor):
            _hold(tensor, files.read(tensor), held)
    quantises_runs = False
    for node in _all_nodes(model):
        quantises_runs |= node.op_type == "DynamicQuantizeLinear"
    for tensor in _inner_tensors(model):
        if _is_external(tensor):
            _embed(tensor, files.read(tensor))
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(one.name for one in model.graph.input if one.name not in initializers)
    weights_bytes = sum(_size(tensor) for tensor in model.graph.initializer)
    return Stored(Graph(model.SerializeToString(), inputs, None, held, weights_bytes), quantises_runs)


def _split(data: memoryview) -> tuple[Any, dict[str, Array]]:
    """The model without its large initializers, and these by name, as views of `data` where they lie aligned.

    A protobuf message is a row of fields in any order, so it can be read in parts: what is large is never copied.
    Raises ValueError or protobuf's error if `data` is something else.
    """
    rest: list[memoryview] = []
    graph: list[memoryview] = []
    large: list[memoryview] = []
    for number, field, content in _fields(data):
        if number != _GRAPH:
            rest.append(field)
            continue
        for inner_number, inner_field, inner_content in _fields(content):
            if inner_number == _INITIALIZER and len(inner_content) > _LARGE:
                large.append(inner_content)
            else:
                graph.append(inner_field)
    model = onnx.ModelProto.FromString(b"".join(rest))
    model.graph.MergeFromString(b"".join(graph))
    held: dict[str, Array] = {}
    for content in large:
        fields = list(_fields(content))
        tensor = model.graph.initializer.add()
        tensor.MergeFromString(b"".join(field for number, field, _ in fields if number != _RAW_DATA))
        raw = next((content for number, _, content in fields if number == _RAW_DATA), None)
        if raw is not None and not _is_external(tensor):
            _hold(tensor, np.frombuffer(raw, np.uint8), held)
    return model, held


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """(number, the whole field, its content) of each field of a protobuf message. Raises ValueError."""
    at = 0
    while at < len(message):
        start = at
        key, at = _varint(message, at)
        match key & 7:
            case 0:
                _, end = _varint(message, at)
            case 1:
                end = at + 8
            case 2:
                length, at = _varint(message, at)
                end = at + length
            case 5:
                end = at + 4
            case kind:
                raise ValueError(f"a field of kind {kind} at byte {start}")
        if end > len(message):
            raise ValueError(f"truncated: it ends {end - len(message)} bytes early")
        yield key >> 3, message[start:end], message[at:end]
        at = end


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that begins at byte `at`, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("truncated inside a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number without end before byte {at}")


def _all_nodes(model: Any) -> Iterator[Any]:
    """The nodes of the graph, of its functions, and of the graphs inside nodes (branches, loop bodies)."""
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        yield node
        for graph in _inner_graphs(node):
            waiting.extend(graph.node)


def _inner_graphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _inner_tensors(model: Any) -> Iterator[Any]:
    """All tensors that are not initializers of the outermost graph."""
    for sparse in model.graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in _all_nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for graph in _inner_graphs(node):
            yield from graph.initializer


def _is_external(tensor: Any) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _size(tensor: Any) -> int:
    """Bytes of its values. Types narrower than a byte count as one."""
    return int(math.prod(tensor.dims)) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _hold(tensor: Any, raw: Array, held: dict[str, Array]) -> None:
    """Keep the bytes of an initializer as an array beside the graph, if its size and type allow."""
    dtype = _DTYPES.get(tensor.data_type)
    if dtype is None or raw.nbytes <= _LARGE or raw.nbytes != _size(tensor):
        _embed(tensor, raw)  # a size that is wrong is for ONNX Runtime to report
        return
    values = np.frombuffer(raw.data, dtype)
    if not values.flags.aligned:
        values = values.copy()
    held[tensor.name] = values.reshape(tuple(tensor.dims))
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "held-in-memory"), ("offset", "0"), ("length", str(values.nbytes))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def _embed(tensor: Any, raw: Array) -> None:
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.DEFAULT
    tensor.raw_data = raw.tobytes()


class _Files:
    """The files beside a graph that hold weights, mapped once each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mapped: dict[str, Array] = {}

    def read(self, tensor: Any) -> Array:
        """The bytes of an external tensor, [n] uint8. Raises StartError."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        place = entries.get("location", "")
        try:
            offset = int(entries.get("offset", 0))
            length = int(entries.get("length", _size(tensor)))
        except ValueError as error:
            raise StartError(f"tensor {tensor.name} lies nowhere: {entries}") from error
        mapped = self._map(place, tensor.name)
        if offset < 0 or length < 0 or offset + length > mapped.nbytes:
            raise StartError(
                f"{self._folder / place} is truncated: tensor {tensor.name} ends at byte {offset + length} "
                f"of {mapped.nbytes}"
            )
        return mapped[offset : offset + length]

    def _map(self, place: str, name: str) -> Array:
        if place not in self._mapped:
            pure = PurePosixPath(place)
            if not place or pure.is_absolute() or ".." in pure.parts:
                raise StartError(f"tensor {name} lies outside the model's folder: {place!r}")
            path = self._folder / place
            if not path.is_file():
                raise StartError(f"{path} not found: the graph's weights lie there (tensor {name})")
            # a file without bytes cannot be mapped
            empty = path.stat().st_size == 0
            self._mapped[place] = np.empty(0, np.uint8) if empty else np.asarray(np.memmap(path, np.uint8, "r"))
        return self._mapped[place]
