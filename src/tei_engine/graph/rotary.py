"""The blocks of encoders with rotary positions: fused projections, a gated feed-forward, norms before or after."""

from __future__ import annotations

import numpy as np

from tei_engine.graph import attention
from tei_engine.graph.emit import Emitter
from tei_engine.graph.families import Block, Family
from tei_engine.graph.sizes import Rotary, Sizes

_FLOAT = 1


def layers(emitter: Emitter, family: Family, sizes: Sizes, rows: str, *, tokens: str) -> str:
    """All layers, from embedded rows [batch * tokens, hidden] to hidden rows."""
    assert sizes.rotary is not None
    block = _Block(emitter, family, sizes, sizes.rotary, tokens)
    for layer in range(sizes.layers):
        rows = block.pre_norm(rows, layer) if block.is_pre_norm else block.post_norm(rows, layer)
    return block.norm(rows, "final_norm") if block.is_pre_norm else rows


class _Block:
    """One encoder's blocks, with what all of its layers share."""

    def __init__(self, emitter: Emitter, family: Family, sizes: Sizes, rotary: Rotary, tokens: str) -> None:
        self._emitter = emitter
        self._names = family.names
        self._sizes = sizes
        self._rotary = rotary
        self.is_pre_norm = family.block is Block.ROTARY_PRE_NORM
        head = sizes.hidden // sizes.heads
        self._half = head // 2
        self._shape = emitter.op(
            "Concat", emitter.op("Shape", "input_ids"), emitter.ints(3, sizes.heads, head), axis=0
        )
        numbers = emitter.op("Cast", attention.places(emitter, tokens), to=_FLOAT)
        self._column = emitter.op("Unsqueeze", numbers, emitter.ints(1))
        self._turns = {base: self._turn(base) for base in dict.fromkeys(rotary.bases)}
        padding = attention.mask_bias(emitter)
        self._biases = {
            window: padding
            if window is None
            else emitter.op("Add", padding, attention.window_bias(emitter, tokens, window))
            for window in dict.fromkeys(rotary.windows)
        }

    def pre_norm(self, rows: str, layer: int) -> str:
        """ModernBERT's order: norm, attention, add; norm, feed-forward, add. Layer 0 lacks the first."""
        prefix = self._names.layer.format(layer)
        ready = self.norm(rows, prefix + self._names.attention_norm) if layer else rows
        rows = self._emitter.op("Add", self._attention(ready, layer), rows)
        ready = self.norm(rows, prefix + self._names.output_norm)
        return self._emitter.op("Add", self._feed_forward(ready, prefix), rows)

    def post_norm(self, rows: str, layer: int) -> str:
        """BERT's order: attention, add, norm; feed-forward, add, norm."""
        prefix = self._names.layer.format(layer)
        summed = self._emitter.op("Add", self._attention(rows, layer), rows)
        rows = self.norm(summed, prefix + self._names.attention_norm)
        summed = self._emitter.op("Add", self._feed_forward(rows, prefix), rows)
        return self.norm(summed, prefix + self._names.output_norm)

    def norm(self, rows: str, name: str) -> str:
        """A norm over the hidden size."""
        sizes = self._sizes
        return self._emitter.norm(rows, name, size=sizes.hidden, eps=sizes.eps, bias=self._rotary.norm_bias)

    def _attention(self, rows: str, layer: int) -> str:
        emitter, sizes, rotary, names = self._emitter, self._sizes, self._rotary, self._names
        prefix, hidden = names.layer.format(layer), sizes.hidden
        bias = rotary.attention_bias
        fused = emitter.project(rows, prefix + names.query, out=3 * hidden, into=hidden, bias=bias)
        # [3, batch, heads, tokens, head]: query and key next to each other turn together
        spread = emitter.op("Transpose", emitter.op("Reshape", fused, self._shape), perm=[2, 0, 3, 1, 4])
        both, value = emitter.split(spread, 2, 1, axis=0)
        query, key = emitter.split(self._turned(both, rotary.bases[layer]), 1, 1, axis=0)
        first = emitter.ints(0)
        query, key, value = (emitter.op("Squeeze", part, first) for part in (query, key, value))
        context = attention.attend(
            emitter,
            sizes,
            query,
            emitter.op("Transpose", key, perm=[0, 1, 3, 2]),
            value,
            bias=self._biases[rotary.windows[layer]],
        )
        return emitter.project(context, prefix + names.out, out=hidden, into=hidden, bias=bias)

    def _feed_forward(self, rows: str, prefix: str) -> str:
        emitter, sizes, rotary, names = self._emitter, self._sizes, self._rotary, self._names
        hidden, inner = sizes.hidden, sizes.feed_forward
        if names.gate is None:  # one tensor: the activated half, then the gate
            wide = emitter.project(rows, prefix + names.up, out=2 * inner, into=hidden, bias=rotary.up_bias)
            up, gate = emitter.split(wide, inner, inner, axis=-1)
        else:
            # Nomic activates the second of its two, fc12
            gate = emitter.project(rows, prefix + names.up, out=inner, into=hidden, bias=rotary.up_bias)
            up = emitter.project(rows, prefix + names.gate, out=inner, into=hidden, bias=rotary.up_bias)
        gated = emitter.op("Mul", attention.activate(emitter, up, sizes.activation), gate)
        return emitter.project(gated, prefix + names.down, out=hidden, into=inner, bias=rotary.down_bias)

    def _turn(self, base: float) -> tuple[str, str]:
        """cos and signed sin of every place and pair, each [tokens, head].

        Computed in the graph: some microseconds, and no table that ends at some length or takes memory.
        """
        emitter = self._emitter
        steps = np.arange(0, 2 * self._half, 2, dtype=np.float32) / np.float32(2 * self._half)
        rates = (1.0 / np.power(np.float32(base), steps)).astype(np.float32)[None]
        angles = emitter.op("Mul", self._column, emitter.table(f"rates_{base!r}", rates))
        cos, sin = emitter.op("Cos", angles), emitter.op("Sin", angles)
        return (
            emitter.op("Concat", cos, cos, axis=-1),
            emitter.op("Concat", emitter.op("Neg", sin), sin, axis=-1),
        )

    def _turned(self, values: str, base: float) -> str:
        """`values` [..., tokens, head] rotated: element i and element i + head/2 are a pair."""
        emitter = self._emitter
        cos, sin = self._turns[base]
        low, high = emitter.split(values, self._half, self._half, axis=-1)
        swapped = emitter.op("Concat", high, low, axis=-1)
        return emitter.op("Add", emitter.op("Mul", values, cos), emitter.op("Mul", swapped, sin))
