"""The graph of a model, built from its safetensors: f32, or int8 where that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tei_engine.graph import build
from tei_engine.graph.emit import Emitter, Graph
from tei_engine.graph.weights import read_weights
from tei_engine.models import int8
from tei_engine.models.configuration import NativeConfiguration
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
    """A built graph, and the width of its first output; `cosine` is there when it is int8 and answers vectors."""

    graph: Graph
    width: int
    cosine: Cosine | None = None


def build_native(folder: Path, configuration: NativeConfiguration, choice: GraphChoice) -> Native:
    """Build the graph.

    Raises StartError if a weight is missing or has another shape, or if int8 changes the answers too much.
    """
    weights = read_weights(folder, configuration.family.prefixes)
    emit, width = _builder(configuration)
    if not choice.int8:
        return Native(emit(Emitter(weights)), width)
    graph, likeness = int8.build_int8(folder, configuration, weights, emit, cache=choice.cache)
    cosine = Cosine(likeness.min, likeness.mean) if configuration.classification is None else None
    return Native(graph, width, cosine)


def _builder(configuration: NativeConfiguration) -> tuple[Callable[[Emitter], Graph], int]:
    """What writes this model's graph, and the width of its first output."""
    family, sizes = configuration.family, configuration.sizes
    if configuration.classification is not None:
        head = configuration.classification
        return partial(build.build_classifier, family=family, sizes=sizes, head=head), head.labels
    if configuration.kind is Kind.SPLADE:
        is_tied = configuration.is_tied
        return partial(build.build_splade, family=family, sizes=sizes, is_tied=is_tied), sizes.vocab
    dense = read_dense_modules(configuration.dense, hidden=sizes.hidden)
    width = dense[-1].weight.shape[0] if dense else sizes.hidden
    pooling = configuration.pooling
    return partial(build.build_embedder, family=family, sizes=sizes, pooling=pooling, dense=dense), width
