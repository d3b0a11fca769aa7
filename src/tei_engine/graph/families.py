"""What sets one architecture apart from another: tensor names, config keys, where positions begin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tei_engine.errors import StartError


@dataclass(frozen=True, slots=True)
class Names:
    """Tensor names of one encoder layer, after `layer` with the layer's number filled in."""

    layer: str
    query: str
    key: str
    value: str
    out: str
    attention_norm: str
    up: str
    down: str
    output_norm: str


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


@dataclass(frozen=True, slots=True)
class Family:
    """A group of model types that share a graph builder and tensor names."""

    names: Names
    prefixes: tuple[str, ...]
    token_types: bool = True
    offset_positions: bool = False
    """Positions begin at pad_token_id + 1 (fairseq's habit) instead of 0."""
    relative_bias: bool = False
    eps: float = 1e-12
    """Layer norm epsilon where the config has none."""


FAMILIES: Mapping[str, Family] = {
    "bert": Family(_BERT, ("bert.",)),
    "roberta": Family(_BERT, ("roberta.",), offset_positions=True),
    "xlm-roberta": Family(_BERT, ("roberta.", "xlm-roberta."), offset_positions=True),
    "camembert": Family(_BERT, ("roberta.", "camembert."), offset_positions=True),
    "distilbert": Family(_DISTILBERT, ("distilbert.",), token_types=False),
    "mpnet": Family(_MPNET, ("mpnet.",), token_types=False, offset_positions=True, relative_bias=True),
}
"""model_type of config.json → family: every architecture this engine builds by itself."""

ACTIVATIONS = frozenset({"gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh"})

_ALIASES = {
    "hidden_size": ("hidden_size", "dim", "n_embd"),
    "num_hidden_layers": ("num_hidden_layers", "n_layers", "n_layer"),
    "num_attention_heads": ("num_attention_heads", "n_heads", "n_head"),
    "intermediate_size": ("intermediate_size", "hidden_dim", "n_inner"),
    "max_position_embeddings": ("max_position_embeddings", "max_trained_positions", "n_positions"),
    "vocab_size": ("vocab_size",),
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """The numbers of one model, read from its config.json. `first_position` is the row of the first token."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    positions: int
    vocab: int
    types: int
    first_position: int
    activation: str
    eps: float
    relative_buckets: int

    @property
    def usable_positions(self) -> int:
        """Tokens that fit: the position table without the rows before the first position."""
        return self.positions - self.first_position


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of config.json's `model_type`. Raises StartError listing what is supported."""
    kind = config.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise StartError(f"model type {kind!r} is not supported; supported are {known}")
    return family


def read_sizes(config: Mapping[str, Any], family: Family) -> Sizes:
    """The sizes in config.json. Raises StartError naming the key that is missing or makes no sense."""
    number = {name: _positive(config, keys) for name, keys in _ALIASES.items()}
    if number["hidden_size"] % number["num_attention_heads"]:
        raise StartError("config.json: hidden_size is not a multiple of num_attention_heads")
    activation = config.get("hidden_act", config.get("activation", "gelu"))
    if activation not in ACTIVATIONS:
        raise StartError(f"config.json: activation {activation!r} is not supported")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise StartError(
            f"config.json: position_embedding_type {config['position_embedding_type']!r} is not supported"
        )
    first = 0
    if family.offset_positions:
        pad = config.get("pad_token_id")
        first = (1 if pad is None else int(pad)) + 1
    return Sizes(
        hidden=number["hidden_size"],
        layers=number["num_hidden_layers"],
        heads=number["num_attention_heads"],
        feed_forward=number["intermediate_size"],
        positions=number["max_position_embeddings"],
        vocab=number["vocab_size"],
        types=int(config.get("type_vocab_size", 2)) if family.token_types else 0,
        first_position=first,
        activation=str(activation),
        eps=float(config.get("layer_norm_eps", family.eps)),
        relative_buckets=int(config.get("relative_attention_num_buckets", 32)),
    )


def _positive(config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and value > 0:
            return value
        if value is not None:
            raise StartError(f"config.json: {key} is {value!r}, expected a positive number")
    raise StartError(f"config.json has no {keys[0]}")
