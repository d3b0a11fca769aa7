"""What a ready-made graph is given: inputs of its own names, types and fixed sizes, padded on its own side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tei_engine.errors import StartError
from tei_engine.graph.arrays import Array, IntArray
from tei_engine.graph.session import Port
from tei_engine.models.batch import Batch

_MASK = "attention_mask"
_TYPES = frozenset({"token_type_ids", "input_type"})
_KNOWN = ("input_ids", _MASK, "token_type_ids", "input_type", "position_ids")
_DTYPES: Mapping[str, np.dtype[np.integer]] = {
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
}


@dataclass(frozen=True, slots=True)
class Portion:
    """Texts that go through a graph together."""

    inputs: dict[str, Array]
    lengths: IntArray
    """Tokens of each text; behind them come rows that only fill a fixed number of texts."""
    shifts: IntArray | None
    """How far each text was moved to the right; None = not at all."""

    def unpadded(self, values: Array) -> Array:
        """An output by token, [rows, width, n]: its texts only, as wide as the longest, padded on the right."""
        values = values[: len(self.lengths)]
        if self.shifts is not None:
            width = values.shape[1]
            values = np.take_along_axis(values, _rolled(width, -self.shifts)[:, :, None], axis=1)
        return values[:, : self.lengths.max()]


@dataclass(frozen=True, slots=True)
class Feeding:
    """How the texts of a batch become the inputs of one graph."""

    dtypes: Mapping[str, np.dtype[np.integer]]
    """By name of the input."""
    rows: int | None
    """Rows that each run must have; None = any number."""
    tokens: int | None
    """Tokens that each row must have; None = any number."""
    alone: bool
    """Whether texts change each other's answers, so that each is run by itself."""
    pad_id: int
    pads_left: bool

    @classmethod
    def of(cls, ports: Sequence[Port], *, alone: bool, pad_id: int, pads_left: bool) -> Feeding:
        """How to feed a graph with these inputs. Raises StartError naming the one that is not understood."""
        for port in ports:
            if port.name not in _KNOWN:
                raise StartError(f"the graph's input {port.name} is not supported; known are {', '.join(_KNOWN)}")
            if port.type not in _DTYPES or len(port.shape) != 2:
                raise StartError(
                    f"the graph's input {port.name} is a {port.type} of {len(port.shape)} dimensions, "
                    "expected 32- or 64-bit integers by text and token"
                )
        names = {port.name for port in ports}
        if "input_ids" not in names:
            raise StartError("the graph has no input input_ids")
        return cls(
            dtypes={port.name: _DTYPES[port.type] for port in ports},
            rows=_fixed(ports, 0, "texts"),
            tokens=_fixed(ports, 1, "tokens"),
            alone=alone or _MASK not in names,  # without a mask padding would be read as text
            pad_id=pad_id,
            pads_left=pads_left,
        )

    @property
    def takes_types(self) -> bool:
        """Whether the graph tells the texts of a pair apart."""
        return not _TYPES.isdisjoint(self.dtypes)

    def portions(self, batch: Batch) -> Iterator[Portion]:
        """The runs that `batch` needs, in order. Raises ValueError if a text is longer than the graph takes."""
        lengths = batch.lengths
        size = 1 if self.alone else self.rows or len(lengths)
        for start in range(0, len(lengths), size):
            yield self._portion(batch, np.arange(start, min(start + size, len(lengths))), lengths)

    def _portion(self, batch: Batch, texts: IntArray, all_lengths: IntArray) -> Portion:
        longest = int(all_lengths[texts].max())
        width = self.tokens or longest
        if longest > width:
            raise ValueError(f"the graph takes {width} tokens, not {longest}")
        filled = np.resize(texts, self.rows or len(texts))  # repeats them where more rows are wanted
        lengths = all_lengths[filled]
        real = np.arange(width) < lengths[:, None]
        ids = np.where(real, _widened(batch.ids[filled, :longest], width), self.pad_id)
        types = np.zeros_like(ids)
        if batch.types is not None:
            types = np.where(real, _widened(batch.types[filled, :longest], width), 0)
        shifts = None
        if self.pads_left and (lengths < width).any():
            shifts = width - lengths
            order = _rolled(width, shifts)
            ids, types, real = (np.take_along_axis(values, order, axis=1) for values in (ids, types, real))
        values = {
            "input_ids": ids,
            _MASK: real,
            "token_type_ids": types,
            "input_type": types,
            "position_ids": np.maximum(real.cumsum(axis=1) - 1, 0),
        }
        inputs = {name: values[name].astype(dtype) for name, dtype in self.dtypes.items()}
        return Portion(inputs, all_lengths[texts], None if shifts is None else shifts[: len(texts)])


def _fixed(ports: Sequence[Port], axis: int, what: str) -> int | None:
    """The size that all inputs prescribe for `axis`. Raises StartError if they disagree."""
    sizes = {size for port in ports if (size := port.shape[axis]) is not None}
    if len(sizes) > 1:
        raise StartError(f"the graph's inputs have different fixed numbers of {what}: {sorted(sizes)}")
    return next(iter(sizes), None)


def _widened(values: IntArray, width: int) -> IntArray:
    """[n, tokens] → [n, width]; what is new means nothing."""
    return np.pad(values, ((0, 0), (0, width - values.shape[1])))


def _rolled(width: int, shifts: IntArray) -> IntArray:
    """Indices, [texts, width], that move each text `shifts` places to the right, and its padding to its front."""
    order: IntArray = (np.arange(width) - shifts[:, None]) % width
    return order
