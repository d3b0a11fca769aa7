"""A loaded embedding model: ids in, vectors out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from tei_engine.errors import StartError
from tei_engine.graph import build, heads
from tei_engine.graph.arrays import FloatArray, IntArray
from tei_engine.graph.session import Session
from tei_engine.graph.weights import Weights, read_header, read_weights
from tei_engine.models.configuration import Configuration

_ACTIVATIONS = {"Tanh": True, "Identity": False}


@dataclass(frozen=True, slots=True)
class Threads:
    """How the processor is shared out: `narrow` one-thread runs at a time, or one run of `wide` threads."""

    narrow: int
    wide: int


class Embedder:
    """Two sessions over the same mapped weights: narrow (one thread, many callers) and wide (one caller)."""

    def __init__(self, folder: Path, configuration: Configuration, threads: Threads) -> None:
        """Build the graph and open its sessions. Raises StartError with one clear line."""
        weights = read_weights(folder, configuration.family.prefixes)
        dense = tuple(read_dense(path) for path in configuration.dense)
        _check_dense(dense, configuration.sizes.hidden)
        graph = build.build_embedder(
            weights, configuration.family, configuration.sizes, pooling=configuration.pooling, dense=dense
        )
        self._narrow = Session(graph, threads=1)
        self._wide = Session(graph, threads=threads.wide) if threads.wide > 1 else None
        self.vocab_size = configuration.sizes.vocab
        self.dimension = dense[-1].weight.shape[0] if dense else configuration.sizes.hidden
        self.weights_bytes = graph.weights_bytes

    @property
    def has_wide(self) -> bool:
        """Whether a lone run has a session of its own."""
        return self._wide is not None

    def pooled(self, texts: Sequence[Sequence[int]], *, wide: bool = False) -> FloatArray:
        """One vector per text, [n, dimension], not normalised. No text may be empty."""
        inputs = _padded(texts)
        return self._session(wide).run(inputs, [build.POOLED])[0]

    def tokens(self, texts: Sequence[Sequence[int]], *, wide: bool = False) -> list[FloatArray]:
        """Per text its token vectors, [tokens, hidden], special tokens included, padding removed."""
        rows = self._session(wide).run(_padded(texts), [build.TOKENS])[0]
        return [rows[index, : len(text)] for index, text in enumerate(texts)]

    def warm_up(self, longest: int, max_length: int) -> None:
        """Run every session short and with `longest` tokens. Raises StartError on NaN or a wrong shape."""
        for wide in (False, True) if self._wide is not None else (False,):
            for texts in ([[0] * min(8, max_length)], _filling(longest, max_length)):
                try:
                    vectors = self.pooled(texts, wide=wide)
                except Exception as error:
                    raise StartError("the model failed its first run", str(error)) from error
                expected = (len(texts), self.dimension)
                if vectors.shape != expected:
                    raise StartError(f"the model's output has shape {vectors.shape}, expected {expected}")
                if not np.isfinite(vectors).all():
                    raise StartError("the model's output is not a number: its weights are damaged")

    def _session(self, wide: bool) -> Session:
        return self._wide if wide and self._wide is not None else self._narrow


def _filling(tokens: int, max_length: int) -> list[list[int]]:
    """Equal texts that together have about `tokens` tokens."""
    length = min(max_length, tokens, 64)
    return [[0] * length for _ in range(max(1, tokens // length))]


def _padded(texts: Sequence[Sequence[int]]) -> dict[str, IntArray]:
    longest = max(map(len, texts))
    ids = np.zeros((len(texts), longest), dtype=np.int64)
    mask = np.zeros((len(texts), longest), dtype=np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def normalised(vectors: FloatArray) -> FloatArray:
    """Rows of unit length: squares summed in float64, the scale applied in float32. A zero row stays zero."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    scales = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    np.minimum(scales, np.finfo(np.float32).max, out=scales)  # beyond it lie only vectors of denormal numbers
    scaled: FloatArray = vectors * scales.astype(np.float32)[:, None]
    return scaled


def read_dense(folder: Path) -> heads.Dense:
    """One sentence-transformers Dense module. Raises StartError if its files are missing or say something new."""
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


def _check_dense(modules: tuple[heads.Dense, ...], hidden: int) -> None:
    size = hidden
    for dense in modules:
        if dense.weight.shape[1] != size:
            raise StartError(f"a Dense module takes {dense.weight.shape[1]} values where {size} arrive")
        size = dense.weight.shape[0]
