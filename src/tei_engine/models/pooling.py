"""Heads computed here, over the token vectors or logits of a graph that has none of its own.

Rows are padded on the right; `lengths`, [texts], says how many tokens of each are real.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tei_engine.graph.arrays import FloatArray, IntArray
from tei_engine.graph.heads import Dense, Pooling


def pool(tokens: FloatArray, lengths: IntArray, pooling: Pooling) -> FloatArray:
    """[texts, tokens, hidden] → [texts, hidden]."""
    if pooling is Pooling.CLS:
        return tokens[:, 0]
    if pooling is Pooling.LAST_TOKEN:
        last: FloatArray = tokens[np.arange(len(lengths)), lengths - 1]
        return last
    return np.stack([text[:length].mean(axis=0) for text, length in zip(tokens, lengths, strict=True)])


def project(vectors: FloatArray, modules: Sequence[Dense]) -> FloatArray:
    """The Dense modules in order: [texts, in] → [texts, out]."""
    for dense in modules:
        vectors = vectors @ dense.weight.T
        if dense.bias is not None:
            vectors = vectors + dense.bias
        if dense.tanh:
            vectors = np.tanh(vectors)
    return vectors


def weigh_words(logits: FloatArray, lengths: IntArray) -> FloatArray:
    """Splade: the maximum over real tokens of log(1 + relu(logit)), [texts, tokens, words] → [texts, words].

    The logarithm grows with its argument, so the maximum is taken first, over what is larger by far.
    """
    highest = np.stack([text[:length].max(axis=0) for text, length in zip(logits, lengths, strict=True)])
    weights: FloatArray = np.log1p(np.maximum(highest, 0))
    return weights
