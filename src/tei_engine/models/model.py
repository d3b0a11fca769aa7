"""A loaded model of any kind: padded ids in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tei_engine.errors import StartError
from tei_engine.graph import build
from tei_engine.graph.arrays import FloatArray, IntArray
from tei_engine.graph.outputs import Output
from tei_engine.graph.session import Session
from tei_engine.models.configuration import Configuration
from tei_engine.models.kinds import Kind
from tei_engine.models.native import GraphChoice, build_native

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


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts of one run, int64 [texts, tokens], padded on the right; `types` None = every token is of type 0."""

    ids: IntArray
    mask: IntArray
    types: IntArray | None = None

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]], types: Sequence[Sequence[int] | None] | None = None) -> Batch:
        """Pad `texts`, none of which may be empty. `types`, if given, has a row or None for each of them."""
        shape = (len(texts), max(map(len, texts)))
        ids = np.zeros(shape, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = text
            mask[row, : len(text)] = 1
        if types is None or not any(types):
            return cls(ids, mask)
        numbers = np.zeros(shape, dtype=np.int64)
        for row, values in enumerate(types):
            if values is not None:
                numbers[row, : len(values)] = values
        return cls(ids, mask, numbers)


class Model:
    """Two sessions over the same mapped weights: narrow (one thread, many callers) and wide (one caller)."""

    def __init__(
        self, folder: Path, configuration: Configuration, threads: Threads, choice: GraphChoice | None = None
    ) -> None:
        """Build the graph and open its sessions. Raises StartError with one clear line."""
        native = build_native(folder, configuration, choice or GraphChoice())
        graph, self.dimension = native.graph, native.width
        self.cosine = native.cosine
        self.file: str | None = None
        """The ready-made graph that is used, relative to the model's folder; None = built from the weights."""
        self._narrow = Session(graph, threads=1)
        self._wide = Session(graph, threads=threads.wide) if threads.wide > 1 else None
        self.kind = configuration.kind
        self.labels = configuration.labels
        self.outputs = _OUTPUTS[configuration.kind]
        self.vocab_size = configuration.sizes.vocab
        self.weights_bytes = graph.weights_bytes
        self.takes_types = build.TYPES in graph.inputs

    @property
    def has_wide(self) -> bool:
        """Whether a lone run has a session of its own."""
        return self._wide is not None

    def run(self, batch: Batch, wanted: Sequence[Output], *, wide: bool = False) -> list[FloatArray]:
        """One forward pass, computing only what is `wanted`, in that order; each must be one of `outputs`.

        Several threads may call this at once, but only one of them `wide`.
        """
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
        if self.takes_types:
            inputs[build.TYPES] = np.zeros_like(batch.ids) if batch.types is None else batch.types
        session = self._wide if wide and self._wide is not None else self._narrow
        return session.run(inputs, [output.value for output in wanted])

    def warm_up(self, longest: int, max_length: int) -> None:
        """Run every session short and with `longest` tokens. Raises StartError on NaN or a wrong shape."""
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


def _filling(tokens: int, max_length: int) -> list[list[int]]:
    """Equal texts that together have about `tokens` tokens."""
    length = min(max_length, tokens, 64)
    return [[0] * length for _ in range(max(1, tokens // length))]
