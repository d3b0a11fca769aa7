"""Reading a model folder's JSON files: what kind of model, how it pools, how long its inputs may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from tei_engine.errors import StartError
from tei_engine.graph import families, sizes
from tei_engine.graph.heads import Classification, Pooling
from tei_engine.models import kinds
from tei_engine.models.kinds import Kind, Labels

_SENTENCE_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
_POSITIONS = ("max_position_embeddings", "max_trained_positions", "n_positions")
_OFFSET_TYPES = frozenset({"camembert", "mpnet", "longformer", "data2vec-text", "xmod", "ibert", "esm", "luke"})
"""Model types, beside those named after RoBERTa, whose first position is pad_token_id + 1."""
_MODULES = frozenset({"Transformer", "MLMTransformer", "Pooling", "SpladePooling", "Dense", "Normalize"})
_POOLING_FLAGS = (
    ("pooling_mode_cls_token", Pooling.CLS),
    ("pooling_mode_mean_tokens", Pooling.MEAN),
    ("pooling_mode_lasttoken", Pooling.LAST_TOKEN),
)
_POOLING_WORDS = {"cls": Pooling.CLS, "mean": Pooling.MEAN, "lasttoken": Pooling.LAST_TOKEN}


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the JSON files of a model folder say that serving needs, whatever graph is run."""

    model_type: str
    architecture: str
    kind: Kind
    labels: Labels | None
    """Of classifiers and rerankers."""
    pooling: Pooling
    """Of a classifier: that of its head, where this is known."""
    is_pooling_given: bool
    """Whether `pooling` was asked for, rather than read."""
    vocab_size: int
    pad_id: int
    pads_left: bool
    """Whether padding stands in front of a text, as its tokenizer has it."""
    max_input_length: int
    prompts: Mapping[str, str]
    dense: tuple[Path, ...]
    """Folders of the Dense modules, in order."""
    obstacle: str | None
    """Why no graph can be built from the weights; None = one can, and this is a NativeConfiguration."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NativeConfiguration(Configuration):
    """The configuration of a model whose graph is built here, with what that takes."""

    family: families.Family
    sizes: sizes.Sizes
    classification: Classification | None
    is_tied: bool
    """Whether a masked-LM head decodes with the word embeddings."""

    @classmethod
    def of(cls, common: Configuration, encoder: _Encoder, *, is_tied: bool) -> NativeConfiguration:
        """`common` and what it lacks."""
        inherited = {field.name: getattr(common, field.name) for field in fields(common)}
        return cls(
            **inherited,
            family=encoder.family,
            sizes=encoder.sizes,
            classification=encoder.classification,
            is_tied=is_tied,
        )


class _Encoder(NamedTuple):
    """What building a graph takes."""

    family: families.Family
    sizes: sizes.Sizes
    classification: Classification | None


def read_configuration(
    folder: Path, *, pooling: Pooling | None = None, dense_path: str | None = None
) -> Configuration:
    """Read the JSON files of `folder`; `pooling` and `dense_path` override what they say.

    Raises StartError naming the file or key that is missing or not supported. What only stands in the way of
    building the graph is no error where the folder has an ONNX file, which may do instead.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise StartError(f"config.json not found in {folder}")
    config = _read_object(path)
    has_graph = next(folder.rglob("*.onnx"), None) is not None
    if not has_graph:
        families.family_of(config)  # says what is supported, before anything else is found missing
    model_type = str(config.get("model_type", ""))
    modules = _read_modules(folder)
    warnings: list[str] = []
    labels = kinds.read_labels(config) if kinds.is_classifier(config) else None
    if labels is not None:
        if pooling is not None:
            warnings.append("--pooling is not used: the model is a classifier, which pools in its own way")
        chosen = Pooling.CLS
    else:
        chosen = pooling or _read_pooling(folder, modules, model_type, warnings)
    encoder, obstacle = _encoder_or_obstacle(config, labels, chosen, has_graph=has_graph)
    if encoder is not None and encoder.classification is not None:
        chosen = encoder.classification.pooling
    common = Configuration(
        model_type=model_type,
        architecture=kinds.architecture_of(config),
        kind=_kind(labels, chosen),
        labels=labels,
        pooling=chosen,
        is_pooling_given=pooling is not None and labels is None,
        vocab_size=_number(config, "vocab_size") or 0,
        pad_id=_number(config, "pad_token_id") or 0,
        pads_left=_pads_left(folder),
        max_input_length=_max_input_length(folder, config, encoder, warnings),
        prompts=_read_prompts(folder),
        dense=_dense_folders(folder, modules, dense_path),
        obstacle=obstacle,
        warnings=tuple(warnings),
    )
    if common.vocab_size == 0:
        raise StartError("config.json has no vocab_size")
    if encoder is None:
        return common
    return NativeConfiguration.of(common, encoder, is_tied=bool(config.get("tie_word_embeddings", True)))


def _encoder_or_obstacle(
    config: Mapping[str, Any], labels: Labels | None, pooling: Pooling, *, has_graph: bool
) -> tuple[_Encoder | None, str | None]:
    """What building the graph takes, or why it cannot be built, which is raised unless there is another graph."""
    if pooling is Pooling.SPLADE:
        kinds.check_splade(config)
    try:
        family = families.family_of(config)
        numbers = sizes.read_sizes(config, family)
        head = kinds.read_classification(config, family, labels) if labels is not None else None
        if pooling is Pooling.SPLADE:
            kinds.check_vocabulary(config, family)
    except StartError as error:
        if not has_graph:
            raise
        return None, str(error)
    return _Encoder(family, numbers, head), None


