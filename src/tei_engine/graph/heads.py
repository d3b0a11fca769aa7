"""From hidden rows to one vector per text: pooling, then the Dense modules of sentence-transformers."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tei_engine.graph.arrays import FloatArray

if TYPE_CHECKING:
    from tei_engine.graph.emit import Emitter  # imports onnx, which those who only name a Pooling can do without


class Pooling(enum.Enum):
    """How token vectors become one vector; the value is TEI's word in `/info`."""

    CLS = "cls"
    MEAN = "mean"
    LAST_TOKEN = "last_token"  # noqa: S105 - no password
    SPLADE = "splade"
    """One weight per word of the vocabulary instead of a vector of the hidden size."""


@dataclass(frozen=True, slots=True)
class Dense:
    """One Dense module: vectors [n, in] → activation(vectors · weightᵀ + bias) [n, out]; weight is [out, in]."""

    weight: FloatArray
    bias: FloatArray | None
    tanh: bool


@dataclass(frozen=True, slots=True)
class Classification:
    """What config.json decides about a sequence classification head; the rest is its family's."""

    labels: int
    pooling: Pooling
    activation: str
    dense_bias: bool


def pool(emitter: Emitter, rows: str, *, tokens: str, pooling: Pooling, hidden: int) -> str:
    """One vector per text, [batch, hidden].

    `rows` is [batch * tokens, hidden], `tokens` the same as [batch, tokens, hidden].
    """
    if pooling is Pooling.CLS:  # padding is on the right, so the first token is a real one
        first = emitter.op("Slice", tokens, emitter.ints(0), emitter.ints(1), emitter.ints(1))
        return emitter.op("Reshape", first, emitter.ints(-1, hidden))
    if pooling is Pooling.MEAN:
        mask = emitter.op("Cast", "attention_mask", to=1)  # float32
        summed = emitter.op("MatMul", emitter.op("Unsqueeze", mask, emitter.ints(1)), tokens)
        count = emitter.op("ReduceSum", mask, emitter.ints(1), keepdims=1)
        return emitter.op("Div", emitter.op("Reshape", summed, emitter.ints(-1, hidden)), count)
    return emitter.op("Gather", rows, _last_rows(emitter))


def _last_rows(emitter: Emitter) -> str:
    """[batch]: the row of each text's last real token, by mask and not by id (pad and end may be one id)."""
    shape = emitter.op("Shape", "attention_mask")
    batch = emitter.op("Squeeze", emitter.op("Slice", shape, emitter.ints(0), emitter.ints(1)), emitter.ints(0))
    width = emitter.op("Slice", shape, emitter.ints(1), emitter.ints(2))
    text = emitter.op("Range", emitter.int_scalar(0), batch, emitter.int_scalar(1))
    count = emitter.op("ReduceSum", "attention_mask", emitter.ints(1), keepdims=0)
    return emitter.op("Sub", emitter.op("Add", emitter.op("Mul", text, width), count), emitter.ints(1))


def project(emitter: Emitter, vectors: str, modules: tuple[Dense, ...]) -> str:
    """Apply the Dense modules in their order."""
    for number, dense in enumerate(modules):
        parts = [vectors, emitter.values(f"dense.{number}.weight", dense.weight)]
        if dense.bias is not None:
            parts.append(emitter.values(f"dense.{number}.bias", dense.bias))
        vectors = emitter.op("Gemm", *parts, transB=1)
        if dense.tanh:
            vectors = emitter.op("Tanh", vectors)
    return vectors
