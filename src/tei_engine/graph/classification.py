"""The heads that are more than pooling: labels of classifiers and rerankers, words of splade models."""

from __future__ import annotations

from tei_engine.graph import attention, heads
from tei_engine.graph.emit import Emitter
from tei_engine.graph.families import Classifier, Family, Vocabulary
from tei_engine.graph.heads import Classification
from tei_engine.graph.sizes import Sizes


def label(
    emitter: Emitter, rows: str, *, tokens: str, names: Classifier, head: Classification, sizes: Sizes
) -> str:
    """[batch, labels]: the logits of every text. `rows` and `tokens` as in `heads.pool`."""
    hidden = sizes.hidden
    vectors = heads.pool(emitter, rows, tokens=tokens, pooling=head.pooling, hidden=hidden)
    vectors = emitter.linear(vectors, names.dense, out=hidden, into=hidden, bias=head.dense_bias)
    vectors = attention.activate(emitter, vectors, head.activation)
    if names.norm is not None:
        bias = sizes.rotary is None or sizes.rotary.norm_bias
        vectors = emitter.norm(vectors, names.norm, size=hidden, eps=sizes.eps, bias=bias)
    return emitter.linear(vectors, names.out, out=head.labels, into=hidden)


def weigh_words(
    emitter: Emitter, tokens: str, *, family: Family, names: Vocabulary, sizes: Sizes, is_tied: bool
) -> str:
    """[batch, vocabulary]: splade's weights, max over the real tokens of log(1 + relu(logit)).

    `tokens` is [batch, tokens, hidden]. Two things save passes over [batch, tokens, vocabulary], by far the
    largest value here: padding becomes copies of the text's first token, which change no maximum; and what grows
    with the logit, or adds the same to a word for every token, comes after the maximum.
    """
    hidden = sizes.hidden
    first = emitter.op("Slice", tokens, emitter.ints(0), emitter.ints(1), emitter.ints(1))
    real = emitter.op("Unsqueeze", emitter.op("Cast", "attention_mask", to=9), emitter.ints(2))  # bool
    rows = emitter.op("Reshape", emitter.op("Where", real, tokens, first), emitter.ints(-1, hidden))
    rows = emitter.linear(rows, names.dense, out=hidden, into=hidden)
    rows = attention.activate(emitter, rows, names.activation or sizes.activation)
    rows = emitter.norm(rows, names.norm, size=hidden, eps=sizes.eps)
    decoder = family.names.words if is_tied else names.decoder
    logits = emitter.op("Gemm", rows, emitter.weight(f"{decoder}.weight", sizes.vocab, hidden), transB=1)
    texts = emitter.op("Shape", "attention_mask")
    by_text = emitter.op("Reshape", logits, emitter.op("Concat", texts, emitter.ints(sizes.vocab), axis=0))
    highest = emitter.op("ReduceMax", by_text, emitter.ints(1), keepdims=0)
    # a maximum forgets tokens that are not numbers; their sum does not: 0, or NaN for the whole text
    by_text = emitter.op("Reshape", rows, emitter.op("Concat", texts, emitter.ints(hidden), axis=0))
    summed = emitter.op("ReduceSum", by_text, emitter.ints(1, 2), keepdims=0)
    spoilt = emitter.op("Unsqueeze", emitter.op("Mul", summed, emitter.scalar(0.0)), emitter.ints(1))
    highest = emitter.op("Add", highest, spoilt)
    bias = names.bias if emitter.has(names.bias) else f"{names.decoder}.bias"
    weights = emitter.op("Relu", emitter.op("Add", highest, emitter.weight(bias, sizes.vocab)))
    return emitter.op("Log", emitter.op("Add", weights, emitter.scalar(1.0)))
