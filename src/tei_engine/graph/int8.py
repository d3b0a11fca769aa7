"""The linear maps of the layers in int8: weights per output channel, activations per token row.

Everything else stays float32: embeddings, norms, attention itself, heads. A row's scale comes from that row alone,
so a vector depends neither on the texts that share its batch nor on padding. Three things keep the error small:

- what an activation function lets through has a floor (GELU's is −0.17): it is subtracted, so that all 256 levels
  are used, and added back through the bias;
- a few columns behind a norm are many times larger than all others and would set the scale of every row. They are
  divided by a constant, by which the matching columns of the weights are multiplied (the idea of SmoothQuant, Xiao
  et al. 2023, for outlying columns only);
- weights have 127 levels to either side where the processor adds products in 32 bits, else 64 (`levels_of`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tei_engine.graph.arrays import Array, FloatArray
from tei_engine.graph.emit import CONTRIBUTED, Emitter, Graph
from tei_engine.graph.weights import Weights

_MIDDLE = 128
"""What stands for zero where rows have both signs. ONNX Runtime has fast kernels for unsigned rows only."""
_OUTLIER_POWER = 0.7
"""How much of an outlying column moves to the weights; 0.5 to 0.85 measured alike, 1 worse."""


@dataclass(frozen=True, slots=True)
class Map:
    """One linear map of the layers, as its `Emitter.project` was called."""

    out: int
    into: int
    bias: bool
    floor: float | None


class Observer(Emitter):
    """Emits the float32 graph with more outputs: the largest size of each column that enters a map behind a norm.

    After `finish`, `maps` has every linear map of the layers by name, and `peaks` the outputs, [into] each, that
    belong to it; layers that share weights share a name.
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.maps: dict[str, Map] = {}
        self.peaks: dict[str, list[str]] = {}
        self._normed: dict[str, str | None] = {}

    def norm(self, rows: str, name: str, *, size: int, eps: float, bias: bool = True) -> str:
        """As ever; remembers that its rows are normed."""
        normed = super().norm(rows, name, size=size, eps=eps, bias=bias)
        self._normed[normed] = None
        return normed

    def project(
        self, rows: str, name: str, *, out: int, into: int, bias: bool = True, floor: float | None = None
    ) -> str:
        """As ever; observes what enters."""
        self.maps[name] = Map(out, into, bias, floor)
        if rows in self._normed:
            peak = self._normed[rows]
            if peak is None:
                peak = self.op("ReduceMax", self.op("Abs", rows), self.ints(0), keepdims=0)
                self._normed[rows] = peak
            self.peaks.setdefault(name, []).append(peak)
        return super().project(rows, name, out=out, into=into, bias=bias, floor=floor)

    def finish(self, inputs: Sequence[str], outputs: Sequence[tuple[str, Sequence[str | int]]]) -> Graph:
        """As ever, with the peaks behind the graph's own outputs."""
        peaks = {peak: self.maps[name].into for name, several in self.peaks.items() for peak in several}
        return super().finish(inputs, [*outputs, *((peak, (into,)) for peak, into in peaks.items())])


