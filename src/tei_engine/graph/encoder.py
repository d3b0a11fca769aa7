"""Transformer encoders as plain ONNX operators: the embeddings, and the classic block of BERT and its relatives.

Plain operators on token rows: contributed fused ones measured up to 20 % slower on CPU, mostly because of
SkipLayerNormalization, which sessions therefore also leave out when ONNX Runtime would fuse it by itself.
"""

from __future__ import annotations

from tei_engine.graph import attention, rotary
from tei_engine.graph.emit import Emitter
from tei_engine.graph.families import Family
from tei_engine.graph.sizes import Sizes


def encode(emitter: Emitter, family: Family, sizes: Sizes, *, typed: bool = False) -> str:
    """From `input_ids` and `attention_mask` [batch, tokens] to hidden rows [batch * tokens, hidden].

    `typed` graphs read `token_type_ids` too; others take every token to be of type 0.
    """
    tokens = attention.token_count(emitter)
    rows = _embed(emitter, family, sizes, tokens, typed)
    if family.is_rotary:
        return rotary.layers(emitter, family, sizes, rows, tokens=tokens)
    shape = emitter.op(
        "Concat",
        emitter.op("Shape", "input_ids"),
        emitter.ints(sizes.heads, sizes.hidden // sizes.heads),
        axis=0,
    )
    bias = attention.mask_bias(emitter)
    if family.relative_bias:
        bias = emitter.op("Add", bias, attention.relative_bias(emitter, sizes, tokens))
    for layer in range(sizes.layers):
        prefix = family.names.layer.format(layer * sizes.groups // sizes.layers)
        rows = _layer(emitter, family, sizes, rows, shape=shape, bias=bias, prefix=prefix)
    return rows


def _embed(emitter: Emitter, family: Family, sizes: Sizes, tokens: str, typed: bool) -> str:
    names, width = family.names, sizes.embedding
    words = emitter.weight(f"{names.words}.weight", sizes.vocab, width)
    added = []
    if not family.is_rotary:
        table = emitter.weight("embeddings.position_embeddings.weight", sizes.positions, width)
        first = emitter.ints(sizes.first_position)
        added.append(emitter.op("Slice", table, first, emitter.op("Add", tokens, first)))
    if sizes.types:
        types = emitter.weight("embeddings.token_type_embeddings.weight", sizes.types, width)
        if typed:
            added.append(emitter.op("Gather", types, "token_type_ids"))
        else:
            added.append(emitter.op("Slice", types, emitter.ints(0), emitter.ints(1)))
    summed = emitter.op("Gather", words, "input_ids")
    if added:
        rest = added[0] if len(added) == 1 else emitter.op("Add", *added)
        summed = emitter.op("Add", summed, rest)
    rows = emitter.op("Reshape", summed, emitter.ints(-1, width))
    bias = sizes.rotary is None or sizes.rotary.norm_bias
    rows = emitter.norm(rows, names.embedding_norm, size=width, eps=sizes.eps, bias=bias)
    # ALBERT projects always, ELECTRA only where the sizes differ
    if family.is_factorised and (family.shares_layers or width != sizes.hidden):
        rows = emitter.linear(rows, names.projection, out=sizes.hidden, into=width)
    return rows


def _layer(
    emitter: Emitter, family: Family, sizes: Sizes, rows: str, *, shape: str, bias: str, prefix: str
) -> str:
    names, hidden = family.names, sizes.hidden

    def heads(part: str, order: list[int]) -> str:
        projected = emitter.project(rows, prefix + part, out=hidden, into=hidden)
        return emitter.op("Transpose", emitter.op("Reshape", projected, shape), perm=order)

    query = heads(names.query, [0, 2, 1, 3])
    key = heads(names.key, [0, 2, 3, 1])
    value = heads(names.value, [0, 2, 1, 3])
    context = attention.attend(emitter, sizes, query, key, value, bias=bias)
    attended = emitter.project(context, prefix + names.out, out=hidden, into=hidden)
    rows = emitter.norm(
        emitter.op("Add", attended, rows), prefix + names.attention_norm, size=hidden, eps=sizes.eps
    )
    inner = emitter.project(rows, prefix + names.up, out=sizes.feed_forward, into=hidden)
    inner = attention.activate(emitter, inner, sizes.activation)
    floor = attention.FLOORS[sizes.activation]
    outer = emitter.project(inner, prefix + names.down, out=hidden, into=sizes.feed_forward, floor=floor)
    return emitter.norm(emitter.op("Add", outer, rows), prefix + names.output_norm, size=hidden, eps=sizes.eps)
