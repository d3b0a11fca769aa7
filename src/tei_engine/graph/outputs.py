"""What a graph can be asked for. No heavy imports: servers name outputs before any model is loaded."""

from __future__ import annotations

import enum


class Output(enum.Enum):
    """The outputs of all kinds of model; the value is the name in the graph. All are float32."""

    POOLED = "pooled"
    """Embedding models: [batch, dimension], after the Dense modules, not normalised."""
    TOKENS = "token_embeddings"
    """Embedding models: [batch, tokens, hidden]; rows of padding mean nothing."""
    LOGITS = "logits"
    """Classifiers and rerankers: [batch, labels]."""
    SPARSE = "sparse"
    """Splade models: [batch, vocabulary], zero almost everywhere."""
