"""The whole graph of an embedding model: encoder, pooling, Dense modules."""

from __future__ import annotations

from tei_engine.graph import encoder, heads
from tei_engine.graph.emit import Emitter, Graph
from tei_engine.graph.families import Family, Sizes
from tei_engine.graph.weights import Weights

INPUTS = ("input_ids", "attention_mask")
POOLED = "pooled"
TOKENS = "token_embeddings"


def build_embedder(
    weights: Weights, family: Family, sizes: Sizes, *, pooling: heads.Pooling, dense: tuple[heads.Dense, ...]
) -> Graph:
    """A graph from ids and mask (int64 [batch, tokens], padded on the right) to two float32 outputs.

    `pooled` is [batch, dimension], after the Dense modules and not normalised; `token_embeddings` is
    [batch, tokens, hidden]. Raises StartError if a weight is missing or has another shape.
    """
    emitter = Emitter(weights)
    rows = encoder.encode(emitter, family, sizes)
    shape = emitter.op("Concat", emitter.op("Shape", "input_ids"), emitter.ints(sizes.hidden), axis=0)
    tokens = emitter.op("Reshape", rows, shape)
    pooled = heads.pool(emitter, rows, tokens=tokens, pooling=pooling, hidden=sizes.hidden)
    pooled = heads.project(emitter, pooled, dense)
    dimension = dense[-1].weight.shape[0] if dense else sizes.hidden
    outputs = (
        (emitter.rename(pooled, POOLED), ("batch", dimension)),
        (emitter.rename(tokens, TOKENS), ("batch", "tokens", sizes.hidden)),
    )
    return emitter.finish(INPUTS, outputs)