class Int8Emitter(Emitter):
    """Emits the int8 graph with the arrays that `quantise` made."""

    def __init__(self, weights: Weights, arrays: Mapping[str, Array]) -> None:
        super().__init__(weights)
        self._arrays = arrays
        self._rows: dict[str, tuple[str, str]] = {}
        self._middles: str | None = None

    def project(
        self, rows: str, name: str, *, out: int, into: int, bias: bool = True, floor: float | None = None
    ) -> str:
        """rows [n, into] → [n, out] by integer products."""
        whole, scale = self._quantised(rows, name, floor)
        parts = [whole, self._held_array(f"{name}.int8"), scale, self._held_array(f"{name}.scale")]
        if floor is None:
            parts.append(self.table("int8_middle", np.array(_MIDDLE, dtype=np.uint8)))
        product = self.op("MatMulIntegerToFloat", *parts, domain=CONTRIBUTED)
        if f"{name}.shift" not in self._arrays:
            return product
        return self.op("Add", product, self._held_array(f"{name}.shift"))

    def _quantised(self, rows: str, name: str, floor: float | None) -> tuple[str, str]:
        """uint8 [n, into] and scales [n, 1]; maps that read the same rows share them."""
        if rows in self._rows:
            return self._rows[rows]
        values = rows
        if f"{name}.smoothing" in self._arrays:
            values = self.op("Mul", values, self._held_array(f"{name}.smoothing"))
        if floor:
            values = self.op("Sub", values, self.scalar(floor))
        size = values if floor is not None else self.op("Abs", values)
        peak = self.op("ReduceMax", size, self.ints(1), keepdims=0)
        levels = 255 if floor is not None else 127
        # a row of zeros has the scale 0: whatever its integers become, the product is 0
        scale = self.op("Mul", peak, self.scalar(1 / levels))
        parts = [values, scale] if floor is not None else [values, scale, self._zero_points(scale)]
        answer = self.op("QuantizeLinear", *parts, axis=0), self.op("Unsqueeze", scale, self.ints(1))
        self._rows[rows] = answer
        return answer

    def _zero_points(self, like: str) -> str:
        """[n]: one zero point per row, as QuantizeLinear wants them; n is the same in all layers."""
        if self._middles is None:
            middle = self.table("int8_middle", np.array(_MIDDLE, dtype=np.uint8))
            self._middles = self.op("Expand", middle, self.op("Shape", like))
        return self._middles

    def _held_array(self, name: str) -> str:
        return self.values(name, self._arrays[name])


def levels_of(cpu: Collection[str]) -> int:
    """The largest integer a weight may become, by `onnx_files.cpu_flags`.

    x86 processors without VNNI add pairs of products in 16 bits and saturate: 2 · 255 · 64 still fits, and
    2 · 255 · 127 does not.
    """
    return 127 if "avx512_vnni" in cpu or "arm64" in cpu else 64


def quantise(
    weights: Weights, maps: Mapping[str, Map], peaks: Mapping[str, FloatArray], levels: int
) -> dict[str, Array]:
    """The arrays of an int8 graph: per map `int8` [into, out] and `scale` [out]; where needed `shift` [out] and
    `smoothing` [into].

    `peaks` has the largest size seen of each column that enters a map; maps of the same rows must have the same.
    """
    arrays: dict[str, Array] = {}
    for name, shape in maps.items():
        matrix = _read(weights, f"{name}.weight", shape.out, shape.into)
        if name in peaks:
            factors = smoothing(peaks[name])
            matrix = matrix * factors
            arrays[f"{name}.smoothing"] = 1 / factors
        sizes: FloatArray = np.abs(matrix).max(axis=1)
        scale = np.where(sizes > 0, sizes, 1).astype(np.float32) / np.float32(levels)
        whole = np.rint(matrix / scale[:, None]).astype(np.int8)
        arrays[f"{name}.int8"] = np.ascontiguousarray(whole.T)
        arrays[f"{name}.scale"] = scale
        shift = _read(weights, f"{name}.bias", shape.out) if shape.bias else np.zeros(shape.out, np.float32)
        if shape.floor:
            # what the integers really add up to, so that the floor cancels exactly
            shift = shift + np.float32(shape.floor) * (whole.sum(axis=1, dtype=np.int64) * scale)
        if shape.bias or shape.floor:
            arrays[f"{name}.shift"] = shift.astype(np.float32)
    return arrays


def smoothing(peaks: FloatArray) -> FloatArray:
    """By what each column is divided, never below 1: (peak / median peak) ^ 0.7."""
    median = np.median(peaks)
    if median <= 0:
        return np.ones_like(peaks)
    factors: FloatArray = np.maximum(peaks / median, 1).astype(np.float32) ** np.float32(_OUTLIER_POWER)
    return factors


def _read(weights: Weights, name: str, *shape: int) -> FloatArray:
    tensor = weights.find(name, shape)
    weights.check()
    assert tensor is not None
    return tensor.read_float32()
