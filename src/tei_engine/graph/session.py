"""Running a graph. Everything that knows ONNX Runtime's options is here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# the library collects usage figures for its maker from the moment it is imported: nobody here asked for that
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

from tei_engine.errors import StartError
from tei_engine.graph.arrays import Array
from tei_engine.graph.emit import Graph


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a graph. `type` is ONNX Runtime's word; a dimension is None where it may be any."""

    name: str
    type: str
    shape: tuple[int | None, ...]


class Session:
    """One loaded graph with its own threads. `run` may be called from several threads at once."""

    def __init__(self, graph: Graph, *, threads: int) -> None:
        """Load `graph` for runs of `threads` threads: 1 = only the caller's, 0 = one per core.

        Raises StartError.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # patterns are remembered per input shape, and serving sees hundreds of shapes
        options.enable_mem_pattern = False
        if graph.folder is not None:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(graph.folder)
            )
        # the session refers to these bytes as long as it lives
        self._held = [onnxruntime.OrtValue.ortvalue_from_numpy(values) for values in graph.held.values()]
        self._arrays = graph.held
        if self._held:
            options.add_external_initializers(list(graph.held), self._held)
            # by itself that copies them; what is named as shared besides is used where it lies
            for name, values in zip(graph.held, self._held, strict=True):
                options.add_initializer(name, values)
        try:
            self._inner = onnxruntime.InferenceSession(
                graph.model,
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["SkipLayerNormFusion"],
            )
        except Exception as error:  # ONNX Runtime raises its own untyped family
            raise StartError("ONNX Runtime could not load the model", str(error)) from error

    @property
    def outputs(self) -> list[str]:
        """The names of the graph's outputs, in its order."""
        return [output.name for output in self._inner.get_outputs()]

    @property
    def input_ports(self) -> list[Port]:
        """The graph's inputs, without those that have a value of their own."""
        return _ports(self._inner.get_inputs())

    @property
    def output_ports(self) -> list[Port]:
        """The graph's outputs; a shape that was never declared may be empty."""
        return _ports(self._inner.get_outputs())

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """One forward pass; raises whatever ONNX Runtime raises."""
        answers: list[Array] = self._inner.run(list(outputs), dict(inputs))
        return answers


def _ports(described: Sequence[Any]) -> list[Port]:
    return [
        Port(one.name, one.type, tuple(size if isinstance(size, int) else None for size in one.shape))
        for one in described
    ]


def runtime_version() -> str:
    """The version of the installed ONNX Runtime."""
    return str(onnxruntime.__version__)


def available_providers() -> list[str]:
    """Execution providers of the installed ONNX Runtime."""
    return list(onnxruntime.get_available_providers())
