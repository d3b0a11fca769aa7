"""The texts of one run, as rows of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tei_engine.graph.arrays import IntArray


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts of one run, int64 [texts, tokens], padded on the right; `types` None = every token is of type 0."""

    ids: IntArray
    mask: IntArray
    types: IntArray | None = None

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]], types: Sequence[Sequence[int] | None] | None = None) -> Batch:
        """Pad `texts`, none of which may be empty. `types`, if given, has a row or None for each of them."""
        shape = (len(texts), max(map(len, texts)))
        ids = np.zeros(shape, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = text
            mask[row, : len(text)] = 1
        if types is None or not any(types):
            return cls(ids, mask)
        numbers = np.zeros(shape, dtype=np.int64)
        for row, values in enumerate(types):
            if values is not None:
                numbers[row, : len(values)] = values
        return cls(ids, mask, numbers)

    @property
    def lengths(self) -> IntArray:
        """Tokens of each text, [texts]."""
        lengths: IntArray = self.mask.sum(axis=1)
        return lengths
