"""Writing an ONNX graph node by node, with weights left where they lie on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tei_engine.graph.arrays import Array
from tei_engine.graph.weights import Tensor, Weights

_OPSET = 20  # the first with Gelu
_IR_VERSION = 9
_FLOAT = onnx.TensorProto.FLOAT
CONTRIBUTED = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


@dataclass(frozen=True, slots=True)
class Graph:
    """A finished graph: its bytes, the folder its mapped weights lie in, and the weights that had to be converted.

    `inputs` are the names of its inputs, each int64 [batch, tokens]. `held` maps initializer name → values in
    memory, or mapped from a file of our own; sessions refer to that memory, they do not copy it.
    """

    model: bytes
    inputs: tuple[str, ...]
    folder: Path | None
    held: dict[str, Array]
    weights_bytes: int


class Emitter:
    """Collects nodes and initializers; every method returns the name of the value it made."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._nodes: list[Any] = []
        self._initializers: dict[str, Any] = {}
        self._tensors: dict[str, Tensor] = {}
        self._held: dict[str, Array] = {}
        self._folder: Path | None = None
        self._count = 0

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """One node with one output; `domain` among the attributes names that of the operator."""
        self._count += 1
        output = f"{kind.lower()}_{self._count}"
        self._nodes.append(onnx.helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def split(self, value: str, *sizes: int, axis: int) -> list[str]:
        """Consecutive parts of `value` along `axis`, of these sizes."""
        self._count += 1
        outputs = [f"split_{self._count}_{part}" for part in range(len(sizes))]
        inputs = [value, self.ints(*sizes)]
        self._nodes.append(onnx.helper.make_node("Split", inputs, outputs, name=outputs[0], axis=axis))
        return outputs

    def rename(self, value: str, name: str) -> str:
        """Give `value` a public name."""
        self._nodes.append(onnx.helper.make_node("Identity", [value], [name], name=f"name_{name}"))
        return name

    def has(self, name: str) -> bool:
        """Whether the checkpoint stores a tensor of this name."""
        return name in self._weights.tensors

    def weight(self, name: str, *shape: int) -> str:
        """The stored tensor `name`, mapped if it can be. An absent one is noted and reported by `finish`."""
        tensor = self._weights.find(name, shape)
        if tensor is not None:
            self._tensors[name] = tensor
        return name

    def values(self, name: str, values: Array) -> str:
        """Weights that do not come from the checkpoint itself, under a name of their own."""
        self._held[name] = values
        return name

    def ints(self, *values: int) -> str:
        """A constant int64 vector."""
        return self._constant("i_" + "_".join(map(str, values)), np.array(values, dtype=np.int64))

    def int_scalar(self, value: int) -> str:
        """A constant int64 scalar."""
        return self._constant(f"n_{value}", np.array(value, dtype=np.int64))

    def scalar(self, value: float) -> str:
        """A constant float32 scalar."""
        return self._constant(f"f_{value!r}", np.array(value, dtype=np.float32))

    def table(self, name: str, values: np.ndarray[Any, Any]) -> str:
        """A small constant array."""
        return self._constant(name, values)

    def linear(self, rows: str, name: str, *, out: int, into: int, bias: bool = True) -> str:
        """rows [n, into] → [n, out] with the weight as stored ([out, into])."""
        parts = [rows, self.weight(f"{name}.weight", out, into)]
        if bias:
            parts.append(self.weight(f"{name}.bias", out))
        return self.op("Gemm", *parts, transB=1)

    def project(
        self, rows: str, name: str, *, out: int, into: int, bias: bool = True, floor: float | None = None
    ) -> str:
        """A linear map inside the layers, where nearly all time goes; subclasses may compute it in their own way.

        `floor` says that no value of `rows` lies below it.
        """
        return self.linear(rows, name, out=out, into=into, bias=bias)

    def norm(self, rows: str, name: str, *, size: int, eps: float, bias: bool = True) -> str:
        """LayerNormalization over the last axis, which has `size` elements."""
        parts = [rows, self.weight(f"{name}.weight", size)]
        if bias:
            parts.append(self.weight(f"{name}.bias", size))
        return self.op("LayerNormalization", *parts, axis=-1, epsilon=eps)

    def _constant(self, name: str, values: np.ndarray[Any, Any]) -> str:
        if name not in self._initializers:
            self._initializers[name] = onnx.numpy_helper.from_array(values, name)
        return name

    def finish(self, inputs: Sequence[str], outputs: Sequence[tuple[str, Sequence[str | int]]]) -> Graph:
        """The graph. `inputs` are int64 [batch, tokens]; `outputs` are (name, shape) of float32 values.

        Raises StartError if a weight that was asked for is absent.
        """
        self._weights.check()
        self._place_tensors()
        tensor_info = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            self._nodes,
            "tei_engine",
            [tensor_info(name, onnx.TensorProto.INT64, ["batch", "tokens"]) for name in inputs],
            [tensor_info(name, onnx.TensorProto.FLOAT, list(shape)) for name, shape in outputs],
            list(self._initializers.values()),
        )
        for name, tensor in self._tensors.items():
            graph.initializer.append(self._external(name, _FLOAT, tensor.shape, tensor.nbytes, tensor))
        for name, values in self._held.items():
            kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
            graph.initializer.append(self._external(name, kind, values.shape, values.nbytes, None))
        opsets = [onnx.helper.make_opsetid("", _OPSET), onnx.helper.make_opsetid(CONTRIBUTED, 1)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        held = sum(values.nbytes for values in self._held.values())
        mapped = sum(tensor.nbytes for tensor in self._tensors.values())
        return Graph(model.SerializeToString(), tuple(inputs), self._folder, self._held, mapped + held)

    def _place_tensors(self) -> None:
        """Decide per tensor: mapped from its file, or read and widened into memory."""
        # ONNX Runtime reads external data of one folder only; shards elsewhere (rare) are read into memory
        self._folder = next((t.file.parent for t in self._tensors.values() if t.is_mappable), None)
        for name, tensor in list(self._tensors.items()):
            if not tensor.is_mappable or tensor.file.parent != self._folder:
                self._held[name] = tensor.read_float32()
                del self._tensors[name]

    @staticmethod
    def _external(name: str, kind: int, shape: tuple[int, ...], nbytes: int, tensor: Tensor | None) -> Any:
        proto = onnx.TensorProto(name=name, data_type=kind, dims=shape)
        proto.data_location = onnx.TensorProto.EXTERNAL
        place = {
            "location": tensor.file.name if tensor else "held-in-memory",
            "offset": str(tensor.offset if tensor else 0),
            "length": str(nbytes),
        }
        for key, value in place.items():
            entry = proto.external_data.add()
            entry.key, entry.value = key, value
        return proto
