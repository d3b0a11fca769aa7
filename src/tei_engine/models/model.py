"""A loaded model of any kind: padded ids in, arrays out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from tei_engine.errors import StartError
from tei_engine.graph import build
from tei_engine.graph.arrays import FloatArray
from tei_engine.graph.outputs import Output
from tei_engine.graph.session import Session
from tei_engine.graph.stored import read_stored
from tei_engine.models import onnx_files
from tei_engine.models.batch import Batch
from tei_engine.models.configuration import Configuration, NativeConfiguration
from tei_engine.models.existing import Existing
from tei_engine.models.kinds import Kind
from tei_engine.models.native import GraphChoice, Native, build_native

__all__ = ["Batch", "Model", "Threads"]

_log = logging.getLogger(__name__)

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_OUTPUTS = {
    Kind.EMBEDDING: (Output.POOLED, Output.TOKENS),
    Kind.CLASSIFIER: (Output.LOGITS,),
    Kind.RERANKER: (Output.LOGITS,),
    Kind.SPLADE: (Output.SPARSE,),
}


@dataclass(frozen=True, slots=True)
class Threads:
    """How the processor is shared out: `narrow` one-thread runs at a time, or one run of `wide` threads."""

    narrow: int
    wide: int


class _Built:
    """A graph that was built here as a model: its runs need no more than the names of its own outputs."""

    longest = None

    def __init__(self, native: Native, kind: Kind) -> None:
        self.cosine = native.cosine
        self.dimension = native.width
        self.outputs = _OUTPUTS[kind]
        self.takes_types = build.TYPES in native.graph.inputs

    def run(self, session: Session, batch: Batch, wanted: Sequence[Output]) -> list[FloatArray]:
        """What is `wanted` of `batch`, in that order."""
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
        if self.takes_types:
            inputs[build.TYPES] = np.zeros_like(batch.ids) if batch.types is None else batch.types
        return session.run(inputs, [output.value for output in wanted])


class Model:
    """Two sessions over the same weights: narrow (one thread, many callers) and wide (one caller)."""

    def __init__(
        self, folder: Path, configuration: Configuration, threads: Threads, choice: GraphChoice | None = None
    ) -> None:
        """Build or read the graph and open its sessions. Raises StartError with one clear line."""
        choice = choice or GraphChoice()
        self.file = _graph_file(folder, configuration, choice)
        """The ready-made graph that is used, relative to the model's folder; None = built from the weights."""
        self.is_int8 = choice.int8 and (self.file is None or not onnx_files.is_plain(self.file))
        self._graph: _Built | Existing
        if self.file is not None:
            stored = read_stored(folder / self.file)
            graph = stored.graph
            self._narrow = Session(graph, threads=1)
            self._graph = Existing(self.file, stored, self._narrow, configuration)
        else:
            assert isinstance(configuration, NativeConfiguration)
            native = build_native(folder, configuration, choice)
            graph = native.graph
            self._narrow = Session(graph, threads=1)
            self._graph = _Built(native, configuration.kind)
        self._wide = Session(graph, threads=threads.wide) if threads.wide > 1 else None
        self.kind = configuration.kind
        self.labels = configuration.labels
        self.vocab_size = configuration.vocab_size
        self.weights_bytes = graph.weights_bytes
        self.cosine = self._graph.cosine
        self.dimension = self._graph.dimension
        self.outputs = self._graph.outputs
        """What may be wanted of a run, the most important first."""
        self.takes_types = self._graph.takes_types
        self.max_input_length = min(
            configuration.max_input_length, self._graph.longest or configuration.max_input_length
        )
        """Tokens of the longest input; a ready-made graph may take fewer than the configuration says."""

    @property
    def has_wide(self) -> bool:
        """Whether a lone run has a session of its own."""
        return self._wide is not None

    def run(self, batch: Batch, wanted: Sequence[Output], *, wide: bool = False) -> list[FloatArray]:
        """One forward pass, computing only what is `wanted`, in that order; each must be one of `outputs`.

        Several threads may call this at once, but only one of them `wide`. Raises ValueError for a text that is
        longer than `max_input_length` in a graph of fixed size, and whatever ONNX Runtime raises.
        """
        session = self._wide if wide and self._wide is not None else self._narrow
        return self._graph.run(session, batch, wanted)

    def warm_up(self, longest: int, max_length: int) -> None:
        """Run every session short and with `longest` tokens. Raises StartError on NaN or a wrong shape."""
        max_length = min(max_length, self.max_input_length)
        for wide in (False, True) if self._wide is not None else (False,):
            for texts in ([[0] * min(8, max_length)], _filling(longest, max_length)):
                try:
                    [rows] = self.run(Batch.of(texts), self.outputs[:1], wide=wide)
                except Exception as error:
                    raise StartError("the model failed its first run", str(error)) from error
                expected = (len(texts), self.dimension)
                if rows.shape != expected:
                    raise StartError(f"the model's output has shape {rows.shape}, expected {expected}")
                if not np.isfinite(rows).all():
                    raise StartError("the model's output is not a number: its weights are damaged")


def _graph_file(folder: Path, configuration: Configuration, choice: GraphChoice) -> str | None:
    """The ready-made graph of `folder` to use, by its path in there; None = the graph is built from the weights.

    Raises StartError naming the file that is wanted and missing, or all that were looked for.
    """
    if choice.onnx_file is not None:
        return _checked_file(folder, choice.onnx_file)
    is_native = isinstance(configuration, NativeConfiguration) and any(
        (folder / name).is_file() for name in _WEIGHTS
    )
    tried = onnx_files.candidates(int8=choice.int8, cpu=onnx_files.cpu_flags())
    names = {name for name in tried if (folder / name).is_file()}
    file = onnx_files.pick(names, int8=choice.int8, is_native=is_native)
    if file is None and not is_native:
        looked = ", ".join((*_WEIGHTS, *tried) if configuration.obstacle is None else tried)
        why = "" if configuration.obstacle is None else f"{configuration.obstacle}; nor is there a graph: "
        raise StartError(f"{why}no {looked} in {folder}")
    if file is not None and choice.int8 and onnx_files.is_plain(file):
        _log.warning("%s is not quantised, and is used all the same: there is nothing to make int8 of", file)
    return file


def _checked_file(folder: Path, name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise StartError(f"--onnx-file {name} is outside the model's folder")
    if not (folder / path).is_file():
        raise StartError(f"--onnx-file {name} not found in {folder}")
    return str(path)


def _filling(tokens: int, max_length: int) -> list[list[int]]:
    """Equal texts that together have about `tokens` tokens."""
    length = min(max_length, tokens, 64)
    return [[0] * length for _ in range(max(1, tokens // length))]
