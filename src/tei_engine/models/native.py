"""The graph of a model, built from its safetensors: f32, or int8 where that was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tei_engine.graph import build
from tei_engine.graph.emit import Graph
from tei_engine.graph.weights import read_weights
from tei_engine.models.configuration import Configuration
from tei_engine.models.dense import read_dense_modules
from tei_engine.models.kinds import Kind


@dataclass(frozen=True, slots=True)
class GraphChoice:
    """Which graph is wanted: a file of the model's folder, int8 instead of f32; `cache` holds what is built."""

    onnx_file: str | None = None
    int8: bool = False
    cache: Path | None = None


@dataclass(frozen=True, slots=True)
class Cosine:
    """How near the vectors of an int8 graph are to those of the f32 graph, over a set of probe texts."""

    min: float
    mean: float


@dataclass(frozen=True, slots=True)
class Native:
    """A built graph, and the width of its first output; `cosine` is there when it is int8."""

    graph: Graph
    width: int
    cosine: Cosine | None = None


def build_native(folder: Path, configuration: Configuration, choice: GraphChoice) -> Native:
    """Build the graph. Raises StartError if a weight is missing or has another shape."""
    family, sizes = configuration.family, configuration.sizes
    weights = read_weights(folder, family.prefixes)
    if configuration.classification is not None:
        head = configuration.classification
        return Native(build.build_classifier(weights, family, sizes, head=head), head.labels)
    if configuration.kind is Kind.SPLADE:
        return Native(build.build_splade(weights, family, sizes, is_tied=configuration.is_tied), sizes.vocab)
    dense = read_dense_modules(configuration.dense, hidden=sizes.hidden)
    graph = build.build_embedder(weights, family, sizes, pooling=configuration.pooling, dense=dense)
    return Native(graph, dense[-1].weight.shape[0] if dense else sizes.hidden)
