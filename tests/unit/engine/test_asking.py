"""Which kind of model answers what, and inputs on their way to the tokenizer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tei_engine.errors import ErrorKind, RequestError
from tei_engine.graph.outputs import Output
from tei_engine.models.kinds import Kind
from tei_engine.server import asking

OUTPUTS = {
    Kind.EMBEDDING: (Output.POOLED, Output.TOKENS),
    Kind.SPLADE: (Output.SPARSE,),
    Kind.CLASSIFIER: (Output.LOGITS,),
    Kind.RERANKER: (Output.LOGITS,),
}
NOT_EMBEDDING = "Backend error: Model is not an embedding model"
NOT_SPLADE = "Backend error: Model is not an embedding model with SPLADE pooling"
NOT_CLASSIFIER = "Backend error: Model is not a classifier model"
REFUSED = {
    (Output.POOLED, Kind.SPLADE): "Backend error: `normalize` is not available for SPLADE models",
    (Output.POOLED, Kind.CLASSIFIER): NOT_EMBEDDING,
    (Output.POOLED, Kind.RERANKER): NOT_EMBEDDING,
    (Output.TOKENS, Kind.SPLADE): "Backend error: `embed_all` is not available for SPLADE models",
    (Output.TOKENS, Kind.CLASSIFIER): NOT_EMBEDDING,
    (Output.TOKENS, Kind.RERANKER): NOT_EMBEDDING,
    (Output.LOGITS, Kind.EMBEDDING): NOT_CLASSIFIER,
    (Output.LOGITS, Kind.SPLADE): NOT_CLASSIFIER,
    (Output.SPARSE, Kind.EMBEDDING): NOT_SPLADE,
    (Output.SPARSE, Kind.CLASSIFIER): NOT_SPLADE,
    (Output.SPARSE, Kind.RERANKER): NOT_SPLADE,
}


@pytest.mark.parametrize("want", Output)
@pytest.mark.parametrize("kind", Kind)
def test_each_kind_answers_what_it_can(want, kind):
    message = REFUSED.get((want, kind))
    if message is None:
        asking.check_kind(want, kind, OUTPUTS[kind], normalize=want is Output.POOLED)
        return
    with pytest.raises(RequestError) as caught:
        asking.check_kind(want, kind, OUTPUTS[kind], normalize=want is Output.POOLED)
    assert (caught.value.kind, caught.value.message, caught.value.label) == (
        ErrorKind.BACKEND,
        message,
        "model_type",
    )


def test_sparse_vectors_may_be_asked_for_whole():
    asking.check_kind(Output.POOLED, Kind.SPLADE, OUTPUTS[Kind.SPLADE], normalize=False)


def test_graphs_without_token_vectors_say_so():
    with pytest.raises(RequestError, match="`embed_all` is not available for this ONNX model"):
        asking.check_kind(Output.TOKENS, Kind.EMBEDDING, (Output.POOLED,), normalize=False)


@given(st.lists(st.sampled_from([-1.5, 0.0, 0.25, 3.0]), max_size=12))
def test_scores_fall_and_the_later_of_equal_ones_comes_first(scores):
    """The router sorts ascending and stable, and turns that round."""
    ascending = sorted(range(len(scores)), key=lambda place: scores[place])
    assert asking.descending(scores) == ascending[::-1]


def scored(*texts, prompt=None):
    return asking.scored_piece(texts, prompt, truncate=True, left=True)


def test_pieces_of_texts_pairs_and_ids():
    piece = scored("a", "")
    assert (piece.text, piece.pair, piece.truncate, piece.left) == ("a", "", True, True)
    piece = scored("", "b")
    assert (piece.text, piece.pair) == ("", "b")
    assert scored("a", prompt="p: ").text == "p: a"
    piece = asking.piece_of((5, 6), "p: ", truncate=False, left=False)
    assert (piece.text, piece.ids, piece.prompt) == (None, (5, 6), "p: ")
    for texts in ((), ("",), ("", "")):
        with pytest.raises(RequestError, match="`inputs` cannot be empty"):
            scored(*texts) if texts else asking.piece_of((), None, truncate=False, left=False)
    with pytest.raises(RequestError, match="`prompt_name` cannot be set with dual inputs"):
        scored("a", "b", prompt="")
