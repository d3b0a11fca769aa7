"""What the blocks of all encoders share: masks, attention itself, activations, MPNet's relative positions."""

from __future__ import annotations

import math

import numpy as np

from tei_engine.graph.arrays import IntArray
from tei_engine.graph.emit import Emitter
from tei_engine.graph.sizes import Sizes

_HIDE = -1e30
"""Added to the scores of what is not seen: exp() of it is exactly 0 and no sum with it overflows."""

FLOORS = {
    "gelu": -0.1701,
    "gelu_new": -0.1701,
    "gelu_fast": -0.1701,
    "gelu_pytorch_tanh": -0.1701,
    "silu": -0.2785,
    "swish": -0.2785,
    "relu": 0.0,
    "tanh": -1.0,
}
"""Per activation, a bound that its values do not go below (rounded down in the fourth place)."""

_RELATIVE_BUCKETS = 32
_RELATIVE_DISTANCE = 128


def token_count(emitter: Emitter) -> str:
    """[1]: how many tokens wide the batch is."""
    shape = emitter.op("Shape", "input_ids")
    return emitter.op("Slice", shape, emitter.ints(1), emitter.ints(2))


def mask_bias(emitter: Emitter) -> str:
    """[batch, 1, 1, tokens]: 0 where a token is, very negative where padding is."""
    real = emitter.op("Cast", "attention_mask", to=9)  # bool
    spread = emitter.op("Unsqueeze", real, emitter.ints(1, 2))
    return emitter.op("Where", spread, emitter.scalar(0.0), emitter.scalar(_HIDE))


def window_bias(emitter: Emitter, tokens: str, window: int) -> str:
    """[tokens, tokens]: 0 where key and query are at most `window` tokens apart, else very negative."""
    distance = emitter.op("Abs", distances(emitter, tokens))
    near = emitter.op("LessOrEqual", distance, emitter.int_scalar(window))
    return emitter.op("Where", near, emitter.scalar(0.0), emitter.scalar(_HIDE))


def places(emitter: Emitter, tokens: str) -> str:
    """[tokens]: 0, 1, 2, …"""
    width = emitter.op("Squeeze", tokens, emitter.ints(0))
    return emitter.op("Range", emitter.int_scalar(0), width, emitter.int_scalar(1))


def distances(emitter: Emitter, tokens: str) -> str:
    """[tokens, tokens]: place of the key (last axis) minus place of the query."""
    numbers = places(emitter, tokens)
    key = emitter.op("Unsqueeze", numbers, emitter.ints(0))
    query = emitter.op("Unsqueeze", numbers, emitter.ints(1))
    return emitter.op("Sub", key, query)


def attend(emitter: Emitter, sizes: Sizes, query: str, key: str, value: str, *, bias: str) -> str:
    """Softmax attention; rows [batch * tokens, hidden].

    `query` and `value` are [batch, heads, tokens, head], `key` is [batch, heads, head, tokens].
    """
    scaled = emitter.op("Mul", query, emitter.scalar(1.0 / math.sqrt(sizes.hidden // sizes.heads)))
    weights = emitter.op("Softmax", emitter.op("Add", emitter.op("MatMul", scaled, key), bias), axis=-1)
    mixed = emitter.op("Transpose", emitter.op("MatMul", weights, value), perm=[0, 2, 1, 3])
    return emitter.op("Reshape", mixed, emitter.ints(-1, sizes.hidden))


def activate(emitter: Emitter, rows: str, activation: str) -> str:
    """Apply one of `sizes.ACTIVATIONS`: `gelu` is the exact erf form, the others named so are tanh."""
    if activation == "gelu":
        return emitter.op("Gelu", rows)
    if activation in {"gelu_new", "gelu_fast", "gelu_pytorch_tanh"}:
        return emitter.op("Gelu", rows, approximate="tanh")
    if activation in {"silu", "swish"}:
        return emitter.op("Mul", rows, emitter.op("Sigmoid", rows))
    return emitter.op({"relu": "Relu", "tanh": "Tanh"}[activation], rows)


def relative_bias(emitter: Emitter, sizes: Sizes, tokens: str) -> str:
    """[1, heads, tokens, tokens]: MPNet's one table of distances, shared by all layers."""
    furthest = sizes.usable_positions - 1
    buckets = relative_buckets(np.arange(-furthest, furthest + 1))
    row = emitter.op("Add", distances(emitter, tokens), emitter.ints(furthest))
    bucket = emitter.op("Gather", emitter.table("relative_buckets", buckets), row)
    table = emitter.weight("encoder.relative_attention_bias.weight", sizes.relative_buckets, sizes.heads)
    bias = emitter.op("Gather", table, bucket)  # [tokens, tokens, heads]
    return emitter.op("Unsqueeze", emitter.op("Transpose", bias, perm=[2, 0, 1]), emitter.ints(0))


def relative_buckets(distance: IntArray) -> IntArray:
    """The bucket of each key − query distance: T5's bidirectional scheme, 32 buckets, distances up to 128.

    Half the buckets are for keys after the query; of each half, half are exact and the rest logarithmic. MPNet
    takes both constants from its code, not from its config.
    """
    half = _RELATIVE_BUCKETS // 2
    exact = half // 2
    size = np.abs(distance)
    spread = np.log(np.maximum(size, 1).astype(np.float32) / exact) / math.log(_RELATIVE_DISTANCE / exact)
    far = np.minimum(exact + (spread * (half - exact)).astype(np.int64), half - 1)
    buckets: IntArray = np.where(size < exact, size, far) + half * (distance > 0)
    return buckets.astype(np.int64)
