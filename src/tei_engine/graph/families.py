"""What sets one architecture apart from another: tensor names, kind of block, where positions begin."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tei_engine.errors import StartError


class Block(enum.Enum):
    """How the layers of an encoder are built."""

    CLASSIC = "learned positions, norms after attention and after feed-forward"
    ROTARY_POST_NORM = "rotary positions, fused projections, gated feed-forward, norms after"
    ROTARY_PRE_NORM = "the same with norms before, and a last one at the end"


@dataclass(frozen=True, slots=True)
class Names:
    """Tensor names: of the embeddings, and of one layer, after `layer` with its number filled in.

    A fused `query` projects to query, key and value at once; `gate` is None where `up` is one tensor for both, or
    where there is no gate.
    """

    layer: str
    query: str
    out: str
    attention_norm: str
    up: str
    down: str
    output_norm: str
    key: str = ""
    value: str = ""
    gate: str | None = None
    words: str = "embeddings.word_embeddings"
    embedding_norm: str = "embeddings.LayerNorm"
    projection: str = ""
    """From the size of the embeddings to that of the layers, where these differ."""


@dataclass(frozen=True, slots=True)
class Classifier:
    """Tensor names of a sequence classification head: out(norm(activation(dense(vector))))."""

    dense: str
    out: str
    activation: str = "tanh"
    norm: str | None = None
    is_configured: bool = False
    """Whether config.json says how it pools, which activation it has and whether `dense` has a bias."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tensor names of a masked-LM head: norm(activation(dense(row))) · decoder + bias."""

    dense: str
    norm: str
    decoder: str
    bias: str
    activation: str | None = None
    """None = the encoder's own."""


_BERT = Names(
    layer="encoder.layer.{}.",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    out="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    output_norm="output.LayerNorm",
)
_DISTILBERT = Names(
    layer="transformer.layer.{}.",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    out="attention.out_lin",
    attention_norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    output_norm="output_layer_norm",
)
_MPNET = Names(
    layer="encoder.layer.{}.",
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    out="attention.attn.o",
    attention_norm="attention.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    output_norm="output.LayerNorm",
)
_ALBERT = Names(
    layer="encoder.albert_layer_groups.{}.albert_layers.0.",
    query="attention.query",
    key="attention.key",
    value="attention.value",
    out="attention.dense",
    attention_norm="attention.LayerNorm",
    up="ffn",
    down="ffn_output",
    output_norm="full_layer_layer_norm",
    projection="encoder.embedding_hidden_mapping_in",
)
_NOMIC = Names(
    layer="encoder.layers.{}.",
    query="attn.Wqkv",
    out="attn.out_proj",
    attention_norm="norm1",
    up="mlp.fc11",
    gate="mlp.fc12",
    down="mlp.fc2",
    output_norm="norm2",
    embedding_norm="emb_ln",
)
_MODERNBERT = Names(
    layer="layers.{}.",
    query="attn.Wqkv",
    out="attn.Wo",
    attention_norm="attn_norm",
    up="mlp.Wi",
    down="mlp.Wo",
    output_norm="mlp_norm",
    words="embeddings.tok_embeddings",
    embedding_norm="embeddings.norm",
)

_BERT_LABELS = Classifier("pooler.dense", "classifier")
_DISTILBERT_LABELS = Classifier("pre_classifier", "classifier", activation="relu")
_ROBERTA_LABELS = Classifier("classifier.dense", "classifier.out_proj")
_MODERNBERT_LABELS = Classifier("head.dense", "classifier", norm="head.norm", is_configured=True)

_BERT_WORDS = Vocabulary(
    dense="cls.predictions.transform.dense",
    norm="cls.predictions.transform.LayerNorm",
    decoder="cls.predictions.decoder",
    bias="cls.predictions.bias",
)
_DISTILBERT_WORDS = Vocabulary(
    dense="vocab_transform", norm="vocab_layer_norm", decoder="vocab_projector", bias="vocab_projector.bias"
)
_ROBERTA_WORDS = Vocabulary(
    dense="lm_head.dense",
    norm="lm_head.layer_norm",
    decoder="lm_head.decoder",
    bias="lm_head.bias",
    activation="gelu",
)


@dataclass(frozen=True, slots=True)
class Family:
    """A group of model types that share a graph builder and tensor names."""

    names: Names
    prefixes: tuple[str, ...]
    block: Block = Block.CLASSIC
    token_types: bool = True
    offset_positions: bool = False
    """Positions begin at pad_token_id + 1 (fairseq's habit) instead of 0."""
    relative_bias: bool = False
    is_factorised: bool = False
    """The embeddings may be narrower than the layers, which a projection joins."""
    shares_layers: bool = False
    """One stored layer serves a whole group of layers."""
    eps: float = 1e-12
    """Layer norm epsilon where the config has none."""
    classifier: Classifier | None = None
    vocabulary: Vocabulary | None = None

    @property
    def is_rotary(self) -> bool:
        """Whether positions are rotations, not rows of a table that ends somewhere."""
        return self.block is not Block.CLASSIC


_ROBERTA = Family(
    _BERT, ("roberta.",), offset_positions=True, classifier=_ROBERTA_LABELS, vocabulary=_ROBERTA_WORDS
)

FAMILIES: Mapping[str, Family] = {
    "bert": Family(_BERT, ("bert.",), classifier=_BERT_LABELS, vocabulary=_BERT_WORDS),
    "roberta": _ROBERTA,
    "xlm-roberta": replace(_ROBERTA, prefixes=("roberta.", "xlm-roberta.")),
    "camembert": replace(_ROBERTA, prefixes=("roberta.", "camembert.")),
    "distilbert": Family(
        _DISTILBERT,
        ("distilbert.",),
        token_types=False,
        classifier=_DISTILBERT_LABELS,
        vocabulary=_DISTILBERT_WORDS,
    ),
    "mpnet": Family(_MPNET, ("mpnet.",), token_types=False, offset_positions=True, relative_bias=True),
    "electra": Family(replace(_BERT, projection="embeddings_project"), ("electra.",), is_factorised=True),
    "albert": Family(_ALBERT, ("albert.",), is_factorised=True, shares_layers=True),
    "nomic_bert": Family(_NOMIC, ("bert.", "nomic_bert."), block=Block.ROTARY_POST_NORM),
    "modernbert": Family(
        _MODERNBERT,
        ("model.",),
        block=Block.ROTARY_PRE_NORM,
        token_types=False,
        eps=1e-5,
        classifier=_MODERNBERT_LABELS,
    ),
}
"""model_type of config.json → family: every architecture this engine builds by itself."""


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of config.json's `model_type`. Raises StartError listing what is supported."""
    kind = config.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise StartError(f"model type {kind!r} is not supported; supported are {known}")
    return family
