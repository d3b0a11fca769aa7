"""The whole graph of a model: its encoder and the head of its kind.

Inputs are int64 [batch, tokens], padded on the right: `input_ids`, `attention_mask` and, in graphs that tell the
texts of a pair apart, `token_type_ids`. Outputs are those of `outputs.Output`. Every function here takes a fresh
emitter, finishes it, and raises StartError if a weight is missing or has another shape.
"""

from __future__ import annotations

from tei_engine.graph import classification, encoder, heads
from tei_engine.graph.emit import Emitter, Graph
from tei_engine.graph.families import Family
from tei_engine.graph.outputs import Output
from tei_engine.graph.sizes import Sizes

INPUTS = ("input_ids", "attention_mask")
TYPES = "token_type_ids"


def build_embedder(
    emitter: Emitter, family: Family, sizes: Sizes, *, pooling: heads.Pooling, dense: tuple[heads.Dense, ...]
) -> Graph:
    """An embedding model: pooled vectors and token vectors."""
    rows = encoder.encode(emitter, family, sizes)
    tokens = _by_text(emitter, rows, sizes)
    pooled = heads.pool(emitter, rows, tokens=tokens, pooling=pooling, hidden=sizes.hidden)
    pooled = heads.project(emitter, pooled, dense)
    dimension = dense[-1].weight.shape[0] if dense else sizes.hidden
    outputs = (
        (emitter.rename(pooled, Output.POOLED.value), ("batch", dimension)),
        (emitter.rename(tokens, Output.TOKENS.value), ("batch", "tokens", sizes.hidden)),
    )
    return emitter.finish(INPUTS, outputs)


def build_classifier(emitter: Emitter, family: Family, sizes: Sizes, *, head: heads.Classification) -> Graph:
    """A classifier or reranker: logits."""
    assert family.classifier is not None
    typed = sizes.types > 1
    rows = encoder.encode(emitter, family, sizes, typed=typed)
    tokens = _by_text(emitter, rows, sizes)
    logits = classification.label(emitter, rows, tokens=tokens, names=family.classifier, head=head, sizes=sizes)
    outputs = ((emitter.rename(logits, Output.LOGITS.value), ("batch", head.labels)),)
    return emitter.finish((*INPUTS, TYPES) if typed else INPUTS, outputs)


def build_splade(emitter: Emitter, family: Family, sizes: Sizes, *, is_tied: bool) -> Graph:
    """A splade model: one weight per word of the vocabulary; `is_tied` decodes with the word embeddings."""
    assert family.vocabulary is not None
    tokens = _by_text(emitter, encoder.encode(emitter, family, sizes), sizes)
    words = classification.weigh_words(
        emitter, tokens, family=family, names=family.vocabulary, sizes=sizes, is_tied=is_tied
    )
    outputs = ((emitter.rename(words, Output.SPARSE.value), ("batch", sizes.vocab)),)
    return emitter.finish(INPUTS, outputs)


def _by_text(emitter: Emitter, rows: str, sizes: Sizes) -> str:
    """[batch * tokens, hidden] → [batch, tokens, hidden]."""
    shape = emitter.op("Concat", emitter.op("Shape", "input_ids"), emitter.ints(sizes.hidden), axis=0)
    return emitter.op("Reshape", rows, shape)
