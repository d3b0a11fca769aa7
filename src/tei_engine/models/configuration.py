"""Reading a model folder's JSON files: what kind of model, how it pools, how long its inputs may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
_MODULES = frozenset({"Transformer", "MLMTransformer", "Pooling", "SpladePooling", "Dense", "Normalize"})
_POOLING_FLAGS = (
    ("pooling_mode_cls_token", Pooling.CLS),
    ("pooling_mode_mean_tokens", Pooling.MEAN),
    ("pooling_mode_lasttoken", Pooling.LAST_TOKEN),
)
_POOLING_WORDS = {"cls": Pooling.CLS, "mean": Pooling.MEAN, "lasttoken": Pooling.LAST_TOKEN}


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything the JSON files of a model folder say that serving needs."""

    family: families.Family
    sizes: sizes.Sizes
    model_type: str
    architecture: str
    kind: Kind
    labels: Labels | None
    """Of classifiers and rerankers."""
    classification: Classification | None
    pooling: Pooling
    """Of a classifier: that of its head."""
    is_tied: bool
    """Whether a masked-LM head decodes with the word embeddings."""
    max_input_length: int
    prompts: Mapping[str, str]
    dense: tuple[Path, ...]
    """Folders of the Dense modules, in order."""
    warnings: tuple[str, ...]


def read_configuration(
    folder: Path, *, pooling: Pooling | None = None, dense_path: str | None = None
) -> Configuration:
    """Read the JSON files of `folder`; `pooling` and `dense_path` override what they say.

    Raises StartError naming the file or key that is missing or not supported.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise StartError(f"config.json not found in {folder}")
    config = _read_object(path)
    family = families.family_of(config)
    numbers = sizes.read_sizes(config, family)
    modules = _read_modules(folder)
    warnings: list[str] = []
    labels = kinds.read_labels(config) if kinds.is_classifier(config, family) else None
    head = kinds.read_classification(config, family, labels) if labels is not None else None
    if head is not None:
        if pooling is not None:
            warnings.append("--pooling is not used: the model is a classifier, which pools in its own way")
        pooling = head.pooling
    elif pooling is None:
        pooling = _read_pooling(folder, modules, str(config["model_type"]), warnings)
    if pooling is Pooling.SPLADE:
        kinds.check_splade(config, family)
    return Configuration(
        family=family,
        sizes=numbers,
        model_type=str(config["model_type"]),
        architecture=kinds.architecture_of(config),
        kind=_kind(labels, pooling),
        labels=labels,
        classification=head,
        pooling=pooling,
        is_tied=bool(config.get("tie_word_embeddings", True)),
        max_input_length=_max_input_length(folder, numbers, warnings),
        prompts=_read_prompts(folder),
        dense=_dense_folders(folder, modules, dense_path),
        warnings=tuple(warnings),
    )


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


def _max_input_length(folder: Path, numbers: sizes.Sizes, warnings: list[str]) -> int:
    for name in _SENTENCE_CONFIGS:
        path = folder / name
        if not path.is_file():
            continue
        value = _read_object(path).get("max_seq_length")
        if isinstance(value, int) and value > 0:
            if numbers.rotary is not None:  # no table of positions that could end
                return value
            if value > numbers.usable_positions:
                warnings.append(f"{name}: max_seq_length {value} is cut to {numbers.usable_positions} positions")
            return min(value, numbers.usable_positions)
    return numbers.usable_positions


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