def _kind(labels: Labels | None, pooling: Pooling) -> Kind:
    if labels is not None:
        return Kind.RERANKER if len(labels.names) == 1 else Kind.CLASSIFIER
    return Kind.SPLADE if pooling is Pooling.SPLADE else Kind.EMBEDDING


def _read_object(path: Path) -> Mapping[str, Any]:
    try:
        value = orjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StartError(f"could not read {path}", str(error)) from error
    if not isinstance(value, dict):
        raise StartError(f"{path} is not a JSON object")
    return value


def _read_modules(folder: Path) -> list[tuple[str, Path]]:
    """(type, folder) of each sentence-transformers module, the type by its last name part."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    try:
        entries = [(str(m["type"]).rsplit(".", 1)[-1], str(m["path"])) for m in orjson.loads(path.read_bytes())]
    except (ValueError, KeyError, TypeError) as error:
        raise StartError(f"could not read {path}", repr(error)) from error
    for kind, place in entries:
        if kind not in _MODULES:
            raise StartError(f"modules.json names a module of type {kind}, which is not supported")
        _check_inside(place)
    return [(kind, folder / place) for kind, place in entries]


def _check_inside(place: str) -> None:
    if Path(place).is_absolute() or ".." in Path(place).parts:
        raise StartError(f"modules.json names a folder outside the model: {place}")


def _read_pooling(folder: Path, modules: list[tuple[str, Path]], model_type: str, warnings: list[str]) -> Pooling:
    splade = next((path for kind, path in modules if kind == "SpladePooling"), None)
    if splade is not None:
        _check_splade_pooling(splade / "config.json")
        return Pooling.SPLADE
    place = next((path for kind, path in modules if kind == "Pooling"), folder / "1_Pooling")
    path = place / "config.json"
    if not path.is_file():
        if "bert" not in model_type:
            raise StartError(f"{path} not found: say how to pool with --pooling")
        warnings.append(f"{path} not found: pooling is cls")
        return Pooling.CLS
    config = _read_object(path)
    for key, pooling in _POOLING_FLAGS:
        if config.get(key) is True:
            return pooling
    word = config.get("pooling_mode")
    if isinstance(word, str) and word in _POOLING_WORDS:
        return _POOLING_WORDS[word]
    raise StartError(f"{path} names no pooling mode that is supported (cls, mean, lasttoken)")


def _check_splade_pooling(path: Path) -> None:
    config = _read_object(path) if path.is_file() else {}
    for key, only in (("pooling_strategy", "max"), ("activation_function", "relu")):
        if config.get(key, only) != only:
            raise StartError(f"{path}: {key} {config[key]!r} is not supported ({only} is)")


def _max_input_length(
    folder: Path, config: Mapping[str, Any], encoder: _Encoder | None, warnings: list[str]
) -> int:
    """Tokens of the longest input: what sentence-transformers says, else the number of positions."""
    positions = encoder.sizes.usable_positions if encoder is not None else _positions(config)
    # rotary positions need no table that could end
    is_bounded = positions is not None and (encoder is None or encoder.sizes.rotary is None)
    for name in _SENTENCE_CONFIGS:
        path = folder / name
        if not path.is_file():
            continue
        value = _read_object(path).get("max_seq_length")
        if isinstance(value, int) and value > 0:
            if positions is None or not is_bounded or value <= positions:
                return value
            warnings.append(f"{name}: max_seq_length {value} is cut to {positions} positions")
            return positions
    if positions is None:
        raise StartError(f"config.json has no {_POSITIONS[0]}, and no sentence_bert_config.json a max_seq_length")
    return positions


def _positions(config: Mapping[str, Any]) -> int | None:
    """Tokens that a model has positions for which is not built here; None if config.json does not say."""
    positions = next((found for key in _POSITIONS if (found := _number(config, key))), None)
    model_type = str(config.get("model_type", ""))
    if positions is None or not ("roberta" in model_type or model_type in _OFFSET_TYPES):
        return positions
    pad = _number(config, "pad_token_id")
    return positions - (1 if pad is None else pad) - 1


def _number(config: Mapping[str, Any], key: str) -> int | None:
    """A count or an id of config.json; None where it has none that makes sense."""
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _pads_left(folder: Path) -> bool:
    path = folder / "tokenizer_config.json"
    return path.is_file() and _read_object(path).get("padding_side") == "left"


def _read_prompts(folder: Path) -> Mapping[str, str]:
    path = folder / "config_sentence_transformers.json"
    prompts = _read_object(path).get("prompts") if path.is_file() else None
    if not isinstance(prompts, dict):
        return {}
    return {str(name): text for name, text in prompts.items() if isinstance(text, str)}


def _dense_folders(folder: Path, modules: list[tuple[str, Path]], dense_path: str | None) -> tuple[Path, ...]:
    found = tuple(path for kind, path in modules if kind == "Dense")
    if dense_path is None:
        return found
    if len(found) > 1:
        raise StartError("--dense-path cannot replace more than one Dense module")
    _check_inside(dense_path)
    return (folder / dense_path,)
