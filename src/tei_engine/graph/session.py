"""Running a graph. Everything that knows ONNX Runtime's options is here."""

from __future__ import annotations

import onnxruntime

from tei_engine.errors import StartError
from tei_engine.graph.arrays import FloatArray, IntArray
from tei_engine.graph.emit import Graph


class Session:
    """One loaded graph with its own threads. `run` may be called from several threads at once."""

    def __init__(self, graph: Graph, *, threads: int) -> None:
        """Load `graph` for runs of `threads` threads (1 = only the caller's). Raises StartError."""
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
        try:
            self._inner = onnxruntime.InferenceSession(
                graph.model,
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["SkipLayerNormFusion"],
            )
        except Exception as error:  # ONNX Runtime raises its own untyped family
            raise StartError("ONNX Runtime could not load the model", str(error)) from error

    def run(self, inputs: dict[str, IntArray], outputs: list[str]) -> list[FloatArray]:
        """One forward pass; raises whatever ONNX Runtime raises."""
        answers: list[FloatArray] = self._inner.run(outputs, inputs)
        return answers


def available_providers() -> list[str]:
    """Execution providers of the installed ONNX Runtime."""
    return list(onnxruntime.get_available_providers())
