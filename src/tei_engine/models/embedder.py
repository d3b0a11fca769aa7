"""A loaded embedding model: ids in, vectors out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tei_engine.errors import StartError
from tei_engine.graph.arrays import FloatArray
from tei_engine.graph.outputs import Output
from tei_engine.models.configuration import Configuration
from tei_engine.models.kinds import Kind
from tei_engine.models.model import Batch, Model, Threads


class Embedder(Model):
    """A model that turns texts into vectors, and nothing else."""

    def __init__(self, folder: Path, configuration: Configuration, threads: Threads) -> None:
        """Build the graph and open its sessions. Raises StartError with one clear line, also for other kinds."""
        if configuration.kind is Kind.SPLADE:
            raise StartError("splade models are not supported yet, only embedding models")
        if configuration.kind is not Kind.EMBEDDING:
            raise StartError(
                f"{configuration.architecture}: classifiers and rerankers are not supported yet, "
                "only embedding models"
            )
        super().__init__(folder, configuration, threads)

    def pooled(self, texts: Sequence[Sequence[int]], *, wide: bool = False) -> FloatArray:
        """One vector per text, [n, dimension], not normalised. No text may be empty."""
        return self.run(Batch.of(texts), (Output.POOLED,), wide=wide)[0]

    def tokens(self, texts: Sequence[Sequence[int]], *, wide: bool = False) -> list[FloatArray]:
        """Per text its token vectors, [tokens, hidden], special tokens included, padding removed."""
        rows = self.run(Batch.of(texts), (Output.TOKENS,), wide=wide)[0]
        return [rows[index, : len(text)] for index, text in enumerate(texts)]


def normalised(vectors: FloatArray) -> FloatArray:
    """Rows of unit length: squares summed in float64, the scale applied in float32. A zero row stays zero."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    scales = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    np.minimum(scales, np.finfo(np.float32).max, out=scales)  # beyond it lie only vectors of denormal numbers
    scaled: FloatArray = vectors * scales.astype(np.float32)[:, None]
    return scaled
