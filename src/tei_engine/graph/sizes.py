"""The numbers of one model, read from its config.json under the several names that families give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tei_engine.errors import StartError
from tei_engine.graph.families import Block, Family

ACTIVATIONS = frozenset({"gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh"})

_ALIASES = {
    "hidden_size": ("hidden_size", "dim", "n_embd"),
    "num_hidden_layers": ("num_hidden_layers", "n_layers", "n_layer"),
    "num_attention_heads": ("num_attention_heads", "n_heads", "n_head"),
    "intermediate_size": ("intermediate_size", "hidden_dim", "n_inner"),
    "max_position_embeddings": ("max_position_embeddings", "max_trained_positions", "n_positions"),
    "vocab_size": ("vocab_size",),
}
_EPSILONS = ("norm_eps", "layer_norm_eps", "layer_norm_epsilon")
_ACTIVATION_KEYS = ("hidden_act", "hidden_activation", "activation", "activation_function")
_GATED = {"swiglu": "silu", "geglu": "gelu"}


@dataclass(frozen=True, slots=True)
class Rotary:
    """What only rotary encoders have: per layer its base and window, and which parts have a bias.

    A window is how far a token sees to either side; None = everything.
    """

    bases: tuple[float, ...]
    windows: tuple[int | None, ...]
    attention_bias: bool
    up_bias: bool
    down_bias: bool
    norm_bias: bool


@dataclass(frozen=True, slots=True)
class Sizes:
    """The numbers of one model. `first_position` is the row of the first token in the table of positions."""

    hidden: int
    embedding: int
    layers: int
    groups: int
    """Stored layers, where they are shared; else the number of layers."""
    heads: int
    feed_forward: int
    positions: int
    vocab: int
    types: int
    first_position: int
    activation: str
    eps: float
    relative_buckets: int
    rotary: Rotary | None

    @property
    def usable_positions(self) -> int:
        """Tokens that fit: the position table without the rows before the first position."""
        return self.positions - self.first_position


def read_sizes(config: Mapping[str, Any], family: Family) -> Sizes:
    """The sizes in config.json. Raises StartError naming the key that is missing or makes no sense."""
    number = {name: _positive(config, keys) for name, keys in _ALIASES.items()}
    hidden, layers, heads = (number[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    if hidden % heads:
        raise StartError("config.json: hidden_size is not a multiple of num_attention_heads")
    _refuse_unless(config, "position_embedding_type", "absolute")
    _refuse_unless(config, "head_dim", hidden // heads)
    first = 0
    if family.offset_positions:
        pad = config.get("pad_token_id")
        first = (1 if pad is None else int(pad)) + 1
    groups = layers
    if family.shares_layers:
        _refuse_unless(config, "inner_group_num", 1)
        groups = _positive(config, ("num_hidden_groups",))
    return Sizes(
        hidden=hidden,
        embedding=_positive(config, ("embedding_size",)) if family.is_factorised else hidden,
        layers=layers,
        groups=groups,
        heads=heads,
        feed_forward=number["intermediate_size"],
        positions=number["max_position_embeddings"],
        vocab=number["vocab_size"],
        types=int(config.get("type_vocab_size", 2)) if family.token_types else 0,
        first_position=first,
        activation=_activation(config, family),
        eps=float(_first(config, _EPSILONS, family.eps)),
        relative_buckets=int(config.get("relative_attention_num_buckets", 32)),
        rotary=_read_rotary(config, family, layers),
    )


def activation_of(config: Mapping[str, Any], key: str) -> str:
    """The activation that `key` names, `gelu` if it is absent. Raises StartError if it is not known here."""
    name = config.get(key, "gelu")
    if name not in ACTIVATIONS:
        raise StartError(f"config.json: activation {name!r} is not supported")
    return str(name)


def _activation(config: Mapping[str, Any], family: Family) -> str:
    key = next((key for key in _ACTIVATION_KEYS if config.get(key) is not None), "")
    if family.is_rotary and config.get(key) in _GATED:
        return _GATED[config[key]]
    return activation_of(config, key)


def _read_rotary(config: Mapping[str, Any], family: Family, layers: int) -> Rotary | None:
    if family.block is Block.ROTARY_PRE_NORM:
        return _read_alternating(config, layers)
    if family.block is Block.ROTARY_POST_NORM:
        return _read_uniform(config, layers)
    return None


def _read_alternating(config: Mapping[str, Any], layers: int) -> Rotary:
    """ModernBERT: most layers see a window only, and rotate by another base than those that see everything."""
    kinds = config.get("layer_types")
    if kinds is None:
        every = _positive(config, ("global_attn_every_n_layers",))
        kinds = ["sliding_attention" if layer % every else "full_attention" for layer in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise StartError(f"config.json: layer_types is {kinds!r}, expected a list of {layers}")
    wide = _base(config, "full_attention", ("global_rope_theta",), 160_000.0)
    near = _base(config, "sliding_attention", ("local_rope_theta",), 10_000.0)
    window = _positive(config, ("local_attention",)) // 2
    by_kind = {"full_attention": (wide, None), "sliding_attention": (near, window)}
    for kind in kinds:
        if kind not in by_kind:
            raise StartError(f"config.json: layer type {kind!r} is not supported")
    return Rotary(
        bases=tuple(by_kind[kind][0] for kind in kinds),
        windows=tuple(by_kind[kind][1] for kind in kinds),
        attention_bias=bool(config.get("attention_bias")),
        up_bias=bool(config.get("mlp_bias")),
        down_bias=bool(config.get("mlp_bias")),
        norm_bias=bool(config.get("norm_bias")),
    )


def _read_uniform(config: Mapping[str, Any], layers: int) -> Rotary:
    """Nomic's BERT, by its published keys or those of transformers: one base, everything is seen."""
    for key, only in (
        ("prenorm", False),
        ("causal", False),
        ("use_rms_norm", False),
        ("rotary_emb_interleaved", False),
        ("rotary_emb_fraction", 1.0),
        ("rotary_emb_scale_base", None),
        ("rotary_scaling_factor", None),
        ("parallel_block", False),
    ):
        _refuse_unless(config, key, only)
    if int(config.get("moe_every_n_layers") or 0) > 0:
        raise StartError("config.json: mixtures of experts (moe_every_n_layers) are not supported")
    base = _base(config, None, ("rotary_emb_base", "rope_theta"), 10_000.0)
    return Rotary(
        bases=(base,) * layers,
        windows=(None,) * layers,
        attention_bias=bool(config.get("qkv_proj_bias")),
        up_bias=bool(config.get("mlp_fc1_bias")),
        down_bias=bool(config.get("mlp_fc2_bias")),
        norm_bias=True,
    )


