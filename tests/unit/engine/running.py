"""Running a model's outputs one at a time."""

from collections.abc import Sequence

from tei_engine.graph.arrays import FloatArray
from tei_engine.graph.outputs import Output
from tei_engine.models.model import Batch, Model


def pooled(model: Model, texts: Sequence[Sequence[int]], *, wide: bool = False) -> FloatArray:
    """One vector per text of ids, [n, dimension], not normalised."""
    return model.run(Batch.of(texts), (Output.POOLED,), wide=wide)[0]


def token_rows(model: Model, texts: Sequence[Sequence[int]]) -> list[FloatArray]:
    """Per text of ids its token vectors, [tokens, hidden], padding removed."""
    rows = model.run(Batch.of(texts), (Output.TOKENS,))[0]
    return [rows[index, : len(text)] for index, text in enumerate(texts)]
