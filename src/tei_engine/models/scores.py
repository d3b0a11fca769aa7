"""From a model's raw output to what is answered: unit vectors, probabilities, the words of a sparse vector."""

from __future__ import annotations

from typing import Any

import numpy as np

from tei_engine.graph.arrays import FloatArray, IntArray


def normalised(vectors: FloatArray) -> FloatArray:
    """Rows of unit length: squares summed in float64, the scale applied in float32. A zero row stays zero."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    scales = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    np.minimum(scales, np.finfo(np.float32).max, out=scales)  # beyond it lie only vectors of denormal numbers
    scaled: FloatArray = vectors * scales.astype(np.float32)[:, None]
    return scaled


def probabilities(logits: FloatArray) -> FloatArray:
    """[n, labels]: softmax over several labels, sigmoid of a single one. Neither overflows; NaN stays NaN."""
    wide: np.ndarray[Any, np.dtype[np.float64]] = logits.astype(np.float64)
    if logits.shape[1] == 1:
        small = np.exp(-np.abs(wide))  # at most 1, on either side of 0
        wide = np.where(wide >= 0, 1.0, small) / (1.0 + small)
    else:
        shares = np.exp(wide - wide.max(axis=1, keepdims=True))
        wide = shares / shares.sum(axis=1, keepdims=True)
    return wide.astype(np.float32)


def nonzero(weights: FloatArray) -> tuple[IntArray, FloatArray]:
    """Indices, ascending, and values of the entries of one sparse vector [vocabulary]."""
    indices = np.flatnonzero(weights)
    return indices, weights[indices]