def _base(config: Mapping[str, Any], kind: str | None, keys: tuple[str, ...], otherwise: float) -> float:
    """The base of the rotation, from `rope_parameters` (of this kind of layer) or from the older keys."""
    parameters = config.get("rope_parameters")
    if isinstance(parameters, dict) and kind is not None:
        parameters = parameters.get(kind)
    if isinstance(parameters, dict):
        if parameters.get("rope_type", "default") != "default":
            raise StartError(f"config.json: rope_type {parameters['rope_type']!r} is not supported")
        value = parameters.get("rope_theta")
    else:
        value = None
    if value is None:
        value = _first(config, keys, otherwise)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise StartError(f"config.json: the base of rotary positions is {value!r}")
    return float(value)


def _first(config: Mapping[str, Any], keys: tuple[str, ...], otherwise: Any) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), otherwise)


def _refuse_unless(config: Mapping[str, Any], key: str, only: object) -> None:
    """Raise StartError if `key` is present and says anything but `only`."""
    value = config.get(key)
    if value is not None and value != only:
        raise StartError(f"config.json: {key} {value!r} is not supported")


def _positive(config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and value > 0:
            return value
        if value is not None:
            raise StartError(f"config.json: {key} is {value!r}, expected a positive number")
    raise StartError(f"config.json has no {keys[0]}")
